// What is done with the gradients of single examples besides multiplying matrices. ELEMENT is what they are
// summed in. `sum_squares` and `sum_clipped` have a thread for each element of a gradient, which adds the
// examples up in order.
//
// Numbers that are known only when a program runs come in the place of addresses, as f64 bits: nothing is
// read there.
#include "element.cuh"
#include "geometry.cuh"

SWITCHES(SOURCE)

#ifndef SOURCE
#define SOURCE ELEMENT
#endif

HOST struct WidenArgs {
    const SOURCE* input;
    ELEMENT* output;
    i64 length;
};

HOST struct ArrangeArgs {
    const ELEMENT* products; // [examples and groups, plain rows, entries]
    ELEMENT* gradients;      // [examples and groups, gathered channels, columns]
    i64 length;              // of products
    i64 rows, channels, taps, columns;
};

HOST struct BiasColumnArgs {
    const ELEMENT* dy;
    ELEMENT* gradients; // [examples, channels, columns]
    i64 sums;           // examples times channels
    i64 channels, positions, columns;
};

HOST struct ExamplesArgs {
    const ELEMENT* gradients; // [examples, length]
    ELEMENT* norms;           // [examples]
    ELEMENT* target;          // [length]
    const f64* decay;
    const f64* scale; // or the limit
    i64 length, examples;
    i64 first; // whether these are the first examples
};

DEVICE f64 number(const f64* place) {
    union {
        u64 bits;
        f64 value;
    } both;
    both.bits = (u64)place;
    return both.value;
}

KERNEL(widen, WidenArgs, 256) {
    i64 at = (i64)blockIdx.x * 256 + (i64)threadIdx.x;
    if (at < args.length) args.output[at] = (ELEMENT)to_acc(args.input[at]);
}

#ifdef LAYOUT
// Rows and the channels of columns of a transposed convolution's gradients change places.
KERNEL(arrange, ArrangeArgs, 256) {
    i64 at = (i64)blockIdx.x * 256 + (i64)threadIdx.x;
    if (at >= args.length) return;
    i64 entries = args.channels * args.taps, entry = at % entries;
    i64 row = at / entries % args.rows, matrix = at / entries / args.rows;
#if LAYOUT == CHANNELS_FIRST
    i64 channel = entry / args.taps, column = row * args.taps + entry % args.taps;
#else
    i64 channel = entry % args.channels, column = entry / args.channels * args.rows + row;
#endif
    args.gradients[(matrix * args.channels + channel) * args.columns + column] = args.products[at];
}

// A warp for each sum.
KERNEL(bias_column, BiasColumnArgs, 256) {
    i64 at = (i64)blockIdx.x * 8 + (i64)threadIdx.x / 32;
    bool there = at < args.sums;
    i64 image = at / args.channels, channel = at % args.channels;
    ELEMENT sum = 0;
    for (i64 o = (i64)threadIdx.x % 32; there && o < args.positions; o += 32) {
#if LAYOUT == CHANNELS_FIRST
        sum += args.dy[at * args.positions + o];
#else
        sum += args.dy[(image * args.positions + o) * args.channels + channel];
#endif
    }
    UNROLL
    for (int half = 16; half > 0; half /= 2) sum += shuffle_xor(sum, half);
    if (there && threadIdx.x % 32 == 0)
        args.gradients[(image * args.channels + channel) * args.columns + args.columns - 1] = sum;
}
#endif

// A block for each example.
KERNEL(find_norms, ExamplesArgs, 256) {
    SHARED(f64, sums, 8);
    const ELEMENT* gradient = args.gradients + (i64)blockIdx.x * args.length;
    f64 sum = 0;
    for (i64 at = (i64)threadIdx.x; at < args.length; at += 256) {
        f64 value = (f64)gradient[at];
        sum = fused(value, value, sum);
    }
    UNROLL
    for (int half = 16; half > 0; half /= 2) sum += shuffle_xor(sum, half);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    barrier();
    if (threadIdx.x != 0) return;
    for (int warp = 1; warp < 8; ++warp) sum += sums[warp];
    args.norms[blockIdx.x] = (ELEMENT)square_root(sum);
}

KERNEL(sum_clipped, ExamplesArgs, 256) {
    i64 at = (i64)blockIdx.x * 256 + (i64)threadIdx.x;
    if (at >= args.length) return;
    f64 limit = number(args.scale);
    ELEMENT sum = args.first ? (ELEMENT)0 : args.target[at];
    for (i64 example = 0; example < args.examples; ++example) {
        f64 norm = (f64)args.norms[example];
        ELEMENT factor = (ELEMENT)(norm > limit ? limit / norm : 1.0);
        sum = fused(factor, args.gradients[example * args.length + at], sum);
    }
    args.target[at] = sum;
}

KERNEL(sum_squares, ExamplesArgs, 256) {
    i64 at = (i64)blockIdx.x * 256 + (i64)threadIdx.x;
    if (at >= args.length) return;
    ELEMENT decay = (ELEMENT)number(args.decay);
    ELEMENT scale = (ELEMENT)number(args.scale);
    ELEMENT sum = 0;
    for (i64 example = 0; example < args.examples; ++example) {
        ELEMENT value = args.gradients[example * args.length + at];
        sum = fused(value, value, sum);
    }
    ELEMENT old = 0;
    if (!args.first) old = args.target[at];
    else if (decay != 0) old = decay * args.target[at];
    args.target[at] = old + scale * sum;
}
