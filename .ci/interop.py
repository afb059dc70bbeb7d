"""Files the command line writes, read by the programs they are meant for, and the other way round."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import scipy.sparse

convmat = sys.argv[1]
rng = np.random.default_rng(0)


def run(*arguments):
    subprocess.run([convmat, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


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

print("NumPy and SciPy read what convmat writes, and agree with it")
