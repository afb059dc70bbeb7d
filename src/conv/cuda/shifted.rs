//! One matrix product per tap, accumulated, over what that tap alone gathers: a shifted copy of the
//! input, or the input itself where the shift is none. Takes a K-th of the workspace of `im2col`, and
//! reads and writes the sums K times.

use super::arguments::inner_axes;
use super::lowering::{Block, Lowering};
use crate::conv::problem::Problem;
use crate::device::cuda::structs::AddArgs;
use crate::device::cuda::{
    AxesArguments, Draft, Region, Spec, THREADS, axis_bound, blocks, position_divisors,
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

/// Adds the products of one tap to the sums, or overwrites these.
pub(super) fn land<T: Element>(
    draft: &mut Draft,
    p: &Problem,
    block: &Block,
    images: usize,
    products: Region<T>,
    target: Region<T>,
    add: bool,
) -> Result<()> {
    let options = draft.device().options();
    // The products are outputs with the input's channels.
    let gathered = Problem { batch: images, outputs: p.channels, ..p.clone() };
    let [major, minor] = inner_axes(p.layout, p.channels, p.input_positions());
    let [plane, line] = position_divisors(p.input_extents());
    let arguments = AddArgs {
        products: products.pointer(),
        sums: target.pointer(),
        count: target.len() as i64,
        keep: add.into(),
        tap: block.tap.map(|tap| tap as i64),
        x: gathered.input_strides().into(),
        y: gathered.output_strides().into(),
        major,
        minor,
        plane,
        line,
        axes: AxesArguments::new(&p.axes),
    };
    let counts = [products.len(), target.len(), axis_bound(&p.axes)];
    let spec = Spec::new("sums.cu", "add")
        .element(T::DTYPE)
        .define("SOURCE", T::DTYPE)
        .layout(p.layout)
        .geometry(&p.axes, options.specialise)
        .index(&counts, options.wide);
    let grid = blocks(target.len(), THREADS)?;
    // SAFETY: the kernel reads the products and the sums, inside their extents, and writes the sums.
    unsafe { draft.launch(spec, grid, THREADS, &arguments) };
    Ok(())
}
