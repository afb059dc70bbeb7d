// The gathering filter: identities of size BLOCK = (C/g)·K, stacked: [rows, block] with a one in each row
// at row % block; channels last, its transpose. Each thread stores VECTOR neighbours.
#include "element.cuh"
#include "geometry.cuh"

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
