// Element types: f32, f64, and the half types as 16 bits with conversions, as in src/element.rs.
// A kernel's element type is ELEMENT, its accumulator Acc: f32 for the half types, unless the host says in
// SUMS what else a kernel of sums adds up in.
#pragma once
#include "platform.cuh"

SWITCHES(ELEMENT, SUMS)

struct f16 {
    u16 bits;
};
struct bf16 {
    u16 bits;
};

template <typename T> struct AccOf {
    typedef f32 type;
};
template <> struct AccOf<f64> {
    typedef f64 type;
};

DEVICE f32 to_acc(f32 value) { return value; }
DEVICE f64 to_acc(f64 value) { return value; }
DEVICE f32 to_acc(f16 value) { return f16_to_f32(value.bits); }
DEVICE f32 to_acc(bf16 value) { return f32_of((u32)value.bits << 16); }

// Rounds to nearest, ties to even.
template <typename T> struct Round;
template <> struct Round<f32> {
    static DEVICE f32 from(f32 value) { return value; }
};
template <> struct Round<f64> {
    static DEVICE f64 from(f64 value) { return value; }
};
template <> struct Round<f16> {
    static DEVICE f16 from(f32 value) { return f16{f32_to_f16(value)}; }
};
template <> struct Round<bf16> {
    static DEVICE bf16 from(f32 value) {
        u32 bits = bits_of(value);
        // A NaN stays one: rounding could carry its fraction into infinity.
        if ((bits & 0x7fffffffu) > 0x7f800000u) return bf16{(u16)((bits >> 16) | 0x40u)};
        return bf16{(u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
    }
};
template <typename T> DEVICE T from_acc(typename AccOf<T>::type value) { return Round<T>::from(value); }

// All bits zero is the number 0 in every type.
template <typename T> DEVICE T zero() {
    T value = {};
    return value;
}

// N neighbours, moved at once; their address is a multiple of their size.
template <typename T, int N> struct alignas(sizeof(T) * N) Pack {
    T at[N];
};
template <typename T, int N> DEVICE Pack<T, N> load_pack(const T* from) {
    return load_whole(reinterpret_cast<const Pack<T, N>*>(from));
}
template <typename T, int N> DEVICE void store_pack(T* to, const Pack<T, N>& pack) {
    *reinterpret_cast<Pack<T, N>*>(to) = pack;
}
// The same to global memory, certain to be one instruction.
template <typename T, int N> DEVICE void store_global(T* to, const Pack<T, N>& pack) {
    if constexpr (sizeof(pack) < 8) {
        store_pack<T, N>(to, pack);
    } else {
        union {
            Pack<T, N> pack;
            u32 words[sizeof(T) * N / 4];
        } moved;
        moved.pack = pack;
        store_words(to, moved.words);
    }
}

#if defined(SUMS)
typedef SUMS Acc;
#elif defined(ELEMENT)
typedef AccOf<ELEMENT>::type Acc;
#endif
