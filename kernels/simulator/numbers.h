// Conversions between number formats, by integer arithmetic.
#pragma once

#define DEVICE inline __attribute__((always_inline))

DEVICE u32 bits_of(f32 value) {
    u32 bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
}
DEVICE f32 f32_of(u32 bits) {
    f32 value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

DEVICE f32 f16_to_f32(u16 bits) {
    u32 sign = (u32)(bits & 0x8000u) << 16, exponent = bits >> 10 & 31u, fraction = bits & 0x3ffu;
    // A NaN becomes a quiet one.
    if (exponent == 31) return f32_of(sign | 0x7f800000u | fraction << 13 | (fraction ? 0x400000u : 0u));
    if (exponent == 0) {
        f32 value = (f32)fraction * 0x1p-24f;
        return sign ? -value : value;
    }
    return f32_of(sign | (exponent + 112) << 23 | fraction << 13);
}
DEVICE u16 f32_to_f16(f32 value) {
    u32 bits = bits_of(value), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return (u16)(sign | 0x7e00u | (size >> 13 & 0x3ffu));
    // From half a step above the largest finite f16 on, the nearest is infinity.
    if (size >= 0x477ff000u) return (u16)(sign | 0x7c00u);
    u32 kept = size, dropped = 13;
    if (size < 0x38800000u) {
        // Subnormal: a count of 2^-24.
        dropped = 126 - (size >> 23);
        if (dropped > 24) return (u16)sign;
        kept = (size & 0x7fffffu) | 0x800000u;
    } else {
        kept = size - 0x38000000u;
    }
    u32 even = kept >> dropped & 1u;
    return (u16)(sign | (kept + (1u << (dropped - 1)) - 1u + even) >> dropped);
}
// To the nearest TF32, ties away from zero. An infinity stays one.
DEVICE u32 to_tf32(f32 value) {
    u32 bits = bits_of(value);
    if ((bits & 0x7f800000u) == 0x7f800000u) return bits & 0x7fffffu ? 0x7fffffffu : bits;
    return (bits + 0x1000u) & 0xffffe000u;
}
