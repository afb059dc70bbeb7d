// The sums of a patch's entries over an image's outputs: of each channel, over the window of the input
// that each tap reads.
//
//   window_sums:    of the pieces into which the outputs of an image are cut.
//   window_totals:  adds up an image's pieces in order, and appends the number of outputs, the sum of the 1
//                   that a patch has for the bias.
#include "covariance.cuh"
#include "patches.cuh"

SWITCHES(TOTALS)

#ifndef TOTALS

HOST struct WindowSumsArgs {
    Patches patches;
    PartRows rows;
    Acc* sums;       // [images, pieces, groups, entries of the layer's patch]
    i64 line;        // sums of a piece
    i64 entries;     // of the layer's patch
    i64 groups;
    i64 count;       // warps that have something to do
    i64 length;      // outputs of a piece
    Divisor across;  // warps for a piece
    Divisor part;    // entries of the part's patch
    Divisor pieces;
};

// A warp for an entry of a piece, its lanes taking turns along the outputs; or, channels last, for 32
// entries, most of them neighbours in the input.
KERNEL(window_sums, WindowSumsArgs, 256) {
    Index warp = (Index)blockIdx.x * 8 + (Index)threadIdx.x / 32, lane = (Index)threadIdx.x % 32;
    Index slice = divide(warp, args.across), at = warp - slice * (Index)args.across.by;
#if LAYOUT == CHANNELS_FIRST
    Index start = lane, step = 32;
#else
    Index start = 0, step = 1;
    at = at * 32 + lane;
#endif
    Index group = divide(at, args.part), row = at - group * (Index)args.part.by;
    bool there = warp < (Index)args.count && group < (Index)args.groups;
    Acc sum = 0;
    if (there) {
        Index image = divide(slice, args.pieces), piece = slice - image * (Index)args.pieces.by;
        Index outputs = (Index)args.patches.positions.by, first = image * outputs;
        Index end = smaller<Index>((piece + 1) * (Index)args.length, outputs);
        const ELEMENT* base = args.patches.source + group * args.patches.group;
        Corner entry = staying(args.patches, term_corner(args.patches, row));
        for (Index o = piece * (Index)args.length + start; o < end; o += step) {
            Offset from = patch_offset(args.patches, entry, position_corner(args.patches, first + o));
            if (from.inside) sum += to_acc(load(base + from.at));
        }
    }
#if LAYOUT == CHANNELS_FIRST
    UNROLL
    for (int half = 16; half > 0; half /= 2) sum += shuffle_xor(sum, half);
    there = there && lane == 0;
#endif
    if (there) args.sums[slice * args.line + group * args.entries + layer_row(args.rows, row)] = sum;
}

#else

HOST struct WindowTotalsArgs {
    const Acc* sums;  // [images, pieces, groups, entries]
    Acc* totals;      // [images, groups, rows]
    i64 pieces;
    i64 outputs;      // of an image
    i64 count;        // totals
    Divisor rows;     // entries, and 1 with a bias
    Divisor entries;
    Divisor groups;
};

// A thread for each total.
KERNEL(window_totals, WindowTotalsArgs, 256) {
    Index at = (Index)blockIdx.x * 256 + (Index)threadIdx.x;
    if (at >= (Index)args.count) return;
    Index line = divide(at, args.rows), row = at - line * (Index)args.rows.by;
    Index image = divide(line, args.groups), group = line - image * (Index)args.groups.by;
    Acc sum = (Acc)args.outputs;
    if (row < (Index)args.entries.by) {
        const Acc* from = args.sums + (image * args.pieces * args.groups.by + group) * args.entries.by + row;
        sum = 0;
        for (i64 piece = 0; piece < args.pieces; ++piece)
            sum += load(from + piece * args.groups.by * args.entries.by);
    }
    args.totals[at] = sum;
}

#endif
