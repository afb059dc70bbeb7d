//! Convolution with sparse weights on CUDA, by `kernels/sparse/direct_sparse.cu`. The pattern is in tables that
//! a plan keeps on the device; values are an operand.

use super::problem::Problem;
use crate::device::cuda::structs::{
    SparseAdjointArgs, SparseForwardArgs, SparsePadArgs, SparseWeightArgs,
};
use crate::device::cuda::{
    AxesArguments, Divisor, Draft, Pointer, Region, Spec, THREADS, axis_bound, blocks,
    position_divisors,
};
use crate::element::{Element, IndexWidth};
use crate::error::{Error, Result};
use crate::geometry::{AxisMap, ravel, unravel};
use crate::patches::pieces::Pieces;

/// Bytes of the padded copy, at most, unless a single image's are more.
const BYTES: usize = 64 << 20;

/// Positions that a thread computes, where there are enough.
const EACH: usize = 4;

/// Why kernels are made as they are.
pub(super) const REASON: &str = "the threads of a block take the same entries";

/// Operands of the convolution.
pub(super) struct ForwardOperands<T> {
    pub x: Region<T>,
    pub values: Region<T>,
    pub bias: Option<Region<T>>,
    pub y: Region<T>,
}

/// Operands of the adjoint.
pub(super) struct BackwardInputOperands<T> {
    pub dy: Region<T>,
    pub values: Region<T>,
    pub bias: Option<Region<T>>,
    pub dx: Region<T>,
}

/// A number of a table. Entries, rows and columns are counted by 32 bits.
fn word(value: usize) -> i32 {
    i32::try_from(value).expect("it was checked when the weight was made")
}

fn bias_pointer<T>(bias: Option<Region<T>>) -> Pointer {
    bias.map_or(Pointer::NULL, |bias| bias.pointer())
}

/// What every kernel is compiled for; `counts` bound its numbers besides the operands' lengths.
fn spec<T: Element>(draft: &Draft, p: &Problem, entry: &'static str, counts: &[usize]) -> Spec {
    let own = [p.input_len(), p.output_len(), axis_bound(&p.axes)];
    let counts = [&own[..], counts].concat();
    let spec = Spec::new("direct_sparse.cu", entry).element(T::DTYPE).layout(p.layout);
    spec.index(&counts, draft.device().options().wide)
}

/// `y = conv(x, w) + bias`.
pub(super) fn forward<T: Element>(
    draft: &mut Draft,
    p: &Problem,
    operands: ForwardOperands<T>,
) -> Result<()> {
    let ForwardOperands { x, values, bias, y } = operands;
    let padded = p.axes.each_ref().map(AxisMap::padded_extent);
    let plane: usize = padded.iter().product();
    let limit = IndexWidth::I32.limit();
    if plane as u64 > limit {
        let (what, value) = ("the padded positions of an image".into(), plane.to_string());
        return Err(Error::TooLarge { what, value, limit });
    }
    let pattern = &p.pattern;
    let starts = draft.table("row pointers", pattern.starts.iter().map(|&s| word(s)).collect());
    let mut entries = Vec::with_capacity(2 * pattern.len());
    for entry in 0..pattern.len() {
        let (channel, tap) = pattern.place(entry);
        let tap = unravel(tap, p.axes.tap_extents());
        let at = [0, 1, 2].map(|axis| p.axes[axis].padded_position(0, tap[axis]));
        entries.extend([word(channel), word(ravel(at, padded))]);
    }
    let entries = draft.table("entries", entries);
    let image = p.channels * plane;
    let most = BYTES / size_of::<T>() / image.max(1);
    let images = Pieces::new(p.batch, most.clamp(1, p.batch.max(1)));
    let copy = draft.workspace::<T>("a padded copy of the input", images.longest() * image)?;
    let (xs, ys) = (p.input_strides(), p.output_strides());
    for images in images.each() {
        let x = x.slice(images.start * xs.image..images.end * xs.image);
        let y = y.slice(images.start * ys.image..images.end * ys.image);
        let copy = copy.slice(0..images.len() * image);
        pad::<T>(draft, p, x, copy, padded)?;
        let count = images.len() * p.axes.outputs();
        let each = if count >= EACH * THREADS as usize { EACH } else { 1 };
        let tiles = count.div_ceil(each * THREADS as usize);
        let [step_d, step_h, step_w] = [padded[1] * padded[2], padded[2], 1];
        let steps = [step_d, step_h, step_w];
        let steps = [0, 1, 2].map(|axis| (p.axes[axis].stride() * steps[axis]) as i64);
        let [out_plane, out_line] = position_divisors(p.axes.output_extents());
        let arguments = SparseForwardArgs {
            padded: copy.pointer(),
            values: values.pointer(),
            bias: bias_pointer(bias),
            y: y.pointer(),
            starts,
            entries,
            count: count as i64,
            channels: p.channels as i64,
            plane: plane as i64,
            per_group: p.channels_per_group() as i64,
            step_d: steps[0],
            step_h: steps[1],
            step_w: steps[2],
            tiles: Divisor::new(tiles),
            group: Divisor::new(p.outputs_per_group()),
            positions: Divisor::new(p.axes.outputs()),
            out_plane,
            out_line,
            strides: ys.into(),
        };
        let rounded = tiles * each * THREADS as usize;
        let counts = [copy.len(), rounded, tiles * p.outputs];
        let spec = spec::<T>(draft, p, "sparse_forward", &counts).define("EACH", each);
        let grid = blocks(tiles * p.outputs, 1)?;
        // SAFETY: places are inside the padded planes of the group's channels, of all of which there is a
        // copy; the kernel writes the elements of `y`, each once.
        unsafe { draft.launch(spec, grid, THREADS, &arguments) };
    }
    Ok(())
}

/// Copies images with their padding, channels first.
fn pad<T: Element>(
    draft: &mut Draft,
    p: &Problem,
    x: Region<T>,
    copy: Region<T>,
    padded: [usize; 3],
) -> Result<()> {
    let [plane, line] = position_divisors(padded);
    let arguments = SparsePadArgs {
        x: x.pointer(),
        padded: copy.pointer(),
        count: copy.len() as i64,
        strides: p.input_strides().into(),
        axes: AxesArguments::new(&p.axes),
        positions: Divisor::new(padded.iter().product()),
        plane,
        line,
        channels: Divisor::new(p.channels),
    };
    let specialise = draft.device().options().specialise;
    let spec = spec::<T>(draft, p, "sparse_pad", &[copy.len()]);
    let spec = spec.mode(&p.axes, specialise).define("EACH", 1);
    // SAFETY: the kernel reads the input's elements and writes those of the copy.
    unsafe { draft.launch(spec, blocks(copy.len(), THREADS)?, THREADS, &arguments) };
    Ok(())
}

/// `dx = convᵀ(dy, w) + bias`.
pub(super) fn backward_input<T: Element>(
    draft: &mut Draft,
    p: &Problem,
    operands: BackwardInputOperands<T>,
) -> Result<()> {
    let BackwardInputOperands { dy, values, bias, dx } = operands;
    let transposed = p.transposed()?;
    let starts = draft.table("row pointers", transposed.starts.iter().map(|&s| word(s)).collect());
    let order = transposed.order.iter();
    let pairs = order.flat_map(|&entry| [word(transposed.row_of[entry]), word(entry)]);
    let entries = draft.table("entries", pairs.collect());
    let count = p.batch * p.axes.inputs();
    let tiles = count.div_ceil(THREADS as usize);
    let [plane, line] = position_divisors(p.axes.input_extents());
    let arguments = SparseAdjointArgs {
        dy: dy.pointer(),
        values: values.pointer(),
        bias: bias_pointer(bias),
        dx: dx.pointer(),
        starts,
        entries,
        count: count as i64,
        axes: AxesArguments::new(&p.axes),
        tiles: Divisor::new(tiles),
        positions: Divisor::new(p.axes.inputs()),
        plane,
        line,
        x: p.input_strides().into(),
        y: p.output_strides().into(),
    };
    let specialise = draft.device().options().specialise;
    let counts = [tiles * THREADS as usize, tiles * p.channels];
    let spec = spec::<T>(draft, p, "sparse_backward_input", &counts);
    let spec = spec.geometry(&p.axes, specialise).define("EACH", 1);
    // SAFETY: the tables have numbers of output channels and of values; the kernel writes every element of
    // `dx` once.
    unsafe { draft.launch(spec, blocks(tiles * p.channels, 1)?, THREADS, &arguments) };
    Ok(())
}

/// `dw = Σ dy·x` for stored entries.
pub(super) fn backward_weight<T: Element>(
    draft: &mut Draft,
    p: &Problem,
    x: Region<T>,
    dy: Region<T>,
    dw: Region<T>,
) -> Result<()> {
    /// Warps of a block.
    const WARPS: usize = THREADS as usize / 32;
    let pattern = &p.pattern;
    let mut entries = Vec::with_capacity(3 * pattern.len());
    for row in 0..p.outputs {
        let first = row / p.outputs_per_group() * p.channels_per_group();
        for entry in pattern.row(row) {
            let (channel, tap) = pattern.place(entry);
            entries.extend([row, first + channel, tap].map(word));
        }
    }
    let entries = draft.table("entries", entries);
    let [plane, line] = position_divisors(p.axes.output_extents());
    let [tap_plane, tap_line] = position_divisors(p.axes.tap_extents());
    let count = p.batch * p.axes.outputs();
    let arguments = SparseWeightArgs {
        x: x.pointer(),
        dy: dy.pointer(),
        dw: dw.pointer(),
        entries,
        entry_count: pattern.len() as i64,
        count: count as i64,
        axes: AxesArguments::new(&p.axes),
        positions: Divisor::new(p.axes.outputs()),
        plane,
        line,
        tap_plane,
        tap_line,
        x_strides: p.input_strides().into(),
        y_strides: p.output_strides().into(),
    };
    let specialise = draft.device().options().specialise;
    let spec = spec::<T>(draft, p, "sparse_backward_weight", &[count + 32]);
    let spec = spec.geometry(&p.axes, specialise).define("EACH", 1);
    // SAFETY: the table has channels and taps of the problem; the kernel writes every element of `dw` once.
    unsafe { draft.launch(spec, blocks(pattern.len(), WARPS as u32)?, THREADS, &arguments) };
    Ok(())
}
