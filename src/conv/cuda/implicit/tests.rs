//! Layers large enough for several tiles and for every stage of the pipeline, against the definition.

use half::{bf16, f16};

use super::*;
use crate::conv::cuda::testing::{Definition, run_once, simulator, specialising};
use crate::device::cuda::{CudaDevice, DeviceBuffer, Simulation};
use crate::geometry::{Conv, PaddingMode};

fn check<T: Element, const D: usize>(
    conv: Conv<D>,
    size: [usize; D],
    batch: usize,
    channels: [usize; 2],
) {
    let device = specialising(Simulation::default());
    check_on::<T, D>(&device, conv, size, batch, channels);
}

fn check_on<T: Element, const D: usize>(
    device: &CudaDevice,
    conv: Conv<D>,
    size: [usize; D],
    batch: usize,
    channels: [usize; 2],
) {
    let Definition { p, x, w, y, bias_x, bias_y, expected_y, expected_dx, expected_dw } =
        Definition::<T>::new(conv, size, batch, channels);
    let name = format!("{} {conv} {size:?} {channels:?}", T::DTYPE);
    let upload = |data: &[T]| DeviceBuffer::from_slice(device, "a test", data).unwrap();
    let fresh = |len: usize| DeviceBuffer::<T>::new(device, "a test", len).unwrap();
    let (x, w, y, bias_y, bias_x) =
        (upload(&x), upload(&w), upload(&y), upload(&bias_y), upload(&bias_x));
    let (found_y, found_dx, found_dw) = (fresh(y.len()), fresh(x.len()), fresh(w.len()));
    let (inputs, rows) = (p.channels_per_group(), p.outputs_per_group());
    for (pack, tf32) in [(false, false), (true, false), (false, true)] {
        let packs = |channels| pack && can_pack::<T>(device, &p, channels);
        run_once(device, [&x, &w, &bias_y, &found_y], |draft, [x, w, bias, y]| {
            draft.allow_tf32(tf32);
            forward(draft, &p, x, w, Some(bias), y, packs(inputs))
        });
        assert!(
            found_y.to_vec().unwrap() == expected_y,
            "forward {name}, packed: {pack}, TF32: {tf32}"
        );
        run_once(device, [&x, &y, &found_dw], |draft, [x, dy, dw]| {
            draft.allow_tf32(tf32);
            backward_weight(draft, &p, x, dy, dw, packs(inputs) && packs(rows))
        });
        let found = found_dw.to_vec().unwrap();
        assert!(found == expected_dw, "backward_weight {name}, packed: {pack}, TF32: {tf32}");
        if p.axes.is_zero_padded() {
            run_once(device, [&y, &w, &bias_x, &found_dx], |draft, [dy, w, bias, dx]| {
                draft.allow_tf32(tf32);
                backward_input(draft, &p, dy, w, Some(bias), dx, packs(rows))
            });
            let found = found_dx.to_vec().unwrap();
            assert!(found == expected_dx, "backward_input {name}, packed: {pack}, TF32: {tf32}");
        }
    }
}

fn check_layouts<T: Element, const D: usize>(
    conv: Conv<D>,
    size: [usize; D],
    batch: usize,
    channels: [usize; 2],
) {
    for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
        check::<T, D>(conv.layout(layout), size, batch, channels);
    }
}

#[test]
fn whole_vectors_and_several_tiles() {
    let conv = Conv::new([3, 3]).padding([1, 1]);
    check_layouts::<f32, 2>(conv, [16, 12], 1, [40, 136]);
    check_layouts::<f64, 2>(conv, [16, 12], 1, [40, 136]);
    check_layouts::<f16, 2>(conv, [16, 12], 1, [40, 136]);
    check_layouts::<bf16, 2>(conv, [16, 12], 1, [40, 136]);
}

#[test]
fn large_tiles() {
    let conv = Conv::new([3, 3]).padding([1, 1]);
    check_layouts::<bf16, 2>(conv, [16, 16], 3, [16, 256]);
    check_layouts::<f32, 2>(conv, [16, 16], 3, [16, 256]);
}

#[test]
fn strides_and_odd_sizes() {
    let conv = Conv::new([3, 3]).stride([2, 2]).padding([1, 1]);
    check_layouts::<f32, 2>(conv, [13, 11], 2, [5, 7]);
    check_layouts::<f16, 2>(conv, [13, 11], 2, [5, 7]);
    let dilated = Conv::new([2, 3]).stride([3, 1]).dilation([1, 2]);
    check_layouts::<f32, 2>(dilated, [11, 10], 1, [8, 9]);
    check_layouts::<bf16, 2>(Conv::new([1, 1]).stride([2, 2]), [8, 8], 2, [16, 24]);
}

#[test]
fn groups() {
    let conv = Conv::new([3]).padding([1]).groups(3);
    check_layouts::<f32, 1>(conv, [40], 2, [24, 48]);
    check_layouts::<bf16, 1>(conv, [40], 2, [24, 48]);
    check_layouts::<f32, 1>(Conv::new([3]).groups(4), [19], 2, [4, 8]);
}

#[test]
fn three_axes_and_other_paddings() {
    let conv = Conv::new([2, 3, 3]).padding([1, 1, 2]);
    check_layouts::<f32, 3>(conv, [4, 6, 5], 1, [8, 16]);
    for mode in [PaddingMode::Reflect, PaddingMode::Replicate, PaddingMode::Circular] {
        let conv = conv.padding_mode(mode).layout(Layout::ChannelsLast);
        check::<f32, 3>(conv, [4, 6, 5], 1, [3, 4]);
        check::<f16, 3>(conv, [4, 6, 5], 1, [8, 16]);
    }
}

/// Few weights, and so many positions that their sum is shared out.
#[test]
fn sums_over_many_positions() {
    let conv = Conv::new([3, 3]).padding([1, 1]);
    check_layouts::<f32, 2>(conv, [24, 24], 2, [8, 8]);
    check_layouts::<bf16, 2>(conv, [24, 24], 2, [8, 8]);
}

#[test]
fn indices_of_64_bits() {
    let wide = simulator(Simulation { wide_indices: true, ..Simulation::default() });
    let conv = Conv::new([3, 3]).stride([2, 1]).padding([1, 1]);
    check_on::<f32, 2>(&wide, conv, [9, 8], 2, [5, 6]);
    check_on::<bf16, 2>(&wide, conv.layout(Layout::ChannelsLast), [9, 8], 2, [8, 16]);
}

/// Of a multiple of eight channels, so that half types may be packed, and otherwise awkward.
#[test]
fn awkward_layers_of_whole_chunks() {
    let types = |conv: Conv<2>, size, batch, channels| {
        check::<f16, 2>(conv, size, batch, channels);
        check::<bf16, 2>(conv, size, batch, channels);
    };
    types(Conv::new([2, 2]).stride([3, 4]), [7, 11], 1, [8, 16]);
    types(
        Conv::new([1, 3]).dilation([1, 2]).padding([(0, 0), (3, 0)]).groups(2),
        [1, 13],
        3,
        [16, 32],
    );
    types(Conv::new([4, 3]).stride([2, 1]).padding([(3, 1), (0, 2)]), [5, 1], 2, [24, 8]);
    types(Conv::new([3, 3]).padding([1, 2]).padding_mode(PaddingMode::Reflect), [5, 3], 2, [8, 8]);
    types(Conv::new([1, 1]).stride([2, 2]).groups(3), [9, 5], 1, [24, 24]);
    let conv = Conv::new([2, 1, 3]).stride([1, 2, 2]).padding([1, 0, 1]);
    check::<f16, 3>(conv, [3, 5, 7], 2, [8, 40]);
    check::<bf16, 1>(Conv::new([5]).dilation([3]).padding([9]), [17], 1, [16, 8]);
}
