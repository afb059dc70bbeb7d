// The transpose of compressed sparse rows, their indices of type COLUMN.
//
// The entries, each with its row and its value, are sorted by column, BITS or fewer bits at a time from the
// lowest: entries of equal digits keep their order, so that those of a column stay in the order of their rows.
// A block has a tile of the entries, a warp a contiguous part of the tile. It sorts the tile in shared memory, so
// that what goes to neighbouring places is written by neighbouring threads.
#include "element.cuh"
#include "geometry.cuh"

SWITCHES(COLUMN, THREADS)

HOST struct TransposeArgs {
    const COLUMN* indptr;
    COLUMN* transposed_indptr;
    const COLUMN* columns; // what this pass sorts by
    const COLUMN* rows;    // null in the first pass: `indptr` says
    const ELEMENT* values;
    COLUMN* sorted_columns;
    COLUMN* sorted_rows;
    ELEMENT* sorted_values;
    COLUMN* counters; // [digit, tile]: how often the digit occurs, then where its entries go
    COLUMN* sums;     // of a chunk of counters each, then of all before it
    i64 row_count, column_count, count, tiles, counter_count, chunks;
    i64 shift, bits, mask; // of the digit
};

#define BITS 9
#define DIGITS (1 << BITS)
#define WARPS (THREADS / 32)
#define EACH 8 // entries of a thread
#define TILE (EACH * THREADS)
// Counters that a block scans.
#define CHUNK 4096

DEVICE int digit_of(const TransposeArgs& args, COLUMN column) {
    return (int)(column >> args.shift) & (int)args.mask;
}

DEVICE int population(u32 bits) {
    bits -= bits >> 1 & 0x55555555u;
    bits = (bits & 0x33333333u) + (bits >> 2 & 0x33333333u);
    return (int)(((bits + (bits >> 4)) & 0x0f0f0f0fu) * 0x01010101u >> 24);
}

KERNEL(count_digits, TransposeArgs, THREADS) {
    SHARED(i32, counts, DIGITS);
    for (int digit = (int)threadIdx.x; digit < DIGITS; digit += THREADS) counts[digit] = 0;
    barrier();
    i64 first = (i64)blockIdx.x * TILE;
    int own = (int)smaller<i64>(TILE, args.count - first);
    UNROLL
    for (int i = 0; i < EACH; ++i) {
        int at = i * THREADS + (int)threadIdx.x;
        if (at < own) atomic_add(&counts[digit_of(args, args.columns[first + at])], 1);
    }
    barrier();
    for (int digit = (int)threadIdx.x; digit <= (int)args.mask; digit += THREADS)
        args.counters[digit * args.tiles + blockIdx.x] = counts[digit];
}

// The sum of `own` over the threads before this one. All threads of the block call it.
template <typename T, int BLOCK> DEVICE T sum_before(T own, T (&warp_sums)[BLOCK / 32], T& all) {
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    T upto = own;
    for (int step = 1; step < 32; step *= 2) {
        T other = shuffle(upto, lane >= step ? lane - step : 0);
        if (lane >= step) upto += other;
    }
    if (lane == 31) warp_sums[warp] = upto;
    barrier();
    T before = upto - own;
    all = 0;
    UNROLL_BY(4)
    for (int w = 0; w < BLOCK / 32; ++w) {
        if (w < warp) before += warp_sums[w];
        all += warp_sums[w];
    }
    barrier();
    return before;
}

// Exclusive prefix sums of up to CHUNK numbers, in place; gives `before` and all of them together.
DEVICE COLUMN scan(COLUMN* numbers, i64 count, COLUMN before, COLUMN (&warp_sums)[32]) {
    COLUMN own[4], sum = 0, all;
    int first = (int)threadIdx.x * 4;
    UNROLL
    for (int i = 0; i < 4; ++i) {
        own[i] = first + i < count ? numbers[first + i] : 0;
        sum += own[i];
    }
    COLUMN upto = before + sum_before<COLUMN, 1024>(sum, warp_sums, all);
    UNROLL
    for (int i = 0; i < 4; ++i) {
        if (first + i < count) numbers[first + i] = upto;
        upto += own[i];
    }
    return before + all;
}

KERNEL(sum_chunks, TransposeArgs, 1024) {
    SHARED(COLUMN, warp_sums, 32);
    i64 first = (i64)blockIdx.x * CHUNK, end = smaller(first + CHUNK, args.counter_count);
    COLUMN sum = 0, all;
    for (i64 at = first + threadIdx.x; at < end; at += 1024) sum += args.counters[at];
    sum_before<COLUMN, 1024>(sum, warp_sums, all);
    if (threadIdx.x == 0) args.sums[blockIdx.x] = all;
}

// By one block.
KERNEL(scan_sums, TransposeArgs, 1024) {
    SHARED(COLUMN, warp_sums, 32);
    COLUMN before = 0;
    for (i64 first = 0; first < args.chunks; first += CHUNK)
        before = scan(args.sums + first, args.chunks - first, before, warp_sums);
}

KERNEL(scan_chunks, TransposeArgs, 1024) {
    SHARED(COLUMN, warp_sums, 32);
    i64 first = (i64)blockIdx.x * CHUNK;
    scan(args.counters + first, args.counter_count - first, args.sums[blockIdx.x], warp_sums);
}

// The first of `count` ascending numbers that is not below `bound`.
DEVICE COLUMN lower_bound(const COLUMN* numbers, COLUMN count, COLUMN bound) {
    COLUMN low = 0, high = count;
    while (low < high) {
        COLUMN middle = low + (high - low) / 2;
        if (numbers[middle] < bound)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

// Of a thread's entries: the number in the tile, so that a warp's are neighbours.
DEVICE int entry(int i) { return (int)threadIdx.x / 32 * (32 * EACH) + i * 32 + (int)threadIdx.x % 32; }

// Puts what a thread has where it is in the sorted tile, in shared memory.
template <typename T>
DEVICE void stage(T* staged, const T (&own)[EACH], const i32 (&ranks)[EACH], int count) {
    UNROLL
    for (int i = 0; i < EACH; ++i)
        if (entry(i) < count) staged[ranks[i]] = own[i];
}
// The same of its entries' rows, by bisecting the row pointers between those of its warp's first and last entry.
DEVICE void stage_rows(COLUMN* staged, const TransposeArgs& args, i64 first, const i32 (&ranks)[EACH], int count) {
    int lane = (int)threadIdx.x % 32, end = entry(0) - lane + (lane == 0 ? 0 : 32 * EACH - 1);
    COLUMN beyond = (COLUMN)(first + smaller(end, count - 1) + 1);
    COLUMN row = lower_bound(args.indptr, (COLUMN)args.row_count, beyond) - 1;
    COLUMN first_row = shuffle(row, 0), several = shuffle(row, 1) - first_row;
    const COLUMN* after = args.indptr + first_row + 1;
    COLUMN next = (COLUMN)first + entry(0) + 1;
    UNROLL
    for (int i = 0; i < EACH; ++i)
        if (entry(i) < count) staged[ranks[i]] = first_row + lower_bound(after, several, next + 32 * i);
}
// Hands the sorted tile on, neighbours to neighbouring threads.
template <typename T, typename Put> DEVICE void hand_on(const T* staged, int count, const Put& put) {
    barrier();
    UNROLL
    for (int i = 0; i < EACH; ++i) {
        int at = i * THREADS + (int)threadIdx.x;
        if (at < count) put(at, staged[at]);
    }
    barrier();
}
template <typename T> DEVICE void read(T (&own)[EACH], const T* from, int count) {
    UNROLL
    for (int i = 0; i < EACH; ++i) own[i] = entry(i) < count ? from[entry(i)] : zero<T>();
}

// The larger of two types, whose elements take turns in shared memory.
template <bool FIRST, typename A, typename B> struct Either {
    typedef A type;
};
template <typename A, typename B> struct Either<false, A, B> {
    typedef B type;
};

KERNEL_RESIDENT(place_digits, TransposeArgs, THREADS, THREADS == 512 ? 2 : 3) {
    // Of each warp and digit: how often it occurs, then the place in the sorted tile of its first entry.
    SHARED(u16, next, WARPS * DIGITS);
    SHARED(COLUMN, offsets, DIGITS); // from a place in the sorted tile to where its entry goes
    SHARED(u16, digits, TILE);      // of the sorted tile
    SHARED(i32, warp_sums, WARPS);
    typedef Either<(sizeof(COLUMN) > sizeof(ELEMENT)), COLUMN, ELEMENT>::type Wider;
    SHARED(Wider, staged, TILE);
    int thread = (int)threadIdx.x, lane = thread % 32;
    u16* own_next = next + thread / 32 * DIGITS;
    i64 first = (i64)blockIdx.x * TILE;
    int count = (int)smaller<i64>(TILE, args.count - first);
    COLUMN columns[EACH];
    i32 ranks[EACH];
    read(columns, args.columns + first, count);
    for (int i = thread; i < WARPS * DIGITS; i += THREADS) next[i] = 0;
    barrier();

    // The number of an entry among those of its warp and digit.
    UNROLL
    for (int i = 0; i < EACH; ++i) {
        bool valid = entry(i) < count;
        int digit = digit_of(args, columns[i]);
        u32 peers = warp_ballot(valid);
        for (int bit = 0; bit < (int)args.bits; ++bit) {
            bool set = digit >> bit & 1;
            u32 having = warp_ballot(set);
            peers &= set ? having : ~having;
        }
        int before = population(peers & ((1u << lane) - 1)), all = population(peers), start = own_next[digit];
        ranks[i] = start + before;
        warp_barrier();
        if (valid && before == all - 1) own_next[digit] = (u16)(start + all);
        warp_barrier();
    }
    barrier();

    // Where each warp's entries of a digit begin: a thread has neighbouring digits.
    constexpr int own_digits = DIGITS / THREADS;
    int occur = 0, all;
    for (int digit = thread * own_digits; digit < (thread + 1) * own_digits; ++digit) {
        UNROLL_BY(4)
        for (int warp = 0; warp < WARPS; ++warp) occur += next[warp * DIGITS + digit];
    }
    int start = sum_before<i32, THREADS>(occur, warp_sums, all);
    for (int digit = thread * own_digits; digit < (thread + 1) * own_digits; ++digit) {
        if (digit <= (int)args.mask) offsets[digit] = args.counters[digit * args.tiles + blockIdx.x] - start;
        UNROLL_BY(4)
        for (int warp = 0; warp < WARPS; ++warp) {
            u16& place = next[warp * DIGITS + digit];
            int own = place;
            place = (u16)start;
            start += own;
        }
    }
    barrier();
    UNROLL
    for (int i = 0; i < EACH; ++i) ranks[i] += own_next[digit_of(args, columns[i])];

    COLUMN* staged_indices = (COLUMN*)staged;
    stage(staged_indices, columns, ranks, count);
    hand_on(staged_indices, count, [&](int at, COLUMN column) {
        int digit = digit_of(args, column);
        digits[at] = (u16)digit;
        args.sorted_columns[offsets[digit] + at] = column;
    });
    if (args.rows) {
        COLUMN rows[EACH];
        read(rows, args.rows + first, count);
        stage(staged_indices, rows, ranks, count);
    } else {
        stage_rows(staged_indices, args, first, ranks, count);
    }
    hand_on(staged_indices, count,
            [&](int at, COLUMN row) { args.sorted_rows[offsets[digits[at]] + at] = row; });
    ELEMENT values[EACH];
    read(values, args.values + first, count);
    stage((ELEMENT*)staged, values, ranks, count);
    hand_on((const ELEMENT*)staged, count,
            [&](int at, ELEMENT value) { args.sorted_values[offsets[digits[at]] + at] = value; });
}

KERNEL(find_pointers, TransposeArgs, 256) {
    i64 column = (i64)blockIdx.x * 256 + threadIdx.x;
    if (column > args.column_count) return;
    args.transposed_indptr[column] = lower_bound(args.columns, (COLUMN)args.count, (COLUMN)column);
}
