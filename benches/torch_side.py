"""PyTorch's side of compare_torch.py: the same operations, as PyTorch's users write them.

Each class holds one operation on one layer:
    operands()      arrays for the Rust side, in its layout, by name
    call()          what is timed
    expected()      name -> (what the Rust side must have computed, allowed error or None for exact)
Operands are multiples of 1/8 in [-1, 1]: every sum of their products is exact in f32, so that a
wrong answer cannot hide behind rounding. Half types are timed as they are, and held against sums in
f32 that are rounded once: PyTorch itself may round more often.
"""

import itertools
import math

import torch
import torch.nn.functional as F

EPSILON = torch.finfo(torch.float32).eps
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}
SEEDS = {"x": 1, "w": 2, "patches": 3, "b": 4, "dy": 5}


def eighths(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-8, 9, shape, generator=generator).float() / 8


def is_half(dtype):
    return dtype in (torch.bfloat16, torch.float16)


def wide(x):
    """What sums over x are computed in."""
    return x.float() if is_half(x.dtype) else x


def allowed(value, bound):
    """How far a result may be from PyTorch's: as sums in any order, and where halves are rounded, as their
    neighbours."""
    if is_half(value.dtype):
        return 4 * EPSILON * bound + torch.finfo(value.dtype).eps * value.float().abs()
    return 4 * torch.finfo(value.dtype).eps * bound


def windows(x, layer):
    """[..., spatial] -> [..., output, kernel]: the padded input seen through the kernel."""
    x = F.pad(x, [p for p in reversed(layer.padding) for _ in ("low", "high")])
    for kernel, stride, dilation in zip(layer.kernel, layer.stride, layer.dilation):
        x = x.unfold(x.dim() - len(layer.kernel), dilation * (kernel - 1) + 1, stride)
        x = x[..., ::dilation]
    return x


class Layer:
    """One line of the catalogue, with its spatial quantities as lists of D numbers."""

    def __init__(self, fields, size, dtype=torch.float32):
        self.name = fields["name"]
        self.dtype = dtype
        for key in ("batch", "channels", "outputs", "groups"):
            setattr(self, key, int(fields[key]))
        self.input, self.kernel, self.stride, self.padding, self.dilation = (
            [int(n) for n in fields[key].split(",")]
            for key in (size, "kernel", "stride", "padding", "dilation")
        )
        self.channels_last = fields["channels_last"] == "1"
        self.output = [
            (i + 2 * p - d * (k - 1) - 1) // s + 1
            for i, k, s, p, d in zip(
                self.input, self.kernel, self.stride, self.padding, self.dilation
            )
        ]
        self.positions, self.taps = math.prod(self.output), math.prod(self.kernel)
        self.products = (
            self.batch * self.positions * self.outputs * self.channels // self.groups * self.taps
        )
        self.patch_elements = self.batch * self.channels * self.taps * self.positions
        self.input_elements = self.batch * self.channels * math.prod(self.input)

    def values(self, name, shape):
        """The operand of this name; those of channels-last layers in the channels_last format."""
        x = eighths(shape, SEEDS[name]).to(self.dtype)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x

    def x(self):
        return self.values("x", [self.batch, self.channels, *self.input])

    def dy(self):
        return self.values("dy", [self.batch, self.outputs, *self.output])

    def weight(self):
        return self.values("w", [self.outputs, self.channels // self.groups, *self.kernel])

    def bias(self):
        return eighths([self.outputs], SEEDS["b"]).to(self.dtype)

    def patches(self):
        shape = [self.batch, self.channels * self.taps, self.positions]
        return eighths(shape, SEEDS["patches"]).to(self.dtype)

    def ours(self, x):
        """An activation or patches-by-channel in the Rust side's layout."""
        return x.movedim(1, -1).contiguous() if self.channels_last else x.contiguous()

    def our_weight(self, w):
        return w.movedim((0, 1), (-1, -2)).contiguous() if self.channels_last else w.contiguous()

    def our_patches(self, patches):
        """[N, C*K, L] as the Rust side orders it: channels-last is [N, L, (tap, channel)]."""
        if not self.channels_last:
            return patches.contiguous()
        by_tap = patches.reshape(self.batch, self.channels, self.taps, self.positions)
        return by_tap.permute(0, 3, 2, 1).contiguous()

    def conv(self, x, w, b):
        function = [F.conv1d, F.conv2d, F.conv3d][len(self.input) - 1]
        return function(x, w, b, self.stride, self.padding, self.dilation, self.groups)

    def plane(self):
        """kernel, dilation, padding, stride of the same layer over images of height 1 when it is 1-D."""
        if len(self.input) == 1:
            return [1, *self.kernel], [1, *self.dilation], [0, *self.padding], [1, *self.stride]
        return self.kernel, self.dilation, self.padding, self.stride


def image(x, layer):
    """What F.unfold takes: a 1-D input as an image of height 1."""
    return x[:, :, None] if len(layer.input) == 1 else x


def unfold(x, layer):
    """[N, C*K, L]"""
    if len(layer.input) == 3:  # F.unfold has no 3-D form
        x = windows(x, layer).permute(0, 1, 5, 6, 7, 2, 3, 4)
        return x.reshape(layer.batch, layer.channels * layer.taps, layer.positions)
    return F.unfold(image(x, layer), *layer.plane())


class Unfold:
    unit = "GB/s"

    def __init__(self, layer):
        self.layer = layer
        self.x = layer.x()
        self.work = layer.dtype.itemsize * (layer.input_elements + layer.patch_elements) / 1e9
        three = "F.pad, Tensor.unfold x3, reshape" if len(layer.input) == 3 else ""
        self.note = "F.unfold of a channels_last tensor" if layer.channels_last else three
        if len(layer.input) < 3:
            self.call_out = self.into_buffer()

    def operands(self):
        return {"x": self.layer.ours(self.x)}

    def call(self):
        return unfold(self.x, self.layer)

    def into_buffer(self):
        """The operator beneath F.unfold, which can write into a buffer."""
        x, plane = image(self.x, self.layer), self.layer.plane()
        out = torch.ops.aten.im2col(x, *plane)
        im2col = torch.ops.aten.im2col.out
        return lambda: im2col(x, *plane, out=out)

    def expected(self):
        return {"patches": (self.layer.our_patches(self.call()), None)}


class Fold:
    unit = "GB/s"

    def __init__(self, layer):
        self.layer = layer
        self.patches = layer.patches()
        self.work = layer.dtype.itemsize * (layer.input_elements + layer.patch_elements) / 1e9
        self.note = "one strided += per tap" if len(layer.input) == 3 else ""
        if len(layer.input) < 3:
            self.call_out = self.into_buffer()

    def operands(self):
        return {"patches": self.layer.our_patches(self.patches)}

    def fold(self, patches):
        layer = self.layer
        if len(layer.input) == 3:  # F.fold has no 3-D form
            patches = patches.view(layer.batch, layer.channels, *layer.kernel, *layer.output)
            padded = [i + 2 * p for i, p in zip(layer.input, layer.padding)]
            x = patches.new_zeros(layer.batch, layer.channels, *padded)
            for tap in itertools.product(*map(range, layer.kernel)):
                window = [
                    slice(t * d, t * d + (o - 1) * s + 1, s)
                    for t, d, o, s in zip(tap, layer.dilation, layer.output, layer.stride)
                ]
                x[:, :, *window] += patches[:, :, *tap]
            inside = [slice(p, p + i) for p, i in zip(layer.padding, layer.input)]
            return x[:, :, *inside].contiguous()
        return F.fold(patches, self.size(), *layer.plane())

    def size(self):
        return [1, *self.layer.input] if len(self.layer.input) == 1 else self.layer.input

    def into_buffer(self):
        """The operator beneath F.fold, which can write into a buffer."""
        patches, size, plane = self.patches, self.size(), self.layer.plane()
        out = torch.ops.aten.col2im(patches, size, *plane)
        col2im = torch.ops.aten.col2im.out
        return lambda: col2im(patches, size, *plane, out=out)

    def call(self):
        return self.fold(self.patches)

    def expected(self):
        shape = [self.layer.batch, self.layer.channels, *self.layer.input]
        patches = wide(self.patches)
        bound = self.fold(patches.abs()).view(shape)
        x = self.fold(patches).view(shape).to(self.layer.dtype)
        return {"x": (self.layer.ours(x), self.layer.ours(bound))}


class Conv:
    unit = "GFLOP/s"

    def __init__(self, layer):
        self.layer = layer
        self.x = layer.x()
        self.w = layer.weight()
        self.b = layer.bias()
        self.work = 2 * layer.products / 1e9
        self.note = "channels_last memory format" if layer.channels_last else ""

    def operands(self):
        layer = self.layer
        return {"x": layer.ours(self.x), "w": layer.our_weight(self.w), "b": self.b}

    def call(self):
        return self.layer.conv(self.x, self.w, self.b)

    def expected(self):
        x, w, b = map(wide, (self.x, self.w, self.b))
        y = self.layer.conv(x, w, b).to(self.layer.dtype)
        bound = self.layer.conv(x.abs(), w.abs(), b.abs())
        return {"y": (self.layer.ours(y), self.layer.ours(bound))}


class Backward:
    """dx, dw and db together."""

    unit = "GFLOP/s"

    def __init__(self, layer):
        self.layer = layer
        self.x = layer.x()
        self.w = layer.weight()
        self.dy = layer.dy()
        self.work = 4 * layer.products / 1e9
        self.note = "channels_last memory format" if layer.channels_last else ""

    def operands(self):
        layer = self.layer
        return {
            "x": layer.ours(self.x),
            "w": layer.our_weight(self.w),
            "dy": layer.ours(self.dy),
        }

    def gradients(self, dy, x, w):
        layer = self.layer
        zeros = [0] * len(layer.input)
        return torch.ops.aten.convolution_backward(
            dy, x, w, [layer.outputs], layer.stride, layer.padding, layer.dilation,
            False, zeros, layer.groups, [True, True, True],
        )

    def call(self):
        return self.gradients(self.dy, self.x, self.w)

    def expected(self):
        operands = [wide(operand) for operand in (self.dy, self.x, self.w)]
        values = [value.to(self.layer.dtype) for value in self.gradients(*operands)]
        bounds = self.gradients(*(operand.abs() for operand in operands))
        arrange = (self.layer.ours, self.layer.our_weight, lambda b: b)
        return {
            name: (f(value), f(bound))
            for name, f, value, bound in zip(("dx", "dw", "db"), arrange, values, bounds)
        }


class Transformed:
    """Mixed in where the Rust side may use Winograd's algorithm: what is lost may be anywhere in a tile, in parts of
    the largest sum of magnitudes."""

    def expected(self):
        return {
            name: (value, 8 * bound.max().expand_as(bound))
            for name, (value, bound) in super().expected().items()
        }


class ConvWinograd(Transformed, Conv):
    """By whatever is the fastest, Winograd's algorithm included."""


class BackwardWinograd(Transformed, Backward):
    """The same."""


class Matrix:
    """CSR of the layer with its bias as last column, by whole-tensor indexing."""

    unit = "GB/s"

    def __init__(self, layer):
        self.layer = layer
        self.w, self.b = layer.weight(), layer.bias()
        self.note = "whole-tensor indexing"
        self.work = None  # bytes of the matrix, known when the Rust side has written it

    def operands(self):
        return {"w": self.layer.our_weight(self.w), "b": self.b}

    def call(self):
        """(row pointers, columns, values): unfold of the positions says what each row reads."""
        layer, axes = self.layer, len(self.layer.input)
        size = layer.channels * math.prod(layer.input)
        sources = torch.arange(1, size + 1, dtype=torch.int32).view(layer.channels, *layer.input)
        sources = windows(sources, layer) - 1  # padding was 0 and is now -1
        columns = sources.permute(*range(1, axes + 1), 0, *range(axes + 1, 2 * axes + 1))
        columns = columns.reshape(layer.positions, layer.channels * layer.taps)
        groups = layer.groups
        per_group = columns.shape[1] // groups
        bias_column = torch.full((layer.positions, 1), size, dtype=torch.int32)
        weights = torch.cat([self.w.flatten(1), self.b[:, None]], 1)
        counts, column_parts, value_parts = [], [], []
        for g in range(groups):
            own = torch.cat([columns[:, g * per_group : (g + 1) * per_group], bias_column], 1)
            kept = own >= 0
            outputs = weights[g * layer.outputs // groups : (g + 1) * layer.outputs // groups]
            counts.append(kept.sum(1).repeat(len(outputs)))
            column_parts.append(own[kept].repeat(len(outputs)))
            value_parts.append(outputs.index_select(1, kept.nonzero()[:, 1]).flatten())
        crow = F.pad(torch.cat(counts).cumsum(0), (1, 0)).to(torch.int32)
        return crow, torch.cat(column_parts), torch.cat(value_parts)

    def expected(self):
        crow, columns, values = self.call()
        return {"crow": (crow, None), "columns": (columns, None), "values": (values, None)}


class Forum(Matrix):
    """The function people find in the forum and paste: one slice assignment per row in a Python
    loop, over the already padded input. (Its row pointers, a float32 `linspace` times a constant,
    are wrong beyond 2**24 entries; time is all that is asked of it here.)"""

    ROWS = 50_000  # timed on so many rows at most, and scaled by the number of entries

    def __init__(self, layer):
        super().__init__(layer)
        self.outputs = max(1, min(layer.outputs, self.ROWS // layer.positions))
        self.scale = layer.outputs / self.outputs
        self.note = "Python loop over rows"
        if self.scale > 1:
            self.note += f", timed on {self.outputs} of {layer.outputs} output channels and scaled"

    def call(self):
        layer, groups = self.layer, self.layer.groups
        padded = [i + 2 * p for i, p in zip(layer.input, layer.padding)]
        steps = [math.prod(padded[a + 1 :]) for a in range(len(padded))]
        size, per_group = math.prod(padded), layer.channels // groups
        base = torch.tensor(
            [
                c * size + sum(t * step for t, step in zip(tap, steps))
                for c in range(per_group)
                for tap in itertools.product(*map(range, layer.kernel))
            ],
            dtype=torch.int32,
        )
        rows = self.outputs * layer.positions
        columns = torch.zeros(rows, len(base) + 1, dtype=torch.int32)
        values = torch.zeros(rows, len(base) + 1)
        row = 0
        for output in range(self.outputs):
            group = output // (layer.outputs // groups)
            entries = torch.hstack((self.w[output].flatten(), self.b[output]))
            for at in itertools.product(*map(range, layer.output)):
                shift = sum(o * s * step for o, s, step in zip(at, layer.stride, steps))
                columns[row, :-1] = base + (shift + group * per_group * size)
                values[row] = entries
                row += 1
        columns[:, -1] = layer.channels * size
        crow = (torch.linspace(0, rows, rows + 1) * (len(base) + 1)).int()
        return crow, columns.flatten(), values.flatten()

    def check(self):
        """What it builds, times the padded input, is the convolution."""
        layer = self.layer
        x = eighths([1, layer.channels, *layer.input], 1)
        padded = F.pad(x, [p for p in reversed(layer.padding) for _ in ("low", "high")]).flatten()
        _, columns, values = self.call()
        terms = values * torch.cat([padded, torch.ones(1)])[columns]
        found = terms.view(self.outputs * layer.positions, -1).sum(1)
        y = layer.conv(x, self.w, self.b)[0, : self.outputs].flatten()
        if not torch.equal(found, y):
            raise SystemExit(f"matrix {layer.name}: the forum function itself is wrong")


class Covariance:
    """The covariance of patches, K-FAC's factor A without a bias, as a product of patches: of those of all
    images side by side, or image by image."""

    unit = "GFLOP/s"

    def __init__(self, layer):
        self.layer = layer
        self.x = layer.x()
        self.rows = layer.channels // layer.groups * layer.taps
        # Of the definition, the lower triangle alone.
        self.work = layer.groups * layer.batch * layer.positions * self.rows * (self.rows + 1) / 1e9
        # So much of memory is what a factor's update is meant to take.
        self.modest = 4 * (2 * layer.input_elements + layer.groups * self.rows**2)
        self.note = ""

    def operands(self):
        return {"x": self.layer.ours(self.x)}

    def patches(self, x):
        """[N, g, d, L]"""
        layer = self.layer
        return unfold(x, layer).view(layer.batch, layer.groups, self.rows, layer.positions)

    def side_by_side(self):
        patches = self.patches(self.x).permute(1, 2, 0, 3).reshape(self.layer.groups, self.rows, -1)
        return patches @ patches.mT

    def image_by_image(self, x=None):
        patches = self.patches(self.x if x is None else x)
        return (patches @ patches.mT).sum(0)

    def calls(self):
        """Ways to the same result, of which the faster is what we are held against."""
        unfolded = "Tensor.unfold" if len(self.layer.input) == 3 else "F.unfold"
        return {
            f"{unfolded}, [d, N*L] @ its transpose": self.side_by_side,
            f"{unfolded}, matmul of each image, sum": self.image_by_image,
        }

    def arranged(self, factor):
        """Rows and columns in the Rust side's order."""
        if not self.layer.channels_last:
            return factor
        order = torch.arange(self.rows).view(-1, self.layer.taps).T.flatten()
        return factor[:, order][:, :, order]

    def expected(self):
        value, other = self.side_by_side(), self.image_by_image()
        bound = self.image_by_image(self.x.abs())
        if not ((value - other).abs() <= 4 * EPSILON * bound).all():
            raise SystemExit(f"covariance {self.layer.name}: PyTorch's own ways disagree")
        return {"covariance": (self.arranged(value), self.arranged(bound))}


class PerExample:
    """What both operations on gradients of single examples share: torch.func's per-sample gradients."""

    unit = "GFLOP/s"
    # Early and late layers of a ResNet, and those of the catalogue that have groups.
    layers = [
        "8x64x56x56_64x64x3x3_p1",
        "8x128x28x28_128x128x3x3_p1",
        "8x256x14x14_256x256x3x3_p1",
        "8x512x7x7_512x512x3x3_p1",
        "resnext",
        "convnext",
    ]

    def __init__(self, layer):
        self.layer = layer
        # Autograd keeps no tensors that were made in inference mode.
        with torch.inference_mode(False):
            self.x, self.dy, self.w = layer.x().clone(), layer.dy().clone(), layer.weight().clone()
        self.note = "torch.func.vmap of torch.func.grad"

    def operands(self):
        return {"x": self.layer.ours(self.x), "dy": self.layer.ours(self.dy)}

    def gradients(self, x, dy):
        """[N, O, C/g, kernel]"""

        def product(w, x, dy):
            return (self.layer.conv(x[None], w, None)[0] * dy).sum()

        with torch.inference_mode(False):
            return torch.func.vmap(torch.func.grad(product), in_dims=(None, 0, 0))(self.w, x, dy)

    def matrices(self, gradients):
        """[N, g, O/g, d], the columns in the Rust side's order."""
        layer = self.layer
        if layer.channels_last:
            gradients = gradients.movedim(2, -1)
        shape = layer.batch, layer.groups, layer.outputs // layer.groups, -1
        return gradients.reshape(shape)


class GhostNorms(PerExample):
    """The norm of every example's gradient."""

    def __init__(self, layer):
        super().__init__(layer)
        self.work = 2 * layer.products / 1e9

    def call(self):
        return self.gradients(self.x, self.dy).flatten(1).norm(dim=1)

    def expected(self):
        # Sums over pairs of positions are precise to the squares of absolute values' sums. Of millions of
        # elements, PyTorch's norm in f32 is off by more than that.
        norms, bound = (
            self.gradients(x, dy).flatten(1).double().norm(dim=1).float()
            for x, dy in ((self.x, self.dy), (self.x.abs(), self.dy.abs()))
        )
        return {"norms": (norms, 4 * bound**2 / norms)}


class Lambda(PerExample):
    """EKFAC's second moments: gradients rotated, squared and summed."""

    def __init__(self, layer):
        super().__init__(layer)
        rows = layer.outputs // layer.groups
        columns = layer.channels // layer.groups * layer.taps
        generator = torch.Generator().manual_seed(6)
        make = lambda n: torch.linalg.qr(torch.randn(layer.groups, n, n, generator=generator))[0]
        self.q_a, self.q_g = make(columns).contiguous(), make(rows).contiguous()
        rotations = layer.batch * layer.groups * rows * columns * (rows + columns)
        self.work = 2 * (layer.products + rotations) / 1e9

    def operands(self):
        return {**super().operands(), "q_a": self.q_a, "q_g": self.q_g}

    def moment(self, x, dy, q_a, q_g):
        matrices = self.matrices(self.gradients(x, dy))
        return (q_g.mT @ matrices @ q_a).square().sum(0)

    def call(self):
        return self.moment(self.x, self.dy, self.q_a, self.q_g)

    def expected(self):
        bound = self.moment(self.x.abs(), self.dy.abs(), self.q_a.abs(), self.q_g.abs())
        return {"moment": (self.call(), bound)}


OPERATIONS = {
    "unfold": Unfold,
    "fold": Fold,
    "conv": Conv,
    "backward": Backward,
    "conv-winograd": ConvWinograd,
    "backward-winograd": BackwardWinograd,
    "matrix": Matrix,
    "covariance": Covariance,
    "ghost-norms": GhostNorms,
    "lambda": Lambda,
}
