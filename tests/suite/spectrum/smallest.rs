//! The smallest singular value: exact where all are known, else bracketed, or an error that says why not.

use std::f64::consts::PI;

use convmat::{
    Accumulator, Conv, Device, Method, NormOptions, Operator, PaddingMode, SmallestValue, Tensor,
    TensorView, TensorViewMut,
};

use super::quiet;
use crate::catalogue::{accelerators, on, tensor};

/// `centre + side·(the four neighbours)` on `size` × `size`, padded with zeros: σ = |centre + 2·side·(cos +
/// cos)|.
fn stencil<T: Accumulator>(device: &Device, centre: f64, side: f64, size: usize) -> Operator<T> {
    let weight = [0.0, side, 0.0, side, centre, side, 0.0, side, 0.0].map(T::from_f64);
    let weight = on(device, &tensor::<T>(&[1, 1, 3, 3], &weight.map(|w| w.to_f64())));
    Conv::new([3, 3]).padding([1, 1]).operator(&weight, [size, size]).unwrap()
}

fn found<T: Accumulator>(operator: &Operator<T>, gap: f64) -> SmallestValue {
    operator.smallest_singular_value(&NormOptions::new().gap(gap), &mut quiet).unwrap()
}

#[test]
fn brackets_hold_a_closed_form() {
    let cosine = (PI / 41.0).cos();
    let (least, most) = (1.0 - 0.4 * cosine, 1.0 + 0.4 * cosine);
    let check = |found: SmallestValue, rounding: f64| {
        assert_eq!(found.method, Method::Lanczos);
        assert!(found.lower <= least && found.lower >= 0.9 * least, "{found:?}");
        assert!(found.upper >= least - rounding && found.upper <= 1.1 * least, "{found:?}");
        let [low, high] = found.condition_number;
        assert!(low <= most / least + rounding && most / least <= high, "{found:?}");
        assert!(high <= 1.3 * low && found.failure_probability == Some(1e-12), "{found:?}");
    };
    check(found(&stencil::<f64>(&Device::Cpu, 1.0, 0.1, 40), 0.1), 1e-12);
    check(found(&stencil::<f32>(&Device::Cpu, 1.0, 0.1, 40), 0.1), 1e-5);
    check(found(&stencil::<f64>(&Device::Cpu, 1.0, 0.1, 40).adjoint(), 0.1), 1e-12);
    for device in accelerators() {
        check(found(&stencil::<f64>(device, 1.0, 0.1, 40), 0.1), 1e-12);
    }
}

#[test]
fn exact_methods_are_taken_where_they_are() {
    let small = found(&stencil::<f64>(&Device::Cpu, 1.0, 0.1, 8), 0.1);
    let least = 1.0 - 0.4 * (PI / 9.0).cos();
    assert!(small.method == Method::Dense && (small.lower - least).abs() < 1e-12, "{small:?}");
    assert!(small.lower == small.upper && small.failure_probability.is_none());
    let weight = Tensor::from_vec(&Device::Cpu, &[1, 1, 3], vec![1.0f64, -2.0, 1.0]).unwrap();
    let circle = Conv::new([3]).padding([1]).padding_mode(PaddingMode::Circular);
    let singular = found(&circle.operator(&weight, [64]).unwrap(), 0.1);
    assert!(singular.method == Method::Circular && singular.upper == 0.0, "{singular:?}");
    assert_eq!(singular.condition_number, [f64::INFINITY; 2]);
}

#[test]
fn what_cannot_be_proved_is_an_error() {
    // [1, −2, 1] on 2100: a condition number of 1.8 million.
    let weight = Tensor::from_vec(&Device::Cpu, &[1, 1, 3], vec![1.0f64, -2.0, 1.0]).unwrap();
    let operator = Conv::new([3]).padding([1]).operator(&weight, [2100]).unwrap();
    let error = operator.smallest_singular_value(&NormOptions::new(), &mut quiet).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("not proved to be above 0 after 2048 steps"), "{text}");
    assert!(text.contains("circular padding"), "{text}");
    assert!(operator.smallest_singular_value(&NormOptions::new().gap(0.0), &mut quiet).is_err());
}

#[test]
fn rank_deficient_operators_have_none_above_0() {
    // A product through 30 dimensions, of 1200 × 1200.
    let numbers =
        |seed: usize| (0..1200 * 30).map(move |i| ((i * 7919 + seed) % 1013) as f64 / 506.0 - 1.0);
    let factor = |seed, shape: [usize; 2]| {
        Tensor::from_vec(&Device::Cpu, &shape, numbers(seed).collect()).unwrap()
    };
    let left = Operator::from_dense(factor(1, [1200, 30])).unwrap();
    let right = Operator::from_dense(factor(2, [30, 1200])).unwrap();
    let found = found(&(&left * &right), 0.1);
    assert!(found.lower == 0.0 && found.upper < 1e-9, "{found:?}");
    assert_eq!(found.condition_number[1], f64::INFINITY);
}

#[test]
fn elements_that_are_not_finite_are_errors() {
    for bad in [f64::NAN, f64::INFINITY] {
        let matrix = Tensor::from_vec(&Device::Cpu, &[1, 2], vec![1.0, bad]).unwrap();
        let operator = Operator::from_dense(matrix).unwrap();
        assert!(operator.svd(1).is_err() && operator.spectral_norm().is_err(), "{bad}");
        assert!(operator.norm_bound().is_err(), "{bad}");
        // Through iterations, which the exact method is not in the way of.
        let all = move |x: TensorView<'_, f64>, mut y: TensorViewMut<'_, f64>| {
            let x = x.to_vec()?;
            y.as_mut_slice().unwrap().iter_mut().zip(x).for_each(|(y, x)| *y = bad * x);
            Ok(())
        };
        let closure = Operator::from_fn(&Device::Cpu, [2000, 2000], all, all);
        assert!(closure.svd(1).is_err() && closure.spectral_norm().is_err(), "{bad}");
        assert!(closure.svd_lowrank(2, 1).is_err(), "{bad}");
        assert!(closure.smallest_singular_value(&NormOptions::new(), &mut quiet).is_err(), "{bad}");
    }
}
