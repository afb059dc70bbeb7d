use approx::assert_relative_eq;
use convmat::{Conv, Device, Element, Error, Layout, PaddingMode, PlanOptions, Tensor, with_axes};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::catalogue::{
    accelerators, cases, conv, devices, integers, last, layers, on, randoms, tensor, values,
    variants,
};
use crate::oracle::Case;

/// Sums of up to 64 overlapping entries below 2 stay exact in every type.
fn check<T: Element>(case: &Case, device: &Device) {
    let patches = integers(case.patch_shape().iter().product(), 2, 1);
    let input = on(device, &tensor::<T>(&case.patch_shape(), &patches));
    let folded =
        with_axes!(case.spatial, D => conv::<D>(case).fold(&input, last(case.input))).unwrap();
    assert_eq!(folded.shape(), case.input_shape());
    assert_eq!(values(&folded), case.fold(&patches), "{case:?} on {device}");
    let mut reused = on(device, &tensor::<T>(folded.shape(), &vec![7.0; folded.len()]));
    with_axes!(case.spatial, D => conv::<D>(case).fold_into(&input, &mut reused)).unwrap();
    assert_eq!(reused, folded);
}

/// Full mantissas: the same bytes twice, the CPU's values up to rounding, averages as well.
fn check_randoms<T: Element>(case: &Case, device: &Device, rounding: f64) {
    let patches = randoms(case.patch_shape().iter().product(), 6);
    let host = tensor::<T>(&case.patch_shape(), &patches);
    let input = on(device, &host);
    let (exact, size) = (case.fold(&values(&host)), case.input_shape());
    let sizes = case.fold(&values(&host).iter().map(|v| v.abs()).collect::<Vec<_>>());
    let counts = case.fold(&vec![1.0; patches.len()]);
    with_axes!(case.spatial, D => {
        let conv = conv::<D>(case);
        for average in [false, true] {
            let fold = || match average {
                false => conv.fold(&input, last(case.input)).unwrap(),
                true => conv.fold_average(&input, last(case.input)).unwrap(),
            };
            let folded = fold();
            assert_eq!(folded.shape(), size);
            assert_eq!(fold(), folded);
            for (at, found) in values(&folded).into_iter().enumerate() {
                let divisor = if average { counts[at].max(1.0) } else { 1.0 };
                let (expected, scale) = (exact[at] / divisor, sizes[at] / divisor);
                let limit = rounding * (1.0 + counts[at]) * scale;
                assert!(
                    (found - expected).abs() <= limit,
                    "{found} for {expected} at {at}, {case:?} on {device}"
                );
            }
        }
        Ok::<(), Error>(())
    })
    .unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn fold_equals_the_definition(case in cases()) {
        for device in devices() {
            check::<f32>(&case, device);
            check::<f64>(&case, device);
            check::<f16>(&case, device);
            check::<bf16>(&case, device);
        }
    }

    #[test]
    fn fold_is_the_adjoint_of_unfold(case in cases()) {
        let x = integers(case.input_len(), 3, 9);
        let a = integers(case.patch_shape().iter().product(), 4, 9);
        let unfolded = with_axes!(case.spatial, D => conv::<D>(&case)
            .unfold(&tensor::<f64>(&case.input_shape(), &x))).unwrap();
        let folded = with_axes!(case.spatial, D => conv::<D>(&case)
            .fold(&tensor::<f64>(&case.patch_shape(), &a), last(case.input))).unwrap();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        prop_assert_eq!(dot(&values(&unfolded), &a), dot(&x, &values(&folded)));
    }

    #[test]
    fn averaging_inverts_unfold_where_patches_cover_the_input(case in cases()) {
        let x = randoms(case.input_len(), 5);
        let covered = case.fold(&vec![1.0; case.patch_shape().iter().product()]);
        let back = with_axes!(case.spatial, D => {
            let conv = conv::<D>(&case);
            let patches = conv.unfold(&tensor::<f64>(&case.input_shape(), &x)).unwrap();
            conv.fold_average(&patches, last(case.input))
        })?;
        for ((&x, &count), back) in x.iter().zip(&covered).zip(values(&back)) {
            assert_relative_eq!(back, if count > 0.0 { x } else { 0.0 }, max_relative = 1e-14);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn devices_round_alike(case in cases()) {
        for device in accelerators() {
            check_randoms::<f32>(&case, device, f64::from(f32::EPSILON));
            check_randoms::<f64>(&case, device, f64::EPSILON);
        }
    }
}

/// Kernels as they are compiled for GPUs.
#[test]
fn kernels_made_for_a_layer_fold() {
    for device in variants() {
        for case in layers() {
            check::<f16>(&case, &device);
            check_randoms::<f32>(&case, &device, f64::from(f32::EPSILON));
        }
        check::<f64>(&layers()[0], &device);
    }
}

/// Planes larger than the slab limit, cut on each of the axes.
#[test]
fn large_planes_are_cut_into_boxes() {
    let unit = Case {
        batch: 1,
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
        mode: PaddingMode::Zeros,
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
        Case {
            input: [1, 403, 399],
            kernel: [1, 3, 3],
            mode: PaddingMode::Reflect,
            low: one,
            ..unit.clone()
        },
        Case { input: [1, 2, 150_001], kernel: [1, 1, 3], stride: [1, 1, 2], ..unit.clone() },
        Case { input: [1, 1, 300_000], kernel: [1, 1, 2], dilation: [1, 1, 5], ..unit.clone() },
        Case { input: [1, 400, 300], kernel: [1, 2, 2], stride: [1, 3, 4], ..unit.clone() },
        Case {
            input: [1, 500, 300],
            stride: [1, 400, 1],
            low: [0, 90, 0],
            high: [0, 90, 0],
            ..unit
        },
    ] {
        check::<f32>(&case, &Device::Cpu);
        check::<f32>(&Case { layout: Layout::ChannelsLast, ..case.clone() }, &Device::Cpu);
        check::<f16>(&case, &Device::Cpu);
    }
}

#[test]
fn wrong_patches_are_named() {
    let conv = Conv::new([3, 3]);
    let patches = tensor::<f32>(&[1, 9, 5], &[0.0; 45]);
    let error = conv.fold(&patches, [4, 4]).unwrap_err();
    assert_eq!(error.to_string(), "patches has shape [1, 9, 5], expected [N, a multiple of 9, 4]");
    let flat = tensor::<f32>(&[9, 4], &[0.0; 36]);
    assert!(matches!(conv.fold(&flat, [4, 4]), Err(Error::Shape { .. })));
    let patches = tensor::<f32>(&[1, 9, 4], &[0.0; 36]);
    let mut two = tensor::<f32>(&[2, 1, 4, 4], &[0.0; 32]);
    assert!(matches!(conv.fold_into(&patches, &mut two), Err(Error::Shape { .. })));
}

/// One plan and one workspace serve many runs; averaging is another plan.
#[test]
fn plans_fold_again_and_again() {
    let conv = Conv::new([3, 3]).padding([1, 1]);
    for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
        let conv = conv.layout(layout);
        let shape: &[usize] =
            if layout == Layout::ChannelsFirst { &[2, 27, 1600] } else { &[2, 1600, 27] };
        for device in devices() {
            let options = PlanOptions::new();
            let sum = conv.plan_fold::<f16>(device, shape, [40, 40], options).unwrap();
            let average = conv.plan_fold_average::<f16>(device, shape, [40, 40], options).unwrap();
            let mut workspace = sum.make_workspace().unwrap();
            for seed in 0..3 {
                let patches = on(device, &tensor::<f16>(shape, &integers(2 * 27 * 1600, seed, 9)));
                let expected = conv.fold(&patches, [40, 40]).unwrap();
                let mut found = Tensor::zeros(device, expected.shape()).unwrap();
                sum.run(&patches, &mut found, &mut workspace).unwrap();
                assert_eq!(found, expected);
                average.run(&patches, &mut found, &mut workspace).unwrap();
                assert_eq!(found, conv.fold_average(&patches, [40, 40]).unwrap());
            }
            let explanation = sum.explanation();
            assert_eq!((explanation.operation, explanation.flop), ("fold", 2 * 27 * 1600));
            assert_eq!(explanation.passes.len(), 1);
            assert!(explanation.subject.contains("f16"), "{explanation}");
            let mut wrong = Tensor::zeros(device, &[1]).unwrap();
            let patches = on(device, &tensor::<f16>(shape, &vec![0.0; 2 * 27 * 1600]));
            let refused = sum.run(&patches, &mut wrong, &mut workspace).unwrap_err();
            assert!(refused.to_string().contains("output has shape [1]"), "{refused}");
        }
    }
}
