//! Spectral densities: exact histograms and sums that they come near to, as near as they say.

use std::ops::ControlFlow;

use convmat::{
    Conv, DensityOptions, Device, Error, Estimate, Operator, PaddingMode, SpectralDensity,
    SpectrumOptions, Tensor, Top,
};

use super::{by_another_library, close, quiet, with_values};
use crate::catalogue::{accelerators, devices, on, randoms, tensor};

fn density(operator: &Operator<f64>, options: &DensityOptions) -> SpectralDensity {
    operator.spectral_density(options, &mut quiet).unwrap()
}

/// Numbers of values in the bins of a density, those above the last edge in the last.
fn histogram(exact: &[f64], edges: &[f64]) -> Vec<f64> {
    let mut counts = vec![0.0; edges.len() - 1];
    for value in exact {
        let above = edges.partition_point(|edge| edge <= value);
        counts[(above.max(1) - 1).min(edges.len() - 2)] += 1.0;
    }
    counts
}

/// The share of all values that a histogram has in another bin than the exact one.
fn misplaced(found: &SpectralDensity, exact: &[f64]) -> f64 {
    let exact_counts = histogram(exact, &found.edges);
    let pairs = found.counts.iter().zip(&exact_counts);
    pairs.map(|(found, exact)| (found - exact).abs()).sum::<f64>() / 2.0 / exact.len() as f64
}

fn within(estimate: Estimate, exact: f64, what: &str) {
    let error = (estimate.value - exact).abs();
    let allowed = 5.0 * estimate.standard_error + estimate.quadrature_error + 1e-9 * exact.abs();
    assert!(error <= allowed, "{what}: {estimate:?} for {exact}");
}

/// A density against all singular values: sums within their errors, cumulative numbers within their bounds,
/// and at most a share of the values in wrong bins.
fn check(found: &SpectralDensity, exact: &[f64], share: f64, what: &str) {
    let (bins, all) = (found.counts.len(), exact.len() as f64);
    assert_eq!((found.edges.len(), found.below.len()), (bins + 1, bins + 1), "{what}");
    close(found.counts.iter().sum(), all, all, 1e-12, what);
    close(found.shares().iter().sum(), 1.0, 1.0, 1e-12, what);
    let wrong = misplaced(found, exact);
    assert!(wrong <= share, "{what}: {wrong} in wrong bins");
    let expected = histogram(exact, &found.edges);
    for (bin, expected) in expected.iter().enumerate() {
        let error = (found.counts[bin] - expected).abs();
        let allowed = 5.0 * found.standard_errors[bin] + share * all;
        assert!(error <= allowed, "{what}: bin {bin}, {error} against {allowed}");
    }
    within(found.sum_of_squares, exact.iter().map(|v| v * v).sum(), what);
    within(found.nuclear_norm, exact.iter().sum(), what);

    // Components of a random direction are of half the values at most: so their sum deviates by this.
    let deviation = 5.0 * (all / 2.0 / found.probes as f64).sqrt();
    let mut counted = 0.0;
    for edge in 0..=bins {
        let [least, most] = found.below[edge];
        assert!(least <= counted + 1e-9 * all && counted <= most + 1e-9 * all, "{what}, {edge}");
        // The last bin has what is above the largest that was found, too.
        let below = exact.iter().filter(|&&v| v < found.edges[edge]).count() as f64;
        let below = if edge == bins { all } else { below };
        assert!(least - deviation <= below && below <= most + deviation, "{what}, {edge}: {below}");
        counted += found.counts.get(edge).copied().unwrap_or(0.0);
    }
}

/// A circular layer and all its singular values.
fn circular<const D: usize>(
    [outputs, channels]: [usize; 2],
    kernel: [usize; D],
    size: [usize; D],
    weights: &[f64],
) -> (Operator<f64>, Vec<f64>) {
    let shape = [&[outputs, channels][..], &kernel].concat();
    let conv = Conv::new(kernel).padding(kernel.map(|k| k / 2));
    let conv = conv.padding_mode(PaddingMode::Circular);
    let operator = conv.operator(&tensor::<f64>(&shape, weights), size).unwrap();
    let exact = operator.circular().unwrap().values().to_vec();
    (operator, exact)
}

/// Eight output channels that depend on four.
fn of_half_rank() -> Vec<f64> {
    let (outer, inner) = (randoms(8 * 4, 3), randoms(4 * 8 * 9, 4));
    let mut weights = vec![0.0; 8 * 72];
    for (at, weight) in weights.iter_mut().enumerate() {
        let (o, rest) = (at / 72, at % 72);
        *weight = (0..4).map(|r| outer[o * 4 + r] * inner[r * 72 + rest]).sum();
    }
    weights
}

#[test]
fn exact_histograms_of_circular_layers_are_met() {
    let stencil = [0.0, 1.0, 0.0, 1.0, -4.0, 1.0, 0.0, 1.0, 0.0];
    // What of it is a singularity within a bin, or a value at an edge, is in the share.
    let layers = [
        ("random", circular([8, 8], [3, 3], [16, 16], &randoms(8 * 72, 1)), 0.025),
        ("tall", circular([16, 8], [3, 3], [16, 16], &randoms(16 * 72, 2)), 0.025),
        ("wide", circular([8, 16], [3, 3], [16, 16], &randoms(16 * 72, 2)), 0.025),
        ("stencil", circular([1, 1], [3, 3], [40, 40], &stencil), 0.05),
        ("box", circular([1, 1], [3, 3], [40, 40], &[1.0 / 9.0; 9]), 0.05),
        ("pointwise", circular([8, 8], [1, 1], [16, 16], &randoms(64, 5)), 0.02),
        ("half rank", circular([8, 8], [3, 3], [16, 16], &of_half_rank()), 0.025),
    ];
    for (name, (operator, exact), share) in &layers {
        let found = density(operator, &DensityOptions::new().steps(50).bins(20));
        assert_eq!(found.shape, operator.shape());
        check(&found, exact, *share, name);
        assert!(found.edges[20] <= exact[0] * (1.0 + 2e-6), "{name}");
        close(found.edges[20], exact[0], exact[0], 0.02, name);
    }
    // A multiple value stays in its bin, however narrow that is.
    let (operator, exact) = &layers[6].1;
    let found = density(operator, &DensityOptions::new().steps(50).bins(50));
    check(&found, exact, 0.05, "half rank, narrow bins");
    // More steps resolve more.
    let (operator, exact) = &layers[0].1;
    let of = |steps| density(operator, &DensityOptions::new().steps(steps).bins(20));
    let (few, many) = (misplaced(&of(4), exact), misplaced(&of(50), exact));
    assert!(few > 2.0 * many, "{few} {many}");
    let (few, many) = (of(4).nuclear_norm, of(50).nuclear_norm);
    assert!(few.quadrature_error > 10.0 * many.quadrature_error, "{few:?} {many:?}");
    within(few, exact.iter().sum(), "of four steps");
}

#[test]
fn sums_of_squares_are_frobenius_norms() {
    for (at, mode) in PaddingMode::ALL.into_iter().enumerate() {
        for (stride, groups) in [(1, 1), (2, 2)] {
            let weight = tensor::<f64>(&[6, 4 / groups, 3, 3], &randoms(54 * 4 / groups, 7));
            let conv = Conv::new([3, 3]).padding([1, 1]).padding_mode(mode);
            let conv = conv.stride([stride, stride]).groups(groups);
            let operator = conv.operator(&weight, [12, 10]).unwrap();
            let options = DensityOptions::new().steps(3).seed(at as u64);
            let squares = operator.frobenius_norm().unwrap().unwrap().powi(2);
            let found = density(&operator, &options).sum_of_squares;
            within(found, squares, &format!("{mode}"));
            // One step is enough for it.
            assert_eq!(found.quadrature_error, 0.0);
            assert!(found.standard_error > 0.0 && found.standard_error < 0.1 * squares);
            let adjoint = density(&operator.adjoint(), &options).sum_of_squares;
            within(adjoint, squares, &format!("adjoint, {mode}"));
        }
    }
}

/// Errors are as large as is said: over many seeds, deviations in standard errors have a second moment of
/// about 1 (of Student's distribution, 15/13).
#[test]
fn standard_errors_are_those_of_the_probes() {
    let (operator, exact) = circular([4, 4], [3], [32], &randoms(48, 1));
    let squares: f64 = exact.iter().map(|v| v * v).sum();
    let (mut of_squares, mut of_nuclear) = (0.0, 0.0);
    let seeds = 200;
    for seed in 0..seeds {
        let options = DensityOptions::new().probes(16).steps(40).bins(1).seed(seed);
        let found = density(&operator, &options);
        let (a, b) = (found.sum_of_squares, found.nuclear_norm);
        of_squares += ((a.value - squares) / a.standard_error).powi(2);
        of_nuclear += ((b.value - exact.iter().sum::<f64>()) / b.standard_error).powi(2);
    }
    for moment in [of_squares, of_nuclear].map(|sum| sum / seeds as f64) {
        assert!((0.8..1.6).contains(&moment), "{moment}");
    }
}

#[test]
fn operators_of_every_kind_have_their_densities() {
    for device in devices() {
        let identity = Operator::<f64>::identity(device, 25);
        let found = density(&identity, &DensityOptions::new().bins(5));
        for (bin, count) in [0.0, 0.0, 0.0, 0.0, 25.0].into_iter().enumerate() {
            close(found.counts[bin], count, 25.0, 1e-13, "identity");
            assert!(found.standard_errors[bin] < 1e-12);
            close(found.below[bin][1], 0.0, 1.0, 1e-13, "identity");
        }
        // One step, forth and back, is all there is.
        assert_eq!(found.applications, 16);
        for (estimate, exact) in [
            (found.sum_of_squares, 25.0),
            (found.nuclear_norm, 25.0),
            (found.log_determinant.unwrap(), 0.0),
        ] {
            close(estimate.value, exact, 25.0, 1e-13, "identity");
            assert!(estimate.standard_error < 1e-12 && estimate.quadrature_error < 1e-12);
        }

        let zero = with_values(device, [6, 4], &[], 1);
        let found = density(&zero, &DensityOptions::new().bins(2));
        assert_eq!((found.edges, found.counts), (vec![0.0, 0.5, 1.0], vec![4.0, 0.0]));
        assert_eq!(found.standard_errors, [0.0, 0.0]);
        assert_eq!((found.sum_of_squares.value, found.nuclear_norm.value), (0.0, 0.0));
        assert_eq!(found.log_determinant, None);

        let one = with_values(device, [1, 1], &[7.0], 1);
        let found = density(&one, &DensityOptions::new().bins(2));
        assert_eq!(found.counts, [0.0, 1.0]);
        close(found.sum_of_squares.value, 49.0, 49.0, 1e-14, "1 by 1");
        close(found.log_determinant.unwrap().value, 7f64.ln(), 2.0, 1e-14, "1 by 1");
        close(found.stable_rank(), 1.0, 1.0, 1e-5, "1 by 1");
    }
    let descending: Vec<f64> = (1..=40).rev().map(|v| f64::from(v) / 4.0).collect();
    for (name, shape, wanted) in [
        ("tall", [90, 40], &descending[..]),
        ("wide", [40, 90], &descending[..]),
        ("square", [40, 40], &descending[..]),
        ("of rank 3", [40, 30], &[5.0, 4.0, 1.0]),
        ("one row", [1, 30], &[2.5]),
    ] {
        let operator = with_values(&Device::Cpu, shape, wanted, 11);
        let exact = by_another_library(&operator);
        let found = density(&operator, &DensityOptions::new().probes(200).bins(8));
        // What is wrong is the probes' deviation.
        check(&found, &exact, 0.04, name);
        let determinant = found.log_determinant;
        assert_eq!(determinant.is_some(), name == "square");
        if let Some(estimate) = determinant {
            let exact = exact.iter().map(|v| v.ln()).sum();
            within(estimate, exact, name);
            // As many steps as there are values see all of them.
            assert!(estimate.standard_error < 0.1 * exact, "{estimate:?}");
        }
    }
}

/// Where values keep away from 0, few steps tell the determinant; where they do not, it is said.
#[test]
fn logarithms_of_determinants_are_as_good_as_they_say() {
    let mut weights: Vec<f64> = randoms(4 * 36, 2).iter().map(|w| 0.05 * w).collect();
    (0..4).for_each(|c| weights[c * 36 + c * 9 + 4] += 1.0);
    let (operator, exact) = circular([4, 4], [3, 3], [20, 20], &weights);
    let expected = operator.circular().unwrap().log_determinant().unwrap();
    let good = density(&operator, &DensityOptions::new().steps(24)).log_determinant.unwrap();
    within(good, expected, "near the identity");
    assert!(good.quadrature_error < 1e-3 * exact.len() as f64, "{good:?}");

    let (operator, _) = circular([1, 1], [3], [600], &[1.0, -1.999, 1.0]);
    let expected = operator.circular().unwrap().log_determinant().unwrap();
    let bad = density(&operator, &DensityOptions::new().steps(24)).log_determinant.unwrap();
    assert!(bad.quadrature_error > 3.0 * bad.standard_error, "{bad:?} for {expected}");
    assert!(bad.value > expected);

    let (operator, _) = circular([8, 8], [3, 3], [6, 6], &of_half_rank());
    let found = density(&operator, &DensityOptions::new().steps(200));
    assert_eq!(found.log_determinant, None);
}

#[test]
fn densities_are_deterministic_and_alike_on_every_device() {
    let weights = randoms(8 * 6 * 9, 9);
    let conv = Conv::new([3, 3]).padding([1, 1]);
    let single = conv.operator(&tensor::<f32>(&[8, 6, 3, 3], &weights), [21, 18]).unwrap();
    let options = DensityOptions::new().probes(11).steps(12).seed(3);
    let of = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| single.spectral_density(&options, &mut quiet).unwrap())
    };
    let first = of(1);
    assert_eq!(first.probes, 11);
    assert_eq!(first.applications, 2 * 11 * 12);
    assert_eq!((first.clone(), first.clone()), (of(2), of(5)));
    let other = single.spectral_density(&options.seed(4), &mut quiet).unwrap();
    assert_ne!(first.counts, other.counts);

    let weight = tensor::<f32>(&[8, 6, 3, 3], &weights);
    let double = conv.operator(&weight.cast::<f64>().unwrap(), [21, 18]).unwrap();
    let double = density(&double, &options);
    let least = 21.0 * 18.0 * 6.0;
    let alike = |found: &SpectralDensity, what: &str| {
        for (found, expected) in found.counts.iter().zip(&double.counts) {
            close(*found, *expected, least, 1e-5, what);
        }
        for (found, expected) in found.standard_errors.iter().zip(&double.standard_errors) {
            close(*found, *expected, least, 1e-5, what);
        }
        let (found, expected) = (found.nuclear_norm, double.nuclear_norm);
        close(found.value, expected.value, expected.value, 1e-6, what);
    };
    alike(&first, "f32");
    for device in accelerators() {
        let weight = on(device, &weight);
        let there = conv.operator(&weight, [21, 18]).unwrap();
        let few = options.probes(2).steps(4);
        let here = single.spectral_density(&few, &mut quiet).unwrap();
        let there = there.spectral_density(&few, &mut quiet).unwrap();
        for (there, here) in there.counts.iter().zip(&here.counts) {
            close(*there, *here, least, 1e-5, &format!("{device}"));
        }
        assert_eq!(there.applications, here.applications);
    }
}

#[test]
fn a_density_ends_when_it_is_told_to() {
    let (operator, exact) = circular([4, 4], [3, 3], [16, 16], &randoms(4 * 36, 1));
    let options = DensityOptions::new().probes(20).steps(30).bins(10);
    let mut calls = Vec::new();
    let found = operator.spectral_density(&options, &mut |progress| {
        assert_eq!(progress.wanted, 20);
        calls.push((progress.applications, progress.converged));
        if calls.len() < 40 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    let found = found.unwrap();
    assert!(found.interrupted);
    // Eight at a time, to the end and to the tenth step.
    assert_eq!((calls[29], calls[39]), ((480, 8), (640, 8)));
    assert_eq!((found.probes, found.applications), (16, 640));
    check(&found, &exact, 0.1, "interrupted");

    let at_once = operator.spectral_density(&options, &mut |_| ControlFlow::Break(())).unwrap();
    assert!(at_once.interrupted && at_once.standard_errors.iter().all(|error| error.is_finite()));
    within(at_once.sum_of_squares, exact.iter().map(|v| v * v).sum(), "one step");
    within(at_once.nuclear_norm, exact.iter().sum(), "one step");
    // Nothing is left to be ended.
    let last =
        operator.spectral_density(&options.probes(2).steps(1), &mut |_| ControlFlow::Break(()));
    assert!(!last.unwrap().interrupted);
}

#[test]
fn densities_out_of_range_are_refused() {
    let identity = Operator::<f32>::identity(&Device::Cpu, 10);
    let refused = |options: DensityOptions| match identity.spectral_density(&options, &mut quiet) {
        Err(Error::Invalid { argument, value, .. }) => format!("{argument} {value}"),
        other => panic!("{other:?}"),
    };
    let options = DensityOptions::new;
    assert_eq!(refused(options().probes(1)), "number of probes 1");
    assert_eq!(refused(options().steps(0)), "number of steps 0");
    assert_eq!(refused(options().steps(5000)), "number of steps 5000");
    assert_eq!(refused(options().bins(0)), "number of bins 0");
    assert_eq!(refused(options().bins(usize::MAX)), "number of bins 18446744073709551615");
    let empty = Operator::<f64>::from_dense(Tensor::zeros(&Device::Cpu, &[0, 3]).unwrap());
    assert!(empty.unwrap().spectral_density(&options(), &mut quiet).is_err());
    for value in [f64::NAN, f64::INFINITY, 1e200] {
        let operator = Operator::from_dense(tensor::<f64>(&[2, 1], &[1.0, value])).unwrap();
        let error = operator.spectral_density(&options(), &mut quiet).unwrap_err().to_string();
        assert!(error.contains("not finite"), "{error}");
    }
}

/// A layer that is no circulant: the counts are those of a dense decomposition.
#[test]
fn layers_that_pad_with_zeros_have_their_histograms() {
    let weight = tensor::<f64>(&[6, 6, 3, 3], &randoms(6 * 54, 4));
    let operator = Conv::new([3, 3]).padding([1, 1]).operator(&weight, [9, 9]).unwrap();
    let all = SpectrumOptions::new().top(Top::All).vectors(false);
    let exact = operator.spectrum(&all, &mut quiet).unwrap().values;
    let options = DensityOptions::new().probes(64).bins(20);
    check(&density(&operator, &options), &exact, 0.03, "zeros");
}
