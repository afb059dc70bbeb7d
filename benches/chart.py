#!/usr/bin/env python3
"""Draws what compare_torch.py measured, or prints it as Markdown: PyTorch's time over ours, of each operation and layer.

    python3 benches/compare_torch.py --json > rows.jsonl
    python3 benches/chart.py rows.jsonl -o benches/results/cpu.svg --title "AMD EPYC, 2 threads, f32"
    python3 benches/chart.py rows.jsonl --table

Bars are those of the form that allocates its result as PyTorch does (`fresh`), on a logarithmic scale: above the line,
where PyTorch is, we are faster. The table has that form, and the one that overwrites a result (`into`). Needs nothing
but Python.
"""

import argparse
import html
import json
import math
import pathlib
import sys

BAR, GAP, PANEL, LABELS, LEFT, TITLE = 16, 6, 120, 62, 64, 30
FASTER, SLOWER, INK, GRID = "#2b6cb0", "#c05621", "#1a202c", "#cbd5e0"


def read(paths, variant="fresh"):
    """{operation: {layer: ratio}} of the rows of this form."""
    found = {}
    for path in paths:
        for number, line in enumerate(pathlib.Path(path).read_text().splitlines(), 1):
            if not line.startswith("{"):
                continue
            try:
                row = json.loads(line)
                if row["variant"] == variant:
                    operation = row["op"] if row["dtype"] == "f32" else f"{row['dtype']} {row['op']}"
                    found.setdefault(operation, {})[row["shape"]] = float(row["ratio"])
            except (ValueError, KeyError) as error:
                sys.exit(f"chart.py: {path}, line {number} is no row of compare_torch.py: {error}")
    return found


def mean(ratios):
    """In geometric mean."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def text(x, y, words, anchor="start", size=11, more=""):
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{INK}"{more}>'
        f"{html.escape(words)}</text>"
    )


def panel(operation, ratios, top, scale):
    """The bars of an operation; `scale` maps a ratio to its distance from the top."""
    right = LEFT + len(ratios) * (BAR + GAP)
    parts = [text(4, top + 12, f"{operation}: {mean(ratios.values()):.2f}x in geometric mean", size=12)]
    for mark in (0.5, 1, 2, 5, 10, 20, 50, 100, 200):
        if scale.low <= mark <= scale.high:
            y = top + 18 + scale(mark)
            width = 1.5 if mark == 1 else 0.5
            parts.append(
                f'<line x1="{LEFT - 4}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" '
                f'stroke="{INK if mark == 1 else GRID}" stroke-width="{width}"/>'
            )
            parts.append(text(LEFT - 8, y + 4, f"{mark:g}x", "end", 10))
    one = top + 18 + scale(1)
    for number, (layer, ratio) in enumerate(ratios.items()):
        x, y = LEFT + number * (BAR + GAP), top + 18 + scale(ratio)
        color = FASTER if ratio >= 1 else SLOWER
        parts.append(
            f'<rect x="{x}" y="{min(y, one):.1f}" width="{BAR}" height="{max(abs(one - y), 0.5):.1f}" '
            f'fill="{color}"><title>{html.escape(layer)}: {ratio:.2f}x</title></rect>'
        )
        bottom = top + 18 + PANEL + 8
        turn = f' transform="rotate(-45 {x + BAR} {bottom})"'
        parts.append(text(x + BAR, bottom, layer, "end", 10, turn))
    return parts


class Scale:
    def __init__(self, ratios):
        self.low = min(0.5, min(ratios))
        self.high = max(2, max(ratios))

    def __call__(self, ratio):
        span = math.log(self.high) - math.log(self.low)
        return PANEL * (math.log(self.high) - math.log(ratio)) / span


def chart(found, title):
    scale = Scale([ratio for ratios in found.values() for ratio in ratios.values()])
    width = LEFT + max(map(len, found.values())) * (BAR + GAP) + 16
    parts, top = [text(4, 18, title, size=14)], TITLE
    for operation, ratios in found.items():
        parts += panel(operation, ratios, top, scale)
        top += 18 + PANEL + LABELS
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top}" '
        f'viewBox="0 0 {width} {top}" font-family="sans-serif">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def table(fresh, into):
    """Markdown: a row for each layer, a column for each operation, fresh / into."""
    layers = list(dict.fromkeys(layer for ratios in fresh.values() for layer in ratios))
    cell = lambda *ratios: " / ".join(f"{ratio:.2f}" for ratio in ratios if ratio is not None) or "–"
    lines = [["layer", *fresh], ["---"] * (len(fresh) + 1)]
    for layer in layers:
        both = (cell(fresh[op].get(layer), into.get(op, {}).get(layer)) for op in fresh)
        lines.append([layer, *both])
    means = (cell(*(mean(form[op].values()) for form in (fresh, into) if op in form)) for op in fresh)
    lines.append(["**geometric mean**", *means])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rows", nargs="+", help="what `compare_torch.py --json` printed")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("-o", "--output", help="an SVG file")
    what.add_argument("--table", action="store_true", help="print Markdown")
    parser.add_argument("--title", default="PyTorch's time over ours")
    arguments = parser.parse_args()
    found = read(arguments.rows)
    if not found:
        sys.exit("chart.py: there are no rows")
    if arguments.table:
        print(table(found, read(arguments.rows, "into")), end="")
        return
    pathlib.Path(arguments.output).write_text(chart(found, arguments.title))


if __name__ == "__main__":
    main()
