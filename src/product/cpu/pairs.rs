//! Products of bf16, two at a time, by `vdpbf16ps` where the machine has it.
//!
//! A product of two bf16 is exact in f32. The instruction adds two of them to a sum of f32, one after the other, each
//! time rounded to nearest, ties to even: sums are rounded no more often than those of widened elements. Unlike them
//! it takes subnormal elements for zero, and makes zero of a product or sum that would be subnormal: below 2⁻¹²⁶.
//! NaN and infinities come through.

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_set1_epi32,
};
use std::sync::LazyLock;

use bytemuck::{Pod, Zeroable};
use half::bf16;

use super::factor::{Factor, FactorOf, Factors};
use super::micro::{self, Products, Tile};
use super::vector::Instructions;

/// Elements of two neighbouring channels.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Pair([bf16; 2]);

impl Pair {
    /// Whether this machine multiplies them.
    pub(crate) fn exist() -> bool {
        static EXIST: LazyLock<bool> = LazyLock::new(|| {
            Instructions::best() == Instructions::Avx512 && is_x86_feature_detected!("avx512bf16")
        });
        *EXIST
    }
}

impl FactorOf<bf16> for Pair {
    const CHANNELS: usize = 2;

    fn as_factors(_: &[bf16]) -> Option<&[Self]> {
        None
    }

    fn read(from: &[bf16], to: &mut [Self]) {
        let to: &mut [bf16] = bytemuck::cast_slice_mut(to);
        let (to, rest) = to.split_at_mut(from.len());
        to.copy_from_slice(from);
        rest.fill(bf16::ZERO);
    }

    fn interleave(channels: &[&[bf16]], step: usize, to: &mut [Self]) {
        match *channels {
            [first, second] if step == 1 => {
                let both = first.iter().zip(second);
                to.iter_mut().zip(both).for_each(|(to, (&a, &b))| *to = Pair([a, b]));
            }
            [first, second] => {
                let both = first.iter().step_by(step).zip(second.iter().step_by(step));
                to.iter_mut().zip(both).for_each(|(to, (&a, &b))| *to = Pair([a, b]));
            }
            [first] => {
                let first = first.iter().step_by(step);
                to.iter_mut().zip(first).for_each(|(to, &a)| *to = Pair([a, bf16::ZERO]));
            }
            _ => {}
        }
    }
}

/// A register of pairs.
#[derive(Clone, Copy)]
struct Pairs(__m512i);

impl Factors<Pair, __m512> for Pairs {
    #[inline(always)]
    unsafe fn splat(value: Pair) -> Self {
        // SAFETY: the machine has the instruction, as for all of these.
        Pairs(unsafe { _mm512_set1_epi32(bytemuck::cast(value)) })
    }

    #[inline(always)]
    unsafe fn load(from: *const Pair) -> Self {
        // SAFETY: promised by the caller.
        Pairs(unsafe { _mm512_loadu_si512(from.cast()) })
    }

    #[inline(always)]
    unsafe fn add_product(self, other: Self, sum: __m512) -> __m512 {
        // SAFETY: as above; both types are a register of 512 bits, of any value.
        unsafe {
            let [a, b] =
                [self.0, other.0].map(|pairs| std::mem::transmute::<__m512i, __m512bh>(pairs));
            _mm512_dpbf16_ps(sum, a, b)
        }
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn products<const M: usize, const V: usize>(operands: Products<f32, Pair>) {
    // SAFETY: promised by the caller.
    unsafe { micro::products::<f32, Pair, __m512, Pairs, M, V, false>(operands) }
}

macro_rules! tiles {
    ($([$m:literal; $($v:literal)+])+) => {
        &[$(Tile { rows: $m, kernels: &[$(($v, products::<$m, $v>)),+] }),+]
    };
}

// As for accumulators: 24 sums, the rest of 32 registers for operands.
static TILES: &[Tile<Products<f32, Pair>>] =
    tiles!([8; 3 2 1] [4; 6 4 2 1] [2; 8 4 2 1] [1; 12 8 4 2 1]);

impl Factor for Pair {
    type Sum = f32;

    /// For machines that multiply pairs.
    fn tiles() -> &'static [Tile<Products<f32, Pair>>] {
        assert!(Pair::exist());
        TILES
    }
}

#[cfg(test)]
mod tests {
    use super::super::micro::Step;
    use super::super::rows::{Rows, multiply_rows};
    use super::*;

    /// The sums of one row, by pairs of these.
    fn sums(weights: &[Pair], patches: &[Pair], rows: usize, columns: usize) -> Vec<f32> {
        let terms = weights.len() / rows;
        let steps: Vec<_> =
            (0..terms).map(|k| Step { weight: k, patch: k * columns, rows: !0 }).collect();
        let mut sums = vec![f32::NAN; rows * columns];
        let operands = Rows { steps: &steps, weights, row: terms, patches, rows, columns };
        multiply_rows(&operands, &mut sums, columns, false);
        sums
    }

    #[test]
    fn tiles_are_sums_of_products() {
        if !Pair::exist() {
            return;
        }
        let number = |at: usize| bf16::from_f32(((at * 37) % 13) as f32 - 6.0);
        let pairs = |len: usize, seed: usize| -> Vec<Pair> {
            (0..len).map(|at| Pair([number(2 * at + seed), number(2 * at + seed + 1)])).collect()
        };
        const TERMS: usize = 7;
        for (rows, vectors) in [(8, 3), (15, 12), (7, 7), (1, 1), (2, 8)] {
            let columns = 16 * vectors;
            let (weights, patches) = (pairs(rows * TERMS, 1), pairs(TERMS * columns, 4));
            for (at, found) in sums(&weights, &patches, rows, columns).into_iter().enumerate() {
                let product = |k: usize| {
                    let (a, b) = (
                        weights[at / columns * TERMS + k].0,
                        patches[k * columns + at % columns].0,
                    );
                    a[0].to_f32() * b[0].to_f32() + a[1].to_f32() * b[1].to_f32()
                };
                assert_eq!(found, (0..TERMS).map(product).sum::<f32>(), "{rows} {columns} {at}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_comes_through() {
        if !Pair::exist() {
            return;
        }
        let one = |a: f32, b: f32| {
            let pair = |value: f32| Pair([bf16::from_f32(value), bf16::ZERO]);
            sums(&[pair(a)], &[pair(b); 16], 1, 16)[3]
        };
        assert!(one(f32::NAN, 1.0).is_nan());
        assert!(one(f32::INFINITY, 0.0).is_nan());
        assert_eq!(one(f32::INFINITY, -1.0), f32::NEG_INFINITY);
        assert_eq!(one(2f32.powi(-126), 1.0), 2f32.powi(-126));
        assert_eq!(one(2f32.powi(100), 2f32.powi(100)), f32::INFINITY);
    }
}
