"""Records the matrices of a few layers, from PyTorch's own outputs, as scipy.sparse files.

Column j of the matrix is the layer's output for the j-th unit image (without bias); weights are
positive integers, so that no entry vanishes or cancels. Needs torch and scipy.
"""

import pathlib

import numpy as np
import scipy.sparse
import torch

folder = pathlib.Path(__file__).parent
torch.manual_seed(0)

LAYERS = {
    "grouped": (
        torch.nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2),
        (2, 5, 4),
    ),
    "reflect": (torch.nn.Conv1d(2, 3, 4, padding=3, padding_mode="reflect", bias=False), (2, 5)),
    "circular": (
        torch.nn.Conv2d(1, 2, 3, padding=(2, 1), padding_mode="circular"),
        (1, 3, 4),
    ),
    "replicate": (
        torch.nn.Conv3d(1, 2, (2, 3, 2), stride=(1, 2, 1), padding=1, padding_mode="replicate"),
        (1, 2, 3, 2),
    ),
    "transposed": (
        torch.nn.ConvTranspose2d(
            4, 2, (3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 2), dilation=(1, 2), groups=2
        ),
        (4, 3, 2),
    ),
}

arrays = {}
with torch.no_grad():
    for name, (layer, shape) in LAYERS.items():
        for parameter in layer.parameters():
            parameter.copy_(torch.randint(1, 9, parameter.shape))
        size = int(np.prod(shape))
        offset = layer(torch.zeros(1, *shape))
        outputs = layer(torch.eye(size).reshape(size, *shape)) - offset
        columns = [outputs.reshape(size, -1).T]
        arrays[f"{name}.weight"] = layer.weight.numpy()
        if layer.bias is not None:
            columns.append(offset.reshape(-1, 1))
            arrays[f"{name}.bias"] = layer.bias.numpy()
        matrix = scipy.sparse.csr_matrix(torch.cat(columns, 1).numpy())
        assert matrix.has_canonical_format and matrix.indices.dtype == np.int32
        scipy.sparse.save_npz(folder / f"{name}.npz", matrix)
np.savez_compressed(folder / "layers.npz", **arrays)
