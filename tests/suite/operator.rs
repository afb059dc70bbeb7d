//! Operators: the oracle's convolutions, the identities of adjoints and of algebra, on every device.

use convmat::{Csr, Device, Element, Error, Operator, Tensor, with_axes};
use half::bf16;
use proptest::prelude::*;

use crate::catalogue::{
    accelerators, cases, conv, devices, integers, last, layers, on, tensor, values,
};
use crate::oracle::Case;
use convmat::Layout;

/// The layer as an operator, and its weight's values.
fn layer<T: Element>(case: &Case, device: &Device) -> (Operator<T::Acc>, Vec<f64>) {
    let weights = integers(case.weight_len(), 5, 3);
    let weight = on(device, &tensor::<T>(&case.weight_shape(), &weights));
    let operator =
        with_axes!(case.spatial, D => conv::<D>(case).operator(&weight, last(case.input)));
    (operator.unwrap(), weights)
}

/// The case with its batch as vectors, channels first: the order of an operator's vectors.
fn channels_first(case: &Case) -> Case {
    Case { layout: Layout::ChannelsFirst, ..case.clone() }
}

/// The weight in the other layout's order, for the oracle.
fn reordered(case: &Case, weights: &[f64]) -> Vec<f64> {
    let first = channels_first(case);
    let mut found = vec![0.0; weights.len()];
    for co in 0..case.outputs {
        for ci in 0..case.channels / case.groups {
            for tap in 0..case.taps() {
                found[first.weight_index(co, ci, tap)] = weights[case.weight_index(co, ci, tap)];
            }
        }
    }
    found
}

fn check<T: Element>(case: &Case, device: &Device) {
    let (operator, weights) = layer::<T>(case, device);
    let first = channels_first(case);
    let weights = reordered(case, &weights);
    let [m, n] = operator.shape();
    assert_eq!(m * case.batch, case.output_len());
    assert_eq!(n * case.batch, case.input_len());
    let x = integers(first.input_len(), 7, 3);
    let y = integers(first.output_len(), 8, 3);
    let block =
        |rows: usize, data: &[f64]| on(device, &tensor::<T::Acc>(&[case.batch, rows], data));
    let (xs, ys) = (block(n, &x), block(m, &y));
    let image = values(&operator.apply(&xs).unwrap());
    assert_eq!(image, first.forward(&x, &weights, None), "{case:?} on {device}");
    let adjoint = values(&operator.apply_adjoint(&ys).unwrap());
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    // Each vector by itself: sums of small integers are exact.
    for vector in 0..case.batch {
        let (of_m, of_n) = (vector * m..(vector + 1) * m, vector * n..(vector + 1) * n);
        assert_eq!(
            dot(&image[of_m.clone()], &y[of_m]),
            dot(&x[of_n.clone()], &adjoint[of_n]),
            "{case:?} on {device}"
        );
    }
    let turned = operator.adjoint();
    assert_eq!(turned.shape(), [n, m]);
    assert_eq!(values(&turned.apply(&ys).unwrap()), adjoint);
    assert_eq!(values(&turned.adjoint().apply(&xs).unwrap()), image);
}

/// The assembled matrix, against that of `Conv::matrix`.
fn check_matrix(case: &Case, device: &Device) {
    let (operator, weights) = layer::<f64>(case, device);
    let weight = tensor::<f64>(&case.weight_shape(), &weights);
    let expected =
        with_axes!(case.spatial, D => conv::<D>(case).matrix(&weight, None, last(case.input)))
            .unwrap()
            .eliminate_zeros()
            .unwrap();
    let found = operator.to_matrix().unwrap();
    assert_eq!(found.to_dense().unwrap(), expected.to_dense().unwrap(), "{case:?} on {device}");
    assert_eq!(operator.to_dense().unwrap(), expected.to_dense().unwrap());
    let same = operator.adjoint().to_matrix().unwrap().to_dense().unwrap();
    assert_eq!(same, expected.transpose().unwrap().to_dense().unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn layers_are_the_oracle_and_adjoint_to_themselves(case in cases()) {
        check::<f64>(&case, &Device::Cpu);
        check::<f32>(&case, &Device::Cpu);
        check::<bf16>(&case, &Device::Cpu);
        if case.input.iter().product::<usize>() < 200 {
            check_matrix(&case, &Device::Cpu);
        }
    }

    #[test]
    fn transposed_layers_are_the_adjoints(case in cases(), extra in 0usize..3) {
        let most = (0..3).map(|a| case.stride[a].max(case.dilation[a])).min().unwrap();
        let extra = extra.min(most - 1);
        let weights = integers(case.weight_len(), 5, 3);
        let weight = tensor::<f64>(&case.weight_shape(), &weights);
        with_axes!(case.spatial, D => {
            let conv = conv::<D>(&case);
            let size: [usize; D] = last(case.output());
            let padding = [extra; D];
            // Padding may leave nothing, or exceed what the mode allows of the extents that result.
            if conv.bind_transposed(size, padding).is_ok() {
                let operator = conv.transposed_operator(&weight, size, padding)?;
                let matrix = conv.transposed_matrix(&weight, None, size, padding)?;
                assert_eq!(operator.shape(), matrix.shape());
                assert_eq!(operator.to_dense()?, matrix.to_dense()?, "{case:?} {padding:?}");
                let turned = operator.adjoint().to_dense()?;
                assert_eq!(turned, matrix.transpose()?.to_dense()?);
            }
            Ok::<(), Error>(())
        })
        .unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn accelerators_apply_the_same(case in cases()) {
        for device in accelerators() {
            check::<f32>(&case, device);
            check::<f64>(&case, device);
        }
    }
}

#[test]
fn usual_layers_on_every_device() {
    for case in layers().iter().step_by(5) {
        devices().iter().for_each(|device| check::<f32>(case, device));
    }
}

fn dense(device: &Device, shape: [usize; 2], seed: u64) -> (Operator<f64>, Vec<f64>) {
    let data = integers(shape[0] * shape[1], seed, 4);
    let matrix = on(device, &tensor::<f64>(&shape, &data));
    (Operator::from_dense(matrix).unwrap(), data)
}

/// Each kind of operand gives the matrix that it is.
#[test]
fn matrices_and_closures_are_operators() {
    for device in devices() {
        let (a, data) = dense(device, [5, 7], 1);
        assert_eq!(values(&a.to_dense().unwrap()), data);
        assert_eq!(a.adjoint().to_dense().unwrap().shape(), [7, 5]);

        let csr = a.to_matrix().unwrap();
        let sparse = Operator::from_csr(csr.clone().to_device(device).unwrap()).unwrap();
        assert_eq!(values(&sparse.to_dense().unwrap()), data);
        assert_eq!(sparse.to_matrix().unwrap(), csr);
        assert_eq!(
            sparse.adjoint().to_dense().unwrap(),
            csr.transpose().unwrap().to_dense().unwrap()
        );

        let (inner, other) = (a.clone(), a.clone());
        let closure = Operator::from_fn(
            device,
            [5, 7],
            move |x, y| inner.apply_into(x, y),
            move |y, x| other.apply_adjoint_into(y, x),
        );
        assert_eq!(values(&closure.to_dense().unwrap()), data);
    }
}

#[test]
fn algebra_is_that_of_matrices() {
    for device in devices() {
        let ((a, da), (b, db)) = (dense(device, [4, 6], 1), dense(device, [6, 5], 2));
        let (c, dc) = dense(device, [4, 6], 3);
        let product = values(&(&a * &b).to_dense().unwrap());
        for i in 0..4 {
            for j in 0..5 {
                let expected: f64 = (0..6).map(|k| da[i * 6 + k] * db[k * 5 + j]).sum();
                assert_eq!(product[i * 5 + j], expected);
            }
        }
        let entries = |operator: &Operator<f64>| values(&operator.to_dense().unwrap());
        let both = |f: fn(f64, f64) -> f64| -> Vec<f64> {
            da.iter().zip(&dc).map(|(&a, &c)| f(a, c)).collect()
        };
        assert_eq!(entries(&(&a + &c)), both(|a, c| a + c));
        assert_eq!(entries(&(&a - &c)), both(|a, c| a - c));
        assert_eq!(entries(&(0.5 * &a)), both(|a, _| 0.5 * a));
        assert_eq!(entries(&-&a), both(|a, _| -a));
        let (square, d) = dense(device, [3, 3], 4);
        let complement = entries(&square.complement().unwrap());
        let expected = |at: usize| if at.is_multiple_of(4) { 1.0 - d[at] } else { -d[at] };
        assert_eq!(complement, (0..9).map(expected).collect::<Vec<_>>());
        let turned = (&a * &b).adjoint();
        let expected = &b.adjoint() * &a.adjoint();
        assert_eq!(entries(&turned), entries(&expected));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (a, _) = dense(&Device::Cpu, [4, 6], 1);
    let x = |shape: &[usize]| Tensor::<f64>::zeros(&Device::Cpu, shape).unwrap();
    let text = |result: Result<Tensor<f64>, Error>| result.unwrap_err().to_string();
    assert!(text(a.apply(&x(&[5]))).contains("[6] or [vectors, 6]"));
    assert!(text(a.apply(&x(&[2, 4]))).contains("[2, 4]"));
    assert!(a.apply_into(&x(&[6]), &mut x(&[5])).is_err());
    assert!(matches!(a.compose(&a), Err(Error::Shape { .. })));
    assert!(matches!(a.plus(&a.adjoint()), Err(Error::Shape { .. })));
    assert!(matches!(a.complement(), Err(Error::Shape { .. })));
    assert!(Operator::from_dense(x(&[2])).is_err());
    // No vectors, and none of any length.
    assert_eq!(a.apply(&x(&[0, 6])).unwrap().shape(), [0, 4]);

    let conv = convmat::Conv::new([1]);
    let weight = tensor::<f32>(&[1, 1, 1], &[f64::NAN]);
    let error = conv.operator(&weight, [3]).unwrap_err().to_string();
    assert_eq!(error, "weight at output 0, input 0, tap 0 is NaN: every element must be finite");
    let weight = tensor::<f32>(&[1, 2, 3], &[1.0; 6]);
    assert!(convmat::Conv::new([3]).groups(2).operator(&weight, [3]).is_err());
    assert!(convmat::Conv::new([3]).operator(&weight, [2]).is_err());
    if let Some(device) = accelerators().first() {
        let (b, _) = dense(device, [4, 6], 1);
        assert!(matches!(b.apply(&x(&[6])), Err(Error::DeviceMismatch { .. })));
        assert!(matches!(a.plus(&b), Err(Error::DeviceMismatch { .. })));
    }
    let empty = Csr::<f64>::new([0, 3], vec![0i32], Vec::<i32>::new(), Vec::new()).unwrap();
    let empty = Operator::from_csr(empty).unwrap();
    assert_eq!(empty.apply(&x(&[3])).unwrap().shape(), [0]);
}
