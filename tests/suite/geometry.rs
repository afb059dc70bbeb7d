use convmat::{
    Algorithm, AxisMap, Conv, Device, Error, Geometry, Layout, Padding, PaddingMode, PlanOptions,
    Result, Tensor, with_axes,
};
use proptest::prelude::*;

use crate::catalogue::{cases, conv};
use crate::oracle::{Case, source};

fn maps(case: &Case) -> Vec<AxisMap> {
    fn all<const D: usize>(geometry: Geometry<D>) -> Vec<AxisMap> {
        (0..D).map(|axis| geometry.axis(axis).unwrap()).collect()
    }
    with_axes!(case.spatial, D => {
        let spatial = &case.input[3 - D..];
        conv::<D>(case).bind(std::array::from_fn(|a| spatial[a])).map(all)
    })
    .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn tables_equal_the_definition(case in cases()) {
        for (i, map) in maps(&case).into_iter().enumerate() {
            let axis = i + 3 - case.spatial;
            prop_assert_eq!(map.outputs(), case.output()[axis]);
            let mut overlap = vec![0; map.inputs()];
            for o in 0..map.outputs() {
                for k in 0..map.taps() {
                    prop_assert_eq!(map.source(o, k), source(&case, axis, o, k));
                    if let Some(i) = map.source(o, k) {
                        overlap[i] += 1;
                    }
                }
            }
            prop_assert_eq!(map.overlap(), overlap);
        }
    }

    #[test]
    fn rows_hold_every_tap_once_in_sorted_order(case in cases()) {
        for map in maps(&case) {
            let (rows, adjoint) = (map.rows().unwrap(), map.adjoint_rows().unwrap());
            prop_assert_eq!((rows.rows(), rows.columns()), (map.outputs(), map.inputs()));
            prop_assert_eq!((adjoint.rows(), adjoint.columns()), (map.inputs(), map.outputs()));
            prop_assert_eq!(rows.total(), adjoint.total());
            for o in 0..map.outputs() {
                let entries: Vec<_> = rows.row(o).collect();
                prop_assert!(entries.windows(2).all(|pair| pair[0].0 < pair[1].0));
                prop_assert_eq!(entries.len(), rows.count(o));
                prop_assert_eq!(rows.before(o) + rows.count(o), if o + 1 < map.outputs() { rows.before(o + 1) } else { rows.total() });
                let mut taps = 0;
                for (i, shared) in entries {
                    taps += shared.len();
                    prop_assert!(shared.iter().all(|&k| map.source(o, k) == Some(i)));
                    let back = adjoint.row(i).find(|entry| entry.0 == o).map(|entry| entry.1);
                    prop_assert_eq!(back, Some(shared));
                }
                prop_assert_eq!(taps, (0..map.taps()).filter(|&k| map.source(o, k).is_some()).count());
            }
        }
    }

    /// Whatever the numbers, binding answers with a geometry or a typed error.
    #[test]
    fn no_description_panics(
        numbers in prop::collection::vec(
            prop_oneof![0usize..12, Just(usize::MAX), Just(1 << 40), Just((1 << 60) - 1), any::<usize>()],
            21,
        ),
        mode in prop::sample::select(PaddingMode::ALL.to_vec()),
        kind in 0..3,
    ) {
        let three = |at: usize| -> [usize; 3] { std::array::from_fn(|a| numbers[at + a]) };
        let padding = match kind {
            0 => Padding::Same,
            1 => Padding::Valid,
            _ => Padding::Explicit { low: three(0), high: three(3) },
        };
        let conv = Conv::new(three(6))
            .stride(three(9))
            .dilation(three(12))
            .padding(padding)
            .padding_mode(mode)
            .groups(numbers[15]);
        if let Ok(geometry) = conv.bind(three(16)) {
            prop_assert!(geometry.output().iter().all(|&o| o > 0));
            prop_assert!(geometry.positions().checked_mul(geometry.taps()).is_some());
        }
        if let Ok(geometry) = conv.bind_transposed(three(16), three(18)) {
            prop_assert_eq!(geometry.output(), three(16));
            prop_assert!(geometry.input().iter().all(|&i| i > 0));
        }
    }
}

fn message<const D: usize>(result: Result<Geometry<D>>) -> String {
    result.expect_err("accepted").to_string()
}

#[test]
fn every_limit_is_an_error_that_names_the_value() {
    let conv = Conv::new([3]);
    for (result, expected) in [
        (Conv::new([0]).bind([5]), "kernel on axis 0 is 0: it must be at least 1"),
        (conv.stride([0]).bind([5]), "stride on axis 0 is 0: it must be at least 1"),
        (conv.dilation([0]).bind([5]), "dilation on axis 0 is 0: it must be at least 1"),
        (conv.groups(0).bind([5]), "groups is 0: it must be at least 1"),
        (conv.bind([0]), "input extent on axis 0 is 0: it must be at least 1"),
        (
            conv.dilation([2]).padding([1]).bind([2]),
            "kernel extent on axis 0 is 5: it must not exceed the padded input extent 4 = 1 + 2 + 1",
        ),
        (
            conv.padding(Padding::Same).stride([2]).bind([5]),
            "stride on axis 0 is 2: same padding requires stride 1",
        ),
        (
            conv.padding([(0, 4)]).padding_mode(PaddingMode::Reflect).bind([4]),
            "padding on axis 0 is 4: reflect padding of an extent of 4 must not exceed 3",
        ),
        (
            conv.padding([5]).padding_mode(PaddingMode::Circular).bind([4]),
            "padding on axis 0 is 5: circular padding of an extent of 4 must not exceed 4",
        ),
        (
            conv.padding([usize::MAX]).bind([4]),
            "padding on axis 0 is too large: 18446744073709551615 exceeds 1152921504606846975",
        ),
        (
            conv.bind_transposed([4], [1]),
            "output padding on axis 0 is 1: it must be smaller than the larger of stride and dilation, 1",
        ),
        (
            conv.padding([3]).bind_transposed([4], [0]),
            "padding on axis 0 is 3 + 3: it must be smaller than the full output extent 6",
        ),
    ] {
        assert_eq!(message(result), expected);
    }
    let huge = 1 << 59;
    let result = Conv::new([1, 1, 1]).bind([huge, huge, huge]);
    assert!(matches!(result, Err(Error::TooLarge { .. })), "{result:?}");
}

#[test]
fn limits_themselves_are_accepted() {
    let conv = Conv::new([3]);
    for (mode, padding) in [
        (PaddingMode::Reflect, 3),
        (PaddingMode::Circular, 4),
        (PaddingMode::Replicate, 40),
        (PaddingMode::Zeros, 40),
    ] {
        let output = conv.padding([padding]).padding_mode(mode).bind([4]).unwrap().output();
        assert_eq!(output, [4 + 2 * padding - 2]);
    }
}

#[test]
fn transposed_extents_are_those_of_pytorch() {
    // torch.nn.ConvTranspose1d(1, 1, 3, stride=2, padding=1, output_padding=1, dilation=2)
    let conv = Conv::new([3]).stride([2]).padding([1]).dilation([2]);
    assert_eq!(conv.bind_transposed([7], [1]).unwrap().input(), [16]);
    // Output padding up to the dilation is allowed even beyond the stride.
    let conv = Conv::new([2]).dilation([3]);
    assert_eq!(conv.bind_transposed([4], [2]).unwrap().input(), [9]);
}

#[test]
fn names_round_trip() {
    for mode in PaddingMode::ALL {
        assert_eq!(mode.to_string().parse::<PaddingMode>().unwrap(), mode);
    }
    for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
        assert_eq!(layout.to_string().parse::<Layout>().unwrap(), layout);
    }
    let error = "wrap".parse::<PaddingMode>().unwrap_err().to_string();
    assert!(error.contains("\"wrap\""), "{error}");
    let conv = Conv::new([3, 2]).padding([(0, 1), (2, 3)]).groups(4).layout(Layout::ChannelsLast);
    assert_eq!(conv.to_string(), "3×2, padding 0:1×2:3, groups 4, channels-last");
}

/// A stride may be far longer than the input, which then has one output: nothing counts up to it.
#[test]
fn strides_far_beyond_the_input_are_no_work() {
    let (near, far) = (Conv::new([3]).stride([9]), Conv::new([3]).stride([1 << 59]));
    let tensor = |shape: &[usize]| crate::catalogue::tensor::<f64>(shape, &[1., 2., 3., 4., 5.]);
    let (x, dy) =
        (tensor(&[1, 1, 5]), Tensor::from_vec(&Device::Cpu, &[1, 1, 1], vec![2.]).unwrap());
    let w = Tensor::from_vec(&Device::Cpu, &[1, 1, 3], vec![1., -1., 2.]).unwrap();
    assert_eq!(far.unfold(&x).unwrap(), near.unfold(&x).unwrap());
    assert_eq!(far.forward(&x, &w, None).unwrap(), near.forward(&x, &w, None).unwrap());
    for algorithm in Algorithm::GENERAL {
        let gradient = |conv: Conv<1>| {
            let options = PlanOptions::new().algorithm(algorithm);
            let plan = conv
                .plan_backward_input::<f64>(&Device::Cpu, dy.shape(), w.shape(), [5], options)
                .unwrap();
            let mut dx = Tensor::zeros(&Device::Cpu, plan.result_shape()).unwrap();
            plan.run(&dy, &w, &mut dx, &mut plan.make_workspace().unwrap()).unwrap();
            dx
        };
        assert_eq!(gradient(far), gradient(near), "{algorithm}");
    }
    assert_eq!(far.matrix(&w, None, [5]).unwrap(), near.matrix(&w, None, [5]).unwrap());
}
