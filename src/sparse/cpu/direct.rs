//! Direct sparse convolution: register tiles sum up a row's entries over a padded copy of the input.
//!
//! A task copies what a box of outputs reads of all channels of a group, padded (its windows), and goes over
//! the box strip by strip: a few lines, as many as the widest tile has in registers. For each strip it takes a
//! few channels at a time, of which what the strip reads stays in the L1 cache while all rows take it.

use super::sums::{Sums, Target};
use super::table::{RowSums, Table, arrange, room};
use super::window::{Window, shifted_axes};
use crate::conv::WithWeight;
use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::geometry::{Box3, unravel, volume};
use crate::patches::division::divide;
use crate::patches::pieces::{Pieces, digits, shift};
use crate::plan::Pass;
use crate::product::cpu::{Old, RegisterTiles, Tiles};
use crate::sparse::problem::Problem;
use crate::stream;
use crate::workers::{Room, Shared, Workers};

/// Elements in the windows of a group's channels, at most, unless a single strip has more: they stay in a core's
/// L2 cache.
const WINDOWS: usize = 128 << 10;
/// Elements that a strip reads of one channel, at most, unless a single output has more.
const WINDOW: usize = 32 << 10;
/// Sums of a strip, at most, unless a single output has more.
const SUMS: usize = 256 << 10;
/// Bytes of what a strip reads of the channels that are taken together, at most, unless a single channel has
/// more: they stay in L1.
const STRIP_BYTES: usize = 36 << 10;
/// Rows that a task computes, at most.
const ROWS: usize = 256;

/// `y[o] = Σ w·x[i(o)]`, entry by entry.
#[derive(Debug)]
pub(in crate::sparse) struct Direct {
    problem: Problem,
    /// Output channels of a group.
    rows: Pieces,
    /// Channels of a group that are taken together.
    channels: Pieces,
    areas: Vec<Area>,
    /// For each shape of box, the entries by piece of channels and output channel.
    tables: Vec<Table>,
    /// The entries in the tables' order.
    order: Vec<usize>,
    /// Whether results are written past the caches.
    streaming: bool,
}

/// A box of outputs.
#[derive(Debug)]
struct Area {
    outputs: Box3,
    window: Window,
    /// Which table.
    table: usize,
    /// The lines of each outer output.
    strips: Pieces,
}

impl Direct {
    pub fn new<T: Element>(p: &Problem, passes: &mut Vec<Pass>) -> Result<(Self, Workers)> {
        let tiles = <T::Acc as RegisterTiles>::best_tiles();
        let (pattern, per_group) = (&p.pattern, p.channels_per_group());
        let shifted = shifted_axes(&p.axes)?;
        let shifted = shifted.as_ref();
        let extents = p.axes.output_extents();
        let window_len = |outputs: &Box3| Window::len_for(&p.axes, shifted, outputs);
        let line = shifted.map_or(extents[2], |padded| padded[2].outputs());
        let lines = strip_of(line, extents[1], tiles);
        let most_rows = p.outputs_per_group().min(ROWS);
        let fits = |outputs: &Box3| {
            let strip = outputs[0].len() == 1 && outputs[1].len() <= lines;
            let sums = outputs[1].len().min(lines) * outputs[2].len() * most_rows;
            let len = window_len(outputs);
            sums <= SUMS && (len * per_group <= WINDOWS || strip && len <= WINDOW)
        };
        let others = p.batch * p.groups;
        let (boxes, rows) = divide(extents, p.outputs_per_group(), ROWS, others, fits);

        // Of whole strips, so that sums are rounded the same however boxes are divided for threads.
        let strip = [0..1, 0..lines, 0..extents[2]];
        let (positions, tile) = (lines * line, tiles.entries.kernels[0].0 * tiles.lanes);
        let read = window_len(&strip) * tile.min(positions) / positions.max(1);
        let most = STRIP_BYTES / size_of::<T::Acc>() / read.max(1);
        let channels = Pieces::new(per_group, most.clamp(1, per_group));

        let order = p.by_channels(channels.longest())?;
        let (mut shapes, mut tables, mut areas) = (Vec::new(), Vec::new(), Vec::new());
        for outputs in boxes {
            let window = Window::new(&p.axes, shifted, &outputs);
            let shape = outputs.each_ref().map(ExactSizeIterator::len);
            let table = match shapes.iter().position(|known| *known == shape) {
                Some(table) => table,
                None => {
                    let taps = p.axes.tap_extents();
                    tables.push(Table::new(&order, |entry| {
                        let (channel, tap) = pattern.place(entry);
                        channel * window.len() + window.place(unravel(tap, taps))
                    })?);
                    shapes.push(shape);
                    shapes.len() - 1
                }
            };
            let strips = Pieces::new(outputs[1].len(), lines);
            areas.push(Area { outputs, window, table, strips });
        }
        let results = p.batch * p.outputs * p.axes.outputs() * size_of::<T>();
        let streaming = stream::worthwhile(results) && T::as_acc(&[]).is_some();
        let (order, problem) = (order.order, p.clone());
        let plan = Direct { problem, rows, channels, areas, tables, order, streaming };
        let sizes = plan.areas.iter().map(|area| {
            let (sums, data) = plan.sizes::<T>(area);
            Room::default().and::<T::Acc>(rows.longest() * sums).and::<T::Acc>(data)
        });
        let own = sizes.fold(Room::default(), Room::or);
        let stores = if streaming { ", stores past the caches" } else { "" };
        let how =
            format!("{} channels at a time, {} lanes{stores}", channels.longest(), tiles.lanes);
        let largest = plan.areas.iter().map(|area| volume(&area.outputs)).max().unwrap_or(0);
        let pass = Pass::on_cpu("multiply entries", plan.tasks());
        passes.push(pass.by(how).with_tile([rows.longest(), largest]));
        let workers = Workers::new(plan.tasks(), own).with_common(room::<T>(pattern.len()));
        Ok((plan, workers))
    }

    fn tasks(&self) -> usize {
        let p = &self.problem;
        p.batch * p.groups * self.rows.count() * self.areas.len()
    }

    /// Elements of a row's sums, and of a task's windows with what vectors read behind them.
    fn sizes<T: Element>(&self, area: &Area) -> (usize, usize) {
        let Area { window, strips, table, .. } = area;
        let lanes = <T::Acc as RegisterTiles>::best_tiles().lanes;
        let strip = (strips.longest() * window.line()).next_multiple_of(lanes);
        let last = (window.depth() - 1) * window.depth_step() + window.block_len();
        let reached = last + self.tables[*table].reach::<T::Acc>(0) + lanes;
        (strip, reached.max(self.problem.channels_per_group() * window.len()))
    }
}

/// Lines of a strip, of which there are so many in a box: those that fill the vectors of a tile best.
fn strip_of<A: Accumulator>(line: usize, lines: usize, tiles: &Tiles<A>) -> usize {
    let most = tiles.entries.kernels[0].0 * tiles.lanes / line.max(1);
    let wasted = |lines: usize| {
        let len = lines * line;
        (len.next_multiple_of(tiles.lanes) - len) as f64 / len.max(1) as f64
    };
    // Few lines read more beyond them: they have to waste less than most of them by a tenth.
    let better = |&a: &usize, &b: &usize| {
        let cost = |lines: usize| wasted(lines) + 0.2 / lines as f64;
        cost(a).total_cmp(&cost(b))
    };
    (1..=most.clamp(1, lines.max(1))).min_by(better).unwrap_or(1)
}

impl WithWeight for Direct {
    fn run<T: Element>(
        &self,
        workers: &Workers,
        x: &[T],
        values: &[T],
        bias: Option<&[T]>,
        y: &mut [T],
        memory: &mut [u8],
    ) -> Result<()> {
        let Direct { problem: p, rows, channels, areas, tables, order, streaming } = self;
        let (mut common, memory) = workers.split(memory);
        let values = arrange(workers, values, order, &mut common)?;
        let (xs, per_group) = (p.input_strides(), p.channels_per_group());
        let (layout, strides, extents) = (p.layout, p.output_strides(), p.axes.output_extents());
        let (data, streaming) = (Shared::new(y), *streaming);
        let target = Target { data, layout, strides, extents, streaming };
        let radices = [p.batch, p.groups, rows.count(), areas.len()];
        workers.share_out(self.tasks(), memory, |task, scratch| {
            let [image, group, piece, number] = digits(task, radices);
            let area = &areas[number];
            let Area { outputs, window, table, strips } = area;
            let rows = shift(rows.get(piece), group * p.outputs_per_group());
            let (pitch, all) = self.sizes::<T>(area);
            let sums = scratch.take::<T::Acc>(rows.len() * pitch);
            let data = scratch.take::<T::Acc>(all);
            for (channel, copy) in (0..per_group).zip(data.chunks_exact_mut(window.len())) {
                let plane = &x[xs.at(image, group * per_group + channel, 0)..];
                window.fill(plane, xs.position, copy);
            }
            for (d, lines) in (0..window.depth()).flat_map(|d| strips.each().map(move |s| (d, s))) {
                let data = &data[d * window.depth_step() + lines.start * window.line()..];
                for piece in 0..channels.count() {
                    let old = if piece == 0 { Old::Replaced } else { Old::Kept };
                    let first = piece * p.outputs;
                    let rows = first + rows.start..first + rows.end;
                    let len = lines.len() * window.line();
                    let sums = RowSums { data: &mut *sums, pitch, old };
                    tables[*table].multiply(rows, values, data, len, sums);
                }
                let (d, h) = (outputs[0].start + d, outputs[1].start);
                let place = [d..d + 1, shift(lines, h), outputs[2].clone()];
                let sums = Sums { data: &mut *sums, pitch, line: window.line(), place: &place };
                // SAFETY: each task has rows and outputs of its own.
                unsafe { target.write(image, rows.clone(), sums, bias) };
            }
            target.finish();
            Ok(())
        })
    }
}
