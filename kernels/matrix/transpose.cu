// The transpose of compressed sparse rows, their indices of type COLUMN.
//
// The entries are sorted by column, 8 bits at a time from the lowest: entries of equal digits keep their
// order, so that those of a column stay in the order of their rows. A block has a tile of the entries, a
// warp a contiguous part of the tile.
#include "element.cuh"
#include "geometry.cuh"

SWITCHES(COLUMN)

HOST struct TransposeArgs {
    const COLUMN* indptr;
    const COLUMN* indices;
    const ELEMENT* data;
    COLUMN* transposed_indptr;
    COLUMN* transposed_indices;
    ELEMENT* transposed_data;
    const COLUMN* keys;    // what this pass sorts by
    const COLUMN* entries; // what it sorts; null: 0, 1, 2, …
    COLUMN* sorted_keys;
    COLUMN* sorted_entries;
    COLUMN* digits; // [digit, tile]: how often the digit occurs, then where its entries go
    i64 rows, columns, count, tiles;
    i64 shift; // the digit's lowest bit
};

#define TILE 4096
#define WARPS 8

DEVICE int digit_of(COLUMN key, i64 shift) { return (int)(key >> shift) & 255; }

DEVICE int population(u32 bits) {
    bits -= bits >> 1 & 0x55555555u;
    bits = (bits & 0x33333333u) + (bits >> 2 & 0x33333333u);
    return (int)(((bits + (bits >> 4)) & 0x0f0f0f0fu) * 0x01010101u >> 24);
}

KERNEL(count_digits, TransposeArgs, 256) {
    SHARED(i32, counts, 256);
    counts[threadIdx.x] = 0;
    barrier();
    i64 first = (i64)blockIdx.x * TILE, end = smaller(first + TILE, args.count);
    for (i64 e = first + threadIdx.x; e < end; e += 256)
        atomic_add(&counts[digit_of(args.keys[e], args.shift)], 1);
    barrier();
    args.digits[threadIdx.x * args.tiles + blockIdx.x] = counts[threadIdx.x];
}

KERNEL(place_digits, TransposeArgs, 256) {
    SHARED(COLUMN, next, WARPS * 256);
    int thread = (int)threadIdx.x, warp = thread / 32, lane = thread % 32;
    for (int i = thread; i < WARPS * 256; i += 256) next[i] = 0;
    barrier();
    i64 first = (i64)blockIdx.x * TILE + warp * (TILE / WARPS);
    i64 end = smaller(first + TILE / WARPS, args.count);
    for (i64 e = first + lane; e < end; e += 32)
        atomic_add(&next[warp * 256 + digit_of(args.keys[e], args.shift)], (COLUMN)1);
    barrier();
    // Where each warp's entries of the digit `thread` begin.
    COLUMN start = args.digits[thread * args.tiles + blockIdx.x];
    for (int w = 0; w < WARPS; ++w) {
        COLUMN own = next[w * 256 + thread];
        next[w * 256 + thread] = start;
        start += own;
    }
    barrier();
    for (i64 round = first; round < end; round += 32) {
        i64 e = round + lane;
        bool valid = e < end;
        COLUMN key = valid ? args.keys[e] : 0;
        int digit = digit_of(key, args.shift);
        u32 peers = warp_ballot(valid);
        for (int bit = 0; bit < 8; ++bit) {
            bool set = digit >> bit & 1;
            u32 having = warp_ballot(set);
            peers &= set ? having : ~having;
        }
        COLUMN start = next[warp * 256 + digit];
        int before = population(peers & ((1u << lane) - 1)), all = population(peers);
        warp_barrier();
        if (valid) {
            args.sorted_keys[start + before] = key;
            args.sorted_entries[start + before] = args.entries ? args.entries[e] : (COLUMN)e;
            if (before == all - 1) next[warp * 256 + digit] = start + all;
        }
        warp_barrier();
    }
}

// Exclusive prefix sums, in place, by one block.
KERNEL(scan, TransposeArgs, 1024) {
    SHARED(COLUMN, warp_sums, 32);
    int thread = (int)threadIdx.x, warp = thread / 32, lane = thread % 32;
    COLUMN carry = 0;
    i64 count = 256 * args.tiles;
    for (i64 tile = 0; tile < count; tile += 4096) {
        i64 first = tile + thread * 4;
        COLUMN own[4], sum = 0;
        UNROLL
        for (int i = 0; i < 4; ++i) {
            own[i] = first + i < count ? args.digits[first + i] : 0;
            sum += own[i];
        }
        COLUMN upto = sum;
        for (int step = 1; step < 32; step *= 2) {
            COLUMN other = shuffle(upto, lane >= step ? lane - step : 0);
            if (lane >= step) upto += other;
        }
        if (lane == 31) warp_sums[warp] = upto;
        barrier();
        COLUMN before = carry + upto - sum;
        for (int w = 0; w < 32; ++w) {
            COLUMN other = warp_sums[w];
            if (w < warp) before += other;
            carry += other;
        }
        UNROLL
        for (int i = 0; i < 4; ++i) {
            if (first + i < count) args.digits[first + i] = before;
            before += own[i];
        }
        barrier();
    }
}

// The first of `count` ascending numbers that is not below `bound`.
DEVICE i64 lower_bound(const COLUMN* numbers, i64 count, i64 bound) {
    i64 low = 0, high = count;
    while (low < high) {
        i64 middle = (low + high) / 2;
        if (numbers[middle] < bound)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

KERNEL(gather_entries, TransposeArgs, 256) {
    i64 at = (i64)blockIdx.x * 256 + threadIdx.x;
    if (at >= args.count) return;
    COLUMN entry = args.entries[at];
    // The row that holds the entry: the last that begins at it or before.
    args.transposed_indices[at] = (COLUMN)(lower_bound(args.indptr, args.rows + 1, (i64)entry + 1) - 1);
    args.transposed_data[at] = args.data[entry];
}

KERNEL(find_pointers, TransposeArgs, 256) {
    i64 column = (i64)blockIdx.x * 256 + threadIdx.x;
    if (column > args.columns) return;
    args.transposed_indptr[column] = (COLUMN)lower_bound(args.keys, args.count, column);
}
