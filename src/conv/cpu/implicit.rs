//! Products with patches that are never gathered: a slab of the input, unfolded along its last axis
//! only, holds every row of the patch matrix as a contiguous block, and the register tiles read the
//! rows from there.
//!
//! | operation | path |
//! |---|---|
//! | forward | a correlation: per (image, group, rows, box of outputs) a slab of each of some channels, then register tiles of products |
//! | input gradient, zero padding | per phase of the stride a correlation of dy with the taps that reach it |
//!
//! `correlation.rs` plans and runs one of them. Groups cost nothing extra, down to depthwise layers, which is what the other algorithms are bad at.
//! Of groups with one row and one channel, `depthwise.rs` takes several lines of the result for the
//! rows of a tile. The weight gradient is in `dots.rs`.

use super::correlation::{Correlation, Layer, Place, Weight};
use super::pixels::Pixels;
use crate::conv::problem::Problem;
use crate::element::Element;
use crate::error::Result;
use crate::geometry::{AdjointPhase, Axes, Layout, Strides, ravel};
use crate::plan::Pass;
use crate::product::cpu::FactorOf;
use crate::workers::{Room, Shared, Workers};

/// Channels of a result that fill vectors well enough to be the columns of tiles.
const LEAST_ROWS: usize = 8;
/// Elements that a task fills with the bias.
const FILLED: usize = 16 << 10;

/// Correlations, one after the other, that have all of the result computed.
#[derive(Debug)]
pub(crate) struct Correlations {
    /// The result's strides, where some of it belongs to no correlation and gets the bias alone.
    fill: Option<Fill>,
    each: Vec<Each>,
}

/// A correlation.
#[derive(Debug)]
struct Each {
    /// Whether factors are packed elements.
    packs: bool,
    by: By,
}

/// What is in the rows of register tiles.
#[derive(Debug)]
enum By {
    Rows(Correlation),
    Pixels(Pixels),
}

/// Which channel's bias an element gets.
#[derive(Debug)]
struct Fill {
    layout: Layout,
    strides: Strides,
    channels: usize,
}

/// The plan of a convolution; by lines where `by_lines` and that pays.
pub(super) fn forward<T: Element>(
    p: &Problem,
    by_lines: bool,
    passes: &mut Vec<Pass>,
) -> Result<(Correlations, Workers)> {
    let (each, workers) = Each::new::<T>(convolution(p), p.layout, by_lines, "", passes)?;
    Ok((Correlations { fill: None, each: vec![each] }, workers))
}

/// The convolution as a correlation.
pub(super) fn convolution(p: &Problem) -> Layer {
    let strides = p.weight_strides();
    Layer {
        batch: p.batch,
        groups: p.groups,
        channels: p.channels_per_group(),
        rows: p.outputs_per_group(),
        axes: p.axes.clone(),
        source: p.input_strides(),
        target: p.output_strides(),
        target_extents: p.output_extents(),
        places: [Place { first: 0, step: 1 }; 3],
        weight: Weight {
            group: p.outputs_per_group() * strides.output,
            row: strides.output,
            channel: strides.input,
            taps: (0..p.taps()).map(|tap| tap * strides.tap).collect(),
        },
    }
}

/// The plan of an input gradient with zero padding; by lines where `by_lines` and that pays.
pub(super) fn backward_input<T: Element>(
    p: &Problem,
    by_lines: bool,
    passes: &mut Vec<Pass>,
) -> Result<(Correlations, Workers)> {
    let phases = p.axes.adjoint_phases()?;
    let (mut workers, mut each) = (Workers::none(), Vec::new());
    let mut fill = None;
    if !phases.cover_all() {
        let (layout, strides, channels) = (p.layout, p.input_strides(), p.channels);
        fill = Some(Fill { layout, strides, channels });
        let tasks = (p.batch * strides.image).div_ceil(FILLED);
        workers = Workers::new(tasks, Room::default());
        passes.push(Pass::on_cpu("fill with the bias", tasks).by("inputs that no output reads"));
    }
    for phases in phases.each() {
        let [d, h, w] = phases.map(|phase| phase.first);
        let strided = !p.axes.is_dense();
        let which = if strided { format!(", inputs from {d}, {h}, {w} on") } else { String::new() };
        let layer = phase(p, phases);
        let (correlation, more) = Each::new::<T>(layer, p.layout, by_lines, &which, passes)?;
        workers = workers.or(more);
        each.push(correlation);
    }
    Ok((Correlations { fill, each }, workers))
}

/// The correlation of dy with the taps that reach these phases of the inputs.
pub(super) fn phase(p: &Problem, phases: [&AdjointPhase; 3]) -> Layer {
    let strides = p.weight_strides();
    let axes = Axes::new(phases.map(|phase| phase.map.clone()));
    let tap = |at: [usize; 3]| {
        ravel([0, 1, 2].map(|axis| phases[axis].taps[at[axis]]), p.tap_extents()) * strides.tap
    };
    Layer {
        batch: p.batch,
        groups: p.groups,
        channels: p.outputs_per_group(),
        rows: p.channels_per_group(),
        source: p.output_strides(),
        target: p.input_strides(),
        target_extents: p.input_extents(),
        places: phases.map(|phase| Place { first: phase.first, step: phase.stride }),
        weight: Weight {
            group: p.outputs_per_group() * strides.output,
            row: strides.input,
            channel: strides.output,
            taps: axes.each_tap().map(tap).collect(),
        },
        axes,
    }
}

impl Each {
    fn new<T: Element>(
        layer: Layer,
        layout: Layout,
        by_lines: bool,
        which: &str,
        passes: &mut Vec<Pass>,
    ) -> Result<(Self, Workers)> {
        let packs = layer.packs::<T>();
        let (by, workers) = if packs {
            By::new::<T, T::Packed>(layer, layout, by_lines, which, passes)?
        } else {
            By::new::<T, T::Acc>(layer, layout, by_lines, which, passes)?
        };
        Ok((Each { packs, by }, workers))
    }

    fn run<T: Element>(
        &self,
        workers: &Workers,
        source: &[T],
        weight: &[T],
        bias: Option<&[T]>,
        target: &Shared<T>,
        memory: &mut [u8],
    ) -> Result<()> {
        if self.packs {
            self.by.run::<T, T::Packed>(workers, source, weight, bias, target, memory)
        } else {
            self.by.run::<T, T::Acc>(workers, source, weight, bias, target, memory)
        }
    }
}

impl By {
    fn new<T: Element, F: FactorOf<T>>(
        layer: Layer,
        layout: Layout,
        by_lines: bool,
        which: &str,
        passes: &mut Vec<Pass>,
    ) -> Result<(Self, Workers)> {
        if layout == Layout::ChannelsLast && layer.rows >= LEAST_ROWS {
            let pixels = Pixels::new::<T, F>(layer);
            let workers = pixels.workers::<T, F>();
            passes.push(pixels.explain::<T, F>(which));
            return Ok((By::Pixels(pixels), workers));
        }
        let (correlation, workers) = Correlation::new::<T, F>(layer, by_lines)?;
        passes.push(correlation.explain::<T, F>(which));
        Ok((By::Rows(correlation), workers))
    }

    fn run<T: Element, F: FactorOf<T>>(
        &self,
        workers: &Workers,
        source: &[T],
        weight: &[T],
        bias: Option<&[T]>,
        target: &Shared<T>,
        memory: &mut [u8],
    ) -> Result<()> {
        match self {
            By::Rows(rows) => rows.run::<T, F>(workers, source, weight, bias, target, memory),
            By::Pixels(pixels) => pixels.run::<T, F>(workers, source, weight, bias, target, memory),
        }
    }
}

impl Correlations {
    /// Whether any box is computed by lines.
    pub fn by_lines(&self) -> bool {
        self.each.iter().any(|each| matches!(&each.by, By::Rows(rows) if rows.by_lines()))
    }

    pub fn run<T: Element>(
        &self,
        workers: &Workers,
        source: &[T],
        weight: &[T],
        bias: Option<&[T]>,
        target: &mut [T],
        memory: &mut [u8],
    ) -> Result<()> {
        if let Some(fill) = &self.fill {
            workers.share_out_slice(target, FILLED, |start, target| {
                for (index, target) in (start..).zip(target) {
                    *target = bias.map_or(T::default(), |bias| bias[fill.channel(index)]);
                }
            })?;
        }
        let target = Shared::new(target);
        self.each
            .iter()
            .try_for_each(|each| each.run(workers, source, weight, bias, &target, memory))
    }
}

impl Fill {
    /// The channel of the element at `index`.
    fn channel(&self, index: usize) -> usize {
        match self.layout {
            Layout::ChannelsFirst => index % self.strides.image / self.strides.channel,
            Layout::ChannelsLast => index % self.channels,
        }
    }
}
