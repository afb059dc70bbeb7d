use convmat::{
    Conv, Device, Element, Error, Layout, Padding, PaddingMode, Tensor, TensorViewMut, with_axes,
};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::catalogue::{cases, conv, devices, integers, layers, on, tensor, values, variants};
use crate::oracle::Case;

fn check<T: Element>(case: &Case, device: &Device) {
    let x = integers(case.input_len(), 1, 100);
    let input = on(device, &tensor::<T>(&case.input_shape(), &x));
    let patches = with_axes!(case.spatial, D => conv::<D>(case).unfold(&input)).unwrap();
    assert_eq!(patches.shape(), case.patch_shape());
    assert_eq!(values(&patches), case.unfold(&x));
    // A used buffer is overwritten completely.
    let mut reused = on(device, &tensor::<T>(patches.shape(), &vec![7.0; patches.len()]));
    with_axes!(case.spatial, D => conv::<D>(case).unfold_into(&input, &mut reused)).unwrap();
    assert_eq!(reused, patches);
}

fn check_types(case: &Case, device: &Device) {
    check::<f32>(case, device);
    check::<f64>(case, device);
    check::<f16>(case, device);
    check::<bf16>(case, device);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn unfold_equals_the_definition(case in cases()) {
        for device in devices() {
            check_types(&case, device);
        }
    }
}

/// Kernels as they are compiled for GPUs.
#[test]
fn kernels_made_for_a_layer_unfold() {
    for device in variants() {
        for case in layers() {
            check::<f32>(&case, &device);
            check::<f16>(&case, &device);
        }
        check::<f64>(&layers()[0], &device);
    }
}

/// Planes larger than the slab limit, cut on each of the axes; large outputs are streamed.
#[test]
fn large_planes_are_cut_into_boxes() {
    let unit = Case {
        batch: 2,
        channels: 2,
        outputs: 2,
        groups: 1,
        spatial: 3,
        input: [1, 1, 1],
        kernel: [1, 1, 1],
        stride: [1, 1, 1],
        dilation: [1, 1, 1],
        low: [0, 0, 0],
        high: [0, 0, 0],
        mode: PaddingMode::Circular,
        layout: Layout::ChannelsFirst,
    };
    let (same, one) = ([1, 1, 1], [0, 1, 1]);
    for case in [
        Case { input: [40, 64, 65], kernel: [3, 3, 3], low: same, high: same, ..unit.clone() },
        Case { input: [3, 300, 257], kernel: [3, 3, 3], low: same, high: same, ..unit.clone() },
        Case {
            input: [1, 403, 399],
            kernel: [1, 3, 3],
            stride: [1, 2, 2],
            low: one,
            ..unit.clone()
        },
        Case { input: [1, 2, 150_001], kernel: [1, 1, 3], stride: [1, 1, 2], ..unit.clone() },
        Case { input: [1, 1, 300_000], kernel: [1, 1, 2], dilation: [1, 1, 5], ..unit.clone() },
        Case { input: [1, 300, 300], stride: [1, 2, 1], ..unit.clone() },
        Case { input: [1, 1000, 1500], ..unit },
    ] {
        check::<f32>(&case, &Device::Cpu);
        check::<f32>(&Case { layout: Layout::ChannelsLast, ..case.clone() }, &Device::Cpu);
        check::<f16>(&case, &Device::Cpu);
    }
}

#[test]
fn bits_are_copied_unchanged() {
    let odd = [f32::from_bits(0x7fa0_1234), f32::NEG_INFINITY, -0.0, f32::from_bits(1)];
    let input = Tensor::from_vec(&Device::Cpu, &[1, 1, 4], odd.to_vec()).unwrap();
    let patches = Conv::new([2]).padding([1]).unfold(&input).unwrap();
    let bits: Vec<u32> = patches.as_slice().unwrap().iter().map(|v| v.to_bits()).collect();
    let [a, b, c, d] = odd.map(f32::to_bits);
    assert_eq!(bits, [0, a, b, c, d, a, b, c, d, 0]);
}

#[test]
fn same_padding_puts_the_extra_position_on_the_high_side() {
    let input = tensor::<f32>(&[1, 1, 3], &[1.0, 2.0, 3.0]);
    let patches = Conv::new([2]).padding(Padding::Same).unfold(&input).unwrap();
    assert_eq!(values(&patches), [1.0, 2.0, 3.0, 2.0, 3.0, 0.0]);
}

#[test]
fn wrong_arguments_are_named() {
    let message = |result: convmat::Result<Tensor<f32>>| match result {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    };
    let input = tensor::<f32>(&[1, 3, 4, 4], &[0.0; 48]);
    assert_eq!(
        message(Conv::new([3]).unfold(&input)),
        "input has shape [1, 3, 4, 4], expected rank 3 (channels-first with 1 spatial axes)"
    );
    assert_eq!(
        message(Conv::new([3, 3]).groups(2).unfold(&input)),
        "input channels is 3: they must be a positive multiple of groups = 2"
    );
    let mut short = [0.0f32; 4];
    let target = TensorViewMut::from_slice(&[4], &mut short).unwrap();
    let result = Conv::new([3, 3]).unfold_into(&input, target);
    assert!(matches!(result, Err(Error::Shape { argument, .. }) if argument == "patches"));
}
