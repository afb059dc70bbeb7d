//! The definition, by `kernels/naive.cu`.

use bytemuck::{Pod, Zeroable};

use super::arguments::{Convolution, inner_axes, spec};
use crate::conv::problem::Problem;
use crate::device::cuda::{
    CudaDevice, DeviceSlice, DeviceSliceMut, Divisor, THREADS, blocks, position_divisors,
};
use crate::element::Element;
use crate::error::Result;
use crate::geometry::Layout;

/// `NaiveArgs` in the kernel.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    x: u64,
    y: u64,
    weight: u64,
    bias: u64,
    result: u64,
    count: i64,
    conv: Convolution,
    inner: [Divisor; 2],
    group: Divisor,
    position: [Divisor; 2],
}

pub(super) fn forward<T: Element>(
    p: &Problem,
    x: &DeviceSlice<'_, T>,
    w: &DeviceSlice<'_, T>,
    bias: Option<&DeviceSlice<'_, T>>,
    y: &mut DeviceSliceMut<'_, T>,
) -> Result<()> {
    let arguments = Arguments {
        x: x.address(),
        y: 0,
        weight: w.address(),
        bias: bias.map_or(0, DeviceSlice::address),
        result: y.address(),
        count: y.len() as i64,
        conv: Convolution::new(p),
        inner: inner_axes(p.layout, p.outputs, p.output_positions()),
        group: Divisor::new(p.outputs_per_group()),
        position: position_divisors(p.output_extents()),
    };
    // SAFETY: the operands have the problem's extents, outside of which the kernel does not reach; it
    // writes `y` only.
    unsafe { launch::<T>(y.device(), p, "naive_forward", &arguments) }
}

pub(super) fn backward_input<T: Element>(
    p: &Problem,
    dy: &DeviceSlice<'_, T>,
    w: &DeviceSlice<'_, T>,
    bias: Option<&DeviceSlice<'_, T>>,
    dx: &mut DeviceSliceMut<'_, T>,
) -> Result<()> {
    let arguments = Arguments {
        x: 0,
        y: dy.address(),
        weight: w.address(),
        bias: bias.map_or(0, DeviceSlice::address),
        result: dx.address(),
        count: dx.len() as i64,
        conv: Convolution::new(p),
        inner: inner_axes(p.layout, p.channels, p.input_positions()),
        group: Divisor::new(p.channels_per_group()),
        position: position_divisors(p.input_extents()),
    };
    // SAFETY: as in `forward`; it writes `dx` only.
    unsafe { launch::<T>(dx.device(), p, "naive_backward_input", &arguments) }
}

pub(super) fn backward_weight<T: Element>(
    p: &Problem,
    x: &DeviceSlice<'_, T>,
    dy: &DeviceSlice<'_, T>,
    dw: &mut DeviceSliceMut<'_, T>,
) -> Result<()> {
    let arguments = Arguments {
        x: x.address(),
        y: dy.address(),
        weight: 0,
        bias: 0,
        result: dw.address(),
        count: dw.len() as i64,
        conv: Convolution::new(p),
        inner: match p.layout {
            Layout::ChannelsFirst => [p.channels_per_group() * p.taps(), p.taps()],
            Layout::ChannelsLast => [p.channels_per_group() * p.outputs, p.outputs],
        }
        .map(Divisor::new),
        group: Divisor::new(p.outputs_per_group()),
        position: position_divisors(p.tap_extents()),
    };
    // SAFETY: as in `forward`; it writes `dw` only.
    unsafe { launch::<T>(dw.device(), p, "naive_backward_weight", &arguments) }
}

/// # Safety
/// The addresses are operands of the problem.
unsafe fn launch<T: Element>(
    device: &CudaDevice,
    p: &Problem,
    entry: &'static str,
    arguments: &Arguments,
) -> Result<()> {
    let count = arguments.count as usize;
    let spec = spec::<T>(device, p, "naive.cu", entry, count)
        .geometry(&p.axes, device.options().specialise);
    // SAFETY: passed on to the caller.
    unsafe { device.launch(spec, blocks(count, THREADS)?, THREADS, arguments) }
}
