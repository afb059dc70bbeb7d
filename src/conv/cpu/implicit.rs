//! Products with patches that are never gathered: a slab of the input, unfolded along its last axis
//! only, holds every row of the patch matrix as a contiguous block, and the register tiles read the
//! rows from there.
//!
//! | operation | path |
//! |---|---|
//! | forward | a correlation: per (image, group, rows, box of outputs) a slab of a block of channels, then tiles of products |
//! | input gradient, zero padding | per phase of the stride a correlation of dy with the taps that reach it |
//! | either, one row a group (depthwise) | as above, but `depthwise.rs` takes several lines of the result for the rows |
//! | weight gradient | per (group, block of channels) tiles of dot products of dy with the slab's blocks, image after image |
//!
//! Groups cost nothing extra, down to depthwise layers, which is what the other algorithms are bad at.

use std::ops::Range;

use rayon::prelude::*;

use super::depthwise;
use super::micro::{self, Dots, Products, Step, best_tiles};
use super::runs::{Scratch, Shared, digits, piece, pieces, room, zeros};
use crate::conv::problem::{Problem, Strides};
use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::geometry::{AdjointPhase, Axes, Box3, Layout, ravel, volume};
use crate::patches::slab::{Slab, boxes};

/// Rows of the result that a task computes, at most.
const ROWS: usize = 512;
/// Elements of the result that a task computes, at most, unless a single line has more.
const SUMS: usize = 128 << 10;
/// Elements in the slab of one channel, at most, unless a single line has more.
const SLAB: usize = 32 << 10;
/// Elements in the slabs of a block of channels, at most, unless a single one has more.
const SLABS: usize = 256 << 10;
/// Terms that a tile sums at a time, at most, unless a single channel has more.
const TERMS: usize = 256;
/// Lanes of a task's weight gradients, at most, unless a single channel has more.
const LANES: usize = 1 << 20;

/// `target[n, m, at(o)] = bias[m] + Σ w[m, c, tap]·source[n, c, i(o, tap)]`, group by group, where
/// `at` is affine on each axis.
struct Correlation<'a> {
    batch: usize,
    groups: usize,
    /// Channels of the source and of the target in a group.
    channels: usize,
    rows: usize,
    axes: &'a Axes,
    source: Strides,
    target: Strides,
    target_extents: [usize; 3],
    /// The target position of the first output, and the distance to the next, on each axis.
    place: [(usize, usize); 3],
    weight: Weight,
}

/// Where a correlation's weights are, in elements.
struct Weight {
    group: usize,
    row: usize,
    channel: usize,
    taps: Vec<usize>,
}

pub(super) fn forward<T: Element>(
    p: &Problem,
    x: &[T],
    w: &[T],
    bias: Option<&[T]>,
    y: &mut [T],
) -> Result<()> {
    let strides = p.weight_strides();
    let correlation = Correlation {
        batch: p.batch,
        groups: p.groups,
        channels: p.channels_per_group(),
        rows: p.outputs_per_group(),
        axes: &p.axes,
        source: p.input_strides(),
        target: p.output_strides(),
        target_extents: p.output_extents(),
        place: [(0, 1); 3],
        weight: Weight {
            group: p.outputs_per_group() * strides.output,
            row: strides.output,
            channel: strides.input,
            taps: (0..p.taps()).map(|tap| tap * strides.tap).collect(),
        },
    };
    correlation.run(x, w, bias, &Shared::new(y))
}

pub(super) fn backward_input<T: Element>(
    p: &Problem,
    dy: &[T],
    w: &[T],
    bias: Option<&[T]>,
    dx: &mut [T],
) -> Result<()> {
    let phases = p.axes.adjoint_phases()?;
    if !phases.cover_all() {
        fill_with_bias(p, bias, dx);
    }
    let dx = Shared::new(dx);
    phases.each().try_for_each(|phases| correlate_phase(p, phases, dy, w, bias, &dx))
}

fn correlate_phase<T: Element>(
    p: &Problem,
    phases: [&AdjointPhase; 3],
    dy: &[T],
    w: &[T],
    bias: Option<&[T]>,
    dx: &Shared<T>,
) -> Result<()> {
    let strides = p.weight_strides();
    let axes = Axes::new(phases.map(|phase| phase.map.clone()));
    let tap = |at: [usize; 3]| {
        ravel([0, 1, 2].map(|axis| phases[axis].taps[at[axis]]), p.tap_extents()) * strides.tap
    };
    let correlation = Correlation {
        batch: p.batch,
        groups: p.groups,
        channels: p.outputs_per_group(),
        rows: p.channels_per_group(),
        axes: &axes,
        source: p.output_strides(),
        target: p.input_strides(),
        target_extents: p.input_extents(),
        place: phases.map(|phase| (phase.first, phase.stride)),
        weight: Weight {
            group: p.outputs_per_group() * strides.output,
            row: strides.input,
            channel: strides.output,
            taps: axes.each_tap().map(tap).collect(),
        },
    };
    correlation.run(dy, w, bias, dx)
}

/// What inputs get that no output reads.
fn fill_with_bias<T: Element>(p: &Problem, bias: Option<&[T]>, dx: &mut [T]) {
    let strides = p.input_strides();
    dx.par_iter_mut().enumerate().for_each(|(index, dx)| {
        let channel = match p.layout {
            Layout::ChannelsFirst => index % strides.image / strides.channel,
            Layout::ChannelsLast => index % p.channels,
        };
        *dx = bias.map_or(T::default(), |bias| bias[channel]);
    });
}

/// A task's memory, kept from one task to the next.
struct Memory<A> {
    slab: Scratch<A>,
    sums: Scratch<A>,
    wide: Scratch<A>,
    steps: Vec<Step>,
}

impl<A> Default for Memory<A> {
    fn default() -> Self {
        Memory { slab: Vec::new(), sums: Vec::new(), wide: Vec::new(), steps: Vec::new() }
    }
}

/// The weights of some rows and channels of a group: row m of term (c, tap) at `m·row + c·channel + taps[tap]`.
struct Block<'a, A> {
    data: &'a [A],
    row: usize,
    channel: usize,
    taps: &'a [usize],
}

impl Correlation<'_> {
    fn run<T: Element>(
        &self,
        source: &[T],
        weight: &[T],
        bias: Option<&[T]>,
        target: &Shared<T>,
    ) -> Result<()> {
        let lanes = best_tiles::<T::Acc>().lanes;
        let rows_at_a_time = self.rows.min(ROWS);
        let parts = boxes(self.axes.output_extents(), |part| {
            volume(part) * rows_at_a_time <= SUMS && Slab::len_for(self.axes, part) <= SLAB
        });
        let slabs: Vec<_> = parts.iter().map(|part| Slab::new(self.axes, part.clone())).collect();
        let padded_axes = depthwise::padded_axes(self.axes)?;
        let by_lines = self.rows * self.channels == 1 && depthwise::pays(self.axes, lanes);
        let plan = |part: &Box3| {
            let whole = part[2].len() == self.axes[2].outputs();
            (by_lines && whole).then(|| depthwise::Plan::new(self.axes, &padded_axes, part, lanes))
        };
        let plans: Vec<_> = parts.iter().map(|part| plan(part).filter(|p| p.fits())).collect();
        let dense_taps: Vec<usize> = (0..self.weight.taps.len()).collect();
        let radices = [self.batch, self.groups, self.rows.div_ceil(rows_at_a_time), parts.len()];
        let tasks = (0..radices.iter().product()).into_par_iter();
        tasks.try_for_each_init(Memory::default, |memory, task| {
            let Memory { slab: data, sums, wide, steps } = memory;
            let [image, group, block, part] = digits(task, radices);
            let (slab, plan, part) = (&slabs[part], &plans[part], &parts[part]);
            let rows = piece(self.rows, rows_at_a_time, block);
            let line = plan.as_ref().map_or(part[2].len(), depthwise::Plan::pitch);
            let pitch = (part[1].len() * line).next_multiple_of(lanes);
            let sums = room(sums, rows.len() * slab.depth() * pitch)?;
            let source = &source[image * self.source.image..][..self.source.image];
            let plane =
                |channel: usize| &source[(group * self.channels + channel) * self.source.channel..];
            if let Some(plan) = plan {
                let data = room(data, plan.slab_len())?;
                let first = group * self.weight.group;
                let weight = |tap: usize| weight[first + self.weight.taps[tap]].to_acc();
                plan.multiply(plane(0), self.source.position, weight, data, wide, sums);
            } else {
                let channels = (SLABS / slab.len()).min(TERMS / dense_taps.len()).max(1);
                for channels in pieces(self.channels, channels) {
                    let data = room(data, channels.len() * slab.len() + lanes)?;
                    let each = channels.clone().zip(data.chunks_exact_mut(slab.len()));
                    each.for_each(|(channel, data)| {
                        slab.fill(plane(channel), self.source.position, data, T::to_acc)
                    });
                    let weights = self.block(weight, group, &rows, &channels, &dense_taps, wide)?;
                    weights.steps(slab, channels.len(), steps);
                    let add = channels.start > 0;
                    multiply(slab, data, steps, &weights, rows.len(), sums, add);
                }
            }
            for (row, sums) in rows.zip(sums.chunks_exact_mut(slab.depth() * pitch)) {
                let channel = group * self.rows + row;
                if let Some(bias) = bias {
                    let bias = bias[channel].to_acc();
                    sums.iter_mut().for_each(|sum| *sum += bias);
                }
                // SAFETY: each task has rows and outputs of its own.
                unsafe { self.write([image, channel], part, line, sums, target) };
            }
            Ok(())
        })
    }

    /// The weights of some rows and channels of a group: where they are if elements are accumulators,
    /// and else widened into `wide`, in the order row, channel, tap.
    fn block<'a, T: Element>(
        &'a self,
        weight: &'a [T],
        group: usize,
        rows: &Range<usize>,
        channels: &Range<usize>,
        dense_taps: &'a [usize],
        wide: &'a mut Scratch<T::Acc>,
    ) -> Result<Block<'a, T::Acc>> {
        let Weight { group: group_step, row, channel, taps } = &self.weight;
        let start = group * group_step + rows.start * row + channels.start * channel;
        if let Some(data) = T::as_acc(&weight[start..]) {
            return Ok(Block { data, row: *row, channel: *channel, taps });
        }
        let terms = channels.len() * taps.len();
        let wide = room(wide, rows.len() * terms)?;
        for (m, wide) in wide.chunks_exact_mut(terms).enumerate() {
            for (c, wide) in wide.chunks_exact_mut(taps.len()).enumerate() {
                let from = &weight[start + m * row + c * channel..];
                wide.iter_mut().zip(taps).for_each(|(wide, &tap)| *wide = from[tap].to_acc());
            }
        }
        Ok(Block { data: wide, row: terms, channel: taps.len(), taps: dense_taps })
    }

    /// Writes a row of sums, whose blocks are padded to whole vectors and whose lines are `pitch`
    /// apart, to the target's channel.
    ///
    /// # Safety
    /// Nothing else may use these elements of the target.
    unsafe fn write<T: Element>(
        &self,
        [image, channel]: [usize; 2],
        part: &Box3,
        pitch: usize,
        sums: &[T::Acc],
        target: &Shared<T>,
    ) {
        let [first, step] = [0, 1].map(|field| self.place.map(|place| [place.0, place.1][field]));
        let width = part[2].len();
        let block = sums.len() / part[0].len();
        let contiguous = self.target.position == 1 && step[2] == 1;
        // Whole blocks, where the lines of the target follow each other as those of the box do.
        let whole = contiguous && step[1] == 1 && width == self.target_extents[2] && pitch == width;
        let (len, pitch) = if whole { (part[1].len() * width, block) } else { (width, pitch) };
        for (d, block) in part[0].clone().zip(sums.chunks_exact(block)) {
            for (h, line) in part[1].clone().zip(block.chunks(pitch)) {
                let line = &line[..len];
                let o = [d, h, part[2].start];
                let at = [0, 1, 2].map(|axis| first[axis] + o[axis] * step[axis]);
                let start = self.target.at(image, channel, ravel(at, self.target_extents));
                // SAFETY: promised by the caller.
                unsafe {
                    if contiguous {
                        T::narrow(line, target.run(start, len));
                    } else {
                        target.scatter(start, step[2] * self.target.position, line);
                    }
                }
            }
        }
    }
}

impl<A: Accumulator> Block<'_, A> {
    /// The terms of the sum over channels and taps.
    fn steps(&self, slab: &Slab, channels: usize, steps: &mut Vec<Step>) {
        steps.clear();
        for channel in 0..channels {
            steps.extend(slab.taps().zip(self.taps).map(|(tap, offset)| Step {
                weight: channel * self.channel + offset,
                patch: channel * slab.len() + slab.block(tap, 0),
                rows: !0,
            }));
        }
    }
}

/// `sums[m] (+)= Σ weights[m][step]·slabs[step]` for all rows, over the whole slab.
fn multiply<A: Accumulator>(
    slab: &Slab,
    slabs: &[A],
    steps: &[Step],
    weights: &Block<A>,
    rows: usize,
    sums: &mut [A],
    add: bool,
) {
    let tiles = best_tiles::<A>();
    let pitch = slab.block_len().next_multiple_of(tiles.lanes);
    let row_pitch = slab.depth() * pitch;
    let furthest = |field: fn(&Step) -> usize| steps.iter().map(field).max().unwrap_or(0);
    let last_patch = furthest(|step| step.patch) + (slab.depth() - 1) * slab.depth_step() + pitch;
    assert!(last_patch <= slabs.len() && rows * row_pitch <= sums.len());
    assert!(furthest(|step| step.weight) + (rows - 1) * weights.row < weights.data.len());
    for d in 0..slab.depth() {
        let patches = &slabs[d * slab.depth_step()..];
        let mut row = 0;
        while row < rows {
            let tile = micro::tile(tiles.products, rows - row);
            let panels = (row..rows + 1 - tile.rows).step_by(tile.rows);
            let mut column = 0;
            while column < pitch {
                let (vectors, kernel) = tile.kernel((pitch - column) / tiles.lanes);
                for row in panels.clone() {
                    let operands = Products {
                        steps: steps.as_ptr(),
                        count: steps.len(),
                        weights: weights.data[row * weights.row..].as_ptr(),
                        row: weights.row,
                        patches: patches[column..].as_ptr(),
                        sums: sums[row * row_pitch + d * pitch + column..].as_mut_ptr(),
                        pitch: row_pitch,
                        add,
                    };
                    // SAFETY: by the assertions above, all rows of weights and sums exist, and a block
                    // rounded up to whole vectors may be read behind every step; this machine has the
                    // instructions of its best tiles.
                    unsafe { kernel(operands) };
                }
                column += vectors * tiles.lanes;
            }
            row += panels.len() * tile.rows;
        }
    }
}

/// Elements of a row of dots taken at a time: a tile's rows stay in L1.
const DOTS: usize = 1024;

/// The weight gradient: tiles of dot products of dy with the blocks of the input's slabs.
pub(super) fn backward_weight<T: Element>(
    p: &Problem,
    x: &[T],
    dy: &[T],
    dw: &mut [T],
) -> Result<()> {
    let (rows, taps) = (p.outputs_per_group(), p.taps());
    let (xs, ys, ws) = (p.input_strides(), p.output_strides(), p.weight_strides());
    let lanes = best_tiles::<T::Acc>().lanes;
    let at_a_time = (TERMS / taps).min(LANES / (rows * taps * lanes));
    let at_a_time = at_a_time.clamp(1, p.channels_per_group());
    let parts = boxes(p.output_extents(), |part| {
        volume(part) * rows <= SUMS && Slab::len_for(&p.axes, part) <= SLABS / at_a_time
    });
    let slabs: Vec<_> = parts.iter().map(|part| Slab::new(&p.axes, part.clone())).collect();
    let radices = [p.groups, p.channels_per_group().div_ceil(at_a_time)];
    let dw = Shared::new(dw);
    let tasks = (0..radices.iter().product()).into_par_iter().with_max_len(1);
    tasks.try_for_each_init(Memory::default, |memory, task| {
        let Memory { slab: data, sums, wide, .. } = memory;
        let [group, block] = digits(task, radices);
        let channels = piece(p.channels_per_group(), at_a_time, block);
        let columns = channels.len() * taps;
        let sums = zeros(sums, rows * columns * lanes)?;
        let mut starts = Vec::with_capacity(columns);
        let all = (0..p.batch).flat_map(|n| slabs.iter().zip(&parts).map(move |pair| (n, pair)));
        for (image, (slab, part)) in all {
            let data = room(data, channels.len() * slab.len())?;
            starts.clear();
            for (index, data) in data.chunks_exact_mut(slab.len()).enumerate() {
                let channel = group * p.channels_per_group() + channels.start + index;
                slab.fill(&x[xs.at(image, channel, 0)..], xs.position, data, T::to_acc);
                starts.extend(slab.taps().map(|tap| index * slab.len() + slab.block(tap, 0)));
            }
            for d in 0..slab.depth() {
                let at = [part[0].start + d, part[1].start, part[2].start];
                let first = ys.at(image, group * rows, ravel(at, p.output_extents()));
                let (left, row) = gradient_rows(&dy[first..], ys, rows, slab.block_len(), wide)?;
                let right = &data[d * slab.depth_step()..];
                multiply_dots(left, row, right, &starts, slab.block_len(), rows, sums);
            }
        }
        let mut sums = sums.chunks_exact_mut(lanes).map(micro::sum_of_lanes);
        let taps_of_one = room(wide, taps)?;
        for m in 0..rows {
            for channel in channels.clone() {
                taps_of_one.iter_mut().zip(&mut sums).for_each(|(tap, sum)| *tap = sum);
                let at = ws.at(group * rows + m, channel, 0);
                // SAFETY: each task has input channels of its own.
                unsafe { dw.scatter(at, ws.tap, taps_of_one) };
            }
        }
        Ok(())
    })
}

/// `rows` channels at consecutive positions, as rows of accumulators, and the distance between them:
/// where they are, if they can be read so, and else copied to `wide`.
fn gradient_rows<'a, T: Element>(
    dy: &'a [T],
    strides: Strides,
    rows: usize,
    len: usize,
    wide: &'a mut Scratch<T::Acc>,
) -> Result<(&'a [T::Acc], usize)> {
    if let (Some(dy), 1) = (T::as_acc(dy), strides.position) {
        return Ok((dy, strides.channel));
    }
    let wide = room(wide, rows * len)?;
    for (m, wide) in wide.chunks_exact_mut(len).enumerate() {
        let row = dy[m * strides.channel..].iter().step_by(strides.position);
        wide.iter_mut().zip(row).for_each(|(wide, value)| *wide = value.to_acc());
    }
    Ok((wide, len))
}

/// `sums[m][n] += Σ left[m]·right[n]`, lane by lane, for all rows of both.
fn multiply_dots<A: Accumulator>(
    left: &[A],
    row: usize,
    right: &[A],
    starts: &[usize],
    len: usize,
    rows: usize,
    sums: &mut [A],
) {
    let tiles = best_tiles::<A>();
    let furthest = starts.iter().max().map_or(0, |start| start + len);
    assert!(furthest <= right.len() && (rows - 1) * row + len <= left.len());
    assert!(rows * starts.len() * tiles.lanes <= sums.len());
    for part in pieces(len, DOTS) {
        let mut m = 0;
        while m < rows {
            let tile = micro::tile(tiles.dots, rows - m);
            let mut n = 0;
            while n < starts.len() {
                let (columns, kernel) = tile.kernel(starts.len() - n);
                let operands = Dots {
                    len: part.len(),
                    left: left[m * row + part.start..].as_ptr(),
                    row,
                    right: right[part.start..].as_ptr(),
                    starts: starts[n..].as_ptr(),
                    sums: sums[(m * starts.len() + n) * tiles.lanes..].as_mut_ptr(),
                    pitch: starts.len(),
                };
                // SAFETY: by the assertions above, all rows exist and are long enough; this machine
                // has the instructions of its best tiles.
                unsafe { kernel(operands) };
                n += columns;
            }
            m += tile.rows;
        }
    }
}
