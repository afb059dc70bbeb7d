//! Rotated patches of 3×3 layers in fewer products. Rotating patches is a convolution with the columns of Q_A as
//! its weight; of 2×2 outputs at a time it takes 16 products where the definition takes 36 (Winograd 1980;
//! Lavin & Gray 2016, "Fast algorithms for convolutional neural networks"). Its coefficients are 0, ±1 and ±½:
//! little precision is lost.

use std::array::from_fn;
use std::ops::Range;

use crate::element::Accumulator;
use crate::error::Result;
use crate::geometry::{AxisMap, Layout};
use crate::patches::pieces::digits;
use crate::per_example::problem::Problem;
use crate::product::cpu::{Dimensions, Matrix, MatrixMut, Old, gemm};
use crate::workers::{Shared, Workers};

/// Outputs of a tile along an axis, and inputs that they read.
const OUTPUTS: usize = 2;
const INPUTS: usize = 4;
const TAPS: usize = 3;
/// Products of a tile.
pub(super) const PRODUCTS: usize = INPUTS * INPUTS;
/// Columns of Q_A that are transformed together.
const LANES: usize = 16;
/// How outputs are made of products, along one axis.
const OF_PRODUCTS: [[i8; INPUTS]; OUTPUTS] = [[1, 1, 1, 0], [0, 1, -1, -1]];

/// The tiles of an image.
#[derive(Debug)]
pub(crate) struct Winograd {
    layout: Layout,
    /// Channels over all groups, and of one.
    channels: usize,
    per_group: usize,
    /// Inputs of a line, and of an image.
    line: usize,
    plane: usize,
    /// The inputs behind the padded positions that tiles read, of both axes.
    sources: [Vec<Option<usize>>; 2],
    outputs: [usize; 2],
    tiles: [usize; 2],
}

impl Winograd {
    /// For layers whose kernel is 3×3, without stride and dilation.
    pub fn new(p: &Problem) -> Option<Self> {
        let [d, h, w] = &*p.axes;
        let square =
            |axis: &&AxisMap| axis.taps() == TAPS && axis.stride() == 1 && axis.dilation() == 1;
        let flat = [d.taps(), d.outputs(), d.inputs()] == [1; 3] && d.source(0, 0) == Some(0);
        if !(flat && [h, w].iter().all(square)) {
            return None;
        }
        let outputs = [h.outputs(), w.outputs()];
        let tiles = outputs.map(|n| n.div_ceil(OUTPUTS));
        let sources = [(h, tiles[0]), (w, tiles[1])].map(|(axis, tiles)| {
            let positions = 0..tiles * OUTPUTS + TAPS - 1;
            // The last tile may reach beyond the last output.
            let source = |q| if q < axis.padded_extent() { axis.padded_source(q) } else { None };
            positions.map(source).collect()
        });
        Some(Winograd {
            layout: p.layout,
            channels: p.gathered,
            per_group: p.gathered_per_group(),
            line: w.inputs(),
            plane: p.axes.inputs(),
            sources,
            outputs,
            tiles,
        })
    }

    /// Tiles of an image.
    pub fn tiles(&self) -> usize {
        self.tiles[0] * self.tiles[1]
    }

    /// Elements of the transformed inputs of so many images.
    pub fn inputs_len(&self, images: usize) -> usize {
        PRODUCTS * self.channels * images * self.tiles()
    }

    /// Elements of so many columns of Q_A, transformed.
    pub fn weight_len(&self, columns: usize) -> usize {
        PRODUCTS * self.per_group * columns
    }

    /// Transforms some images: `[product][channel][image][tile]`.
    pub fn transform<F: Accumulator>(
        &self,
        workers: &Workers,
        gathered: &[F],
        images: usize,
        transformed: &mut [F],
        memory: &mut [u8],
    ) -> Result<()> {
        let minus = F::from_f64(-1.0);
        let step = self.channels * images * self.tiles();
        let transformed = Shared::new(transformed);
        let (of_channel, of_position) = match self.layout {
            Layout::ChannelsFirst => (self.plane, 1),
            Layout::ChannelsLast => (1, self.channels),
        };
        workers.share_out(self.channels, memory, |channel, _| {
            for image in 0..images {
                let values = &gathered[image * self.channels * self.plane + channel * of_channel..];
                for row in 0..self.tiles[0] {
                    let lines = &self.sources[0][row * OUTPUTS..][..INPUTS];
                    let first = (channel * images + image) * self.tiles() + row * self.tiles[1];
                    // SAFETY: every task has channels of its own.
                    let targets: [&mut [F]; PRODUCTS] = from_fn(|product| unsafe {
                        transformed.run(product * step + first, self.tiles[1])
                    });
                    let columns = self.sources[1].windows(INPUTS).step_by(OUTPUTS);
                    for (column, columns) in columns.enumerate() {
                        let read = |y: usize, x: usize| match (lines[y], columns[x]) {
                            (Some(y), Some(x)) => values[(y * self.line + x) * of_position],
                            _ => F::ZERO,
                        };
                        let tile: [[F; INPUTS]; INPUTS] = from_fn(|y| from_fn(|x| read(y, x)));
                        let half: [[F; INPUTS]; INPUTS] =
                            from_fn(|y| of_inputs(from_fn(|x| tile[x][y]), minus));
                        for y in 0..INPUTS {
                            let values = of_inputs(from_fn(|x| half[x][y]), minus);
                            for (x, value) in values.into_iter().enumerate() {
                                targets[y * INPUTS + x][column] = value;
                            }
                        }
                    }
                }
            }
            Ok(())
        })
    }

    /// Some columns of the rotated patches of all positions of some images, a row for each. `transformed` is
    /// what [`Winograd::transform`] made, `q_a` the group's with rows of `d` elements, and `memory` for
    /// transformed columns and for one product of all tiles.
    #[allow(clippy::too_many_arguments)]
    pub fn rotate<F: Accumulator>(
        &self,
        transformed: &[F],
        images: usize,
        group: usize,
        q_a: &[F],
        d: usize,
        columns: &Range<usize>,
        [weight, product]: [&mut [F]; 2],
        rotated: &mut [F],
    ) {
        let (terms, width) = (self.per_group, columns.len());
        let weight = &mut weight[..self.weight_len(width)];
        self.transform_columns(q_a, d, columns, weight);
        let (tiles, positions) = (images * self.tiles(), self.outputs[0] * self.outputs[1]);
        let product = &mut product[..tiles * width];
        for number in 0..PRODUCTS {
            let start = (number * self.channels + group * terms) * tiles;
            let inputs = Matrix { data: &transformed[start..], row: 1, column: tiles };
            let weight = &weight[number * terms * width..][..terms * width];
            let weight = Matrix { data: weight, row: width, column: 1 };
            let target = MatrixMut { data: &mut *product, row: width, column: 1 };
            let size = Dimensions { rows: tiles, columns: width, terms };
            gemm(size, inputs, weight, target, Old::Replaced);
            let [across, along] = digits(number, [INPUTS, INPUTS]);
            for (tile, values) in product.chunks_exact(width).enumerate() {
                let [image, row, column] = digits(tile, [images, self.tiles[0], self.tiles[1]]);
                for (y, x) in (0..OUTPUTS).flat_map(|y| (0..OUTPUTS).map(move |x| (y, x))) {
                    let sign = OF_PRODUCTS[y][across] * OF_PRODUCTS[x][along];
                    let (y, x) = (row * OUTPUTS + y, column * OUTPUTS + x);
                    if sign == 0 || y >= self.outputs[0] || x >= self.outputs[1] {
                        continue;
                    }
                    let sign = F::from_f64(f64::from(sign));
                    let at = image * positions + y * self.outputs[1] + x;
                    let sums = &mut rotated[at * width..][..width];
                    sums.iter_mut().zip(values).for_each(|(sum, &value)| *sum += sign * value);
                }
            }
        }
    }

    /// Transforms some columns of a group's Q_A: `[product][channel][column]`.
    fn transform_columns<F: Accumulator>(
        &self,
        q_a: &[F],
        d: usize,
        columns: &Range<usize>,
        weight: &mut [F],
    ) {
        let (taps, width) = (TAPS * TAPS, columns.len());
        let step = self.per_group * width;
        let half = F::from_f64(0.5);
        let minus = F::from_f64(-1.0);
        for channel in 0..self.per_group {
            let row = |tap: usize| match self.layout {
                Layout::ChannelsFirst => channel * taps + tap,
                Layout::ChannelsLast => tap * self.per_group + channel,
            };
            for start in (0..width).step_by(LANES) {
                let len = LANES.min(width - start);
                let kernel: [[[F; LANES]; TAPS]; TAPS] = from_fn(|y| {
                    from_fn(|x| {
                        let at = row(y * TAPS + x) * d + columns.start + start;
                        let mut lanes = [F::ZERO; LANES];
                        lanes[..len].copy_from_slice(&q_a[at..at + len]);
                        lanes
                    })
                });
                let along: [[[F; LANES]; INPUTS]; TAPS] =
                    from_fn(|y| of_taps(&kernel[y], half, minus));
                let both: [[[F; LANES]; INPUTS]; INPUTS] =
                    from_fn(|x| of_taps(&along.map(|lines| lines[x]), half, minus));
                for (number, lanes) in both.iter().flatten().enumerate() {
                    let [x, y] = digits(number, [INPUTS, INPUTS]);
                    let at = (y * INPUTS + x) * step + channel * width + start;
                    weight[at..at + len].copy_from_slice(&lanes[..len]);
                }
            }
        }
    }
}

/// What inputs of a tile become along one axis.
fn of_inputs<F: Accumulator>([a, b, c, d]: [F; INPUTS], minus: F) -> [F; INPUTS] {
    [a + minus * c, b + c, c + minus * b, b + minus * d]
}

/// What taps become along one axis.
fn of_taps<F: Accumulator>(
    [a, b, c]: &[[F; LANES]; TAPS],
    half: F,
    minus: F,
) -> [[F; LANES]; INPUTS] {
    let outer: [F; LANES] = from_fn(|lane| half * (a[lane] + c[lane]));
    let inner: [F; LANES] = from_fn(|lane| half * b[lane]);
    let sum = from_fn(|lane| outer[lane] + inner[lane]);
    let difference = from_fn(|lane| outer[lane] + minus * inner[lane]);
    [*a, sum, difference, *c]
}
