// fold: x[n, c, i] = Σ A[n, c·K + k, o] over all (o, k) that read i, summed in the accumulator's type and
// rounded once; with AVERAGE, divided by the number of entries. A gather: each element has one thread,
// which adds up what belongs to it, taps ascending, so the order of a sum depends on the geometry alone.
// One launch for the whole batch and all groups.
//
// Every patch entry is read once, and there are K times as many of them as results (K·L / inputs): the
// reads take the time. There are two kernels:
//
// - CELL (channels first, zeros, taps known at compile time): a thread has a cell of STRIDE results on each
//   axis (on the last axis SPAN, a multiple), each of which every tap reaches equally often, whatever the
//   stride. So no load inside the plane is wasted, and which result a tap adds to is known at compile time.
//   Threads of a warp follow each other along a patch row, so loads are coalesced though rows are shifted
//   against each other by the tap, which rules out wider loads. All loads of a cell are independent.
// - Otherwise a thread has VECTOR neighbours of the result (channels first: one; channels last: channels,
//   loaded and stored at once) and walks over the padded positions that stand for its input and over the
//   taps that read each.
#include "element.cuh"
#include "geometry.cuh"

SWITCHES(VECTOR, AVERAGE, CELL, SPAN, PHASES)

HOST struct FoldArgs {
    const ELEMENT* patches;
    ELEMENT* output;
    i64 count;     // threads that have work
    i64 channels;  // over all groups
    i64 per_group; // channels of a group
    Axes axes;
    Adjoint adjoint[3];
    Divisor chunks;    // channels last: vectors in the channels
    Divisor positions; // cells or inputs in a plane
    Divisor groups;    // channels of a group
    Divisor plane, line;
};

#ifdef CELL
// The low padding modulo the stride.
template <int A> DEVICE constexpr Index phase() { return three<A>(PHASES); }
// The result of a cell that tap k reaches, and the output through which it does, counted from the one with
// the cell's own number (on the last axis: from its first).
template <int A> DEVICE constexpr Index reached(const Axes& axes, Index k) {
    Index s = stride<A>(axes);
    return ((k * dilation<A>(axes) - phase<A>()) % s + s) % s;
}
template <int A> DEVICE constexpr Index shift(const Axes& axes, Index k) {
    return (reached<A>(axes, k) + phase<A>() - k * dilation<A>(axes)) / stride<A>(axes);
}

KERNEL(fold, FoldArgs, 256) {
    Index thread = (Index)blockIdx.x * 256 + (Index)threadIdx.x;
    if (thread >= (Index)args.count) return;
    const Axes& axes = args.axes;
    constexpr int DEPTH = three<0>(STRIDES), HEIGHT = three<1>(STRIDES), STEP = three<2>(STRIDES);
    Index image_channel = divide(thread, args.positions);
    Position cell = position(thread - image_channel * (Index)args.positions.by, args.plane, args.line);
    cell.w *= SPAN / STEP;
    // The outputs that the cell's numbers stand for.
    Index d = cell.d + (Index)axes.at[0].low / DEPTH, h = cell.h + (Index)axes.at[1].low / HEIGHT;
    Index w = cell.w + (Index)axes.at[2].low / STEP;
    Index height = outputs<1>(axes), width = outputs<2>(axes), positions = outputs<0>(axes) * height * width;
    Index from = image_channel * (taps<0>(axes) * taps<1>(axes) * taps<2>(axes)) * positions
        + (d * height + h) * width + w;

    Acc sums[DEPTH][HEIGHT][SPAN] = {};
    UNROLL
    for (Index kd = 0; kd < taps<0>(axes); ++kd) {
        Index shift_d = shift<0>(axes, kd);
        UNROLL
        for (Index kh = 0; kh < taps<1>(axes); ++kh) {
            Index shift_h = shift<1>(axes, kh);
            bool line = (Unsigned)(d + shift_d) < (Unsigned)outputs<0>(axes)
                && (Unsigned)(h + shift_h) < (Unsigned)height;
            Index row = ((kd * taps<1>(axes) + kh) * taps<2>(axes)) * positions
                + (shift_d * height + shift_h) * width;
            UNROLL
            for (Index kw = 0; kw < taps<2>(axes); ++kw) {
                Index shift_w = shift<2>(axes, kw), first = reached<2>(axes, kw);
                Index entry = from + (row + kw * positions + shift_w);
                UNROLL
                for (int v = 0; v < SPAN / STEP; ++v) {
                    if (line && (Unsigned)(w + shift_w + v) < (Unsigned)width)
                        sums[reached<0>(axes, kd)][reached<1>(axes, kh)][first + v * STEP] +=
                            to_acc(load(args.patches + entry + v));
                }
            }
        }
    }

    d = cell.d * DEPTH, h = cell.h * HEIGHT, w = cell.w * STEP;
#ifdef AVERAGE
    UNROLL
    for (int x = 0; x < SPAN; ++x) {
        Index along = overlap<2>(axes, args.adjoint, w + x);
        UNROLL
        for (int y = 0; y < HEIGHT; ++y) {
            Index across = along * overlap<1>(axes, args.adjoint, h + y);
            UNROLL
            for (int z = 0; z < DEPTH; ++z) {
                Index entries = across * overlap<0>(axes, args.adjoint, d + z);
                sums[z][y][x] /= (Acc)larger<Index>(1, entries);
            }
        }
    }
#endif
    UNROLL
    for (int z = 0; z < DEPTH; ++z) {
        UNROLL
        for (int y = 0; y < HEIGHT; ++y) {
            if (d + z >= inputs<0>(axes) || h + y >= inputs<1>(axes)) continue;
            Index row = (image_channel * inputs<0>(axes) + d + z) * inputs<1>(axes) + h + y;
            Index to = row * inputs<2>(axes) + w;
            UNROLL
            for (int x = 0; x < SPAN; x += VECTOR) {
                Pack<ELEMENT, VECTOR> out;
                UNROLL
                for (int v = 0; v < VECTOR; ++v) out.at[v] = from_acc<ELEMENT>(sums[z][y][x + v]);
                if (w + x < inputs<2>(axes)) store_global<ELEMENT, VECTOR>(args.output + to + x, out);
            }
        }
    }
}
#else
KERNEL(fold, FoldArgs, 256) {
    Index thread = (Index)blockIdx.x * 256 + (Index)threadIdx.x;
    if (thread >= (Index)args.count) return;
    const Axes& axes = args.axes;
    Index all_taps = taps<0>(axes) * taps<1>(axes) * taps<2>(axes);
#if LAYOUT == CHANNELS_FIRST
    Index image_channel = divide(thread, args.positions);
    Index inner = thread - image_channel * (Index)args.positions.by;
    Index position_step = 1, tap_step = outputs<0>(axes) * outputs<1>(axes) * outputs<2>(axes);
    const ELEMENT* from = args.patches + image_channel * all_taps * tap_step;
#else
    Index image_position = divide(thread, args.chunks);
    Index channel = (thread - image_position * (Index)args.chunks.by) * VECTOR;
    Index image = divide(image_position, args.positions), group = divide(channel, args.groups);
    Index inner = image_position - image * (Index)args.positions.by;
    Index position_step = (Index)args.channels * all_taps, tap_step = (Index)args.per_group;
    const ELEMENT* from = args.patches
        + image * (outputs<0>(axes) * outputs<1>(axes) * outputs<2>(axes)) * position_step
        + group * tap_step * all_taps + (channel - group * tap_step);
#endif
    Position at = position(inner, args.plane, args.line);

    Acc sums[VECTOR] = {};
    for (Index reader_d = 0; reader_d < readers<0>(axes, at.d); ++reader_d) {
        Index padded_d = padded_position<0>(axes, at.d, reader_d);
        if (padded_d < 0) continue;
        for (Index reader_h = 0; reader_h < readers<1>(axes, at.h); ++reader_h) {
            Index padded_h = padded_position<1>(axes, at.h, reader_h);
            if (padded_h < 0) continue;
            for (Index reader_w = 0; reader_w < readers<2>(axes, at.w); ++reader_w) {
                Index padded_w = padded_position<2>(axes, at.w, reader_w);
                if (padded_w < 0) continue;
                UNROLL
                for (Reads<0> d(axes, args.adjoint, padded_d); d.more(axes); d.next(axes)) {
                    if (!d.inside(axes)) continue;
                    UNROLL
                    for (Reads<1> h(axes, args.adjoint, padded_h); h.more(axes); h.next(axes)) {
                        if (!h.inside(axes)) continue;
                        Index line = (d.output * outputs<1>(axes) + h.output) * outputs<2>(axes);
                        Index first = (d.tap * taps<1>(axes) + h.tap) * taps<2>(axes);
                        UNROLL
                        for (Reads<2> w(axes, args.adjoint, padded_w); w.more(axes); w.next(axes)) {
                            Pack<ELEMENT, VECTOR> entries = {};
                            if (w.inside(axes))
                                entries = load_pack<ELEMENT, VECTOR>(
                                    from + (line + w.output) * position_step + (first + w.tap) * tap_step);
                            UNROLL
                            for (int v = 0; v < VECTOR; ++v) sums[v] += to_acc(entries.at[v]);
                        }
                    }
                }
            }
        }
    }
#ifdef AVERAGE
    Index entries = overlap<0>(axes, args.adjoint, at.d) * overlap<1>(axes, args.adjoint, at.h)
        * overlap<2>(axes, args.adjoint, at.w);
    UNROLL
    for (int v = 0; v < VECTOR; ++v) sums[v] /= (Acc)larger<Index>(1, entries);
#endif
    Pack<ELEMENT, VECTOR> out;
    UNROLL
    for (int v = 0; v < VECTOR; ++v) out.at[v] = from_acc<ELEMENT>(sums[v]);
    store_global<ELEMENT, VECTOR>(args.output + thread * VECTOR, out);
}
#endif
