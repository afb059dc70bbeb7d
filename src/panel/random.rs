//! Random vectors: the same for a seed on every device and with any number of threads.

use rand_distr::{Distribution, StandardNormal};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;
use rayon::prelude::*;

use crate::element::Accumulator;
use crate::error::Result;
use crate::memory::try_zeroed;
use crate::tensor::TensorViewMut;

/// Elements that one generator makes.
const PIECE: usize = 1 << 14;

/// Fills a panel with independent standard normal numbers, whose directions are uniform on the sphere. They
/// are made on the host, from a seed and the number of the call, and go to the device once.
pub(crate) fn fill_normal<T: Accumulator>(
    panel: TensorViewMut<'_, T>,
    seed: u64,
    call: u64,
) -> Result<()> {
    let len: usize = panel.shape().iter().product();
    let mut values: Vec<T> = try_zeroed("random vectors", len)?;
    values.par_chunks_mut(PIECE).enumerate().for_each(|(piece, values)| {
        // The generator's own seeding spreads numbers that differ in few bits.
        let stream = (call << 32) ^ piece as u64;
        let mut generator =
            Xoshiro256PlusPlus::seed_from_u64(seed ^ stream.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        for value in values {
            let normal: f64 = StandardNormal.sample(&mut generator);
            *value = T::from_f64(normal);
        }
    });
    panel.write(&values)
}
