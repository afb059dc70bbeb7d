//! One correlation of a source with weights, box by box of its outputs: what the operations of `implicit.rs`
//! are made of.

use std::ops::Range;

use super::depthwise;
use super::runs::widens;
use crate::element::Element;
use crate::error::Result;
use crate::geometry::{Axes, Box3, Strides, ravel, volume};
use crate::patches::division::divide;
use crate::patches::pieces::{Pieces, digits};
use crate::patches::slab::{Slab, boxes};
use crate::plan::Pass;
use crate::product::cpu::{Factor, FactorOf, RegisterTiles, Rows as Operands, Step, multiply_rows};
use crate::workers::{Room, Shared, Workers};

/// Rows of the result that a task computes, at most.
const ROWS: usize = 512;
/// Elements of the result that a task computes, at most, unless a single line has more.
const SUMS: usize = 128 << 10;
/// Factors in the slab of one channel, or of several that a factor holds, at most, unless a single line has more.
const SLAB: usize = 32 << 10;
/// Factors in the slabs of a task's channels, at most, unless a single one has more.
const SLABS: usize = 256 << 10;
/// Terms that a tile sums at a time, at most, unless a single channel has more.
const TERMS: usize = 256;
/// Elements of a weight that are packed at a time.
const PACKED: usize = 512;

/// `target[n, m, at(o)] = bias[m] + Σ w[m, c, tap]·source[n, c, i(o, tap)]`, group by group, where
/// `at` is affine on each axis.
#[derive(Debug)]
pub(super) struct Correlation {
    batch: usize,
    groups: usize,
    /// Channels of the source, and rows (channels of the target), in a group.
    channels: usize,
    rows: Pieces,
    source: Strides,
    target: Strides,
    target_extents: [usize; 3],
    /// Where outputs are in the target, on each axis.
    places: [Place; 3],
    weight: Weight,
    areas: Vec<Area>,
}

/// What a correlation is made from.
#[derive(Debug)]
pub(super) struct Layer {
    pub batch: usize,
    pub groups: usize,
    pub channels: usize,
    pub rows: usize,
    pub axes: Axes,
    pub source: Strides,
    pub target: Strides,
    pub target_extents: [usize; 3],
    pub places: [Place; 3],
    pub weight: Weight,
}

/// Whether factors are packed elements: where the machine multiplies several at a time, and there are several.
pub(super) fn packs<T: Element>(channels: usize) -> bool {
    T::packs() && channels > 1
}

impl Layer {
    /// Whether its factors are packed elements.
    pub fn packs<T: Element>(&self) -> bool {
        packs::<T>(self.channels)
    }
}

/// The target position of the first output on an axis, and the distance to the next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub first: usize,
    pub step: usize,
}

/// Where a correlation's weights are, in elements.
#[derive(Debug)]
pub(super) struct Weight {
    pub group: usize,
    pub row: usize,
    pub channel: usize,
    pub taps: Vec<usize>,
}

/// A box of outputs, and how they are computed.
#[derive(Debug)]
struct Area {
    outputs: Box3,
    by: By,
}

#[derive(Debug)]
enum By {
    /// Rows are the rows of register tiles.
    Rows(Rows),
    /// Lines of the one row are.
    Lines(depthwise::Lines),
}

/// How tiles of rows read a box's patches.
#[derive(Debug)]
struct Rows {
    slab: Slab,
    /// Channels, or as many as a factor holds, whose slabs are filled at a time.
    factors: Pieces,
    /// The terms of the sum over the taps of so many.
    steps: Vec<Step>,
}

/// The weights of some rows and channels of a group: row m of a [`Step`] at `step.weight + m·row`.
struct Weights<'a, A> {
    data: &'a [A],
    row: usize,
}

impl Correlation {
    /// Whether any box is computed by lines.
    pub fn by_lines(&self) -> bool {
        self.areas.iter().any(|area| matches!(area.by, By::Lines(_)))
    }

    /// The plan for factors of this type, and whom it takes.
    pub fn new<T: Element, F: FactorOf<T>>(
        layer: Layer,
        by_lines: bool,
    ) -> Result<(Self, Workers)> {
        let Layer { axes, weight, channels, .. } = &layer;
        let lanes = <T::Acc as RegisterTiles>::best_tiles().lanes;
        let taps = weight.taps.len();
        let most_rows = layer.rows.min(ROWS);
        let fits = |outputs: &Box3| {
            volume(outputs) * most_rows <= SUMS && Slab::len_for(axes, outputs) <= SLAB
        };
        let whole = boxes(axes.output_extents(), fits);
        // By the largest boxes, so that sums are rounded the same however these are divided.
        let slab = whole.iter().map(|outputs| Slab::len_for(axes, outputs)).max().unwrap_or(1);
        let at_a_time = (SLABS / slab.max(1)).min(TERMS / taps.max(1)).max(1);
        let others = layer.batch * layer.groups;
        let (boxes, rows) = divide(axes.output_extents(), layer.rows, ROWS, others, fits);
        let by_lines = by_lines && layer.rows * channels == 1 && depthwise::pays(axes, lanes);
        let padded_axes = if by_lines { Some(depthwise::padded_axes(axes)?) } else { None };
        // Packed weights lie close together: row, channel, tap.
        let dense: Vec<usize> = (0..taps).collect();
        let (channel_step, tap_steps) =
            if widens::<T>() { (taps, &dense) } else { (weight.channel, &weight.taps) };
        let area = |outputs: Box3| {
            let whole = outputs[2].len() == axes[2].outputs();
            let lines = padded_axes
                .as_ref()
                .filter(|_| whole)
                .map(|padded| depthwise::Lines::new(axes, padded, &outputs, lanes));
            if let Some(lines) = lines.filter(depthwise::Lines::fits) {
                return Area { outputs, by: By::Lines(lines) };
            }
            let slab = Slab::new(axes, outputs.clone());
            let factors = Pieces::new(channels.div_ceil(F::CHANNELS), at_a_time);
            let mut steps = Vec::with_capacity(factors.longest() * taps);
            for factor in 0..factors.longest() {
                steps.extend(slab.taps().zip(tap_steps).map(|(tap, offset)| Step {
                    weight: factor * channel_step + offset,
                    patch: factor * slab.len() + slab.block(tap, 0),
                    rows: !0,
                }));
            }
            Area { outputs, by: By::Rows(Rows { slab, factors, steps }) }
        };
        let areas: Vec<_> = boxes.into_iter().map(area).collect();
        let room = areas.iter().map(|area| area.room::<T, F>(rows.longest(), lanes));
        let room = room.fold(Room::default(), Room::or);
        let Layer { batch, groups, channels, source, target, target_extents, .. } = layer;
        let Layer { places, weight, .. } = layer;
        let correlation = Correlation {
            batch,
            groups,
            channels,
            rows,
            source,
            target,
            target_extents,
            places,
            weight,
            areas,
        };
        let common = Room::default().and::<F>(correlation.packed_len::<T, F>());
        let workers = Workers::new(correlation.tasks(), room).with_common(common);
        Ok((correlation, workers))
    }

    pub fn tasks(&self) -> usize {
        self.batch * self.groups * self.rows.count() * self.areas.len()
    }

    /// What is done, for people.
    pub fn explain<T: Element, F: FactorOf<T>>(&self, which: &str) -> Pass {
        let lanes = <T::Acc as RegisterTiles>::best_tiles().lanes;
        let kernel = if self.by_lines() { "multiply lines" } else { "multiply from slabs" };
        let widened = if F::CHANNELS > 1 {
            ", channels in pairs".to_string()
        } else if widens::<T>() {
            format!(", weights widened to {}", <T::Acc as Element>::DTYPE)
        } else {
            String::new()
        };
        let columns = self.areas.iter().map(|area| volume(&area.outputs)).max().unwrap_or(0);
        Pass::on_cpu(kernel, self.tasks())
            .by(format!("register tiles of {lanes} lanes{widened}{which}"))
            .with_tile([self.rows.longest(), columns])
    }

    /// By factors of the type that it was planned for.
    pub fn run<T: Element, F: FactorOf<T>>(
        &self,
        workers: &Workers,
        source: &[T],
        weight: &[T],
        bias: Option<&[T]>,
        target: &Shared<T>,
        memory: &mut [u8],
    ) -> Result<()> {
        let (mut common, memory) = workers.split(memory);
        let packed = common.take::<F>(self.packed_len::<T, F>());
        self.pack(workers, weight, packed, memory)?;
        let packed = &*packed;
        let lanes = <T::Acc as RegisterTiles>::best_tiles().lanes;
        let group_rows = self.target_rows();
        let radices = [self.batch, self.groups, self.rows.count(), self.areas.len()];
        workers.share_out(self.tasks(), memory, |task, scratch| {
            let [image, group, piece, area] = digits(task, radices);
            let (area, rows) = (&self.areas[area], self.rows.get(piece));
            let Sizes { line, pitch, sums, data, table } = area.sizes(rows.len(), lanes);
            let sums = scratch.take::<T::Acc>(sums);
            let source = &source[image * self.source.image..][..self.source.image];
            let plane =
                |channel: usize| &source[(group * self.channels + channel) * self.source.channel..];
            match &area.by {
                By::Lines(lines) => {
                    let first = group * self.weight.group;
                    let weight = |tap: usize| weight[first + self.weight.taps[tap]].to_acc();
                    let (data, table) = (scratch.take(data), scratch.take(table));
                    lines.multiply(plane(0), self.source.position, weight, data, table, sums);
                }
                By::Rows(Rows { slab, factors, steps }) => {
                    let data = scratch.take::<F>(data);
                    for factors in factors.each() {
                        let len = factors.len() * slab.len();
                        let each = factors.clone().zip(data[..len].chunks_exact_mut(slab.len()));
                        each.for_each(|(factor, data)| {
                            let channels = factor * F::CHANNELS..(factor + 1) * F::CHANNELS;
                            let planes: [&[T]; 2] = [0, 1]
                                .map(|lane| plane((channels.start + lane).min(self.channels - 1)));
                            let count = channels.end.min(self.channels) - channels.start;
                            slab.fill(&planes[..count], self.source.position, data)
                        });
                        let weights = self.weights(weight, packed, group, &rows, &factors);
                        let steps = &steps[..factors.len() * self.weight.taps.len()];
                        let add = factors.start > 0;
                        let data = &data[..len + lanes];
                        multiply(slab, data, steps, &weights, rows.len(), sums, add);
                    }
                }
            }
            for (row, sums) in rows.zip(sums.chunks_exact_mut(area.outputs[0].len() * pitch)) {
                let channel = group * group_rows + row;
                if let Some(bias) = bias {
                    let bias = bias[channel].to_acc();
                    sums.iter_mut().for_each(|sum| *sum += bias);
                }
                // SAFETY: each task has rows and outputs of its own.
                unsafe { self.write(image, channel, &area.outputs, line, sums, target) };
            }
            Ok(())
        })
    }

    /// Rows of a group.
    fn target_rows(&self) -> usize {
        self.rows.extent()
    }

    /// Factors of a row's packed weights.
    fn terms<T: Element, F: FactorOf<T>>(&self) -> usize {
        self.channels.div_ceil(F::CHANNELS) * self.weight.taps.len()
    }

    /// Packed weights, where elements are no factors.
    fn packed_len<T: Element, F: FactorOf<T>>(&self) -> usize {
        let rows = self.groups * self.target_rows();
        if F::as_factors(&[]).is_some() { 0 } else { rows * self.terms::<T, F>() }
    }

    /// Packs the weights, in the order group, row, channel, tap.
    fn pack<T: Element, F: FactorOf<T>>(
        &self,
        workers: &Workers,
        weight: &[T],
        packed: &mut [F],
        memory: &mut [u8],
    ) -> Result<()> {
        let Weight { group: group_step, row: row_step, channel: channel_step, taps } = &self.weight;
        let row_len = self.terms::<T, F>();
        workers.share_out_chunks(packed, row_len, memory, |row, packed, _| {
            let [group, row] = digits(row, [self.groups, self.target_rows()]);
            let weight = &weight[group * group_step + row * row_step..];
            // Some at a time, since converting one takes as long as converting many.
            let mut elements = [T::default(); PACKED];
            let (mut rest, mut count) = (packed, 0);
            for first in (0..self.channels).step_by(F::CHANNELS) {
                for tap in taps {
                    for channel in first..first + F::CHANNELS {
                        let inside = channel < self.channels;
                        elements[count] = if inside {
                            weight[channel * channel_step + tap]
                        } else {
                            T::default()
                        };
                        count += 1;
                    }
                    if count == PACKED {
                        let (packed, behind) = rest.split_at_mut(PACKED / F::CHANNELS);
                        F::read(&elements, packed);
                        (rest, count) = (behind, 0);
                    }
                }
            }
            F::read(&elements[..count], rest);
        })
    }

    /// The weights of some rows and channels of a group: where they are if elements are factors, and else packed.
    fn weights<'a, T: Element, F: FactorOf<T>>(
        &self,
        weight: &'a [T],
        packed: &'a [F],
        group: usize,
        rows: &Range<usize>,
        factors: &Range<usize>,
    ) -> Weights<'a, F> {
        let Weight { group: group_step, row, channel, taps } = &self.weight;
        if let Some(data) = F::as_factors(weight) {
            let start = group * group_step + rows.start * row + factors.start * channel;
            return Weights { data: &data[start..], row: *row };
        }
        let row = self.terms::<T, F>();
        let start = (group * self.target_rows() + rows.start) * row + factors.start * taps.len();
        Weights { data: &packed[start..], row }
    }

    /// Writes a row of sums to the target's channel. Those of each outer output, a block as in a slab,
    /// are padded to whole vectors; their lines are `pitch` apart.
    ///
    /// # Safety
    /// Nothing else may use these elements of the target.
    unsafe fn write<T: Element>(
        &self,
        image: usize,
        channel: usize,
        outputs: &Box3,
        pitch: usize,
        sums: &[T::Acc],
        target: &Shared<T>,
    ) {
        let [_, place_h, place_w] = self.places;
        let width = outputs[2].len();
        let block = sums.len() / outputs[0].len();
        let contiguous = self.target.position == 1 && place_w.step == 1;
        // Whole blocks, where the lines of the target follow each other as those of the box do.
        let whole =
            contiguous && place_h.step == 1 && width == self.target_extents[2] && pitch == width;
        let (len, pitch) = if whole { (outputs[1].len() * width, block) } else { (width, pitch) };
        for (d, block) in outputs[0].clone().zip(sums.chunks_exact(block)) {
            for (h, line) in outputs[1].clone().zip(block.chunks(pitch)) {
                let line = &line[..len];
                let o = [d, h, outputs[2].start];
                let at = [0, 1, 2].map(|axis| {
                    let Place { first, step } = self.places[axis];
                    first + o[axis] * step
                });
                let start = self.target.at(image, channel, ravel(at, self.target_extents));
                // SAFETY: promised by the caller.
                unsafe {
                    if contiguous {
                        T::narrow(line, target.run(start, len));
                    } else {
                        target.scatter(start, place_w.step * self.target.position, line);
                    }
                }
            }
        }
    }
}

/// What a task's memory is made of, in elements, and how its sums lie there: lines of a box are `line`
/// apart, and those of one outer output `pitch` behind those of the one before.
struct Sizes {
    line: usize,
    pitch: usize,
    sums: usize,
    /// Factors in slabs, or accumulators in a copy by lines, and in the table of their weights.
    data: usize,
    table: usize,
}

impl Area {
    /// For so many rows.
    fn sizes(&self, rows: usize, lanes: usize) -> Sizes {
        let [depth, height, width] = self.outputs.each_ref().map(Range::len);
        let (line, data, table) = match &self.by {
            By::Lines(lines) => (lines.pitch(), lines.slab_len(), lines.table_len()),
            By::Rows(Rows { slab, factors, .. }) => {
                (width, factors.longest() * slab.len() + lanes, 0)
            }
        };
        let pitch = (height * line).next_multiple_of(lanes);
        Sizes { line, pitch, sums: rows * depth * pitch, data, table }
    }

    fn room<T: Element, F: FactorOf<T>>(&self, rows: usize, lanes: usize) -> Room {
        let Sizes { sums, data, table, .. } = self.sizes(rows, lanes);
        let room = Room::default().and::<T::Acc>(sums);
        match self.by {
            By::Lines(_) => room.and::<T::Acc>(data).and::<T::Acc>(table),
            By::Rows(_) => room.and::<F>(data),
        }
    }
}

/// `sums[m] (+)= Σ weights[m][step]·slabs[step]` for all rows, over all outputs of the slab.
fn multiply<F: Factor>(
    slab: &Slab,
    slabs: &[F],
    steps: &[Step],
    weights: &Weights<F>,
    rows: usize,
    sums: &mut [F::Sum],
    add: bool,
) {
    let pitch = slab.block_len().next_multiple_of(<F::Sum as RegisterTiles>::best_tiles().lanes);
    let row_pitch = slab.depth() * pitch;
    for d in 0..slab.depth() {
        let operands = Operands {
            steps,
            weights: weights.data,
            row: weights.row,
            patches: &slabs[d * slab.depth_step()..],
            rows,
            columns: pitch,
        };
        multiply_rows(&operands, &mut sums[d * pitch..], row_pitch, add);
    }
}
