"""Writes the files beside it, as NumPy, SciPy and safetensors write them.

    pip install numpy scipy ml_dtypes safetensors && python3 make.py

Element i of an array of n (in row-major order) is i - 2 in the signed types and i in the others, so
that tests need no copy of the values.
"""

import pathlib

import ml_dtypes
import numpy as np
import scipy.sparse
import safetensors.numpy

here = pathlib.Path(__file__).parent


def ramp(dtype, *shape, first=-2):
    return (np.arange(np.prod(shape, dtype=int)) + first).astype(dtype).reshape(shape)


np.save(here / "fortran.npy", np.asfortranarray(ramp("<f4", 2, 3, 4)))
np.save(here / "big_endian.npy", ramp(">f8", 2, 3))
np.save(here / "big_endian_fortran.npy", np.asfortranarray(ramp(">i2", 3, 4)))
np.save(here / "bfloat16.npy", ramp(ml_dtypes.bfloat16, 5))
for version in (1, 2, 3):
    with open(here / f"version{version}.npy", "wb") as file:
        np.lib.format.write_array(file, ramp("<f4", 2, 3), version=(version, 0))

floats, signed = ("f2", "f4", "f8"), ("i1", "i2", "i4", "i8")
unsigned = ("u1", "u2", "u4", "u8")
arrays = {t: ramp(t, 2, 3) for t in floats + signed}
arrays |= {t: ramp(t, 2, 3, first=0) for t in unsigned}
arrays |= {"bool": np.array([False, True, True]), "scalar": np.float32(7), "empty": np.zeros((0, 3))}
arrays |= {"complex": np.zeros(2, "c8"), "text": np.array(["a"]), "record": np.zeros(2, "f4,i4")}
np.savez_compressed(here / "types.npz", **arrays)
np.savez(here / "one.npz", only=ramp("f4", 3))

matrix = scipy.sparse.csr_matrix(np.array([[0, 1.5, 0], [2, 0, -3]]))
scipy.sparse.save_npz(here / "scipy_csr.npz", matrix)

tensors = {t: ramp(t, 2, 3) for t in floats + signed}
tensors |= {t: ramp(t, 2, 3, first=0) for t in unsigned}
tensors |= {"bf16": ramp(ml_dtypes.bfloat16, 5), "bool": arrays["bool"], "empty": arrays["empty"]}
tensors |= {"f8e4m3": np.zeros(3, ml_dtypes.float8_e4m3fn)}
safetensors.numpy.save_file(tensors, here / "types.safetensors", metadata={"made by": "make.py"})
