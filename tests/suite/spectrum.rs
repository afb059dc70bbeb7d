//! Singular values: closed forms, another library's decompositions of random operators, PyTorch's recorded
//! answers; brackets that hold, residuals that are true, and what an iteration owes its caller.

use std::f64::consts::PI;
use std::ops::ControlFlow;
use std::time::Duration;

use convmat::{
    Conv, Device, Element, Error, Method, NormOptions, Operator, PaddingMode, Progress, Spectrum,
    SpectrumOptions, Tensor, Top, with_axes,
};
use nalgebra::DMatrix;
use proptest::prelude::*;

use crate::catalogue::{accelerators, cases, conv, devices, last, on, randoms, tensor, values};
use crate::oracle::Case;

mod density;
mod lipschitz;
mod lowrank;
mod smallest;
mod torch;

fn quiet(_: &Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// All singular values by nalgebra, descending.
fn by_another_library(operator: &Operator<f64>) -> Vec<f64> {
    let [m, n] = operator.shape();
    let dense = values(&operator.to_dense().unwrap());
    let mut found = DMatrix::from_row_slice(m, n, &dense).singular_values().as_slice().to_vec();
    found.sort_by(|a, b| b.total_cmp(a));
    found
}

fn one_channel<const D: usize>(
    kernel: &[f64],
    extents: [usize; D],
    size: [usize; D],
    mode: PaddingMode,
) -> Operator<f64> {
    let shape = [&[1, 1][..], &extents].concat();
    let weight = tensor::<f64>(&shape, kernel);
    let conv = Conv::new(extents).padding(extents.map(|k| k / 2)).padding_mode(mode);
    conv.operator(&weight, size).unwrap()
}

fn close(found: f64, expected: f64, scale: f64, relative: f64, what: &str) {
    assert!(
        (found - expected).abs() <= relative * scale,
        "{what}: {found} for {expected}, scale {scale}"
    );
}

fn run(operator: &Operator<f64>, count: usize, method: Method) -> Spectrum<f64> {
    let options = SpectrumOptions::new().top(Top::Count(count)).method(method);
    operator.spectrum(&options, &mut quiet).unwrap()
}

/// Triplets are what they say: checked with the matrix itself, and with their own residuals.
fn check_triplets(operator: &Operator<f64>, found: &Spectrum<f64>, relative: f64, what: &str) {
    let [m, n] = operator.shape();
    let (u, v) = (found.u.as_ref().unwrap(), found.v.as_ref().unwrap());
    assert_eq!((u.shape()[1], v.shape()[1]), (m, n));
    let (us, vs) = (values(u), values(v));
    let (av, au) =
        (values(&operator.apply(v).unwrap()), values(&operator.apply_adjoint(u).unwrap()));
    let scale = found.values[0];
    for (i, &value) in found.values.iter().enumerate() {
        let norm = |image: &[f64], target: &[f64], len: usize| {
            let part = i * len..(i + 1) * len;
            let pairs = image[part.clone()].iter().zip(&target[part]);
            pairs.map(|(a, t)| (a - value * t).powi(2)).sum::<f64>().sqrt()
        };
        let residual = norm(&av, &us, m).max(norm(&au, &vs, n));
        assert!(residual <= relative * scale + 1e-300, "{what}: residual {residual} of {value}");
        close(found.residuals[i], residual, scale, 1e-13, what);
    }
    for (vectors, len) in [(&us, m), (&vs, n)] {
        for i in 0..found.values.len() {
            for j in 0..=i {
                let pairs = vectors[i * len..][..len].iter().zip(&vectors[j * len..][..len]);
                let product: f64 = pairs.map(|(a, b)| a * b).sum();
                close(product, f64::from(u8::from(i == j)), 1.0, 1e-9, what);
            }
        }
    }
    assert!(found.orthogonality < 1e-9, "{what}: {}", found.orthogonality);
}

#[test]
fn second_differences_have_closed_forms() {
    for n in [3usize, 20, 57] {
        let of = |mode| one_channel(&[1.0, -2.0, 1.0], [3], [n], mode);
        let squares = |angles: &mut dyn Iterator<Item = f64>| {
            let mut found: Vec<f64> = angles.map(|a| 4.0 * a.sin().powi(2)).collect();
            found.sort_by(|a, b| b.total_cmp(a));
            found
        };
        let nf = n as f64;
        let forms = [
            (PaddingMode::Zeros, squares(&mut (1..=n).map(|k| k as f64 * PI / (2.0 * (nf + 1.0))))),
            (PaddingMode::Replicate, squares(&mut (0..n).map(|k| k as f64 * PI / (2.0 * nf)))),
            (PaddingMode::Circular, squares(&mut (0..n).map(|k| k as f64 * PI / nf))),
        ];
        for (mode, expected) in forms {
            let operator = of(mode);
            let options = SpectrumOptions::new().top(Top::All);
            let all = operator.spectrum(&options, &mut quiet).unwrap();
            for (&found, &expected) in all.values.iter().zip(&expected) {
                close(found, expected, 4.0, 5e-14, &format!("{mode} {n} all"));
            }
            let count = n.min(4);
            let found = run(&operator, count, Method::Lanczos);
            assert!(found.is_converged());
            for (&found, &expected) in found.values.iter().zip(&expected) {
                close(found, expected, 4.0, 1e-9, &format!("{mode} {n} lanczos"));
            }
        }
    }
    // Zeros padding is above circular padding of the same size: its bound cannot come from there.
    let zeros = one_channel(&[1.0, -2.0, 1.0], [3], [3], PaddingMode::Zeros);
    let norm = zeros.spectral_norm().unwrap();
    close(norm.lower, 2.0 + 2f64.sqrt(), 1.0, 1e-9, "zeros");
    assert!(norm.upper.unwrap() >= 2.0 + 2f64.sqrt());
    let circular = one_channel(&[1.0, -2.0, 1.0], [3], [3], PaddingMode::Circular);
    close(circular.spectral_norm().unwrap().upper.unwrap(), 3.0, 1.0, 1e-9, "circular");
}

#[test]
fn known_layers_have_their_values() {
    let square = [2.0, 7.0, -1.0, 1.0, 3.0, -8.0, 5.0, -3.0, 1.0];
    let known = [
        (PaddingMode::Circular, 22.9122134817, 22.9122134817, 65200.0),
        (PaddingMode::Zeros, 22.72753302, 22.7274434383, 61531.0),
        (PaddingMode::Replicate, 22.7905021857, f64::NAN, 64666.0),
        (PaddingMode::Reflect, 22.7147400929, f64::NAN, 63816.0),
    ];
    for (mode, most, second, squares) in known {
        let operator = one_channel(&square, [3, 3], [20, 20], mode);
        let frobenius = operator.frobenius_norm().unwrap().unwrap();
        close(frobenius * frobenius, squares, squares, 1e-13, "Frobenius");
        for method in [Method::Lanczos, Method::Dense] {
            let found = run(&operator, 2, method);
            close(found.values[0], most, most, 1e-9, &format!("{mode} {method}"));
            if !second.is_nan() {
                close(found.values[1], second, most, 1e-9, &format!("{mode} {method}"));
            }
            check_triplets(&operator, &found, 1e-9, &format!("{mode} {method}"));
        }
        let norm = operator.spectral_norm().unwrap();
        assert!(norm.lower <= most + 1e-8 && most <= norm.upper.unwrap() + 1e-8);
        assert!(most <= norm.probabilistic_upper.unwrap() + 1e-8);
    }
    let operator = one_channel(&square, [3, 3], [20, 20], PaddingMode::Circular);
    let all = operator.spectrum(&SpectrumOptions::new().top(Top::All), &mut quiet).unwrap();
    assert_eq!(all.method, Method::Circular);
    close(all.values[399], 0.15484141748, 1.0, 1e-10, "the least");
    let line = one_channel(&[2.0, 7.0, -1.0], [3], [20], PaddingMode::Circular);
    let all = line.spectrum(&SpectrumOptions::new().top(Top::All), &mut quiet).unwrap();
    close(all.values[0], 8.005633637867, 8.0, 1e-12, "most");
    close(all.values[19], 6.0, 8.0, 1e-12, "least");
    close(all.condition_number().unwrap(), 8.005633637867 / 6.0, 1.0, 1e-12, "condition");
}

/// A dense operator with these singular values, by rotations of its axes.
fn with_values(device: &Device, [m, n]: [usize; 2], wanted: &[f64], seed: u64) -> Operator<f64> {
    let orthogonal = |size: usize, seed: u64| {
        let random = DMatrix::from_row_slice(size, size, &randoms(size * size, seed));
        random.qr().q()
    };
    let mut middle = DMatrix::zeros(m, n);
    wanted.iter().enumerate().for_each(|(i, &value)| middle[(i, i)] = value);
    let product = orthogonal(m, seed) * middle * orthogonal(n, seed + 1);
    let rows: Vec<f64> = product.transpose().as_slice().to_vec();
    Operator::from_dense(on(device, &tensor::<f64>(&[m, n], &rows))).unwrap()
}

#[test]
fn operators_of_every_kind_have_their_values() {
    let clustered: Vec<f64> =
        (0..30).map(|i| if i < 5 { 3.0 } else { 2.0 / (1 + i) as f64 }).collect();
    let close_by: Vec<f64> = (0..40).map(|i| 1.0 - 1e-4 * f64::from(i)).collect();
    let kinds: Vec<(&str, [usize; 2], Vec<f64>)> = vec![
        ("tall", [60, 12], (1..=12).rev().map(f64::from).collect()),
        ("wide", [12, 60], (1..=12).rev().map(f64::from).collect()),
        ("of rank 3", [40, 30], vec![5.0, 4.0, 1.0]),
        ("of rank 1", [20, 20], vec![2.0]),
        ("clustered", [50, 30], clustered),
        ("flat", [60, 40], close_by),
        ("zero", [10, 8], vec![]),
        ("1 by 1", [1, 1], vec![7.0]),
        ("1 by n", [1, 30], vec![2.5]),
        ("the identity", [25, 25], vec![1.0; 25]),
    ];
    for device in devices() {
        for (name, shape, wanted) in &kinds {
            let least = shape[0].min(shape[1]);
            let mut expected = wanted.clone();
            expected.resize(least, 0.0);
            let operator = with_values(device, *shape, wanted, 11);
            for method in [Method::Lanczos, Method::Dense] {
                for count in [1, 6, least] {
                    let count = count.min(least);
                    let what = format!("{name} by {method}, {count}, on {device}");
                    let found = run(&operator, count, method);
                    assert!(found.is_converged(), "{what}: {:?}", found.residuals);
                    let scale = expected[0].max(1e-300);
                    for (&found, &expected) in found.values.iter().zip(&expected) {
                        close(found, expected, scale, 1e-9, &what);
                    }
                    // Values of zero are said to be that.
                    let zeros = found.values.iter().filter(|&&value| value == 0.0).count();
                    let none = expected[..count].iter().filter(|&&value| value == 0.0).count();
                    assert_eq!(zeros, none, "{what}: {:?}", found.values);
                    check_triplets(&operator, &found, 1e-9, &what);
                }
            }
        }
    }
}

/// Groups with the same weights: every value occurs as often as there are groups, and exactly.
#[test]
fn multiple_values_are_found_as_often_as_they_occur() {
    let part = randoms(2 * 2 * 9, 3);
    let weights: Vec<f64> = (0..4).flat_map(|_| part.clone()).collect();
    let weight = tensor::<f64>(&[8, 2, 3, 3], &weights);
    let conv = Conv::new([3, 3]).padding([1, 1]).groups(4);
    let operator = conv.operator(&weight, [9, 9]).unwrap();
    let exact = run(&operator, 12, Method::Dense);
    for block in [1, 4] {
        for count in [2, 5, 12] {
            let options =
                SpectrumOptions::new().top(Top::Count(count)).method(Method::Lanczos).block(block);
            let found = operator.spectrum(&options, &mut quiet).unwrap();
            assert!(found.is_converged());
            for (at, value) in found.values.iter().enumerate() {
                close(*value, exact.values[at], 1.0, 1e-8, &format!("{block} {count} {at}"));
            }
        }
    }
}

fn layer<T: Element>(case: &Case, device: &Device) -> Operator<T::Acc> {
    let weights = randoms(case.weight_len(), 5);
    let weight = on(device, &tensor::<T>(&case.weight_shape(), &weights));
    with_axes!(case.spatial, D => conv::<D>(case).operator(&weight, last(case.input))).unwrap()
}

/// Values, brackets and Frobenius norm of a random layer against a decomposition by another library.
fn check_layer(case: &Case, device: &Device) {
    let operator = layer::<f64>(case, device);
    let expected = by_another_library(&operator);
    let what = format!("{case:?} on {device}");
    let scale = expected[0].max(1e-300);
    let count = expected.len().min(5);
    for method in [Method::Lanczos, Method::Dense, Method::Auto] {
        let found = run(&operator, count, method);
        assert!(found.is_converged(), "{method} {what}: {:?}", found.residuals);
        for (&found, &expected) in found.values.iter().zip(&expected) {
            close(found, expected, scale, 2e-9, &format!("{method} {what}"));
        }
        check_triplets(&operator, &found, 2e-9, &format!("{method} {what}"));
    }
    let options = SpectrumOptions::new().top(Top::All).vectors(false);
    let all = operator.spectrum(&options, &mut quiet).unwrap();
    for (&found, &expected) in all.values.iter().zip(&expected) {
        close(found, expected, scale, 1e-12, &what);
    }
    let squares: f64 = expected.iter().map(|value| value * value).sum();
    close(operator.frobenius_norm().unwrap().unwrap(), squares.sqrt(), scale, 1e-11, &what);
    let norm = operator.spectral_norm().unwrap();
    assert!(norm.lower <= scale * (1.0 + 1e-12), "{what}: {norm:?} {scale}");
    assert!(norm.upper.unwrap() >= expected[0] * (1.0 - 1e-12), "{what}: {norm:?} {scale}");
    assert!(norm.probabilistic_upper.unwrap() >= expected[0] * (1.0 - 1e-12), "{what}: {norm:?}");
    let approximate = run(&operator, count, Method::Randomized);
    for (at, &value) in approximate.values.iter().enumerate() {
        assert!(value <= expected[at] + 1e-9 * scale, "{what}");
    }
    // How far off they are is theirs to say; that they say it truly is checked.
    check_triplets(&operator, &approximate, 10.0, &what);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn random_layers_have_their_values(case in cases()) {
        let size = case.input.iter().product::<usize>().max(case.positions());
        if size * case.channels.max(case.outputs) < 400 {
            check_layer(&case, &Device::Cpu);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]
    #[test]
    fn random_layers_have_their_values_on_accelerators(case in cases()) {
        let size = case.input.iter().product::<usize>().max(case.positions());
        if size * case.channels.max(case.outputs) < 100 {
            accelerators().iter().for_each(|device| check_layer(&case, device));
        }
    }
}

/// The same seed gives the same bytes, whatever the number of threads; `f32` is right to its rounding.
#[test]
fn spectra_are_deterministic() {
    let weight = tensor::<f32>(&[8, 6, 3, 3], &randoms(8 * 6 * 9, 9));
    let operator = Conv::new([3, 3]).padding([1, 1]).operator(&weight, [33, 40]).unwrap();
    let of = |threads: usize, method: Method| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let options = SpectrumOptions::new().top(Top::Count(4)).method(method).seed(3);
        pool.install(|| operator.spectrum(&options, &mut quiet).unwrap())
    };
    for method in [Method::Lanczos, Method::Randomized] {
        let first = of(1, method);
        for threads in [2, 5] {
            let same = of(threads, method);
            assert_eq!(first.values, same.values, "{method}");
            assert_eq!(first.residuals, same.residuals);
            assert_eq!(first.u, same.u);
            assert_eq!(first.v, same.v);
        }
        assert_eq!(first.is_converged(), method == Method::Lanczos, "{:?}", first.residuals);
    }
    let double = tensor::<f64>(&[8, 6, 3, 3], &values(&weight));
    let double = Conv::new([3, 3]).padding([1, 1]).operator(&double, [33, 40]).unwrap();
    let (single, double) = (of(2, Method::Lanczos), run(&double, 4, Method::Lanczos));
    for (&single, &double) in single.values.iter().zip(&double.values) {
        close(single, double, double, 1e-6, "f32");
    }
}

#[test]
fn an_iteration_ends_when_it_is_told_to() {
    let weight = tensor::<f64>(&[16, 16, 3, 3], &randoms(16 * 16 * 9, 9));
    let operator = Conv::new([3, 3]).padding([1, 1]).operator(&weight, [24, 24]).unwrap();
    let options = SpectrumOptions::new().method(Method::Lanczos).tolerance(1e-12);
    let mut calls = 0;
    let found = operator.spectrum(&options, &mut |progress| {
        calls += 1;
        assert_eq!((progress.wanted, progress.converged), (6, 0));
        if calls < 9 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    let found = found.unwrap();
    assert_eq!(calls, 9);
    assert!(found.interrupted && !found.is_converged());
    assert_eq!(found.norm(), None);
    assert!(found.residuals[0] > 1e-6);

    let few = operator.spectrum(&options.clone().applications(60), &mut quiet).unwrap();
    assert!(few.interrupted && few.applications < 200, "{}", few.applications);
    let soon = options.clone().deadline(Duration::ZERO);
    assert!(operator.spectrum(&soon, &mut quiet).unwrap().interrupted);
}

#[test]
fn options_out_of_range_are_refused() {
    let weight = tensor::<f64>(&[2, 2, 3], &[1.0; 12]);
    let operator = Conv::new([3]).padding([1]).operator(&weight, [10]).unwrap();
    let refused = |options: SpectrumOptions| match operator.spectrum(&options, &mut quiet) {
        Err(Error::Invalid { argument, value, .. }) => format!("{argument} {value}"),
        other => panic!("{other:?}"),
    };
    let options = SpectrumOptions::new;
    assert_eq!(refused(options().top(Top::Count(0))), "number of singular values 0");
    assert_eq!(refused(options().top(Top::Count(21))), "number of singular values 21");
    assert_eq!(refused(options().tolerance(0.0)), "tolerance 0");
    assert_eq!(refused(options().tolerance(f64::NAN)), "tolerance NaN");
    assert_eq!(refused(options().top(Top::All).method(Method::Lanczos)), "method lanczos");
    assert!(refused(options().method(Method::Circular)).contains("zeros"));
    for options in [NormOptions::new().gap(0.0), NormOptions::new().failure_probability(1.0)] {
        assert!(operator.norm(&options, &mut quiet).is_err());
    }
    let large = tensor::<f32>(&[16, 16, 3, 3], &[1.0; 16 * 16 * 9]);
    let large = Conv::new([3, 3]).padding([1, 1]).operator(&large, [32, 32]).unwrap();
    let options = SpectrumOptions::new().method(Method::Dense);
    let error = large.spectrum(&options, &mut quiet).unwrap_err().to_string();
    assert!(error.contains("16384 x 16384"), "{error}");
    let empty = Operator::<f64>::from_dense(Tensor::zeros(&Device::Cpu, &[0, 3]).unwrap());
    assert!(empty.unwrap().svd(1).is_err());
}

/// A norm that algebra bounds, and one whose bracket is the layer's own.
#[test]
fn bounds_follow_the_algebra() {
    let weight = |seed: u64| tensor::<f64>(&[3, 3, 3], &randoms(27, seed));
    let layer = |seed| Conv::new([3]).padding([1]).operator(&weight(seed), [15]).unwrap();
    let (a, b) = (layer(1), layer(2));
    let sparse = Operator::from_csr(a.to_matrix().unwrap()).unwrap();
    let dense = Operator::from_dense(b.to_dense().unwrap()).unwrap();
    let operators = [
        &a * &b,
        &a + &b,
        &a - &(0.25 * &b),
        a.adjoint(),
        (&a.adjoint() * &a).complement().unwrap(),
        &sparse * &dense,
    ];
    for operator in &operators {
        let norm = operator.spectral_norm().unwrap();
        let exact = by_another_library(operator)[0];
        assert!(norm.lower <= exact * (1.0 + 1e-12) && exact <= norm.upper.unwrap(), "{norm:?}");
        assert!(exact <= norm.probabilistic_upper.unwrap());
        // A random start in so small a space sees all of it.
        close(norm.lower, exact, exact, 1e-9, "lower");
    }
    let closure = Operator::from_fn(&Device::Cpu, [2, 2], |_, _| Ok(()), |_, _| Ok(()));
    let closure: Operator<f32> = closure;
    assert_eq!(closure.norm_bound().unwrap(), None);
}
