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

// Entries that a thread reads at once, so that it waits for all of them together.
#define AT_ONCE 4

// One vector: neighbouring threads read neighbouring entries, and their sums meet in a tree.
KERNEL(mul_vector, SparseArgs, 256) {
    Index thread = (Index)blockIdx.x * 256 + (Index)threadIdx.x;
    Index row = thread >> args.lanes, lanes = (Index)1 << args.lanes, lane = thread & (lanes - 1);
    Acc sum = 0;
    if (row < (Index)args.rows) {
        COLUMN begin = args.indptr[row];
        Index length = (Index)(args.indptr[row + 1] - begin);
        const COLUMN* columns = args.indices + begin;
        const ELEMENT* values = args.data + begin;
        for (Index first = lane; first < length; first += AT_ONCE * lanes) {
            Index column[AT_ONCE];
            ELEMENT value[AT_ONCE], x[AT_ONCE];
            UNROLL
            for (int i = 0; i < AT_ONCE; ++i) {
                Index at = first + i * lanes;
                if (at >= length) continue;
                column[i] = (Index)load(columns + at);
                value[i] = load(values + at);
            }
            UNROLL
            for (int i = 0; i < AT_ONCE; ++i)
                if (first + i * lanes < length) x[i] = load(args.x + column[i]);
            UNROLL
            for (int i = 0; i < AT_ONCE; ++i)
                if (first + i * lanes < length) sum = fused(to_acc(value[i]), to_acc(x[i]), sum);
        }
    }
    for (int step = (int)lanes / 2; step > 0; step /= 2) sum += shuffle_xor(sum, step);
    if (row < (Index)args.rows && lane == 0) args.y[row] = from_acc<ELEMENT>(sum);
}

template <typename T, int N> DEVICE Pack<T, N> load_neighbours(const T* from) {
    return load(reinterpret_cast<const Pack<T, N>*>(from));
}
// Adds the products of COUNT entries and vectors; the place of the first is a multiple of COUNT. (The parts of a
// matrix begin at multiples of more than 32 bytes.)
template <int COUNT>
DEVICE void add_entries(const SparseArgs& args, COLUMN place, const ELEMENT* x, Acc (&sums)[VECTOR]) {
    Pack<COLUMN, COUNT> columns = load_neighbours<COLUMN, COUNT>(args.indices + place);
    Pack<ELEMENT, COUNT> values = load_neighbours<ELEMENT, COUNT>(args.data + place);
    Pack<ELEMENT, VECTOR> vectors[COUNT];
    UNROLL
    for (int i = 0; i < COUNT; ++i)
        vectors[i] = load_neighbours<ELEMENT, VECTOR>(x + (Index)columns.at[i] * (Index)args.vectors);
    UNROLL
    for (int i = 0; i < COUNT; ++i) {
        Acc value = to_acc(values.at[i]);
        UNROLL
        for (int v = 0; v < VECTOR; ++v) sums[v] = fused(value, to_acc(vectors[i].at[v]), sums[v]);
    }
}

// Many vectors: neighbouring threads read the same entries and neighbouring vectors.
KERNEL(mul_matrix, SparseArgs, 256) {
    Index thread = (Index)blockIdx.x * 256 + (Index)threadIdx.x;
    Index row = divide(thread, args.packs), vectors = (Index)args.vectors;
    if (row >= (Index)args.rows) return;
    Index first = (thread - row * (Index)args.packs.by) * VECTOR;
    const ELEMENT* x = args.x + first;
    Acc sums[VECTOR] = {};
    COLUMN place = args.indptr[row], end = args.indptr[row + 1];
    UNROLL_BY(1)
    for (; place < end && place % AT_ONCE != 0; ++place) add_entries<1>(args, place, x, sums);
    UNROLL_BY(1)
    for (; end - place >= AT_ONCE; place += AT_ONCE) add_entries<AT_ONCE>(args, place, x, sums);
    UNROLL_BY(1)
    for (; place < end; ++place) add_entries<1>(args, place, x, sums);
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
