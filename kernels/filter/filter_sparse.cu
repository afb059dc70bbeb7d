// The gathering filter as compressed sparse rows: identity matrices of size `block`, one below the other.
#include "element.cuh"
#include "geometry.cuh"

SWITCHES(COLUMN)

HOST struct SparseFilterArgs {
    COLUMN* indptr;
    COLUMN* indices;
    ELEMENT* data;
    i64 rows;
    Divisor block;
};

KERNEL(filter_sparse, SparseFilterArgs, 256) {
    Index row = (Index)blockIdx.x * 256 + (Index)threadIdx.x;
    if (row > (Index)args.rows) return;
    args.indptr[row] = (COLUMN)row;
    if (row == (Index)args.rows) return;
    args.indices[row] = (COLUMN)(row - divide(row, args.block) * (Index)args.block.by);
    args.data[row] = from_acc<ELEMENT>(1);
}
