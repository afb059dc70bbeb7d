// The index map on the device, as src/geometry has it on the host. There are always three axes (those in
// front may have extent 1), named by A = 0, 1, 2.
//
// The host defines INDEX_BITS and LAYOUT. For a kernel that is made for one layer it also defines MODE, and
// TAPS, STRIDES and DILATIONS, each as three numbers with commas; otherwise these are in the arguments.
#pragma once
#include "platform.cuh"

SWITCHES(INDEX_BITS, LAYOUT, MODE, TAPS, STRIDES, DILATIONS)

#define ZEROS 0
#define REFLECT 1
#define REPLICATE 2
#define CIRCULAR 3

#define CHANNELS_FIRST 0
#define CHANNELS_LAST 1

// Counts and offsets: 32 bits when every number the kernel forms fits, else 64.
#if INDEX_BITS == 64
typedef i64 Index;
typedef u64 Unsigned;
#else
typedef i32 Index;
typedef u32 Unsigned;
#endif

// Where an element lies, and whether it does: what is outside counts as 0.
struct Offset {
    Index at;
    bool inside;
};
// In the place of a coordinate or an offset: outside, whatever places are added to it.
constexpr Index OUTSIDE = (Index)((Unsigned)1 << (8 * sizeof(Index) - 1));
// Of numbers that may leave the range of Index, where they are not used.
DEVICE Index plus(Index a, Index b) { return (Index)((Unsigned)a + (Unsigned)b); }
DEVICE Index times(Index a, Index b) { return (Index)((Unsigned)a * (Unsigned)b); }

// Division by a number known before the launch: n / by = n·magic >> shift for 0 <= n < 2^31.
HOST struct Divisor {
    i64 by;
    u32 magic;
    u32 shift;
};
DEVICE i32 divide_narrow(i32 n, const Divisor& divisor) {
    return (i32)(((u64)(u32)n * divisor.magic) >> divisor.shift);
}
DEVICE Index divide(Index n, const Divisor& divisor) {
#if INDEX_BITS == 64
    return n / divisor.by;
#else
    return divide_narrow(n, divisor);
#endif
}

HOST struct Axis {
    i64 inputs, outputs, taps, stride, dilation, low;
};
HOST struct Axes {
    Axis at[3];
    i64 mode;
};

template <int A> DEVICE constexpr Index three(Index a, Index b, Index c) { return A == 0 ? a : A == 1 ? b : c; }
#ifdef TAPS
template <int A> DEVICE constexpr Index taps(const Axes&) { return three<A>(TAPS); }
template <int A> DEVICE constexpr Index stride(const Axes&) { return three<A>(STRIDES); }
template <int A> DEVICE constexpr Index dilation(const Axes&) { return three<A>(DILATIONS); }
#else
template <int A> DEVICE Index taps(const Axes& axes) { return (Index)axes.at[A].taps; }
template <int A> DEVICE Index stride(const Axes& axes) { return (Index)axes.at[A].stride; }
template <int A> DEVICE Index dilation(const Axes& axes) { return (Index)axes.at[A].dilation; }
#endif
#ifdef MODE
static_assert(MODE == ZEROS || MODE == REFLECT || MODE == REPLICATE || MODE == CIRCULAR, "no padding mode");
DEVICE constexpr int mode(const Axes&) { return MODE; }
#else
DEVICE int mode(const Axes& axes) { return (int)axes.mode; }
#endif
template <int A> DEVICE Index inputs(const Axes& axes) { return (Index)axes.at[A].inputs; }
template <int A> DEVICE Index outputs(const Axes& axes) { return (Index)axes.at[A].outputs; }

// The last padded position that any output reads.
template <int A> DEVICE Index last_padded(const Axes& axes) {
    return (outputs<A>(axes) - 1) * stride<A>(axes) + (taps<A>(axes) - 1) * dilation<A>(axes);
}
// The input position behind place i, counted from the input's first; -1 when the tap is dropped.
template <int A> DEVICE Index source_behind(const Axes& axes, Index i) {
    Index n = inputs<A>(axes);
    if ((Unsigned)i < (Unsigned)n) return i;
    switch (mode(axes)) {
    case REFLECT: return i < 0 ? -i : (n - 1) - (i - (n - 1));
    case REPLICATE: return i < 0 ? 0 : n - 1;
    case CIRCULAR: return i < 0 ? i + n : i - n;
    case ZEROS: return -1;
    }
    trap("no padding mode");
    return -1;
}
// The same for padded position q.
template <int A> DEVICE Index padded_source(const Axes& axes, Index q) {
    return source_behind<A>(axes, q - (Index)axes.at[A].low);
}
// The input position that output o reads through tap k; -1 when the tap is dropped.
template <int A> DEVICE Index source(const Axes& axes, Index o, Index k) {
    return padded_source<A>(axes, o * stride<A>(axes) + k * dilation<A>(axes));
}

// The number of padded positions that read input i, at most: some lie beyond the last that any output
// reads. `padded_position` gives them in a fixed order, the one inside the input first.
template <int A> DEVICE Index readers(const Axes& axes, Index i) {
    Index low = (Index)axes.at[A].low, n = inputs<A>(axes);
    switch (mode(axes)) {
    case REFLECT:
    case CIRCULAR: return 3;
    case REPLICATE:
        return 1 + (i == 0 ? low : 0)
            + (i == n - 1 ? larger<Index>(0, last_padded<A>(axes) - (low + n - 1)) : 0);
    case ZEROS: return 1;
    }
    trap("no padding mode");
    return 0;
}
// The padded position behind `reader` < readers(i); -1 when there is none or no output reads it.
template <int A> DEVICE Index padded_position(const Axes& axes, Index i, Index reader) {
    Index low = (Index)axes.at[A].low, n = inputs<A>(axes), q = low + i;
    if (reader > 0) {
        switch (mode(axes)) {
        case REFLECT:
            // The first and the last position are their own mirror images.
            if (reader == 1) q = i == 0 ? -1 : low - i;
            else q = i == n - 1 ? -1 : low + (n - 1) + (n - 1 - i);
            break;
        case REPLICATE:
            if (i == 0 && reader <= low) q = reader - 1;
            else q = low + n - 1 + (reader - (i == 0 ? low : 0));
            break;
        case CIRCULAR: q = reader == 1 ? low + i - n : low + i + n; break;
        case ZEROS: q = -1; break;
        default: trap("no padding mode");
        }
    }
    return q < 0 || q > last_padded<A>(axes) ? -1 : q;
}

// The output that reads padded position q through tap k; -1 when there is none.
template <int A> DEVICE Index reader_output(const Axes& axes, Index q, Index k) {
    Index distance = q - k * dilation<A>(axes);
    if (q < 0 || distance < 0) return -1;
    Index o = distance / stride<A>(axes);
    return o * stride<A>(axes) == distance && o < outputs<A>(axes) ? o : -1;
}

// What walking over the readers of an input needs of an axis, worked out by the host: the stride as a
// divisor, the dilation modulo the stride, and the steps from one tap that reads a padded position, and
// from the output that does so through it, to the next.
HOST struct Adjoint {
    Divisor stride;
    i64 rest, tap_step, output_step;
};
// The (tap, output) pairs that read padded position q >= 0, taps ascending:
//     for (Reads<A> r(axes, adjoint, q); r.more(axes); r.next(axes)) if (r.inside(axes)) …
// With taps known at compile time these are all the taps, a loop to be unrolled; else only those that the
// stride leaves.
template <int A> struct Reads {
    Index tap, output;
#ifdef TAPS
    Index q;
    DEVICE Reads(const Axes& axes, const Adjoint (&)[3], Index q)
        : tap(0), output(reader_output<A>(axes, q, 0)), q(q) {}
    DEVICE bool more(const Axes& axes) const { return tap < taps<A>(axes); }
    DEVICE bool inside(const Axes&) const { return output >= 0; }
    DEVICE void next(const Axes& axes) { output = reader_output<A>(axes, q, ++tap); }
#else
    Index tap_step, output_step;
    DEVICE Reads(const Axes& axes, const Adjoint (&adjoint)[3], Index q)
        : tap(0), output(-1), tap_step((Index)adjoint[A].tap_step),
          output_step((Index)adjoint[A].output_step) {
        const Divisor& stride = adjoint[A].stride;
        Index rest = q - divide(q, stride) * (Index)stride.by, step = (Index)adjoint[A].rest;
        if (step == 1) tap = rest;
        else
            for (; rest != 0 && tap < tap_step; ++tap) rest += rest < step ? (Index)stride.by - step : -step;
        Index distance = q - tap * dilation<A>(axes);
        if (tap < tap_step && distance >= 0) output = divide(distance, stride);
    }
    DEVICE bool more(const Axes& axes) const { return tap < taps<A>(axes) && output >= 0; }
    DEVICE bool inside(const Axes& axes) const { return output < outputs<A>(axes); }
    DEVICE void next(const Axes&) { tap += tap_step, output -= output_step; }
#endif
};
// The number of (tap, output) pairs that read input i.
template <int A> DEVICE Index overlap(const Axes& axes, const Adjoint (&adjoint)[3], Index i) {
    Index count = 0;
    for (Index reader = 0; reader < readers<A>(axes, i); ++reader) {
        Index q = padded_position<A>(axes, i, reader);
        if (q < 0) continue;
        UNROLL
        for (Reads<A> r(axes, adjoint, q); r.more(axes); r.next(axes)) count += r.inside(axes) ? 1 : 0;
    }
    return count;
}

// Row-major positions of an axis triple.
struct Position {
    Index d, h, w;
};
DEVICE Position position(Index at, const Divisor& plane, const Divisor& line) {
    Index d = divide(at, plane);
    Index rest = at - d * (Index)plane.by;
    Index h = divide(rest, line);
    return Position{d, h, rest - h * (Index)line.by};
}
