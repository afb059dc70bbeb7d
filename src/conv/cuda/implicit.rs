//! Matrix products with patches that are read where they lie: `kernels/conv/implicit.cu`.

use super::channels_last::{Stacked, transposed};
use crate::conv::problem::{Problem, WeightStrides};
use crate::device::FULL_ALIGNMENT;
use crate::device::cuda::structs::{CorrelateArgs, FillArgs, GradientArgs};
use crate::device::cuda::{
    CudaDevice, Divisor, Draft, Pointer, Region, Spec, THREADS, Work, axis_bound, blocks,
};
use crate::element::Element;
use crate::error::Result;
use crate::geometry::{AdjointPhase, Axes, Layout, Strides};
use crate::patches::cuda as patches;
use crate::product::cuda::{Engine, Operands, Product};

#[cfg(all(test, feature = "simulator", unix))]
mod tests;

/// A kernel of the file, of which `part` is compiled.
fn kernel(
    device: &CudaDevice,
    entry: &'static str,
    part: &'static str,
    layout: Layout,
    axes: &Axes,
) -> Spec {
    let specialise = device.options().specialise;
    let spec = Spec::new("implicit.cu", entry).define(part, 1).layout(layout);
    patches::of_axes(spec, axes, specialise)
}

/// `target[n, m, at(o)] = bias[m] + Σ w[m, c, tap]·source[n, c, i(o, tap)]`, group by group.
struct Correlation<'a> {
    p: &'a Problem,
    /// Channels of the source and of the target in a group.
    channels: usize,
    rows: usize,
    axes: &'a Axes,
    source: Strides,
    target: Strides,
    /// Distances in the weight: from one target channel to the next, from one source channel and from one group.
    weight_row: usize,
    weight_channel: usize,
    weight_group: usize,
    /// Whether source and weight are copies with neighbouring source channels.
    packed: bool,
    /// For the adjoint, its first tap, and how far the next is from it, in elements of the weight on each
    /// axis; forward takes all taps in their order.
    taps: Option<[(i64, i64); 3]>,
    /// The target position of the first output and the distance to the next, in elements on each axis.
    places: [(i64, i64); 3],
}

/// With `pack`, from copies: see [`can_pack`].
pub(super) fn forward<T: Element>(
    draft: &mut Draft,
    p: &Problem,
    x: Region<T>,
    w: Region<T>,
    bias: Option<Region<T>>,
    y: Region<T>,
    pack: bool,
) -> Result<()> {
    let (channels, rows, taps) = (p.channels_per_group(), p.outputs_per_group(), p.taps());
    let (weight, target, held) = (p.weight_strides(), p.output_strides(), draft.held());
    let mut correlation = Correlation {
        p,
        channels,
        rows,
        axes: &p.axes,
        source: p.input_strides(),
        target,
        weight_row: weight.output,
        weight_channel: weight.input,
        weight_group: rows * weight.output,
        packed: pack,
        taps: None,
        places: lines(p.output_extents()).map(|line| (0, (line * target.position) as i64)),
    };
    let (mut source, mut factor) = (x, w);
    if pack {
        let images = images_of(x, p.batch, p.channels, p.input_positions());
        let weight = Stacked { source: w, count: p.outputs, rows: channels, columns: taps };
        [source, factor] = transposed(draft, [(PACKED_INPUT, images), (PACKED_WEIGHT, weight)])?;
        correlation.source = packed_strides(p.channels, p.input_positions());
        correlation.weight_channel = 1;
    }
    correlation.run(draft, source, factor, bias, y)?;
    draft.release(held);
    Ok(())
}

const PACKED_INPUT: &str = "the input with neighbouring channels";
const PACKED_OUTPUT: &str = "the output's gradient with neighbouring channels";
const PACKED_WEIGHT: &str = "the weight with neighbouring channels";

fn images_of<T>(source: Region<T>, batch: usize, channels: usize, positions: usize) -> Stacked<T> {
    Stacked { source, count: batch, rows: channels, columns: positions }
}

fn packed_strides(channels: usize, positions: usize) -> Strides {
    Strides { image: channels * positions, channel: 1, position: channels }
}

/// Whether source and weight may be copied so that neighbours are channels, of which the product then reads
/// chunks. Channels first, taps shift what it reads by single positions, and tensor cores wait for elements of 16
/// bits.
pub(super) fn can_pack<T: Element>(device: &CudaDevice, p: &Problem, channels: usize) -> bool {
    let engine = Engine::new(device, T::DTYPE, false);
    p.layout == Layout::ChannelsFirst
        && engine.multiplies_halves()
        && engine.vector(size_of::<T>(), FULL_ALIGNMENT, &[channels]) > 1
}

/// The adjoint, phase by phase of the stride: each is a correlation of `dy` with the taps that reach it. With
/// `pack`, from copies: see [`can_pack`].
pub(super) fn backward_input<T: Element>(
    draft: &mut Draft,
    p: &Problem,
    dy: Region<T>,
    w: Region<T>,
    bias: Option<Region<T>>,
    dx: Region<T>,
    pack: bool,
) -> Result<()> {
    let phases = p.axes.adjoint_phases()?;
    if !phases.cover_all() {
        fill(draft, p, bias, dx)?;
    }
    let (rows, channels, held) = (p.channels_per_group(), p.outputs_per_group(), draft.held());
    let mut from = AdjointOperands {
        dy,
        source: p.output_strides(),
        w,
        weight: p.weight_strides(),
        weight_group: channels * p.weight_strides().output,
        packed: pack,
    };
    if pack {
        let positions = p.output_positions();
        let images = images_of(dy, p.batch, p.outputs, positions);
        let columns = rows * p.taps();
        let weight = Stacked { source: w, count: p.groups, rows: channels, columns };
        [from.dy, from.w] = transposed(draft, [(PACKED_OUTPUT, images), (PACKED_WEIGHT, weight)])?;
        from.source = packed_strides(p.outputs, positions);
        from.weight = WeightStrides { output: 1, input: p.taps() * channels, tap: channels };
        from.weight_group = rows * p.taps() * channels;
    }
    phases.each().try_for_each(|phases| correlate_phase(draft, p, phases, &from, bias, dx))?;
    draft.release(held);
    Ok(())
}

/// What all phases of the adjoint read, and how it lies.
struct AdjointOperands<T> {
    dy: Region<T>,
    source: Strides,
    w: Region<T>,
    weight: WeightStrides,
    weight_group: usize,
    packed: bool,
}

fn correlate_phase<T: Element>(
    draft: &mut Draft,
    p: &Problem,
    phases: [&AdjointPhase; 3],
    from: &AdjointOperands<T>,
    bias: Option<Region<T>>,
    dx: Region<T>,
) -> Result<()> {
    let (weight, target) = (from.weight, p.input_strides());
    let axes = Axes::new(phases.map(|phase| phase.map.clone()));
    let (tap_lines, target_lines) = (lines(p.tap_extents()), lines(p.input_extents()));
    let taps = [0, 1, 2].map(|axis| {
        let line = tap_lines[axis] * weight.tap;
        let step = match phases[axis].taps[..] {
            [first, next, ..] => next as i64 - first as i64,
            _ => 0,
        };
        ((phases[axis].taps[0] * line) as i64, step * line as i64)
    });
    let places = [0, 1, 2].map(|axis| {
        let line = target_lines[axis] * target.position;
        ((phases[axis].first * line) as i64, (phases[axis].stride * line) as i64)
    });
    let correlation = Correlation {
        p,
        channels: p.outputs_per_group(),
        rows: p.channels_per_group(),
        axes: &axes,
        source: from.source,
        target,
        weight_row: weight.input,
        weight_channel: weight.output,
        weight_group: from.weight_group,
        packed: from.packed,
        taps: Some(taps),
        places,
    };
    correlation.run(draft, from.dy, from.w, bias, dx)
}

/// How far neighbours on each axis of these extents are apart, in positions.
fn lines([_, h, w]: [usize; 3]) -> [usize; 3] {
    [h * w, w, 1]
}

impl Correlation<'_> {
    fn run<T: Element>(
        &self,
        draft: &mut Draft,
        source: Region<T>,
        weight: Region<T>,
        bias: Option<Region<T>>,
        target: Region<T>,
    ) -> Result<()> {
        let (p, rows, channels) = (self.p, self.rows, self.channels);
        let device = draft.device();
        let patches =
            patches::arguments(source.pointer(), self.source.into(), p.batch, channels, self.axes);
        let positions = patches.count as usize;
        let depth = channels * self.axes.taps();
        let (adjoint, taps) = (self.taps.is_some(), self.taps.unwrap_or_default());
        let last = p.layout == Layout::ChannelsLast;
        let sizes = if last { [positions, rows, depth] } else { [rows, positions, depth] };
        let engine = Engine::new(device, T::DTYPE, draft.rounds_to_tf32(T::DTYPE));

        let whole =
            |distances: &[usize], alignment| engine.vector(size_of::<T>(), alignment, distances);
        let outputs = self.axes.output_extents();
        let vectors = if last {
            // Forward, neighbours in the weight are rows; else, terms: both are outputs of p.
            [
                whole(&[channels, self.source.position], source.alignment()),
                whole(&[p.outputs_per_group(), p.outputs], weight.alignment()),
                whole(&[rows, self.target.position], target.alignment()),
            ]
        } else {
            let dense = self.places == lines(outputs).map(|line| (0, line as i64));
            let plane = outputs.iter().product();
            let [factor, read] = if self.packed {
                let source = whole(&[channels, self.source.position], source.alignment());
                [whole(&[channels], weight.alignment()), source]
            } else {
                // Taps shift what they read by single positions.
                [if adjoint { 1 } else { whole(&[depth], weight.alignment()) }, 1]
            };
            [
                factor,
                read,
                if dense { whole(&[plane, self.target.channel], target.alignment()) } else { 1 },
            ]
        };
        let spec = kernel(device, "correlate", "CORRELATE", p.layout, self.axes)
            .define("ADJOINT", i32::from(adjoint));
        let spec = if self.packed { spec.define("PACKED", 1) } else { spec };
        let operands = Operands {
            vectors,
            along_k: if last { [true, adjoint] } else { [true, self.packed] },
            bytes: (source.len() + weight.len() + target.len()) * size_of::<T>(),
        };
        let product = Product::new(device, engine, p.groups, sizes, operands)?;
        let bound = axis_bound(self.axes);
        let counts = [source.len(), weight.len(), target.len(), depth, positions, bound];
        let arguments = |parts| CorrelateArgs {
            patches,
            weight: weight.pointer(),
            bias: bias.map_or(Pointer::NULL, |bias| bias.pointer()),
            target: target.pointer(),
            parts,
            tiling: product.tiling(),
            weight_first: taps.iter().map(|tap| tap.0).sum(),
            weight_group: self.weight_group as i64,
            weight_row: self.weight_row as i64,
            weight_term: if last { self.weight_channel as i64 } else { 1 },
            weight_channel: self.weight_channel as i64,
            weight_step: taps.map(|tap| tap.1),
            target_first: self.places.iter().map(|place| place.0).sum(),
            target_image: self.target.image as i64,
            target_channel: self.target.channel as i64,
            target_step: self.places.map(|place| place.1),
            rows: rows as i64,
        };
        // SAFETY: the kernels read inside the extents of source, weight and bias and write inside those of
        // the target, which the caller checked against the slices.
        unsafe { product.launch(draft, spec, "correlate_sum", &counts, arguments) }
    }
}

/// With `pack`, from copies: see [`can_pack`], for the channels of both.
pub(super) fn backward_weight<T: Element>(
    draft: &mut Draft,
    p: &Problem,
    mut x: Region<T>,
    mut dy: Region<T>,
    dw: Region<T>,
    pack: bool,
) -> Result<()> {
    let held = draft.held();
    let (channels, rows) = (p.channels_per_group(), p.outputs_per_group());
    let (mut source, mut other) = (p.input_strides(), p.output_strides());
    if pack {
        let (inputs, outputs) = (p.input_positions(), p.output_positions());
        let operands = [
            (PACKED_INPUT, images_of(x, p.batch, p.channels, inputs)),
            (PACKED_OUTPUT, images_of(dy, p.batch, p.outputs, outputs)),
        ];
        [x, dy] = transposed(draft, operands)?;
        source = packed_strides(p.channels, inputs);
        other = packed_strides(p.outputs, outputs);
    }
    let device = draft.device();
    let patches = patches::arguments(x.pointer(), source.into(), p.batch, channels, &p.axes);
    let (terms, depth) = (channels * p.taps(), p.batch * p.output_positions());
    let last = p.layout == Layout::ChannelsLast;
    let sizes = if last { [terms, rows, depth] } else { [rows, terms, depth] };
    let engine = Engine::new(device, T::DTYPE, draft.rounds_to_tf32(T::DTYPE));
    let whole =
        |distances: &[usize], alignment| engine.vector(size_of::<T>(), alignment, distances);
    let of_x = whole(&[channels, p.channels], x.alignment());
    let of_dy = whole(&[rows, p.outputs], dy.alignment());
    let (vectors, weight_group, weight_line) = if last {
        ([of_x, of_dy, whole(&[rows, p.outputs], dw.alignment())], rows, p.outputs)
    } else if pack {
        // The weight's neighbours are taps, which are far apart in the product.
        ([of_dy, of_x, 1], rows * terms, terms)
    } else {
        // Taps shift what they read by single positions.
        let vectors = [whole(&[other.channel], dy.alignment()), 1, whole(&[terms], dw.alignment())];
        (vectors, rows * terms, terms)
    };
    let spec = kernel(device, "gradient", "GRADIENT", p.layout, &p.axes);
    let spec = if pack { spec.define("PACKED", 1) } else { spec };
    let operands = Operands {
        vectors,
        along_k: [!last && !pack; 2],
        bytes: (x.len() + dy.len() + dw.len()) * size_of::<T>(),
    };
    let product = Product::new(device, engine, p.groups, sizes, operands)?;
    let arguments = |parts| GradientArgs {
        patches,
        other: dy.pointer(),
        weight: dw.pointer(),
        parts,
        tiling: product.tiling(),
        other_image: other.image as i64,
        other_channel: other.channel as i64,
        other_position: other.position as i64,
        rows: rows as i64,
        weight_group: weight_group as i64,
        weight_line: weight_line as i64,
    };
    let counts = [x.len(), dy.len(), dw.len(), depth, terms, axis_bound(&p.axes)];
    // SAFETY: the kernels read inside the extents of x and dy and write inside those of dw, which the
    // caller checked against the slices.
    unsafe { product.launch(draft, spec, "gradient_sum", &counts, arguments)? };
    draft.release(held);
    Ok(())
}

/// What inputs get that no output reads.
fn fill<T: Element>(
    draft: &mut Draft,
    p: &Problem,
    bias: Option<Region<T>>,
    dx: Region<T>,
) -> Result<()> {
    let device = draft.device();
    let spec =
        Spec::new("fill.cu", "fill").element(T::DTYPE).index(&[dx.len()], device.options().wide);
    let arguments = FillArgs {
        bias: bias.map_or(Pointer::NULL, |bias| bias.pointer()),
        target: dx.pointer(),
        count: dx.len() as i64,
        run: Divisor::new(p.input_strides().channel),
        channels: Divisor::new(p.channels),
    };
    draft.expect(Work::moving(
        dx.len().div_ceil(THREADS as usize),
        (dx.len() * size_of::<T>()) as f64,
    ));
    // SAFETY: the kernel reads a bias of every channel and writes all of dx.
    unsafe { draft.launch(spec, blocks(dx.len(), THREADS)?, THREADS, &arguments) };
    Ok(())
}
