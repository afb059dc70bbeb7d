// Sums over examples of products of a vector's elements, in tiles of the lower triangle.
#include "symmetric.cuh"

SWITCHES(A_VECTOR)

HOST struct VectorProductsArgs {
    const ELEMENT* vectors;  // [examples, groups, rows]
    Acc* sums;
    Triangle triangle;
    i64 example;  // from one example's vectors to the next's
};

KERNEL_RESIDENT(vector_products, VectorProductsArgs, PRODUCT_THREADS, RESIDENT_BLOCKS) {
    TriangleWork now = triangle_work(args.triangle, args.sums);
    Index rows = (Index)args.triangle.rows;
    MatrixLoader<false, A_VECTOR> elements(args.vectors + now.work.batch * rows, rows, (Index)args.triangle.depth, 1,
                                           (Index)args.example);
    product(elements, elements, now.work, now.target);
}
