//! The definition, by `kernels/conv/naive.cu`.

use super::arguments::{inner_axes, spec};
use crate::conv::problem::Problem;
use crate::device::cuda::structs::{Convolution, NaiveArgs};
use crate::device::cuda::{
    Divisor, Draft, LOADS_AT_A_TIME, Pointer, Region, THREADS, Work, blocks, position_divisors,
};
use crate::element::Element;
use crate::error::Result;
use crate::geometry::Layout;

pub(super) fn forward<T: Element>(
    draft: &mut Draft,
    p: &Problem,
    x: Region<T>,
    w: Region<T>,
    bias: Option<Region<T>>,
    y: Region<T>,
) -> Result<()> {
    let [major, minor] = inner_axes(p.layout, p.outputs, p.output_positions());
    let [plane, line] = position_divisors(p.output_extents());
    let arguments = NaiveArgs {
        x: x.pointer(),
        y: Pointer::NULL,
        weight: w.pointer(),
        bias: bias.map_or(Pointer::NULL, |bias| bias.pointer()),
        result: y.pointer(),
        count: y.len() as i64,
        conv: Convolution::new(p),
        major,
        minor,
        group: Divisor::new(p.outputs_per_group()),
        plane,
        line,
    };
    // SAFETY: the operands have the problem's extents, outside of which the kernel does not reach; it
    // writes `y` only.
    unsafe { launch::<T>(draft, p, "naive_forward", &arguments, p.channels_per_group() * p.taps()) }
}

pub(super) fn backward_input<T: Element>(
    draft: &mut Draft,
    p: &Problem,
    dy: Region<T>,
    w: Region<T>,
    bias: Option<Region<T>>,
    dx: Region<T>,
) -> Result<()> {
    let [major, minor] = inner_axes(p.layout, p.channels, p.input_positions());
    let [plane, line] = position_divisors(p.input_extents());
    let arguments = NaiveArgs {
        x: Pointer::NULL,
        y: dy.pointer(),
        weight: w.pointer(),
        bias: bias.map_or(Pointer::NULL, |bias| bias.pointer()),
        result: dx.pointer(),
        count: dx.len() as i64,
        conv: Convolution::new(p),
        major,
        minor,
        group: Divisor::new(p.channels_per_group()),
        plane,
        line,
    };
    // Lanes are neighbours on the last axis, where a tap reaches some of them; on the others it reaches all or none.
    let strides = p.axes[0].stride() * p.axes[1].stride();
    let steps = p.outputs_per_group() * p.taps().div_ceil(strides);
    // SAFETY: as in `forward`; it writes `dx` only.
    unsafe { launch::<T>(draft, p, "naive_backward_input", &arguments, steps) }
}

pub(super) fn backward_weight<T: Element>(
    draft: &mut Draft,
    p: &Problem,
    x: Region<T>,
    dy: Region<T>,
    dw: Region<T>,
) -> Result<()> {
    let [major, minor] = match p.layout {
        Layout::ChannelsFirst => [p.channels_per_group() * p.taps(), p.taps()],
        Layout::ChannelsLast => [p.channels_per_group() * p.outputs, p.outputs],
    }
    .map(Divisor::new);
    let [plane, line] = position_divisors(p.tap_extents());
    let arguments = NaiveArgs {
        x: x.pointer(),
        y: dy.pointer(),
        weight: Pointer::NULL,
        bias: Pointer::NULL,
        result: dw.pointer(),
        count: dw.len() as i64,
        conv: Convolution::new(p),
        major,
        minor,
        group: Divisor::new(p.outputs_per_group()),
        plane,
        line,
    };
    // SAFETY: as in `forward`; it writes `dw` only.
    unsafe {
        launch::<T>(draft, p, "naive_backward_weight", &arguments, p.batch * p.output_positions())
    }
}

/// Each result takes so many `steps`, some of which a stride or padding leaves out, for some lanes of a warp.
///
/// # Safety
/// The pointers are operands of the problem.
unsafe fn launch<T: Element>(
    draft: &mut Draft,
    p: &Problem,
    entry: &'static str,
    arguments: &NaiveArgs,
    steps: usize,
) -> Result<()> {
    let count = arguments.count as usize;
    let device = draft.device();
    let spec = spec::<T>(device, p, "naive.cu", entry, count)
        .geometry(&p.axes, device.options().specialise);
    // A product takes an element of both operands, of which lanes share one; the other are mostly neighbours. Lanes
    // whose results are at different positions, channels last, have elements in as many sectors.
    let products = count as f64 / 32.0 * steps as f64;
    let sectors = match p.layout {
        Layout::ChannelsFirst => 5.0,
        Layout::ChannelsLast => (32.0 / arguments.minor.by as f64).max(5.0),
    };
    let mut work = Work::moving(count.div_ceil(THREADS as usize), (count * size_of::<T>()) as f64);
    work.l1 += (1.0 + sectors) / 4.0 * products;
    work.instructions += 4.0 * products;
    // A thread loads both elements of each of its products.
    work.waits = 2.0 * steps as f64 / LOADS_AT_A_TIME;
    work.resident = 5.0;
    draft.expect(work);
    // SAFETY: passed on to the caller.
    unsafe { draft.launch(spec, blocks(count, THREADS)?, THREADS, arguments) };
    Ok(())
}
