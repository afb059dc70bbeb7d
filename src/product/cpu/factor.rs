//! What register tiles multiply: accumulators, or several narrow elements at a time.

use bytemuck::Pod;

use super::micro::{Products, RegisterTiles, Tile};
use super::vector::Vector;
use crate::element::{Accumulator, BATCH, Element, copy_every};

/// What register tiles multiply.
pub trait Factor: Pod + Send + Sync {
    /// What products are summed in.
    type Sum: Accumulator;

    /// The tiles of the best instruction set this machine has.
    #[doc(hidden)]
    fn tiles() -> &'static [Tile<Products<Self::Sum, Self>>];
}

/// A factor made of elements `T`: of as many neighbouring channels as it holds, or zeros where there are no more.
pub trait FactorOf<T: Element>: Factor<Sum = T::Acc> {
    /// Elements that it holds.
    const CHANNELS: usize;

    /// The same slice, when elements already are factors.
    #[doc(hidden)]
    fn as_factors(elements: &[T]) -> Option<&[Self]>;

    /// Factors of elements that lie side by side.
    #[doc(hidden)]
    fn read(from: &[T], to: &mut [Self]);

    /// Factors of one element of each of at most [`FactorOf::CHANNELS`] channels, which are `step` apart there.
    #[doc(hidden)]
    fn interleave(channels: &[&[T]], step: usize, to: &mut [Self]);
}

/// A vector register of factors, whose products are added to a register of sums.
///
/// Functions are safe to call on a machine that has the vector's instructions, where what they point at
/// exists.
pub trait Factors<F, S>: Copy {
    unsafe fn splat(value: F) -> Self;
    unsafe fn load(from: *const F) -> Self;
    /// `sum + self·other`.
    unsafe fn add_product(self, other: Self, sum: S) -> S;
}

impl<A: Accumulator, X: Vector<A>> Factors<A, X> for X {
    #[inline(always)]
    unsafe fn splat(value: A) -> Self {
        // SAFETY: promised by the caller.
        unsafe { X::splat(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const A) -> Self {
        // SAFETY: promised by the caller.
        unsafe { X::load(from) }
    }

    #[inline(always)]
    unsafe fn add_product(self, other: Self, sum: X) -> X {
        // SAFETY: promised by the caller.
        unsafe { sum.plus_product(self, other) }
    }
}

macro_rules! accumulators_are_factors {
    ($($t:ty),+) => {$(
        impl Factor for $t {
            type Sum = $t;

            fn tiles() -> &'static [Tile<Products<$t>>] {
                Self::best_tiles().products
            }
        }
    )+};
}

accumulators_are_factors!(f32, f64);

/// Accumulators made of elements: one each.
macro_rules! factors_of_elements {
    ($($t:ty),+) => {$(
        impl FactorOf<$t> for <$t as Element>::Acc {
            const CHANNELS: usize = 1;

            fn as_factors(elements: &[$t]) -> Option<&[Self]> {
                <$t>::as_acc(elements)
            }

            fn read(from: &[$t], to: &mut [Self]) {
                <$t>::widen(from, to);
            }

            fn interleave(channels: &[&[$t]], step: usize, to: &mut [Self]) {
                let Some(from) = channels.first() else { return };
                if step == 1 {
                    return <$t>::widen(&from[..to.len()], to);
                }
                let mut some = [<$t>::default(); BATCH];
                for (number, to) in to.chunks_mut(BATCH).enumerate() {
                    let some = &mut some[..to.len()];
                    copy_every(&from[number * BATCH * step..], step, some);
                    <$t>::widen(some, to);
                }
            }
        }
    )+};
}

factors_of_elements!(half::f16, half::bf16, f32, f64);
