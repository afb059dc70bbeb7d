//! Bounds against the norms of dense matrices.

use super::gram::Grams;
use super::norm_bound;
use crate::spectrum::circular::solver::{Accuracy, values};
use crate::spectrum::symbol::tests::{Random, dense, dense_values, layer, random_layer};
use crate::spectrum::symbol::{Symbol, half_of};
use crate::{Conv, PaddingMode};

/// Whether a bound holds, rounding of the dense norm set aside; and how far above it is.
fn looseness(layer: &crate::operator::layer::Layer) -> (f64, String) {
    let norm = dense_values(&dense(layer))[0];
    let bound = norm_bound(layer).unwrap();
    assert!(bound.value >= norm * (1.0 - 1e-14), "{norm} exceeds {bound:?}");
    (bound.value / norm, bound.bound)
}

#[test]
fn no_layer_exceeds_its_bound() {
    let mut random = Random::new(21);
    for mode in PaddingMode::ALL {
        let mut checked = 0;
        while checked < 90 {
            let mut numbers = |least: usize, most: usize| -> [usize; 2] {
                std::array::from_fn(|_| least + random.below(most + 1 - least))
            };
            let (kernel, stride, dilation) = (numbers(1, 4), numbers(1, 3), numbers(1, 3));
            let (low, high, input) = (numbers(0, 3), numbers(0, 3), numbers(2, 7));
            let padding: [(usize, usize); 2] = std::array::from_fn(|a| (low[a], high[a]));
            let conv = Conv::new(kernel).stride(stride).dilation(dilation);
            let conv = conv.padding(padding).padding_mode(mode).groups(1 + checked % 2);
            let (channels, transposed) = (numbers(1, 3), checked % 3 == 1);
            let layer = random_layer(&mut random, conv, input, channels, transposed);
            // Some geometries are not valid.
            let Ok(layer) = layer else { continue };
            looseness(&layer);
            checked += 1;
        }
    }
}

#[test]
fn three_axes_are_bounded() {
    let mut random = Random::new(22);
    for mode in PaddingMode::ALL {
        for stride in 1..4 {
            let conv =
                Conv::new([3, 2, 3]).padding([1, 1, 1]).padding_mode(mode).stride([stride; 3]);
            looseness(&random_layer(&mut random, conv, [3, 4, 3], [2, 2], false).unwrap());
        }
    }
}

#[test]
fn one_tap_has_the_exact_norm() {
    let mut random = Random::new(23);
    for (stride, groups) in [(1, 1), (2, 1), (3, 2)] {
        let conv = Conv::new([1, 1]).stride([stride; 2]).groups(groups);
        for channels in [[1, 1], [5, 3], [3, 6]] {
            let layer = random_layer(&mut random, conv, [4, 5], channels, false).unwrap();
            let (loose, bound) = looseness(&layer);
            assert!(loose < 1.0 + 1e-11, "{loose}: {bound}");
        }
    }
}

#[test]
fn circulants_have_the_exact_norm() {
    let mut random = Random::new(24);
    for dilation in 1..4 {
        for stride in 1..4 {
            let total = 2 * dilation + 1 - stride.min(2 * dilation + 1);
            let conv = Conv::new([3]).stride([stride]).dilation([dilation]).padding([(0, total)]);
            let conv = conv.padding_mode(PaddingMode::Circular);
            let layer = random_layer(&mut random, conv, [stride * 7], [3, 2], false).unwrap();
            let (loose, bound) = looseness(&layer);
            assert!(loose < 1.0 + 1e-11 && bound.starts_with("exact"), "{loose}: {bound}");
        }
    }
}

#[test]
fn published_norms_are_bounded() {
    // The circulant of the same size has the norm 3, and zeros padding a larger one.
    let conv = Conv::new([3]).padding([1]);
    let (loose, _) = looseness(&layer(conv, [3], [1, 1], vec![1., -2., 1.], false).unwrap());
    assert!(loose * 3.414213562373095 < 4.01, "{loose}");
    let kernel = vec![2., 7., -1., 1., 3., -8., 5., -3., 1.];
    for (mode, norm) in [
        (PaddingMode::Circular, 22.9122134817),
        (PaddingMode::Zeros, 22.72753302),
        (PaddingMode::Replicate, 22.7905021857),
        (PaddingMode::Reflect, 22.7147400929),
    ] {
        let conv = Conv::new([3, 3]).padding([1, 1]).padding_mode(mode);
        for factor in [1.0, 1e-200, 1e200] {
            let weight = kernel.iter().map(|w| w * factor).collect();
            let layer = layer(conv, [20, 20], [1, 1], weight, false).unwrap();
            let bound = norm_bound(&layer).unwrap();
            let value = bound.value / factor;
            assert!(value > norm * (1.0 - 1e-11), "{norm} exceeds {bound:?}");
            let most = match mode {
                PaddingMode::Circular => norm * (1.0 + 1e-11),
                PaddingMode::Zeros => norm * 1.02,
                PaddingMode::Reflect | PaddingMode::Replicate => norm * 2.1,
            };
            assert!(value < most, "{most}: {bound:?}");
        }
    }
}

/// Proofs, which small layers need not, against computed values: from samples and without.
#[test]
fn certified_values_are_just_above_the_computed_ones() {
    let mut random = Random::new(25);
    for (channels, stride, groups) in [([7, 9], 1, 1), ([12, 4], 2, 2), ([2, 1], 1, 3)] {
        let conv = Conv::new([3, 4]).stride([stride; 2]).groups(groups);
        let layer = random_layer(&mut random, conv, [9, 9], channels, false).unwrap();
        let symbol = Symbol::infinite(&layer).unwrap();
        let grid = [1, 9, 14];
        let frequencies: Vec<_> = half_of(grid).unwrap().into_iter().map(|(f, _)| f).collect();
        let mut computed = 0.0f64;
        for group in 0..groups {
            let phases = symbol.phases(&frequencies, grid).unwrap();
            let matrices = symbol.at(group, &phases).unwrap();
            let shape = [symbol.rows, symbol.columns()];
            let values = values(&matrices, shape, Accuracy::Double).unwrap();
            computed = values.into_iter().fold(computed, f64::max);
        }
        for sampled in [false, true] {
            let grams = Grams::new(&symbol, grid, sampled).unwrap();
            let ratio = grams.certified(&frequencies).unwrap() / computed;
            assert!((1.0..1.007).contains(&ratio), "{sampled}: {ratio}");
        }
    }
}

#[test]
fn weights_of_zero_are_bounded_by_zero() {
    let conv = Conv::new([3, 3]).padding([1, 1]);
    let layer = layer(conv, [5, 5], [2, 2], vec![0.0; 36], false).unwrap();
    assert_eq!(norm_bound(&layer).unwrap().value, 0.0);
}
