//! Kernels made from the symbols of a circulant layer: as large as the torus.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par, c64};
use rayon::prelude::*;

use super::solver::decompose;
use crate::error::{Result, checked_product};
use crate::geometry::{AxisMap, ravel, unravel};
use crate::memory::{try_with_capacity, try_zeroed};
use crate::operator::layer::Layer;
use crate::spectrum::symbol::{Columns, Frequency, Symbol, filled, half_of, opposite, phase};

/// The kernel of a convolution on a torus, with a tap for every input position.
///
/// Tap j of an axis of n elements reads padded position `o·stride + j`: with dilation 1, the layer's stride s
/// and circular padding of `low` positions in front, as the layer's, and n − s − `low` behind (or 0 and
/// n − s, for the same up to a shift of the input), the convolution with it has the spectrum asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct TorusKernel {
    shape: [usize; 5],
    data: Vec<f64>,
    projected: Vec<f64>,
}

impl TorusKernel {
    /// `[O, C/groups, extents]`; extents that the layer lacks are 1, in front.
    pub fn shape(&self) -> [usize; 5] {
        self.shape
    }

    /// The elements, in row-major order.
    pub fn data(&self) -> &[f64] {
        &self.data
    }

    /// Only the taps that the layer has, `[O, C/groups, taps]`: the nearest kernel with no others. Its
    /// spectrum is only about that of the whole kernel. Where several taps read one input, they share.
    pub fn projected(&self) -> &[f64] {
        &self.projected
    }

    /// Applies a function to the singular values of all symbols, and transforms them back.
    pub(in crate::spectrum) fn new(
        layer: &Layer,
        low: [i64; 3],
        f: impl Fn(f64) -> f64 + Sync,
    ) -> Result<Self> {
        let symbol = Symbol::torus(layer, low, Columns::All)?;
        let (grid, extents) = (layer.axes.output_extents(), layer.axes.input_extents());
        let (outputs, inputs) = (layer.axes.outputs(), layer.axes.inputs());
        let (half, len) = (half_of(grid)?, symbol.len());
        let all = checked_product("the kernel", &[layer.outputs, symbol.channels, inputs])?;
        let mut data: Vec<f64> = try_zeroed("the kernel", all)?;
        let stride = layer.axes.each_ref().map(AxisMap::stride);
        for group in 0..layer.groups {
            let one = |&(frequency, pair): &(Frequency, bool)| {
                let matrix = symbol.at(group, &symbol.phases(&[frequency], grid)?)?;
                let parts = decompose(&matrix, [symbol.rows, symbol.columns()], !pair)?;
                parts.with_values(|value| f(value * symbol.scale))
            };
            let parts: Vec<Vec<c64>> = half.par_iter().map(one).collect::<Result<_>>()?;
            let mut symbols = filled("the symbols of a layer", outputs * len, c64::ZERO)?;
            for (part, &(frequency, pair)) in parts.iter().zip(&half) {
                symbols[ravel(frequency, grid) * len..][..len].copy_from_slice(part);
                if pair {
                    let target = &mut symbols[ravel(opposite(frequency, grid), grid) * len..];
                    target.iter_mut().zip(part).for_each(|(target, z)| *target = z.conj());
                }
            }
            drop(parts);
            for axis in 0..3 {
                transform_back(&mut symbols, grid, axis, len)?;
            }
            for (q, values) in symbols.chunks_exact(len).enumerate() {
                let q = unravel(q, grid);
                let columns = values.chunks_exact(symbol.rows * symbol.channels);
                for (residue, values) in symbol.residues().zip(columns) {
                    // Offset q of the symbol is that of a tap whose input is q·stride + residue.
                    let tap = std::array::from_fn(|a| {
                        let position = (q[a] * stride[a] + residue[a]) as i64 + low[a];
                        position.rem_euclid(extents[a] as i64) as usize
                    });
                    for (at, value) in values.iter().enumerate() {
                        let (c, o) = (at / symbol.rows, group * symbol.rows + at % symbol.rows);
                        data[(o * symbol.channels + c) * inputs + ravel(tap, extents)] = value.re;
                    }
                }
            }
        }
        let projected = project(layer, &data)?;
        let [d, h, w] = extents;
        Ok(TorusKernel { shape: [layer.outputs, symbol.channels, d, h, w], data, projected })
    }
}

/// The elements of a whole kernel at the taps of a layer.
fn project(layer: &Layer, data: &[f64]) -> Result<Vec<f64>> {
    let (extents, inputs) = (layer.axes.input_extents(), layer.axes.inputs());
    let place = |tap: [usize; 3]| {
        ravel(std::array::from_fn(|a| tap[a] * layer.axes[a].dilation() % extents[a]), extents)
    };
    let mut sharing: Vec<f64> = try_zeroed("the kernel", inputs)?;
    layer.axes.each_tap().for_each(|tap| sharing[place(tap)] += 1.0);
    let mut projected = try_with_capacity("the kernel", layer.weight.len())?;
    for kernel in data.chunks_exact(inputs) {
        let taps = layer.axes.each_tap().map(place);
        projected.extend(taps.map(|place| kernel[place] / sharing[place]));
    }
    Ok(projected)
}

/// The inverse discrete Fourier transform along one axis of `[frequencies][len]`.
fn transform_back(symbols: &mut [c64], grid: [usize; 3], axis: usize, len: usize) -> Result<()> {
    let n = grid[axis];
    if n == 1 {
        return Ok(());
    }
    let inner = grid[axis + 1..].iter().product::<usize>() * len;
    let mut waves = try_with_capacity("a Fourier transform", n * n)?;
    for q in 0..n {
        let wave = |f: usize| phase([f, 0, 0], [-(q as i64), 0, 0], [n, 1, 1]) / n as f64;
        waves.extend((0..n).map(wave));
    }
    let waves = MatRef::from_column_major_slice(&waves, n, n);
    symbols.par_chunks_exact_mut(n * inner).try_for_each(|part| {
        let mut source = try_with_capacity("a Fourier transform", part.len())?;
        source.extend_from_slice(part);
        matmul(
            MatMut::from_column_major_slice_mut(part, inner, n),
            Accum::Replace,
            MatRef::from_column_major_slice(&source, inner, n),
            waves,
            c64::ONE,
            Par::Seq,
        );
        Ok(())
    })
}
