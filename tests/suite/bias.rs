//! The gradient by the bias on every device.

use convmat::{Conv, Device, Element, Layout};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::catalogue::{devices, integers, on, randoms, tensor, values, variants};

/// Sums of each channel of `[batch, channels, positions]` or `[batch, positions, channels]`.
fn expected(layout: Layout, [batch, channels, positions]: [usize; 3], dy: &[f64]) -> Vec<f64> {
    let at = |n: usize, c: usize, p: usize| match layout {
        Layout::ChannelsFirst => (n * channels + c) * positions + p,
        Layout::ChannelsLast => (n * positions + p) * channels + c,
    };
    let sum = |c: usize| {
        (0..batch)
            .flat_map(|n| (0..positions).map(move |p| (n, p)))
            .map(|(n, p)| dy[at(n, c, p)])
            .sum()
    };
    (0..channels).map(sum).collect()
}

fn check<T: Element>(layout: Layout, sizes: [usize; 3], device: &Device, rounding: f64) {
    let [batch, channels, positions] = sizes;
    let shape = layout.activation_shape(batch, channels, &[positions]);
    let conv = Conv::new([1]).layout(layout);
    let len = batch * channels * positions;
    for (data, exact) in [(integers(len, 1, 1), true), (randoms(len, 2), false)] {
        let host = tensor::<T>(&shape, &data);
        let dy = on(device, &host);
        let db = conv.backward_bias(&dy).unwrap();
        let mut reused = on(device, &tensor::<T>(&[channels], &vec![7.0; channels]));
        conv.backward_bias_into(&dy, &mut reused).unwrap();
        assert_eq!(reused, db);
        let sums = expected(layout, sizes, &values(&host));
        let scales =
            expected(layout, sizes, &values(&host).iter().map(|v| v.abs()).collect::<Vec<_>>());
        for ((found, sum), scale) in values(&db).into_iter().zip(sums).zip(scales) {
            let rounded = T::from_f64(sum).to_f64();
            // Sums of far fewer than `len` terms in one chain.
            let limit = if exact { 0.0 } else { rounding * (20.0 * scale + 1.0) };
            assert!(
                (found - rounded).abs() <= limit,
                "{found} for {sum}: {layout} {sizes:?} on {device}"
            );
        }
    }
}

fn check_types(layout: Layout, sizes: [usize; 3], device: &Device) {
    check::<f32>(layout, sizes, device, f64::from(f32::EPSILON));
    check::<f64>(layout, sizes, device, f64::EPSILON);
    check::<f16>(layout, sizes, device, 1e-3);
    check::<bf16>(layout, sizes, device, 8e-3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn it_is_the_sum_of_each_channel(
        sizes in (0usize..4, 1usize..70, 1usize..50),
        last: bool,
    ) {
        let layout = if last { Layout::ChannelsLast } else { Layout::ChannelsFirst };
        for device in devices() {
            check_types(layout, sizes.into(), device);
        }
    }
}

/// Channels long enough to be summed in several pieces, the last one shorter.
#[test]
fn long_channels_are_summed_in_pieces() {
    for device in devices().iter().cloned().chain(variants()) {
        for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
            check::<f32>(layout, [3, 2, 40_004], &device, f64::from(f32::EPSILON));
            check::<f16>(layout, [2, 3, 30_001], &device, 1e-3);
            check::<f64>(layout, [5, 70, 1_002], &device, f64::EPSILON);
        }
    }
}

#[test]
fn an_empty_batch_has_no_gradient() {
    for device in devices() {
        for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
            check_types(layout, [0, 5, 7], device);
        }
    }
}
