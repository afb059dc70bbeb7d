//! The Frobenius norm of a layer, from its taps alone.

use rayon::prelude::*;

use crate::error::{Result, checked_product};
use crate::geometry::AxisMap;
use crate::memory::try_zeroed;
use crate::operator::layer::Layer;

/// The root of the sum of the squares of all elements of the layer's matrix.
///
/// Where taps of one output read the same input, as at borders that reflect, their weights add up in one
/// element. How often any two do is counted by axis, so that the square of the norm is a quadratic form of
/// the weights.
///
/// # Errors
/// [`crate::Error::Allocation`] and [`crate::Error::TooLarge`] when the counts of pairs of taps do not fit
/// in memory.
pub(crate) fn frobenius_norm(layer: &Layer) -> Result<f64> {
    let counts: Vec<Counts> = layer.axes.iter().map(Counts::new).collect::<Result<_>>()?;
    let (extents, taps) = (layer.axes.tap_extents(), layer.axes.taps());
    // So that no square overflows.
    let scale = layer.weight.iter().fold(0f64, |max, w| max.max(w.abs()));
    if scale == 0.0 || taps == 0 {
        return Ok(0.0);
    }
    let per_output = layer.channels_per_group() * taps;
    let of_output = |weight: &[f64]| -> Result<f64> {
        let mut sum = 0.0;
        let mut product: Vec<f64> = try_zeroed("a kernel", taps)?;
        let mut before: Vec<f64> = try_zeroed("a kernel", taps)?;
        for kernel in weight.chunks_exact(taps) {
            product.iter_mut().zip(kernel).for_each(|(product, w)| *product = w / scale);
            for (axis, counts) in counts.iter().enumerate() {
                before.copy_from_slice(&product);
                counts.apply(&before, &mut product, extents[axis + 1..].iter().product());
            }
            sum += kernel.iter().zip(&product).map(|(w, product)| w / scale * product).sum::<f64>();
        }
        Ok(sum)
    };
    let sums: Vec<f64> =
        layer.weight.par_chunks(per_output).map(of_output).collect::<Result<_>>()?;
    Ok(sums.iter().sum::<f64>().sqrt() * scale)
}

/// On one axis, at how many outputs any two taps read the same input.
struct Counts {
    /// Of a tap with itself: at how many it is not dropped.
    alone: Vec<f64>,
    /// `[taps, taps]` for two different ones; empty where no two ever do.
    pairs: Vec<f64>,
}

impl Counts {
    fn new(map: &AxisMap) -> Result<Self> {
        let taps = map.taps();
        let mut alone: Vec<f64> = try_zeroed("the reads of taps", taps)?;
        let mut pairs: Vec<f64> = Vec::new();
        // Outputs whose window lies inside the input read it one by one.
        let (inside, window) = (map.inside(), (taps - 1) * map.dilation() + 1);
        let (mut whole, mut reads) = (0.0, Vec::with_capacity(taps));
        for o in 0..map.outputs() {
            let first = map.padded_position(o, 0);
            if inside.start <= first && first + window <= inside.end {
                whole += 1.0;
                continue;
            }
            reads.clear();
            reads.extend((0..taps).filter_map(|k| Some((map.source(o, k)?, k))));
            reads.sort_unstable();
            for shared in reads.chunk_by(|a, b| a.0 == b.0) {
                shared.iter().for_each(|&(_, k)| alone[k] += 1.0);
                if shared.len() > 1 && pairs.is_empty() {
                    let len = checked_product("the pairs of taps", &[taps, taps])?;
                    pairs = try_zeroed("the pairs of taps", len)?;
                }
                for &(_, a) in shared {
                    let others = shared.iter().filter(|&&(_, b)| a != b);
                    others.for_each(|&(_, b)| pairs[a * taps + b] += 1.0);
                }
            }
        }
        alone.iter_mut().for_each(|count| *count += whole);
        Ok(Counts { alone, pairs })
    }

    /// Multiplies by the matrix of counts along an axis whose elements are `step` apart.
    fn apply(&self, from: &[f64], to: &mut [f64], step: usize) {
        let taps = self.alone.len();
        for (at, to) in to.iter_mut().enumerate() {
            let k = at / step % taps;
            let line = at - k * step;
            *to = self.alone[k] * from[at];
            if !self.pairs.is_empty() {
                let row = &self.pairs[k * taps..][..taps];
                let terms = row.iter().enumerate().map(|(j, count)| count * from[line + j * step]);
                *to += terms.sum::<f64>();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::symbol::tests::{Random, dense, layer, random_layer};
    use super::frobenius_norm;
    use crate::{Conv, PaddingMode};

    #[test]
    fn it_is_that_of_the_matrix() {
        let mut random = Random::new(11);
        let mut checked = 0;
        while checked < 240 {
            let mut numbers = |least: usize, most: usize| -> [usize; 3] {
                std::array::from_fn(|_| least + random.below(most + 1 - least))
            };
            let (kernel, stride, dilation) = (numbers(1, 3), numbers(1, 3), numbers(1, 2));
            let (low, high, input) = (numbers(0, 3), numbers(0, 3), numbers(1, 5));
            let mode = PaddingMode::ALL[checked % 4];
            let padding: [(usize, usize); 3] = std::array::from_fn(|a| (low[a], high[a]));
            let conv = Conv::new(kernel).stride(stride).dilation(dilation);
            let conv = conv.padding(padding).padding_mode(mode).groups(1 + checked % 2);
            let transposed = random.below(2) == 1;
            let layer = random_layer(&mut random, conv, input, [2, 2], transposed);
            // Some geometries are not valid.
            let Ok(layer) = layer else { continue };
            let (found, expected) = (frobenius_norm(&layer).unwrap(), dense(&layer).norm());
            assert!((found - expected).abs() <= 1e-12 * expected, "{conv}: {found} {expected}");
            checked += 1;
        }
    }

    #[test]
    fn published_sums_of_squares_are_met() {
        let kernel = vec![2., 7., -1., 1., 3., -8., 5., -3., 1.];
        for (mode, squares) in [
            (PaddingMode::Circular, 65200.0),
            (PaddingMode::Zeros, 61531.0),
            (PaddingMode::Replicate, 64666.0),
            (PaddingMode::Reflect, 63816.0),
        ] {
            let conv = Conv::new([3, 3]).padding([1, 1]).padding_mode(mode);
            let norm = |factor: f64| {
                let weight = kernel.iter().map(|w| w * factor).collect();
                let layer = layer(conv, [20, 20], [1, 1], weight, false).unwrap();
                frobenius_norm(&layer).unwrap() / factor
            };
            for factor in [1.0, 1e-200, 1e200] {
                assert!((norm(factor).powi(2) / squares - 1.0).abs() < 1e-13, "{mode}");
            }
        }
    }
}
