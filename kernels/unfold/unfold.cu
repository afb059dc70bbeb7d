// unfold: A[n, c·K + k, o] = x[n, c, i(o, k)], one launch for the whole batch and all groups.
//
// A thread writes VECTOR neighbours of the patches with one store for each tap, and reads the input
// element by element through the caches, which serve all but one of the K times an element is read.
// Channels first, the neighbours are output positions, and threads of a warp follow each other along a
// patch row; with WINDOW they lie in one line and read what their taps have in common once: WINDOW
// neighbours of the input's line; ALIGNED of them in, these are at multiples of VECTOR, and read as vectors, each
// inside of the line or outside as a whole. Channels last, they are channels, read with one load.
#include "element.cuh"
#include "geometry.cuh"

SWITCHES(VECTOR, WINDOW, ALIGNED)

HOST struct UnfoldArgs {
    const ELEMENT* input;
    ELEMENT* patches;
    i64 count;     // threads that have work
    i64 channels;  // over all groups
    i64 per_group; // channels of a group
    Axes axes;
    Divisor chunks; // channels first: vectors in a plane of outputs; last: vectors in the channels
    Divisor positions;
    Divisor groups; // channels of a group
    Divisor plane, line;
};

typedef Pack<ELEMENT, VECTOR> Vector;

#ifdef ALIGNED
constexpr int FIRST_VECTOR = ALIGNED, END_OF_VECTORS = WINDOW - (WINDOW - ALIGNED) % VECTOR;
#else
constexpr int FIRST_VECTOR = 0, END_OF_VECTORS = 0;
#endif

#ifdef WINDOW
// The line of the input that output `at` reads through a depth and a row of taps, from its first column of them on.
DEVICE void read_window(ELEMENT (&window)[WINDOW], const Axes& axes, const ELEMENT* plane, const Position& at,
                        Index kd, Index kh) {
#if MODE == ZEROS
    // What is read lies at constant distances.
    Index d = at.d * stride<0>(axes) + kd * dilation<0>(axes) - (Index)axes.at[0].low;
    Index h = at.h * stride<1>(axes) + kh * dilation<1>(axes) - (Index)axes.at[1].low;
    Index w = at.w * stride<2>(axes) - (Index)axes.at[2].low, length = inputs<2>(axes);
    bool inside = (Unsigned)d < (Unsigned)inputs<0>(axes) && (Unsigned)h < (Unsigned)inputs<1>(axes);
    const ELEMENT* from = plane + plus(times(plus(times(d, inputs<1>(axes)), h), length), w);
    UNROLL
    for (int x = 0; x < WINDOW; ++x) {
        if (x >= FIRST_VECTOR && x < END_OF_VECTORS) continue;
        window[x] = inside && (Unsigned)(w + x) < (Unsigned)length ? load(from + x) : zero<ELEMENT>();
    }
    UNROLL
    for (int x = FIRST_VECTOR; x < END_OF_VECTORS; x += VECTOR) {
        Vector values = {};
        if (inside && (Unsigned)(w + x) < (Unsigned)length) values = load_pack<ELEMENT, VECTOR>(from + x);
        UNROLL
        for (int v = 0; v < VECTOR; ++v) window[x + v] = values.at[v];
    }
#else
    Index d = source<0>(axes, at.d, kd), h = source<1>(axes, at.h, kh);
    const ELEMENT* line = plane + (d * inputs<1>(axes) + h) * inputs<2>(axes);
    UNROLL
    for (int x = 0; x < WINDOW; ++x)
        window[x] = load(line + padded_source<2>(axes, at.w * stride<2>(axes) + x));
#endif
}
#endif

#if LAYOUT == CHANNELS_FIRST
KERNEL(unfold, UnfoldArgs, 256) {
    Index thread = (Index)blockIdx.x * 256 + (Index)threadIdx.x;
    if (thread >= (Index)args.count) return;
    const Axes& axes = args.axes;
    Index positions = (Index)args.positions.by;
    Index image_channel = divide(thread, args.chunks);
    Index first = (thread - image_channel * (Index)args.chunks.by) * VECTOR;
    const ELEMENT* plane = args.input + image_channel * (inputs<0>(axes) * inputs<1>(axes) * inputs<2>(axes));
    keep(plane);
    Index all_taps = taps<0>(axes) * taps<1>(axes) * taps<2>(axes);
    ELEMENT* rows = args.patches + image_channel * all_taps * positions + first;
    keep(rows);

    Position at[VECTOR];
    at[0] = position(first, args.plane, args.line);
    UNROLL
    for (int v = 1; v < VECTOR; ++v) {
        at[v] = at[v - 1];
        if (++at[v].w == outputs<2>(axes)) {
            at[v].w = 0;
            if (++at[v].h == outputs<1>(axes)) at[v].h = 0, ++at[v].d;
        }
    }
    UNROLL
    for (Index kd = 0; kd < taps<0>(axes); ++kd) {
        UNROLL
        for (Index kh = 0; kh < taps<1>(axes); ++kh) {
#ifdef WINDOW
            // What the taps of a line read, once.
            ELEMENT window[WINDOW];
            read_window(window, axes, plane, at[0], kd, kh);
#else
            Index line[VECTOR];
            UNROLL
            for (int v = 0; v < VECTOR; ++v) {
                Index d = source<0>(axes, at[v].d, kd), h = source<1>(axes, at[v].h, kh);
                line[v] = d < 0 || h < 0 ? -1 : (d * inputs<1>(axes) + h) * inputs<2>(axes);
            }
#endif
            UNROLL
            for (Index kw = 0; kw < taps<2>(axes); ++kw) {
                Vector out;
                UNROLL
                for (int v = 0; v < VECTOR; ++v) {
#ifdef WINDOW
                    out.at[v] = window[v * stride<2>(axes) + kw * dilation<2>(axes)];
#else
                    Index w = source<2>(axes, at[v].w, kw);
                    out.at[v] = line[v] < 0 || w < 0 ? zero<ELEMENT>() : load(plane + line[v] + w);
#endif
                }
                store_global<ELEMENT, VECTOR>(rows, out);
                rows += positions;
            }
        }
    }
}
#else
KERNEL(unfold, UnfoldArgs, 256) {
    Index thread = (Index)blockIdx.x * 256 + (Index)threadIdx.x;
    if (thread >= (Index)args.count) return;
    const Axes& axes = args.axes;
    Index image_position = divide(thread, args.chunks);
    Index channel = (thread - image_position * (Index)args.chunks.by) * VECTOR;
    Index image = divide(image_position, args.positions);
    Position at = position(image_position - image * (Index)args.positions.by, args.plane, args.line);
    Index group = divide(channel, args.groups), channels = (Index)args.channels;
    Index per_group = (Index)args.per_group;
    Index all_taps = taps<0>(axes) * taps<1>(axes) * taps<2>(axes);
    Index plane = inputs<0>(axes) * inputs<1>(axes) * inputs<2>(axes);
    const ELEMENT* inner = args.input + image * plane * channels + channel;
    ELEMENT* out = args.patches + (image_position * channels + group * per_group) * all_taps
        + channel - group * per_group;
    UNROLL
    for (Index kd = 0; kd < taps<0>(axes); ++kd) {
        Index d = source<0>(axes, at.d, kd);
        UNROLL
        for (Index kh = 0; kh < taps<1>(axes); ++kh) {
            Index h = source<1>(axes, at.h, kh);
            Index line = d < 0 || h < 0 ? -1 : (d * inputs<1>(axes) + h) * inputs<2>(axes);
            UNROLL
            for (Index kw = 0; kw < taps<2>(axes); ++kw) {
                Index w = source<2>(axes, at.w, kw);
                Vector value = {};
                if (line >= 0 && w >= 0) value = load_pack<ELEMENT, VECTOR>(inner + (line + w) * channels);
                store_global<ELEMENT, VECTOR>(out, value);
                out += per_group;
            }
        }
    }
}
#endif
