//! Patches and matrix products, a tile at a time: `y = W·A`, `dx = fold(Wᵀ·dy)`, `dW = dy·Aᵀ`.
//!
//! A tile is a box of output positions of one image, or all positions of several small images, and as
//! many patch entries as keep it in a core's L2 cache. The patch matrix as a whole is never stored: a
//! thread's workspace is a few MiB whatever the shape. Both layouts are the same products, with tiles
//! transposed.

use std::ops::Range;

use rayon::prelude::*;

use super::gemm::{Matrix, Old, gemm};
use super::partial::{Part, Workspace, Write, sum_over_tiles};
use super::patches::{Block, Gather, blocks};
use super::runs::{
    self, Scratch, Shared, digits, oriented, oriented_mut, piece, read, room, shift, zeros,
};
use super::tiles::{Landing, input_boxes, output_boxes, positions};
use crate::conv::problem::Problem;
use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::geometry::{Box3, Layout, unravel, volume};

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
struct Tiling {
    boxes: Vec<Box3>,
    /// Images in a tile; more than one only if a tile has all their positions.
    images: usize,
    batch: usize,
}

impl Tiling {
    /// Tiles of at most `columns` columns, for tasks of which there are `others` per tile.
    fn new(p: &Problem, columns: usize, others: usize) -> Self {
        let boxes = output_boxes(p, columns, SLAB);
        let images = match &boxes[..] {
            [all] => (columns / volume(all).max(1))
                .min((p.batch * others).div_ceil(TASKS))
                .clamp(1, p.batch.max(1)),
            _ => 1,
        };
        Tiling { boxes, images, batch: p.batch }
    }

    /// Number of tiles.
    fn len(&self) -> usize {
        self.boxes.len() * self.image_blocks()
    }

    fn image_blocks(&self) -> usize {
        self.batch.div_ceil(self.images)
    }

    fn get(&self, tile: usize) -> Tile<'_> {
        let [block, part] = digits(tile, [self.image_blocks(), self.boxes.len()]);
        Tile { images: piece(self.batch, self.images, block), part: &self.boxes[part] }
    }
}

/// The same output positions of some images.
#[derive(Clone)]
struct Tile<'a> {
    images: Range<usize>,
    part: &'a Box3,
}

impl Tile<'_> {
    /// Positions over all images.
    fn columns(&self) -> usize {
        self.images.len() * volume(self.part)
    }

    /// Each image with the part of a contiguous matrix of `rows` × columns, in the layout's
    /// orientation, that starts with its first column.
    fn each_image(&self, layout: Layout, rows: usize) -> impl Iterator<Item = (usize, usize)> {
        let columns = volume(self.part) * if layout == Layout::ChannelsFirst { 1 } else { rows };
        self.images.clone().enumerate().map(move |(index, n)| (n, index * columns))
    }
}

/// The distance between the runs of a contiguous matrix in the layout's orientation.
fn step(layout: Layout, rows: usize, columns: usize) -> usize {
    if layout == Layout::ChannelsFirst { columns } else { rows }
}

/// A tile of outputs (or their gradient) as a matrix of channels × columns.
fn read_tile<'a, T: Element>(
    p: &Problem,
    y: &'a [T],
    tile: &Tile,
    outputs: Range<usize>,
    scratch: &'a mut Scratch<T::Acc>,
) -> Result<Matrix<'a, T::Acc>> {
    let range = positions(tile.part, p.output_extents());
    let runs = |n: usize| runs::output(p, n, outputs.clone(), range.clone());
    if tile.images.len() == 1 {
        return read(p.layout, y, runs(tile.images.start), scratch);
    }
    let (rows, columns) = (outputs.len(), tile.columns());
    let (copy, step) = (room(scratch, rows * columns)?, step(p.layout, rows, columns));
    for (n, start) in tile.each_image(p.layout, rows) {
        let runs = runs(n);
        for run in 0..runs.count {
            let target = &mut copy[start + run * step..][..runs.len];
            T::widen(&y[runs.start + run * runs.step..][..runs.len], target);
        }
    }
    Ok(oriented(p.layout, copy, step))
}

pub(super) fn forward<T: Element>(
    p: &Problem,
    x: &[T],
    w: &[T],
    bias: Option<&[T]>,
    y: &mut [T],
) -> Result<()> {
    let outputs = p.outputs_per_group();
    let row_blocks = outputs.div_ceil(OUTPUTS);
    let tiling = Tiling::new(p, COLUMNS, p.groups * row_blocks);
    let blocks = blocks(p, 0..p.channels_per_group(), ROWS);
    let radices = [tiling.len(), p.groups, row_blocks];
    let y = Shared::new(y);
    let init = || [const { Scratch::<T::Acc>::new() }; 4];
    (0..radices.iter().product()).into_par_iter().try_for_each_init(init, |scratch, task| {
        let [sums, patches, slab, wide] = scratch;
        let [tile, group, rows] = digits(task, radices);
        let tile = tiling.get(tile);
        let rows = shift(piece(outputs, OUTPUTS, rows), group * outputs);
        let gather = Gather::new(p, tile.images.clone(), tile.part, group);
        let columns = tile.columns();
        let step = step(p.layout, rows.len(), columns);
        let sums = room(sums, rows.len() * columns)?;
        for (index, block) in blocks.iter().enumerate() {
            let patches = gather.gather(x, block, slab, patches)?;
            let weights = read(p.layout, w, runs::weight(p, rows.clone(), block.entries()), wide)?;
            let old = if index == 0 { Old::Replaced } else { Old::Kept };
            let target = oriented_mut(p.layout, sums, step);
            gemm([rows.len(), columns, block.len()], weights, patches, target, old);
        }
        let bias = bias.map(|bias| &bias[rows.clone()]);
        let range = positions(tile.part, p.output_extents());
        for (n, start) in tile.each_image(p.layout, rows.len()) {
            let target = runs::output(p, n, rows.clone(), range.clone());
            // SAFETY: each task has outputs of its own.
            unsafe { runs::write(p.layout, &mut sums[start..], step, bias, &y, target) };
        }
        Ok(())
    })
}

pub(super) fn backward_input<T: Element>(
    p: &Problem,
    dy: &[T],
    w: &[T],
    bias: Option<&[T]>,
    dx: &mut [T],
) -> Result<()> {
    let (channels, outputs) = (p.channels_per_group(), p.outputs_per_group());
    // All outputs of the group are summed over at once.
    let limit = (OPERAND / outputs).max(1);
    let tiling = Tiling::new(p, limit.min(COLUMNS), p.groups * channels);
    let parts = input_boxes(p, SUMS);
    let largest = parts.iter().map(volume).max().unwrap_or(1);
    let tasks = tiling.image_blocks() * p.groups * parts.len();
    let at_a_time = (SUMS / (largest * tiling.images))
        .min((channels * tasks).div_ceil(TASKS))
        .clamp(1, channels);
    let radices = [tiling.image_blocks(), p.groups, channels.div_ceil(at_a_time), parts.len()];
    let dx = Shared::new(dx);
    let init = || [const { Scratch::<T::Acc>::new() }; 4];
    (0..radices.iter().product()).into_par_iter().try_for_each_init(init, |scratch, task| {
        let [sums, product, wide, wide_weights] = scratch;
        let [images, group, channel, part] = digits(task, radices);
        let (channel, part) = (piece(channels, at_a_time, channel), &parts[part]);
        let rows = shift(0..outputs, group * outputs);
        let inputs = channel.len() * volume(part);
        let images = piece(p.batch, tiling.images, images);
        let sums = zeros(sums, images.len() * inputs)?;
        for outputs_box in &tiling.boxes {
            let landing = Landing::new(p, outputs_box, part);
            if landing.is_empty() {
                continue;
            }
            let tile = Tile { images: images.clone(), part: outputs_box };
            let columns = tile.columns();
            let dy = read_tile(p, dy, &tile, rows.clone(), wide)?;
            for block in blocks(p, channel.clone(), limit.min(ROWS)) {
                let weights = runs::weight(p, rows.clone(), block.entries());
                let weights = read(p.layout, w, weights, wide_weights)?;
                let product = room(product, block.len() * columns)?;
                let step = step(p.layout, block.len(), columns);
                let target = oriented_mut(p.layout, product, step);
                gemm([block.len(), columns, outputs], weights.t(), dy, target, Old::Replaced);
                for ((_, start), sums) in
                    tile.each_image(p.layout, block.len()).zip(sums.chunks_exact_mut(inputs))
                {
                    add_block(p, &landing, &block, &product[start..], step, &channel, sums);
                }
            }
        }
        let channel = shift(channel, group * channels);
        let bias = bias.map(|bias| &bias[channel.clone()]);
        let range = positions(part, p.input_extents());
        for (n, sums) in images.zip(sums.chunks_exact_mut(inputs)) {
            let target = runs::input(p, n, channel.clone(), range.clone());
            // SAFETY: each task has inputs of its own.
            unsafe { runs::write(p.layout, sums, target.len, bias, &dx, target) };
        }
        Ok(())
    })
}

/// Adds a block of patch entries by the outputs of one image to the sums of the task's `channels`.
fn add_block<A: Accumulator>(
    p: &Problem,
    landing: &Landing,
    block: &Block,
    product: &[A],
    product_step: usize,
    channels: &Range<usize>,
    sums: &mut [A],
) {
    let first = block.channels.start - channels.start;
    let (count, taps) = (block.channels.len(), block.taps.len());
    let inputs = sums.len() / channels.len();
    for (index, tap) in block.taps.clone().enumerate() {
        let tap = unravel(tap, p.tap_extents());
        match p.layout {
            Layout::ChannelsFirst => {
                let product = &product[index * product_step..];
                let sums = &mut sums[first * inputs..];
                landing.add(p.layout, tap, count, [product_step * taps, inputs], product, sums);
            }
            Layout::ChannelsLast => {
                let product = &product[index * count..];
                let steps = [product_step, channels.len()];
                landing.add(p.layout, tap, count, steps, product, &mut sums[first..]);
            }
        }
    }
}

pub(super) fn backward_weight<T: Element>(
    p: &Problem,
    x: &[T],
    dy: &[T],
    dw: &mut [T],
) -> Result<()> {
    let outputs = p.outputs_per_group();
    let blocks = blocks(p, 0..p.channels_per_group(), ROWS);
    let row_blocks = outputs.div_ceil(OUTPUTS);
    let tiling = Tiling::new(p, COLUMNS, p.groups * row_blocks * blocks.len());
    let sum = |part: Part<3>, scratch: &mut Workspace<T::Acc>, write: Write<'_, T::Acc>| {
        let [sums, patches, slab, wide] = scratch;
        let [group, rows, block] = part.block;
        let block = &blocks[block];
        let rows = shift(piece(outputs, OUTPUTS, rows), group * outputs);
        let step = step(p.layout, rows.len(), block.len());
        let sums = zeros(sums, rows.len() * block.len())?;
        for tile in part.tiles.map(|tile| tiling.get(tile)) {
            let gather = Gather::new(p, tile.images.clone(), tile.part, group);
            let patches = gather.gather(x, block, slab, patches)?;
            let dy = read_tile(p, dy, &tile, rows.clone(), wide)?;
            let target = oriented_mut(p.layout, sums, step);
            gemm([rows.len(), block.len(), tile.columns()], dy, patches.t(), target, Old::Kept);
        }
        write(rows, block.entries(), sums);
        Ok(())
    };
    let grid = [p.groups, row_blocks, blocks.len()];
    // SAFETY: blocks are disjoint pieces of the outputs and patch entries, each written by itself.
    unsafe { sum_over_tiles(p, grid, tiling.len(), dw, sum) }
}
