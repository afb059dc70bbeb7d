// Every name of platform.cuh, and the packs of element.cuh, on operands whose answers the host works out:
// src/device/cuda/answers.rs. What goes wrong here is of the platform, whatever kernels say.
#include "element.cuh"

struct Args {
    u64 from, to;
    i64 count;
};

// Each thread's number, exchanged within warps and within the block.
KERNEL(lanes, Args, 96) {
    SHARED(u32, words, 96);
    int i = (int)threadIdx.x;
    u32 mine = load((const u32*)args.from + i);
    u32 found[10];
    found[0] = shuffle(mine, 7 * i + 3);
    found[1] = shuffle_down(mine, 5);
    found[2] = shuffle_xor(mine, 9);
    found[3] = warp_ballot(mine & 1u);
    found[4] = (u32)(2.0 * shuffle_xor((f64)mine + 0.5, 16));
    found[5] = (u32)(shuffle_down((i64)mine << 33, 1) >> 33);
    found[6] = bits_of(shuffle((f32)mine, 31 - i % 32));
    found[7] = (u32)shuffle_xor(-(i32)mine, 1);
    words[i] = mine;
    warp_barrier();
    found[8] = words[i ^ 1];
    barrier();
    found[9] = words[95 - i];
    UNROLL
    for (int k = 0; k < 10; ++k) ((u32*)args.to)[10 * i + k] = found[k];
}

// Four matrices of 8×8, whose rows lie apart and in another order.
KERNEL(matrices, Args, 32) {
    SHARED(u16, tile, 32 * 24);
    int lane = (int)threadIdx.x;
    u16* row = tile + lane * 5 % 32 * 24;
    UNROLL
    for (int c = 0; c < 8; ++c) row[c] = ((const u16*)args.from)[8 * lane + c];
    warp_barrier();
    u32 plain[4], transposed[4];
    load_matrices(plain, row);
    load_matrices_transposed(transposed, row);
    UNROLL
    for (int m = 0; m < 4; ++m) {
        ((u32*)args.to)[8 * lane + m] = plain[m];
        ((u32*)args.to)[8 * lane + 4 + m] = transposed[m];
    }
}

DEVICE u32 as_it_is(u32 bits) { return bits; }
// A lane's numbers: four of a, two of b, four of d.
#define PRODUCT(name, MMA, Number, Operand, OPERAND)                                                   \
    KERNEL(name, Args, 32) {                                                                           \
        const Operand* from = (const Operand*)args.from + 10 * threadIdx.x;                            \
        Operand a[4], b[2];                                                                            \
        Number d[4];                                                                                   \
        UNROLL                                                                                         \
        for (int i = 0; i < 4; ++i) {                                                                  \
            a[i] = OPERAND(from[i]);                                                                   \
            d[i] = ((const Number*)from)[6 + i];                                                       \
        }                                                                                              \
        UNROLL                                                                                         \
        for (int i = 0; i < 2; ++i) b[i] = OPERAND(from[4 + i]);                                       \
        MMA(d, a, b);                                                                                  \
        UNROLL                                                                                         \
        for (int i = 0; i < 4; ++i) ((Number*)args.to)[4 * threadIdx.x + i] = d[i];                    \
    }
PRODUCT(product_f16, mma_f16, f32, u32, as_it_is)
#if __CUDA_ARCH__ >= 800
DEVICE u32 rounded(u32 bits) { return to_tf32(f32_of(bits)); }
PRODUCT(product_bf16, mma_bf16, f32, u32, as_it_is)
PRODUCT(product_tf32, mma_tf32, f32, u32, rounded)
DEVICE f64 as_it_is(f64 value) { return value; }
PRODUCT(product_f64, mma_f64, f64, f64, as_it_is)
#endif

// Two groups of copies, the first of which is read while the second may be under way.
KERNEL(copies, Args, 64) {
    SHARED(u16, wide, 2 * 64 * 8);
    SHARED(u64, middle, 2 * 64);
    SHARED(u32, narrow, 2 * 64);
    int i = (int)threadIdx.x;
    const u16* from = (const u16*)args.from;
    const u64* from_middle = (const u64*)(from + 2 * 64 * 8);
    const u32* from_narrow = (const u32*)(from_middle + 2 * 64);
    UNROLL
    for (int group = 0; group < 2; ++group) {
        int at = 64 * group + i;
        copy_async_16(wide + 8 * at, from + 8 * at, at % 3 != 0);
        copy_async_8(middle + at, from_middle + at, at % 7 != 0);
        copy_async_4(narrow + at, from_narrow + at, at % 5 != 0);
        copy_async_commit();
    }
    UNROLL
    for (int group = 0; group < 2; ++group) {
        if (group == 0)
            copy_async_wait<1>();
        else
            copy_async_wait<0>();
        barrier();
        // What another thread has copied.
        int at = 64 * group + 63 - i;
        u32* to = (u32*)args.to + 7 * at;
        UNROLL
        for (int w = 0; w < 4; ++w) to[w] = (u32)wide[8 * at + 2 * w] | (u32)wide[8 * at + 2 * w + 1] << 16;
        to[4] = narrow[at];
        to[5] = (u32)middle[at];
        to[6] = (u32)(middle[at] >> 32);
    }
}

// Six words for each number, then two f64 for each.
KERNEL(conversions, Args, 128) {
    i64 at = (i64)blockIdx.x * 128 + (i64)threadIdx.x;
    if (at >= args.count) return;
    u32 bits = ((const u32*)args.from)[at];
    f32 value = f32_of(bits);
    u32* to = (u32*)args.to + 6 * at;
    to[0] = f32_to_f16(value);
    to[1] = bits_of(f16_to_f32((u16)bits));
#if __CUDA_ARCH__ >= 800
    to[2] = to_tf32(value);
#else
    to[2] = 0;
#endif
    to[3] = bits_of(fused(value, 3.0f, 0.1f));
    to[4] = bits_of(smaller(value, 1.0f));
    to[5] = bits_of(larger(value, 1.0f));
    f64* wide = (f64*)((u32*)args.to + 6 * args.count) + 2 * at;
    wide[0] = fused((f64)value, 0.7, -0.1);
    wide[1] = square_root(larger((f64)value, -(f64)value));
}

// The same 16 bytes of each thread, moved in seven ways.
KERNEL_RESIDENT(moves, Args, 64, 2) {
    int i = (int)threadIdx.x;
    const u32* from = (const u32*)args.from + 4 * i;
    u32* to = (u32*)args.to + 4 * i;
    u32 words[4];
    UNROLL_BY(2)
    for (int w = 0; w < 4; ++w) words[w] = load(from + w);
    u32 first[2] = {words[0], words[1]}, second[2] = {words[2], words[3]};
    store_words(to, words);
    to += 4 * 64;
    store_words(to, first);
    store_words(to + 2, second);
    to += 4 * 64;
    for (int w = 0; w < 4; ++w) store_streaming(to + w, words[w]);
    to += 4 * 64;
    store_streaming((Pack<f32, 4>*)to, load((const Pack<f32, 4>*)from));
    to += 4 * 64;
    store_pack((f64*)to, load_pack<f64, 2>((const f64*)from));
    to += 4 * 64;
    store_global((bf16*)to, load_pack<bf16, 8>((const bf16*)from));
    to += 4 * 64;
    store_global((f32*)to, load_pack<f32, 2>((const f32*)from));
    store_global((u16*)(to + 2), load_pack<u16, 2>((const u16*)(from + 2)));
    store_global((u16*)(to + 3), load_pack<u16, 2>((const u16*)(from + 3)));
}

// A counter of 32 bits up, one of 64 bits down by more than 32 hold, in a grid of 3×2×2 blocks: what each
// thread found there.
KERNEL(counters, Args, 64) {
    i64 block = (i64)((blockIdx.z * 2 + blockIdx.y) * 3 + blockIdx.x);
    i64 at = block * 64 + (i64)threadIdx.x;
    i64* to = (i64*)args.to;
    to[2 + 2 * at] = atomic_add((i32*)to, 1);
    to[3 + 2 * at] = atomic_add(to + 1, -((i64)1 << 40));
}

// Blocks take turns at two counters, three at each, in a grid of 6: each brings the numbers of its threads, times
// `count`, and the last at a counter adds up what the three have brought. Counters are left as they were.
KERNEL(arrivals, Args, 64) {
    i32 thread = (i32)threadIdx.x, block = (i32)blockIdx.x, of = block % 2;
    i32 *counters = (i32*)args.to, *sums = counters + 2, *parts = sums + 2 * 64;
    parts[block * 64 + thread] = (i32)args.count * (block * 64 + thread);
    if (!last_to_arrive(counters + of, 3)) return;
    i32 sum = 0;
    for (int other = of; other < 6; other += 2) sum += parts[other * 64 + 63 - thread];
    sums[of * 64 + thread] += sum;
}
