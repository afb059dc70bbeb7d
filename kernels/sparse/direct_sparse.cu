// Convolution with sparse weights, entry by entry. The input is copied with its padding, channels first, so that
// what an entry reads lies at one distance from where an output's patch begins, whatever the padding mode.
// Blocks have one row each (an output channel, or an input channel of the adjoint), so that all of their threads
// take the same entries.
#include "element.cuh"
#include "convolution.cuh"

SWITCHES(EACH)

HOST struct SparsePadArgs {
    const ELEMENT* x;
    ELEMENT* padded; // [image, channel, padded position]
    i64 count;       // elements of the copy
    Strides strides;
    Axes axes;
    Divisor positions, plane, line; // padded ones
    Divisor channels;
};

KERNEL(sparse_pad, SparsePadArgs, 256) {
    Index index = (Index)blockIdx.x * 256 + (Index)threadIdx.x;
    if (index >= (Index)args.count) return;
    Index plane = divide(index, args.positions), image = divide(plane, args.channels);
    Position q = position(index - plane * (Index)args.positions.by, args.plane, args.line);
    Index d = padded_source<0>(args.axes, q.d), h = padded_source<1>(args.axes, q.h);
    Index w = padded_source<2>(args.axes, q.w);
    ELEMENT value = zero<ELEMENT>();
    if (d >= 0 && h >= 0 && w >= 0) {
        Index i = input_at(args.axes, d, h, w);
        Index channel = plane - image * (Index)args.channels.by;
        value = load(args.x + offset(args.strides, image, channel, i));
    }
    args.padded[index] = value;
}

HOST struct SparseForwardArgs {
    const ELEMENT* padded;
    const ELEMENT* values;
    const ELEMENT* bias; // none: null
    ELEMENT* y;
    const i32* starts;  // of each row's entries
    const i32* entries; // of each the channel of its group, and the place in that channel's padded plane
    i64 count;          // positions of all images
    i64 channels, plane; // of the padded copy: channels of an image, elements of a channel
    i64 per_group;       // of those channels
    i64 step_d, step_h, step_w; // in a padded plane, from one output to the next
    Divisor tiles;              // of positions
    Divisor group;              // rows of a group
    Divisor positions, out_plane, out_line;
    Strides strides;
};

KERNEL(sparse_forward, SparseForwardArgs, 256) {
    Index row = divide((Index)blockIdx.x, args.tiles);
    Index tile = (Index)blockIdx.x - row * (Index)args.tiles.by;
    Index first = divide(row, args.group) * (Index)args.per_group, plane = (Index)args.plane;
    Index from[EACH], to[EACH];
    UNROLL
    for (int v = 0; v < EACH; ++v) {
        Index n = (tile * EACH + v) * 256 + (Index)threadIdx.x;
        // Behind the last position threads read what the last one reads, and write nothing.
        Index there = smaller<Index>(n, (Index)args.count - 1);
        Index image = divide(there, args.positions);
        Index o = there - image * (Index)args.positions.by;
        Position at = position(o, args.out_plane, args.out_line);
        from[v] = (image * (Index)args.channels + first) * plane + at.d * (Index)args.step_d
            + at.h * (Index)args.step_h + at.w * (Index)args.step_w;
        to[v] = n < (Index)args.count ? offset(args.strides, image, row, o) : -1;
    }
    i32 entry = args.starts[row], end = args.starts[row + 1];
    Acc sums[EACH] = {};
    if (entry < end) {
        // The first product is added to nothing: a single one keeps the sign of its zero.
        Index place = (Index)args.entries[2 * (i64)entry] * plane + (Index)args.entries[2 * (i64)entry + 1];
        Acc value = to_acc(load(args.values + entry));
        if (entry + 1 == end && value == Acc(1) && !args.bias) {
            UNROLL
            for (int v = 0; v < EACH; ++v)
                if (to[v] >= 0) args.y[to[v]] = load(args.padded + (from[v] + place));
            return;
        }
        UNROLL
        for (int v = 0; v < EACH; ++v) sums[v] = value * to_acc(load(args.padded + (from[v] + place)));
    }
    for (++entry; entry < end; ++entry) {
        Index place = (Index)args.entries[2 * (i64)entry] * plane + (Index)args.entries[2 * (i64)entry + 1];
        Acc value = to_acc(load(args.values + entry));
        UNROLL
        for (int v = 0; v < EACH; ++v)
            sums[v] = fused(value, to_acc(load(args.padded + (from[v] + place))), sums[v]);
    }
    Acc bias = args.bias ? to_acc(args.bias[row]) : Acc(0);
    UNROLL
    for (int v = 0; v < EACH; ++v)
        if (to[v] >= 0) args.y[to[v]] = from_acc<ELEMENT>(args.bias ? sums[v] + bias : sums[v]);
}

HOST struct SparseAdjointArgs {
    const ELEMENT* dy;
    const ELEMENT* values;
    const ELEMENT* bias; // none: null
    ELEMENT* dx;
    const i32* starts;  // of the entries of each (input channel over all groups, tap)
    const i32* entries; // of each the output channel over all groups, and its number
    i64 count;          // positions of all images
    Axes axes;
    Divisor tiles;                  // of positions
    Divisor positions, plane, line; // of an image's input
    Strides x, y;
};

// Without a word on residency the compiler spills registers to have more blocks.
KERNEL_RESIDENT(sparse_backward_input, SparseAdjointArgs, 256, 2) {
    const Axes& axes = args.axes;
    Index channel = divide((Index)blockIdx.x, args.tiles);
    Index tile = (Index)blockIdx.x - channel * (Index)args.tiles.by;
    Index n = tile * 256 + (Index)threadIdx.x;
    if (n >= (Index)args.count) return;
    Index image = divide(n, args.positions), i = n - image * (Index)args.positions.by;
    Position at = position(i, args.plane, args.line);
    Acc sum = Acc(0);
    for (Index rd = 0; rd < readers<0>(axes, at.d); ++rd) {
        Index qd = padded_position<0>(axes, at.d, rd);
        if (qd < 0) continue;
        for (Index rh = 0; rh < readers<1>(axes, at.h); ++rh) {
            Index qh = padded_position<1>(axes, at.h, rh);
            if (qh < 0) continue;
            for (Index rw = 0; rw < readers<2>(axes, at.w); ++rw) {
                Index qw = padded_position<2>(axes, at.w, rw);
                if (qw < 0) continue;
                for (Index kd = 0; kd < taps<0>(axes); ++kd) {
                    Index d = reader_output<0>(axes, qd, kd);
                    if (d < 0) continue;
                    for (Index kh = 0; kh < taps<1>(axes); ++kh) {
                        Index h = reader_output<1>(axes, qh, kh);
                        if (h < 0) continue;
                        for (Index kw = 0; kw < taps<2>(axes); ++kw) {
                            Index w = reader_output<2>(axes, qw, kw);
                            if (w < 0) continue;
                            Index o = output_at(axes, d, h, w);
                            i64 row = ((i64)channel * taps<0>(axes) + kd) * taps<1>(axes) + kh;
                            row = row * taps<2>(axes) + kw;
                            i32 end = args.starts[row + 1];
                            for (i32 entry = args.starts[row]; entry < end; ++entry) {
                                Index output = args.entries[2 * (i64)entry];
                                i32 number = args.entries[2 * (i64)entry + 1];
                                Acc value = to_acc(load(args.values + number));
                                Index from = offset(args.y, image, output, o);
                                sum = fused(value, to_acc(load(args.dy + from)), sum);
                            }
                        }
                    }
                }
            }
        }
    }
    if (args.bias) sum += to_acc(args.bias[channel]);
    args.dx[offset(args.x, image, channel, i)] = from_acc<ELEMENT>(sum);
}

HOST struct SparseWeightArgs {
    const ELEMENT* x;
    const ELEMENT* dy;
    ELEMENT* dw;
    const i32* entries; // of each the output channel, the input channel (both over all groups) and the tap
    i64 entry_count;
    i64 count; // positions of all images
    Axes axes;
    Divisor positions, plane, line; // of an image's output
    Divisor tap_plane, tap_line;
    Strides x_strides, y_strides;
};

// A warp for each entry, its lanes taking turns.
KERNEL(sparse_backward_weight, SparseWeightArgs, 256) {
    const Axes& axes = args.axes;
    i64 entry = (i64)blockIdx.x * 8 + (i64)threadIdx.x / 32;
    if (entry >= args.entry_count) return;
    Index output = args.entries[3 * entry], channel = args.entries[3 * entry + 1];
    Position tap = position((Index)args.entries[3 * entry + 2], args.tap_plane, args.tap_line);
    Acc sum = Acc(0);
    for (Index n = (Index)threadIdx.x % 32; n < (Index)args.count; n += 32) {
        Index image = divide(n, args.positions), o = n - image * (Index)args.positions.by;
        Position at = position(o, args.plane, args.line);
        Index d = source<0>(axes, at.d, tap.d), h = source<1>(axes, at.h, tap.h);
        Index w = source<2>(axes, at.w, tap.w);
        if (d < 0 || h < 0 || w < 0) continue;
        Index i = input_at(axes, d, h, w);
        Acc read = to_acc(load(args.x + offset(args.x_strides, image, channel, i)));
        sum = fused(to_acc(load(args.dy + offset(args.y_strides, image, output, o))), read, sum);
    }
    UNROLL
    for (int half = 16; half > 0; half /= 2) sum += shuffle_xor(sum, half);
    if (threadIdx.x % 32 == 0) args.dw[entry] = from_acc<ELEMENT>(sum);
}
