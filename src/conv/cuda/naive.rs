//! The definition, by `kernels/conv/naive.cu`.

use super::arguments::{inner_axes, spec};
use super::sectors::{WARP, WeightsApart, neighbours, sectors};
use crate::conv::problem::Problem;
use crate::device::cuda::structs::{Convolution, NaiveArgs};
use crate::device::cuda::{
    Divisor, Draft, LOADS_AT_A_TIME, Pointer, Region, SECTOR, THREADS, Work, blocks,
    position_divisors,
};
use crate::element::Element;
use crate::error::Result;
use crate::geometry::{AxisMap, Layout};

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
    let loaded = Loaded {
        layout: p.layout,
        size: size_of::<T>(),
        channels: p.outputs,
        positions: p.output_positions(),
        per_group: p.outputs_per_group(),
        weights: WeightsApart::of_outputs::<T>(p),
        group: p.channels_per_group() * p.input_strides().channel,
        position: p.axes[2].stride() * p.input_strides().position,
        phases: 1,
    };
    let steps = Steps {
        each: p.channels_per_group(),
        run: p.channels_per_group(),
        axes: p.axes.each_ref().map(AxisMap::taps_of_outputs),
        inner: inner_channels(p.layout, p.outputs),
        sectors: [WARP, BLOCK].map(|count| loaded.sectors(count)),
        next: [p.weight_strides().input, p.input_strides().channel],
        again: p.taps(),
        // By up to 40 registers: which layers take no more than 32 is the compiler's.
        resident: 6.0,
    };
    // SAFETY: the operands have the problem's extents, outside of which the kernel does not reach; it
    // writes `y` only.
    unsafe { launch::<T>(draft, p, "naive_forward", &arguments, &steps) }
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
    let loaded = Loaded {
        layout: p.layout,
        size: size_of::<T>(),
        channels: p.channels,
        positions: p.input_positions(),
        per_group: p.channels_per_group(),
        weights: WeightsApart::of_inputs::<T>(p),
        group: p.outputs_per_group() * p.output_strides().channel,
        position: p.output_strides().position,
        phases: p.axes[2].stride(),
    };
    let steps = Steps {
        each: p.outputs_per_group(),
        run: p.outputs_per_group(),
        axes: p.axes.each_ref().map(AxisMap::overlap),
        inner: inner_channels(p.layout, p.channels),
        sectors: [WARP, BLOCK].map(|count| loaded.sectors(count)),
        next: [p.weight_strides().output, p.output_strides().channel],
        again: p.taps(),
        resident: 6.0,
    };
    // SAFETY: as in `forward`; it writes `dx` only.
    unsafe { launch::<T>(draft, p, "naive_backward_input", &arguments, &steps) }
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
    let steps = Steps {
        each: p.batch,
        run: p.axes[2].outputs(),
        axes: p.axes.each_ref().map(AxisMap::outputs_of_taps),
        inner: inner_channels(p.layout, p.channels_per_group() * p.outputs),
        sectors: [WARP, BLOCK].map(|count| sectors_of_weight::<T>(p, count)),
        next: [p.output_strides().position, p.axes[2].stride() * p.input_strides().position],
        again: 1,
        resident: 8.0,
    };
    // SAFETY: as in `forward`; it writes `dw` only.
    unsafe { launch::<T>(draft, p, "naive_backward_weight", &arguments, &steps) }
}

/// Threads of a block.
const BLOCK: usize = THREADS as usize;

/// How many neighbours of a result are at the same position.
fn inner_channels(layout: Layout, channels: usize) -> usize {
    if layout == Layout::ChannelsFirst { 1 } else { channels }
}

/// The products of a result's elements, of which strides and padding leave some out.
struct Steps {
    /// For a position, or a tap, and what it meets.
    each: usize,
    /// Products that follow each other in memory.
    run: usize,
    /// What each position, or tap, meets on each axis.
    axes: [Vec<usize>; 3],
    /// Neighbours at the same place.
    inner: usize,
    /// Sectors of both factors that a warp, and a block, loads for a product of each of its threads.
    sectors: [[f64; 2]; 2],
    /// How far what the next product takes of both is from what the last one took.
    next: [usize; 2],
    /// How often a block comes to the same sectors, if the L1 cache holds what it reads meanwhile.
    again: usize,
    /// Blocks that a multiprocessor holds, by the kernel's registers.
    resident: f64,
}

/// What the threads of an activation's elements load.
struct Loaded {
    layout: Layout,
    size: usize,
    /// Extents of the result, and channels of a group.
    channels: usize,
    positions: usize,
    per_group: usize,
    weights: WeightsApart,
    /// How far groups and neighbouring positions of the other activation are apart.
    group: usize,
    position: usize,
    /// Neighbours that read the same position of it, through taps of their own.
    phases: usize,
}

impl Loaded {
    /// Sectors of the weight, and of the other activation, for a product of each of so many neighbours.
    fn sectors(&self, count: usize) -> [f64; 2] {
        let Loaded { size, per_group, phases, .. } = *self;
        let [channels, positions] = neighbours(self.layout, count, self.channels, self.positions);
        let taps = phases.min(positions) as f64;
        let groups = sectors(size, channels.div_ceil(per_group.max(1)), self.group);
        let others = sectors(size, positions.div_ceil(phases), self.position);
        [taps * self.weights.sectors(channels, 1), groups * others]
    }
}

/// Sectors of `y` and of `x` for a product of each of so many neighbours in the weight.
fn sectors_of_weight<T>(p: &Problem, count: usize) -> [f64; 2] {
    let size = size_of::<T>();
    let (inputs, outputs) = (p.channels_per_group(), p.outputs_per_group());
    let (x, y) = (p.input_strides(), p.output_strides());
    match p.layout {
        Layout::ChannelsFirst => {
            // Lines of taps, of as many channels as there are.
            let [_, _, line] = p.tap_extents();
            let lines = count.div_ceil(line) as f64;
            let of_x = sectors(size, count.min(line), p.axes[2].dilation());
            [sectors(size, count.div_ceil((inputs * p.taps()).max(1)), y.channel), lines * of_x]
        }
        Layout::ChannelsLast => {
            let its = count.min(p.outputs);
            let groups = sectors(size, its.div_ceil(outputs.max(1)), inputs * x.channel);
            let others = sectors(size, count.div_ceil(p.outputs.max(1)).min(inputs), x.channel);
            [sectors(size, its, 1), groups * others]
        }
    }
}

impl Steps {
    /// Those of so many neighbours that go on until the last is done, on average over all neighbours.
    fn of(&self, neighbours: usize) -> f64 {
        let mut places = neighbours.div_ceil(self.inner.max(1));
        let mut steps = self.each as f64;
        for counts in self.axes.iter().rev().filter(|counts| !counts.is_empty()) {
            // Those on this axis, of which one has the most; lines of it that they fill are neighbours on the next.
            let some = counts.chunks(places.min(counts.len()));
            let most = some.clone().map(|some| some.iter().max().map_or(0, |&most| most));
            steps *= most.sum::<usize>() as f64 / some.len() as f64;
            places = (places / counts.len()).max(1);
        }
        steps
    }
}

/// # Safety
/// The pointers are operands of the problem.
unsafe fn launch<T: Element>(
    draft: &mut Draft,
    p: &Problem,
    entry: &'static str,
    arguments: &NaiveArgs,
    steps: &Steps,
) -> Result<()> {
    let count = arguments.count as usize;
    let device = draft.device();
    let spec = spec::<T>(device, p, "naive.cu", entry, count)
        .geometry(&p.axes, device.options().specialise);
    // A product takes an element of both operands.
    let products = count as f64 / WARP as f64 * steps.of(WARP);
    let mut work = Work::moving(count.div_ceil(THREADS as usize), (count * size_of::<T>()) as f64);
    let [of_warp, of_block] = steps.sectors;
    work.l1 += of_warp.iter().sum::<f64>() / 4.0 * products;
    // Products that follow each other find what is in the same sectors in the L1 cache.
    let fresh: f64 = of_block
        .into_iter()
        .zip(steps.next)
        .map(|(sectors, next)| {
            let shared = SECTOR / (next * size_of::<T>()).clamp(1, SECTOR);
            sectors / shared.clamp(1, steps.run.max(1)) as f64
        })
        .sum();
    let kept = device.target().l1_bytes as f64 / steps.resident;
    let meanwhile = fresh * SECTOR as f64 * steps.run as f64;
    let again = if meanwhile <= kept { steps.again as f64 } else { 1.0 };
    work.l2 += work.blocks * steps.of(BLOCK) * fresh * SECTOR as f64 / again;
    work.instructions += 3.0 * products;
    // A thread loads both elements of each of its products.
    work.waits = 2.0 * steps.of(BLOCK) / LOADS_AT_A_TIME;
    work.resident = steps.resident;
    draft.expect(work);
    // SAFETY: passed on to the caller.
    unsafe { draft.launch(spec, blocks(count, THREADS)?, THREADS, arguments) };
    Ok(())
}
