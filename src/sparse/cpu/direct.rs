//! Direct sparse convolution: register tiles sum up a row's entries over a padded copy of the input.

use super::WithValues;
use super::sums::{Sums, Target};
use super::table::{Table, widen, widened};
use super::window::{Window, shifted_axes};
use crate::element::Element;
use crate::error::Result;
use crate::geometry::{Box3, unravel, volume};
use crate::patches::pieces::{Pieces, digits, shift};
use crate::patches::slab::boxes;
use crate::plan::Pass;
use crate::product::cpu::RegisterTiles;
use crate::sparse::problem::Problem;
use crate::workers::{Room, Shared, Workers};

/// Elements of the result that a task computes, at most, unless a single line has more.
const SUMS: usize = 128 << 10;
/// Elements in the window of one channel, at most, unless a single line has more.
const WINDOW: usize = 32 << 10;
/// Elements in the windows of the channels that are multiplied together, at most, unless a single one has
/// more: they stay in a core's L2 cache.
const WINDOWS: usize = 96 << 10;
/// Rows that a task computes, at most.
const ROWS: usize = 512;
/// Tasks for each thread there should be at least.
const TASKS: usize = 2;
/// Rows that pay for the windows of a task.
const LEAST_ROWS: usize = 32;
/// Outputs of a task that pay for what it reads beyond them, and keep vectors full.
const LEAST_OUTPUTS: usize = 512;

/// `y[o] = Σ w·x[i(o)]`, entry by entry.
#[derive(Debug)]
pub(in crate::sparse) struct Direct {
    problem: Problem,
    /// Output channels of a group.
    rows: Pieces,
    /// Channels of a group whose windows are there at a time.
    channels: Pieces,
    areas: Vec<Area>,
    /// For each shape of box, the entries by piece of channels and output channel.
    tables: Vec<Table>,
}

/// A box of outputs.
#[derive(Debug)]
struct Area {
    outputs: Box3,
    window: Window,
    /// Which table.
    table: usize,
}

impl Direct {
    pub fn new<T: Element>(p: &Problem, passes: &mut Vec<Pass>) -> Result<(Self, Workers)> {
        let shifted = shifted_axes(&p.axes)?;
        let shifted = shifted.as_ref();
        let extents = p.axes.output_extents();
        let most_rows = p.outputs_per_group().min(ROWS);
        let window_len = |outputs: &Box3| Window::len_for(&p.axes, shifted, outputs);
        let fits =
            |outputs: &Box3| volume(outputs) * most_rows <= SUMS && window_len(outputs) <= WINDOW;
        // By the largest boxes, so that sums are rounded the same however these are divided.
        let longest = boxes(extents, fits).iter().map(window_len).max().unwrap_or(1);
        let at_a_time = (WINDOWS / longest.max(1)).clamp(1, p.channels_per_group());
        let channels = Pieces::new(p.channels_per_group(), at_a_time);
        // First smaller boxes, then fewer rows make more tasks.
        let threads = rayon::current_num_threads();
        let wanted = if threads > 1 { TASKS * threads } else { 1 };
        let others = p.batch * p.groups * p.outputs_per_group().div_ceil(most_rows);
        let share = (p.axes.outputs() * others).div_ceil(wanted).max(LEAST_OUTPUTS);
        let boxes = boxes(extents, |outputs| fits(outputs) && volume(outputs) <= share);
        let pieces = wanted.div_ceil((others * boxes.len()).max(1)).min(most_rows / LEAST_ROWS);
        let rows = Pieces::new(p.outputs_per_group(), most_rows.div_ceil(pieces.max(1)));

        let (pattern, order) = (&p.pattern, p.by_channels(at_a_time)?);
        let (mut shapes, mut tables, mut areas) = (Vec::new(), Vec::new(), Vec::new());
        for outputs in boxes {
            let window = Window::new(&p.axes, shifted, &outputs);
            let shape = outputs.each_ref().map(ExactSizeIterator::len);
            let table = match shapes.iter().position(|known| *known == shape) {
                Some(table) => table,
                None => {
                    let taps = p.axes.tap_extents();
                    let place = |entry: usize| {
                        let (channel, tap) = pattern.place(entry);
                        channel % at_a_time * window.len() + window.place(unravel(tap, taps))
                    };
                    tables.push(Table::new(&order, place)?);
                    shapes.push(shape);
                    shapes.len() - 1
                }
            };
            areas.push(Area { outputs, window, table });
        }
        let plan = Direct { problem: p.clone(), rows, channels, areas, tables };
        let (sums, data) = plan.areas.iter().fold((0, 0), |(sums, data), area| {
            let own = plan.sizes::<T>(area);
            (own.0.max(sums), own.1.max(data))
        });
        let room = Room::default().and::<T::Acc>(sums).and::<T::Acc>(data);
        let common = Room::default().and::<T::Acc>(widened::<T>(pattern.len()));
        let lanes = <T::Acc as RegisterTiles>::best_tiles().lanes;
        let how = format!("{} channels at a time, {lanes} lanes", channels.longest());
        let largest = plan.areas.iter().map(|area| volume(&area.outputs)).max().unwrap_or(0);
        let pass = Pass::on_cpu("multiply entries", plan.tasks());
        passes.push(pass.by(how).with_tile([rows.longest(), largest]));
        let workers = Workers::new(plan.tasks(), room).with_common(common);
        Ok((plan, workers))
    }

    fn tasks(&self) -> usize {
        let p = &self.problem;
        p.batch * p.groups * self.rows.count() * self.areas.len()
    }

    /// Elements of a task's sums and of its windows.
    fn sizes<T: Element>(&self, area: &Area) -> (usize, usize) {
        let Area { window, table, .. } = area;
        let lanes = <T::Acc as RegisterTiles>::best_tiles().lanes;
        let block = window.block_len().next_multiple_of(lanes);
        let last = (window.depth() - 1) * window.depth_step();
        let reached = last + self.tables[*table].reach::<T::Acc>(window.block_len());
        let windows = self.channels.longest() * window.len();
        (self.rows.longest() * window.depth() * block, windows.max(reached))
    }
}

impl WithValues for Direct {
    fn run<T: Element>(
        &self,
        workers: &Workers,
        x: &[T],
        values: &[T],
        bias: Option<&[T]>,
        y: &mut [T],
        memory: &mut [u8],
    ) -> Result<()> {
        let Direct { problem: p, rows, channels, areas, tables } = self;
        let (mut common, memory) = workers.split(memory);
        let values = widen(workers, values, &mut common)?;
        let lanes = <T::Acc as RegisterTiles>::best_tiles().lanes;
        let (xs, per_group) = (p.input_strides(), p.channels_per_group());
        let (layout, strides, extents) = (p.layout, p.output_strides(), p.axes.output_extents());
        let target = Target { data: Shared::new(y), layout, strides, extents };
        let radices = [p.batch, p.groups, rows.count(), areas.len()];
        workers.share_out(self.tasks(), memory, |task, scratch| {
            let [image, group, piece, number] = digits(task, radices);
            let area = &areas[number];
            let rows = shift(rows.get(piece), group * p.outputs_per_group());
            let (window, table) = (&area.window, &tables[area.table]);
            let (_, all) = self.sizes::<T>(area);
            let block = window.block_len().next_multiple_of(lanes);
            let pitch = window.depth() * block;
            let sums = scratch.take::<T::Acc>(rows.len() * pitch);
            let data = scratch.take::<T::Acc>(all);
            for (piece, channels) in channels.each().enumerate() {
                for (channel, copy) in channels.zip(data.chunks_exact_mut(window.len())) {
                    let plane = &x[xs.at(image, group * per_group + channel, 0)..];
                    window.fill(plane, xs.position, copy);
                }
                let first = piece * p.outputs;
                let table_rows = first + rows.start..first + rows.end;
                for d in 0..window.depth() {
                    let data = &data[d * window.depth_step()..];
                    let sums = &mut sums[d * block..];
                    let len = window.block_len();
                    table.multiply(table_rows.clone(), values, data, len, sums, pitch, piece > 0);
                }
            }
            let line = window.line();
            let sums = Sums { data: sums, pitch, block, line, place: &area.outputs };
            // SAFETY: each task has rows and outputs of its own.
            unsafe { target.write(image, rows, sums, bias) };
            Ok(())
        })
    }
}
