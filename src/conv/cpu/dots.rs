//! The weight gradient of small groups: register tiles of dot products of dy with the blocks of slabs of
//! the input, which are the rows of the patch matrix, image after image.

use super::runs::widens;
use crate::conv::problem::Problem;
use crate::element::Element;
use crate::error::Result;
use crate::geometry::{Box3, Strides, ravel, volume};
use crate::patches::pieces::{Pieces, digits};
use crate::patches::slab::{Slab, boxes};
use crate::plan::Pass;
use crate::product::cpu::{FactorOf, RegisterTiles, add_dots, sum_of_lanes};
use crate::workers::{Room, Scratch, Shared, Workers, totals};

/// Elements of dy that a task multiplies at a time, at most, unless a single line has more.
const GRADIENTS: usize = 128 << 10;
/// Elements in the slabs of a task's channels, at most, unless a single one has more.
const SLABS: usize = 256 << 10;
/// Weights of a row whose gradients a task sums up, at most, unless a single channel has more.
const TERMS: usize = 256;
/// Lanes of a task's weight gradients, at most, unless a single channel has more.
const LANES: usize = 1 << 20;
/// Tasks there should be at least, if there are so many images.
const TASKS: usize = 128;

/// `dW = dy·Aᵀ`.
#[derive(Debug)]
pub(crate) struct BackwardWeight {
    problem: Problem,
    /// A group's input channels, and images: those of a task.
    channels: Pieces,
    images: Pieces,
    areas: Vec<Area>,
    /// Elements of the largest slab, and those of a copy of some of dy.
    slab_len: usize,
    copy_len: usize,
}

/// A box of outputs.
#[derive(Debug)]
struct Area {
    outputs: Box3,
    slab: Slab,
    /// Where each tap of each of a task's channels starts in their slabs.
    starts: Vec<usize>,
}

impl BackwardWeight {
    pub fn new<T: Element>(p: &Problem, passes: &mut Vec<Pass>) -> (Self, Workers) {
        let (rows, taps) = (p.outputs_per_group(), p.taps());
        let lanes = <T::Acc as RegisterTiles>::best_tiles().lanes;
        let at_a_time = (TERMS / taps).min(LANES / (rows * taps * lanes));
        let channels =
            Pieces::new(p.channels_per_group(), at_a_time.clamp(1, p.channels_per_group()));
        // By the shape, not the number of threads: sums are in the order of the parts.
        let parts = TASKS.div_ceil(p.groups * channels.count()).min(p.batch).max(1);
        let images = Pieces::new(p.batch, p.batch.div_ceil(parts).max(1));
        let boxes = boxes(p.output_extents(), |outputs| {
            volume(outputs) * rows <= GRADIENTS
                && Slab::len_for(&p.axes, outputs) <= SLABS / channels.longest()
        });
        let area = |outputs: Box3| {
            let slab = Slab::new(&p.axes, outputs.clone());
            let each = (0..channels.longest()).flat_map(|channel| {
                let slab = &slab;
                slab.taps().map(move |tap| channel * slab.len() + slab.block(tap, 0))
            });
            let starts = each.collect();
            Area { outputs, slab, starts }
        };
        let areas: Vec<_> = boxes.into_iter().map(area).collect();
        let longest =
            |len: fn(&Slab) -> usize| areas.iter().map(|area| len(&area.slab)).max().unwrap_or(0);
        let copied = widens::<T>() || p.output_strides().position != 1;
        let copy_len = if copied { rows * longest(Slab::block_len) } else { 0 };
        let slab_len = longest(Slab::len);
        let columns = channels.longest() * taps;
        let room = Room::default()
            .and::<T::Acc>(rows * columns * lanes)
            .and::<T::Acc>(channels.longest() * slab_len)
            .and::<T::Acc>(copy_len)
            .and::<T::Acc>(taps);
        let plan =
            BackwardWeight { problem: p.clone(), channels, images, areas, slab_len, copy_len };
        let copied = if copied {
            format!(", gradients copied as {}", <T::Acc as Element>::DTYPE)
        } else {
            String::new()
        };
        let pass = Pass::on_cpu("dot products with slabs", plan.tasks());
        let how = format!("register tiles of {lanes} lanes{copied}");
        passes.push(pass.by(how).with_tile([rows, columns]));
        let mut workers = Workers::new(plan.tasks(), room);
        if plan.partial_len() > 0 {
            let how = format!("{} parts of the sums, in order", plan.images.count());
            passes.push(Pass::on_cpu("add up parts", totals(p.weight_len())).by(how));
            workers = workers.with_common(Room::default().and::<T::Acc>(plan.partial_len()));
        }
        (plan, workers)
    }

    fn tasks(&self) -> usize {
        self.images.count() * self.problem.groups * self.channels.count()
    }

    /// Elements of the sums of all parts, where there are several.
    fn partial_len(&self) -> usize {
        if self.images.count() > 1 { self.images.count() * self.problem.weight_len() } else { 0 }
    }

    pub fn run<T: Element>(
        &self,
        workers: &Workers,
        x: &[T],
        dy: &[T],
        dw: &mut [T],
        memory: &mut [u8],
    ) -> Result<()> {
        match self.images.count() {
            0 => dw.fill(T::default()),
            1 => self.sum(workers, x, dy, &Shared::new(dw), memory)?,
            _ => {
                let (mut common, memory) = workers.split(memory);
                let partial = common.take::<T::Acc>(self.partial_len());
                self.sum(workers, x, dy, &Shared::new(&mut *partial), memory)?;
                workers.add_up(partial, dw)?;
            }
        }
        Ok(())
    }

    /// Writes the sums of each part: rounded where there is one.
    fn sum<T: Element, U: Element<Acc = T::Acc>>(
        &self,
        workers: &Workers,
        x: &[T],
        dy: &[T],
        sums_of_parts: &Shared<U>,
        memory: &mut [u8],
    ) -> Result<()> {
        let p = &self.problem;
        let (rows, taps) = (p.outputs_per_group(), p.taps());
        let (xs, ys, ws) = (p.input_strides(), p.output_strides(), p.weight_strides());
        let lanes = <T::Acc as RegisterTiles>::best_tiles().lanes;
        let radices = [self.images.count(), p.groups, self.channels.count()];
        workers.share_out(self.tasks(), memory, |task, scratch: &mut Scratch| {
            let [part, group, piece] = digits(task, radices);
            let channels = self.channels.get(piece);
            let columns = channels.len() * taps;
            let sums = scratch.zeros::<T::Acc>(rows * columns * lanes);
            let data = scratch.take::<T::Acc>(channels.len() * self.slab_len);
            let copy = scratch.take::<T::Acc>(self.copy_len);
            let taps_of_one = scratch.take::<T::Acc>(taps);
            let images = self.images.get(part);
            for (image, area) in images.flat_map(|n| self.areas.iter().map(move |a| (n, a))) {
                let Area { outputs, slab, starts } = area;
                let data = &mut data[..channels.len() * slab.len()];
                for (channel, data) in channels.clone().zip(data.chunks_exact_mut(slab.len())) {
                    let channel = group * p.channels_per_group() + channel;
                    slab.fill(&[&x[xs.at(image, channel, 0)..]], xs.position, data);
                }
                for d in 0..slab.depth() {
                    let at = [outputs[0].start + d, outputs[1].start, outputs[2].start];
                    let first = ys.at(image, group * rows, ravel(at, p.output_extents()));
                    let len = slab.block_len();
                    let (left, row) = gradient_rows(&dy[first..], ys, rows, len, copy);
                    let right = &data[d * slab.depth_step()..];
                    add_dots(left, row, right, &starts[..columns], len, rows, sums);
                }
            }
            let mut sums = sums.chunks_exact_mut(lanes).map(sum_of_lanes);
            for m in 0..rows {
                for channel in channels.clone() {
                    taps_of_one.iter_mut().zip(&mut sums).for_each(|(tap, sum)| *tap = sum);
                    let at = part * p.weight_len() + ws.at(group * rows + m, channel, 0);
                    // SAFETY: each task has input channels of its own, and parts have a copy of the weight each.
                    unsafe { sums_of_parts.scatter(at, ws.tap, taps_of_one) };
                }
            }
            Ok(())
        })
    }
}

/// `rows` channels at consecutive positions, as rows of accumulators, and the distance between them:
/// where they are, if they can be read so, and else copied to `copy`.
fn gradient_rows<'a, T: Element>(
    dy: &'a [T],
    strides: Strides,
    rows: usize,
    len: usize,
    copy: &'a mut [T::Acc],
) -> (&'a [T::Acc], usize) {
    if let (Some(dy), 1) = (T::as_acc(dy), strides.position) {
        return (dy, strides.channel);
    }
    let copy = &mut copy[..rows * len];
    for (m, copy) in copy.chunks_exact_mut(len).enumerate() {
        T::Acc::interleave(&[&dy[m * strides.channel..]], strides.position, copy);
    }
    (copy, len)
}
