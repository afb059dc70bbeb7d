"""Files the command line writes, read by the programs they are meant for, and the other way round."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import scipy.linalg
import scipy.sparse

convmat = sys.argv[1]
rng = np.random.default_rng(0)


def run(*arguments):
    return subprocess.run(
        [convmat, *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def spectra(at, dtype, layer):
    """Singular values of the layer with weight w.npy on 9 x 6 inputs, and of its matrix, beside SciPy's."""
    tolerance = 2e-6 if dtype == np.float32 else 1e-12
    run("matrix", at / "w.npy", *layer, "-o", at / "m.npz")
    m = scipy.sparse.load_npz(at / "m.npz").astype(np.float64)
    expected = scipy.linalg.svdvals(m.toarray())
    scipy.sparse.save_npz(at / "scipy.npz", m.astype(dtype))

    def agree(values, count):
        assert values.dtype == np.float64 and values.shape == (count,), (values.dtype, values.shape)
        error = np.abs(values - expected[:count]).max() / expected[0]
        assert error <= tolerance, (dtype, layer, count, error)

    for operator in ([at / "w.npy", *layer], [at / "scipy.npz"]):
        # By itself it takes the circular method where it can.
        for method in "dense", "auto":
            run("spectrum", *operator, "--top", "all", "--method", method, "-o", at / "s.npy")
            agree(np.load(at / "s.npy"), len(expected))
        run("spectrum", *operator, "--top", 6, "--method", "lanczos", "-o", at / "s.npz")
        with np.load(at / "s.npz") as found:
            values, u, v = found["values"], found["u"], found["v"]
        agree(values, 6)
        assert u.dtype == v.dtype == dtype
        # The residuals at which values count as converged, in both directions.
        residual = 2e-6 if dtype == np.float32 else 2e-9
        assert np.abs(m @ v.T - u.T * values).max() <= residual * expected[0]
        assert np.abs(m.T @ u.T - v.T * values).max() <= residual * expected[0]
        assert np.abs(u @ u.T - np.eye(6)).max() <= 1e-5
        norm = json.loads(run("spectrum", *operator, "--bracket", "--json"))["norm"]
        assert norm["lower"] <= expected[0] * (1 + tolerance), norm
        assert expected[0] <= norm["upper"] * (1 + 1e-12), norm


def pruned(at, dtype):
    """Pruned weights as SciPy reads them, and weights that SciPy and PyTorch hold, convolved with."""
    dense = rng.integers(-8, 9, (6, 2, 3, 2)).astype(dtype)
    np.save(at / "dense.npy", dense)
    run("prune", at / "dense.npy", "--threshold", 3, "-o", at / "p.npz")
    kept = scipy.sparse.load_npz(at / "p.npz")
    assert kept.has_canonical_format and kept.dtype == dtype, (kept.dtype, kept.has_canonical_format)
    expected = np.where(np.abs(dense) > 3, dense, 0)
    assert np.array_equal(kept.toarray(), expected.reshape(6, 12))
    np.save(at / "kept.npy", expected)
    np.save(at / "x.npy", rng.integers(-8, 9, (2, 4, 9, 7)).astype(dtype))
    layer = ["--kernel", "3x2", "--padding", 1, "--groups", 2, "--padding-mode", "reflect"]
    run("conv", at / "x.npy", at / "kept.npy", *layer, "-o", at / "y.npy")
    scipy.sparse.save_npz(at / "csr.npz", kept)
    # Triplets out of order, one of them in two parts.
    coo = kept.tocoo()
    order = rng.permutation(coo.nnz)
    row, col, data = coo.row[order], coo.col[order], coo.data[order]
    row, col = np.append(row, row[0]), np.append(col, col[0])
    data = np.append(data, dtype(1))
    data[0] -= 1
    scipy.sparse.save_npz(at / "coo.npz", scipy.sparse.coo_matrix((data, (row, col)), kept.shape))
    torch_names = {"crow_indices": kept.indptr, "col_indices": kept.indices, "values": kept.data}
    np.savez(at / "torch.npz", size=kept.shape, **torch_names)
    np.savez(at / "torch-coo.npz", size=kept.shape, indices=np.stack([row, col]), values=data)
    for name in "p", "csr", "coo", "torch", "torch-coo":
        run("conv", at / "x.npy", at / f"{name}.npz", *layer, "-o", at / "z.npy")
        assert np.array_equal(np.load(at / "z.npy"), np.load(at / "y.npy")), name


def curvature(at, dtype, mode, groups, layer):
    """Covariances and Kronecker factors, and gradients preconditioned by them, beside NumPy's."""
    tolerance = 2e-3 if dtype == np.float32 else 1e-9
    n, c, o, damping = 7, 4, 6, 0.05
    x = rng.standard_normal((n, c, 5, 6)).astype(dtype)
    np.save(at / "x.npy", x)
    layer = ["--kernel", "3x2", "--groups", groups, *layer]
    run("unfold", at / "x.npy", *layer, "-o", at / "patches.npy")
    patches = np.load(at / "patches.npy").astype(np.float64)
    t = patches.shape[2]
    spatial = json.loads(run("unfold", at / "x.npy", *layer, "-o", at / "p.npy", "--json"))["geometry"]
    extents = [
        (size + sum(pad) - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, dilation, pad in zip(
            (5, 6), spatial["kernel"], spatial["stride"], spatial["dilation"], spatial["padding"]
        )
    ]
    dy = rng.standard_normal((n, o, *extents)).astype(dtype)
    np.save(at / "dy.npy", dy)
    dw = rng.standard_normal((groups, o // groups, c // groups * 6 + 1)).astype(dtype)
    np.save(at / "dw.npy", dw)

    # Group, example, row, position.
    a = patches.reshape(n, groups, -1, t).swapaxes(0, 1)
    a = np.concatenate([a, np.ones((groups, n, 1, t))], axis=2)
    g = dy.astype(np.float64).reshape(n, groups, -1, t).swapaxes(0, 1)

    def close(found, expected):
        expected = expected[0] if groups == 1 else expected
        assert found.dtype == dtype and found.shape == expected.shape, (found.shape, expected.shape)
        error = np.abs(found - expected).max() / np.abs(expected).max()
        assert error <= tolerance, (dtype, mode, groups, layer, error)

    def covariance(v, power):
        if mode == "reduce":
            v = v.sum(axis=3, keepdims=True)
        return np.einsum("gnit,gnjt->gij", v, v) / (n * t ** (power * (2 if mode == "reduce" else 1)))

    big_a, big_g = covariance(a, 1), covariance(g, 0)
    common = [*layer, "--bias", "--mode", mode]
    run("covariance", at / "x.npy", *common, "-o", at / "a.npy")
    close(np.load(at / "a.npy"), big_a)
    run("covariance", at / "x.npy", *common, "--scale", "sum", "-o", at / "a.npy")
    close(np.load(at / "a.npy"), big_a * n * t ** (2 if mode == "reduce" else 1))

    examples = np.einsum("gnot,gnit->gnoi", g, a)
    for gradient in examples.mean(axis=1), dw:
        given = ["--gradient", at / "dw.npy"] if gradient is dw else []
        for method in "kfac", "ekfac":
            for pi_flag in [[], ["--no-pi"]]:
                command = ["kfac", at / "x.npy", at / "dy.npy", *common, *given, *pi_flag]
                run(*command, "--method", method, "--damping", damping, "-o", at / "f.npz")
                with np.load(at / "f.npz") as file:
                    found = {key: file[key] for key in file}
                close(found["A"], big_a)
                close(found["G"], big_g)
                whole = found if groups > 1 else {key: value[None] for key, value in found.items()}
                whole = {key: value.astype(np.float64) for key, value in whole.items()}
                for side, factor in ("a", big_a), ("g", big_g):
                    values, q = whole[f"eigenvalues_{side}"], whole[f"q_{side}"]
                    assert np.all(np.diff(values, axis=1) >= 0)
                    rebuilt = np.einsum("gij,gj,gkj->gik", q, values, q)
                    assert np.abs(rebuilt - factor).max() <= tolerance * np.abs(factor).max()
                if method == "kfac":
                    mean = [np.trace(f, axis1=1, axis2=2) / f.shape[1] for f in (big_a, big_g)]
                    pi = np.ones(groups) if pi_flag else np.sqrt(mean[0] / mean[1])
                    left = big_g + np.multiply.outer(np.sqrt(damping) / pi, np.eye(o // groups))
                    right = big_a + np.multiply.outer(np.sqrt(damping) * pi, np.eye(big_a.shape[1]))
                    half = np.linalg.solve(left, gradient.astype(np.float64))
                    expected = np.linalg.solve(right, half.swapaxes(1, 2)).swapaxes(1, 2)
                else:
                    q_a, q_g = whole["q_a"], whole["q_g"]
                    turned = np.einsum("gpo,gnpi,gij->gnoj", q_g, examples, q_a)
                    close(found["lambda"], (turned**2).mean(axis=1))
                    inner = np.einsum("gpo,gpi,gij->goj", q_g, gradient, q_a)
                    inner = inner / (whole["lambda"] + damping)
                    expected = np.einsum("gpo,goj,gij->gpi", q_g, inner, q_a)
                close(found["preconditioned"], expected)


with tempfile.TemporaryDirectory() as folder:
    at = Path(folder)
    for dtype in (np.float32, np.float64):
        x = rng.integers(-8, 9, (2, 4, 9, 7)).astype(dtype)
        w = rng.integers(-8, 9, (6, 2, 3, 2)).astype(dtype)
        b = rng.integers(-8, 9, 6).astype(dtype)
        np.save(at / "x.npy", np.asfortranarray(x))
        np.savez_compressed(at / "wb.npz", w=w, b=b)
        layer = ["--stride", "2x1", "--padding", "1:0x1", "--groups", 2, "--padding-mode", "circular"]
        operands = [at / "x.npy", f"{at}/wb.npz:w", "--bias", f"{at}/wb.npz:b"]

        run("conv", *operands, *layer, "-o", at / "y.npy")
        y = np.load(at / "y.npy")
        assert y.dtype == dtype

        run("matrix", *operands[1:], "--input-size", "9x7", *layer, "-o", at / "m.npz")
        m = scipy.sparse.load_npz(at / "m.npz")
        assert m.has_canonical_format and m.dtype == dtype, (m.dtype, m.has_canonical_format)
        columns = np.vstack([x.reshape(2, -1).T, np.ones((1, 2), dtype)])
        assert np.array_equal(m @ columns, y.reshape(2, -1).T)

        run("unfold", at / "x.npy", "--kernel", "3x2", *layer, "-o", at / "a.npy")
        a = np.load(at / "a.npy").reshape(2, 2, 12, -1)
        product = np.einsum("gok,ngkl->ngol", w.reshape(2, 3, 12), a).reshape(y.shape)
        assert np.array_equal(product + b[:, None, None], y)

        run("filter", "--channels", 4, "--kernel", "3x2", "--groups", 2, "--sparse", "-o", at / "f.npz")
        run("filter", "--channels", 4, "--kernel", "3x2", "--groups", 2, "-o", at / "f.npy")
        dense = np.load(at / "f.npy")
        sparse = scipy.sparse.load_npz(at / "f.npz").toarray()
        assert np.array_equal(sparse, dense.reshape(sparse.shape))

        pruned(at, dtype)

        np.save(at / "w.npy", rng.standard_normal((6, 2, 3, 3)).astype(dtype))
        for layer in (
            ["--stride", "2x1", "--padding", "1:0x1", "--groups", 2],
            ["--stride", "3x2", "--padding", 1, "--groups", 2, "--padding-mode", "circular"],
        ):
            spectra(at, dtype, ["--input-size", "9x6", *layer])

        for mode in "expand", "reduce":
            curvature(at, dtype, mode, 1, ["--padding", "1:0x1"])
            curvature(at, dtype, mode, 2, ["--padding", 2, "--stride", "2x1", "--padding-mode", "reflect"])
            curvature(at, dtype, mode, 1, ["--padding", 1, "--dilation", "1x2", "--padding-mode", "circular"])

print("NumPy and SciPy read what convmat writes, and agree with it")
