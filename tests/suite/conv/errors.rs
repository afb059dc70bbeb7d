//! Every wrong argument of a convolution is an error that names it.

use convmat::{Algorithm, Conv, Device, Error, Layout, Tensor, TensorView};

fn zeros(shape: &[usize]) -> Tensor<f32> {
    Tensor::zeros(&Device::Cpu, shape).unwrap()
}

/// The shape error that names this argument.
#[track_caller]
fn shape_error<R: std::fmt::Debug>(result: convmat::Result<R>, name: &str) {
    match result.unwrap_err() {
        Error::Shape { argument, .. } if argument == name => {}
        other => panic!("expected a shape error of {name}, got {other:?}"),
    }
}

/// The error of a value out of range that names this argument.
#[track_caller]
fn value_error<R: std::fmt::Debug>(result: convmat::Result<R>, name: &str) {
    match result.unwrap_err() {
        Error::Invalid { argument, .. } if argument == name => {}
        other => panic!("expected an invalid {name}, got {other:?}"),
    }
}

#[test]
fn forward_names_what_is_wrong() {
    let conv = Conv::new([3, 3]).groups(2);
    let (x, w, b) = (zeros(&[2, 4, 8, 8]), zeros(&[6, 2, 3, 3]), zeros(&[6]));
    assert_eq!(conv.forward(&x, &w, Some(b.view())).unwrap().shape(), [2, 6, 6, 6]);
    shape_error(conv.forward(&zeros(&[2, 4, 8]), &w, None), "input");
    shape_error(conv.forward(&x, &zeros(&[6, 2, 3]), None), "weight");
    shape_error(conv.forward(&x, &zeros(&[6, 2, 3, 5]), None), "weight");
    shape_error(conv.forward(&x, &zeros(&[6, 4, 3, 3]), None), "weight");
    shape_error(conv.forward(&x, &zeros(&[6, 0, 3, 3]), None), "weight");
    shape_error(conv.forward(&x, &w, Some(zeros(&[5]).view())), "bias");
    shape_error(conv.forward(&x, &w, Some(zeros(&[6, 1]).view())), "bias");
    value_error(conv.forward(&zeros(&[2, 5, 8, 8]), &w, None), "input channels");
    value_error(conv.forward(&zeros(&[2, 0, 8, 8]), &w, None), "input channels");
    value_error(conv.forward(&x, &zeros(&[5, 2, 3, 3]), None), "weight output channels");
    value_error(conv.forward(&x, &zeros(&[0, 2, 3, 3]), None), "weight output channels");
    value_error(conv.forward(&zeros(&[2, 4, 2, 8]), &w, None), "kernel extent on axis 0");
    value_error(conv.stride([1, 0]).forward(&x, &w, None), "stride on axis 1");
    value_error(conv.groups(0).forward(&x, &w, None), "groups");
    let into =
        |shape: &[usize]| conv.forward_into(&x, &w, None, &mut zeros(shape), Algorithm::Naive);
    into(&[2, 6, 6, 6]).unwrap();
    shape_error(into(&[2, 6, 6, 5]), "output");
    shape_error(into(&[1, 6, 6, 6]), "output");
    shape_error(into(&[2, 6, 36]), "output");
    let last = conv.layout(Layout::ChannelsLast);
    shape_error(last.forward(&x, &w, None).map(drop), "weight");
    assert!(last.forward(&zeros(&[2, 8, 8, 4]), &zeros(&[3, 3, 2, 6]), None).is_ok());
}

#[test]
fn backward_names_what_is_wrong() {
    let conv = Conv::new([3, 3]).stride([2, 2]).groups(2);
    let (x, w, dy) = (zeros(&[2, 4, 8, 9]), zeros(&[6, 2, 3, 3]), zeros(&[2, 6, 3, 4]));
    assert_eq!(conv.backward_input(&dy, &w, [8, 9]).unwrap().shape(), [2, 4, 8, 9]);
    assert_eq!(conv.backward_weight(&x, &dy).unwrap().shape(), [6, 2, 3, 3]);
    shape_error(conv.backward_input(&dy, &w, [9, 9]), "output gradient");
    shape_error(conv.backward_input(&zeros(&[2, 6, 12]), &w, [8, 9]), "output gradient");
    shape_error(conv.backward_input(&dy, &zeros(&[4, 2, 3, 3]), [8, 9]), "weight");
    shape_error(conv.backward_input(&dy, &zeros(&[6, 2, 3, 1]), [8, 9]), "weight");
    value_error(conv.backward_input(&dy, &w, [0, 9]), "input extent on axis 0");
    value_error(conv.backward_input(&zeros(&[2, 5, 3, 4]), &w, [8, 9]), "output gradient channels");
    let into =
        |shape: &[usize]| conv.backward_input_into(&dy, &w, &mut zeros(shape), Algorithm::Naive);
    into(&[2, 4, 7, 9]).unwrap();
    shape_error(into(&[2, 2, 8, 9]), "input gradient");
    shape_error(into(&[2, 4, 8, 9, 1]), "input gradient");
    shape_error(into(&[1, 4, 8, 9]), "input gradient");

    shape_error(conv.backward_weight(&x, &zeros(&[1, 6, 3, 4])), "output gradient");
    shape_error(conv.backward_weight(&x, &zeros(&[2, 6, 4, 4])), "output gradient");
    shape_error(conv.backward_weight(&zeros(&[2, 4, 8]), &dy), "input");
    value_error(conv.backward_weight(&zeros(&[2, 3, 8, 9]), &dy), "input channels");
    value_error(conv.backward_weight(&x, &zeros(&[2, 3, 3, 4])), "output gradient channels");
    let into =
        |shape: &[usize]| conv.backward_weight_into(&x, &dy, &mut zeros(shape), Algorithm::Naive);
    into(&[6, 2, 3, 3]).unwrap();
    shape_error(into(&[6, 4, 3, 3]), "weight gradient");

    shape_error(conv.backward_bias(&zeros(&[2, 6, 3])), "output gradient");
    shape_error(conv.backward_bias_into(&dy, &mut zeros(&[5])), "bias gradient");
}

#[test]
fn transposed_names_what_is_wrong() {
    let conv = Conv::new([3, 3]).stride([2, 2]).padding([1, 1]).groups(2);
    let (x, w) = (zeros(&[2, 6, 4, 4]), zeros(&[6, 3, 3, 3]));
    assert_eq!(conv.transposed(&x, &w, None, [0, 1]).unwrap().shape(), [2, 6, 7, 8]);
    value_error(conv.transposed(&x, &w, None, [0, 2]), "output padding on axis 1");
    shape_error(conv.transposed(&x, &w, Some(zeros(&[3]).view()), [0, 0]), "bias");
    shape_error(conv.transposed(&zeros(&[2, 6, 4]), &w, None, [0, 0]), "input");
    shape_error(conv.transposed(&x, &zeros(&[4, 3, 3, 3]), None, [0, 0]), "weight");
    value_error(conv.transposed(&zeros(&[2, 5, 4, 4]), &w, None, [0, 0]), "input channels");
    let into =
        |shape: &[usize]| conv.transposed_into(&x, &w, None, &mut zeros(shape), Algorithm::Naive);
    into(&[2, 6, 8, 7]).unwrap();
    shape_error(into(&[2, 6, 6, 7]), "output");
    shape_error(into(&[2, 5, 7, 7]), "output");
    value_error(into(&[2, 6, 7, 9]), "output padding on axis 1");
    value_error(into(&[2, 6, 7, usize::MAX >> 40]), "output padding on axis 1");
}

#[test]
fn sizes_that_overflow_are_errors() {
    let conv = Conv::new([1]).padding([1 << 40]);
    let x = zeros(&[1, 1, 1]);
    let w = zeros(&[1 << 20, 1, 1]);
    let result = conv.forward(&x, &w, None);
    assert!(matches!(result, Err(Error::TooLarge { .. })), "{result:?}");
    let empty = TensorView::from_slice(&[0, 1, 1], &[0f32; 0]).unwrap();
    assert!(conv.forward(empty, &w, None).is_err());
}
