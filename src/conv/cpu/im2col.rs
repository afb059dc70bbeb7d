//! Patches and matrix products, a tile at a time: `y = W·A`, `dx = fold(Wᵀ·dy)`, `dW = dy·Aᵀ`.
//!
//! A tile is a box of output positions of one image, or all positions of several small images, and as
//! many patch entries as keep it in a core's L2 cache. The patch matrix as a whole is never stored: a
//! worker's memory is a few MiB whatever the shape. Both layouts are the same products, with tiles
//! transposed.

use std::ops::Range;

use super::parts::{Parts, Task, Write};
use super::runs::{self, read, step, widened, widens};
use crate::conv::problem::Problem;
use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::geometry::{Box3, Layout, unravel, volume};
use crate::patches::entries::{Entries, longest};
use crate::patches::gather::Gather;
use crate::patches::landing::Landing;
use crate::patches::pieces::{Pieces, digits, shift};
use crate::patches::slab::{Slab, boxes, largest, positions};
use crate::plan::Pass;
use crate::product::cpu::{Dimensions, Matrix, MatrixMut, Old, gemm};
use crate::workers::{Room, Scratch, Shared, Workers};

/// Output positions in a tile, at most.
const COLUMNS: usize = 512;
/// Patch entries in a tile, at most.
const ROWS: usize = 512;
/// Output channels that a task computes at a time, at most.
const OUTPUTS: usize = 256;
/// Elements in the slab of one channel, unless a single line has more.
const SLAB: usize = 64 << 10;
/// Elements of the input's gradient that a task sums up, unless a single channel of one line has more.
const SUMS: usize = 256 << 10;
/// Elements of an operand that may have to be copied to be widened.
const OPERAND: usize = 512 << 10;
/// Tasks that a call is cut into, at least, where that is a matter of choice.
const TASKS: usize = 8;

/// The tiles that the outputs of all images are cut into.
#[derive(Debug)]
struct Tiling {
    boxes: Vec<Box3>,
    /// The images of a tile; more than one only if a tile has all their positions.
    images: Pieces,
}

impl Tiling {
    /// Tiles of at most `columns` columns, for tasks of which there are `others` per tile.
    fn new(p: &Problem, columns: usize, others: usize) -> Self {
        let boxes = boxes(p.output_extents(), |outputs| {
            volume(outputs) <= columns && Slab::len_for(&p.axes, outputs) <= SLAB
        });
        let images = match &boxes[..] {
            [all] => (columns / volume(all).max(1))
                .min((p.batch * others).div_ceil(TASKS))
                .clamp(1, p.batch.max(1)),
            _ => 1,
        };
        Tiling { boxes, images: Pieces::new(p.batch, images) }
    }

    /// Number of tiles.
    fn len(&self) -> usize {
        self.boxes.len() * self.images.count()
    }

    fn get(&self, tile: usize) -> Tile<'_> {
        let [images, number] = digits(tile, [self.images.count(), self.boxes.len()]);
        Tile { images: self.images.get(images), number, outputs: &self.boxes[number] }
    }

    /// Columns of the largest tile.
    fn columns(&self) -> usize {
        self.images.longest() * largest(&self.boxes)
    }

    /// What gathers each box's patches.
    fn gathers(&self, p: &Problem) -> Vec<Gather> {
        let images = p.images();
        self.boxes.iter().map(|outputs| Gather::new(&images, outputs.clone())).collect()
    }

    /// Elements of memory that [`read_tile`] takes for so many channels.
    fn read_len<T: Element>(&self, channels: usize) -> usize {
        let copied = widens::<T>() || self.images.longest() > 1;
        if copied { channels * self.columns() } else { 0 }
    }
}

/// The same output positions of some images.
struct Tile<'a> {
    images: Range<usize>,
    /// Which box it is.
    number: usize,
    outputs: &'a Box3,
}

impl Tile<'_> {
    /// Positions over all images.
    fn columns(&self) -> usize {
        self.images.len() * volume(self.outputs)
    }

    /// Each image, and where its columns start in a contiguous matrix of `rows` × columns, in the
    /// layout's orientation.
    fn each_image(&self, layout: Layout, rows: usize) -> impl Iterator<Item = (usize, usize)> {
        let columns = volume(self.outputs) * if layout == Layout::ChannelsFirst { 1 } else { rows };
        self.images.clone().enumerate().map(move |(index, n)| (n, index * columns))
    }
}

/// A tile of outputs (or their gradient) as a matrix of channels × columns.
fn read_tile<'a, T: Element>(
    p: &Problem,
    y: &'a [T],
    tile: &Tile,
    outputs: Range<usize>,
    copy: &'a mut [T::Acc],
) -> Matrix<'a, T::Acc> {
    let range = positions(tile.outputs, p.output_extents());
    let runs = |n: usize| runs::output(p, n, outputs.clone(), range.clone());
    if tile.images.len() == 1 {
        return read(p.layout, y, runs(tile.images.start), copy);
    }
    let (rows, columns) = (outputs.len(), tile.columns());
    let (copy, step) = (&mut copy[..rows * columns], step(p.layout, rows, columns));
    for (n, start) in tile.each_image(p.layout, rows) {
        let runs = runs(n);
        for run in 0..runs.count {
            let target = &mut copy[start + run * step..][..runs.len];
            T::widen(&y[runs.start + run * runs.step..][..runs.len], target);
        }
    }
    Matrix::of_runs(p.layout, copy, step)
}

/// How a pass is made, for people.
fn describe<T: Element>(images: usize, widened: &str) -> String {
    let images = if images == 1 { String::new() } else { format!(", {images} images a tile") };
    let widened = if widens::<T>() {
        format!(", {widened} widened to {}", <T::Acc as Element>::DTYPE)
    } else {
        String::new()
    };
    format!("products by faer{images}{widened}")
}

/// `y = W·A + b`.
#[derive(Debug)]
pub(crate) struct Forward {
    problem: Problem,
    tiling: Tiling,
    gathers: Vec<Gather>,
    entries: Vec<Entries>,
    /// A group's output channels.
    rows: Pieces,
}

impl Forward {
    pub fn new<T: Element>(p: &Problem, passes: &mut Vec<Pass>) -> (Self, Workers) {
        let rows = Pieces::new(p.outputs_per_group(), OUTPUTS);
        let tiling = Tiling::new(p, COLUMNS, p.groups * rows.count());
        let gathers = tiling.gathers(p);
        let entries = Entries::cut(&p.images(), 0..p.channels_per_group(), ROWS);
        let (columns, terms) = (tiling.columns(), longest(&entries));
        let room = Room::default()
            .and::<T::Acc>(rows.longest() * columns)
            .and::<T::Acc>(terms * columns)
            .and::<T::Acc>(slab_len(&gathers))
            .and::<T::Acc>(widened::<T>(rows.longest() * terms));
        let how = describe::<T>(tiling.images.longest(), "weights");
        let plan = Forward { problem: p.clone(), tiling, gathers, entries, rows };
        let pass = Pass::on_cpu("gather and multiply", plan.tasks()).by(how);
        passes.push(pass.with_tile([rows.longest(), columns]));
        let workers = Workers::new(plan.tasks(), room);
        (plan, workers)
    }

    fn tasks(&self) -> usize {
        self.tiling.len() * self.problem.groups * self.rows.count()
    }

    pub fn run<T: Element>(
        &self,
        workers: &Workers,
        x: &[T],
        w: &[T],
        bias: Option<&[T]>,
        y: &mut [T],
        memory: &mut [u8],
    ) -> Result<()> {
        let Forward { problem: p, tiling, gathers, entries, rows } = self;
        let outputs = p.outputs_per_group();
        let y = Shared::new(y);
        workers.share_out(self.tasks(), memory, |task, scratch| {
            let [tile, group, piece] = digits(task, [tiling.len(), p.groups, rows.count()]);
            let tile = tiling.get(tile);
            let rows = shift(rows.get(piece), group * outputs);
            let gather = &gathers[tile.number];
            let columns = tile.columns();
            let step = step(p.layout, rows.len(), columns);
            let terms = longest(entries);
            let sums = scratch.take::<T::Acc>(rows.len() * columns);
            let patches = scratch.take::<T::Acc>(terms * columns);
            let slab = scratch.take::<T::Acc>(gather.slab_len());
            let wide = scratch.take::<T::Acc>(widened::<T>(rows.len() * terms));
            for (index, entries) in entries.iter().enumerate() {
                let patches = gather.gather(x, &tile.images, group, entries, slab, patches);
                let weights = runs::weight(p, rows.clone(), entries.range());
                let weights = read(p.layout, w, weights, wide);
                let old = if index == 0 { Old::Replaced } else { Old::Kept };
                let target = MatrixMut::of_runs(p.layout, sums, step);
                let size = Dimensions { rows: rows.len(), columns, terms: entries.len() };
                gemm(size, weights, patches, target, old);
            }
            let bias = bias.map(|bias| &bias[rows.clone()]);
            let range = positions(tile.outputs, p.output_extents());
            for (n, start) in tile.each_image(p.layout, rows.len()) {
                let target = runs::output(p, n, rows.clone(), range.clone());
                // SAFETY: each task has outputs of its own.
                unsafe { runs::write(p.layout, &mut sums[start..], step, bias, &y, target) };
            }
            Ok(())
        })
    }
}

/// Elements of the largest slab.
fn slab_len(gathers: &[Gather]) -> usize {
    gathers.iter().map(Gather::slab_len).max().unwrap_or(0)
}

/// `dx = fold(Wᵀ·dy) + b`.
#[derive(Debug)]
pub(crate) struct BackwardInput {
    problem: Problem,
    tiling: Tiling,
    /// The boxes of inputs that tasks sum up, and the tiles that land in each.
    inputs: Vec<Box3>,
    landings: Vec<Vec<(usize, Landing)>>,
    /// A group's channels, and the patch entries of each piece of them.
    channels: Pieces,
    entries: Vec<Vec<Entries>>,
}

impl BackwardInput {
    pub fn new<T: Element>(p: &Problem, passes: &mut Vec<Pass>) -> (Self, Workers) {
        let (channels, outputs) = (p.channels_per_group(), p.outputs_per_group());
        // All outputs of the group are summed over at once.
        let limit = (OPERAND / outputs).max(1);
        let tiling = Tiling::new(p, limit.min(COLUMNS), p.groups * channels);
        let inputs = boxes(p.input_extents(), |inputs| volume(inputs) <= SUMS);
        let images = tiling.images.longest().max(1);
        let tasks = tiling.images.count() * p.groups * inputs.len();
        let at_a_time = (SUMS / (largest(&inputs).max(1) * images))
            .min((channels * tasks).div_ceil(TASKS))
            .clamp(1, channels);
        let landings = Landing::between(&p.images(), &tiling.boxes, &inputs);
        let channels = Pieces::new(channels, at_a_time);
        let of = p.images();
        let entries: Vec<_> =
            channels.each().map(|piece| Entries::cut(&of, piece, limit.min(ROWS))).collect();
        let rows = entries.iter().map(|entries| longest(entries)).max().unwrap_or(0);
        let room = Room::default()
            .and::<T::Acc>(images * channels.longest() * largest(&inputs))
            .and::<T::Acc>(rows * tiling.columns())
            .and::<T::Acc>(tiling.read_len::<T>(outputs))
            .and::<T::Acc>(widened::<T>(outputs * rows));
        let tile = [channels.longest(), images * largest(&inputs)];
        let how = describe::<T>(images, "weights and gradients");
        let plan =
            BackwardInput { problem: p.clone(), tiling, inputs, landings, channels, entries };
        passes.push(Pass::on_cpu("multiply and fold", plan.tasks()).by(how).with_tile(tile));
        let workers = Workers::new(plan.tasks(), room);
        (plan, workers)
    }

    fn tasks(&self) -> usize {
        let images = self.tiling.images.count();
        images * self.problem.groups * self.channels.count() * self.inputs.len()
    }

    pub fn run<T: Element>(
        &self,
        workers: &Workers,
        dy: &[T],
        w: &[T],
        bias: Option<&[T]>,
        dx: &mut [T],
        memory: &mut [u8],
    ) -> Result<()> {
        let BackwardInput { problem: p, tiling, inputs, landings, channels, entries } = self;
        let outputs = p.outputs_per_group();
        let radices = [tiling.images.count(), p.groups, channels.count(), inputs.len()];
        let dx = Shared::new(dx);
        workers.share_out(self.tasks(), memory, |task, scratch| {
            let [images, group, piece, area] = digits(task, radices);
            let (entries, landings, area) = (&entries[piece], &landings[area], &inputs[area]);
            let channel = channels.get(piece);
            let rows = shift(0..outputs, group * outputs);
            let len = channel.len() * volume(area);
            let images = tiling.images.get(images);
            let sums = scratch.zeros::<T::Acc>(images.len() * len);
            let product = scratch.take::<T::Acc>(longest(entries) * tiling.columns());
            let wide = scratch.take::<T::Acc>(tiling.read_len::<T>(outputs));
            let wide_weights = scratch.take::<T::Acc>(widened::<T>(outputs * longest(entries)));
            for (number, landing) in landings {
                let outputs_box = &tiling.boxes[*number];
                let tile = Tile { images: images.clone(), number: *number, outputs: outputs_box };
                let columns = tile.columns();
                let dy = read_tile(p, dy, &tile, rows.clone(), wide);
                for entries in entries {
                    let weights = runs::weight(p, rows.clone(), entries.range());
                    let weights = read(p.layout, w, weights, wide_weights);
                    let product = &mut product[..entries.len() * columns];
                    let step = step(p.layout, entries.len(), columns);
                    let target = MatrixMut::of_runs(p.layout, product, step);
                    let size = Dimensions { rows: entries.len(), columns, terms: outputs };
                    gemm(size, weights.t(), dy, target, Old::Replaced);
                    for ((_, start), sums) in
                        tile.each_image(p.layout, entries.len()).zip(sums.chunks_exact_mut(len))
                    {
                        add_product(p, landing, entries, &product[start..], step, &channel, sums);
                    }
                }
            }
            let channel = shift(channel, group * p.channels_per_group());
            let bias = bias.map(|bias| &bias[channel.clone()]);
            let range = positions(area, p.input_extents());
            for (n, sums) in images.zip(sums.chunks_exact_mut(len)) {
                let target = runs::input(p, n, channel.clone(), range.clone());
                // SAFETY: each task has inputs of its own.
                unsafe { runs::write(p.layout, sums, target.len, bias, &dx, target) };
            }
            Ok(())
        })
    }
}

/// Adds patch entries by the outputs of one image to the sums of the task's `channels`.
fn add_product<A: Accumulator>(
    p: &Problem,
    landing: &Landing,
    entries: &Entries,
    product: &[A],
    step: usize,
    channels: &Range<usize>,
    sums: &mut [A],
) {
    let first = entries.channels.start - channels.start;
    let (count, taps) = (entries.channels.len(), entries.taps.len());
    let inputs = sums.len() / channels.len();
    for (index, tap) in entries.taps.clone().enumerate() {
        let tap = unravel(tap, p.tap_extents());
        match p.layout {
            Layout::ChannelsFirst => {
                let product = &product[index * step..];
                let sums = &mut sums[first * inputs..];
                landing.add(tap, count, step * taps, product, inputs, sums);
            }
            Layout::ChannelsLast => {
                let product = &product[index * count..];
                let sums = &mut sums[first..];
                landing.add(tap, count, step, product, channels.len(), sums);
            }
        }
    }
}

/// `dW = dy·Aᵀ`.
#[derive(Debug)]
pub(crate) struct BackwardWeight {
    problem: Problem,
    tiling: Tiling,
    gathers: Vec<Gather>,
    /// Elements of the largest slab.
    slab_len: usize,
    entries: Vec<Entries>,
    /// A group's output channels.
    rows: Pieces,
    parts: Parts,
}

impl BackwardWeight {
    pub fn new<T: Element>(p: &Problem, passes: &mut Vec<Pass>) -> (Self, Workers) {
        let entries = Entries::cut(&p.images(), 0..p.channels_per_group(), ROWS);
        let rows = Pieces::new(p.outputs_per_group(), OUTPUTS);
        let pieces = p.groups * rows.count() * entries.len();
        let tiling = Tiling::new(p, COLUMNS, pieces);
        let gathers = tiling.gathers(p);
        let parts = Parts::new::<T>(p, pieces, tiling.len());
        let (terms, slab_len) = (longest(&entries), slab_len(&gathers));
        let room = Room::default()
            .and::<T::Acc>(rows.longest() * terms)
            .and::<T::Acc>(terms * tiling.columns())
            .and::<T::Acc>(slab_len)
            .and::<T::Acc>(tiling.read_len::<T>(rows.longest()));
        let how = describe::<T>(tiling.images.longest(), "gradients");
        let pass = Pass::on_cpu("gather and multiply", parts.tasks()).by(how);
        passes.push(pass.with_tile([rows.longest(), terms]));
        parts.explain(passes);
        let workers = parts.workers::<T>(room);
        let problem = p.clone();
        (BackwardWeight { problem, tiling, gathers, slab_len, entries, rows, parts }, workers)
    }

    pub fn run<T: Element>(
        &self,
        workers: &Workers,
        x: &[T],
        dy: &[T],
        dw: &mut [T],
        memory: &mut [u8],
    ) -> Result<()> {
        let BackwardWeight { problem: p, tiling, gathers, entries, rows, parts, .. } = self;
        let outputs = p.outputs_per_group();
        let sum = |task: Task, scratch: &mut Scratch, write: Write<'_, T::Acc>| {
            let [group, piece, number] =
                digits(task.piece, [p.groups, rows.count(), entries.len()]);
            let entries = &entries[number];
            let rows = shift(rows.get(piece), group * outputs);
            let step = step(p.layout, rows.len(), entries.len());
            let sums = scratch.zeros::<T::Acc>(rows.len() * entries.len());
            let patches = scratch.take::<T::Acc>(entries.len() * tiling.columns());
            let slab = scratch.take::<T::Acc>(self.slab_len);
            let copy = scratch.take::<T::Acc>(tiling.read_len::<T>(rows.len()));
            for tile in task.tiles.map(|tile| tiling.get(tile)) {
                let gather = &gathers[tile.number];
                let patches = gather.gather(x, &tile.images, group, entries, slab, patches);
                let dy = read_tile(p, dy, &tile, rows.clone(), copy);
                let target = MatrixMut::of_runs(p.layout, sums, step);
                let terms = tile.columns();
                let size = Dimensions { rows: rows.len(), columns: entries.len(), terms };
                gemm(size, dy, patches.t(), target, Old::Kept);
            }
            write(rows, entries.range(), sums);
            Ok(())
        };
        // SAFETY: pieces are disjoint ranges of the outputs and patch entries, each written by itself.
        unsafe { parts.sum(workers, dw, memory, sum) }
    }
}
