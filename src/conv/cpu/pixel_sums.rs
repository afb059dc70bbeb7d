//! The weight gradient, channels last: the channels of an input's pixels are the rows of register tiles, those of
//! dy's pixels their columns, and positions the terms of the sums, tap by tap.

use super::parts::{Parts, Task, Write};
use super::runs::widens;
use crate::conv::problem::Problem;
use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::geometry::{Box3, ravel};
use crate::patches::padded::PaddedLines;
use crate::patches::pieces::digits;
use crate::plan::Pass;
use crate::product::cpu::{RegisterTiles, Rows, Step, multiply_rows};
use crate::workers::{Room, Scratch, Workers};

/// Elements of the copy of an input that a task makes, at most, unless those of a single line are more.
const COPIED: usize = 32 << 10;
/// Outputs that are read at a time, at most, unless a line has more.
const OUTPUTS: usize = 1 << 10;
/// Terms that a tile sums at a time, at most: what is read of dy stays in a cache.
const TERMS: usize = 128;
/// Elements of a group's weight whose sums a task has, at most.
const SUMS: usize = 256 << 10;
/// Lanes of the longest vectors.
const LANES: usize = 16;

#[derive(Debug)]
pub(crate) struct PixelSums {
    problem: Problem,
    parts: Parts,
    lines: PaddedLines,
    /// Distance between neighbouring pixels of dy.
    pitch: usize,
    /// The outputs of a plane.
    steps: Vec<Step>,
    /// How far each tap is from the first.
    taps: Vec<usize>,
}

/// Whether a group's sums are few enough.
pub(super) fn fits(p: &Problem) -> bool {
    p.channels_per_group() * p.taps() * p.outputs_per_group().next_multiple_of(LANES) <= SUMS
}

/// The outputs of a group, in whole vectors.
fn columns<T: Element>(p: &Problem) -> usize {
    p.outputs_per_group().next_multiple_of(<T::Acc as RegisterTiles>::best_tiles().lanes)
}

impl PixelSums {
    pub fn new<T: Element>(p: &Problem, passes: &mut Vec<Pass>) -> (Self, Workers) {
        let lines = PaddedLines::new::<T, T::Acc>(&p.axes, p.channels_per_group(), OUTPUTS, COPIED);
        let parts = Parts::new::<T>(p, p.groups, p.batch * lines.boxes().len());
        let columns = columns::<T>(p);
        let in_place = !widens::<T>() && columns == p.outputs_per_group();
        let pitch = if in_place { p.outputs } else { columns };
        let width = p.axes[2].outputs();
        let positions = (0..lines.longest()).flat_map(|h| (0..width).map(move |w| (h, w)));
        let steps = positions.enumerate().map(|(number, (h, w))| Step {
            weight: lines.line(0, h) + w * lines.step(),
            patch: number * pitch,
            rows: !0,
        });
        let (steps, taps) = (steps.collect(), lines.taps().collect());
        let plan = PixelSums { problem: p.clone(), parts, lines, pitch, steps, taps };
        let room = Room::default()
            .and::<T::Acc>(plan.lines.copy_len())
            .and::<T::Acc>(plan.gradients_len::<T>())
            .and::<T::Acc>(plan.sums_len::<T>());
        let copied = if plan.gradients_len::<T>() > 0 { ", gradients copied" } else { "" };
        let pass = Pass::on_cpu("multiply pixels", plan.parts.tasks());
        let tile = [p.channels_per_group(), p.outputs_per_group()];
        passes.push(pass.by(format!("tap by tap{copied}")).with_tile(tile));
        plan.parts.explain(passes);
        let workers = plan.parts.workers::<T>(room);
        (plan, workers)
    }

    /// Elements of a copy of a plane of dy, where one is needed.
    fn gradients_len<T: Element>(&self) -> usize {
        let copied =
            widens::<T>() || columns::<T>(&self.problem) != self.problem.outputs_per_group();
        if copied { self.steps.len() * self.pitch } else { 0 }
    }

    fn sums_len<T: Element>(&self) -> usize {
        self.problem.channels_per_group() * self.taps.len() * columns::<T>(&self.problem)
    }

    pub fn run<T: Element>(
        &self,
        workers: &Workers,
        x: &[T],
        dy: &[T],
        dw: &mut [T],
        memory: &mut [u8],
    ) -> Result<()> {
        let p = &self.problem;
        let (outputs, columns) = (p.outputs_per_group(), columns::<T>(p));
        let sum = |task: Task, scratch: &mut Scratch, write: Write<'_, T::Acc>| {
            let copy = scratch.take::<T::Acc>(self.lines.copy_len());
            let gradients = scratch.take::<T::Acc>(self.gradients_len::<T>());
            let sums = scratch.zeros::<T::Acc>(self.sums_len::<T>());
            let boxes = self.lines.boxes();
            for tile in task.tiles {
                let [image, number] = digits(tile, [p.batch, boxes.len()]);
                let (part, channel) = (&boxes[number], task.piece * p.channels_per_group());
                let from = &x[p.input_strides().at(image, channel, 0)..];
                self.lines.copy(from, p.channels, part, copy);
                self.add::<T>(part, image, task.piece, copy, dy, gradients, sums);
            }
            for entry in 0..sums.len() / columns {
                sums.copy_within(entry * columns..entry * columns + outputs, entry * outputs);
            }
            let first = task.piece * outputs;
            let entries = p.channels_per_group() * p.taps();
            write(first..first + outputs, 0..entries, &mut sums[..entries * outputs]);
            Ok(())
        };
        // SAFETY: a group's sums are all of its weight.
        unsafe { self.parts.sum(workers, dw, memory, sum) }
    }

    /// Adds the products of a box.
    #[allow(clippy::too_many_arguments)]
    fn add<T: Element>(
        &self,
        part: &Box3,
        image: usize,
        group: usize,
        copy: &[T::Acc],
        dy: &[T],
        gradients: &mut [T::Acc],
        sums: &mut [T::Acc],
    ) {
        let p = &self.problem;
        let (channels, outputs, columns) =
            (p.channels_per_group(), p.outputs_per_group(), columns::<T>(p));
        let steps = &self.steps[..part[1].len() * p.axes[2].outputs()];
        for d in part[0].clone() {
            let position = ravel([d, part[1].start, 0], p.output_extents());
            let from = &dy[p.output_strides().at(image, group * outputs, position)..];
            let from = match T::as_acc(from) {
                Some(from) if gradients.is_empty() => from,
                _ => {
                    let pixels = gradients.chunks_exact_mut(columns).take(steps.len());
                    for (to, from) in pixels.zip(from.chunks(p.outputs)) {
                        let (to, rest) = to.split_at_mut(outputs);
                        T::widen(&from[..outputs], to);
                        rest.fill(T::Acc::ZERO);
                    }
                    &*gradients
                }
            };
            let plane = self.lines.line(d - part[0].start, 0);
            for steps in steps.chunks(TERMS) {
                let of_taps = sums.chunks_exact_mut(channels * columns);
                for (tap, sums) in self.taps.iter().zip(of_taps) {
                    let weights = &copy[plane + tap..];
                    let rows =
                        Rows { steps, weights, row: 1, patches: from, rows: channels, columns };
                    multiply_rows(&rows, sums, columns, true);
                }
            }
        }
    }
}
