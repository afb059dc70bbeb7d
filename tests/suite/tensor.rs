use convmat::{Device, Error, Tensor, TensorView, TensorViewMut};
use ndarray::{Array1, Array2, ArrayD, IxDyn, array, s};

use crate::catalogue::{devices, integers, on, tensor, values};

#[test]
fn arrays_in_row_major_order_are_not_copied() {
    let array = Array2::from_shape_fn((3, 4), |(i, j)| (4 * i + j) as f32);
    let pointer = array.as_ptr();
    let tensor = Tensor::from_ndarray(&Device::Cpu, array.clone()).unwrap();
    assert_eq!(tensor.as_slice().unwrap(), array.as_slice().unwrap());
    let tensor = Tensor::from_ndarray(&Device::Cpu, array).unwrap();
    assert_eq!(tensor.as_slice().unwrap().as_ptr(), pointer);
    assert_eq!(tensor.as_ndarray().unwrap().as_ptr(), pointer);
    assert_eq!(tensor.into_ndarray().unwrap().as_ptr(), pointer);
}

#[test]
fn arrays_in_other_orders_keep_their_meaning() {
    let array = Array2::from_shape_fn((3, 4), |(i, j)| (10 * i + j) as f64);
    let transposed = array.clone().reversed_axes();
    let tensor = Tensor::from_ndarray(&Device::Cpu, transposed.clone()).unwrap();
    assert_eq!(tensor.into_ndarray().unwrap(), transposed.into_dyn());
    let rows = array.clone().slice_move(s![1..;2, ..]);
    let expected = rows.to_owned().into_dyn();
    assert_eq!(Tensor::from_ndarray(&Device::Cpu, rows).unwrap().into_ndarray().unwrap(), expected);
    let tail = array.slice_move(s![1.., ..]);
    let expected = tail.to_owned().into_dyn();
    assert_eq!(Tensor::from_ndarray(&Device::Cpu, tail).unwrap().into_ndarray().unwrap(), expected);
    let backwards = Array1::from(vec![1f32, 2.0, 3.0]).slice_move(s![..;-1]);
    let tensor = Tensor::from_ndarray(&Device::Cpu, backwards).unwrap();
    assert_eq!(tensor.into_vec().unwrap(), [3.0, 2.0, 1.0]);
}

#[test]
fn views_refuse_arrays_with_gaps() {
    let mut array = array![[1f32, 2.0, 3.0], [4.0, 5.0, 6.0]];
    assert_eq!(TensorView::from_ndarray(&array).unwrap().shape(), [2, 3]);
    assert_eq!(TensorViewMut::from_ndarray(&mut array).unwrap().shape(), [2, 3]);
    let gaps = array.slice(s![.., ..2]);
    assert!(matches!(TensorView::from_ndarray(&gaps), Err(Error::Shape { .. })));
    let mut gaps = array.slice_mut(s![.., ..2]);
    assert!(matches!(TensorViewMut::from_ndarray(&mut gaps), Err(Error::Shape { .. })));
}

#[test]
fn elements_are_overwritten_from_any_device() {
    let numbers = |from: usize| tensor::<f32>(&[2, 3], &integers(6, from as u64, 50));
    let all = devices();
    for (at, to) in all.iter().enumerate() {
        let mut target = on(to, &numbers(99));
        for (from, device) in all.iter().enumerate() {
            let source = numbers(10 * at + from);
            target.copy_from(&on(device, &source)).unwrap();
            assert_eq!(values(&target), values(&source), "from {device} to {to}");
        }
        match target.copy_from(&tensor::<f32>(&[3, 2], &[0.0; 6])) {
            Err(Error::Shape { .. }) => {}
            other => panic!("{other:?}"),
        }
        let mut empty = on(to, &tensor::<f32>(&[0, 2], &[]));
        empty.copy_from(&tensor::<f32>(&[0, 2], &[])).unwrap();
    }
}

#[test]
fn empty_and_scalar_shapes_work() {
    let empty = Tensor::<f32>::zeros(&Device::Cpu, &[0, 3]).unwrap();
    assert!(empty.is_empty());
    assert_eq!(empty.into_ndarray().unwrap(), ArrayD::<f32>::zeros(IxDyn(&[0, 3])));
    let scalar = Tensor::from_vec(&Device::Cpu, &[], vec![2.5f64]).unwrap();
    assert_eq!((scalar.len(), scalar.shape().len()), (1, 0));
}

#[test]
fn impossible_sizes_are_errors() {
    let error = Tensor::<f32>::zeros(&Device::Cpu, &[1 << 40, 1 << 40]).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }));
    let error = Tensor::<f32>::zeros(&Device::Cpu, &[0, 1 << 40, 1 << 40]).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }));
    let error = Tensor::<f64>::zeros(&Device::Cpu, &[1 << 55]).unwrap_err();
    assert_eq!(error.to_string(), "could not allocate 288230376151711744 bytes for a tensor");
    let error = Tensor::from_vec(&Device::Cpu, &[2, 2], vec![0f32; 3]).unwrap_err();
    assert_eq!(error.to_string(), "shape is [2, 2]: it must have as many elements as the data, 3");
    let tensor = Tensor::from_vec(&Device::Cpu, &[2, 2], vec![0f32; 4]).unwrap();
    assert!(matches!(tensor.reshape(&[3]), Err(Error::Shape { .. })));
}

#[test]
fn casts_round_to_nearest() {
    let tensor = Tensor::from_vec(&Device::Cpu, &[2], vec![1.0 + 2f64.powi(-12), 3.0]).unwrap();
    let half = tensor.cast::<half::f16>().unwrap();
    assert_eq!(half.into_vec().unwrap(), [half::f16::ONE, half::f16::from_f32(3.0)]);
}
