"""Recomputes the singular values that `digits_golden.npz` records, by PyTorch in f64. Needs torch and numpy.

A layer's matrix is what PyTorch's convolution without bias makes of the unit images: column j for the j-th.
"""

import json
import math
import pathlib

import numpy
import torch
import torch.nn.functional as F

folder = pathlib.Path(__file__).parent
golden = numpy.load(folder / "digits_golden.npz")
model = (folder / "digits_cnn.safetensors").read_bytes()
start = 8 + int.from_bytes(model[:8], "little")
tensors = json.loads(model[8:start])


def weight(layer):
    tensor = tensors[f"{layer}.weight"]
    assert tensor["dtype"] == "F32"
    low, high = (start + offset for offset in tensor["data_offsets"])
    data = numpy.frombuffer(model[low:high], "<f4").reshape(tensor["shape"])
    return torch.from_numpy(data.astype(numpy.float64))


# Channels and extents of the input, and the layer.
LAYERS = {
    "conv1": ([1, 8, 8], lambda x, w: F.conv2d(F.pad(x, [1] * 4, mode="reflect"), w)),
    "conv2": ([16, 8, 8], lambda x, w: F.conv2d(x, w, stride=2, padding=1, groups=4)),
    "conv3": ([32, 4, 4], lambda x, w: F.conv2d(x, w, padding=2, dilation=2)),
}

for name, (shape, layer) in LAYERS.items():
    size = math.prod(shape)
    images = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    matrix = layer(images, weight(name)).reshape(size, -1).T
    found = torch.linalg.svdvals(matrix).numpy()
    recorded = golden[f"{name}.singular_values"]
    assert found.shape == recorded.shape
    deviation = abs(found - recorded).max() / recorded[0]
    print(f"{name}: {len(recorded)} values of a {matrix.shape[0]} x {matrix.shape[1]} matrix, "
          f"off by at most {deviation:.1e} of the largest")
    assert deviation <= 1e-13
