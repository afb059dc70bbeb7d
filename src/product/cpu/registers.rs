//! What vector registers of x86-64 do that is more than one instruction, or another for each of them.

/// Vectors of half-precision numbers, widened.
pub(super) mod halves {
    use std::arch::x86_64::*;

    #[inline(always)]
    pub unsafe fn f16x16(from: *const __m256i) -> __m512 {
        // SAFETY: the caller has a machine with these instructions, and 16 numbers there; so with all others.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from)) }
    }

    #[inline(always)]
    pub unsafe fn bf16x16(from: *const __m256i) -> __m512 {
        // SAFETY: as above.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    pub unsafe fn f16x8(from: *const __m128i) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from)) }
    }

    #[inline(always)]
    pub unsafe fn bf16x8(from: *const __m128i) -> __m256 {
        // SAFETY: as above.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
}

/// The lanes of two registers by turns.
pub(super) mod pairs {
    use std::arch::x86_64::*;

    #[inline(always)]
    pub unsafe fn f32x16(even: __m512, odd: __m512) -> [__m512; 2] {
        // SAFETY: the caller has a machine with these instructions; so with all others.
        unsafe {
            // Lanes of the second register count from 16.
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
            [_mm512_permutex2var_ps(even, low, odd), _mm512_permutex2var_ps(even, high, odd)]
        }
    }

    #[inline(always)]
    pub unsafe fn f64x8(even: __m512d, odd: __m512d) -> [__m512d; 2] {
        // SAFETY: as above.
        unsafe {
            let low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
            let high = _mm512_add_epi64(low, _mm512_set1_epi64(4));
            [_mm512_permutex2var_pd(even, low, odd), _mm512_permutex2var_pd(even, high, odd)]
        }
    }

    #[inline(always)]
    pub unsafe fn f32x8(even: __m256, odd: __m256) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe {
            let (low, high) = (_mm256_unpacklo_ps(even, odd), _mm256_unpackhi_ps(even, odd));
            let halves = _mm256_permute2f128_ps::<0x20>(low, high);
            [halves, _mm256_permute2f128_ps::<0x31>(low, high)]
        }
    }

    #[inline(always)]
    pub unsafe fn f64x4(even: __m256d, odd: __m256d) -> [__m256d; 2] {
        // SAFETY: as above.
        unsafe {
            let (low, high) = (_mm256_unpacklo_pd(even, odd), _mm256_unpackhi_pd(even, odd));
            let halves = _mm256_permute2f128_pd::<0x20>(low, high);
            [halves, _mm256_permute2f128_pd::<0x31>(low, high)]
        }
    }
}

/// Some lanes of a register. AVX-512 has masks for them. AVX2 has masks as registers, which are read out of a row of
/// words all zero, all one and all zero again; its masked stores take dozens of cycles on some machines, so there the
/// lanes go by way of memory.
pub(super) mod parts {
    use std::ops::Range;

    const fn bits(lanes: &Range<usize>) -> u32 {
        ((1 << lanes.end) - 1) & !((1 << lanes.start) - 1)
    }

    macro_rules! by_masks {
        ($name:ident, $register:ident, $t:ty, $mask:ty, $keep:ident $store:ident) => {
            pub mod $name {
                use std::arch::x86_64::*;
                use std::ops::Range;

                #[inline(always)]
                pub unsafe fn keep(register: $register, lanes: Range<usize>) -> $register {
                    // SAFETY: the caller has a machine with this instruction.
                    unsafe { $keep(super::bits(&lanes) as $mask, register) }
                }

                #[inline(always)]
                pub unsafe fn store(register: $register, to: *mut $t, count: usize) {
                    // SAFETY: as above, and room for these lanes.
                    unsafe { $store(to, super::bits(&(0..count)) as $mask, register) }
                }
            }
        };
    }

    by_masks!(f32x16, __m512, f32, __mmask16, _mm512_maskz_mov_ps _mm512_mask_storeu_ps);
    by_masks!(f64x8, __m512d, f64, __mmask8, _mm512_maskz_mov_pd _mm512_mask_storeu_pd);

    macro_rules! by_memory {
        ($name:ident, $register:ident, $t:ty, $word:ty, $lanes:literal, $and:ident $load:ident $store:ident) => {
            pub mod $name {
                use std::arch::x86_64::*;
                use std::ops::Range;

                static WORDS: [$word; 3 * $lanes] = {
                    let mut words = [0; 3 * $lanes];
                    let mut lane = 0;
                    while lane < $lanes {
                        words[$lanes + lane] = <$word>::MAX;
                        lane += 1;
                    }
                    words
                };

                #[inline(always)]
                pub unsafe fn keep(register: $register, lanes: Range<usize>) -> $register {
                    let words = WORDS.as_ptr().cast::<$t>();
                    // SAFETY: the caller has a machine with these instructions, and lanes are at most as many
                    // as there are.
                    unsafe {
                        let from = $load(words.add($lanes - lanes.start));
                        let to = $load(words.add(2 * $lanes - lanes.end));
                        $and($and(register, from), to)
                    }
                }

                #[inline(always)]
                pub unsafe fn store(register: $register, to: *mut $t, count: usize) {
                    let mut lanes = [0.0; $lanes];
                    // SAFETY: as above; the caller has room for `count` elements, which are at most as many.
                    unsafe {
                        $store(lanes.as_mut_ptr(), register);
                        std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, count);
                    }
                }
            }
        };
    }

    by_memory!(f32x8, __m256, f32, u32, 8, _mm256_and_ps _mm256_loadu_ps _mm256_storeu_ps);
    by_memory!(f64x4, __m256d, f64, u64, 4, _mm256_and_pd _mm256_loadu_pd _mm256_storeu_pd);
}
