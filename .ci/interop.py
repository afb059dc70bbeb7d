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

        np.save(at / "w.npy", rng.standard_normal((6, 2, 3, 3)).astype(dtype))
        for layer in (
            ["--stride", "2x1", "--padding", "1:0x1", "--groups", 2],
            ["--stride", "3x2", "--padding", 1, "--groups", 2, "--padding-mode", "circular"],
        ):
            spectra(at, dtype, ["--input-size", "9x6", *layer])

print("NumPy and SciPy read what convmat writes, and agree with it")
