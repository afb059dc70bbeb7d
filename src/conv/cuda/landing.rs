//! What products of one tap land on: the adjoint of gathering that tap, by `kernels/conv/sums.cu`.

use super::arguments::inner_axes;
use crate::conv::problem::Problem;
use crate::device::cuda::structs::AddArgs;
use crate::device::cuda::{
    AxesArguments, Draft, Region, Spec, THREADS, Work, axis_bound, blocks, position_divisors,
};
use crate::element::Element;
use crate::error::Result;

/// Adds the products of one tap to the sums, or overwrites these.
pub(super) fn land<T: Element>(
    draft: &mut Draft,
    p: &Problem,
    tap: [usize; 3],
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
        tap: tap.map(|tap| tap as i64),
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
    let moved = (products.len() + 2 * target.len()) * size_of::<T>();
    draft.expect(Work::moving(target.len().div_ceil(THREADS as usize), moved as f64));
    // SAFETY: the kernel reads the products and the sums, inside their extents, and writes the sums.
    unsafe { draft.launch(spec, grid, THREADS, &arguments) };
    Ok(())
}
