// The gathering filter: identity matrices of size block = (C/g)·K, one below the other, so that row r of
// [rows, block] has its one at r % block; channels last, the transpose of that. Each thread stores VECTOR neighbours.
#include "element.cuh"
#include "geometry.cuh"

SWITCHES(VECTOR)

HOST struct FilterArgs {
    ELEMENT* filter;
    i64 count;     // threads that have work
    Divisor width; // of the stored matrix, in vectors
    Divisor block;
};

KERNEL(filter, FilterArgs, 256) {
    Index thread = (Index)blockIdx.x * 256 + (Index)threadIdx.x;
    if (thread >= (Index)args.count) return;
    Index row = divide(thread, args.width), column = (thread - row * (Index)args.width.by) * VECTOR;
    Index block = (Index)args.block.by;
#if LAYOUT == CHANNELS_FIRST
    Index target = row - divide(row, args.block) * block;
#else
    Index target = row;
    column -= divide(column, args.block) * block;
#endif
    Pack<ELEMENT, VECTOR> out = {};
    UNROLL
    for (int v = 0; v < VECTOR; ++v) {
        if (column == target) out.at[v] = from_acc<ELEMENT>(1);
        // Channels last, a line goes on with the next identity.
        if (++column == block && LAYOUT == CHANNELS_LAST) column = 0;
    }
    store_global<ELEMENT, VECTOR>(args.filter + thread * VECTOR, out);
}
