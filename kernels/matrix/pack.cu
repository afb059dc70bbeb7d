// pack: a convolution's weight in the order in which its matrix reads it.
#include "element.cuh"
#include "geometry.cuh"

HOST struct PackArgs {
    const ELEMENT* weight;
    ELEMENT* packed; // [group, row channel, column channel, tap]
    i64 count;
    i64 group, row, column, tap; // strides in `weight`
    Divisor row_channels, columns, taps;
};

KERNEL(pack, PackArgs, 256) {
    Index at = (Index)blockIdx.x * 256 + (Index)threadIdx.x;
    if (at >= (Index)args.count) return;
    Index rest = divide(at, args.taps), tap = at - rest * (Index)args.taps.by;
    Index all_rows = divide(rest, args.columns), column = rest - all_rows * (Index)args.columns.by;
    Index group = divide(all_rows, args.row_channels), row = all_rows - group * (Index)args.row_channels.by;
    args.packed[at] = load(args.weight + group * (Index)args.group + row * (Index)args.row +
                           column * (Index)args.column + tap * (Index)args.tap);
}
