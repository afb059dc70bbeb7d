// Writes the bias, or zeros, to every position. Where no output reads an input, that is its gradient.
#include "element.cuh"
#include "geometry.cuh"

HOST struct FillArgs {
    const ELEMENT* bias;  // may be null
    ELEMENT* target;
    i64 count;
    Divisor run, channels;  // elements of a channel that follow each other
};

KERNEL(fill, FillArgs, 256) {
    Index at = (Index)blockIdx.x * 256 + (Index)threadIdx.x;
    if (at >= (Index)args.count) return;
    Index run = divide(at, args.run);
    Index channel = run - divide(run, args.channels) * (Index)args.channels.by;
    args.target[at] = args.bias ? load(args.bias + channel) : zero<ELEMENT>();
}
