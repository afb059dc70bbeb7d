#!/usr/bin/env python3
"""Times convmat against PyTorch on this machine's CPU, side by side.

    python3 benches/compare_torch.py [--ops unfold,fold,conv,backward,conv-winograd,backward-winograd,
                                           matrix,covariance,ghost-norms,lambda]
                                     [--shapes stem,conv2]
                                     [--shape "8x64x56x56 64x64x3x3 p1"] [--dtype f32] [--threads 2]
                                     [--repeats 5] [--json]
    python3 benches/compare_torch.py --ops svd,svd_lowrank,circular,norm [--slow]

Builds the Rust partner (benches/compare.rs), hands both sides the same data, checks that they
agree, and only then times them: in small alternating rounds, each side left to fall idle before the
other starts. Prints the median (and the shortest) time of a call, PyTorch's time over ours, and our
rate as a fraction of what the machine can do. Needs `cargo`, PyTorch and NumPy; for spectra SciPy.
"""

import argparse
import ctypes
import importlib
import json
import math
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

try:
    import numpy
    import torch
except ImportError as error:
    sys.exit(f"{error.name} is missing; pip install torch numpy")

import torch_side

ROOT = pathlib.Path(__file__).resolve().parent.parent
SLICE = 0.08  # seconds one side runs before it is the other's turn, if a call is shorter
LONG = 0.5  # seconds of a call that needs no other to warm up
ENOUGH = 15  # seconds from which on one call of a peer is enough
SPECTRA = ("svd", "svd_lowrank", "circular", "norm")  # operations of torch_spectra.py
# Told apart in the means.
GROUPED = (
    "conv", "backward", "conv-winograd", "backward-winograd", "covariance", "ghost-norms", "lambda",
)
# On the layers that the catalogue lacks, too, which may be dilated, and of every element type.
EVERYWHERE = ("unfold", "fold", "conv", "backward", "conv-winograd", "backward-winograd")


def build(bench):
    """Compiles a bench and returns the program."""
    command = [os.environ.get("CARGO", "cargo"), "bench", "--bench", bench, "--no-run"]
    command += ["--message-format", "json-render-diagnostics"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{pathlib.Path(sys.argv[0]).name}: the Rust side does not build")
    messages = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    return next(
        m["executable"]
        for m in messages
        if m.get("reason") == "compiler-artifact" and m["target"]["name"] == bench
    )


class Partner:
    """The Rust side: a process that answers one command at a time and sleeps in between."""

    def __init__(self, program, threads, folder, layers):
        self.folder = pathlib.Path(folder)
        flags = [f"--shape={layer}" for layer in layers]
        self.process = subprocess.Popen(
            [program, "serve", str(threads), folder, *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *words):
        """The lines of the answer."""
        try:
            self.process.stdin.write(" ".join(map(str, words)) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, as its output will say
        lines = []
        for line in self.process.stdout:
            line = line.rstrip("\n")
            if line == "ok":
                return lines
            if line.startswith("error "):
                raise RuntimeError(line)
            lines.append(line)
        if self.process.wait() == 2:  # and has said what is wrong with its arguments
            sys.exit(2)
        raise RuntimeError(f"error the Rust side ended during {' '.join(map(str, words))!r}")

    def seconds(self, variant, count):
        return [float(line) for line in self.ask("time", variant, count)]

    def prepare(self, op, layer, operands, dtype="f32"):
        for name, tensor in operands.items():
            assert tensor.is_contiguous() and tensor.dtype == torch_side.DTYPES[dtype]
            # NumPy has no bfloat16.
            tensor.flatten().view(torch.uint8).numpy().tofile(self.folder / f"{name}.in")
        self.ask("prepare", op, layer.name, dtype)
        for name in operands:
            (self.folder / f"{name}.in").unlink()

    def explanation(self):
        """What the plan of the operation says, if there is one."""
        return dict(line.split("=", 1) for line in self.ask("explain"))

    def results(self, variant, names):
        """Runs once; the files the results are in, by name."""
        self.ask("write", variant)
        return {name: self.folder / f"{name}.out" for name in names}

    def numbers(self, names):
        """Runs once; the numbers of each name."""
        return {name: numpy.fromfile(path) for name, path in self.results("fresh", names).items()}

    def peak_bytes(self):
        """The most memory it has had resident, of which the program itself is a few MB."""
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return None

    def cpu_seconds(self):
        words = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def busy_seconds():
    """CPU seconds this machine has worked since it started; None where there is no /proc/stat."""
    try:
        words = pathlib.Path("/proc/stat").read_text().split()
    except OSError:
        return None
    user, nice, system = map(int, words[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


class Others:
    """Watches whether other processes worked while we measured."""

    def __init__(self, partner):
        self.partner = partner
        self.start = self.now()

    def now(self):
        busy = busy_seconds()
        if busy is None:
            return None
        return time.monotonic(), busy - time.process_time() - self.partner.cpu_seconds()

    def report(self):
        if self.start is None:
            return
        (start, before), (end, after) = self.start, self.now()
        share = (after - before) / (end - start)
        if share > 0.05:
            print(
                f"note: other processes kept {share:.2f} CPUs busy meanwhile; these figures are "
                "not to be trusted",
                file=sys.stderr,
            )


def settle():
    """Waits until PyTorch's worker threads, which spin for milliseconds after a call, are asleep."""
    deadline, quiet = time.monotonic() + 1, 0
    while quiet < 2 and time.monotonic() < deadline:
        before = time.process_time()
        time.sleep(0.005)
        quiet = quiet + 1 if time.process_time() - before < 0.0005 else 0


def torch_seconds(call, count):
    """Seconds of each of `count` calls after one that does not count, unless it is a long one;
    freeing the result counts."""
    times, warm = [], False
    while len(times) < count:
        start = time.perf_counter()
        result = call()
        del result
        seconds = time.perf_counter() - start
        if warm or seconds > LONG:
            times.append(seconds)
        warm = True
    return times


def check(op, layer, variant, paths, expected):
    """Ends the program unless the Rust side computed what PyTorch did; returns the bytes compared."""
    total = 0
    for name, (value, bound) in expected.items():
        path = paths[name]
        found = torch.from_numpy(numpy.fromfile(path, numpy.uint8)).view(value.dtype)
        total += path.stat().st_size
        path.unlink()
        where = f"{op} {layer.name} ({variant}): {name}"
        if found.numel() != value.numel():
            sys.exit(f"compare_torch.py: {where} has {found.numel()} elements, not {value.numel()}")
        value = value.flatten()
        if bound is None:
            wrong = found != value
        else:  # written so that NaN is wrong too
            allowed = torch_side.allowed(value, bound.flatten())
            wrong = ~((torch_side.wide(found) - torch_side.wide(value)).abs() <= allowed)
        count = int(wrong.sum())
        if count:
            at = int(wrong.nonzero()[0])
            sys.exit(
                f"compare_torch.py: {where} is wrong in {count} of {value.numel()} elements: "
                f"at {at} it is {found[at]} and should be {value[at]}"
            )
    return total


def measure(sides, repeats):
    """Seconds of every call of every side, by name: rounds in which the sides take turns."""
    names = list(sides)
    times = {name: [] for name in names}
    counts = {}
    for name in names:
        settle()
        once = sides[name](1)[0]
        counts[name] = max(1, min(50, round(SLICE / once)))
    for turn in range(repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            settle()
            times[name] += sides[name](counts[name])
    return times


def rows_of(partner, op, layer, arguments, roofline):
    """Checks and times one operation on one layer; yields its rows."""
    work = torch_side.OPERATIONS[op](layer)
    partner.prepare(op, layer, work.operands(), arguments.dtype)
    expected = work.expected()
    total = 0
    for variant in ("fresh", "into"):
        total = check(op, layer, variant, partner.results(variant, expected), expected)
    del expected
    if work.work is None:
        work.work = total / 1e9
    sides = {
        "fresh": lambda count: partner.seconds("fresh", count),
        "into": lambda count: partner.seconds("into", count),
        "torch": lambda count: torch_seconds(work.call, count),
    }
    compared = {op: ("torch", 1, work)}
    ways = work.calls() if hasattr(work, "calls") else {}
    if ways:
        del sides["torch"]
        for name, call in ways.items():
            sides[name] = lambda count, call=call: torch_seconds(call, count)
    if op == "matrix":
        forum = torch_side.Forum(layer)
        forum.check()
        sides["forum"] = lambda count: torch_seconds(forum.call, count)
        compared = {op: ("forum", forum.scale, forum), "matrix-indexing": ("torch", 1, work)}
    if hasattr(work, "call_out"):
        sides["out"] = lambda count: torch_seconds(work.call_out, count)
    times = measure(sides, arguments.repeats)
    if ways:
        faster = min(ways, key=lambda name: statistics.median(times[name]))
        compared = {op: (faster, 1, work)}
        work.note = faster
    plan = partner.explanation()
    for variant in ("fresh", "into"):
        for label, (side, scale, other) in compared.items():
            ours, theirs = (statistics.median(times[s]) for s in (variant, side))
            theirs *= scale
            notes = [other.note] if other.note else []
            if variant == "into" and "out" in times:
                out = statistics.median(times["out"])
                notes.append(f"PyTorch's internal out= form {out * 1e3:.2f} ms")
            more = {}
            if plan and variant == "into":
                call = ways[side] if ways else work.call
                more, told = details(work, plan, call, ours, roofline[op])
                notes = told + notes
            yield more | {
                "op": label,
                "shape": layer.name,
                "dtype": arguments.dtype,
                "variant": variant,
                "ours_s": ours,
                "torch_s": theirs,
                "ratio": theirs / ours,
                "rate": work.work / ours,
                "unit": work.unit,
                "roofline": work.work / ours / roofline[op],
                "ours_min_s": min(times[variant]),
                "torch_min_s": min(times[side]) * scale,
                "torch_rate": work.work / theirs,
                "groups": layer.groups,
                "note": "; ".join(notes),
            }


def peak_of(call):
    """Bytes by which this process grows at most during a call; None where the system does not tell."""
    settle()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed is not there already
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak is what it is now
        before = resident("VmRSS")
        call()
        return max(0, resident("VmHWM") - before)
    except (AttributeError, OSError):
        return None


def resident(key):
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {key}")


def megabytes(count):
    return "?" if count is None else f"{count / 1e6:.1f}"


def details(work, plan, call, ours, best):
    """What is worth saying of a plan: what it does, at what rate, and in how much memory; for a row and
    for its note."""
    found, notes = {}, [plan["algorithm"]]
    counted = [part for part in plan["reason"].split(", ") if part.endswith(" products")]
    done = 2 * sum(float(part.split()[0]) for part in counted) / 1e9
    if done:
        rate = done / ours
        found |= {"done_gflop": done, "done_rate": rate, "done_of_best": rate / best}
        notes[0] += f" does {done:.2f} GFLOP at {rate:.0f} GFLOP/s, {rate / best:.0%} of best"
    if hasattr(work, "modest"):
        factor = work.modest - 8 * work.layer.input_elements
        memory = int(plan["workspace"]) + factor
        peak = peak_of(call)
        found |= {"bytes": memory, "modest_bytes": work.modest, "torch_peak_bytes": peak}
        notes.append(
            f"MB: ours {megabytes(memory)}, two inputs and factor {megabytes(work.modest)}, "
            f"PyTorch's peak {megabytes(peak)}"
        )
    return found, notes


def milliseconds(median, shortest):
    return f"{median * 1e3:9.2f} ({shortest * 1e3:.2f})".ljust(20)


def print_row(row, width):
    print(
        f"{row['op']:<16}{row['shape']:<{width}} {row['variant']:<7}"
        f"{milliseconds(row['ours_s'], row['ours_min_s'])}"
        f"{milliseconds(row['torch_s'], row['torch_min_s'])}"
        f"{row['ratio']:7.2f}x {row['rate']:8.1f} {row['torch_rate']:8.1f} {row['unit']:<8}"
        f"{row['roofline']:6.0%}  {row['note']}",
        flush=True,
    )


def print_means(rows, out):
    """Geometric means of the ratios, as the project's targets are stated."""
    print("\ngeometric means of the ratio", file=out)
    kinds = {"": lambda r: True}
    grouped = {" dense": lambda r: r["groups"] == 1, " grouped": lambda r: r["groups"] > 1}
    for op in dict.fromkeys(row["op"] for row in rows):
        for kind, belongs in (grouped if op in GROUPED else kinds).items():
            for variant in ("fresh", "into"):
                ratios = [
                    r["ratio"]
                    for r in rows
                    if r["op"] == op and r["variant"] == variant and belongs(r)
                ]
                if ratios:
                    mean = math.exp(statistics.fmean(map(math.log, ratios)))
                    print(
                        f"  {op + kind:<20}{variant:<7}{mean:7.2f}x over {len(ratios)} shapes, "
                        f"lowest {min(ratios):.2f}x",
                        file=out,
                    )


class Spectra:
    """Compares spectra, each on a partner of its own, whose memory is measured."""

    NAMES = ("values", "residuals", "probabilistic", "upper", "applications", "seconds")

    def __init__(self, program, folder, arguments):
        try:
            self.side = importlib.import_module("torch_spectra")
        except ImportError as error:
            sys.exit(f"{error.name} is missing; pip install scipy")
        self.program, self.folder, self.arguments = program, folder, arguments

    def partner(self, layers):
        return Partner(self.program, self.arguments.threads, self.folder, layers)

    def ours(self, partner, op, work):
        """Computes once: what was found, and the seconds it took."""
        partner.prepare(op, work.layer, work.operands())
        start = time.perf_counter()
        found = partner.numbers(self.NAMES)
        seconds = time.perf_counter() - start
        applications = int(found.pop("applications").sum())
        return self.side.Found(applications=applications, **found), seconds

    def rows(self, op):
        """Yields the rows of an operation, and for several shapes those of all together."""
        kind = self.side.OPERATIONS[op]
        shapes = {shape: 1 for shape in self.arguments.shape} or kind.shapes
        totals = {}
        for shape, count in shapes.items():
            for row in self.rows_of(op, kind, shape, count):
                yield row
                totals.setdefault(row["peer"], []).append(row)
        for rows in totals.values() if len(shapes) > 1 else ():
            add = lambda key: sum(row[key] for row in rows)
            total = {key: add(key) for key in rows[0] if key.endswith(("_s", "_applications"))}
            total |= {"op": op, "shape": "all", "layers": add("layers"), "peer": rows[0]["peer"]}
            total["ratio"] = total["peer_s"] / total["ours_s"]
            yield total | {"peak_bytes": max(row["peak_bytes"] for row in rows), "note": ""}

    def rows_of(self, op, kind, shape, count):
        partner = self.partner([shape])
        try:
            (line,) = partner.ask("catalogue")
            work = kind(dict(word.split("=") for word in line.split()), count)
            yield from self.compared(partner, op, work)
        finally:
            partner.process.kill()

    def reference(self, work):
        """What an approximation is held against: converged values, and a note on them."""
        partner = self.partner([work.layer.name])
        try:
            found, seconds = self.ours(partner, work.reference, work)
        finally:
            partner.process.kill()
        return found, f"converged values take us {found.applications} applications, {seconds:.0f} s"

    def compared(self, partner, op, work):
        known = self.arguments.slow and hasattr(work, "reference")
        reference, about = self.reference(work) if known else (None, None)
        others = Others(partner)
        ours, _ = self.ours(partner, op, work)
        sides, notes, once, applications = {}, {}, {}, {}
        for name, call in work.peers().items():
            if name in work.slow and not self.arguments.slow:
                print(f"note: {op}: {name} takes minutes; --slow", file=sys.stderr)
                continue
            settle()
            start = time.perf_counter()
            theirs = call()
            seconds = time.perf_counter() - start
            notes[name] = [work.check(name, ours, theirs)]
            applications[name] = theirs.applications
            if reference:
                mine, other = (work.accuracy(found, reference) for found in (ours, theirs))
                notes[name] += [f"ours {mine}, theirs {other}", about]
            if seconds > ENOUGH:
                once[name] = [seconds]
                notes[name].append("one call")
            else:
                sides[name] = lambda count, call=call: torch_seconds(call, count)
        if not notes:
            return
        times = once | measure(
            {"ours": lambda count: partner.seconds("fresh", count)} | sides, self.arguments.repeats
        )
        for name in notes:
            median, theirs = (statistics.median(times[side]) for side in ("ours", name))
            yield {
                "op": op,
                "shape": work.layer.name,
                "layers": len(work.weights),
                "peer": name,
                "ours_s": median,
                "peer_s": theirs,
                "ratio": theirs / median,
                "ours_min_s": min(times["ours"]),
                "peer_min_s": min(times[name]),
                "ours_applications": ours.applications,
                "peer_applications": applications[name] or 0,
                "peak_bytes": partner.peak_bytes() or 0,
                "note": "; ".join(notes[name]),
            }
        others.report()

    def run(self):
        out = sys.stderr if self.arguments.json else sys.stdout
        versions = f"PyTorch {torch.__version__}, NumPy {numpy.__version__}"
        print(
            f"\n{self.arguments.threads} threads, f32, {versions}; applications are of A or of its "
            f"adjoint to one vector; peak: memory of our process\n\n{'operation':<12}{'shape':<37}"
            f"{'layers':<7}{'peer':<18}{'ours s (min)':>15} {'peer s (min)':>15}  {'ratio':>7} "
            f"{'applications':>14} {'peak':>8}",
            file=out,
        )
        for op in self.arguments.ops:
            for row in self.rows(op) if op in SPECTRA else ():
                print(json.dumps(row) if self.arguments.json else self.line(row), flush=True)

    @staticmethod
    def line(row):
        seconds = lambda side: f"{row[side + '_s']:.3f} ({row[side + '_min_s']:.3f})"
        applications = f"{row['ours_applications'] or '-'}/{row['peer_applications'] or '-'}"
        return (
            f"{row['op']:<12}{row['shape']:<37}{row['layers']:<7}{row['peer']:<18}"
            f"{seconds('ours'):>15} {seconds('peer'):>15}  {row['ratio']:6.2f}x "
            f"{applications:>14} {row['peak_bytes'] / 1e6:5.0f} MB  {row['note']}"
        )


def choice(given, known, what):
    unknown = [word for word in given if word not in known]
    if unknown:
        sys.exit(f"compare_torch.py: no {what} {unknown[0]!r}; there are {', '.join(known)}")
    return given


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    words = lambda text: [word for word in text.split(",") if word]
    operations = list(torch_side.OPERATIONS)
    parser.add_argument(
        "--ops",
        type=words,
        default=operations,
        help=f"{','.join(operations)}, which is the default, and {','.join(SPECTRA)}",
    )
    parser.add_argument("--shapes", type=words, help="names from the catalogue; default all")
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        help='a layer instead of the catalogue: a name, or "8x64x56x56 64x64x3x3 p1 s1 g1" (see '
        "benches/README.md) without dilation and with zeros as padding; may be given more than once",
    )
    parser.add_argument(
        "--dtype",
        choices=list(torch_side.DTYPES),
        default="f32",
        help=f"of all operands, on both sides; other than f32 only for {','.join(EVERYWHERE)}",
    )
    parser.add_argument("--threads", type=int, default=2, help="on both sides")
    parser.add_argument("--repeats", type=int, default=5, help="rounds a row")
    parser.add_argument("--slow", action="store_true", help="also peers that take minutes")
    parser.add_argument("--json", action="store_true", help="one object a row")
    parser.add_argument("--partner", help="the bench's executable, instead of building it")
    arguments = parser.parse_args()
    choice(arguments.ops, [*operations, *SPECTRA], "operation")
    if arguments.dtype != "f32":
        choice(arguments.ops, EVERYWHERE, f"{arguments.dtype} of operation")
    if arguments.threads < 1 or arguments.repeats < 1:
        sys.exit("compare_torch.py: --threads and --repeats must be at least 1")
    program = arguments.partner or build("compare")
    torch.set_num_threads(arguments.threads)
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = tempfile.mkdtemp(prefix="convmat-compare-", dir=shared)
    try:
        with torch.inference_mode():
            if any(op in operations for op in arguments.ops):
                partner = Partner(program, arguments.threads, folder, arguments.shape)
                try:
                    run(partner, arguments)
                finally:
                    partner.process.kill()
            if any(op in SPECTRA for op in arguments.ops):
                Spectra(program, folder, arguments).run()
    except RuntimeError as error:
        sys.exit(f"compare_torch.py: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def layers_of(partner, *names):
    """The partner's layers, or these."""
    lines = partner.ask("catalogue", *names)
    return [dict(word.split("=", 1) for word in line.split()) for line in lines]


def run(partner, arguments):
    catalogue = layers_of(partner)
    for fields in catalogue:
        dilated = set(fields["dilation"].split(",")) != {"1"}
        cannot = dilated and fields["other"] == "0" and not set(arguments.ops) <= set(EVERYWHERE)
        if fields["mode"] != "zeros" or cannot:
            print(
                f"compare_torch.py: --shape {fields['name']!r}: PyTorch's side has dilation only for "
                f"{', '.join(EVERYWHERE)}, and no other padding than zeros",
                file=sys.stderr,
            )
            sys.exit(2)
    names = [fields["name"] for fields in catalogue]
    shapes = choice(arguments.shapes or names, names, "shape")
    out = sys.stderr if arguments.json else sys.stdout
    others = Others(partner)
    (line,) = partner.ask("roofline")
    best = {key: float(value) for key, value in (word.split("=") for word in line.split())}
    print(
        f"{arguments.threads} threads, {arguments.dtype}, PyTorch {torch.__version__}; this machine: copy "
        f"{best['copy']:.1f} GB/s (read + written), store {best['store']:.1f} GB/s, "
        f"sgemm {best['sgemm']:.0f} GFLOP/s",
        file=out,
    )
    roofline = {
        "unfold": best["copy"],
        "fold": best["copy"],
        "conv": best["sgemm"],
        "backward": best["sgemm"],
        "conv-winograd": best["sgemm"],
        "backward-winograd": best["sgemm"],
        "matrix": best["store"],
        "covariance": best["sgemm"],
        "ghost-norms": best["sgemm"],
        "lambda": best["sgemm"],
    }
    operations = {op: torch_side.OPERATIONS[op] for op in arguments.ops if op not in SPECTRA}
    # Some have layers of their own, unless others are asked for.
    named = [fields for fields in catalogue if fields["name"] in shapes]
    asked = arguments.shape or arguments.shapes
    usual = [fields for fields in named if asked or fields["other"] == "0"]
    layers = {
        op: layers_of(partner, *kind.layers)
        if hasattr(kind, "layers") and not asked
        else named if op in EVERYWHERE else usual
        for op, kind in operations.items()
    }
    width = max((len(fields["name"]) for of in layers.values() for fields in of), default=8)
    if not arguments.json:
        print(
            f"\n{'operation':<16}{'shape':<{width + 1}}{'variant':<7}{'ours ms (min)':>18}  "
            f"{'torch ms (min)':>18}  {'ratio':>6} {'ours':>8} {'torch':>8} unit    of best"
        )
    rows = []
    for op in operations:
        for fields in layers[op]:
            size, dtype = "matrix_input" if op == "matrix" else "input", arguments.dtype
            layer = torch_side.Layer(fields, size, torch_side.DTYPES[dtype])
            for row in rows_of(partner, op, layer, arguments, roofline):
                rows.append(row)
                if arguments.json:
                    print(json.dumps(row), flush=True)
                else:
                    print_row(row, width)
    print_means(rows, out)
    others.report()


if __name__ == "__main__":
    main()
