//! Gram matrices of symbols at many phases, and proofs that none has an eigenvalue above a limit.

use faer::dyn_stack::MemStack;
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::matmul::matmul;
use faer::prelude::default;
use faer::{Accum, Mat, MatMut, MatRef, Par, c64};
use rayon::prelude::*;

use crate::error::Result;
use crate::geometry::{ravel, unravel};
use crate::memory::{try_with_capacity, try_zeroed};
use crate::spectrum::circular::solver::{gram_into, memory, norm};
use crate::spectrum::symbol::{Frequency, Symbol, filled, half_of, opposite};

/// Samples of Gram matrices take so many bytes at most.
const SAMPLE_BYTES: f64 = 256e6;

/// By how much a limit is raised above what is known to be reached, and where that does not do.
const STEP: f64 = 1.003;

/// Steps of Lanczos' method: the largest singular value is then right to a percent or better.
const LANCZOS_STEPS: usize = 12;

/// Gram matrices of all groups at the phases of a grid, the smaller of S·S* and S*·S.
///
/// As functions of a phase they are trigonometric polynomials of the degree of the span, and so follow from
/// their values at 2·span + 1 phases of an axis: a product with real numbers, which for many channels costs
/// far less than those of the symbols.
pub(in crate::spectrum) struct Grams<'a> {
    symbol: &'a Symbol,
    extents: [usize; 3],
    /// For each group `[phases][rank²]`: real parts in the lower triangle and imaginary ones in the upper.
    samples: Option<Vec<Vec<f64>>>,
    /// For each axis `[extent][samples]`, the weight of each sample.
    weights: [Vec<f64>; 3],
}

/// Numbers of samples an axis.
fn sample_grid(symbol: &Symbol) -> [usize; 3] {
    symbol.span.map(|span| 2 * span + 1)
}

/// Floating-point operations that a Gram matrix takes from its symbol.
fn direct_work(symbol: &Symbol) -> f64 {
    8.0 * symbol.work() + 4.0 * symbol.rank() as f64 * symbol.len() as f64
}

/// The same from samples, and for all samples of a group.
fn sampled_work(symbol: &Symbol) -> (f64, f64) {
    let samples: f64 = sample_grid(symbol).iter().map(|&n| n as f64).product();
    let square = (symbol.rank() as f64).powi(2);
    (2.0 * samples * square + 4.0 * square, samples / 2.0 * direct_work(symbol))
}

/// Operations for the Gram matrices of all groups at so many phases, `uses` times each; and whether they
/// are better sampled.
pub(in crate::spectrum) fn gram_work(symbol: &Symbol, phases: f64, uses: f64) -> (f64, bool) {
    let (each, all) = sampled_work(symbol);
    let direct = phases * uses * direct_work(symbol);
    let sampled = all + phases * uses * each;
    let samples: f64 = sample_grid(symbol).iter().map(|&n| n as f64).product();
    let bytes = 8.0 * samples * (symbol.rank() as f64).powi(2) * symbol.groups as f64;
    let groups = symbol.groups as f64;
    if sampled < direct && bytes <= SAMPLE_BYTES {
        (groups * sampled, true)
    } else {
        (groups * direct, false)
    }
}

impl<'a> Grams<'a> {
    pub(in crate::spectrum) fn new(
        symbol: &'a Symbol,
        extents: [usize; 3],
        sampled: bool,
    ) -> Result<Self> {
        let mut grams = Grams { symbol, extents, samples: None, weights: Default::default() };
        if !sampled {
            return Ok(grams);
        }
        let grid = sample_grid(symbol);
        for axis in 0..3 {
            let (n, samples, span) = (extents[axis], grid[axis], symbol.span[axis]);
            let weight = |f: usize, j: usize| {
                // The difference of two phases in turns: the Dirichlet kernel at it.
                let turn = f as f64 / n as f64 - j as f64 / samples as f64;
                let wave = |t: usize| (std::f64::consts::TAU * turn * t as f64).cos();
                (1.0 + 2.0 * (1..=span).map(wave).sum::<f64>()) / samples as f64
            };
            grams.weights[axis] = try_with_capacity("the weights of phases", n * samples)?;
            let each = (0..n).flat_map(|f| (0..samples).map(move |j| (f, j)));
            grams.weights[axis].extend(each.map(|(f, j)| weight(f, j)));
        }
        let (half, rank) = (half_of(grid)?, symbol.rank());
        let square = rank * rank;
        let of_group = |group: usize| -> Result<Vec<f64>> {
            let one = |&(frequency, _): &(Frequency, bool)| -> Result<Vec<f64>> {
                let phases = symbol.phases(&[frequency], grid)?;
                let matrix = symbol.at(group, &phases)?;
                let mut gram = Mat::zeros(rank, rank);
                let matrix =
                    MatRef::from_column_major_slice(&matrix, symbol.rows, symbol.columns());
                gram_into(matrix, &mut gram);
                let mut packed = try_zeroed("a Gram matrix", square)?;
                for j in 0..rank {
                    packed[j * rank + j] = gram[(j, j)].re;
                    for i in j + 1..rank {
                        packed[j * rank + i] = gram[(i, j)].re;
                        packed[i * rank + j] = gram[(i, j)].im;
                    }
                }
                Ok(packed)
            };
            let parts: Vec<Vec<f64>> = half.par_iter().map(one).collect::<Result<_>>()?;
            let mut all: Vec<f64> =
                try_zeroed("Gram matrices", square * grid.iter().product::<usize>())?;
            for (part, &(frequency, pair)) in parts.iter().zip(&half) {
                all[ravel(frequency, grid) * square..][..square].copy_from_slice(part);
                if pair {
                    // The conjugate: its upper triangle has the other sign.
                    let start = ravel(opposite(frequency, grid), grid) * square;
                    for (at, (to, from)) in all[start..][..square].iter_mut().zip(part).enumerate()
                    {
                        *to = if at % rank < at / rank { -from } else { *from };
                    }
                }
            }
            Ok(all)
        };
        grams.samples = Some((0..symbol.groups).map(of_group).collect::<Result<_>>()?);
        Ok(grams)
    }

    /// Hands over the Gram matrices of a group at some phases, the lower triangle of each.
    fn each(
        &self,
        group: usize,
        frequencies: &[Frequency],
        mut visit: impl FnMut(usize, &mut Mat<c64>) -> Result<()>,
    ) -> Result<()> {
        let (symbol, rank) = (self.symbol, self.symbol.rank());
        let mut gram = Mat::zeros(rank, rank);
        let Some(samples) = &self.samples else {
            let matrices = symbol.at(group, &symbol.phases(frequencies, self.extents)?)?;
            let shape = [symbol.rows, symbol.columns()];
            for (at, matrix) in matrices.chunks_exact(symbol.len()).enumerate() {
                gram_into(MatRef::from_column_major_slice(matrix, shape[0], shape[1]), &mut gram);
                visit(at, &mut gram)?;
            }
            return Ok(());
        };
        let (grid, square, count) = (sample_grid(symbol), rank * rank, frequencies.len());
        let all: usize = grid.iter().product();
        let mut weights = try_with_capacity("the weights of phases", all * count)?;
        for frequency in frequencies {
            weights.extend((0..all).map(|sample| {
                let at = unravel(sample, grid);
                let weight = |a: usize| self.weights[a][frequency[a] * grid[a] + at[a]];
                weight(0) * weight(1) * weight(2)
            }));
        }
        let mut packed: Vec<f64> = try_zeroed("Gram matrices", square * count)?;
        matmul(
            MatMut::from_column_major_slice_mut(&mut packed, square, count),
            Accum::Replace,
            MatRef::from_column_major_slice(&samples[group], square, all),
            MatRef::from_column_major_slice(&weights, all, count),
            1.0,
            Par::Seq,
        );
        for (at, packed) in packed.chunks_exact(square).enumerate() {
            for j in 0..rank {
                gram[(j, j)] = c64::new(packed[j * rank + j], 0.0);
                for i in j + 1..rank {
                    gram[(i, j)] = c64::new(packed[j * rank + i], packed[i * rank + j]);
                }
            }
            visit(at, &mut gram)?;
        }
        Ok(())
    }

    /// A number that the largest singular value of no symbol at these phases exceeds, about 0.3 % above it:
    /// μ²·I − G has a Cholesky factor at every phase. Where it has none, μ is raised.
    ///
    /// Gram iteration (Delattre et al. 2023) bounds the same: but each squaring of a matrix costs more than a
    /// factorization, and it would take eight of them to come as near.
    pub(in crate::spectrum) fn certified(&self, frequencies: &[Frequency]) -> Result<f64> {
        let block = self.block();
        let mut pending: Vec<(usize, Vec<Frequency>)> = Vec::new();
        for group in 0..self.symbol.groups {
            pending.extend(frequencies.chunks(block).map(|part| (group, part.to_vec())));
        }
        // A few phases show where to begin.
        let spread = |&(group, ref part): &(usize, Vec<Frequency>)| -> Result<f64> {
            let some: Vec<Frequency> = part.iter().copied().step_by(block.min(8)).collect();
            let mut largest = 0.0f64;
            self.each(group, &some, |_, gram| {
                largest = largest.max(reached(gram)?);
                Ok(())
            })?;
            Ok(largest)
        };
        let found: Vec<f64> = pending.par_iter().map(spread).collect::<Result<_>>()?;
        let mut limit = found.into_iter().fold(0.0, f64::max).sqrt() * STEP;
        while !pending.is_empty() {
            let test = |(group, part): &(usize, Vec<Frequency>)| self.refuted(*group, part, limit);
            let refuted: Vec<(Vec<Frequency>, f64)> =
                pending.par_iter().map(test).collect::<Result<_>>()?;
            let groups = pending.iter().map(|(group, _)| *group);
            let reached = refuted.iter().map(|(_, reached)| *reached).fold(0.0, f64::max);
            let failed = groups.zip(refuted).map(|(group, (part, _))| (group, part));
            pending = failed.filter(|(_, part)| !part.is_empty()).collect();
            if !pending.is_empty() {
                limit = (limit * STEP).max(reached.sqrt() * STEP);
            }
        }
        Ok(limit * (1.0 + 1e-9))
    }

    /// The phases at which the limit is not proved, and what the largest eigenvalue there is at least.
    fn refuted(
        &self,
        group: usize,
        part: &[Frequency],
        limit: f64,
    ) -> Result<(Vec<Frequency>, f64)> {
        let rank = self.symbol.rank();
        let mut memory = memory(cholesky_in_place_scratch::<c64>(rank, Par::Seq, default()))?;
        let (mut factor, mut failed, mut largest) = (Mat::zeros(rank, rank), Vec::new(), 0.0f64);
        self.each(group, part, |at, gram| {
            if trace(gram) == 0.0 {
                return Ok(());
            }
            for j in 0..rank {
                factor[(j, j)] = c64::new(limit * limit - gram[(j, j)].re, 0.0);
                for i in j + 1..rank {
                    factor[(i, j)] = -gram[(i, j)];
                }
            }
            let stack = MemStack::new(&mut memory);
            let (none, par) = (Default::default(), Par::Seq);
            if cholesky_in_place(factor.as_mut(), none, par, stack, default()).is_err() {
                failed.push(part[at]);
                largest = largest.max(reached(gram)?);
            }
            Ok(())
        })?;
        Ok((failed, largest))
    }

    /// How many phases are looked at in one go.
    fn block(&self) -> usize {
        let bytes = 8 * (self.symbol.rank().pow(2)).max(1);
        // Not one by one: each block reads all samples.
        ((1usize << 20) / bytes).clamp(4, 64)
    }
}

fn trace(gram: &Mat<c64>) -> f64 {
    (0..gram.nrows()).map(|j| gram[(j, j)].re).sum()
}

/// A number that the largest eigenvalue of a Gram matrix is at least, by a few steps of Lanczos' method: the
/// largest Ritz value, or the mean eigenvalue. The matrix's upper triangle is filled in.
fn reached(gram: &mut Mat<c64>) -> Result<f64> {
    let rank = gram.nrows();
    for j in 0..rank {
        for i in j + 1..rank {
            gram[(j, i)] = gram[(i, j)].conj();
        }
    }
    let mean = trace(gram) / rank as f64;
    // Any vector that no symmetry of the weights makes orthogonal to the one sought.
    let start = |i: usize| c64::new(1.0, (i as f64 * 2.399).sin());
    let vector = || filled("a vector", rank, c64::ZERO);
    let (mut x, mut y, mut before) = (vector()?, vector()?, vector()?);
    x.iter_mut().enumerate().for_each(|(i, x)| *x = start(i));
    let length = norm(&x);
    x.iter_mut().for_each(|x| *x /= length);
    let (mut diagonal, mut beside): (Vec<f64>, Vec<f64>) = (Vec::new(), Vec::new());
    for _ in 0..LANCZOS_STEPS.min(rank) {
        matmul(
            MatMut::from_column_major_slice_mut(&mut y, rank, 1),
            Accum::Replace,
            gram.as_ref(),
            MatRef::from_column_major_slice(&x, rank, 1),
            c64::ONE,
            Par::Seq,
        );
        let alpha: f64 = x.iter().zip(&y).map(|(x, y)| x.re * y.re + x.im * y.im).sum();
        let beta = beside.last().copied().unwrap_or(0.0);
        for ((y, x), before) in y.iter_mut().zip(&x).zip(&before) {
            *y -= *x * alpha + *before * beta;
        }
        diagonal.push(alpha);
        let beta = norm(&y);
        // What is left is rounding: the vectors so far span an invariant subspace.
        if beta <= 1e-12 * mean {
            break;
        }
        beside.push(beta);
        y.iter_mut().for_each(|y| *y /= beta);
        std::mem::swap(&mut before, &mut x);
        std::mem::swap(&mut x, &mut y);
    }
    Ok(largest_of_tridiagonal(&diagonal, &beside).max(mean))
}

/// The largest eigenvalue of a symmetric tridiagonal matrix, by bisection, from below.
fn largest_of_tridiagonal(diagonal: &[f64], beside: &[f64]) -> f64 {
    let row = |i: usize| {
        let left = if i > 0 { beside[i - 1] } else { 0.0 };
        let right = if i + 1 < diagonal.len() { beside[i] } else { 0.0 };
        diagonal[i] + left + right
    };
    let mut above = (0..diagonal.len()).map(row).fold(0.0, f64::max);
    let mut below = 0.0;
    // By Sylvester's law all pivots of T − x are negative just when x exceeds every eigenvalue.
    let exceeds = |x: f64| {
        let mut pivot = f64::INFINITY;
        (0..diagonal.len()).all(|i| {
            let left = if i > 0 { beside[i - 1] } else { 0.0 };
            pivot = diagonal[i] - x - left * left / pivot;
            pivot < 0.0
        })
    };
    for _ in 0..40 {
        let middle = 0.5 * (below + above);
        if exceeds(middle) { above = middle } else { below = middle }
    }
    below
}
