// Sums of products of few entries, as those of a depthwise layer's patches: each thread has all of them in
// its registers, and patches of its own. A tile of a matrix product would be all but empty.
#include "patches.cuh"

SWITCHES(ENTRIES)

HOST struct FewArgs {
    Patches patches;
    Acc* sums;  // [pieces, groups, lower triangle]
    i64 groups;
    i64 length;  // outputs of a piece, over all images
};

constexpr int FEW_SUMS = ENTRIES * (ENTRIES + 1) / 2;

// Block (groups, piece). Channels first, threads take turns along the outputs of one group; channels last, a
// warp's lanes have 32 groups, neighbours in the input, and its warps take turns.
KERNEL(few_products, FewArgs, 256) {
    SHARED(Acc, shared, 256);
    Index lane = (Index)threadIdx.x % 32, warp = (Index)threadIdx.x / 32, piece = (Index)blockIdx.y;
#if LAYOUT == CHANNELS_FIRST
    Index group = (Index)blockIdx.x, start = (Index)threadIdx.x, step = 256;
#else
    Index group = (Index)blockIdx.x * 32 + lane, start = warp, step = 8;
#endif
    Index first = piece * (Index)args.length;
    Index end = smaller<Index>(first + (Index)args.length, (Index)args.patches.count);
    bool there = group < (Index)args.groups;
    const ELEMENT* base = args.patches.source + group * args.patches.group;
    Acc sums[FEW_SUMS] = {};
    for (Index n = first + start; n < end && there; n += step) {
        Corner output = staying(args.patches, position_corner(args.patches, n));
        Acc values[ENTRIES];
        UNROLL
        for (int i = 0; i < ENTRIES; ++i) {
            Offset from = patch_offset(args.patches, output, term_corner(args.patches, i));
            values[i] = from.inside ? (Acc)to_acc(load(base + from.at)) : (Acc)0;
        }
        UNROLL
        for (int i = 0; i < ENTRIES; ++i) {
            UNROLL
            for (int j = 0; j <= i; ++j)
                sums[i * (i + 1) / 2 + j] = fused(values[i], values[j], sums[i * (i + 1) / 2 + j]);
        }
    }
    Acc* to = args.sums + (piece * args.groups + group) * FEW_SUMS;
    UNROLL
    for (int s = 0; s < FEW_SUMS; ++s) {
        Acc sum = sums[s];
#if LAYOUT == CHANNELS_FIRST
        UNROLL
        for (int half = 16; half > 0; half /= 2) sum += shuffle_xor(sum, half);
#endif
        // The previous sum's warps have been added up.
        barrier();
        shared[threadIdx.x] = sum;
        barrier();
        bool adds = warp == 0 && there && (LAYOUT == CHANNELS_LAST || lane == 0);
        if (!adds) continue;
        for (Index other = 1; other < 8; ++other) sum += shared[other * 32 + lane];
        to[s] = sum;
    }
}
