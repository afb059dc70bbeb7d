//! The weight gradient: factors of inputs and of output gradients, multiplied over all tiles, number by number,
//! and made taps of at the end. Each step is the adjoint of one of the convolution's.

use super::choice;
use super::cube::Cube;
use super::grid::Grid;
use super::missing;
use super::transform::{Direction, LANES};
use crate::conv::problem::Problem;
use crate::element::Element;
use crate::error::Result;
use crate::geometry::{Layout, Strides};
use crate::patches::pieces::{Pieces, digits};
use crate::plan::Pass;
use crate::product::cpu::{Dimensions, Matrix, MatrixMut, Old, gemm};
use crate::workers::{Room, Scratch, Shared, Workers};

/// Bytes of the factors that there are at a time, unless those of [`LANES`] tiles take more.
const FACTORS: usize = 8 << 20;
/// Channels whose factors are made by one task, at most.
const CHANNELS: usize = 16;
/// Rows of a product that a task computes, at most.
const ROWS: usize = 128;

#[derive(Debug)]
pub(crate) struct BackwardWeight {
    problem: Problem,
    grid: Grid,
    /// Tiles whose factors there are at a time.
    tiles: Pieces,
    /// Channels of all groups, of inputs and of output gradients, that are transformed together.
    channels: [Pieces; 2],
    rows: Pieces,
}

/// One of the operands.
#[derive(Clone, Copy)]
enum Operand {
    Inputs = 0,
    Gradients = 1,
}

impl BackwardWeight {
    /// # Errors
    /// [`crate::Error::Invalid`] where there are no tiles for its taps.
    pub fn new<T: Element>(p: &Problem, passes: &mut Vec<Pass>) -> Result<(Self, Workers)> {
        let tiles = choice::tiles(p).ok_or_else(missing)?;
        let grid = Grid::new(tiles, &p.axes, p.batch);
        let of_tile = tiles.products() * (p.channels + p.outputs) * size_of::<T::Acc>();
        let at_a_time = (FACTORS / of_tile.max(1) / LANES * LANES).max(LANES);
        let plan = BackwardWeight {
            tiles: Pieces::new(
                grid.len(),
                at_a_time.min(grid.len().next_multiple_of(LANES)).max(1),
            ),
            channels: [p.channels, p.outputs].map(|channels| Pieces::new(channels, CHANNELS)),
            rows: Pieces::new(p.outputs_per_group(), ROWS),
            problem: p.clone(),
            grid,
        };
        let [transforms, products, taps] = plan.tasks();
        let [d, h, w] = tiles.outputs();
        let count = plan.tiles.count();
        passes.push(
            Pass::on_cpu("transform", transforms).by(format!("{d}x{h}x{w} outputs, {count} times")),
        );
        passes.push(Pass::on_cpu("multiply factors", products).by(format!("{count} times")));
        passes.push(Pass::on_cpu("transform", taps).by("products to taps"));
        let room = Cube::<T::Acc>::room(Room::default(), &tiles)
            .and::<T::Acc>(plan.grid.line_len())
            .and::<T::Acc>(tiles.products() * LANES);
        let [inputs, gradients] = plan.factors_len();
        let common = Room::default()
            .and::<T::Acc>(inputs)
            .and::<T::Acc>(gradients)
            .and::<T::Acc>(plan.products_len());
        let tasks = transforms.max(products).max(taps);
        Ok((plan, Workers::new(tasks, room).with_common(common)))
    }

    /// Tasks of the passes.
    fn tasks(&self) -> [usize; 3] {
        let p = &self.problem;
        let products = p.groups * self.grid.tiles.products() * self.rows.count();
        [self.channels[0].count() + self.channels[1].count(), products, p.outputs]
    }

    /// Distances between the factors of one number, of neighbouring channels and of neighbouring tiles.
    fn steps(&self, channels: usize) -> [usize; 3] {
        let tiles = self.tiles.longest().next_multiple_of(LANES);
        match self.problem.layout {
            Layout::ChannelsFirst => [channels * tiles, tiles, 1],
            Layout::ChannelsLast => {
                let pitch = channels.next_multiple_of(LANES) + LANES;
                [tiles * pitch, 1, pitch]
            }
        }
    }

    /// Elements of the factors of inputs, and of output gradients.
    fn factors_len(&self) -> [usize; 2] {
        let products = self.grid.tiles.products();
        self.channels.map(|channels| products * self.steps(channels.extent())[0])
    }

    /// Elements from one row of products to the next.
    fn product_pitch(&self) -> usize {
        self.problem.channels_per_group().next_multiple_of(LANES)
    }

    fn products_len(&self) -> usize {
        self.grid.tiles.products() * self.problem.outputs * self.product_pitch()
    }

    /// `dw = Σ dy·Aᵀ`; all of `dw` is overwritten.
    pub fn run<T: Element>(
        &self,
        workers: &Workers,
        x: &[T],
        dy: &[T],
        dw: &mut [T],
        memory: &mut [u8],
    ) -> Result<()> {
        if self.tiles.count() == 0 {
            dw.fill(T::default());
            return Ok(());
        }
        let p = &self.problem;
        let (mut common, memory) = workers.split(memory);
        let [inputs, gradients] = self.factors_len().map(|len| common.take::<T::Acc>(len));
        let products = common.take::<T::Acc>(self.products_len());
        let [transforms, _, _] = self.tasks();
        for number in 0..self.tiles.count() {
            let [shared_inputs, shared_gradients] =
                [Shared::new(&mut *inputs), Shared::new(&mut *gradients)];
            workers.share_out(transforms, memory, |task, scratch| {
                // SAFETY: tasks have channels of their own.
                unsafe {
                    match task.checked_sub(self.channels[0].count()) {
                        None => {
                            let of = (Operand::Inputs, task);
                            self.transform(
                                of,
                                number,
                                x,
                                p.input_strides(),
                                &shared_inputs,
                                scratch,
                            );
                        }
                        Some(task) => {
                            let of = (Operand::Gradients, task);
                            let strides = p.output_strides();
                            self.transform(of, number, dy, strides, &shared_gradients, scratch);
                        }
                    }
                }
                Ok(())
            })?;
            self.multiply::<T>(workers, number, inputs, gradients, products, memory)?;
        }
        self.write_taps(workers, products, dw, memory)
    }
}

impl BackwardWeight {
    /// Makes the factors of some channels of an operand, for the tiles that there are at a time.
    ///
    /// # Safety
    /// Nothing else may use the factors of these channels.
    unsafe fn transform<T: Element>(
        &self,
        (operand, piece): (Operand, usize),
        number: usize,
        source: &[T],
        strides: Strides,
        factors: &Shared<T::Acc>,
        scratch: &mut Scratch<'_>,
    ) {
        let (grid, tiles) = (&self.grid, self.tiles.get(number));
        let pieces = self.channels[operand as usize];
        let (channels, [plane, channel_step, tile_step]) =
            (pieces.get(piece), self.steps(pieces.extent()));
        let mut cube = Cube::<T::Acc>::take(scratch, &grid.tiles);
        let line = scratch.take::<T::Acc>(grid.line_len());
        let of_tile = scratch.take::<T::Acc>(grid.tiles.products() * LANES);
        let direction = match operand {
            Operand::Inputs => Direction::Inputs,
            Operand::Gradients => Direction::Gradients,
        };
        let mut make = |cube: &mut Cube<'_, T::Acc>, start: usize| {
            cube.factors_of_values(&grid.tiles, direction, of_tile, LANES);
            for (number, lanes) in of_tile.chunks_exact(LANES).enumerate() {
                // SAFETY: promised by the caller.
                unsafe { factors.run(start + number * plane, LANES) }.copy_from_slice(lanes);
            }
        };
        match self.problem.layout {
            Layout::ChannelsFirst => {
                for channel in channels {
                    for at in (0..tiles.len()).step_by(LANES) {
                        let lanes = tiles.start + at..tiles.end.min(tiles.start + at + LANES);
                        let values = &mut *cube.values;
                        match operand {
                            Operand::Inputs => {
                                grid.read_tiles(source, strides, channel, lanes, line, values);
                            }
                            Operand::Gradients => {
                                grid.read_outputs(source, strides, channel, lanes, line, values);
                            }
                        }
                        make(&mut cube, channel * channel_step + at * tile_step);
                    }
                }
            }
            Layout::ChannelsLast => {
                for (at, tile) in tiles.enumerate() {
                    let (channels, values) = (channels.clone(), &mut *cube.values);
                    let start = channels.start * channel_step + at * tile_step;
                    match operand {
                        Operand::Inputs => {
                            grid.read_channels(source, strides, channels, tile, values);
                        }
                        Operand::Gradients => {
                            grid.read_output_channels(source, strides, channels, tile, values);
                        }
                    }
                    make(&mut cube, start);
                }
            }
        }
    }

    /// Multiplies the factors that there are, number by number, and adds the products to those before.
    fn multiply<T: Element>(
        &self,
        workers: &Workers,
        number: usize,
        inputs: &[T::Acc],
        gradients: &[T::Acc],
        products: &mut [T::Acc],
        memory: &mut [u8],
    ) -> Result<()> {
        let p = &self.problem;
        let (channels, outputs) = (p.channels_per_group(), p.outputs_per_group());
        let old = if number == 0 { Old::Replaced } else { Old::Kept };
        let terms = self.tiles.get(number).len();
        let [of_inputs, of_gradients] = self.channels.map(|pieces| self.steps(pieces.extent()));
        let pitch = self.product_pitch();
        let products = Shared::new(products);
        let [_, tasks, _] = self.tasks();
        workers.share_out(tasks, memory, |task, _| {
            let radices = [self.grid.tiles.products(), p.groups, self.rows.count()];
            let [product, group, piece] = digits(task, radices);
            let rows = self.rows.get(piece);
            let first = group * outputs + rows.start;
            let [plane, channel, tile] = of_gradients;
            let start = product * plane + first * channel;
            let left = Matrix { data: &gradients[start..], row: channel, column: tile };
            let [plane, channel, tile] = of_inputs;
            let start = product * plane + group * channels * channel;
            let right = Matrix { data: &inputs[start..], row: tile, column: channel };
            let start = (product * p.outputs + first) * pitch;
            // SAFETY: a task has rows of its own.
            let data = unsafe { products.run(start, rows.len() * pitch) };
            let target = MatrixMut { data, row: pitch, column: 1 };
            let size = Dimensions { rows: rows.len(), columns: channels, terms };
            gemm(size, left, right, target, old);
            Ok(())
        })
    }

    /// Makes taps of the products.
    fn write_taps<T: Element>(
        &self,
        workers: &Workers,
        products: &[T::Acc],
        dw: &mut [T],
        memory: &mut [u8],
    ) -> Result<()> {
        let p = &self.problem;
        let (channels, pitch, of) =
            (p.channels_per_group(), self.product_pitch(), p.weight_strides());
        let plane = p.outputs * pitch;
        let dw = Shared::new(dw);
        workers.share_out(p.outputs, memory, |output, scratch| {
            let mut cube = Cube::<T::Acc>::take(scratch, &self.grid.tiles);
            for start in (0..channels).step_by(LANES) {
                let len = LANES.min(channels - start);
                let from = &products[output * pitch + start..];
                cube.values_of_products(&self.grid.tiles, Direction::TapGradients, from, plane);
                for (tap, lanes) in (0..p.taps()).zip(cube.values.chunks_exact(LANES)) {
                    // SAFETY: a task has an output channel of its own.
                    unsafe { dw.scatter(of.at(output, start, tap), of.input, &lanes[..len]) };
                }
            }
            Ok(())
        })
    }
}
