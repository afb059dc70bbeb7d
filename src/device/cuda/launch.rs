//! What launches have in common: the geometry as kernels read it, index widths, divisions by multiplying.

use bytemuck::{Pod, Zeroable};

use super::compiler::Spec;
use crate::error::{Error, Result};
use crate::geometry::{Axes, AxisMap, PaddingMode, gcd};

/// Threads in a block, where a kernel has no reason for another number.
pub(crate) const THREADS: u32 = 256;

/// `Divisor` in kernels/geometry.cuh: n / by = n·magic >> shift for 0 <= n < 2³¹.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Divisor {
    by: i64,
    magic: u32,
    shift: u32,
}

impl Divisor {
    /// Division by `by` > 0. By 2³¹ and more it has no magic numbers, which 64-bit kernels do not read.
    pub(crate) fn new(by: usize) -> Self {
        let by = by.max(1) as u64;
        if by >= 1 << 31 {
            return Divisor { by: by as i64, magic: 0, shift: 0 };
        }
        // With 2^(e−1) < by <= 2^e and magic = ceil(2^(31+e) / by) the error of magic·by is below 2^e,
        // hence n·error < 2^(31+e) for n < 2^31, which is what exactness takes.
        let exponent = by.next_power_of_two().trailing_zeros();
        let magic = (1u64 << (31 + exponent)).div_ceil(by);
        Divisor { by: by as i64, magic: magic as u32, shift: 31 + exponent }
    }

    /// Magic number and shift, for tables that have `by` already.
    pub(crate) fn magic_numbers(self) -> [i32; 2] {
        [self.magic as i32, self.shift as i32]
    }
}

/// `Axis` in kernels/geometry.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Axis {
    inputs: i64,
    outputs: i64,
    taps: i64,
    stride: i64,
    dilation: i64,
    low: i64,
}

/// `Axes` in kernels/geometry.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct AxesArguments {
    at: [Axis; 3],
    mode: i64,
}

impl AxesArguments {
    pub(crate) fn new(maps: &Axes) -> Self {
        let at = maps.each_ref().map(|map| Axis {
            inputs: map.inputs() as i64,
            outputs: map.outputs() as i64,
            taps: map.taps() as i64,
            stride: map.stride() as i64,
            dilation: map.dilation() as i64,
            low: map.low(),
        });
        AxesArguments { at, mode: mode(maps).1 }
    }
}

/// `Adjoint` in kernels/geometry.cuh: what walking over the readers of an input needs of an axis.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Adjoint {
    stride: Divisor,
    rest: i64,
    tap_step: i64,
    output_step: i64,
}

impl Adjoint {
    pub(crate) fn new(maps: &Axes) -> [Adjoint; 3] {
        maps.each_ref().map(|map| {
            let (stride, dilation) = (map.stride(), map.dilation());
            let common = gcd(stride, dilation);
            Adjoint {
                stride: Divisor::new(stride),
                rest: (dilation % stride) as i64,
                tap_step: (stride / common) as i64,
                output_step: (dilation / common) as i64,
            }
        })
    }
}

/// The mode as kernels/geometry.cuh names and numbers it. Axes that are never read outside the input say
/// `zeros`, whatever the convolution's mode.
fn mode(maps: &Axes) -> (&'static str, i64) {
    let mode = maps.iter().map(AxisMap::mode).find(|&mode| mode != PaddingMode::Zeros);
    match mode.unwrap_or(PaddingMode::Zeros) {
        PaddingMode::Zeros => ("ZEROS", 0),
        PaddingMode::Reflect => ("REFLECT", 1),
        PaddingMode::Replicate => ("REPLICATE", 2),
        PaddingMode::Circular => ("CIRCULAR", 3),
    }
}

/// Divisors that take a row-major position apart: by the last two extents, and by the last.
pub(crate) fn position_divisors(extents: [usize; 3]) -> [Divisor; 2] {
    [Divisor::new(extents[1] * extents[2]), Divisor::new(extents[2])]
}

/// Kernels made for one layer are worth compiling up to so many taps, whose loops are then unrolled.
const MOST_UNROLLED_TAPS: usize = 64;

/// Whether [`Spec::geometry`] makes the layer's numbers known at compile time.
pub(crate) fn is_specialised(maps: &Axes, specialise: bool) -> bool {
    specialise && maps.iter().map(AxisMap::taps).product::<usize>() <= MOST_UNROLLED_TAPS
}

/// What no number that the index map forms on an axis exceeds.
pub(crate) fn axis_bound(maps: &Axes) -> usize {
    let bound = |map: &AxisMap| {
        let parts = [map.inputs(), map.inputs(), map.low().unsigned_abs() as usize];
        let parts = parts.into_iter().chain([map.padded_extent(), map.stride(), map.dilation()]);
        parts.fold(0, usize::saturating_add)
    };
    maps.iter().map(bound).max().unwrap_or(0)
}

impl Spec {
    /// With `specialise`, compiles for the layer's taps, strides, dilations and padding mode; without,
    /// those are arguments.
    pub(crate) fn geometry(self, maps: &Axes, specialise: bool) -> Self {
        if !is_specialised(maps, specialise) {
            return self;
        }
        let three = |of: fn(&AxisMap) -> usize| {
            let [d, h, w] = maps.each_ref().map(of);
            format!("{d}, {h}, {w}")
        };
        self.mode(maps, specialise)
            .define("TAPS", three(AxisMap::taps))
            .define("STRIDES", three(AxisMap::stride))
            .define("DILATIONS", three(AxisMap::dilation))
    }

    /// With `specialise`, compiles for the layer's padding mode alone.
    pub(crate) fn mode(self, maps: &Axes, specialise: bool) -> Self {
        if specialise { self.define("MODE", mode(maps).0) } else { self }
    }

    /// The width of indices: 64 bits if any of these counts, which bound every number the kernel forms,
    /// comes near 2³¹, or if `wide` demands it.
    pub(crate) fn index(self, counts: &[usize], wide: bool) -> Self {
        let large = counts.iter().any(|&count| count >= (1 << 31) - (1 << 20));
        self.define("INDEX_BITS", if wide || large { 64 } else { 32 })
    }
}

/// The number of blocks that gives each of `count` work items a thread.
pub(crate) fn blocks(count: usize, threads: u32) -> Result<[u32; 3]> {
    let blocks = count.div_ceil(threads as usize);
    match i32::try_from(blocks) {
        Ok(blocks) => Ok([blocks as u32, 1, 1]),
        Err(_) => Err(Error::TooLarge {
            what: "the number of blocks of a launch".into(),
            value: blocks.to_string(),
            limit: i32::MAX as u64,
        }),
    }
}

/// The largest power of two, at most 16 bytes' worth, that divides all of these numbers of elements of
/// `size` bytes: how many neighbours one instruction can move.
pub(crate) fn vector(size: usize, lengths: &[usize], addresses: &[u64]) -> usize {
    let mut vector = 16 / size;
    let fits = |vector: usize| {
        lengths.iter().all(|length| length.is_multiple_of(vector))
            && addresses.iter().all(|address| address.is_multiple_of((vector * size) as u64))
    };
    while vector > 1 && !fits(vector) {
        vector /= 2;
    }
    vector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiplying_divides_exactly() {
        let largest = (1u64 << 31) - 1;
        let numbers =
            (1..70).chain([255, 256, 257, 12_544, 65_535, 1 << 20, (1 << 30) + 1, largest]);
        for by in numbers {
            let divisor = Divisor::new(by as usize);
            let quotient = |n: u64| (n * u64::from(divisor.magic)) >> divisor.shift;
            let around = |n: u64| [n.saturating_sub(1), n, n + 1];
            let multiples = [0, 1, 2, 3, 1000, largest / by].map(|q| around(q.saturating_mul(by)));
            for n in multiples.into_iter().flatten().chain([largest - 1, largest]) {
                if n <= largest {
                    assert_eq!(quotient(n), n / by, "{n} / {by}");
                }
            }
        }
    }

    #[test]
    fn vectors_divide_lengths_and_addresses() {
        assert_eq!(vector(4, &[12_544], &[256]), 4);
        assert_eq!(vector(2, &[12_544], &[256]), 8);
        assert_eq!(vector(8, &[12_544], &[256]), 2);
        assert_eq!(vector(4, &[49], &[256]), 1);
        assert_eq!(vector(4, &[16, 6], &[256]), 2);
        assert_eq!(vector(4, &[16], &[256, 8]), 2);
        assert_eq!(vector(2, &[0], &[2]), 1);
    }
}
