//! Sums of patches over all positions of an example: of each tap the sum of what it reads, one pass over the
//! input. Their covariance is that of examples of one position.

use std::ops::Range;

use super::channels::Channels;
use super::cost::Cost;
use super::folding::Folding;
use super::landing::Landing;
use crate::covariance::options::WeightSharing;
use crate::covariance::problem::{Part, Problem};
use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::geometry::{AxisMap, Conv, Layout};
use crate::patches::pieces::{Pieces, digits};
use crate::plan::Pass;
use crate::product::cpu::{add_dots, sum_of_lanes};
use crate::workers::{Room, Scratch, Shared, Workers};

/// Lines of a plane that are summed together.
const LINES: usize = 4;
/// Neighbouring channels that a task sums, channels last.
const CHANNELS: usize = 64;

#[derive(Debug)]
pub(super) struct Sums {
    p: Problem,
    /// For each part and axis how often each tap reads each input, tap by tap.
    counts: Vec<[Vec<u32>; 3]>,
    /// Channels of a task.
    channels: Pieces,
    /// Of the sums.
    products: Channels,
}

impl Sums {
    pub fn new<F: Accumulator>(p: &Problem, limit: usize) -> Result<Self> {
        let pointwise = Conv::new([1]).bind([1])?;
        let (rows, groups) = (p.rows(), p.groups);
        let one = Problem {
            channels: groups * rows,
            layout: Layout::ChannelsFirst,
            parts: vec![Part { axes: pointwise.axes()?, taps: vec![0] }],
            taps: 1,
            positions: 1,
            bias: false,
            sharing: WeightSharing::Expand,
            ..p.clone()
        };
        let folding = Folding::all(&one.parts[0].axes).remove(0);
        let products = Channels::new::<F>(&one, &one.parts[0], folding, limit);
        let counts = p.parts.iter().map(|part| part.axes.each_ref().map(counts)).collect();
        let at_a_time = if p.layout == Layout::ChannelsLast { CHANNELS } else { 1 };
        let channels = Pieces::new(p.channels, at_a_time);
        Ok(Sums { p: p.clone(), counts, channels, products })
    }

    pub fn workers<T: Element, F: Accumulator>(&self, passes: &mut Vec<Pass>) -> Workers {
        let tasks = self.p.batch * self.channels.count();
        passes.push(Pass::on_cpu("sum over the window of each tap", tasks));
        let own = self.p.parts.iter().map(|part| self.room::<T, F>(part));
        let own = Workers::new(tasks, own.fold(Room::default(), Room::or));
        let sums = Room::default().and::<F>(self.len());
        own.or(self.products.workers::<F, F>(passes)).and_common(sums)
    }

    fn room<T: Element, F: Accumulator>(&self, part: &Part) -> Room {
        let [_, _, width] = part.axes.input_extents();
        let [.., taps] = part.axes.tap_extents();
        let channels = self.channels.longest();
        let lanes = F::best_tiles().lanes;
        Room::default()
            .and::<F>(part.axes.taps() * channels)
            .and::<F>(taps * channels)
            .and::<F>((LINES * width + taps * width + LINES * taps * lanes).max(channels))
            .and::<usize>(taps)
            .and::<T::Acc>(width.max(channels))
    }

    pub fn cost(&self) -> Cost {
        self.products.cost
    }

    /// Elements of the largest panel of the products.
    pub fn panel_len(&self) -> usize {
        self.products.panel_len()
    }

    /// Elements of the sums of all examples.
    fn len(&self) -> usize {
        self.p.batch * self.p.groups * self.p.rows()
    }

    pub fn run<T: Element, F: Accumulator>(
        &self,
        workers: &Workers,
        x: &[T],
        landing: &Landing<F>,
        common: &mut Scratch,
        memory: &mut [u8],
    ) -> Result<()> {
        let (p, d) = (&self.p, self.p.rows());
        let per_group = p.channels_per_group();
        let all = common.zeros::<F>(self.len());
        if p.bias {
            let count = F::from_f64(p.positions as f64);
            all.chunks_exact_mut(d).for_each(|sums| sums[d - 1] = count);
        }
        let shared = Shared::new(&mut *all);
        let radices = [p.batch, self.channels.count()];
        workers.share_out(radices.iter().product(), memory, |task, scratch| {
            let [n, piece] = digits(task, radices);
            let channels = self.channels.get(piece);
            for (part, counts) in p.parts.iter().zip(&self.counts) {
                let of = Windows { p, part, counts };
                let image = p.channels * part.axes.inputs();
                let image = &x[n * image..][..image];
                let mut scratch = scratch.part();
                let sums = scratch.zeros::<F>(part.axes.taps() * channels.len());
                match p.layout {
                    Layout::ChannelsFirst => of.plane(image, channels.start, &mut scratch, sums),
                    Layout::ChannelsLast => of.channels(image, &channels, &mut scratch, sums),
                }
                for (&tap, sums) in part.taps.iter().zip(sums.chunks_exact(channels.len())) {
                    for (channel, &sum) in channels.clone().zip(sums) {
                        let start = (n * p.groups + channel / per_group) * d;
                        let row = p.row_of(channel % per_group, tap);
                        // SAFETY: each task has the rows of channels of its own.
                        unsafe { shared.run(start + row, 1)[0] = sum };
                    }
                }
            }
            Ok(())
        })?;
        self.products.run(workers, &*all, landing, common, memory)
    }
}

/// How often each tap of an axis reads each input, tap by tap.
fn counts(map: &AxisMap) -> Vec<u32> {
    let mut counts = vec![0; map.taps() * map.inputs()];
    for tap in 0..map.taps() {
        for source in (0..map.outputs()).filter_map(|o| map.source(o, tap)) {
            counts[tap * map.inputs() + source] += 1;
        }
    }
    counts
}

/// What the taps of a part read of an image.
struct Windows<'a> {
    p: &'a Problem,
    part: &'a Part,
    counts: &'a [Vec<u32>; 3],
}

impl Windows<'_> {
    /// Adds what each tap reads of one channel, channels first.
    fn plane<T: Element, F: Accumulator>(
        &self,
        image: &[T],
        channel: usize,
        scratch: &mut Scratch,
        sums: &mut [F],
    ) {
        let [_, _, width] = self.part.axes.input_extents();
        let [.., taps] = self.part.axes.tap_extents();
        let lanes = F::best_tiles().lanes;
        let in_line = scratch.take::<F>(taps);
        let memory = scratch.take::<F>(LINES * width + taps * width + LINES * taps * lanes);
        let (lines, memory) = memory.split_at_mut(LINES * width);
        let (counts, parts) = memory.split_at_mut(taps * width);
        let starts = scratch.take::<usize>(taps);
        let widened = scratch.take::<T::Acc>(width);
        counts.iter_mut().zip(&self.counts[2]).for_each(|(to, &count)| *to = of_count(count));
        starts.iter_mut().enumerate().for_each(|(tap, start)| *start = tap * width);
        let plane = self.part.axes.inputs();
        for (number, some) in image[channel * plane..][..plane].chunks(LINES * width).enumerate() {
            let rows = some.len() / width;
            for (line, from) in lines.chunks_exact_mut(width).zip(some.chunks_exact(width)) {
                T::widen(from, widened);
                convert(widened, line);
            }
            let parts = &mut parts[..rows * taps * lanes];
            parts.fill(F::ZERO);
            add_dots(lines, width, counts, starts, width, rows, parts);
            for (row, parts) in parts.chunks_exact_mut(taps * lanes).enumerate() {
                let each = in_line.iter_mut().zip(parts.chunks_exact_mut(lanes));
                each.for_each(|(sum, lanes)| *sum = sum_of_lanes(lanes));
                self.add_line(number * LINES + row, in_line, sums);
            }
        }
    }

    /// Adds what each tap reads of some channels, channels last.
    fn channels<T: Element, F: Accumulator>(
        &self,
        image: &[T],
        channels: &Range<usize>,
        scratch: &mut Scratch,
        sums: &mut [F],
    ) {
        let [_, _, width] = self.part.axes.input_extents();
        let [.., taps] = self.part.axes.tap_extents();
        let in_line = scratch.take::<F>(taps * channels.len());
        let values = &mut scratch.take::<F>(channels.len())[..];
        let widened = &mut scratch.take::<T::Acc>(channels.len())[..];
        for (line, row) in image.chunks_exact(width * self.p.channels).enumerate() {
            in_line.fill(F::ZERO);
            for (at, from) in row.chunks_exact(self.p.channels).enumerate() {
                T::widen(&from[channels.clone()], widened);
                convert(widened, values);
                for tap in 0..taps {
                    let count = self.counts[2][tap * width + at];
                    if count > 0 {
                        let sums = &mut in_line[tap * channels.len()..][..channels.len()];
                        add_scaled(sums, of_count(count), values);
                    }
                }
            }
            self.add_line(line, in_line, sums);
        }
    }

    /// Adds what the taps of the last axis read of a line to all taps that read the line.
    fn add_line<F: Accumulator>(&self, line: usize, in_line: &[F], sums: &mut [F]) {
        let [depth, height, _] = self.part.axes.input_extents();
        let [_, taps, _] = self.part.axes.tap_extents();
        let (d, h) = (line / height, line % height);
        for (number, sums) in sums.chunks_exact_mut(in_line.len()).enumerate() {
            let (tap_d, tap_h) = (number / taps, number % taps);
            let count = self.counts[0][tap_d * depth + d] * self.counts[1][tap_h * height + h];
            if count > 0 {
                add_scaled(sums, of_count(count), in_line);
            }
        }
    }
}

fn of_count<F: Accumulator>(count: u32) -> F {
    F::from_f64(count.into())
}

fn convert<A: Accumulator, F: Accumulator>(from: &[A], to: &mut [F]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = F::from_f64(from.to_f64()));
}

fn add_scaled<F: Accumulator>(sums: &mut [F], factor: F, values: &[F]) {
    sums.iter_mut().zip(values).for_each(|(sum, &value)| *sum += factor * value);
}
