// C = alpha·A·B + beta·C for each product of a batch, with C by rows.
#include "product.cuh"

SWITCHES(A_ALONG_K, A_VECTOR, B_ALONG_K, B_VECTOR, C_VECTOR, SUM)

HOST struct GemmArgs {
    const ELEMENT* a;
    const ELEMENT* b;
    OUTPUT* c;
    Acc* parts;
    Tiling tiling;
    i64 a_row, a_term, a_batch;
    i64 b_column, b_term, b_batch;
    i64 c_row, c_batch;
    f64 alpha, beta;
};

struct GemmTarget {
    typedef OUTPUT Value;
    static constexpr int VECTOR = C_VECTOR;
    OUTPUT* base;
    Index rows, columns, row_step;
    Acc alpha, beta;
    DEVICE GemmTarget(const GemmArgs& args, Index batch)
        : base(args.c + batch * args.c_batch), rows((Index)args.tiling.rows.by),
          columns((Index)args.tiling.columns.by), row_step((Index)args.c_row), alpha((Acc)args.alpha),
          beta((Acc)args.beta) {}
    DEVICE Line row(Index r) const { return Line{r, r < rows ? r * row_step : -1}; }
    DEVICE Index column(Index c) const { return c < columns ? c : -1; }
    DEVICE Index nth(Index at) const { return at; }
    DEVICE Acc start(Index, Index) const { return 0; }
    DEVICE OUTPUT value(const Line& line, Index c, Acc sum) const {
        Acc value = alpha * sum;
        // With beta 0 what C has been does not count, not even a NaN.
        bool inside = line.offset >= 0 && c < columns;
        if (beta != 0 && inside) value = fused(beta, to_acc(base[line.offset + c]), value);
        return from_acc<OUTPUT>(value);
    }
};

#ifdef SUM
KERNEL(gemm_sum, GemmArgs, 256) { add_parts<GemmTarget>(args); }
#else
KERNEL_RESIDENT(gemm, GemmArgs, PRODUCT_THREADS, RESIDENT_BLOCKS) {
    Work now = work(args.tiling);
    Index rows = (Index)args.tiling.rows.by, columns = (Index)args.tiling.columns.by;
    Index depth = (Index)args.tiling.depth;
    MatrixLoader<A_ALONG_K, A_VECTOR> a(args.a + now.batch * args.a_batch, rows, depth, (Index)args.a_row,
                                        (Index)args.a_term);
    MatrixLoader<B_ALONG_K, B_VECTOR> b(args.b + now.batch * args.b_batch, columns, depth, (Index)args.b_column,
                                        (Index)args.b_term);
    tile<GemmTarget>(a, b, now, args);
}
#endif
