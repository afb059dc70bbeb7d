// Sums over positions of products of a patch's entries, in tiles of the lower triangle. Patches are read
// where they lie in the input.
#include "patches.cuh"
#include "symmetric.cuh"

SWITCHES(A_VECTOR)

HOST struct PatchProductsArgs {
    Patches patches;
    Acc* sums;
    Triangle triangle;
};

KERNEL_RESIDENT(patch_products, PatchProductsArgs, PRODUCT_THREADS, RESIDENT_BLOCKS) {
    TriangleWork now = triangle_work(args.triangle, args.sums);
    PatchColumnLoader<A_VECTOR> entries(args.patches, now.work.batch);
    product(entries, entries, now.work, now.target);
}
