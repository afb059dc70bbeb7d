//! What the arguments of kernels have in common: the geometry as kernels read it, divisions by multiplying,
//! numbers of blocks.

use super::spec::mode;
pub(crate) use super::structs::Axes as AxesArguments;
use super::structs::{Adjoint, Axis, Divisor};
use crate::error::{Error, Result};
use crate::geometry::{Axes, gcd};

/// Threads in a block, where a kernel has no reason for another number.
pub(crate) const THREADS: u32 = 256;

/// Bytes that device memory is read and written by.
pub(crate) const SECTOR: usize = 32;

/// Banks of shared memory, and bytes that each has of a line.
pub(crate) const BANKS: usize = 32;
pub(crate) const BANK_BYTES: usize = 4;

/// Passes of the banks that a warp takes whose lanes access these words of shared memory.
pub(crate) fn bank_passes(mut words: [usize; BANKS]) -> usize {
    words.sort_unstable();
    let mut banks = [0; BANKS];
    for (lane, word) in words.iter().enumerate() {
        // Lanes share a word.
        if lane == 0 || words[lane - 1] != *word {
            banks[word % BANKS] += 1;
        }
    }
    banks.into_iter().max().unwrap_or(1)
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

/// Divisors that take a row-major position apart: by the last two extents, and by the last.
pub(crate) fn position_divisors(extents: [usize; 3]) -> [Divisor; 2] {
    [Divisor::new(extents[1] * extents[2]), Divisor::new(extents[2])]
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
