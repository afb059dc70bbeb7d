// What the lanes of a warp do together, and copies in the background.
#pragma once
#include "numbers.h"
#include "sanitizer.h"
#include "scheduler.h"

namespace simulator {

inline u32 lane() { return here->running % WARP; }

// What the lanes of the running thread's warp have accessed is ordered before what they access from now on.
inline void order_warp() {
    Block* block = here;
    block->warps[block->running / WARP].passed = ++block->clock;
}

template <typename T> struct Exchange {
    T value;
    u32 from;  // the lane whose value this one gets
    T result;
};
template <typename T> T exchange(const Site& site, T value, u32 from) {
    if (lane() == 0) COUNT(EXCHANGES);
    Exchange<T> mine = {value, from, value};
    meet<Exchange<T>>(site, mine, [](Exchange<T>* const* lanes, u32 count) {
        for (u32 i = 0; i < count; ++i)
            if (lanes[i]->from < count)
                lanes[i]->result = lanes[lanes[i]->from]->value;
            else
                __builtin_memset(&lanes[i]->result, POISON, sizeof(T));
    });
    return mine.result;
}
inline void need_whole_warp(const char* what) {
    Block* block = here;
    if (warp_size(block, block->running / WARP) < WARP) fail("%s in a warp of fewer than 32 threads", what);
}

struct Row {
    const u16* from;
    u32* to;
};
template <bool transposed> void load_rows(const Site& site, u32 (&to)[4], const void* row) {
    need_whole_warp(site.what);
    RECORD(MATRIX_ROW, (u64)row, 16, (u32)site.line);
    if ((u64)row % 16) fail("%s at line %d: address %p is no multiple of 16", site.what, site.line, row);
    if (!array_of(row, 16)) fail("%s at line %d: not in shared memory", site.what, site.line);
    Row mine = {(const u16*)row, to};
    meet<Row>(site, mine, [](Row* const* lanes, u32) {
        for (u32 l = 0; l < WARP; ++l)
            for (u32 m = 0; m < 4; ++m) {
                u32 at = l / 4, pair = 2 * (l % 4);
                Row* const* rows = lanes + 8 * m;
                u32 low = transposed ? rows[pair]->from[at] : rows[at]->from[pair];
                u32 high = transposed ? rows[pair + 1]->from[at] : rows[at]->from[pair + 1];
                lanes[l]->to[m] = low | high << 16;
            }
    });
}

// Operands of 16 bits lie in pairs in a word, the lower k in the lower half; wider ones alone. A number is what
// products are, and what they are added up in.
struct PairsOfF16 {
    typedef u32 Word;
    typedef f32 Number;
    static constexpr u32 pairs = 2;
    static constexpr Count count = MMA_F16;
    static f32 value(u32 bits, u32 half) { return f16_to_f32((u16)(bits >> 16 * half)); }
};
struct PairsOfBf16 {
    typedef u32 Word;
    typedef f32 Number;
    static constexpr u32 pairs = 2;
    static constexpr Count count = MMA_BF16;
    static f32 value(u32 bits, u32 half) { return f32_of(bits >> 16 * half << 16); }
};
struct Tf32 {
    typedef u32 Word;
    typedef f32 Number;
    static constexpr u32 pairs = 1;
    static constexpr Count count = MMA_TF32;
    static f32 value(u32 bits, u32) { return f32_of(bits & 0xffffe000u); }
};
struct Double {
    typedef f64 Word;
    typedef f64 Number;
    static constexpr u32 pairs = 1;
    static constexpr Count count = MMA_F64;
    static f64 value(f64 word, u32) { return word; }
};

// Products of f32 are exact, and those of f64 are rounded once, with their sum.
inline f32 add_product(f32 sum, f32 a, f32 b) { return sum + a * b; }
inline f64 add_product(f64 sum, f64 a, f64 b) { return __builtin_fma(a, b, sum); }

template <typename Operand> struct Product {
    typename Operand::Number* d;
    const typename Operand::Word *a, *b;
};
// d += a·b, every sum in the order of k, rounded after each step.
template <typename Operand>
void multiply(const Site& site, typename Operand::Number (&d)[4], const typename Operand::Word (&a)[4],
              const typename Operand::Word (&b)[2]) {
    need_whole_warp(site.what);
    Product<Operand> mine = {d, a, b};
    meet<Product<Operand>>(site, mine, [](Product<Operand>* const* lanes, u32) {
        constexpr u32 P = Operand::pairs, K = 8 * P;
        COUNT(Operand::count);
        typename Operand::Number left[16][K], right[K][8];
        for (u32 l = 0; l < WARP; ++l)
            for (u32 p = 0; p < P; ++p)
                for (u32 high = 0; high < 2; ++high) {
                    u32 g = l / 4, k = P * (l % 4) + p + high * (K / 2);
                    left[g][k] = Operand::value(lanes[l]->a[2 * high], p);
                    left[g + 8][k] = Operand::value(lanes[l]->a[2 * high + 1], p);
                    right[k][g] = Operand::value(lanes[l]->b[high], p);
                }
        for (u32 l = 0; l < WARP; ++l)
            for (u32 i = 0; i < 4; ++i) {
                u32 row = l / 4 + i / 2 * 8, column = 2 * (l % 4) + i % 2;
                typename Operand::Number sum = lanes[l]->d[i];
                for (u32 k = 0; k < K; ++k) sum = add_product(sum, left[row][k], right[k][column]);
                lanes[l]->d[i] = sum;
            }
    });
}

// A copy may happen at any time between its issue and the wait for it. Until then its target reads as
// poison, which is what a thread sees that still reads what was there before or reads too early; the
// source is read at the wait.
inline void start_copy(void* to, const void* from, bool valid, u32 bytes) {
    if (valid) RECORD(bytes == 16 ? COPY_LOAD_PAST_L1 : COPY_LOAD, (u64)from, bytes, bytes);
    RECORD(COPY_STORE, (u64)to, bytes, bytes);
    PAUSED;
    Block* block = here;
    Thread& thread = block->all[block->running];
    if ((u64)to % bytes || (u64)from % bytes)
        fail("asynchronous copy of %u bytes from %p to %p: misaligned", bytes, from, to);
    if (!array_of(to, bytes)) fail("asynchronous copy to %p: not in shared memory", to);
    u32 index = block->free_copy;
    if (index != NONE)
        block->free_copy = block->copies[index].next;
    else if (block->copies_used < MOST_COPIES)
        index = block->copies_used++;
    else
        fail("more than %u asynchronous copies under way", MOST_COPIES);
    block->copies[index] = Copy{(char*)to, (const char*)from, bytes, thread.groups, NONE, valid};
    if (thread.oldest == NONE)
        thread.oldest = index;
    else
        block->copies[thread.youngest].next = index;
    thread.youngest = index;
    __builtin_memset(to, POISON, bytes);
}
inline void finish_copies(u32 groups_left) {
    PAUSED;
    Block* block = here;
    Thread& thread = block->all[block->running];
    while (thread.oldest != NONE) {
        u32 index = thread.oldest;
        Copy& copy = block->copies[index];
        if (copy.group + groups_left >= thread.groups) return;
        if (copy.valid)
            __builtin_memcpy(copy.to, copy.from, copy.bytes);
        else
            __builtin_memset(copy.to, 0, copy.bytes);
#ifdef CONVMAT_SIMULATOR_SANITIZER
        arrived((u64)copy.to, copy.bytes);
#endif
        thread.oldest = copy.next;
        copy.next = block->free_copy;
        block->free_copy = index;
    }
}

}  // namespace simulator
