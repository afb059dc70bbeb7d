//! A correlation of a source with weights, in tiles of several outputs: the convolution and its input gradient.
//!
//! Inputs and taps become factors, number by number: there is a matrix product over the channels for each, and
//! outputs are made of all of a tile's products. Tiles and rows of the result are cut into blocks. Of one kind
//! all factors are made beforehand, in memory that tasks have in common, and those of the other by the task
//! that needs them; which, is decided by what is read from outside of a core's cache.

use std::ops::Range;

use super::cube::{Cube, PITCH, Tiles};
use super::grid::Grid;
use super::transform::{Direction, LANES};
use crate::conv::cpu::correlation::Layer;
use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::geometry::Layout;
use crate::patches::pieces::{Pieces, digits};
use crate::plan::Pass;
use crate::product::cpu::{Rows, Step, multiply_rows};
use crate::workers::{Room, Scratch, Shared, Workers, wanted_tasks};

/// Tiles of a block, at most: three vectors of AVX-512.
const TILES: usize = 48;
/// Rows of a block, at most, where factors of weights are in common: the block's, those of its tiles and its products
/// are to stay in a cache of a MiB for up to 64 channels; and where factors of inputs are, which are then read less
/// often.
const ROWS: [usize; 2] = [32, 64];
/// Channels whose inputs' factors lie together, at most: they are made by one task.
const CHANNELS: usize = 32;
/// How often the factors of inputs might be read in the time in which they are written and first fetched.
const WRITTEN: usize = 2;
/// Tasks for each thread there should be at least.
const TASKS: usize = 2;

/// Which factors tasks have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Common {
    Weights,
    Inputs,
}

#[derive(Debug)]
pub(super) struct Correlation {
    layer: Layer,
    layout: Layout,
    grid: Grid,
    common: Common,
    tiles: Pieces,
    rows: Pieces,
    /// Channels whose inputs' factors lie together.
    channels: Pieces,
    steps: Vec<Step>,
}

impl Correlation {
    /// For axes whose strides are 1, and whose dilations are where there are several taps.
    pub fn new(layer: Layer, layout: Layout, tiles: Tiles) -> Self {
        let grid = Grid::new(tiles, &layer.axes, layer.batch);
        let wanted = wanted_tasks(TASKS);
        let most_tiles = grid.len().max(1);
        let in_blocks = |all: usize, most: usize| {
            let blocks = wanted.div_ceil(layer.groups).min(all.div_ceil(LANES)).max(1);
            all.div_ceil(blocks).next_multiple_of(LANES).min(most)
        };
        // Bytes, but for a factor, that are read from memory in common: all of it by every block of the other kind.
        let by_tiles = layer.rows * most_tiles.div_ceil(TILES);
        let by_rows = most_tiles * (layer.rows.div_ceil(ROWS[1]) + WRITTEN);
        let tasks = [most_tiles.div_ceil(LANES), layer.rows.div_ceil(LANES)];
        let enough = tasks.map(|tasks| layer.groups * tasks >= wanted);
        let common = match enough {
            [true, false] => Common::Weights,
            [false, true] => Common::Inputs,
            _ if by_tiles < by_rows => Common::Weights,
            _ => Common::Inputs,
        };
        let (of_tiles, of_rows) = match common {
            Common::Weights => (in_blocks(most_tiles, TILES), ROWS[0]),
            Common::Inputs => (TILES, in_blocks(layer.rows, ROWS[1])),
        };
        let mut correlation = Correlation {
            tiles: Pieces::new(grid.len(), of_tiles),
            rows: Pieces::new(layer.rows, of_rows),
            channels: Pieces::new(layer.channels, CHANNELS),
            layer,
            layout,
            grid,
            common,
            steps: Vec::new(),
        };
        correlation.steps = correlation.steps();
        correlation
    }

    /// Tasks of the passes.
    fn tasks(&self) -> [usize; 2] {
        let [tiles, rows] = [self.tiles.count(), self.rows.count()];
        let groups = self.layer.groups;
        match self.common {
            Common::Weights => [groups * rows, groups * tiles],
            Common::Inputs => [groups * tiles * self.channels.count(), groups * rows],
        }
    }

    fn products(&self) -> usize {
        self.grid.tiles.products()
    }

    /// Elements from one number to the next of the factors of some channels' inputs.
    fn input_plane(&self) -> usize {
        spread(match self.layout {
            Layout::ChannelsFirst => self.channels.longest() * self.tile_pitch(),
            Layout::ChannelsLast => self.tiles.longest() * self.channel_pitch(),
        })
    }

    /// The same of weights: rows of a channel side by side.
    fn weight_plane(&self) -> usize {
        spread(self.layer.channels * self.row_pitch())
    }

    /// The same of products.
    fn product_plane(&self) -> usize {
        spread(match self.layout {
            Layout::ChannelsFirst => self.rows.longest() * self.tile_pitch(),
            Layout::ChannelsLast => self.tiles.longest() * self.row_pitch(),
        })
    }

    fn tile_pitch(&self) -> usize {
        self.tiles.longest().next_multiple_of(LANES)
    }

    fn row_pitch(&self) -> usize {
        self.rows.longest().next_multiple_of(LANES)
    }

    /// Not a power of two, so that tiles do not fall on one another in a cache.
    fn channel_pitch(&self) -> usize {
        self.channels.longest().next_multiple_of(LANES) + LANES
    }

    /// Elements of the factors of some channels' inputs, and of all channels'.
    fn input_lens(&self) -> [usize; 2] {
        let some = self.products() * self.input_plane();
        [some, some * self.channels.count()]
    }

    fn weight_len(&self) -> usize {
        self.products() * self.weight_plane()
    }

    /// Where the factors of each channel start.
    fn steps(&self) -> Vec<Step> {
        let [of_piece, _] = self.input_lens();
        let step = |channel: usize| {
            let piece = channel / self.channels.longest();
            let channel_of_piece = channel % self.channels.longest();
            let weight = channel * self.row_pitch();
            match self.layout {
                Layout::ChannelsFirst => {
                    let patch = piece * of_piece + channel_of_piece * self.tile_pitch();
                    Step { weight, patch, rows: !0 }
                }
                Layout::ChannelsLast => {
                    Step { weight: piece * of_piece + channel_of_piece, patch: weight, rows: !0 }
                }
            }
        };
        (0..self.layer.channels).map(step).collect()
    }

    /// Whom it takes.
    pub fn workers<T: Element>(&self) -> Workers {
        let groups = self.layer.groups;
        let [_, inputs] = self.input_lens();
        let (own, common) = match self.common {
            Common::Weights => (inputs, self.weight_len() * self.rows.count()),
            Common::Inputs => (self.weight_len(), inputs * self.tiles.count()),
        };
        let room = Room::default()
            .and::<T::Acc>(own)
            .and::<T::Acc>(self.products() * self.product_plane())
            .and::<T::Acc>(self.grid.line_len());
        let room = Cube::<T::Acc>::room(room, &self.grid.tiles);
        let common = Room::default().and::<T::Acc>(groups * common);
        Workers::new(self.tasks().into_iter().max().unwrap_or(1), room).with_common(common)
    }

    /// What is done, for people.
    pub fn explain(&self, passes: &mut Vec<Pass>) {
        let [d, h, w] = self.grid.tiles.outputs();
        let tile = [self.rows.longest(), self.tiles.longest()];
        let [before, after] = self.tasks();
        let (common, own) = match self.common {
            Common::Weights => ("taps", "inputs"),
            Common::Inputs => ("inputs", "taps"),
        };
        passes.push(Pass::on_cpu("transform", before).by(common));
        let how = format!("{own} transformed, products of {d}x{h}x{w} outputs at a time");
        passes.push(Pass::on_cpu("multiply factors", after).by(how).with_tile(tile));
    }

    /// Writes all of `target`, whose elements are those of the source or their accumulators.
    #[allow(clippy::too_many_arguments)]
    pub fn run<T: Element, U: Element<Acc = T::Acc>>(
        &self,
        workers: &Workers,
        source: &[T],
        weight: &[T],
        bias: Option<&[T]>,
        target: &Shared<U>,
        common: &mut Scratch<'_>,
        memory: &mut [u8],
    ) -> Result<()> {
        let groups = self.layer.groups;
        let (tiles, rows, parts) = (self.tiles.count(), self.rows.count(), self.channels.count());
        match self.common {
            Common::Weights => {
                let len = self.weight_len();
                let factors = common.take::<T::Acc>(groups * rows * len);
                workers.share_out_chunks(factors, len, memory, |task, factors, scratch| {
                    let [group, piece] = digits(task, [groups, rows]);
                    self.transform_weights(weight, group, self.rows.get(piece), factors, scratch);
                })?;
                let factors = &*factors;
                workers.share_out(groups * tiles, memory, |task, scratch| {
                    let [group, piece] = digits(task, [groups, tiles]);
                    let tiles = self.tiles.get(piece);
                    let [of_channels, len] = self.input_lens();
                    let inputs = scratch.take::<T::Acc>(len);
                    for (part, factors) in inputs.chunks_exact_mut(of_channels).enumerate() {
                        let channels = self.channels.get(part);
                        self.transform_inputs(source, group, &tiles, channels, factors, scratch);
                    }
                    let weights = factors.chunks_exact(self.weight_len());
                    let weights = weights.skip(group * rows).zip(self.rows.each());
                    for (weights, rows) in weights {
                        let block = Block { group, tiles: tiles.clone(), rows };
                        // SAFETY: a task has tiles of its own.
                        unsafe { self.multiply(&block, inputs, weights, bias, target, scratch) };
                    }
                    Ok(())
                })
            }
            Common::Inputs => {
                let [len, of_tiles] = self.input_lens();
                let factors = common.take::<T::Acc>(groups * tiles * of_tiles);
                workers.share_out_chunks(factors, len, memory, |task, factors, scratch| {
                    let [group, piece, part] = digits(task, [groups, tiles, parts]);
                    let (tiles, channels) = (self.tiles.get(piece), self.channels.get(part));
                    self.transform_inputs(source, group, &tiles, channels, factors, scratch);
                })?;
                let factors = &*factors;
                workers.share_out(groups * rows, memory, |task, scratch| {
                    let [group, piece] = digits(task, [groups, rows]);
                    let rows = self.rows.get(piece);
                    let weights = scratch.take::<T::Acc>(self.weight_len());
                    self.transform_weights(weight, group, rows.clone(), weights, scratch);
                    let inputs = factors.chunks_exact(of_tiles).skip(group * tiles);
                    for (inputs, tiles) in inputs.zip(self.tiles.each()) {
                        let block = Block { group, tiles, rows: rows.clone() };
                        // SAFETY: a task has rows of its own.
                        unsafe { self.multiply(&block, inputs, weights, bias, target, scratch) };
                    }
                    Ok(())
                })
            }
        }
    }

    /// Makes factors of a block of rows, for all channels: `[number][channel][row]`.
    fn transform_weights<T: Element>(
        &self,
        weight: &[T],
        group: usize,
        rows: Range<usize>,
        factors: &mut [T::Acc],
        scratch: &mut Scratch<'_>,
    ) {
        let of = &self.layer.weight;
        let mut scratch = scratch.part();
        let mut cube = Cube::<T::Acc>::take(&mut scratch, &self.grid.tiles);
        let (pitch, plane) = (self.row_pitch(), self.weight_plane());
        for start in (0..rows.len()).step_by(LANES) {
            let len = LANES.min(rows.len() - start);
            for channel in 0..self.layer.channels {
                let first = group * of.group + (rows.start + start) * of.row + channel * of.channel;
                for (&tap, lanes) in of.taps.iter().zip(cube.values.chunks_exact_mut(PITCH)) {
                    let (lanes, rest) = lanes[..LANES].split_at_mut(len);
                    if of.row == 1 {
                        T::widen(&weight[first + tap..][..len], lanes);
                    } else {
                        let from = weight[first + tap..].iter().step_by(of.row);
                        lanes.iter_mut().zip(from).for_each(|(lane, tap)| *lane = tap.to_acc());
                    }
                    rest.fill(T::Acc::ZERO);
                }
                let to = &mut factors[channel * pitch + start..];
                cube.factors_of_values(&self.grid.tiles, Direction::Taps, to, plane);
            }
        }
    }

    /// Makes factors of a block of tiles, for some channels: `[number][channel][tile]`, channels last
    /// `[number][tile][channel]`.
    fn transform_inputs<T: Element>(
        &self,
        source: &[T],
        group: usize,
        tiles: &Range<usize>,
        channels: Range<usize>,
        factors: &mut [T::Acc],
        scratch: &mut Scratch<'_>,
    ) {
        let mut scratch = scratch.part();
        let mut cube = Cube::<T::Acc>::take(&mut scratch, &self.grid.tiles);
        let line = scratch.take::<T::Acc>(self.grid.line_len());
        let plane = self.input_plane();
        let first = group * self.layer.channels;
        let (strides, of) = (self.layer.source, &self.grid.tiles);
        match self.layout {
            Layout::ChannelsFirst => {
                for (number, channel) in channels.enumerate() {
                    for at in (0..tiles.len()).step_by(LANES) {
                        let lanes = tiles.start + at..tiles.end.min(tiles.start + at + LANES);
                        let (channel, values) = (first + channel, &mut *cube.values);
                        self.grid.read_tiles(source, strides, channel, lanes, line, values);
                        let to = &mut factors[number * self.tile_pitch() + at..];
                        cube.factors_of_values(of, Direction::Inputs, to, plane);
                    }
                }
            }
            Layout::ChannelsLast => {
                for (number, tile) in tiles.clone().enumerate() {
                    for at in (0..channels.len()).step_by(LANES) {
                        let start = first + channels.start + at;
                        let lanes = start..(first + channels.end).min(start + LANES);
                        self.grid.read_channels(source, strides, lanes, tile, cube.values);
                        let to = &mut factors[number * self.channel_pitch() + at..];
                        cube.factors_of_values(of, Direction::Inputs, to, plane);
                    }
                }
            }
        }
    }

    /// Multiplies the factors of a block, and writes the outputs.
    ///
    /// # Safety
    /// Nothing else may use these elements of the target.
    unsafe fn multiply<T: Element, U: Element<Acc = T::Acc>>(
        &self,
        block: &Block,
        inputs: &[T::Acc],
        weights: &[T::Acc],
        bias: Option<&[T]>,
        target: &Shared<U>,
        scratch: &mut Scratch<'_>,
    ) {
        let Block { group, tiles, rows } = block;
        let mut scratch = scratch.part();
        let plane = self.product_plane();
        let products = scratch.take::<T::Acc>(self.products() * plane);
        let pitch = match self.layout {
            Layout::ChannelsFirst => self.tile_pitch(),
            Layout::ChannelsLast => self.row_pitch(),
        };
        for (number, products) in products.chunks_exact_mut(plane).enumerate() {
            let inputs = &inputs[number * self.input_plane()..];
            let weights = &weights[number * self.weight_plane()..];
            let steps = &self.steps[..];
            let operands = match self.layout {
                Layout::ChannelsFirst => {
                    let columns = tiles.len().next_multiple_of(LANES);
                    Rows { steps, weights, row: 1, patches: inputs, rows: rows.len(), columns }
                }
                Layout::ChannelsLast => {
                    let (row, columns) = (self.channel_pitch(), rows.len().next_multiple_of(LANES));
                    Rows {
                        steps,
                        weights: inputs,
                        row,
                        patches: weights,
                        rows: tiles.len(),
                        columns,
                    }
                }
            };
            multiply_rows(&operands, products, pitch, false);
        }
        let mut cube = Cube::<T::Acc>::take(&mut scratch, &self.grid.tiles);
        let line = scratch.take::<T::Acc>(self.grid.line_len());
        let strides = self.layer.target;
        let first = group * self.layer.rows + rows.start;
        let tiles_of = &self.grid.tiles;
        match self.layout {
            Layout::ChannelsFirst => {
                for row in 0..rows.len() {
                    let bias = bias.map_or(T::Acc::ZERO, |bias| bias[first + row].to_acc());
                    for at in (0..tiles.len()).step_by(LANES) {
                        let from = &products[row * pitch + at..];
                        cube.values_of_products(tiles_of, Direction::Outputs, from, plane);
                        let lanes = tiles.start + at..tiles.end.min(tiles.start + at + LANES);
                        // SAFETY: promised by the caller.
                        unsafe {
                            let channel = first + row;
                            self.grid.write_tiles(
                                cube.values,
                                bias,
                                lanes,
                                line,
                                target,
                                strides,
                                channel,
                            );
                        }
                    }
                }
            }
            Layout::ChannelsLast => {
                for at in (0..rows.len()).step_by(LANES) {
                    let channels = first + at..first + rows.len().min(at + LANES);
                    for (number, tile) in tiles.clone().enumerate() {
                        let from = &products[number * pitch + at..];
                        cube.values_of_products(tiles_of, Direction::Outputs, from, plane);
                        if let Some(bias) = bias {
                            for lanes in cube.values.chunks_exact_mut(LANES) {
                                let bias = &bias[channels.clone()];
                                lanes.iter_mut().zip(bias).for_each(|(l, b)| *l += b.to_acc());
                            }
                        }
                        // SAFETY: promised by the caller.
                        unsafe {
                            let channels = channels.clone();
                            self.grid.write_channels(cube.values, tile, target, strides, channels);
                        }
                    }
                }
            }
        }
    }
}

/// At least so many elements, and an odd number of lanes: those of one place in all planes are read and written
/// together, and would fall on one another in a cache if planes were a power of two.
fn spread(elements: usize) -> usize {
    (elements.div_ceil(LANES) | 1) * LANES
}

/// Some tiles by some rows of a group.
struct Block {
    group: usize,
    tiles: Range<usize>,
    rows: Range<usize>,
}
