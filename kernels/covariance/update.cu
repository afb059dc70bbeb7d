// The last step of a covariance, for what update_tiles.cu does not do.
//
//   update_few:    the sums of few entries (few.cu).
//   update_apart:  pairs of entries of which no output reads both: their products are 0.
//   update_bias:   the last row, of the appended 1: the sums of entries, and their number.
#include "covariance.cuh"

SWITCHES(FEW, APART, BIAS)

#ifdef FEW

HOST struct UpdateFewArgs {
    Covariance covariance;
    PartRows rows;
    const Acc* sums;  // [pieces, groups, sums of a group]
    i64 pieces;
    i64 entries;    // of a patch; there may be sums of more
    i64 count;      // sums of all groups
    Divisor group;  // sums of a group: the lower triangle, packed
};

// A thread for each sum.
KERNEL(update_few, UpdateFewArgs, 256) {
    Index at = (Index)blockIdx.x * 256 + (Index)threadIdx.x;
    if (at >= (Index)args.count) return;
    Index group = divide(at, args.group), column = at - group * (Index)args.group.by, row = 0;
    // There are few rows.
    while (column > row) column -= ++row;
    if (row >= (Index)args.entries) return;
    Acc sum = 0;
    for (i64 piece = 0; piece < args.pieces; ++piece) sum += load(args.sums + piece * args.count + at);
    update(args.covariance, group, layer_row(args.rows, row), layer_row(args.rows, column), sum);
}

#endif
#ifdef APART

HOST struct UpdateApartArgs {
    Covariance covariance;
    const i32* parts;  // of each tap of the layer, the part it is in; -1: none
    i64 count;         // pairs of entries in all groups
    Divisor entries;   // of a patch
    Divisor inner;     // channels first: taps; last: channels of a group
};

DEVICE i32 part_of(const UpdateApartArgs& args, Index row) {
    Index outer = divide(row, args.inner), inner = row - outer * (Index)args.inner.by;
    return load(args.parts + (LAYOUT == CHANNELS_FIRST ? inner : outer));
}

// A thread for each pair of entries, of which half have nothing to do.
KERNEL(update_apart, UpdateApartArgs, 256) {
    Index at = (Index)blockIdx.x * 256 + (Index)threadIdx.x;
    if (at >= (Index)args.count) return;
    Index line = divide(at, args.entries), column = at - line * (Index)args.entries.by;
    Index group = divide(line, args.entries), row = line - group * (Index)args.entries.by;
    if (column > row) return;
    i32 part = part_of(args, row);
    if (part < 0 || part != part_of(args, column)) update(args.covariance, group, row, column, 0);
}

#endif
#ifdef BIAS

HOST struct UpdateBiasArgs {
    Covariance covariance;
    const Acc* sums;  // [pieces, groups, entries]: of entries
    i64 pieces;
    i64 groups;
    i64 outputs;  // of all examples
};

// A thread for each element of the last rows.
KERNEL(update_bias, UpdateBiasArgs, 256) {
    Index at = (Index)blockIdx.x * 256 + (Index)threadIdx.x, rows = (Index)args.covariance.rows;
    Index group = at / rows, column = at - group * rows, last = rows - 1;
    if (group >= (Index)args.groups) return;
    Acc sum = column == last ? (Acc)args.outputs : 0;
    if (column < last)
        for (i64 piece = 0; piece < args.pieces; ++piece)
            sum += load(args.sums + (piece * args.groups + group) * last + column);
    update(args.covariance, group, last, column, sum);
}

#endif
