//! The spectrum of circulant layers against dense decompositions.

use nalgebra::DMatrix;

use super::CircularSpectrum;
use super::solver::Accuracy;
use crate::operator::layer::Layer;
use crate::spectrum::symbol::tests::{Random, dense, dense_values, layer, random_layer};
use crate::{Conv, Error, PaddingMode};

/// A 1-D, 2-D or 3-D circulant layer.
fn circulant(random: &mut Random, case: usize) -> Layer {
    // (kernel, stride, dilation, size) by axis, with the padding that makes outputs·stride the size.
    let axis = |random: &mut Random, largest: usize| loop {
        let (kernel, stride) = (1 + random.below(4), 1 + random.below(3));
        let (dilation, outputs) = (1 + random.below(3), 1 + random.below(largest));
        let (size, span) = (stride * outputs, (kernel - 1) * dilation + 1);
        let total = span as i64 - stride as i64;
        // Where the last tap ends before the next output begins, nothing need be padded.
        let total = total.max(0) as usize;
        let low = random.below(total + 1);
        if low <= size && total - low <= size {
            return (kernel, stride, dilation, size, (low, total - low));
        }
    };
    let (groups, transposed) = (1 + random.below(2), random.below(2) == 1);
    let channels = [1 + random.below(3), 1 + random.below(3)];
    macro_rules! of {
        ($($largest:expr),*) => {{
            let axes = [$(axis(random, $largest)),*];
            let conv = Conv::new(axes.map(|a| a.0)).stride(axes.map(|a| a.1)).dilation(axes.map(|a| a.2));
            let conv = conv.padding(axes.map(|a| a.4)).padding_mode(PaddingMode::Circular).groups(groups);
            random_layer(random, conv, axes.map(|a| a.3), channels, transposed).unwrap()
        }};
    }
    match case % 3 {
        0 => of![9],
        1 => of![4, 4],
        _ => of![2, 3, 2],
    }
}

fn assert_near(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(1e-300, |max: f64, value| max.max(value.abs()));
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= tolerance * largest, "{at}: {found} {expected}");
    }
}

#[test]
fn values_are_those_of_the_matrix() {
    let mut random = Random::new(1);
    for case in 0..90 {
        let layer = circulant(&mut random, case);
        let expected = dense_values(&dense(&layer));
        let spectrum = CircularSpectrum::new(&layer, Accuracy::Double).unwrap();
        assert_near(spectrum.values(), &expected, 1e-13);
        let spectrum = CircularSpectrum::new(&layer, Accuracy::Single).unwrap();
        assert_near(spectrum.values(), &expected, 1e-7);
    }
}

#[test]
fn values_of_many_channels_are_those_of_the_matrix() {
    let mut random = Random::new(7);
    let conv = Conv::new([3]).padding([1]).padding_mode(PaddingMode::Circular);
    for (channels, size) in [([24, 20], 6), ([9, 33], 5)] {
        let layer = random_layer(&mut random, conv, [size], channels, false).unwrap();
        let expected = dense_values(&dense(&layer));
        for (accuracy, tolerance) in [(Accuracy::Double, 1e-13), (Accuracy::Single, 1e-7)] {
            let spectrum = CircularSpectrum::new(&layer, accuracy).unwrap();
            assert_near(spectrum.values(), &expected, tolerance);
        }
    }
}

#[test]
fn triplets_are_singular_and_orthonormal() {
    let mut random = Random::new(2);
    for case in 0..60 {
        let layer = circulant(&mut random, case);
        let matrix = dense(&layer);
        let spectrum = CircularSpectrum::new(&layer, Accuracy::Double).unwrap();
        let all = spectrum.values().len();
        for count in [all, 1 + random.below(all), 0] {
            let triplets = spectrum.triplets(count).unwrap();
            assert_near(&triplets.values, &spectrum.values()[..count], 1e-13);
            let [rows, columns] = layer.shape();
            let u = DMatrix::from_column_slice(rows, count, &triplets.left);
            let v = DMatrix::from_column_slice(columns, count, &triplets.right);
            let values = DMatrix::from_diagonal(&nalgebra::DVector::from_vec(triplets.values));
            let scale = spectrum.values()[0].max(1.0);
            let one = DMatrix::identity(count, count);
            for (error, what) in [
                (&matrix * &v - &u * &values, "A v = s u"),
                (matrix.transpose() * &u - &v * &values, "A' u = s v"),
                ((u.transpose() * &u - &one) * scale, "U'U = 1"),
                ((v.transpose() * &v - &one) * scale, "V'V = 1"),
            ] {
                let error = error.amax() / scale;
                assert!(error < 1e-12, "case {case}, {count} of {all}: {what} but for {error}");
            }
        }
        let error = spectrum.triplets(all + 1).unwrap_err();
        assert!(matches!(error, Error::Invalid { value, .. } if value == (all + 1).to_string()));
    }
}

/// The layer that a whole kernel is: padded in front as the layer is, if that can be said.
fn on_torus(of: &Layer, kernel: &super::kernel::TorusKernel) -> Layer {
    let [_, per_group, d, h, w] = kernel.shape();
    let stride = of.axes.each_ref().map(|map| map.stride());
    let behind = [d - stride[0], h - stride[1], w - stride[2]];
    let conv = Conv::new([d, h, w]).stride(stride).groups(of.groups);
    let conv = conv.padding(behind.map(|high| (0, high))).padding_mode(PaddingMode::Circular);
    let channels = [of.outputs / of.groups, per_group];
    layer(conv, [d, h, w], channels, kernel.data().to_vec(), of.transposed).unwrap()
}

#[test]
fn clipped_and_isometric_kernels_have_the_spectra_asked_for() {
    let mut random = Random::new(3);
    for case in 0..60 {
        let layer = circulant(&mut random, case);
        let spectrum = CircularSpectrum::new(&layer, Accuracy::Double).unwrap();
        let limit = spectrum.values()[spectrum.values().len() / 3];
        let clipped = on_torus(&layer, &spectrum.clip(limit).unwrap());
        let expected: Vec<f64> = spectrum.values().iter().map(|value| value.min(limit)).collect();
        assert_near(&dense_values(&dense(&clipped)), &expected, 1e-12);
        let isometry = on_torus(&layer, &spectrum.nearest_isometry().unwrap());
        assert_near(&dense_values(&dense(&isometry)), &vec![1.0; expected.len()], 1e-12);
        // With no limit, nothing changes: every tap is where it was.
        let kernel = spectrum.clip(f64::INFINITY).unwrap();
        let places = layer.axes.each_tap().map(|tap| {
            let extents = layer.axes.input_extents();
            let at: Vec<_> =
                (0..3).map(|a| tap[a] * layer.axes[a].dilation() % extents[a]).collect();
            (at[0] * extents[1] + at[1]) * extents[2] + at[2]
        });
        let places: Vec<usize> = places.collect();
        let distinct: std::collections::HashSet<_> = places.iter().collect();
        if distinct.len() == places.len() {
            assert_near(kernel.projected(), &layer.weight, 1e-12);
        }
        assert!(spectrum.clip(-1.0).is_err() && spectrum.clip(f64::NAN).is_err());
    }
}

#[test]
fn published_values_are_met() {
    let one = |kernel: &[f64], size: usize| {
        let conv = Conv::new([3]).padding([1]).padding_mode(PaddingMode::Circular);
        let layer = layer(conv, [size], [1, 1], kernel.to_vec(), false).unwrap();
        CircularSpectrum::new(&layer, Accuracy::Double).unwrap().values().to_vec()
    };
    let squares = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>();
    let values = one(&[2., 7., -1.], 20);
    assert!((values[0] - 8.005633637867).abs() < 1e-11 && (values[19] - 6.0).abs() < 1e-12);
    assert!((squares(&values) - 1080.0).abs() < 1e-9);
    for n in [3, 8, 13] {
        let sine = |k: usize| 4.0 * (k as f64 * std::f64::consts::PI / n as f64).sin().powi(2);
        let mut expected: Vec<f64> = (1..=n).map(sine).collect();
        expected.sort_unstable_by(|a, b| b.total_cmp(a));
        assert_near(&one(&[1., -2., 1.], n), &expected, 1e-14);
    }
    let kernel = vec![2., 7., -1., 1., 3., -8., 5., -3., 1.];
    let conv = Conv::new([3, 3]).padding([1, 1]).padding_mode(PaddingMode::Circular);
    let layer = layer(conv, [20, 20], [1, 1], kernel, false).unwrap();
    let spectrum = CircularSpectrum::new(&layer, Accuracy::Single).unwrap();
    let values = spectrum.values();
    assert!((values[0] - 22.9122134817).abs() < 1e-9 && (values[1] - 22.9122134817).abs() < 1e-9);
    assert!((values[399] - 0.15484141748).abs() < 1e-9);
    assert!((squares(values) - 65200.0).abs() < 1e-7);
    let logarithm: f64 = values.iter().map(|value| value.ln()).sum();
    assert_eq!(spectrum.log_determinant().unwrap(), logarithm);
}

#[test]
fn extreme_weights_neither_overflow_nor_vanish() {
    for factor in [1e-300, 1e-170, 1e170, 1e300] {
        let conv = Conv::new([3]).padding([1]).padding_mode(PaddingMode::Circular);
        let weight = Random::new(4).numbers(12).iter().map(|w| w * factor).collect();
        let layer = layer(conv, [8], [2, 2], weight, false).unwrap();
        for accuracy in [Accuracy::Single, Accuracy::Double] {
            let largest = CircularSpectrum::new(&layer, accuracy).unwrap().values()[0] / factor;
            assert!(largest > 0.1 && largest < 10.0, "{largest}");
        }
    }
}

#[test]
fn what_is_no_circulant_is_named() {
    let message = |conv: Conv<2>, input: [usize; 2]| {
        let layer = random_layer(&mut Random::new(5), conv, input, [1, 1], false).unwrap();
        CircularSpectrum::new(&layer, Accuracy::Double).unwrap_err().to_string()
    };
    let conv = Conv::new([3, 3]).padding([1, 1]);
    let found = message(conv, [5, 6]);
    assert!(
        found.starts_with("padding mode is zeros: an exact spectrum needs circular"),
        "{found}"
    );
    let conv = conv.padding_mode(PaddingMode::Circular);
    let found = message(conv.stride([1, 4]), [6, 6]);
    assert!(
        found.starts_with("stride on axis 1 is 4: an exact spectrum needs sizes that"),
        "{found}"
    );
    let found = message(conv.padding([0, 1]), [6, 6]);
    assert!(found.starts_with("output extent on axis 0 is 4"), "{found}");
    let layer = random_layer(&mut Random::new(6), Conv::new([1]), [4], [2, 1], false).unwrap();
    let error = CircularSpectrum::new(&layer, Accuracy::Double).unwrap().log_determinant();
    assert!(matches!(error, Err(Error::Shape { found, .. }) if found == [8, 4]));
}
