//! A correlation of a source with weights, channels last: the pixels of a line are the rows of register tiles, and
//! the channels of a result their columns.
//!
//! A task copies what its outputs read, with the padding around it, and multiplies it where it lies: each tap of
//! each channel, or of several that a factor holds, is a term, whose factors are a fixed distance apart from pixel
//! to pixel. No patch is stored.

use super::correlation::{Layer, Place};
use crate::element::Element;
use crate::error::Result;
use crate::geometry::ravel;
use crate::patches::padded::PaddedLines;
use crate::patches::pieces::digits;
use crate::plan::Pass;
use crate::product::cpu::{FactorOf, RegisterTiles, Rows, Step, multiply_rows};
use crate::workers::{Room, Shared, Workers, wanted_tasks};

/// Factors in the copy of a source that a task makes, at most, unless those of a single line are more.
const COPIED: usize = 32 << 10;
/// Outputs of a task, at most, unless a line has more.
const OUTPUTS: usize = 1 << 10;
/// Tasks for each thread there should be at least.
const TASKS: usize = 4;
/// Terms that a tile sums at a time, at most.
const TERMS: usize = 256;
/// Rows that tiles are best filled by.
const ROWS: usize = 8;
/// Terms whose weights are packed by one task.
const PACKED: usize = 64;

#[derive(Debug)]
pub(super) struct Pixels {
    layer: Layer,
    lines: PaddedLines,
    /// Distance between the weights of neighbouring terms, where they are packed.
    pitch: Option<usize>,
    /// Whether the lines of a plane are multiplied as one, with the outputs between their ends that there are not.
    joined: bool,
    /// The terms of each output: of every tap those of all channels, from the first pixel that a line reads on.
    steps: Vec<Step>,
}

impl Pixels {
    /// The plan for factors of this type.
    pub fn new<T: Element, F: FactorOf<T>>(layer: Layer) -> Self {
        let lanes = <T::Acc as RegisterTiles>::best_tiles().lanes;
        let [_, h, w] = &*layer.axes;
        let outputs = layer.axes.outputs() * layer.batch * layer.groups;
        let share = outputs.div_ceil(wanted_tasks(TASKS)).min(OUTPUTS);
        let lines = PaddedLines::new::<T, F>(&layer.axes, layer.channels, share, COPIED);
        // In place, where vectors of rows side by side end where rows do.
        let in_place = !super::runs::widens::<T>()
            && layer.weight.row == 1
            && layer.rows.is_multiple_of(lanes);
        let pitch = (!in_place).then_some(layer.rows.next_multiple_of(lanes));
        let factors = layer.channels.div_ceil(F::CHANNELS);
        let of_tap = |(source, &weight): (usize, &usize)| {
            let step = layer.weight.channel;
            (0..factors).map(move |c| (source + c, weight + c * step))
        };
        let terms = lines.taps().zip(&layer.weight.taps).flat_map(of_tap);
        let steps = terms.enumerate().map(|(term, (source, weight))| {
            let patch = pitch.map_or(weight, |pitch| term * pitch);
            Step { weight: source, patch, rows: !0 }
        });
        let steps = steps.collect();
        // Rows of tiles that are filled badly cost more than outputs that there are not.
        let filled = |rows: usize| 8 * rows.next_multiple_of(ROWS) <= 9 * rows;
        let joined = h.stride() == 1
            && w.stride() == 1
            && !filled(w.outputs())
            && lines.width() < w.outputs().next_multiple_of(ROWS) + ROWS / 2;
        Pixels { layer, lines, pitch, joined, steps }
    }

    pub fn tasks(&self) -> usize {
        self.layer.batch * self.layer.groups * self.lines.boxes().len()
    }

    /// Whom it takes.
    pub fn workers<T: Element, F: FactorOf<T>>(&self) -> Workers {
        let lanes = <T::Acc as RegisterTiles>::best_tiles().lanes;
        let lines = if self.joined { self.lines.longest() } else { 1 };
        let sums = self.rows(lines) * self.layer.rows.next_multiple_of(lanes);
        let room = Room::default().and::<T::Acc>(sums).and::<F>(self.lines.copy_len());
        let common = Room::default().and::<F>(self.packed_len());
        Workers::new(self.tasks(), room).with_common(common)
    }

    /// What is done, for people.
    pub fn explain<T: Element, F: FactorOf<T>>(&self, which: &str) -> Pass {
        let lanes = <T::Acc as RegisterTiles>::best_tiles().lanes;
        let packed = match self.pitch {
            _ if F::CHANNELS > 1 => ", channels in pairs",
            Some(_) => ", packed weights",
            None => "",
        };
        Pass::on_cpu("multiply pixels", self.tasks())
            .by(format!("register tiles of {lanes} lanes{packed}{which}"))
            .with_tile([self.lines.largest(), self.layer.rows])
    }

    fn packed_len(&self) -> usize {
        self.pitch.map_or(0, |pitch| self.layer.groups * self.steps.len() * pitch)
    }

    /// Rows that are multiplied for so many lines of outputs.
    fn rows(&self, lines: usize) -> usize {
        let width = self.layer.axes[2].outputs();
        if self.joined { lines.saturating_sub(1) * self.lines.width() + width } else { width }
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
        let lanes = <T::Acc as RegisterTiles>::best_tiles().lanes;
        let Layer { batch, groups, channels, rows, axes, .. } = &self.layer;
        let packed = common.take::<F>(self.packed_len());
        self.pack::<T, F>(workers, weight, packed, memory)?;
        let packed = &*packed;
        workers.share_out(self.tasks(), memory, |task, scratch| {
            let boxes = self.lines.boxes();
            let [image, group, number] = digits(task, [*batch, *groups, boxes.len()]);
            let outputs = &boxes[number];
            let copy = scratch.take::<F>(self.lines.copy_len());
            let columns = rows.next_multiple_of(lanes);
            let at_a_time = if self.joined { outputs[1].len() } else { 1 };
            let sums = scratch.take::<T::Acc>(self.rows(at_a_time) * columns);
            let from = &source[self.layer.source.at(image, group * channels, 0)..];
            self.lines.copy(from, self.layer.source.position, outputs, copy);
            let weights = match F::as_factors(weight) {
                Some(weight) if self.pitch.is_none() => &weight[group * self.layer.weight.group..],
                _ => &packed[group * self.steps.len() * columns..],
            };
            for d in outputs[0].clone() {
                for first in outputs[1].clone().step_by(at_a_time) {
                    let line = self.lines.line(d - outputs[0].start, first - outputs[1].start);
                    for (number, steps) in self.steps.chunks(TERMS).enumerate() {
                        let operands = Rows {
                            steps,
                            weights: &copy[line..],
                            row: self.lines.step(),
                            patches: weights,
                            rows: self.rows(at_a_time),
                            columns,
                        };
                        multiply_rows(&operands, sums, columns, number > 0);
                    }
                    let each = sums.chunks_mut(self.lines.width() * columns);
                    for (h, sums) in (first..first + at_a_time).zip(each) {
                        let sums = &mut sums[..axes[2].outputs() * columns];
                        // SAFETY: a task has outputs of its own.
                        unsafe { self.write(image, group, [d, h], bias, sums, columns, target) };
                    }
                }
            }
            Ok(())
        })
    }

    /// Packs the weights of each term, rows side by side.
    fn pack<T: Element, F: FactorOf<T>>(
        &self,
        workers: &Workers,
        weight: &[T],
        packed: &mut [F],
        memory: &mut [u8],
    ) -> Result<()> {
        let Some(pitch) = self.pitch else { return Ok(()) };
        let Layer { rows, weight: of, .. } = &self.layer;
        let terms = self.steps.len();
        workers.share_out_chunks(packed, PACKED * pitch, memory, |chunk, packed, _| {
            for (number, packed) in packed.chunks_exact_mut(pitch).enumerate() {
                let [group, term] =
                    digits(chunk * PACKED + number, [self.layer.groups, terms.max(1)]);
                let factors = self.layer.channels.div_ceil(F::CHANNELS);
                let [tap, factor] = digits(term, [of.taps.len(), factors]);
                let (packed, rest) = packed.split_at_mut(*rows);
                let channel = factor * F::CHANNELS;
                let first = group * of.group + of.taps[tap] + channel * of.channel;
                let (first, count) =
                    (&weight[first..], F::CHANNELS.min(self.layer.channels - channel));
                match count {
                    1 => F::interleave(&[first], of.row, packed),
                    _ => F::interleave(&[first, &first[of.channel..]], of.row, packed),
                }
                rest.fill(F::zeroed());
            }
        })
    }

    /// Writes a line of sums, `pitch` apart, to its pixels.
    ///
    /// # Safety
    /// Nothing else may use these elements of the target.
    #[allow(clippy::too_many_arguments)]
    unsafe fn write<T: Element>(
        &self,
        image: usize,
        group: usize,
        [d, h]: [usize; 2],
        bias: Option<&[T]>,
        sums: &mut [T::Acc],
        pitch: usize,
        target: &Shared<T>,
    ) {
        let Layer { rows, target: strides, target_extents, places, .. } = &self.layer;
        let first = group * rows;
        if let Some(bias) = bias {
            for sums in sums.chunks_exact_mut(pitch) {
                let bias = &bias[first..first + rows];
                sums.iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias.to_acc());
            }
        }
        let place = |axis: usize, o: usize| {
            let Place { first, step } = places[axis];
            first + o * step
        };
        let at = ravel([place(0, d), place(1, h), places[2].first], *target_extents);
        let start = strides.at(image, first, at);
        let step = places[2].step * strides.position;
        // SAFETY: promised by the caller.
        unsafe {
            if step == *rows && pitch == *rows {
                T::narrow(sums, target.run(start, sums.len()));
            } else {
                for (w, sums) in sums.chunks_exact(pitch).enumerate() {
                    T::narrow(&sums[..*rows], target.run(start + w * step, *rows));
                }
            }
        }
    }
}
