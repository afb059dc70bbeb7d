//! Element types: what a tensor may hold, and what sums over it are accumulated in.

use std::fmt;
use std::ops::{Add, AddAssign, Div, Mul, Sub};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

#[cfg(target_arch = "x86_64")]
use crate::product::cpu::Pair;
use crate::product::cpu::{self, Factor, FactorOf, RegisterTiles, Vectorised};

/// The element types the crate computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// IEEE 754 half precision, 2 bytes.
    F16,
    /// bfloat16, 2 bytes.
    BF16,
    /// IEEE 754 single precision, 4 bytes.
    F32,
    /// IEEE 754 double precision, 8 bytes.
    F64,
}

impl DType {
    /// Size of one element, in bytes.
    pub fn size(self) -> usize {
        match self {
            DType::F16 | DType::BF16 => 2,
            DType::F32 => 4,
            DType::F64 => 8,
        }
    }

    /// Unit roundoff: half the distance from 1 to the next number.
    pub fn unit_roundoff(self) -> f64 {
        match self {
            DType::F16 => 2f64.powi(-11),
            DType::BF16 => 2f64.powi(-8),
            DType::F32 => 2f64.powi(-24),
            DType::F64 => 2f64.powi(-53),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::F32 => "f32",
            DType::F64 => "f64",
        })
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// An element of a tensor: `f32`, `f64`, [`half::f16`] or [`half::bf16`].
pub trait Element:
    sealed::Sealed
    + bytemuck::Pod
    + Default
    + PartialEq
    + fmt::Debug
    + fmt::Display
    + Send
    + Sync
    + 'static
{
    /// What sums over elements are accumulated in: `f32` for the half types and `f32`, else `f64`.
    type Acc: Accumulator + FactorOf<Self>;

    /// What products on the CPU have for factors where [`Element::packs`].
    #[doc(hidden)]
    type Packed: FactorOf<Self>;

    /// The run-time name of this type.
    const DTYPE: DType;

    /// Whether this machine multiplies several elements at a time.
    #[doc(hidden)]
    fn packs() -> bool;

    /// Widens exactly.
    fn to_acc(self) -> Self::Acc;

    /// Rounds to nearest, ties to even.
    fn from_acc(value: Self::Acc) -> Self;

    /// Widens exactly.
    fn to_f64(self) -> f64;

    /// Rounds to nearest, ties to even.
    fn from_f64(value: f64) -> Self;

    /// The same slice, when elements already are accumulators.
    fn as_acc(slice: &[Self]) -> Option<&[Self::Acc]>;

    /// The same slice, when elements already are accumulators.
    fn as_acc_mut(slice: &mut [Self]) -> Option<&mut [Self::Acc]>;

    /// Widens a slice into another of the same length.
    fn widen(source: &[Self], target: &mut [Self::Acc]);

    /// Rounds a slice into another of the same length.
    fn narrow(source: &[Self::Acc], target: &mut [Self]);
}

/// A type sums are accumulated in: `f32` or `f64`.
pub trait Accumulator:
    Element<Acc = Self>
    + Factor<Sum = Self>
    + RegisterTiles
    + Vectorised
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + AddAssign
    + PartialOrd
{
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;

    /// `self·a + b`, rounded once.
    fn mul_add(self, a: Self, b: Self) -> Self;

    /// `c = a·b` or `c += a·b` on the calling thread. A method of the type and not a generic function,
    /// so that faer's kernels are compiled once, here, and not again in every crate that uses this one.
    #[doc(hidden)]
    fn matmul(
        c: faer::MatMut<'_, Self>,
        accumulate: faer::Accum,
        a: faer::MatRef<'_, Self>,
        b: faer::MatRef<'_, Self>,
    );

    /// `c += a·aᵀ` in its lower triangle, on the calling thread.
    #[doc(hidden)]
    fn matmul_symmetric(c: faer::MatMut<'_, Self>, a: faer::MatRef<'_, Self>);
}

macro_rules! accumulator {
    ($t:ty, $dtype:ident) => {
        impl Accumulator for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;

            #[inline(always)]
            fn mul_add(self, a: Self, b: Self) -> Self {
                <$t>::mul_add(self, a, b)
            }

            #[inline(never)]
            fn matmul(
                c: faer::MatMut<'_, Self>,
                accumulate: faer::Accum,
                a: faer::MatRef<'_, Self>,
                b: faer::MatRef<'_, Self>,
            ) {
                faer::linalg::matmul::matmul(c, accumulate, a, b, 1.0, faer::Par::Seq);
            }

            #[inline(never)]
            fn matmul_symmetric(c: faer::MatMut<'_, Self>, a: faer::MatRef<'_, Self>) {
                use faer::linalg::matmul::triangular::{BlockStructure, matmul};
                let (lower, full) = (BlockStructure::TriangularLower, BlockStructure::Rectangular);
                let (add, one) = (faer::Accum::Add, 1.0);
                matmul(c, lower, add, a, full, a.transpose(), full, one, faer::Par::Seq);
            }
        }

        impl Element for $t {
            type Acc = $t;
            type Packed = $t;
            const DTYPE: DType = DType::$dtype;

            fn packs() -> bool {
                false
            }

            #[inline(always)]
            fn to_acc(self) -> $t {
                self
            }
            #[inline(always)]
            fn from_acc(value: $t) -> Self {
                value
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self as f64
            }
            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                value as $t
            }
            fn as_acc(slice: &[Self]) -> Option<&[$t]> {
                Some(slice)
            }
            fn as_acc_mut(slice: &mut [Self]) -> Option<&mut [$t]> {
                Some(slice)
            }
            fn widen(source: &[Self], target: &mut [$t]) {
                target.copy_from_slice(source);
            }
            fn narrow(source: &[$t], target: &mut [Self]) {
                target.copy_from_slice(source);
            }
        }
    };
}

macro_rules! half_element {
    ($t:ty, $dtype:ident, $packed:ty, $packs:expr, $widen:path, $narrow:path) => {
        impl Element for $t {
            type Acc = f32;
            type Packed = $packed;
            const DTYPE: DType = DType::$dtype;

            fn packs() -> bool {
                $packs
            }

            #[inline(always)]
            fn to_acc(self) -> f32 {
                self.to_f32()
            }
            #[inline(always)]
            fn from_acc(value: f32) -> Self {
                <$t>::from_f32(value)
            }
            fn to_f64(self) -> f64 {
                <$t>::to_f64(self)
            }
            fn from_f64(value: f64) -> Self {
                <$t>::from_f64(value)
            }
            fn as_acc(_: &[Self]) -> Option<&[f32]> {
                None
            }
            fn as_acc_mut(_: &mut [Self]) -> Option<&mut [f32]> {
                None
            }
            fn widen(source: &[Self], target: &mut [f32]) {
                $widen(source, target);
            }
            fn narrow(source: &[f32], target: &mut [Self]) {
                $narrow(source, target);
            }
        }
    };
}

accumulator!(f32, F32);
accumulator!(f64, F64);
half_element!(f16, F16, f32, false, HalfFloatSliceExt::convert_to_f32_slice, narrow_f16);
#[cfg(target_arch = "x86_64")]
half_element!(bf16, BF16, Pair, Pair::exist(), cpu::widen, cpu::narrow);
#[cfg(not(target_arch = "x86_64"))]
half_element!(bf16, BF16, f32, false, cpu::widen, cpu::narrow);

fn narrow_f16(source: &[f32], target: &mut [f16]) {
    target.convert_from_f32_slice(source);
}

/// Elements that are converted at a time: one takes as long as many.
pub(crate) const BATCH: usize = 64;

/// Has the elements visited in order as accumulators, some at a time: `visit` is told where these start.
#[inline]
pub(crate) fn each_batch<T: Element>(elements: &[T], mut visit: impl FnMut(usize, &[T::Acc])) {
    if let Some(elements) = T::as_acc(elements) {
        return visit(0, elements);
    }
    let mut wide = [T::Acc::ZERO; BATCH];
    for (number, elements) in elements.chunks(BATCH).enumerate() {
        let wide = &mut wide[..elements.len()];
        T::widen(elements, wide);
        visit(number * BATCH, wide);
    }
}

/// Copies elements that are `step` apart.
pub(crate) fn copy_every<T: Copy>(from: &[T], step: usize, to: &mut [T]) {
    match step {
        1 => to.copy_from_slice(&from[..to.len()]),
        2 => to.iter_mut().zip(from.iter().step_by(2)).for_each(|(to, &from)| *to = from),
        n => to.iter_mut().zip(from.iter().step_by(n)).for_each(|(to, &from)| *to = from),
    }
}

/// How many bits the row pointers and column indices of sparse matrices have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IndexWidth {
    /// `i32`: enough for up to 2³¹−1 entries, rows and columns.
    I32,
    /// `i64`.
    I64,
}

impl IndexWidth {
    /// The narrowest width in which the number of entries and both extents can be written.
    pub fn for_matrix(shape: [u64; 2], nnz: u64) -> Self {
        let fits = [shape[0], shape[1], nnz].into_iter().all(|n| n <= i32::MAX as u64);
        if fits { IndexWidth::I32 } else { IndexWidth::I64 }
    }

    /// Size of one index, in bytes.
    pub fn size(self) -> usize {
        match self {
            IndexWidth::I32 => 4,
            IndexWidth::I64 => 8,
        }
    }

    /// The largest number of entries, rows or columns this width can count.
    pub fn limit(self) -> u64 {
        match self {
            IndexWidth::I32 => i32::MAX as u64,
            IndexWidth::I64 => i64::MAX as u64,
        }
    }
}

impl fmt::Display for IndexWidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IndexWidth::I32 => "i32",
            IndexWidth::I64 => "i64",
        })
    }
}
