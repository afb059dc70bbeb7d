"""Records singular values of small layers (`layers.json`), and how the values of a randomised
method scatter (`lowrank.json`), both by PyTorch and NumPy in f64. Needs torch and numpy.

Element i of a weight, in row-major order, is ((i³ + 5i) mod 13) − 6. A matrix is what PyTorch's
convolution without bias makes of the unit images: column j for the j-th, channel by channel.
"""

import json
import math
import pathlib

import numpy
import torch
import torch.nn.functional as F

folder = pathlib.Path(__file__).parent
torch.set_default_dtype(torch.float64)
MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}

# name, weight, input extents, and what is not 1 (stride, dilation, groups), 0 (padding: [low, high]
# an axis) or zeros (mode). A transposed layer's weight begins with its input channels.
LAYERS = [
    ("1d", [3, 2, 3], [9], {"padding": [[1, 1]]}),
    ("1d reflect", [2, 3, 4], [7], {"padding": [[3, 1]], "stride": [2], "mode": "reflect"}),
    ("1d circular", [4, 4, 5], [8], {"padding": [[2, 2]], "mode": "circular"}),
    ("1d dilated", [4, 1, 3], [11], {"padding": [[2, 2]], "dilation": [2], "groups": 2}),
    ("2d", [4, 4, 3, 3], [6, 6], {"padding": [[1, 1], [1, 1]]}),
    ("2d valid", [2, 3, 2, 3], [5, 6], {}),
    ("2d strided", [5, 3, 3, 3], [7, 6], {"padding": [[1, 1], [1, 1]], "stride": [2, 2]}),
    ("2d pointwise", [3, 5, 1, 1], [3, 4], {}),
    ("2d depthwise", [6, 1, 3, 3], [5, 4], {"padding": [[1, 1], [1, 1]], "groups": 6}),
    ("2d circular", [3, 4, 3, 3], [6, 5], {"padding": [[1, 1], [1, 1]], "mode": "circular"}),
    (
        "2d circular strided",
        [4, 2, 3, 3],
        [6, 4],
        {"padding": [[1, 1], [1, 1]], "stride": [2, 2], "groups": 2, "mode": "circular"},
    ),
    (
        "2d circular dilated",
        [3, 3, 2, 3],
        [5, 7],
        {"padding": [[1, 0], [2, 2]], "dilation": [1, 2], "mode": "circular"},
    ),
    (
        "2d reflect",
        [3, 2, 3, 2],
        [5, 5],
        {"padding": [[2, 2], [1, 1]], "dilation": [2, 1], "mode": "reflect"},
    ),
    (
        "2d replicate",
        [4, 2, 3, 3],
        [5, 6],
        {"padding": [[1, 2], [2, 0]], "stride": [1, 2], "groups": 2, "mode": "replicate"},
    ),
    ("3d", [2, 3, 3, 2, 3], [3, 4, 3], {"padding": [[1, 1], [0, 1], [1, 1]]}),
    (
        "3d circular",
        [2, 2, 3, 3, 3],
        [3, 4, 3],
        {"padding": [[1, 1], [1, 1], [1, 1]], "mode": "circular"},
    ),
    (
        "3d replicate",
        [2, 2, 2, 3, 2],
        [4, 4, 4],
        {"padding": [[1, 1], [1, 1], [1, 0]], "stride": [2, 1, 2], "mode": "replicate"},
    ),
    (
        "1d transposed",
        [3, 2, 4],
        [5],
        {"padding": [[1, 1]], "stride": [2], "output_padding": [1], "transposed": True},
    ),
    (
        "2d transposed",
        [4, 2, 3, 2],
        [4, 3],
        {
            "padding": [[1, 1], [0, 0]],
            "stride": [2, 1],
            "dilation": [1, 2],
            "groups": 2,
            "output_padding": [1, 0],
            "transposed": True,
        },
    ),
    (
        "3d transposed",
        [2, 3, 2, 3, 2],
        [2, 3, 2],
        {"padding": [[0, 0], [1, 1], [0, 0]], "stride": [2, 2, 1], "transposed": True},
    ),
]


def weight(shape):
    i = torch.arange(math.prod(shape))
    return ((i**3 + 5 * i) % 13 - 6).reshape(shape).double()


def layer(name, shape, extents, given):
    axes = len(extents)
    return {
        "name": name,
        "weight": shape,
        "input": extents,
        "stride": [1] * axes,
        "dilation": [1] * axes,
        "padding": [[0, 0]] * axes,
        "output_padding": [0] * axes,
        "groups": 1,
        "mode": "zeros",
        "transposed": False,
    } | given


def matrix(layer):
    """[m, n]"""
    axes, w = len(layer["input"]), weight(layer["weight"])
    channels = w.shape[0] if layer["transposed"] else w.shape[1] * layer["groups"]
    size = channels * math.prod(layer["input"])
    images = torch.eye(size).reshape(size, channels, *layer["input"])
    if layer["transposed"]:
        conv = [F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d][axes - 1]
        assert all(low == high for low, high in layer["padding"])
        padding = [low for low, _ in layer["padding"]]
        outputs = conv(
            images, w, None, layer["stride"], padding, layer["output_padding"], layer["groups"],
            layer["dilation"],
        )
    else:
        conv = [F.conv1d, F.conv2d, F.conv3d][axes - 1]
        sides = [side for sides in reversed(layer["padding"]) for side in sides]
        padded = F.pad(images, sides, MODES[layer["mode"]])
        outputs = conv(padded, w, None, layer["stride"], 0, layer["dilation"], layer["groups"])
    return outputs.reshape(size, -1).T


layers = []
for known in LAYERS:
    record = layer(*known)
    a = matrix(record).numpy()
    record["shape"] = a.shape
    record["values"] = numpy.linalg.svd(a, compute_uv=False).tolist()
    layers.append(record)

# How far torch.svd_lowrank falls short of the values, and how much it scatters, on a spectrum
# without gaps. Its q counts every vector of the sketch; of a square matrix it draws them as operands.
SEEDS, COUNT = 10_000, 6
LEVELS = [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99]
record = next(known for known in layers if known["name"] == "2d")
a = matrix(record)
runs = []
for vectors in (6, 12):
    for iterations in (0, 1, 2):
        found = []
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            _, s, _ = torch.svd_lowrank(a, q=vectors, niter=iterations)
            found.append(s[:COUNT].numpy())
        found = numpy.stack(found)
        runs.append(
            {
                "vectors": vectors,
                "iterations": iterations,
                "seeds": SEEDS,
                # [level][value]
                "quantiles": numpy.quantile(found, LEVELS, axis=0).tolist(),
                "mean": found.mean(0).tolist(),
                "deviation": found.std(0, ddof=1).tolist(),
            }
        )
lowrank = {"layer": "2d", "levels": LEVELS, "values": record["values"][:COUNT], "runs": runs}


def lines(items):
    return "[\n" + ",\n".join(json.dumps(item) for item in items) + "\n]\n"


(folder / "layers.json").write_text(lines(layers))
(folder / "lowrank.json").write_text(json.dumps(lowrank, indent=1) + "\n")
