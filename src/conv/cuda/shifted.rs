//! One matrix product per tap, accumulated, over what that tap alone gathers: a shifted copy of the
//! input, or the input itself where the shift is none. Takes a K-th of the workspace of `im2col`, and
//! reads and writes the sums K times.

use bytemuck::{Pod, Zeroable};

use super::arguments::{Three, inner_axes};
use super::lowering::{Block, Lowering};
use crate::conv::problem::Problem;
use crate::device::cuda::{
    AxesArguments, DeviceSlice, DeviceSliceMut, Divisor, Spec, THREADS, axis_bound, blocks,
    position_divisors,
};
use crate::element::Element;
use crate::error::Result;
use crate::geometry::{Axes, unravel};

pub(super) fn lowering(p: &Problem) -> Result<Lowering<'_>> {
    let block = |tap| {
        let tap = unravel(tap, p.tap_extents());
        let [d, h, w] = &*p.axes;
        let maps = Axes::new([d.tap_axis(tap[0])?, h.tap_axis(tap[1])?, w.tap_axis(tap[2])?]);
        Ok(Block { maps, tap })
    };
    Ok(Lowering::new(p, (0..p.taps()).map(block).collect::<Result<_>>()?))
}

/// `AddArgs` in the kernel.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    products: u64,
    sums: u64,
    count: i64,
    keep: i64,
    tap: [i64; 3],
    x: Three,
    y: Three,
    inner: [Divisor; 2],
    position: [Divisor; 2],
    axes: AxesArguments,
}

/// Adds the products of one tap to the sums, or overwrites these.
pub(super) fn land<T: Element>(
    p: &Problem,
    block: &Block,
    images: usize,
    products: DeviceSlice<'_, T>,
    target: DeviceSliceMut<'_, T>,
    add: bool,
) -> Result<()> {
    let device = target.device();
    // The products are outputs with the input's channels.
    let gathered = Problem { batch: images, outputs: p.channels, ..p.clone() };
    let arguments = Arguments {
        products: products.address(),
        sums: target.address(),
        count: target.len() as i64,
        keep: add.into(),
        tap: block.tap.map(|tap| tap as i64),
        x: gathered.input_strides().into(),
        y: gathered.output_strides().into(),
        inner: inner_axes(p.layout, p.channels, p.input_positions()),
        position: position_divisors(p.input_extents()),
        axes: AxesArguments::new(&p.axes),
    };
    let counts = [products.len(), target.len(), axis_bound(&p.axes)];
    let spec = Spec::new("sums.cu", "add")
        .element(T::DTYPE)
        .define("SOURCE", T::DTYPE)
        .layout(p.layout)
        .geometry(&p.axes, device.options().specialise)
        .index(&counts, device.options().wide);
    let grid = blocks(target.len(), THREADS)?;
    // SAFETY: the kernel reads the products and the sums, inside their extents, and writes the sums.
    unsafe { device.launch(spec, grid, THREADS, &arguments) }
}
