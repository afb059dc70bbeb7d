//! The gathering filter: its sparse forms, and convolving with it is unfold.

use convmat::{Conv, Device, Element, Error, Layout, PlanOptions, Tensor, TensorView, with_axes};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::catalogue::{
    cases, conv, devices, integers, layers, on, randoms, tensor, values, variants,
};
use crate::oracle::Case;

fn filter(c: &Case) -> Tensor<f32> {
    with_axes!(c.spatial, D => conv::<D>(c).gathering_filter(c.channels)).unwrap()
}

/// The dense weight flattened to `[output channel, everything else in the weight's order]`.
fn flattened(c: &Case, weight: &Tensor<f32>) -> Vec<f64> {
    let outputs = c.channels * c.taps();
    let dense = values(weight);
    match c.layout {
        Layout::ChannelsFirst => dense,
        Layout::ChannelsLast => {
            let others = dense.len() / outputs;
            (0..dense.len()).map(|i| dense[i % others * outputs + i / others]).collect()
        }
    }
}

/// Full mantissas: products with 0 and 1 and sums with 0 are exact.
fn check_unfold<const D: usize>(c: &Case, seed: u64) {
    let conv = conv::<D>(c);
    let x = tensor::<f32>(&c.input_shape(), &randoms(c.input_len(), seed));
    let y = conv.forward(&x, &filter(c), None).unwrap();
    assert_eq!(values(&y), values(&conv.unfold(&x).unwrap()));
}

fn check_device<T: Element>(c: &Case, device: &Device) {
    let host = with_axes!(c.spatial, D => conv::<D>(c).gathering_filter::<T>(c.channels)).unwrap();
    let filter =
        with_axes!(c.spatial, D => conv::<D>(c).gathering_filter_on(device, c.channels)).unwrap();
    assert_eq!(filter.device(), *device);
    assert_eq!(filter.shape(), host.shape());
    assert_eq!(values::<T>(&filter), values(&host), "{c:?} on {device}");
}

#[test]
fn devices_build_the_same() {
    for device in devices().iter().cloned().chain(variants()) {
        for c in layers() {
            check_device::<f32>(&c, &device);
            check_device::<f64>(&c, &device);
            check_device::<f16>(&c, &device);
            check_device::<bf16>(&c, &device);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn convolving_with_it_is_unfold_by_definition(c in cases(), seed: u64) {
        let weight = filter(&c);
        let gather = Case { outputs: c.channels * c.taps(), ..c.clone() };
        assert_eq!(weight.shape(), gather.weight_shape());
        let x = integers(c.input_len(), seed, 1000);
        let y = gather.forward(&x, &values(&weight), None);
        // Channels-first y [N, C·K, L] and channels-last y [N, L, C·K] are the patches.
        assert_eq!(y, c.unfold(&x));
    }

    #[test]
    fn convolving_with_it_is_unfold(c in cases(), seed: u64) {
        with_axes!(c.spatial, D => {
            check_unfold::<D>(&c, seed);
            Ok::<(), Error>(())
        })?;
    }

    #[test]
    fn sparse_forms_equal_the_dense_one(c in cases()) {
        let dense = flattened(&c, &filter(&c));
        let coo = with_axes!(c.spatial, D => conv::<D>(&c).gathering_filter_coo::<f32>(c.channels));
        let csr = with_axes!(c.spatial, D => conv::<D>(&c).gathering_filter_csr(c.channels));
        let (coo, csr) = (coo.unwrap(), csr.unwrap());
        let rows = c.channels * c.taps();
        assert_eq!((coo.shape(), coo.nnz()), ([rows, rows / c.groups], rows));
        assert_eq!(values(&coo.to_dense().unwrap()), dense);
        assert_eq!(values(&csr.to_dense().unwrap()), dense);
        assert_eq!(coo.to_csr().unwrap(), csr);
        assert_eq!(csr.to_coo().unwrap(), coo);
    }
}

#[test]
fn impossible_filters_are_refused() {
    let error = |conv: Conv<2>, channels| conv.gathering_filter::<f32>(channels).unwrap_err();
    let message = error(Conv::new([2, 2]).groups(3), 4).to_string();
    assert_eq!(message, "channels is 4: it must be a positive multiple of groups = 3");
    assert_eq!(
        error(Conv::new([2, 0]), 4).to_string(),
        "kernel on axis 1 is 0: it must be at least 1"
    );
    assert_eq!(
        error(Conv::new([1, 1]).groups(0), 4).to_string(),
        "groups is 0: it must be at least 1"
    );
    assert!(matches!(error(Conv::new([1, 1]), 1 << 40), Error::TooLarge { .. }));
    assert!(matches!(error(Conv::new([1 << 40, 1 << 40]), 1), Error::TooLarge { .. }));
}

/// The notebook this crate began with got 1.836 here instead of 0: it convolved with `groups` = C, but
/// with the filter of one group, which is now an error.
#[test]
fn grouped_filters_gather_what_unfold_does() {
    let (plain, x) = (Conv::new([3, 3]).padding([1, 1]), randoms(2 * 6 * 7 * 5, 1));
    let x = TensorView::from_slice(&[2, 6, 7, 5], &x).unwrap();
    let patches = plain.unfold(&x).unwrap();
    for groups in [1, 2, 3, 6] {
        let conv = plain.groups(groups);
        let filter = conv.gathering_filter::<f64>(6).unwrap();
        assert_eq!(filter.shape(), [54, 6 / groups, 3, 3]);
        let y = conv.forward(&x, &filter, None).unwrap().reshape(patches.shape()).unwrap();
        assert_eq!(y, patches);
    }
    let ungrouped = plain.gathering_filter::<f64>(6).unwrap();
    let refused = plain.groups(6).forward(&x, &ungrouped, None).unwrap_err();
    assert!(matches!(refused, Error::Shape { .. }), "{refused}");
}

#[test]
fn plans_fill_filters() {
    for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
        let conv = Conv::new([2, 3]).groups(2).layout(layout);
        let expected = conv.gathering_filter::<f32>(6).unwrap();
        for device in devices() {
            let plan = conv.plan_filter::<f32>(device, 6, PlanOptions::new()).unwrap();
            let mut filter =
                on(device, &tensor::<f32>(expected.shape(), &vec![7.0; expected.len()]));
            plan.run(&mut filter, &mut plan.make_workspace().unwrap()).unwrap();
            assert_eq!(values(&filter), values(&expected));
            let mut again =
                on(device, &tensor::<f32>(expected.shape(), &vec![7.0; expected.len()]));
            conv.gathering_filter_into(6, &mut again).unwrap();
            assert_eq!(filter, again);
            assert_eq!(plan.explanation().bytes, 4 * expected.len() as u64);
        }
    }
}
