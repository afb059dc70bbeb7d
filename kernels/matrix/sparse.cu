// Sparse matrices in compressed rows: products and the dense matrix. The matrix's indices are of type COLUMN.
// A row is summed in a fixed order, so that results are the same, bit by bit, each time.
#include "element.cuh"
#include "geometry.cuh"

SWITCHES(COLUMN, VECTOR)

HOST struct SparseArgs {
    const COLUMN* indptr;
    const COLUMN* indices;
    const ELEMENT* data;
    const ELEMENT* x; // [columns, vectors]
    ELEMENT* y;       // [rows, vectors]; the dense matrix: [rows, columns], zeros
    i64 rows;
    i64 vectors;   // or columns
    i64 lanes;     // one vector: log2 of the threads that share a row
    Divisor packs; // many: threads of a row, each with VECTOR vectors
};

// One vector: neighbouring threads read neighbouring entries, and their sums meet in a tree.
KERNEL(mul_vector, SparseArgs, 256) {
    Index thread = (Index)blockIdx.x * 256 + (Index)threadIdx.x;
    Index row = thread >> args.lanes, lanes = (Index)1 << args.lanes, lane = thread & (lanes - 1);
    Acc sum = 0;
    if (row < (Index)args.rows) {
        i64 end = args.indptr[row + 1];
        for (i64 e = args.indptr[row] + lane; e < end; e += lanes)
            sum = fused(to_acc(load(args.data + e)), to_acc(load(args.x + load(args.indices + e))), sum);
    }
    for (int step = (int)lanes / 2; step > 0; step /= 2) sum += shuffle_xor(sum, step);
    if (row < (Index)args.rows && lane == 0) args.y[row] = from_acc<ELEMENT>(sum);
}

// Many vectors: neighbouring threads read the same entry and neighbouring vectors.
KERNEL(mul_matrix, SparseArgs, 256) {
    Index thread = (Index)blockIdx.x * 256 + (Index)threadIdx.x;
    Index row = divide(thread, args.packs), vectors = (Index)args.vectors;
    if (row >= (Index)args.rows) return;
    Index first = (thread - row * (Index)args.packs.by) * VECTOR;
    Acc sums[VECTOR] = {};
    for (i64 e = args.indptr[row], end = args.indptr[row + 1]; e < end; ++e) {
        Acc value = to_acc(load(args.data + e));
        Index column = (Index)load(args.indices + e);
        Pack<ELEMENT, VECTOR> x = load_pack<ELEMENT, VECTOR>(args.x + column * vectors + first);
        UNROLL
        for (int v = 0; v < VECTOR; ++v) sums[v] = fused(value, to_acc(x.at[v]), sums[v]);
    }
    Pack<ELEMENT, VECTOR> y;
    UNROLL
    for (int v = 0; v < VECTOR; ++v) y.at[v] = from_acc<ELEMENT>(sums[v]);
    store_global<ELEMENT, VECTOR>(args.y + row * vectors + first, y);
}

// A warp to a row.
KERNEL(to_dense, SparseArgs, 256) {
    i64 row = (i64)blockIdx.x * 8 + threadIdx.x / 32;
    if (row >= args.rows) return;
    i64 end = args.indptr[row + 1];
    for (i64 e = args.indptr[row] + threadIdx.x % 32; e < end; e += 32)
        args.y[row * args.vectors + args.indices[e]] = args.data[e];
}
