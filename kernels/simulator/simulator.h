// The names of platform.cuh for the host's C++ compiler: kernels run on the CPU, block by block, as on a
// device (of capability 8.0 unless the host says another), and are watched for mistakes that a GPU may hide.
//
//  - Threads run in an order drawn from a seed, each as far as it can.
//  - Shared memory begins as NaN (integers: -1), as device memory does.
//  - A barrier that not every thread of the block reaches, or a warp operation that not every lane
//    reaches, is an error. Threads that have ended do not count as arrived.
//  - An asynchronous copy leaves poison at its target until the thread that issued it waits for it; a
//    thread that ends before that is an error.
//  - Accesses out of bounds and divisions of integers by zero (where the processor traps them) are
//    errors. So is a write just past a shared array, which is seen when the block ends.
//  - Compiled to trap undefined behaviour, so are misaligned accesses, overflows of signed integers and
//    positions outside arrays; compiled to be watched, what sanitizer.h lists.
#pragma once
#include "sanitizer.h"
#include "scheduler.h"
#include "warp.h"

#define UNROLL

// The kernel, the entry that runs one block of it, and what the host checks before a launch.
#define KERNEL(name, Args, threads) SIMULATOR_KERNEL(name, Args, threads)
#define SIMULATOR_KERNEL(name, Args, threads)                                                          \
    static_assert(sizeof(Args) <= 4096, "a launch takes at most 4096 bytes of arguments");             \
    static_assert((threads) <= simulator::MOST_THREADS, "a block has at most 1024 threads");           \
    static void name(const Args& args);                                                                \
    extern "C" {                                                                                       \
    __attribute__((visibility("default"))) extern const u32 convmat_limits_##name[2];                  \
    const u32 convmat_limits_##name[2] = {(threads), sizeof(Args)};                                    \
    __attribute__((visibility("default"))) u32 convmat_block_##name(simulator::Launch* launch) {       \
        return simulator::run_block(launch, [](const void* args) { name(*(const Args*)args); });       \
    }                                                                                                  \
    }                                                                                                  \
    static void name(const Args& args)

// An array is known by the address of a variable, so that instances of a template have their own.
#define SHARED(type, name, count)                                                                      \
    static char name##_key;                                                                             \
    type(&name)[count] = *(type(*)[count])simulator::shared(&name##_key, sizeof(type[count]))

// The defaulted arguments say where a call stands.
#define SIMULATOR_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

DEVICE void barrier(SIMULATOR_HERE) {
    RECORD(simulator::MEETING, 0, 0, (u32)line);
    simulator::wait(simulator::here, {simulator::BARRIER, file, line});
}

namespace simulator {
// One thread's part of last_to_arrive(), between barriers.
UNCHECKED inline void arrive(i32* counter, i32 count, int line) {
    RECORD(ATOMIC, (u64)counter, sizeof(i32), (u32)line);
    Block* block = here;
    block->last = __atomic_fetch_add(counter, 1, __ATOMIC_ACQ_REL) == count - 1;
    if (block->last) __atomic_store_n(counter, 0, __ATOMIC_RELAXED);
#ifdef CONVMAT_SIMULATOR_SANITIZER
    note_arrival((u64)counter);
#endif
}
}  // namespace simulator

DEVICE void trap(const char* what, SIMULATOR_HERE) { simulator::fail("%s (%s:%d)", what, file, line); }

namespace simulator {
struct Nothing {};
}  // namespace simulator
DEVICE void warp_barrier(SIMULATOR_HERE) {
    simulator::Nothing mine;
    simulator::meet<simulator::Nothing>({"warp_barrier", file, line}, mine,
                                        [](simulator::Nothing* const*, u32) { simulator::order_warp(); });
}

// One access also where the host's compiler would read the parts that are used one by one.
template <int BYTES> struct WholeOf;
template <> struct WholeOf<1> { typedef u8 type; };
template <> struct WholeOf<2> { typedef u16 type; };
template <> struct WholeOf<4> { typedef u32 type; };
template <> struct WholeOf<8> { typedef u64 type; };
template <> struct WholeOf<16> { typedef unsigned __int128 type; };
template <typename T> DEVICE T load_whole(const T* from) {
    typename WholeOf<sizeof(T)>::type whole = *(const typename WholeOf<sizeof(T)>::type*)from;
    T value;
    __builtin_memcpy(&value, &whole, sizeof(T));
    return value;
}

template <int N> struct alignas(4 * N) Words {
    u32 at[N];
};
template <int N> DEVICE void store_words(void* to, const u32 (&words)[N]) {
    Words<N> copy;
    for (int i = 0; i < N; ++i) copy.at[i] = words[i];
    *(Words<N>*)to = copy;
}

template <typename T> DEVICE T shuffle(T value, int lane, SIMULATOR_HERE) {
    return simulator::exchange<T>({"shuffle", file, line}, value, (u32)lane % 32);
}
// A lane whose source lies outside the warp keeps its own value.
template <typename T> DEVICE T shuffle_down(T value, int delta, SIMULATOR_HERE) {
    u32 lane = simulator::lane(), from = lane + (u32)delta;
    return simulator::exchange<T>({"shuffle_down", file, line}, value, from < 32 ? from : lane);
}
template <typename T> DEVICE T shuffle_xor(T value, int mask, SIMULATOR_HERE) {
    u32 lane = simulator::lane(), from = lane ^ (u32)mask;
    return simulator::exchange<T>({"shuffle_xor", file, line}, value, from < 32 ? from : lane);
}
DEVICE u32 warp_ballot(bool value, SIMULATOR_HERE) {
    u32 mine = value;
    simulator::meet<u32>({"warp_ballot", file, line}, mine, [](u32* const* lanes, u32 count) {
        u32 bits = 0;
        for (u32 i = 0; i < count; ++i) bits |= *lanes[i] << i;
        for (u32 i = 0; i < count; ++i) *lanes[i] = bits;
    });
    return mine;
}

// Blocks run at the same time in threads of the host.
template <typename T> UNCHECKED T atomic_add_here(T* target, T value, int line) {
    RECORD(simulator::ATOMIC, (u64)target, sizeof(T), (u32)line);
    return __atomic_fetch_add(target, value, __ATOMIC_RELAXED);
}
DEVICE i32 atomic_add(i32* target, i32 value, SIMULATOR_HERE) { return atomic_add_here(target, value, line); }
DEVICE i64 atomic_add(i64* target, i64 value, SIMULATOR_HERE) { return atomic_add_here(target, value, line); }

DEVICE bool last_to_arrive(i32* counter, i32 count, SIMULATOR_HERE) {
    barrier(file, line);
    if (threadIdx.x == 0) simulator::arrive(counter, count, line);
    barrier(file, line);
    return simulator::here->last;
}

template <typename T> DEVICE void keep(T&) {}
template <typename T> DEVICE void keep_shared(T&) {}

DEVICE f32 fused(f32 a, f32 b, f32 c) {
    COUNT(simulator::FUSED_F32);
    return __builtin_fmaf(a, b, c);
}
DEVICE f64 fused(f64 a, f64 b, f64 c) {
    COUNT(simulator::FUSED_F64);
    return __builtin_fma(a, b, c);
}
DEVICE f64 square_root(f64 value) { return __builtin_sqrt(value); }

template <typename T> DEVICE T load(const T* from) {
#ifdef CONVMAT_SIMULATOR_SANITIZER
    simulator::record(simulator::LOAD_CONSTANT, (u64)from, sizeof(T), 0);
#endif
    if constexpr (sizeof(T) == 8 || sizeof(T) == 16) {
        // By one access, as on a GPU: of structs the compiler would read one element after the other.
        typedef u32 Words __attribute__((vector_size(sizeof(T)), may_alias));
        Words words = *(const Words*)from;
        T value;
        __builtin_memcpy(&value, &words, sizeof(T));
        return value;
    } else {
        return *from;
    }
}
template <typename T> DEVICE void store_streaming(T* to, T value) { *to = value; }

DEVICE void copy_async_16(void* to, const void* from, bool valid) {
    simulator::start_copy(to, from, valid, 16);
}
DEVICE void copy_async_8(void* to, const void* from, bool valid) {
    simulator::start_copy(to, from, valid, 8);
}
DEVICE void copy_async_4(void* to, const void* from, bool valid) {
    simulator::start_copy(to, from, valid, 4);
}
DEVICE void copy_async_commit() { simulator::here->all[simulator::here->running].groups++; }
template <int N> DEVICE void copy_async_wait() { simulator::finish_copies(N); }

DEVICE void load_matrices(u32 (&to)[4], const void* row, SIMULATOR_HERE) {
    simulator::load_rows<false>({"load_matrices", file, line}, to, row);
}
DEVICE void load_matrices_transposed(u32 (&to)[4], const void* row, SIMULATOR_HERE) {
    simulator::load_rows<true>({"load_matrices_transposed", file, line}, to, row);
}
DEVICE void mma_f16(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2], SIMULATOR_HERE) {
    simulator::multiply<simulator::PairsOfF16>({"mma_f16", file, line}, d, a, b);
}
DEVICE void mma_bf16(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2], SIMULATOR_HERE) {
    simulator::multiply<simulator::PairsOfBf16>({"mma_bf16", file, line}, d, a, b);
}
DEVICE void mma_tf32(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2], SIMULATOR_HERE) {
    simulator::multiply<simulator::Tf32>({"mma_tf32", file, line}, d, a, b);
}
DEVICE void mma_f64(f64 (&d)[4], const f64 (&a)[4], const f64 (&b)[2], SIMULATOR_HERE) {
    simulator::multiply<simulator::Double>({"mma_f64", file, line}, d, a, b);
}
