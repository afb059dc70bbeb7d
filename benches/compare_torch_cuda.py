#!/usr/bin/env python3
"""Times convmat against PyTorch on this machine's GPU, side by side.

    python3 benches/compare_torch_cuda.py [--ops unfold,forward] [--shapes stem,conv2]
                                          [--dtype f32,f16,bf16] [--layouts channels-first]
                                          [--algorithms auto] [--partner PROGRAM] [--json]

Layer by layer: the Rust side (the bench `cuda`, built here unless `--partner` names it) checks and
times its operations and leaves what it has checked them against; PyTorch has to compute the same of
the same operands, and is then timed in the same way: events around each call, the L2 cache
overwritten before it, median of 20 to 200 calls. PyTorch may choose (cudnn.benchmark) but not TF32. Needs PyTorch with CUDA and NumPy, and without `--partner` cargo.
"""

import argparse
import json
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile

from compare_torch import build
import numpy
import torch
import torch_side

UNIT = 2  # images that the Rust side's operands repeat
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "f64": torch.float64}


class Layer(torch_side.Layer):
    """A row of the Rust side's, with the operands it was checked on."""

    def __init__(self, row, folder, batch):
        lists = ("input", "kernel", "stride", "padding")
        fields = {key: ",".join(map(str, row[key])) for key in lists}
        fields |= {key: row[key] for key in ("channels", "outputs", "groups")}
        last = row["layout"] == "channels-last"
        fields |= {"name": row["shape"], "batch": batch, "channels_last": str(int(last))}
        super().__init__(fields, "input")
        self.folder, self.dtype = folder, DTYPES[row["dtype"]]
        op = "matrix" if row["op"] in ("spmv", "spmm") else row["op"]
        self.prefix = f"{row['shape']}-{row['layout']}-{op}"

    def load(self, name):
        return torch.from_numpy(numpy.load(self.folder / f"{self.prefix}-{name}.npy")).cuda()

    def values(self, name, shape):
        """As PyTorch counts the axes; those of channels-last layers in such a format."""
        x = self.load(name).to(self.dtype)
        if name != "w":
            x = x.repeat(self.batch // UNIT, *[1] * (x.dim() - 1))
        elif self.channels_last:
            x = x.movedim((-1, -2), (0, -1)).contiguous()
        return x.movedim(-1, 1) if self.channels_last else x

    def bias(self):
        return self.load("b").to(self.dtype)

    def patches(self):
        x = self.load("patches").to(self.dtype).repeat(self.batch // UNIT, 1, 1)
        if not self.channels_last:
            return x
        by_tap = x.view(self.batch, self.positions, self.taps, self.channels)
        return by_tap.permute(0, 3, 2, 1).reshape(self.batch, -1, self.positions)


class Gradient(torch_side.Backward):
    """One of dx, dw and db."""

    def __init__(self, layer):
        self.layer, self.dy = layer, layer.dy()
        # Those that the gradient does not depend on count by shape and format.
        inputs = layer.channels // layer.groups
        self.x = self.empty(layer.batch, layer.channels, layer.input)
        self.w = self.empty(layer.outputs, inputs, layer.kernel)

    def empty(self, first, channels, size):
        if self.layer.channels_last:
            return torch.empty(first, *size, channels, dtype=self.layer.dtype).movedim(-1, 1)
        return torch.empty(first, channels, *size, dtype=self.layer.dtype)

    def gradients(self, dy, x, w):
        layer, zeros = self.layer, [0] * len(self.layer.input)
        mask = [name == self.name for name in ("dx", "dw", "db")]
        return torch.ops.aten.convolution_backward(
            dy, x, w, [layer.outputs], layer.stride, layer.padding, [1] * len(zeros),
            False, zeros, layer.groups, mask,
        )[mask.index(True)]

    def expected(self):
        bound = self.gradients(self.dy.abs(), self.x.abs(), self.w.abs())
        return {self.name: (self.arrange(self.call()), self.arrange(bound))}

    def arrange(self, value):
        return self.layer.ours(value)


class InputGradient(Gradient):
    name = "dx"

    def __init__(self, layer):
        super().__init__(layer)
        self.w = layer.weight()


class WeightGradient(Gradient):
    name = "dw"

    def __init__(self, layer):
        super().__init__(layer)
        self.x = layer.x()

    def arrange(self, value):
        return self.layer.our_weight(value)


class BiasGradient(Gradient):
    """As autograd computes it beside a cuDNN convolution: a sum."""

    name = "db"

    def gradients(self, dy, x, w):
        return dy.sum([0, *range(2, dy.dim())])

    def arrange(self, value):
        return value


class Product(torch_side.Matrix):
    """PyTorch's CSR matrix times a vector."""

    vectors = ()

    def __init__(self, layer):
        super().__init__(layer)
        crow, columns, values = torch_side.Matrix.call(self)
        width = layer.channels * math.prod(layer.input) + 1
        shape = (layer.outputs * layer.positions, width)
        self.matrix = torch.sparse_csr_tensor(crow, columns, values, shape)
        self.x = torch.randint(-8, 9, (width, *self.vectors)).to(layer.dtype) / 8

    def call(self):
        return self.matrix @ self.x


class Products(Product):
    """Times as many vectors as the Rust side takes."""

    vectors = (16,)


OPERATIONS = {
    "unfold": torch_side.Unfold,
    "fold": torch_side.Fold,
    "forward": torch_side.Conv,
    "backward_input": InputGradient,
    "backward_weight": WeightGradient,
    "backward_bias": BiasGradient,
    "matrix": torch_side.Matrix,
    "spmv": Product,
    "spmm": Products,
}


def fail(row, reason):
    sys.exit(f"compare_torch_cuda.py: {row['op']} {row['shape']} {row['layout']}: {reason}")


def check_matrix(row, layer):
    """Ends the program unless both sides' matrices are the same."""
    path = layer.folder / f"{layer.prefix}.npz"
    with numpy.load(path) as ours:
        for name, theirs in zip(("indptr", "indices", "data"), torch_side.Matrix(layer).call()):
            found = torch.from_numpy(ours[name]).cuda()
            if not torch.equal(found, theirs.to(found.dtype)):
                fail(row, f"PyTorch has another {name}")


def check(row, layer, work):
    """Ends the program unless PyTorch computes what the Rust side was checked against."""
    ((value, bound),) = work.expected().values()
    ours = layer.load("result").flatten()
    value = value.flatten().to(ours.dtype)
    if bound is None:
        wrong = value != ours
    else:
        # cuDNN's transforms round in f32. Results of half types are rounded to them, sums of
        # strided windows after each term. Written so that NaN is wrong too.
        bound = bound.flatten().to(ours.dtype)
        epsilon = torch.finfo(layer.dtype).eps
        rounding = 16 * bound if row["op"] == "fold" else 2 * ours.abs()
        wrong = ~((value - ours).abs() <= 1e-5 * bound + epsilon * rounding)
    if wrong.any():
        at = int(wrong.nonzero()[0])
        fail(row, f"element {at} is {float(ours[at])}, and {float(value[at])} in PyTorch")


class Clock:
    """Times calls as the Rust side does."""

    def __init__(self):
        size = max(4 * torch.cuda.get_device_properties(0).L2_cache_size, 256 << 20)
        self.flush = torch.empty(size, dtype=torch.uint8, device="cuda")

    def rounds(self, call, count):
        event = lambda: torch.cuda.Event(enable_timing=True)
        events = [(event(), event()) for _ in range(count)]
        for start, end in events:
            self.flush.zero_()
            start.record()
            result = call()
            end.record()
            del result
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in events]

    def milliseconds(self, call):
        """Median and shortest."""
        for _ in range(3):
            call()
        (once,) = self.rounds(call, 1)
        times = self.rounds(call, max(20, min(200, int(100 / once))))
        return statistics.median(times), min(times)


def run_partner(program, arguments, shape, folder):
    """The rows of the Rust side for one layer, the machine first."""
    command = [program, "--bench", "--json", "--shapes", shape, "--save", folder]
    for flag in ("ops", "dtype", "layouts", "algorithms"):
        command += [f"--{flag}", getattr(arguments, flag)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        sys.exit(f"compare_torch_cuda.py: the Rust side has nothing to say: {done.stdout.strip()}")
    return lines


def torch_times(row, folder, clock, checked):
    """Median and shortest milliseconds of PyTorch's way, once it is known to be right, or None."""
    make = OPERATIONS[row["op"]]
    layer = Layer(row, folder, row["batch"])
    if not issubclass(make, torch_side.Matrix):
        unit = Layer(row, folder, UNIT)
        check(row, unit, make(unit))
    elif layer.prefix not in checked:
        check_matrix(row, layer)
        checked.add(layer.prefix)
    try:
        return clock.milliseconds(make(layer).call)
    except RuntimeError as error:  # such as a type that its sparse products do not take
        print(f"PyTorch, {row['op']} {row['shape']}: {error}", file=sys.stderr)
        return None


def compare(rows, folder, clock):
    """Adds PyTorch's times to the rows of one layer; yields them."""
    times, checked = {}, set()
    for row in rows:
        key = (row["op"], row["layout"], row["dtype"])
        if "error" not in row:
            if key not in times:
                times[key] = torch_times(row, folder, clock, checked)
                torch.cuda.empty_cache()
            if times[key]:
                row["torch_ms"], row["torch_min_ms"] = times[key]
                row["ratio"] = row["torch_ms"] / row["ms"]
                if row["roofline"] is not None:
                    row["torch_roofline"] = row["roofline"] / row["ratio"]
        yield row


def print_row(row):
    start = f"{row['op']:<16}{row['algorithm'] or '':<9}{row['shape']:<10}{row['layout'][9:]:<6}"
    start += f"{row['dtype']:<6}"
    if "error" in row:
        return print(f"{start}FAILED: {row['error']}", flush=True)
    fraction = lambda key: "-" if row.get(key) is None else f"{row[key]:.0%}"
    ours = f"{row['ms']:9.4f} ({row['min_ms']:.4f})"
    theirs, ratio = "        -", "-"
    if "ratio" in row:
        theirs = f"{row['torch_ms']:9.4f} ({row['torch_min_ms']:.4f})"
        ratio = f"{row['ratio']:.2f}x"
    print(
        f"{start}{ours:<21}{theirs:<21}{ratio:>8} {row['rate']:9.1f} {row['unit']:<8}"
        f"{fraction('roofline'):>6}{fraction('torch_roofline'):>7}",
        flush=True,
    )


def print_head(machine, out):
    rates = ", ".join(f"{dtype} {rate:.1f}" for dtype, rate in machine["gemm_tflop_s"].items())
    print(
        f"{machine['device']}\nPyTorch {torch.__version__}, cuDNN "
        f"{torch.backends.cudnn.version()}; copy {machine['copy_gb_s']:.0f} GB/s (read + written), "
        f"store {machine['store_gb_s']:.0f} GB/s, cuBLAS TFLOP/s: {rates or 'not found'}\n\n"
        f"{'operation':<16}{'by':<9}{'shape':<10}{'C':<6}{'type':<6}{'ours ms':>9}{' (min)':<12}"
        f"{'torch ms':>9}{' (min)':<12}{'ratio':>8} {'ours':>9} {'':<8}of roofline: ours, torch",
        file=out,
    )


def print_means(rows, out):
    """Geometric means of PyTorch's time over ours, where we chose the algorithm."""
    print("\ngeometric means of the ratio", file=out)
    ratios = {}
    for row in rows:
        if "ratio" in row and row["algorithm"] in (None, "auto"):
            ratios.setdefault((row["op"], row["layout"], row["dtype"]), []).append(row["ratio"])
    for (op, layout, dtype), found in sorted(ratios.items()):
        mean = math.exp(statistics.fmean(map(math.log, found)))
        print(
            f"  {op:<16}{layout:<16}{dtype:<5}{mean:7.2f}x over {len(found)} shapes, "
            f"lowest {min(found):.2f}x",
            file=out,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    catalogue = "stem,conv2,conv4,conv5,down,vgg,1x1,resnext,convnext,5x5,c3d,wav2vec,notebook"
    parser.add_argument("--ops", default=",".join(OPERATIONS))
    parser.add_argument("--shapes", default=catalogue)
    parser.add_argument("--dtype", default="f32,f16,bf16")
    parser.add_argument("--layouts", default="channels-first,channels-last")
    parser.add_argument("--algorithms", default="auto")
    parser.add_argument("--partner", help="the bench `cuda`, built elsewhere")
    parser.add_argument("--json", action="store_true", help="one object a row")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("compare_torch_cuda.py: PyTorch finds no GPU")
    torch.set_default_device("cuda")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    out = sys.stderr if arguments.json else sys.stdout
    program, clock, rows = arguments.partner or build("cuda"), Clock(), []
    for shape in arguments.shapes.split(","):
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            machine, *ours = run_partner(program, arguments, shape, folder)
            if not rows:
                print_head(machine, out)
            for row in compare(ours, pathlib.Path(folder), clock):
                rows.append(row)
                print(json.dumps(row), flush=True) if arguments.json else print_row(row)
    print_means(rows, out)
    sys.exit(any("error" in row for row in rows))


if __name__ == "__main__":
    main()
