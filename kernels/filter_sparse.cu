// filter_sparse: the gathering filter as compressed sparse rows: the identity of size `block`, stacked.
#include "element.cuh"
#include "geometry.cuh"

struct FilterArgs {
    COLUMN* indptr;
    COLUMN* indices;
    ELEMENT* data;
    i64 rows;
    Divisor block;
};
static_assert(sizeof(FilterArgs) == ARGUMENT_BYTES, "the host's struct is another");

KERNEL(filter_sparse, FilterArgs, 256) {
    Index row = (Index)blockIdx.x * 256 + (Index)threadIdx.x;
    if (row > (Index)args.rows) return;
    args.indptr[row] = (COLUMN)row;
    if (row == (Index)args.rows) return;
    args.indices[row] = (COLUMN)(row - divide(row, args.block) * (Index)args.block.by);
    args.data[row] = from_acc<ELEMENT>(1);
}
