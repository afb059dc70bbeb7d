"""The other side of compare_torch.py's spectra, as users of PyTorch, SciPy and NumPy compute them.

A class holds one operation on layers of one shape that differ in their weights:
    weights         [layers, O, C, taps…], normal with variance 2/(C·K), as layers are initialised
    peers()         name -> function that computes; it returns a Found
    check(o, p)     ends the program unless our answer agrees with a peer's; a note on how well it does
"""

import math

import numpy
import scipy.sparse.linalg
import torch
import torch.nn.functional as F

import torch_side

SEED = 1
CONV2 = "1x64x56x56 64x64x3x3 p1"


class Found:
    """What one side has found: numbers, one layer's after the other's."""

    def __init__(self, values, applications=None, **others):
        self.values = numpy.asarray(values, numpy.float64)
        self.applications = applications
        self.__dict__.update(others)


def wrong(what):
    raise SystemExit(f"compare_torch.py: {what}")


class Spectral:
    slow = ()  # peers that take a minute or more
    shapes = {CONV2: 1}  # shape -> number of layers
    mode = "zeros"

    def __init__(self, fields, count):
        self.layer = layer = torch_side.Layer(fields, "input")
        if fields["mode"] != self.mode or set(fields["dilation"].split(",")) != {"1"}:
            wrong(f"{layer.name}: the peers of this operation pad with {self.mode}, without dilation")
        if layer.groups > 1 or layer.channels_last:
            wrong(f"{layer.name}: the peers of spectra have neither groups nor channels last")
        generator = torch.Generator().manual_seed(SEED)
        shape = [count, layer.outputs, layer.channels, *layer.kernel]
        deviation = math.sqrt(2 / (layer.channels * layer.taps))
        self.weights = torch.randn(shape, generator=generator) * deviation
        self.columns = layer.channels * math.prod(layer.input)
        self.rows = layer.outputs * layer.positions

    def operands(self):
        return {"w": self.weights}

    def forward(self, w, x):
        """A·x of a batch of vectors, the last axis theirs."""
        layer = self.layer
        return layer.conv(x.view(-1, layer.channels, *layer.input), w, None).flatten(1)

    def adjoint(self, w, y):
        layer, axes = self.layer, len(self.layer.input)
        conv = [F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d][axes - 1]
        left = [
            i + 2 * p - k - (o - 1) * s
            for i, p, k, o, s in zip(
                layer.input, layer.padding, layer.kernel, layer.output, layer.stride
            )
        ]
        y = y.view(-1, layer.outputs, *layer.output)
        return conv(y, w, None, layer.stride, layer.padding, left).flatten(1)

    def arpack(self, w, count, tolerance, basis):
        """The largest values by SciPy's svds."""
        calls = 0

        def counted(function):
            def apply(x):
                nonlocal calls
                calls += 1
                return function(w, torch.from_numpy(numpy.ascontiguousarray(x))).view(-1).numpy()

            return apply

        size = (self.rows, self.columns)
        forward, adjoint = counted(self.forward), counted(self.adjoint)
        a = scipy.sparse.linalg.LinearOperator(size, forward, adjoint, dtype=numpy.float32)
        v0 = numpy.random.default_rng(SEED).standard_normal(min(size)).astype(numpy.float32)
        _, values, _ = scipy.sparse.linalg.svds(
            a, count, ncv=basis, tol=tolerance, v0=v0, solver="arpack"
        )
        return Found(numpy.sort(values)[::-1], calls)


def agree(what, ours, theirs, tolerance=1e-5):
    """How far two sets of values are apart, in parts of the largest."""
    if ours.shape != theirs.shape:
        wrong(f"{what} gives {theirs.size} values, and this crate {ours.size}")
    apart = numpy.abs(ours - theirs).max() / theirs.max()
    if not apart <= tolerance:
        wrong(f"{what} and this crate differ by {apart:.1e} of the largest value")
    return f"values agree to {apart:.0e}"


def shares(layer, ours):
    """What takes our time: products with the operator, whose rate is known, and panels of vectors."""
    applying, whole = ours.seconds.reshape(-1, 2).sum(0)
    rate = 2 * layer.products * ours.applications / applying
    return f"{applying / whole:.0%} of our time in applications, {rate / 1e9:.0f} GFLOP/s; the rest in panels"


class Svd(Spectral):
    """The 6 largest values, to residuals of 1e-6 of the largest."""

    COUNT, TOLERANCE = 6, 1e-6

    def peers(self):
        (w,) = self.weights
        return {"scipy svds": lambda: self.arpack(w, self.COUNT, self.TOLERANCE, 40)}

    def check(self, name, ours, theirs):
        if not ours.residuals.max() <= self.TOLERANCE:
            wrong(f"this crate's residuals are up to {ours.residuals.max():.1e}")
        return f"{agree(name, ours.values, theirs.values)}; {shares(self.layer, ours)}"


class SvdLowrank(Spectral):
    """300 values by two power iterations. What the sketch leaves out depends on random vectors, so
    that the sides agree in what they find in all, and are held against converged values."""

    VECTORS, ITERATIONS = 300, 2
    slow = ("assembled",)
    reference = "svd_reference"

    def peers(self):
        return {"assembled": self.assembled, "same by conv": self.matrix_free}

    def assembled(self):
        torch.manual_seed(SEED)
        _, values, _ = torch.svd_lowrank(self.csr(), q=self.VECTORS, niter=self.ITERATIONS)
        return Found(values.numpy())

    def csr(self):
        layer, axes = self.layer, len(self.layer.input)
        sources = torch.arange(1, self.columns + 1, dtype=torch.int32)
        sources = torch_side.windows(sources.view(layer.channels, *layer.input), layer) - 1
        order = [*range(1, axes + 1), 0, *range(axes + 1, 2 * axes + 1)]
        columns = sources.permute(order).reshape(layer.positions, -1)
        kept = columns >= 0
        rows = F.pad(kept.sum(1).repeat(layer.outputs).cumsum(0), (1, 0)).int()
        values = self.weights[0].flatten(1).index_select(1, kept.nonzero()[:, 1]).flatten()
        columns = columns[kept].repeat(layer.outputs)
        size = (self.rows, self.columns)
        return torch.sparse_csr_tensor(rows, columns, values, size, check_invariants=False)

    def matrix_free(self):
        """The steps of torch.svd_lowrank with convolutions of 300 images for its products."""
        (w,) = self.weights
        torch.manual_seed(SEED)
        forward = lambda v: self.forward(w, v.T.contiguous()).T
        adjoint = lambda u: self.adjoint(w, u.T.contiguous()).T
        q = torch.linalg.qr(forward(torch.randn(self.columns, self.VECTORS))).Q
        for _ in range(self.ITERATIONS):
            q = torch.linalg.qr(adjoint(q)).Q
            q = torch.linalg.qr(forward(q)).Q
        _, values, _ = torch.linalg.svd(adjoint(q).T, full_matrices=False)
        return Found(values.numpy(), 2 * (self.ITERATIONS + 1) * self.VECTORS)

    def check(self, name, ours, theirs):
        energies = [float((found.values**2).sum()) for found in (ours, theirs)]
        apart = energies[0] / energies[1] - 1
        if not abs(apart) <= 0.01:
            wrong(f"{name} finds {energies[1]:.6g} in squares, and this crate {energies[0]:.6g}")
        return f"sums of squares agree to {abs(apart):.0e}; {shares(self.layer, ours)}"

    def accuracy(self, found, reference):
        short = 1 - found.values / reference.values
        return f"up to {short.max():.1%} too small"


class Circular(Spectral):
    """All values with circular padding: the singular values of the transform at each frequency."""

    shapes = {f"{CONV2} m:circular": 1}
    mode = "circular"

    def __init__(self, fields, count):
        super().__init__(fields, count)
        layer = self.layer
        if layer.output != layer.input:
            wrong(f"{layer.name}: the peers of circular have output as large as input")

    def peers(self):
        (w,) = self.weights
        peers = {
            "numpy rfft2, c64": lambda: self.half(w.numpy()),
            "torch rfft2, c64": lambda: self.half_torch(w),
            "numpy fft2, c128": lambda: self.full(w.numpy()),
        }
        return peers

    def axes(self):
        return range(-len(self.layer.input), 0)

    def doubled(self, values):
        """All values from those of half the frequencies: all but the first, and for even extents
        the last, stand for two."""
        last = self.layer.input[-1]
        by_last = values.reshape(-1, last // 2 + 1, values.shape[-1])
        return numpy.concatenate([by_last.ravel(), by_last[:, 1 : (last + 1) // 2].ravel()])

    def sorted(self, values):
        return Found(numpy.sort(values.ravel())[::-1])

    def half(self, w):
        symbol = numpy.fft.rfftn(w, self.layer.input, self.axes())
        symbol = numpy.moveaxis(symbol, (0, 1), (-2, -1))
        return self.sorted(self.doubled(numpy.linalg.svd(symbol, compute_uv=False)))

    def half_torch(self, w):
        symbol = torch.fft.rfftn(w, self.layer.input, list(self.axes()))
        symbol = symbol.movedim((0, 1), (-2, -1))
        return self.sorted(self.doubled(torch.linalg.svdvals(symbol).numpy()))

    def full(self, w):
        """As published (Sedghi, Gupta & Long 2019)."""
        kernel = numpy.moveaxis(w, (0, 1), (-1, -2))
        axes = range(len(self.layer.input))
        transforms = numpy.fft.fftn(kernel.astype(numpy.float64), self.layer.input, axes)
        return self.sorted(numpy.linalg.svd(transforms, compute_uv=False))

    def check(self, name, ours, theirs):
        return agree(name, ours.values, theirs.values)


class Norm(Spectral):
    """The norms of layers, bracketed; the peer's is a bound from below, by an unknown gap."""

    # The 3x3 layers of a ResNet-50.
    shapes = {
        CONV2: 3,
        "1x128x56x56 128x128x3x3 p1 s2": 1,
        "1x128x28x28 128x128x3x3 p1": 3,
        "1x256x28x28 256x256x3x3 p1 s2": 1,
        "1x256x14x14 256x256x3x3 p1": 5,
        "1x512x14x14 512x512x3x3 p1 s2": 1,
        "1x512x7x7 512x512x3x3 p1": 2,
    }
    STEPS = 100

    def peers(self):
        return {f"{self.STEPS} power steps": self.power}

    def power(self):
        generator = torch.Generator().manual_seed(SEED)
        norms = []
        for w in self.weights:
            x = torch.randn(1, self.columns, generator=generator)
            for _ in range(self.STEPS):
                x = self.adjoint(w, self.forward(w, x))
                x /= x.norm()
            norms.append(float(self.forward(w, x).norm()))
        return Found(norms, 2 * self.STEPS * len(self.weights) + len(self.weights))

    def check(self, name, ours, theirs):
        """Also against what SciPy finds of the first layer: a bound from below, near the norm."""
        lower, slack, near = ours.values, 1e-5, 1e-3
        truth = float(self.arpack(self.weights[0], 1, 1e-2, 20).values[0])  # nearer than asked
        gap = (ours.probabilistic / lower - 1).max()
        above = (ours.upper / lower).max()
        if not lower[0] <= truth * (1 + near):
            wrong(f"the lower bound {lower[0]} is above the norm, {truth}")
        for upper in (ours.probabilistic, ours.upper):
            if not upper[0] >= truth * (1 - slack):
                wrong(f"the upper bound {upper[0]} is below the norm, {truth}")
            if not (theirs.values <= upper * (1 + slack)).all():
                wrong(f"{name} gives {theirs.values}, above the upper bounds {upper}")
        if not gap <= 0.01 + slack:
            wrong(f"the probabilistic bound is {gap:.2%} above the lower")
        short = (1 - theirs.values / ours.values).max()
        return (
            f"bracket {gap:.2%} (certain {above:.2f}x) around the norm; "
            f"peer up to {short:.2%} below our lower bound"
        )


OPERATIONS = {"svd": Svd, "svd_lowrank": SvdLowrank, "circular": Circular, "norm": Norm}
