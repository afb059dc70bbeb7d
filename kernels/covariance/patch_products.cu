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

// Blocks on a multiprocessor at a time: where both factors' offsets are worked out element by element, or
// accumulators are wide, two would need more registers than there are.
constexpr int RESIDENT = PRODUCT_THREADS == 256 && (sizeof(Acc) == 8 || TILE_ROWS > 64 || A_VECTOR == 1) ? 1 : 2;

KERNEL_RESIDENT(patch_products, PatchProductsArgs, PRODUCT_THREADS, RESIDENT) {
    TriangleWork now = triangle_work(args.triangle, args.sums);
    PatchColumnLoader<A_VECTOR> entries(args.patches, now.work.batch);
    product(entries, entries, now.work, now.target);
}
