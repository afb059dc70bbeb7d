//! The weight gradient on the pattern: for every stored entry the dot product of a row of dy with what the
//! entry reads, image after image and box after box.

use super::sums::copy_rows;
use super::window::Window;
use crate::element::Element;
use crate::error::Result;
use crate::geometry::{Box3, ravel, unravel};
use crate::memory::try_with_capacity;
use crate::patches::pieces::{Pieces, digits};
use crate::patches::slab::boxes;
use crate::plan::Pass;
use crate::product::cpu::{RegisterTiles, add_dots, sum_of_lanes};
use crate::sparse::order::Order;
use crate::sparse::problem::Problem;
use crate::workers::{Room, Shared, Workers, totals};

/// Elements of dy that a task multiplies at a time, at most, unless a single line has more.
const GRADIENTS: usize = 128 << 10;
/// Elements in the windows of a task's channels, at most, unless a single one has more.
const WINDOWS: usize = 96 << 10;
/// Lanes of a task's sums, about, unless a single channel has more.
const LANES: usize = 1 << 20;
/// Tasks there should be at least, where there are as many pieces and boxes.
const TASKS: usize = 16;

/// `dw[e] = Σ dy·x[i(o)]` for stored entries.
#[derive(Debug)]
pub(in crate::sparse) struct BackwardWeight {
    problem: Problem,
    /// A group's input channels: those of a task.
    channels: Pieces,
    /// A task's images and boxes, of all of them in order.
    parts: Pieces,
    areas: Vec<Area>,
    /// The entries' numbers by piece of channels and output channel, and where each row's start.
    order: Vec<usize>,
    starts: Vec<usize>,
    /// Elements of a task's windows, and of its copy of dy.
    windows: usize,
    gradients: usize,
}

/// A box of outputs.
#[derive(Debug)]
struct Area {
    outputs: Box3,
    window: Window,
    /// Where what each entry reads starts in the windows, in the plan's order of entries.
    places: Vec<usize>,
}

impl BackwardWeight {
    pub fn new<T: Element>(p: &Problem, passes: &mut Vec<Pass>) -> Result<(Self, Workers)> {
        let lanes = <T::Acc as RegisterTiles>::best_tiles().lanes;
        let (pattern, per_group, rows) =
            (&p.pattern, p.channels_per_group(), p.outputs_per_group());
        let entries_of_channel = pattern.len().div_ceil(p.channels).max(1);
        let fits = |outputs: &Box3| {
            let positions: usize = outputs.iter().map(ExactSizeIterator::len).product();
            positions * rows <= GRADIENTS && Window::len_for(&p.axes, None, outputs) <= WINDOWS / 4
        };
        let boxes = boxes(p.axes.output_extents(), fits);
        let longest = boxes.iter().map(|outputs| Window::len_for(&p.axes, None, outputs)).max();
        let longest = longest.unwrap_or(1).max(1);
        let at_a_time = (WINDOWS / longest).min(LANES / (entries_of_channel * lanes));
        let channels = Pieces::new(per_group, at_a_time.clamp(1, per_group));

        let Order { order, starts, .. } = p.by_channels(channels.longest())?;

        let mut areas = Vec::with_capacity(boxes.len());
        for outputs in boxes {
            let window = Window::new(&p.axes, None, &outputs);
            let mut places: Vec<usize> = try_with_capacity("a table of entries", order.len())?;
            places.extend(order.iter().map(|&entry| {
                let (channel, tap) = pattern.place(entry);
                let tap = unravel(tap, p.axes.tap_extents());
                channel % channels.longest() * window.len() + window.place(tap)
            }));
            areas.push(Area { outputs, window, places });
        }
        let tiles = p.batch * areas.len();
        let pieces = p.groups * channels.count();
        let parts = Pieces::new(tiles, tiles.div_ceil(TASKS.div_ceil(pieces)).max(1));
        let gradients = areas.iter().map(|area| rows * area.window.block_len()).max().unwrap_or(0);
        let windows = channels.longest() * longest;
        let problem = p.clone();
        let plan =
            BackwardWeight { problem, channels, parts, areas, order, starts, windows, gradients };
        let most = (0..pieces).map(|piece| plan.entries_of(piece).len()).max().unwrap_or(0);
        let room = Room::default()
            .and::<T::Acc>(most * lanes)
            .and::<T::Acc>(windows)
            .and::<T::Acc>(gradients);
        let common = Room::default().and::<T::Acc>(plan.parts.count() * pattern.len());
        let tasks = pieces * plan.parts.count();
        passes.push(Pass::on_cpu("dot products of entries", tasks).by(format!("{lanes} lanes")));
        let totals = totals(pattern.len());
        let how = format!("{} parts of the sums, in order", plan.parts.count());
        passes.push(Pass::on_cpu("add up parts", totals).by(how));
        let workers = Workers::new(tasks.max(totals), room).with_common(common);
        Ok((plan, workers))
    }

    /// The rows of the table that are a task's: a group's output channels and a piece of its input channels.
    fn rows_of(&self, piece: usize) -> std::ops::Range<usize> {
        let (p, rows) = (&self.problem, self.problem.outputs_per_group());
        let [group, channels] = digits(piece, [p.groups, self.channels.count()]);
        let first = channels * p.outputs + group * rows;
        first..first + rows
    }

    /// The entries of a task, in the plan's order.
    fn entries_of(&self, piece: usize) -> std::ops::Range<usize> {
        let rows = self.rows_of(piece);
        self.starts[rows.start]..self.starts[rows.end]
    }

    /// Writes the gradient of every entry.
    pub fn run<T: Element>(
        &self,
        workers: &Workers,
        x: &[T],
        dy: &[T],
        dw: &mut [T],
        memory: &mut [u8],
    ) -> Result<()> {
        let BackwardWeight { problem: p, channels, parts, areas, order, starts, .. } = self;
        if parts.count() == 0 {
            dw.fill(T::default());
            return Ok(());
        }
        let (mut common, memory) = workers.split(memory);
        let entries = order.len();
        let partial = common.take::<T::Acc>(parts.count() * entries);
        let pieces = p.groups * channels.count();
        let lanes = <T::Acc as RegisterTiles>::best_tiles().lanes;
        let (xs, ys, rows) = (p.input_strides(), p.output_strides(), p.outputs_per_group());
        let (extents, per_group) = (p.axes.output_extents(), p.channels_per_group());
        let target = Shared::new(&mut *partial);
        workers.share_out(pieces * parts.count(), memory, |task, scratch| {
            let [part, piece] = digits(task, [parts.count(), pieces]);
            let [group, of_group] = digits(piece, [p.groups, channels.count()]);
            let (own, table_rows) = (self.entries_of(piece), self.rows_of(piece));
            let sums = scratch.zeros::<T::Acc>(own.len() * lanes);
            let windows = scratch.take::<T::Acc>(self.windows);
            let gradients = scratch.take::<T::Acc>(self.gradients);
            for tile in parts.get(part) {
                let [image, number] = digits(tile, [p.batch, areas.len()]);
                let Area { outputs, window, places } = &areas[number];
                let len = window.block_len();
                for (channel, copy) in
                    channels.get(of_group).zip(windows.chunks_exact_mut(window.len()))
                {
                    let plane = &x[xs.at(image, group * per_group + channel, 0)..];
                    window.fill(plane, xs.position, copy);
                }
                for d in 0..window.depth() {
                    let at = [outputs[0].start + d, outputs[1].start, outputs[2].start];
                    let first = ravel(at, extents);
                    let of_group = group * rows..(group + 1) * rows;
                    copy_rows(dy, ys, image, of_group, first..first + len, len, gradients);
                    let right = &windows[d * window.depth_step()..];
                    for (row, left) in table_rows.clone().zip(gradients.chunks_exact(len)) {
                        let entries = starts[row]..starts[row + 1];
                        let sums = &mut sums[(entries.start - own.start) * lanes..];
                        add_dots(left, len, right, &places[entries], len, 1, sums);
                    }
                }
            }
            for (at, sums) in own.zip(sums.chunks_exact_mut(lanes)) {
                // SAFETY: each task has entries of its own in its part.
                unsafe { target.run(part * entries + order[at], 1)[0] = sum_of_lanes(sums) };
            }
            Ok(())
        })?;
        workers.add_up(partial, dw)
    }
}
