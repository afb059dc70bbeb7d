// What kernels use of the machine: every feature of the hardware sits behind a name of this file, so that
// the simulator can put its own in place (simulator/simulator.h has the same names). Needs no header of
// the CUDA toolkit.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;
typedef float f32;
typedef double f64;

// Marks a struct that the host fills in: build.rs makes the Rust struct of the same name. Its fields are
// numbers of 32 or 64 bits, pointers, other such structs, and arrays of these, without padding; a
// declaration takes one line, and declares one pointer at most.
#define HOST
// In such a struct: a number that is another in every run of a program, which does not change the program.
typedef f64 PerRun;
// Names the macros that the host may define for a file; no others.
#define SWITCHES(...)

#ifdef CONVMAT_SIMULATOR
#include "simulator.h"
#define KERNEL_RESIDENT(name, Args, threads, blocks) KERNEL(name, Args, threads)
#define UNROLL_BY(count)
#else

// A function of the device, and a kernel: one argument, a struct, is what a launch hands over.
#define DEVICE __device__ __forceinline__
#define KERNEL(name, Args, threads)                                                                    \
    extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Args args)
// The same, with registers for at least so many blocks at a time on a multiprocessor.
#define KERNEL_RESIDENT(name, Args, threads, blocks)                                                   \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Args args)

// `count` elements that the threads of a block share. Declare at the top of a kernel.
#define SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define UNROLL _Pragma("unroll")
#define UNROLL_BY(count) PRAGMA(unroll count)
#define PRAGMA(text) _Pragma(#text)

DEVICE void barrier() { __syncthreads(); }
DEVICE void warp_barrier() { __syncwarp(); }

// Ends the launch with an error.
DEVICE void trap(const char*) { __trap(); }

// Values of other lanes. All 32 lanes of a warp have to take part.
template <typename T> DEVICE T shuffle(T value, int lane) { return __shfl_sync(~0u, value, lane); }
template <typename T> DEVICE T shuffle_down(T value, int delta) { return __shfl_down_sync(~0u, value, delta); }
template <typename T> DEVICE T shuffle_xor(T value, int mask) { return __shfl_xor_sync(~0u, value, mask); }
// (Not by the name ballot alone, which old versions of NVRTC have declared.)
DEVICE u32 warp_ballot(bool value) { return __ballot_sync(~0u, value); }

// Integer counters only: the crate has no floating-point atomics.
DEVICE i32 atomic_add(i32* target, i32 value) { return atomicAdd(target, value); }
DEVICE i64 atomic_add(i64* target, i64 value) {
    return (i64)atomicAdd((unsigned long long*)target, (unsigned long long)value);
}

// Whether this block is the last of `count` that come here with the same counter; all threads of a block come
// together. What the others wrote before they came is there for all threads of the last, by plain reads. The counter is
// zero before the first of them and, as the last one clears it, for the next launch.
DEVICE bool last_to_arrive(i32* counter, i32 count) {
    __syncthreads();
    bool last = false;
    if (threadIdx.x == 0) {
        // Behind the barrier this holds for what all threads of the block have written, and will read.
        __threadfence();
        last = atomicAdd(counter, 1) == count - 1;
        if (last) atomicExch(counter, 0);
        __threadfence();
    }
    return __syncthreads_or(last);
}

// Keeps a value in a register: the compiler would work out again and again what is cheap.
DEVICE void keep(u32& value) { asm volatile("" : "+r"(value)); }
DEVICE void keep(i32& value) { asm volatile("" : "+r"(value)); }
DEVICE void keep(u64& value) { asm volatile("" : "+l"(value)); }
DEVICE void keep(i64& value) { asm volatile("" : "+l"(value)); }
// The same of an address in global memory, and in shared memory.
template <typename T> DEVICE void keep(T*& pointer) {
    u64 address = __cvta_generic_to_global(pointer);
    keep(address);
    pointer = (T*)__cvta_global_to_generic(address);
}

// a·b + c, rounded once.
DEVICE f32 fused(f32 a, f32 b, f32 c) { return __fmaf_rn(a, b, c); }
DEVICE f64 fused(f64 a, f64 b, f64 c) { return __fma_rn(a, b, c); }
DEVICE f64 square_root(f64 value) { return __dsqrt_rn(value); }

// Up to 16 bytes at a multiple of their size, by one instruction.
template <typename T> DEVICE T load_whole(const T* from) { return *from; }

// Loads of what no thread writes while the kernel runs, and stores of what it will not read again.
template <typename T> DEVICE T load(const T* from) { return *from; }
template <typename T> DEVICE void store_streaming(T* to, T value) { *to = value; }

// Stores to global memory, to a multiple of their size, by one instruction. (Struct copies the compiler
// splits up as it likes.)
DEVICE void store_words(void* to, const u32 (&words)[2]) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(words[0]), "r"(words[1]) : "memory");
}
DEVICE void store_words(void* to, const u32 (&words)[4]) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(words[0]), "r"(words[1]),
                 "r"(words[2]), "r"(words[3])
                 : "memory");
}

template <typename T> DEVICE void keep_shared(T*& pointer) {
    u32 address = (u32)__cvta_generic_to_shared(pointer);
    keep(address);
    pointer = (T*)__cvta_shared_to_generic(address);
}
DEVICE u32 shared_address(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// Copies 16 bytes from global to shared memory in the background, or zeros if not `valid`. They are there
// after copy_async_commit() and a copy_async_wait<N>() that leaves at most N younger commits under way;
// for other threads after a barrier as well. Both addresses are multiples of 16, also of what is not `valid`.
DEVICE void copy_async_16(void* to, const void* from, bool valid) {
#if __CUDA_ARCH__ >= 800
    asm volatile("{ .reg .pred ignored; setp.eq.u32 ignored, %2, 0;"
                 " cp.async.cg.shared.global [%0], [%1], 16, ignored; }" ::"r"(shared_address(to)),
                 "l"(from), "r"((u32)valid)
                 : "memory");
#else
    *(uint4*)to = valid ? *(const uint4*)from : make_uint4(0, 0, 0, 0);
#endif
}
// The same for 8 bytes, addresses multiples of 8.
DEVICE void copy_async_8(void* to, const void* from, bool valid) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(valid ? 8 : 0)
                 : "memory");
#else
    *(u64*)to = valid ? *(const u64*)from : 0ull;
#endif
}
// The same for 4 bytes, addresses multiples of 4.
DEVICE void copy_async_4(void* to, const void* from, bool valid) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(valid ? 4 : 0)
                 : "memory");
#else
    *(u32*)to = valid ? *(const u32*)from : 0u;
#endif
}
DEVICE void copy_async_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int N> DEVICE void copy_async_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// Loads four 8×8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8 (16
// bytes, aligned) and receives in to[m] elements (row l / 4, columns 2·(l % 4) and the next) of matrix m.
DEVICE void load_matrices(u32 (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// The same, each matrix transposed on the way.
DEVICE void load_matrices_transposed(u32 (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// d += a·b for a 16×16 by 16×8 product of f16 by one warp. With g = lane / 4 and t = lane % 4, each
// register holding two neighbours: a = rows (g, g+8, g, g+8) at k = 2t + (0, 0, 8, 8); b = column g at
// k = 2t + (0, 8); d = (row g, columns 2t, 2t+1), (row g+8, the same).
DEVICE void mma_f16(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                 "{%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    // sm_75 has this product with half as many k.
    UNROLL
    for (int half = 0; half < 2; ++half)
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
                     "{%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
#endif
}
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
// The same for bf16.
DEVICE void mma_bf16(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                 "{%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// d += a·b for 16×8 by 8×8, f32 rounded to TF32: a = rows (g, g+8, g, g+8) at k = t + (0, 0, 4, 4);
// b = column g at k = t + (0, 4); d as above.
DEVICE void mma_tf32(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                 "{%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// The same for f64, without rounding. Its terms are taken four at a time, and before sm_90 eight rows at a time.
DEVICE void mma_f64(f64 (&d)[4], const f64 (&a)[4], const f64 (&b)[2]) {
    UNROLL
    for (int half = 0; half < 2; ++half) {
#if __CUDA_ARCH__ >= 900
        asm volatile("mma.sync.aligned.m16n8k4.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
                     "{%0, %1, %2, %3};"
                     : "+d"(d[0]), "+d"(d[1]), "+d"(d[2]), "+d"(d[3])
                     : "d"(a[2 * half]), "d"(a[2 * half + 1]), "d"(b[half]));
#else
        UNROLL
        for (int low = 0; low < 2; ++low)
            asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
                         : "+d"(d[2 * low]), "+d"(d[2 * low + 1])
                         : "d"(a[2 * half + low]), "d"(b[half]));
#endif
    }
}
// f32 rounded to the nearest TF32, ties away from zero.
DEVICE u32 to_tf32(f32 value) {
    u32 bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
    return bits;
}
#endif

DEVICE u32 bits_of(f32 value) { return __float_as_uint(value); }
DEVICE f32 f32_of(u32 bits) { return __uint_as_float(bits); }
// IEEE half precision to and from f32, rounding to nearest, ties to even.
DEVICE f32 f16_to_f32(u16 bits) {
    f32 value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
DEVICE u16 f32_to_f16(f32 value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

#endif

template <typename T> DEVICE T smaller(T a, T b) { return b < a ? b : a; }
template <typename T> DEVICE T larger(T a, T b) { return a < b ? b : a; }
