//! A number that the norm of a layer does not exceed, for every padding mode and stride.
//!
//! A layer that pads with zeros is a compression of its convolution over the infinite grid, whose norm is
//! the supremum over all phases of the largest singular value of the symbol. Other modes first copy the
//! input to the padded positions, at most m to one: a factor √m. Between the phases of a grid of N an axis,
//! a trigonometric polynomial of degree d/2 exceeds its largest value on the grid by a factor of at most
//! 1/cos(π·d/(2N)) (Ehlich & Zeller 1964); d is the span of the symbol.

mod gram;
#[cfg(test)]
mod tests;

use std::f64::consts::PI;

use rayon::prelude::*;

use super::circular::is_circle;
use super::circular::solver::{Accuracy, largest_real, values};
use super::symbol::{Frequency, Symbol, half_of, output_step};
use crate::error::Result;
use crate::geometry::{AxisMap, PaddingMode};
use crate::memory::try_zeroed;
use crate::operator::layer::Layer;
use gram::{Grams, gram_work};

/// Floating-point operations that a bound may take, unless it would be too coarse.
const BUDGET: f64 = 12e9;

/// The coarsest grid, in phases for each of the span.
const COARSEST: usize = 4;

/// How far above the norm of the infinite operator the finest grid may end, relatively.
const FINEST: f64 = 1e-3;

/// What rounding may have taken from an exact value, relatively.
const ROUNDING: f64 = 1e-12;

/// An upper bound of a layer's largest singular value.
#[derive(Clone, Debug, PartialEq)]
pub struct NormBound {
    /// No singular value of the layer exceeds it.
    pub value: f64,
    /// What it is a bound of and how it was found, for example `symbol on a 50x50 grid of phases, zeros
    /// padding as a compression`.
    pub bound: String,
}

/// How the largest singular values at the phases of a grid are bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// They are computed.
    Exact,
    /// They are proved to be small enough.
    Certified,
}

/// An upper bound of the norm of a layer, from its weights and geometry alone: the same each time.
///
/// # Errors
/// [`crate::Error::Allocation`] and [`crate::Error::TooLarge`] when the symbols do not fit in memory.
pub(crate) fn norm_bound(layer: &Layer) -> Result<NormBound> {
    let symbol = Symbol::infinite(layer)?;
    let torus = layer.axes.iter().all(is_circle);
    if torus {
        let grid = std::array::from_fn(|axis| match symbol.span[axis] {
            0 => 1,
            _ => layer.axes[axis].outputs(),
        });
        let method = if grid == [1; 3] || work(&symbol, grid, Method::Exact) <= BUDGET {
            Some(Method::Exact)
        } else {
            // A torus with fewer frequencies than a good grid has phases.
            let finest = candidate(&symbol, finest(&symbol));
            let fewer = grid.iter().product::<usize>() <= finest.iter().product();
            (fewer && work(&symbol, grid, Method::Certified) <= BUDGET).then_some(Method::Certified)
        };
        if let Some(method) = method {
            let step = layer.axes.each_ref().map(output_step);
            let value = largest(&symbol, grid, step, method)?;
            let how = if method == Method::Exact { "exact" } else { "certified" };
            let bound = match by_axis(layer, grid) {
                grid if grid == "1" => {
                    format!("{how}, from the one symbol of the layer on a torus")
                }
                grid => format!("{how}, from the symbols at the {grid} frequencies of the torus"),
            };
            return Ok(NormBound { value, bound });
        }
    }
    let (grid, method) = choose(&symbol);
    let between: f64 = (0..3)
        .map(|axis| (PI * symbol.span[axis] as f64 / (2.0 * grid[axis] as f64)).cos())
        .product();
    let copies = layer.axes.iter().map(copies).collect::<Result<Vec<_>>>()?;
    let copies: usize = copies.iter().product();
    let value = largest(&symbol, grid, [1; 3], method)? / between * (copies as f64).sqrt();
    let how = if method == Method::Exact { "" } else { ", certified by Cholesky factors" };
    let grid = match by_axis(layer, grid) {
        grid if grid == "1" => "symbol, alike at all phases".to_owned(),
        grid => format!("symbol on a {grid} grid of phases{how}"),
    };
    let mode = layer.axes.iter().map(AxisMap::mode).find(|&mode| mode != PaddingMode::Zeros);
    let operator = match mode {
        _ if torus => "the torus as a part of the infinite grid".to_owned(),
        Some(mode) => format!("{mode} padding as at most {copies} copies of an input"),
        None => "zeros padding as a compression".to_owned(),
    };
    Ok(NormBound { value: value * (1.0 + ROUNDING), bound: format!("{grid}, {operator}") })
}

/// On one axis, the largest number of padded positions among those read that are one input.
fn copies(map: &AxisMap) -> Result<usize> {
    if map.mode() == PaddingMode::Zeros || is_circle(map) {
        return Ok(1);
    }
    let mut read: Vec<u8> = try_zeroed("the padded positions", map.padded_extent())?;
    for o in 0..map.outputs() {
        (0..map.taps()).for_each(|k| read[map.padded_position(o, k)] = 1);
    }
    let mut copies: Vec<usize> = try_zeroed("the padded positions", map.inputs())?;
    let read = (0..map.padded_extent()).filter(|&q| read[q] != 0);
    read.filter_map(|q| map.padded_source(q)).for_each(|i| copies[i] += 1);
    Ok(copies.into_iter().max().unwrap_or(1).max(1))
}

/// The largest singular value of all symbols at the frequencies `f·step` of a grid, or slightly more.
fn largest(symbol: &Symbol, grid: [usize; 3], step: [usize; 3], method: Method) -> Result<f64> {
    let half = half_of(grid)?;
    let stepped = |&(frequency, _): &(Frequency, bool)| -> Frequency {
        std::array::from_fn(|a| (frequency[a] as u128 * step[a] as u128 % grid[a] as u128) as usize)
    };
    let frequencies: Vec<Frequency> = half.iter().map(stepped).collect();
    let shape = [symbol.rows, symbol.columns()];
    let value = match method {
        Method::Exact if grid == [1; 3] => {
            let phases = symbol.phases(&frequencies, grid)?;
            let norm = |group| largest_real(&symbol.at(group, &phases)?, shape);
            let norms: Vec<f64> =
                (0..symbol.groups).into_par_iter().map(norm).collect::<Result<_>>()?;
            norms.into_iter().fold(0.0, f64::max) * (1.0 + ROUNDING)
        }
        Method::Exact => {
            let of_block = |block: &[Frequency]| -> Result<f64> {
                let phases = symbol.phases(block, grid)?;
                let mut largest = 0.0f64;
                for group in 0..symbol.groups {
                    let matrices = symbol.at(group, &phases)?;
                    // Squares lose accuracy only for the small ones.
                    let values = values(&matrices, shape, Accuracy::Single)?;
                    largest = values.into_iter().fold(largest, f64::max);
                }
                Ok(largest)
            };
            let blocks = frequencies.par_chunks(symbol.block()).map(of_block);
            let parts: Vec<f64> = blocks.collect::<Result<_>>()?;
            parts.into_iter().fold(0.0, f64::max) * (1.0 + ROUNDING)
        }
        Method::Certified => {
            let (_, sampled) = gram_work(symbol, frequencies.len() as f64, GRAM_USES);
            Grams::new(symbol, grid, sampled)?.certified(&frequencies)?
        }
    };
    Ok(value * symbol.scale)
}

/// How often a Gram matrix is made for a proof: once, and some again where the limit was too low.
const GRAM_USES: f64 = 1.5;

/// Floating-point operations, about, as fast as those of products: fitted to times of faer's algorithms for
/// 16, 64 and 128 rows, of which the smaller take longer for what they do.
fn work(symbol: &Symbol, grid: [usize; 3], method: Method) -> f64 {
    let phases = (grid.iter().map(|&n| n as f64).product::<f64>() / 2.0).ceil();
    let (p, groups) = (symbol.rank() as f64, symbol.groups as f64);
    match method {
        Method::Exact => {
            let symbols = 8.0 * symbol.work() + 4.0 * p * symbol.len() as f64;
            let eigenvalues =
                if p > 1.0 { 30.0 * p.powi(3) + 2500.0 * p.powi(2) + 35000.0 * p } else { 0.0 };
            groups * phases * (symbols + eigenvalues)
        }
        Method::Certified => {
            let proofs = 5.0 * p.powi(3) + 400.0 * p.powi(2) + 20000.0 * p;
            gram_work(symbol, phases, GRAM_USES).0 + groups * phases * proofs
        }
    }
}

/// Phases for each of the span so that the cosines are near enough to 1.
fn finest(symbol: &Symbol) -> usize {
    let axes = symbol.span.iter().filter(|&&span| span > 0).count() as f64;
    // 1 − cos x is about x²/2.
    ((PI / 2.0 * (axes / (2.0 * FINEST)).sqrt()).ceil() as usize).max(COARSEST)
}

fn candidate(symbol: &Symbol, ratio: usize) -> [usize; 3] {
    symbol.span.map(|span| (ratio * span).max(1))
}

/// The grid and the method that give the smallest bound in the budget.
fn choose(symbol: &Symbol) -> ([usize; 3], Method) {
    if symbol.span == [0; 3] {
        return ([1; 3], Method::Exact);
    }
    let best = |method: Method| {
        let ratios = (COARSEST..=finest(symbol)).rev();
        let mut grids = ratios.map(|ratio| candidate(symbol, ratio));
        grids.find(|&grid| work(symbol, grid, method) <= BUDGET)
    };
    let looseness = |grid: [usize; 3], method: Method| {
        let cosine = |a: usize| (PI * symbol.span[a] as f64 / (2.0 * grid[a] as f64)).cos();
        let above = if method == Method::Exact { 1.0 } else { 1.003 };
        above / (0..3).map(cosine).product::<f64>()
    };
    // With few rows the values themselves cost no more than proofs.
    let methods = [Method::Exact, Method::Certified];
    let fitting = methods.into_iter().filter_map(|method| Some((best(method)?, method)));
    let best = fitting.min_by(|a, b| looseness(a.0, a.1).total_cmp(&looseness(b.0, b.1)));
    let coarsest = candidate(symbol, COARSEST);
    let cheaper = || {
        let cost = |&method: &Method| work(symbol, coarsest, method);
        if cost(&Method::Exact) <= cost(&Method::Certified) {
            Method::Exact
        } else {
            Method::Certified
        }
    };
    best.unwrap_or_else(|| (coarsest, cheaper()))
}

/// For example `56x56`: the axes that the layer's kernel or input extends over, one at least.
fn by_axis(layer: &Layer, grid: [usize; 3]) -> String {
    let unused = |axis: usize| layer.axes[axis].inputs() == 1 && layer.axes[axis].taps() == 1;
    let from = (0..2).take_while(|&axis| unused(axis)).count();
    if grid == [1; 3] {
        return "1".to_owned();
    }
    grid[from..].iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}
