//! Distances from isometries, operators of norm 1 and bounds of networks, against decompositions.

use convmat::{Conv, Device, Error, Norm, Operator, PaddingMode, Tensor, product_bound};
use nalgebra::DMatrix;

use super::{by_another_library, close, with_values};
use crate::catalogue::{devices, on, randoms, tensor, values};

/// ‖AᵀA − I‖₂ by the definition: the largest magnitude of an eigenvalue.
fn defect(operator: &Operator<f64>) -> f64 {
    let [m, n] = operator.shape();
    let a = DMatrix::from_row_slice(m, n, &values(&operator.to_dense().unwrap()));
    let difference = a.transpose() * a - DMatrix::identity(n, n);
    difference.symmetric_eigenvalues().iter().fold(0.0, |most: f64, v| most.max(v.abs()))
}

fn check(operator: &Operator<f64>, exact: bool, what: &str) {
    let (found, expected) = (operator.orthogonality_defect().unwrap(), defect(operator));
    let scale = 1.0 + expected;
    let upper = found.upper.unwrap();
    assert!(found.lower <= expected + 1e-11 * scale, "{what}: {found:?} for {expected}");
    assert!(expected <= upper + 1e-11 * scale, "{what}: {found:?} for {expected}");
    match exact {
        true => {
            close(found.lower, expected, scale, 1e-11, what);
            close(upper, expected, scale, 1e-11, what);
            assert_eq!(found.applications, 0, "{what}");
        }
        false => {
            // The iteration ends when both bounds are within 1% of one another.
            assert!(found.lower >= 0.99 * expected - 1e-8 * scale, "{what}: {found:?}");
            assert!(found.probabilistic_upper.unwrap() >= expected * (1.0 - 1e-12), "{what}");
            assert!(upper >= 1.0 && found.applications > 0, "{what}");
        }
    }
}

fn layer<const D: usize>(
    [outputs, channels]: [usize; 2],
    conv: Conv<D>,
    size: [usize; D],
    scale: f64,
) -> Operator<f64> {
    let len = outputs * channels * 3usize.pow(D as u32);
    let shape = [&[outputs, channels][..], &[3; D]].concat();
    let weights: Vec<f64> = randoms(len, 5).iter().map(|w| scale * w).collect();
    conv.operator(&tensor::<f64>(&shape, &weights), size).unwrap()
}

#[test]
fn defects_are_those_of_the_gram_matrix() {
    let zeros = Conv::new([3, 3]).padding([1, 1]);
    let torus = zeros.padding_mode(PaddingMode::Circular);
    for scale in [0.05, 1.0] {
        for (channels, shape) in [([2, 2], "square"), ([4, 2], "tall"), ([2, 4], "wide")] {
            let circular = layer(channels, torus, [5, 4], scale);
            check(&circular, true, &format!("{shape} circular {scale}"));
            check(&circular.adjoint(), true, &format!("{shape} circular adjoint {scale}"));
            check(&circular.scale(-0.3), true, &format!("{shape} circular multiple {scale}"));
            let strided = layer(channels, torus.stride([1, 2]), [5, 4], scale);
            check(&strided, true, &format!("{shape} strided {scale}"));
            let open = layer(channels, zeros, [5, 4], scale);
            check(&open, false, &format!("{shape} zeros {scale}"));
            check(&open.adjoint(), false, &format!("{shape} zeros adjoint {scale}"));
        }
    }
    // A wide contraction: 1 from both sides.
    let wide = layer([2, 4], zeros, [5, 4], 0.05).orthogonality_defect().unwrap();
    close(wide.lower, 1.0, 1.0, 1e-12, "wide");
    close(wide.upper.unwrap(), 1.0, 1.0, 1e-12, "wide");
}

#[test]
fn isometries_have_no_defect() {
    let identity = Operator::<f32>::identity(&Device::Cpu, 9);
    let found = identity.orthogonality_defect().unwrap();
    assert!(found.lower == 0.0 && found.upper.unwrap() < 1e-11);
    // A shift of the torus, in `f32`: exact all the same.
    let weight = tensor::<f32>(&[1, 1, 3], &[0.0, 0.0, -1.0]);
    let conv = Conv::new([3]).padding([1]);
    let shift = conv.padding_mode(PaddingMode::Circular).operator(&weight, [12]).unwrap();
    let found = shift.orthogonality_defect().unwrap();
    assert!(found.lower == 0.0 && found.upper.unwrap() < 1e-10, "{found:?}");
    // Padded with zeros it loses an element.
    let shift = conv.operator(&weight, [12]).unwrap().orthogonality_defect().unwrap();
    close(shift.lower, 1.0, 1.0, 1e-5, "shift");
    assert!(shift.upper.unwrap() >= 1.0);
    for device in devices() {
        let tall = with_values(device, [30, 12], &[1.0; 12], 3);
        let found = tall.orthogonality_defect().unwrap();
        assert_eq!(found.lower, 0.0, "{device}");
        assert!(found.probabilistic_upper.unwrap() < 1e-12, "{found:?}");
        let single = tall.to_dense().unwrap().cast::<f32>().unwrap();
        let found = Operator::from_dense(single).unwrap().orthogonality_defect().unwrap();
        assert_eq!(found.lower, 0.0, "what is rounding is no defect");
        assert!(found.probabilistic_upper.unwrap() < 1e-4, "{found:?}");
        let wide = with_values(device, [12, 30], &[1.0; 12], 3).orthogonality_defect().unwrap();
        assert_eq!((wide.lower, wide.probabilistic_upper), (1.0, Some(1.0)));
    }
    // Nothing is certain of a closure.
    let half = Operator::from_dense(tensor::<f64>(&[2, 2], &[0.5, 0.0, 0.0, 0.5])).unwrap();
    let other = half.clone();
    let halved = Operator::<f64>::from_fn(
        &Device::Cpu,
        [2, 2],
        move |x, y| half.apply_into(x, y),
        move |y, x| other.apply_adjoint_into(y, x),
    );
    let found = halved.orthogonality_defect().unwrap();
    close(found.lower, 0.75, 1.0, 1e-12, "closure");
    assert_eq!(found.upper, None);
    let empty = Operator::<f64>::from_dense(Tensor::zeros(&Device::Cpu, &[3, 0]).unwrap());
    assert!(empty.unwrap().orthogonality_defect().is_err());
}

#[test]
fn normalised_operators_have_norm_1_at_most() {
    for device in devices() {
        for mode in PaddingMode::ALL {
            let weight = on(device, &tensor::<f64>(&[3, 2, 3], &randoms(18, 5)));
            let conv = Conv::new([3]).padding([1]).padding_mode(mode);
            let operator = conv.operator(&weight, [10]).unwrap();
            let (normalised, factor) = operator.spectrally_normalised().unwrap();
            let norm = by_another_library(&normalised)[0];
            // Of reflections the bound is coarse.
            assert!(norm <= 1.0 && norm > 0.5, "{mode}: {norm}");
            assert!(normalised.norm_bound().unwrap().unwrap().value <= 1.0);
            close(norm, factor * by_another_library(&operator)[0], 1.0, 1e-12, "factor");
            if mode == PaddingMode::Circular {
                close(norm, 1.0, 1.0, 1e-11, "the bound of a torus is exact");
            }
            // The weights, multiplied by it.
            let scaled: Vec<f64> = values(&weight).iter().map(|w| factor * w).collect();
            let scaled = conv.operator(&on(device, &tensor::<f64>(&[3, 2, 3], &scaled)), [10]);
            close(by_another_library(&scaled.unwrap())[0], norm, 1.0, 1e-12, "weights");
        }
    }
    let refused = |operator: Operator<f64>| match operator.spectrally_normalised() {
        Err(Error::Invalid { argument, reason, .. }) => format!("{argument}: {reason}"),
        other => panic!("{other:?}"),
    };
    let closure = Operator::from_fn(&Device::Cpu, [2, 2], |_, _| Ok(()), |_, _| Ok(()));
    let sum = &Operator::identity(&Device::Cpu, 2) + &closure;
    assert!(refused(closure).contains("closure") && refused(sum).contains("closure"));
    let zero = Operator::from_dense(Tensor::zeros(&Device::Cpu, &[2, 3]).unwrap()).unwrap();
    assert!(refused(zero).contains("is 0"));
}

#[test]
fn a_network_is_bounded_by_its_layers() {
    let conv = Conv::new([3]).padding([1]);
    let layers: Vec<Operator<f64>> = [1.0, 0.3, 2.0].map(|s| layer([2, 2], conv, [8], s)).into();
    let norms: Vec<Norm> = layers.iter().map(|layer| layer.spectral_norm().unwrap()).collect();
    let bound = product_bound(&norms).unwrap();
    let exact = by_another_library(&(&layers[2] * &(&layers[1] * &layers[0])))[0];
    assert!(exact <= bound, "{exact} {bound}");
    let product: f64 = norms.iter().map(|norm| norm.upper.unwrap()).product();
    close(bound, product, product, 1e-14, "product");
    assert!(bound >= product);
    assert_eq!(product_bound(&[]), Some(1.0));
    let without = upper(&norms[0], None);
    assert_eq!(product_bound([&norms[0], &without, &norms[1]]), None);
    // Whatever is beside a layer that gives nothing.
    let (zero, infinite) = (upper(&norms[0], Some(0.0)), upper(&norms[0], Some(f64::INFINITY)));
    assert_eq!(product_bound([&infinite, &zero]), Some(0.0));
}

fn upper(norm: &Norm, value: Option<f64>) -> Norm {
    let mut norm = norm.clone();
    norm.upper = value;
    norm
}
