//! What is wrong is named, and changes nothing.

use convmat::{Convention, Error};

use super::files::bytes;
use super::*;

/// Expects an error that says all this, and a state that is what it was.
fn refuses<R: std::fmt::Debug, const D: usize>(
    state: &mut KfacState<f64, D>,
    parts: &[&str],
    call: impl FnOnce(&mut KfacState<f64, D>) -> Result<R, Error>,
) {
    let before = bytes(state);
    let error = call(state).unwrap_err().to_string();
    for part in parts {
        assert!(error.contains(part), "{error} lacks {part}");
    }
    assert_eq!(bytes(state), before, "{error}");
}

fn states() -> Vec<KfacState<f64, 1>> {
    let (layer, x, dy) = small();
    let mut found = Vec::new();
    for method in KfacMethod::ALL {
        let options = KfacOptions::new().method(method);
        found.push(KfacState::new(&Device::Cpu, layer, options).unwrap());
        let mut state = KfacState::new(&Device::Cpu, layer, options).unwrap();
        state.step(&x, &dy).unwrap();
        found.push(state);
    }
    found
}

#[test]
fn wrong_data_change_nothing() {
    let (_, x, dy) = small();
    let with = |tensor: &Tensor<f64>, value: f64| {
        let mut data = values(tensor);
        data[17] = value;
        crate::catalogue::tensor::<f64>(tensor.shape(), &data)
    };
    let zeros = |shape: &[usize]| Tensor::<f64>::zeros(&Device::Cpu, shape).unwrap();
    for mut state in states() {
        for step in [false, true] {
            let mut wrong = |x: &Tensor<f64>, dy: &Tensor<f64>, parts: &[&str]| {
                refuses(&mut state, parts, |state| match step {
                    true => state.step(x, dy),
                    false => state.accumulate(x, dy),
                });
            };
            wrong(&zeros(&[4, 4, 4]), &dy, &["output gradient has shape [5, 6, 3]", "[4, 6, 3]"]);
            wrong(&x, &zeros(&[5, 6, 2]), &["output gradient has shape [5, 6, 2]", "[5, 6, 3]"]);
            wrong(&x, &zeros(&[5, 4, 3]), &["output gradient has shape [5, 4, 3]"]);
            wrong(&zeros(&[5, 4, 5]), &dy, &["input has shape [5, 4, 5]", "[5, 4, 4]"]);
            wrong(&zeros(&[5, 4]), &dy, &["input has shape [5, 4]"]);
            wrong(&zeros(&[0, 4, 4]), &zeros(&[0, 6, 3]), &["examples is 0"]);
            for value in [f64::NAN, f64::INFINITY, 1e200] {
                wrong(&with(&x, value), &dy, &["must be finite", "input"]);
                wrong(&x, &with(&dy, value), &["must be finite", "output gradient"]);
            }
        }
        let (x, dy) = (zeros(&[4, 4, 4]), &dy);
        refuses(&mut state, &[], |state| state.accumulate_second_moments(&x, dy));
    }
}

#[test]
fn wrong_gradients_are_refused() {
    for mut state in states() {
        let refreshed = state.steps() > 0;
        let gradient = tensor::<f64>(&[2, 3, 5], &[1.0; 30]);
        if !refreshed {
            refuses(&mut state, &["refreshes is 0"], |state| state.precondition(&gradient));
            refuses(&mut state, &["examples is 0"], |state| state.refresh());
            continue;
        }
        let mut wrong = |shape: &[usize], value: f64, parts: &[&str]| {
            let mut data = vec![1.0; shape.iter().product()];
            data[7] = value;
            let gradient = tensor::<f64>(shape, &data);
            refuses(&mut state, parts, |state| state.precondition(&gradient));
        };
        wrong(&[3, 2, 5], 1.0, &["gradient has shape [3, 2, 5]", "[2, 3, 5] or [6, 5]"]);
        wrong(&[6, 4], 1.0, &["gradient has shape [6, 4]"]);
        wrong(&[6, 5], f64::NAN, &["gradient at (1, 2) is NaN"]);
        let (weight, bias) =
            (tensor::<f64>(&[6, 2, 2], &[1.0; 24]), tensor::<f64>(&[6], &[1.0; 6]));
        refuses(&mut state, &["bias gradient is missing"], |s| {
            s.precondition_weight(&weight, None)
        });
        refuses(&mut state, &["weight gradient has shape [6]"], |s| {
            s.precondition_weight(&bias, Some(bias.view()))
        });
        let few = tensor::<f64>(&[5], &[1.0; 5]);
        refuses(&mut state, &["bias gradient has shape [5]"], |s| {
            s.precondition_weight(&weight, Some(few.view()))
        });
        for damping in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            refuses(&mut state, &["damping is"], |state| state.set_damping(damping));
        }
    }
}

#[test]
fn wrong_options_are_refused() {
    let (layer, ..) = small();
    let refused = |layer: KfacLayer<1>, options: KfacOptions, parts: &[&str]| {
        let error = KfacState::<f64, 1>::new(&Device::Cpu, layer, options).unwrap_err().to_string();
        parts.iter().for_each(|part| assert!(error.contains(part), "{error} lacks {part}"));
    };
    let options = KfacOptions::new();
    for damping in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        refused(layer, options.damping(damping), &["damping is", "positive and finite"]);
    }
    for decay in [-0.1, 1.0, f64::NAN] {
        refused(layer, options.decay(decay), &["decay is"]);
    }
    refused(layer, options.update_every(0), &["steps between updates is 0"]);
    refused(layer, options.refresh_every(0), &["steps between refreshes is 0"]);
    refused(layer, options.rank(0), &["rank is 0"]);
    refused(layer, options.rank(2).method(KfacMethod::Ekfac), &["rank is 2", "ekfac"]);
    let kfc = options.convention(Convention::Kfc);
    refused(layer, kfc.sharing(WeightSharing::Reduce), &["convention is kfc", "reduce"]);
    refused(layer, kfc.method(KfacMethod::Shampoo), &["convention is kfc", "shampoo"]);
    let conv = Conv::new([2]).groups(2);
    refused(KfacLayer::new(conv, 3, 6, [4]), options, &["input channels is 3"]);
    refused(KfacLayer::new(conv, 4, 5, [4]), options, &["output channels is 5"]);
    refused(KfacLayer::new(conv, 4, 6, [1]), options, &["kernel extent on axis 0 is 2"]);
    let circular = conv.padding([1]).padding_mode(PaddingMode::Circular);
    let transposed = KfacLayer::new(circular, 4, 6, [4]).transposed([0]);
    refused(transposed, options, &["padding mode is circular"]);
    refused(KfacLayer::new(conv, 4, 6, [4]).transposed([1]), options, &["output padding"]);
}

/// Factors of less than full rank with damping that rounding loses: an error that names factor and group.
#[test]
fn factors_that_are_not_positive_definite_are_named() {
    let conv = Conv::new([1]).groups(2);
    let layer = KfacLayer::new(conv, 6, 4, [1]);
    // The second group's patches are all ones, so that sums and pivots have no rounding.
    let mut x = randoms(8 * 6, 61);
    for example in x.chunks_exact_mut(6) {
        example[3..].fill(1.0);
    }
    let (x, dy) = (tensor::<f64>(&[8, 6, 1], &x), tensor::<f64>(&[8, 4, 1], &randoms(32, 62)));
    let options = KfacOptions::new().damping(1e-300);
    let mut state = KfacState::<f64, 1>::new(&Device::Cpu, layer, options).unwrap();
    state.accumulate(&x, &dy).unwrap();
    refuses(
        &mut state,
        &["the input factor of group 1 is [3, 3]", "not positive definite", "more damping"],
        |s| s.refresh(),
    );
    refuses(&mut state, &["the input factor of group 1"], |state| state.step(&x, &dy));
    state.set_damping(1e-4).unwrap();
    state.refresh().unwrap();
}

/// What Cholesky's factorisation in f32 loses, one in f64 finds.
#[test]
fn f64_helps_where_f32_fails() {
    let layer = KfacLayer::new(Conv::new([1]), 3, 2, [1]);
    let mut x = randoms(10 * 3, 63);
    for example in x.chunks_exact_mut(3) {
        (1..3).for_each(|channel| example[channel] = example[0]);
    }
    let (x, dy) = (tensor::<f32>(&[10, 3, 1], &x), tensor::<f32>(&[10, 2, 1], &randoms(20, 64)));
    let options = KfacOptions::new().damping(1e-18);
    let mut state = KfacState::<f32, 1>::new(&Device::Cpu, layer, options).unwrap();
    state.step(&x, &dy).unwrap();
    let gradient = state.mean_gradient(&x, &dy).unwrap();
    assert!(values(&state.precondition(&gradient).unwrap()).iter().all(|value| value.is_finite()));
}

#[test]
fn what_a_method_has_not_is_said() {
    let (layer, x, dy) = small();
    let options = KfacOptions::new().method(KfacMethod::Shampoo);
    let mut state = KfacState::<f64, 1>::new(&Device::Cpu, layer, options).unwrap();
    state.step(&x, &dy).unwrap();
    assert!(state.factors_in(Convention::Kfc).unwrap_err().to_string().contains("shampoo"));
    assert!(state.basis().is_none() && state.pi().is_none() && state.second_moments().is_none());
    refuses(&mut state, &["method is shampoo"], |s| s.accumulate_second_moments(&x, &dy));
    let narrow = KfacState::<f32, 1>::new(&Device::Cpu, layer, KfacOptions::new());
    let error = narrow.unwrap().accumulate(&x, &dy).unwrap_err().to_string();
    assert!(error.contains("element type f32"), "{error}");
}
