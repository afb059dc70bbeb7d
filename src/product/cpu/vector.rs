//! Vector registers, and which of them this machine's loops use.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m256, __m256d, __m512, __m512d};
use std::ops::Range;
use std::sync::LazyLock;

#[cfg(target_arch = "x86_64")]
use super::registers::{halves, pairs, parts};
#[cfg(target_arch = "x86_64")]
use crate::element::DType;
use crate::element::{Accumulator, Element};

/// What loops are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instructions {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Whatever every machine of this architecture has.
    Portable,
}

/// The best ones first, with their names in [`VARIABLE`].
const ALL: &[(Instructions, &str)] = &[
    #[cfg(target_arch = "x86_64")]
    (Instructions::Avx512, "avx512"),
    #[cfg(target_arch = "x86_64")]
    (Instructions::Avx2, "avx2"),
    (Instructions::Portable, "portable"),
];

/// The environment variable that names the instructions to use, where the machine has them: for tests of those
/// that a better machine hides.
const VARIABLE: &str = "CONVMAT_INSTRUCTIONS";

impl Instructions {
    /// Whether this machine has them.
    pub fn exist(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => std::arch::is_x86_feature_detected!("avx512f"),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => {
                use std::arch::is_x86_feature_detected;
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            Instructions::Portable => true,
        }
    }

    /// Those that are used: the best that this machine has, or the ones that were asked for.
    pub fn best() -> Self {
        static BEST: LazyLock<Instructions> = LazyLock::new(|| {
            let asked = std::env::var(VARIABLE).ok();
            let mut existing = ALL.iter().filter(|(instructions, _)| instructions.exist());
            let asked_for = |(_, name): &&(_, &str)| asked.as_deref() == Some(*name);
            let found = existing.clone().find(asked_for).or_else(|| existing.next());
            found.map_or(Instructions::Portable, |(instructions, _)| *instructions)
        });
        *BEST
    }
}

/// A loop over vectors of `A`, written once and compiled for each instruction set.
pub trait VectorLoop<A> {
    /// # Safety
    /// The machine has the instructions of `X`, and all that the loop points at exists.
    unsafe fn run<X: Vector<A>>(self);
}

/// A type whose loops are compiled for each instruction set.
pub trait Vectorised: Sized {
    /// Runs a loop by the instructions that are used.
    ///
    /// # Safety
    /// All that the loop points at exists.
    unsafe fn vectorised<L: VectorLoop<Self>>(work: L);
}

macro_rules! vectorised {
    ($t:ty, $avx512:ty, $avx2:ty, $portable:ty) => {
        impl Vectorised for $t {
            #[inline]
            unsafe fn vectorised<L: VectorLoop<$t>>(work: L) {
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx512f")]
                unsafe fn by_avx512<L: VectorLoop<$t>>(work: L) {
                    // SAFETY: promised by the caller.
                    unsafe { work.run::<$avx512>() }
                }
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx2,fma,f16c")]
                unsafe fn by_avx2<L: VectorLoop<$t>>(work: L) {
                    // SAFETY: promised by the caller.
                    unsafe { work.run::<$avx2>() }
                }
                // SAFETY: this machine has the instructions that are used; the caller promises the rest.
                unsafe {
                    match Instructions::best() {
                        #[cfg(target_arch = "x86_64")]
                        Instructions::Avx512 => by_avx512(work),
                        #[cfg(target_arch = "x86_64")]
                        Instructions::Avx2 => by_avx2(work),
                        Instructions::Portable => work.run::<$portable>(),
                    }
                }
            }
        }
    };
}

vectorised!(f32, __m512, __m256, Array<f32, 4>);
vectorised!(f64, __m512d, __m256d, Array<f64, 2>);

/// A vector register, as the loops see it. On x86-64 it is the register's own type: of arrays LLVM takes
/// some loops for ones that it had better gather the rows in.
///
/// Functions are safe to call on a machine that has the vector's instructions, where what they point at
/// exists.
pub trait Vector<A>: Copy {
    const LANES: usize;
    unsafe fn zero() -> Self;
    unsafe fn splat(value: A) -> Self;
    unsafe fn load(from: *const A) -> Self;
    unsafe fn store(self, to: *mut A);
    unsafe fn plus(self, other: Self) -> Self;
    unsafe fn minus(self, other: Self) -> Self;
    /// `self + a·b`, rounded once if there is an instruction for that.
    unsafe fn plus_product(self, a: Self, b: Self) -> Self;
    /// Elements of any type that is summed in `A`, widened exactly (but for the bit that makes a NaN a quiet one).
    unsafe fn widen<T: Element<Acc = A>>(from: *const T) -> Self;
    /// The same in these lanes, and zero in all others.
    unsafe fn keep(self, lanes: Range<usize>) -> Self;
    /// The lanes of both by turns, from the first of this one on.
    unsafe fn interleave(self, other: Self) -> [Self; 2];
    /// Stores the first `count` lanes.
    unsafe fn store_part(self, to: *mut A, count: usize);
}

/// Lanes of the longest vector.
pub const MAX_LANES: usize = 16;

/// What every machine has.
#[derive(Clone, Copy)]
pub struct Array<A, const L: usize>([A; L]);

impl<A: Accumulator, const L: usize> Vector<A> for Array<A, L> {
    const LANES: usize = L;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Array([A::ZERO; L])
    }

    #[inline(always)]
    unsafe fn splat(value: A) -> Self {
        Array([value; L])
    }

    #[inline(always)]
    unsafe fn load(from: *const A) -> Self {
        // SAFETY: promised by the caller.
        Array(unsafe { from.cast::<[A; L]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut A) {
        // SAFETY: promised by the caller.
        unsafe { to.cast::<[A; L]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn plus(mut self, other: Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(sum, other)| *sum += other);
        self
    }

    #[inline(always)]
    unsafe fn minus(mut self, other: Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(sum, other)| *sum = *sum - other);
        self
    }

    #[inline(always)]
    unsafe fn plus_product(mut self, a: Self, b: Self) -> Self {
        for lane in 0..L {
            self.0[lane] += a.0[lane] * b.0[lane];
        }
        self
    }

    #[inline(always)]
    unsafe fn widen<T: Element<Acc = A>>(from: *const T) -> Self {
        // SAFETY: promised by the caller.
        Array(unsafe { from.cast::<[T; L]>().read_unaligned() }.map(T::to_acc))
    }

    #[inline(always)]
    unsafe fn keep(self, lanes: Range<usize>) -> Self {
        let kept = |lane| if lanes.contains(&lane) { self.0[lane] } else { A::ZERO };
        Array(std::array::from_fn(kept))
    }

    #[inline(always)]
    unsafe fn interleave(self, other: Self) -> [Self; 2] {
        let lane = |at: usize| if at.is_multiple_of(2) { self.0[at / 2] } else { other.0[at / 2] };
        [0, L].map(|first| Array(std::array::from_fn(|at| lane(first + at))))
    }

    #[inline(always)]
    unsafe fn store_part(self, to: *mut A, count: usize) {
        // SAFETY: promised by the caller.
        (0..count.min(L)).for_each(|lane| unsafe { to.add(lane).write(self.0[lane]) });
    }
}

/// The registers of x86-64, by intrinsics.
#[cfg(target_arch = "x86_64")]
macro_rules! register {
    ($register:ident, $t:ty, $lanes:literal, $zero:ident $splat:ident $load:ident $store:ident $add:ident $sub:ident $fma:ident, $parts:ident $(, $f16:ident $bf16:ident)?) => {
        impl Vector<$t> for $register {
            const LANES: usize = $lanes;

            #[inline(always)]
            unsafe fn zero() -> Self {
                // SAFETY: the machine has the instruction, as for all of these.
                unsafe { std::arch::x86_64::$zero() }
            }

            #[inline(always)]
            unsafe fn splat(value: $t) -> Self {
                // SAFETY: as above.
                unsafe { std::arch::x86_64::$splat(value) }
            }

            #[inline(always)]
            unsafe fn load(from: *const $t) -> Self {
                // SAFETY: promised by the caller.
                unsafe { std::arch::x86_64::$load(from) }
            }

            #[inline(always)]
            unsafe fn store(self, to: *mut $t) {
                // SAFETY: promised by the caller.
                unsafe { std::arch::x86_64::$store(to, self) }
            }

            #[inline(always)]
            unsafe fn plus(self, other: Self) -> Self {
                // SAFETY: as above.
                unsafe { std::arch::x86_64::$add(self, other) }
            }

            #[inline(always)]
            unsafe fn minus(self, other: Self) -> Self {
                // SAFETY: as above.
                unsafe { std::arch::x86_64::$sub(self, other) }
            }

            #[inline(always)]
            unsafe fn plus_product(self, a: Self, b: Self) -> Self {
                // SAFETY: as above.
                unsafe { std::arch::x86_64::$fma(a, b, self) }
            }

            #[inline(always)]
            unsafe fn widen<T: Element<Acc = $t>>(from: *const T) -> Self {
                // SAFETY: promised by the caller; the type is the one that is read.
                unsafe {
                    match T::DTYPE {
                        $(
                            DType::F16 => halves::$f16(from.cast()),
                            DType::BF16 => halves::$bf16(from.cast()),
                        )?
                        _ => Self::load(from.cast()),
                    }
                }
            }

            #[inline(always)]
            unsafe fn keep(self, lanes: Range<usize>) -> Self {
                // SAFETY: as above.
                unsafe { parts::$parts::keep(self, lanes) }
            }

            #[inline(always)]
            unsafe fn interleave(self, other: Self) -> [Self; 2] {
                // SAFETY: as above.
                unsafe { pairs::$parts(self, other) }
            }

            #[inline(always)]
            unsafe fn store_part(self, to: *mut $t, count: usize) {
                // SAFETY: promised by the caller.
                unsafe { parts::$parts::store(self, to, count) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
register!(__m512, f32, 16, _mm512_setzero_ps _mm512_set1_ps _mm512_loadu_ps _mm512_storeu_ps _mm512_add_ps _mm512_sub_ps _mm512_fmadd_ps, f32x16, f16x16 bf16x16);
#[cfg(target_arch = "x86_64")]
register!(__m512d, f64, 8, _mm512_setzero_pd _mm512_set1_pd _mm512_loadu_pd _mm512_storeu_pd _mm512_add_pd _mm512_sub_pd _mm512_fmadd_pd, f64x8);
#[cfg(target_arch = "x86_64")]
register!(__m256, f32, 8, _mm256_setzero_ps _mm256_set1_ps _mm256_loadu_ps _mm256_storeu_ps _mm256_add_ps _mm256_sub_ps _mm256_fmadd_ps, f32x8, f16x8 bf16x8);
#[cfg(target_arch = "x86_64")]
register!(__m256d, f64, 4, _mm256_setzero_pd _mm256_set1_pd _mm256_loadu_pd _mm256_storeu_pd _mm256_add_pd _mm256_sub_pd _mm256_fmadd_pd, f64x4);
