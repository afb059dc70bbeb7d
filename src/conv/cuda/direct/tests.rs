//! Layers made for one layer each, against the definition; and what the kernels ask of memory, counted.

use half::{bf16, f16};

use super::*;
use crate::conv::cuda::testing::{Definition, run_once, specialising};
use crate::device::Device;
use crate::device::cuda::{CudaDevice, DeviceBuffer, Simulation};
use crate::geometry::{Conv, PaddingMode};
use crate::{LaunchProfile, Profiling};

/// `y` and `dx` by tiles, with as much for a thread as it has room for, and as by default; `dw` by default.
fn check<T: Element, const D: usize>(
    device: &CudaDevice,
    conv: Conv<D>,
    size: [usize; D],
    batch: usize,
    channels: [usize; 2],
) {
    for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
        let conv = conv.layout(layout);
        let Definition { p, x, w, y, bias_x, bias_y, expected_y, expected_dx, expected_dw } =
            Definition::<T>::new(conv, size, batch, channels);
        let name = format!("{} {conv} {size:?} {channels:?}", T::DTYPE);
        let upload = |data: &[T]| DeviceBuffer::from_slice(device, "a test", data).unwrap();
        let fresh = |len: usize| DeviceBuffer::<T>::new(device, "a test", len).unwrap();
        let (x, w, y) = (upload(&x), upload(&w), upload(&y));
        let (bias_y, bias_x) = (upload(&bias_y), upload(&bias_x));
        let (found_y, found_dx, found_dw) = (fresh(y.len()), fresh(x.len()), fresh(w.len()));
        let tile = |operation, operand: &Region<T>, result: &Region<T>| {
            let alignments = [operand.alignment(), result.alignment()];
            Tile::with_threads::<T>(&p, true, operation, alignments, 1)
        };
        run_once(device, [&x, &w, &bias_y, &found_y], |draft, [x, w, bias, y]| {
            let tile = tile(Operation::Forward, &x, &y).expect(&name);
            tile.launch(draft, &p, Operation::Forward, [x, w, y], Some(bias))
        });
        assert!(found_y.to_vec().unwrap() == expected_y, "forward by tiles {name}");
        run_once(device, [&x, &w, &bias_y, &found_y], |draft, [x, w, bias, y]| {
            forward(draft, &p, x, w, Some(bias), y)
        });
        assert!(found_y.to_vec().unwrap() == expected_y, "forward {name}");
        if has_backward_input::<T>(device, &p) {
            run_once(device, [&y, &w, &bias_x, &found_dx], |draft, [dy, w, bias, dx]| {
                let unit_strides = p.axes[1].stride() == 1 && p.axes[2].stride() == 1;
                let tile = tile(Operation::BackwardInput, &dy, &dx);
                assert_eq!(tile.is_some(), unit_strides, "{name}");
                let Some(tile) = tile else {
                    return backward_input(draft, &p, dy, w, Some(bias), dx);
                };
                tile.launch(draft, &p, Operation::BackwardInput, [dy, w, dx], Some(bias))
            });
            assert!(found_dx.to_vec().unwrap() == expected_dx, "dx by tiles {name}");
            run_once(device, [&y, &w, &bias_x, &found_dx], |draft, [dy, w, bias, dx]| {
                backward_input(draft, &p, dy, w, Some(bias), dx)
            });
            assert!(found_dx.to_vec().unwrap() == expected_dx, "backward_input {name}");
        }
        run_once(device, [&x, &y, &found_dw], |draft, [x, dy, dw]| {
            match tile(Operation::BackwardWeight, &x, &dy) {
                Some(tile) => tile.launch_weight(draft, &p, [x, dy, dw]),
                None => backward_weight(draft, &p, x, dy, dw),
            }
        });
        assert!(found_dw.to_vec().unwrap() == expected_dw, "dw by tiles {name}");
        run_once(device, [&x, &y, &found_dw], |draft, [x, dy, dw]| {
            backward_weight(draft, &p, x, dy, dw)
        });
        assert!(found_dw.to_vec().unwrap() == expected_dw, "backward_weight {name}");
    }
}

#[test]
fn depthwise_layers() {
    let device = &specialising(Simulation::default());
    let conv = Conv::new([7, 7]).padding([3, 3]).groups(40);
    check::<f32, 2>(device, conv, [23, 16], 2, [40, 40]);
    check::<f16, 2>(device, conv, [23, 16], 2, [40, 40]);
    check::<f64, 2>(device, conv, [9, 16], 1, [40, 40]);
    let odd = Conv::new([3, 2]).padding([(1, 0), (2, 1)]).dilation([2, 3]).groups(7);
    check::<bf16, 2>(device, odd, [11, 14], 2, [7, 7]);
    let strided = Conv::new([5, 3]).padding([2, 1]).stride([2, 2]).groups(8);
    check::<f32, 2>(device, strided, [17, 16], 1, [8, 8]);
}

#[test]
fn groups_of_few_channels() {
    let device = &specialising(Simulation::default());
    let conv = Conv::new([3, 3]).padding([1, 1]);
    check::<f32, 2>(device, conv.groups(8), [14, 12], 2, [32, 32]);
    check::<f16, 2>(device, conv.groups(8), [14, 12], 2, [32, 32]);
    check::<f32, 2>(device, conv.groups(3), [6, 9], 1, [9, 18]);
    check::<f64, 2>(device, conv.groups(3), [6, 9], 1, [18, 9]);
    check::<bf16, 2>(device, conv.groups(2).stride([1, 2]), [7, 8], 1, [32, 24]);
}

#[test]
fn other_paddings_axes_and_indices() {
    let device = &specialising(Simulation::default());
    for mode in [PaddingMode::Reflect, PaddingMode::Replicate, PaddingMode::Circular] {
        let conv = Conv::new([3, 5]).padding([1, 3]).padding_mode(mode).groups(16);
        check::<f32, 2>(device, conv, [10, 8], 1, [16, 16]);
    }
    let solid = Conv::new([3, 2, 3]).padding([1, 1, 2]).stride([2, 1, 1]).groups(4);
    check::<f32, 3>(device, solid, [5, 6, 8], 2, [8, 4]);
    check::<f32, 1>(device, Conv::new([9]).padding([4]).groups(6), [70], 2, [6, 6]);
    let wide = &specialising(Simulation { wide_indices: true, ..Simulation::default() });
    check::<f32, 2>(wide, Conv::new([3, 3]).padding([1, 1]).groups(8), [9, 8], 1, [16, 8]);
}

/// Where blocks of few groups have many tiles each, so that another launch adds up their sums.
#[test]
fn many_sums_of_few_groups() {
    let device = &specialising(Simulation::default());
    check::<f32, 1>(device, Conv::new([3]).padding([1]).groups(2), [40_000], 2, [2, 2]);
}

/// Blocks leave their counters as the next run of the same program needs them.
#[test]
fn programs_run_again() {
    let device = &specialising(Simulation::default());
    for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
        let conv = Conv::new([3, 3]).padding([1, 1]).groups(8).layout(layout);
        let Definition { p, x, y, expected_dw, .. } =
            Definition::<f32>::new(conv, [40, 48], 3, [32, 32]);
        let upload = |data: &[f32]| DeviceBuffer::from_slice(device, "a test", data).unwrap();
        let (x, y, dw) = (upload(&x), upload(&y), upload(&vec![f32::NAN; expected_dw.len()]));
        let addresses = [&x, &y, &dw].map(|buffer| buffer.view().address());
        let mut draft = Draft::for_addresses(device, &addresses);
        let [x_at, y_at, dw_at] = [&x, &y, &dw].map(|buffer| draft.operand(buffer.len()));
        backward_weight::<f32>(&mut draft, &p, x_at, y_at, dw_at).unwrap();
        let program = draft.prepare().unwrap();
        assert_eq!(program.queued().count(), 1, "nothing but the kernel");
        let workspace = DeviceBuffer::<u8>::new(device, "a test", program.workspace()).unwrap();
        for run in 0..3 {
            // SAFETY: operands and workspace are as large as planned.
            unsafe { program.run(&addresses, &[], workspace.view().address()).unwrap() };
            assert!(dw.to_vec().unwrap() == expected_dw, "run {run} {layout}");
        }
    }
}

/// `y`, `dx` and `dw` by tiles on an H100, with as much for a thread as it has room for.
fn profiles<T: Element>(
    layout: Layout,
    conv: Conv<2>,
    size: usize,
    channels: usize,
) -> [LaunchProfile; 3] {
    let profiling = Some(Profiling::new("h100".parse().unwrap()));
    let device = specialising(Simulation { profiling, ..Simulation::default() });
    let geometry = conv.layout(layout).bind([size; 2]).unwrap();
    let p = Problem::new(&geometry, 1, channels, channels).unwrap();
    let zeros = |len: usize| DeviceBuffer::from_slice(&device, "a test", &vec![T::default(); len]);
    let (x, y) = (zeros(p.input_len()).unwrap(), zeros(p.output_len()).unwrap());
    let (w, held) = (zeros(p.weight_len()).unwrap(), Device::Cuda(device.clone()));
    [Operation::Forward, Operation::BackwardInput, Operation::BackwardWeight].map(|operation| {
        held.take_profile();
        run_once(&device, [&x, &w, &y], |draft, [x, w, y]| {
            let alignments = [x.alignment(), y.alignment()];
            let tile = Tile::with_threads::<T>(&p, true, operation, alignments, 1).unwrap();
            match operation {
                Operation::Forward => tile.launch(draft, &p, operation, [x, w, y], None),
                Operation::BackwardInput => tile.launch(draft, &p, operation, [y, w, x], None),
                Operation::BackwardWeight => tile.launch_weight(draft, &p, [x, y, w]),
            }
        });
        let mut launches = held.take_profile().into_iter();
        launches.find(|launch| launch.kernel.starts_with("direct_tiles")).unwrap()
    })
}

fn check_profiles<T: Element>(conv: Conv<2>, size: usize, channels: usize) {
    let elements = size * size * channels;
    let taps: usize = conv.kernel_size().iter().product();
    let products = (elements * taps * channels / conv.group_count()) as f64;
    let sectors = (elements * size_of::<T>() / 32) as f64;
    for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
        let found = profiles::<T>(layout, conv, size, channels);
        for (what, profile) in ["y", "dx", "dw"].into_iter().zip(&found) {
            check_profile(profile, &format!("{what} {layout} {}", T::DTYPE), products, sectors);
        }
    }
}

/// Results are stored by whole sectors, operands loaded little more often than once, and what is read of shared
/// memory is read for several products.
fn check_profile(profile: &LaunchProfile, what: &str, products: f64, sectors: f64) {
    println!("{what}\n{profile}");
    let (global, shared) = (profile.global, profile.shared);
    if profile.kernel == "direct_tiles" {
        assert_eq!(global.store_sectors, sectors, "{what}");
        assert!(global.load_sectors_past_l1 < 4.0 * sectors, "{what}");
    }
    // The gradient by the weight adds up the sums of threads as well, for only one image here.
    let least = if profile.kernel == "direct_tiles" { 2.5 } else { 1.25 };
    assert!(products / 32.0 / shared.wavefronts > least, "{what}");
}

#[test]
fn memory_is_asked_for_little_more_than_once() {
    let depthwise = Conv::new([7, 7]).padding([3, 3]).groups(32);
    check_profiles::<f32>(depthwise, 56, 32);
    check_profiles::<f16>(depthwise, 56, 32);
    let grouped = Conv::new([3, 3]).padding([1, 1]).groups(8);
    check_profiles::<f32>(grouped, 56, 32);
    check_profiles::<bf16>(grouped, 56, 32);
}
