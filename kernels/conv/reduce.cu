// The bias gradient: for each channel the sum of its elements over the batch and all positions.
//
// There are two stages. In `partial_sums` a block sums one of the pieces into which a channel is split; in
// `total_sums` a warp adds up the sums of a channel's pieces. The order of the additions depends on the
// sizes alone. Without ALIGNED the elements of a vector are loaded one by one, but added in the same order.
#include "element.cuh"
#include "geometry.cuh"

SWITCHES(VECTOR, ALIGNED)

HOST struct ReduceArgs {
    const ELEMENT* input;
    ELEMENT* output; // what one piece sums to is final
    Acc* partial;    // [channels, splits]
    i64 channels;
    i64 splits;
    i64 length; // channels first: vectors of a channel, over the batch; last: rows
    i64 piece;  // vectors or rows of a piece
    Divisor plane; // channels first: vectors in a plane
    Divisor lanes; // channels last: vectors in a row, at most 32, side by side in a block
};

DEVICE Pack<ELEMENT, VECTOR> load_vector(const ELEMENT* from) {
#ifdef ALIGNED
    return load_pack<ELEMENT, VECTOR>(from);
#else
    Pack<ELEMENT, VECTOR> pack;
    UNROLL
    for (int v = 0; v < VECTOR; ++v) pack.at[v] = load(from + v);
    return pack;
#endif
}
DEVICE Acc warp_sum(Acc sum) {
    UNROLL
    for (int half = 16; half > 0; half /= 2) sum += shuffle_xor(sum, half);
    return sum;
}
DEVICE void finish(const ReduceArgs& args, Index channel, Index split, Acc sum) {
    if (args.splits == 1) args.output[channel] = from_acc<ELEMENT>(sum);
    else args.partial[channel * (Index)args.splits + split] = sum;
}

#if LAYOUT == CHANNELS_FIRST
// Block (channel, split).
KERNEL(partial_sums, ReduceArgs, 256) {
    SHARED(Acc, sums, 8);
    Index channel = (Index)blockIdx.x, split = (Index)blockIdx.y, thread = (Index)threadIdx.x;
    Index vectors = (Index)args.plane.by, channels = (Index)args.channels;
    Index end = smaller((Index)args.length, (split + 1) * (Index)args.piece);
    Acc lanes[VECTOR] = {};
    UNROLL
    for (Index at = split * (Index)args.piece + thread; at < end; at += 256) {
        Index image = divide(at, args.plane);
        Index from = (image * channels + channel) * vectors + (at - image * vectors);
        Pack<ELEMENT, VECTOR> pack = load_vector(args.input + from * VECTOR);
        UNROLL
        for (int v = 0; v < VECTOR; ++v) lanes[v] += to_acc(pack.at[v]);
    }
    Acc sum = 0;
    UNROLL
    for (int v = 0; v < VECTOR; ++v) sum += lanes[v];
    sum = warp_sum(sum);
    if (thread % 32 == 0) sums[thread / 32] = sum;
    barrier();
    if (thread > 0) return;
    for (int warp = 1; warp < 8; ++warp) sum += sums[warp];
    finish(args, channel, split, sum);
}
#else
// Block (column vectors, split): a block has `lanes` of them side by side, and its threads take the rows
// of the piece in turns.
KERNEL(partial_sums, ReduceArgs, 256) {
    SHARED(Acc, sums, 256 * VECTOR);
    Index lanes = (Index)args.lanes.by, rows = 256 / lanes;
    Index row = divide((Index)threadIdx.x, args.lanes), lane = (Index)threadIdx.x - row * lanes;
    Index channel = ((Index)blockIdx.x * lanes + lane) * VECTOR, channels = (Index)args.channels;
    Index split = (Index)blockIdx.y, first = split * (Index)args.piece;
    Index end = smaller((Index)args.length, first + (Index)args.piece);
    bool there = row < rows && channel < channels;
    Acc own[VECTOR] = {};
    if (there) {
        UNROLL
        for (Index at = first + row; at < end; at += rows) {
            Pack<ELEMENT, VECTOR> pack = load_vector(args.input + (at * channels + channel));
            UNROLL
            for (int v = 0; v < VECTOR; ++v) own[v] += to_acc(pack.at[v]);
        }
    }
    UNROLL
    for (int v = 0; v < VECTOR; ++v) sums[v * 256 + threadIdx.x] = own[v];
    barrier();
    // Each column by one thread: rows ascending.
    for (Index at = (Index)threadIdx.x; at < lanes * VECTOR; at += 256) {
        Index v = at % VECTOR, column = at / VECTOR;
        Index target = ((Index)blockIdx.x * lanes) * VECTOR + at;
        if (target >= channels) continue;
        Acc sum = 0;
        for (Index other = 0; other < rows; ++other) sum += sums[v * 256 + other * lanes + column];
        finish(args, target, split, sum);
    }
}
#endif

// A warp for each channel.
KERNEL(total_sums, ReduceArgs, 256) {
    Index channel = (Index)blockIdx.x * 8 + (Index)threadIdx.x / 32, lane = (Index)threadIdx.x % 32;
    Index splits = (Index)args.splits;
    Acc sum = 0;
    if (channel < (Index)args.channels)
        for (Index at = lane; at < splits; at += 32) sum += args.partial[channel * splits + at];
    sum = warp_sum(sum);
    if (lane == 0 && channel < (Index)args.channels) args.output[channel] = from_acc<ELEMENT>(sum);
}
