// The index map on the device: the mirror of src/geometry. Three axes always (those in front may have
// extent 1), named by A = 0, 1, 2.
//
// What the host knows when it compiles: INDEX_BITS, LAYOUT and, for a kernel made for one layer, MODE and
// TAPS, STRIDES, DILATIONS, each three numbers by commas; without these the arguments say.
#pragma once
#include "platform.cuh"

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

// Division by a number known before the launch: n / by = n·magic >> shift for 0 <= n < 2^31.
struct Divisor {
    i64 by;
    u32 magic;
    u32 shift;
};
DEVICE Index divide(Index n, const Divisor& divisor) {
#if INDEX_BITS == 64
    return n / divisor.by;
#else
    return (Index)(((u64)(u32)n * divisor.magic) >> divisor.shift);
#endif
}

struct Axis {
    i64 inputs, outputs, taps, stride, dilation, low;
};
struct Axes {
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
#ifdef TAPS
DEVICE constexpr int mode(const Axes&) { return MODE; }
#else
DEVICE int mode(const Axes& axes) { return (int)axes.mode; }
#endif
template <int A> DEVICE Index inputs(const Axes& axes) { return (Index)axes.at[A].inputs; }
template <int A> DEVICE Index outputs(const Axes& axes) { return (Index)axes.at[A].outputs; }

// The input position behind padded position q; -1 when there is none.
template <int A> DEVICE Index padded_source(const Axes& axes, Index q) {
    Index n = inputs<A>(axes);
    Index i = q - (Index)axes.at[A].low;
    if ((Unsigned)i < (Unsigned)n) return i;
    switch (mode(axes)) {
    case REFLECT: return i < 0 ? -i : 2 * (n - 1) - i;
    case REPLICATE: return i < 0 ? 0 : n - 1;
    case CIRCULAR: return i < 0 ? i + n : i - n;
    default: return -1;
    }
}
// The input position that output o reads through tap k; -1 when the tap is dropped.
template <int A> DEVICE Index source(const Axes& axes, Index o, Index k) {
    return padded_source<A>(axes, o * stride<A>(axes) + k * dilation<A>(axes));
}
// The last padded position that any output reads.
template <int A> DEVICE Index last_padded(const Axes& axes) {
    return (outputs<A>(axes) - 1) * stride<A>(axes) + (taps<A>(axes) - 1) * dilation<A>(axes);
}

// The number of padded positions that read input i, at most: some lie beyond the last that any output
// reads. `padded_position` gives them in a fixed order, the one inside the input first.
template <int A> DEVICE Index readers(const Axes& axes, Index i) {
    Index low = (Index)axes.at[A].low, n = inputs<A>(axes);
    switch (mode(axes)) {
    case REFLECT:
    case CIRCULAR: return 3;
    case REPLICATE:
        return 1 + (i == 0 ? low : 0) + (i == n - 1 ? larger<Index>(0, last_padded<A>(axes) - (low + n - 1)) : 0);
    default: return 1;
    }
}
// The padded position behind `reader` < readers(i); -1 when there is none.
template <int A> DEVICE Index padded_position(const Axes& axes, Index i, Index reader) {
    Index low = (Index)axes.at[A].low, n = inputs<A>(axes);
    if (reader == 0) return low + i;
    switch (mode(axes)) {
    case REFLECT:
        // The first and the last position are their own mirror images.
        if (reader == 1) return i == 0 ? -1 : low - i;
        return i == n - 1 ? -1 : low + 2 * (n - 1) - i;
    case REPLICATE:
        if (i == 0 && reader <= low) return reader - 1;
        return low + n - 1 + (reader - (i == 0 ? low : 0));
    case CIRCULAR: return reader == 1 ? low + i - n : low + i + n;
    default: return -1;
    }
}

// The output that reads padded position q through tap k; -1 when there is none.
template <int A> DEVICE Index reader_output(const Axes& axes, Index q, Index k) {
    Index distance = q - k * dilation<A>(axes);
    if (q < 0 || distance < 0) return -1;
    Index o = distance / stride<A>(axes);
    return o * stride<A>(axes) == distance && o < outputs<A>(axes) ? o : -1;
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
