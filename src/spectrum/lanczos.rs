//! Golub–Kahan–Lanczos bidiagonalisation with thick restarts (Baglama & Reichel 2005), in blocks.
//!
//! The iteration keeps orthonormal rows V and U with A·V = U·K and Aᵀ·U = V·Kᵀ + (next block)·Cᵀ: K is small,
//! and its singular values approach the largest of A. What the last term leaves of a triplet is its
//! residual. When the basis is full, the best triplets and the next block are kept, and it goes on.
//!
//! - The side with the shorter vectors is V. It is orthogonalised against all of its basis, once where that
//!   is enough; U then stays orthogonal by itself up to rounding (Simon & Zha 2000), which the result is
//!   checked for. Operators with short vectors get both.
//! - A space in which a vector repeats has missed copies of a multiple value. Before a result is accepted,
//!   a random vector joins the block for some more cycles; where that changes the values, the iteration goes
//!   on with the larger block.
//! - A block that has nothing new is replaced by random vectors: the operator's rank may be smaller than the
//!   number of values that are wanted.

use std::ops::ControlFlow;
use std::time::Instant;

use faer::{Mat, MatRef};

use super::norm::{finite, negligible};
use super::options::{Progress, SpectrumOptions};
use super::small::{Decomposition, decompose};
use crate::element::Accumulator;
use crate::error::Result;
use crate::operator::{Direction, Operator};
use crate::panel::{
    Products, Random, Target, add_scaled, combine, dots, gram, norms, orthonormalise, project_out,
};
use crate::tensor::{Tensor, TensorView};

/// Vectors up to this length are cheap to orthogonalise on both sides.
const SHORT: usize = 1 << 14;

/// Cycles with a random vector more that leave the values as they are, before these are accepted: with one,
/// copies of a value within 1% of the next were missed.
const TRIALS: usize = 3;

/// The triplets that an iteration ended with.
pub(super) struct Found<T: Accumulator> {
    pub values: Vec<f64>,
    /// ‖A·v − σ·u‖ and ‖Aᵀ·u − σ·v‖.
    pub residuals: Vec<[f64; 2]>,
    /// `[k, m]` and `[k, n]`.
    pub u: Tensor<T>,
    pub v: Tensor<T>,
    pub applications: u64,
    /// Whether the caller, or a limit, ended it.
    pub interrupted: bool,
    /// The largest entry of VᵀV − I and UᵀU − I.
    pub orthogonality: f64,
}

/// How the iteration proceeds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    pub wanted: usize,
    pub block: usize,
    pub basis: usize,
    /// Relative to the largest value.
    pub tolerance: f64,
    pub most: u64,
}

impl Schedule {
    /// What suits so many values of an operator whose shorter side has `n` elements.
    pub(super) fn new(options: &SpectrumOptions, wanted: usize, n: usize, tolerance: f64) -> Self {
        // Few values: a single vector takes the fewest applications. Many: the basis is long, and going over
        // it for a block at a time costs less than applications that are saved.
        let block = options.block.unwrap_or(match wanted {
            0..24 => 1,
            24..100 => 4,
            _ => 10,
        });
        let block = block.clamp(1, n.max(1));
        // Where vectors are short a long basis costs nothing, and leaves room for blocks to grow.
        let least = if n <= SHORT { 64 } else { 24 };
        let basis = options.basis.unwrap_or((2 * wanted + 10 * block).max(least));
        let basis = basis.max(wanted + 2 * block + 1).min(n);
        let most = options.applications.unwrap_or(4000 + 200 * wanted as u64);
        Schedule { wanted, block, basis, tolerance, most }
    }
}

/// The iteration's state. `a` has the shorter vectors on its right.
pub(super) struct Lanczos<'a, T: Accumulator> {
    operator: &'a Operator<T>,
    /// The direction that goes from V to U.
    forward: Direction,
    schedule: Schedule,
    both_sides: bool,
    /// `[basis + block, n]`, and what it becomes at a restart.
    v: [Tensor<T>; 2],
    /// `[basis, m]`.
    u: [Tensor<T>; 2],
    k: Mat<f64>,
    /// Finished rows of U.
    done: usize,
    /// Rows of V behind those: the next block.
    next: usize,
    /// C: row i is what Aᵀ·uᵢ has along the next block.
    pending: Mat<f64>,
    /// The largest norm that A has given a vector.
    scale: f64,
    random: Random,
    pub applications: u64,
}

impl<'a, T: Accumulator> Lanczos<'a, T> {
    pub(super) fn new(
        operator: &'a Operator<T>,
        schedule: Schedule,
        seed: u64,
        both_sides: bool,
    ) -> Result<Self> {
        let [m, n] = operator.shape();
        let forward = if n <= m { Direction::Forward } else { Direction::Adjoint };
        let (long, short) = (m.max(n), m.min(n));
        let Schedule { block, basis, .. } = schedule;
        let device = operator.device();
        let panel = |rows: usize, len: usize| Tensor::<T>::for_result(device, &[rows, len]);
        // Room for blocks that grow.
        let rows = basis + 2 * block + 8;
        let mut lanczos = Lanczos {
            operator,
            forward,
            schedule,
            both_sides: both_sides || long <= SHORT,
            v: [panel(rows, short)?, panel(rows, short)?],
            u: [panel(rows, long)?, panel(rows, long)?],
            k: Mat::zeros(rows, rows),
            done: 0,
            next: block.min(short),
            pending: Mat::zeros(0, block),
            scale: 0.0,
            random: Random { seed, calls: 0 },
            applications: 0,
        };
        let mut start = panel(lanczos.next, short)?;
        lanczos.random.fill(start.view_mut())?;
        let [v, other] = &mut lanczos.v;
        let target = v.view_mut().slice_rows(0..lanczos.next);
        let none = other.view().slice_rows(0..0);
        orthonormalise(&mut start, target, &none, 0.0, &mut lanczos.random)?;
        drop(none);
        Ok(lanczos)
    }

    /// Length of the vectors in V.
    fn short(&self) -> usize {
        self.v[0].shape()[1]
    }

    /// Whether V spans everything, so that triplets are exact.
    fn exhausted(&self) -> bool {
        self.next == 0
    }

    /// One block more on either side.
    fn step(&mut self) -> Result<()> {
        let device = self.operator.device();
        let (at, block) = (self.done, self.next);
        let long = self.u[0].shape()[1];
        // A·V of the block, less what it has along U: the pending couplings.
        let mut w = Tensor::<T>::for_result(device, &[block, long])?;
        let from = self.v[0].view().slice_rows(at..at + block);
        self.operator.run(self.forward, from, w.view_mut())?;
        self.applications += block as u64;
        let lengths = norms(&w.view())?;
        finite(self.operator, lengths.iter().copied())?;
        self.scale = lengths.into_iter().fold(self.scale, f64::max);
        let (earlier, target) = self.u[0].view_mut().split_rows(at..at + block);
        let first =
            (0..at).find(|&i| (0..block).any(|c| self.pending[(i, c)] != 0.0)).unwrap_or(at);
        let coupled = self.pending.submatrix(first, 0, at - first, block);
        let coupled_rows = earlier.slice_rows(first..at);
        combine((-coupled.transpose()).as_ref(), &coupled_rows, w.view_mut(), Target::Kept)?;
        for c in 0..block {
            (0..at).for_each(|i| self.k[(i, at + c)] = self.pending[(i, c)]);
        }
        if self.both_sides {
            project_out(&earlier, w.view_mut())?;
        }
        let negligible = negligible::<T>(self.scale);
        let factors = orthonormalise(&mut w, target, &earlier, negligible, &mut self.random)?;
        drop((earlier, coupled_rows));
        for c in 0..block {
            (0..block).for_each(|i| self.k[(at + i, at + c)] = factors.lower[(c, i)]);
        }

        // Aᵀ·U of the block, less what it has along V.
        let short = self.short();
        let mut z = Tensor::<T>::for_result(device, &[block, short])?;
        let from = self.u[0].view().slice_rows(at..at + block);
        self.operator.run(self.forward.reversed(), from, z.view_mut())?;
        self.applications += block as u64;
        let own = self.k.submatrix(at, at, block, block).to_owned();
        let rows = self.v[0].view().slice_rows(at..at + block);
        combine((-own).as_ref(), &rows, z.view_mut(), Target::Kept)?;
        drop(rows);
        self.done = at + block;
        let next = block.min(short - self.done);
        let (basis, mut target) = self.v[0].view_mut().split_rows(self.done..self.done + next);
        project_out(&basis, z.view_mut())?;
        let mut pending = Mat::<f64>::zeros(self.done, next);
        if next > 0 {
            if next == block {
                let fresh = target.reborrow();
                let factors = orthonormalise(&mut z, fresh, &basis, negligible, &mut self.random)?;
                for i in 0..block {
                    (0..next).for_each(|c| pending[(at + i, c)] = factors.lower[(i, c)]);
                }
                // Vectors of a block that nearly depend on one another: what was rounding along the basis
                // has grown with the rest.
                if (0..block).any(|i| factors.lower[(i, i)] < 1e-2 * self.scale) {
                    add_scaled(1.0, &target.as_view(), z.view_mut(), Target::Replaced)?;
                    project_out(&basis, z.view_mut())?;
                    orthonormalise(&mut z, target, &basis, 1e-3, &mut self.random)?;
                }
            } else {
                // Fewer directions are left than the block has vectors: all of them, by any basis.
                let mut rest = Tensor::<T>::for_result(device, &[next, short])?;
                self.random.fill(rest.view_mut())?;
                project_out(&basis, rest.view_mut())?;
                project_out(&basis, rest.view_mut())?;
                let fresh = target.reborrow();
                orthonormalise(&mut rest, fresh, &basis, 0.0, &mut self.random)?;
                let products = dots(&z.view(), &target.as_view())?;
                for i in 0..block {
                    (0..next).for_each(|c| pending[(at + i, c)] = products[(i, c)]);
                }
            }
            let last = pending.submatrix(at, 0, block, next);
            finite(self.operator, (0..next).flat_map(|c| last.col(c).iter().copied()))?;
        }
        self.pending = pending;
        self.next = next;
        Ok(())
    }

    /// The triplets of K, and their residuals.
    fn ritz(&self) -> Result<(Decomposition, Vec<f64>)> {
        let found = decompose(self.k.submatrix(0, 0, self.done, self.done))?;
        let left = found.u.transpose() * &self.pending;
        let residuals = (0..self.done)
            .map(|i| (0..self.next).map(|c| left[(i, c)].powi(2)).sum::<f64>().sqrt())
            .collect();
        Ok((found, residuals))
    }

    /// Keeps the best triplets and the next block.
    fn restart(&mut self, found: &Decomposition, keep: usize) -> Result<()> {
        let (done, next) = (self.done, self.next);
        let head = |panel: &Mat<f64>| panel.submatrix(0, 0, done, keep).transpose().to_owned();
        let [v, other] = &mut self.v;
        rotate(head(&found.v).as_ref(), v, other, done)?;
        copy(&v.view().slice_rows(done..done + next), other, keep)?;
        self.v.swap(0, 1);
        let [u, other] = &mut self.u;
        rotate(head(&found.u).as_ref(), u, other, done)?;
        self.u.swap(0, 1);
        self.pending = head(&found.u) * &self.pending;
        self.k.fill(0.0);
        (0..keep).for_each(|i| self.k[(i, i)] = found.values[i]);
        self.done = keep;
        Ok(())
    }

    /// A random vector joins the next block.
    fn widen(&mut self) -> Result<()> {
        let (rows, short) = (self.done + self.next, self.short());
        // A block that takes most of the basis leaves no steps between restarts.
        let Schedule { wanted, basis, .. } = self.schedule;
        let narrow = 4 * (self.next + 1) <= basis.saturating_sub(wanted);
        if rows >= short || rows >= self.v[0].shape()[0] || !narrow {
            return Ok(());
        }
        let mut fresh = Tensor::<T>::for_result(self.operator.device(), &[1, short])?;
        self.random.fill(fresh.view_mut())?;
        let (basis, target) = self.v[0].view_mut().split_rows(rows..rows + 1);
        project_out(&basis, fresh.view_mut())?;
        orthonormalise(&mut fresh, target, &basis, 0.0, &mut self.random)?;
        // No uᵢ has a component along it: Aᵀ·uᵢ lies in V and the next block.
        let wider = Mat::from_fn(self.done, self.next + 1, |i, c| {
            if c < self.next { self.pending[(i, c)] } else { 0.0 }
        });
        (self.pending, self.next) = (wider, self.next + 1);
        Ok(())
    }

    /// Iterates until the wanted triplets have converged, a limit is reached or the caller ends it.
    pub(super) fn run(
        mut self,
        deadline: Option<Instant>,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Found<T>> {
        let Schedule { wanted, basis, tolerance, most, .. } = self.schedule;
        let mut accepted: Option<Vec<f64>> = None;
        let mut trials = 0;
        let (mut last_residual, mut last_converged) = (f64::INFINITY, 0);
        let mut since_check = 0;
        let interrupted = loop {
            self.step()?;
            since_check += 1;
            let full = self.done + self.next > basis || self.exhausted();
            // Decomposing K costs little, but not nothing: between restarts only where it may end it.
            let near = last_residual < 100.0 * tolerance && since_check >= 4 && accepted.is_none();
            let mut ended = false;
            if full || near {
                since_check = 0;
                let (found, residuals) = self.ritz()?;
                let largest = found.values.first().copied().unwrap_or(0.0);
                // Half of it: what rounding adds to the computed residuals is to be within it, too.
                let small = |r: &&f64| **r <= 0.5 * tolerance * largest;
                let converged = residuals.iter().take(wanted).take_while(small).count();
                last_converged = converged;
                let enough = self.done >= wanted.min(self.short());
                let worst = residuals.iter().take(wanted).copied().fold(0.0, f64::max);
                last_residual = match (enough, largest > 0.0) {
                    (false, _) => f64::INFINITY,
                    (true, true) => worst / largest,
                    (true, false) => 0.0,
                };
                if self.exhausted() {
                    break false;
                }
                if enough && converged >= wanted.min(self.done) {
                    let values: Vec<f64> = found.values.iter().take(wanted).copied().collect();
                    let same = accepted.as_ref().is_some_and(|before| {
                        before
                            .iter()
                            .zip(&values)
                            .all(|(b, v)| (b - v).abs() <= tolerance * largest)
                    });
                    if same && full {
                        trials += 1;
                        if trials == TRIALS {
                            break false;
                        }
                    }
                    if !same {
                        let keep = self.kept(&found);
                        self.restart(&found, keep)?;
                        self.widen()?;
                        (accepted, trials) = (Some(values), 0);
                        if self.applications < most {
                            continue;
                        }
                        break true;
                    }
                }
                if full {
                    let keep = self.kept(&found);
                    self.restart(&found, keep)?;
                }
                ended = self.applications >= most;
            }
            let state = Progress {
                applications: self.applications,
                wanted,
                converged: last_converged,
                residual: last_residual,
            };
            ended |= deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if progress(&state).is_break() || ended {
                break true;
            }
        };
        self.finish(interrupted)
    }

    /// How many triplets a restart keeps: those wanted and some of the next, which would otherwise have to
    /// be found again, in a share of the basis that leaves room to go on.
    fn kept(&self, found: &Decomposition) -> usize {
        let Schedule { wanted, basis, .. } = self.schedule;
        let spare = basis.saturating_sub(wanted + self.next);
        let keep = wanted + spare / 4;
        keep.min(found.values.len()).min(basis.saturating_sub(2 * self.next))
    }

    /// The triplets, their residuals as computed from the vectors themselves.
    fn finish(mut self, interrupted: bool) -> Result<Found<T>> {
        let (found, _) = self.ritz()?;
        let count = self.schedule.wanted.min(self.done);
        let (device, done) = (self.operator.device(), self.done);
        let panel = |len: usize| Tensor::<T>::for_result(device, &[count, len]);
        let (short, long) = (self.short(), self.u[0].shape()[1]);
        let (mut w, mut v) = (panel(short)?, panel(short)?);
        let right = found.v.submatrix(0, 0, done, count).transpose();
        let rows = self.v[0].view().slice_rows(0..done);
        combine(right, &rows, w.view_mut(), Target::Replaced)?;
        drop(rows);
        let none = self.v[0].view().slice_rows(0..0);
        orthonormalise(&mut w, v.view_mut(), &none, 0.0, &mut self.random)?;
        drop(none);
        // Rounding of many restarts is in U and K. The wanted V's own image has none of it, and its
        // decomposition gives the triplets anew (Rayleigh and Ritz).
        let (mut image, mut q) = (panel(long)?, panel(long)?);
        self.operator.run(self.forward, v.view(), image.view_mut())?;
        let earlier = self.u[0].view().slice_rows(0..0);
        let negligible = negligible::<T>(self.scale);
        let random = &mut self.random;
        let factors = orthonormalise(&mut image, q.view_mut(), &earlier, negligible, random)?;
        drop(earlier);
        let small = decompose(factors.lower.as_ref())?;
        let (mut u, mut turned) = (image, w);
        combine(small.v.transpose(), &q.view(), u.view_mut(), Target::Replaced)?;
        combine(small.u.transpose(), &v.view(), turned.view_mut(), Target::Replaced)?;
        let (v, values) = (turned, small.values);
        drop(q);
        let first = residuals(self.operator, self.forward, &v, &u, &values)?;
        let second = residuals(self.operator, self.forward.reversed(), &u, &v, &values)?;
        let orthogonality = defect(&v.view())?.max(defect(&u.view())?);
        let forward = self.forward == Direction::Forward;
        let residuals = first.into_iter().zip(second);
        let residuals = residuals.map(|(f, s)| if forward { [f, s] } else { [s, f] }).collect();
        let (u, v) = if forward { (u, v) } else { (v, u) };
        let applications = self.applications + 3 * count as u64;
        Ok(Found { values, residuals, u, v, applications, interrupted, orthogonality })
    }
}

/// The norms of A·xᵢ − σᵢ·yᵢ.
pub(super) fn residuals<T: Accumulator>(
    operator: &Operator<T>,
    direction: Direction,
    x: &Tensor<T>,
    y: &Tensor<T>,
    values: &[f64],
) -> Result<Vec<f64>> {
    // Some rows at a time, so that no third panel is needed.
    const ROWS: usize = 8;
    let mut found = Vec::with_capacity(values.len());
    for start in (0..values.len()).step_by(ROWS) {
        let rows = start..(start + ROWS).min(values.len());
        let mut image = Tensor::<T>::for_result(operator.device(), &[rows.len(), y.shape()[1]])?;
        operator.run(direction, x.view().slice_rows(rows.clone()), image.view_mut())?;
        let scale =
            Mat::from_fn(
                rows.len(),
                rows.len(),
                |i, j| if i == j { -values[start + i] } else { 0.0 },
            );
        let targets = y.view().slice_rows(rows);
        combine(scale.as_ref(), &targets, image.view_mut(), Target::Kept)?;
        found.extend(norms(&image.view())?);
    }
    Ok(found)
}

/// The largest entry of the Gram matrix less the identity.
pub(super) fn defect<T: Accumulator>(panel: &TensorView<'_, T>) -> Result<f64> {
    let gram = gram(panel, Products::Native)?;
    let entry = |i: usize, j: usize| (gram[(i, j)] - if i == j { 1.0 } else { 0.0 }).abs();
    let rows = gram.nrows();
    Ok((0..rows)
        .flat_map(|i| (0..rows).map(move |j| (i, j)))
        .map(|(i, j)| entry(i, j))
        .fold(0.0, f64::max))
}

/// `to` begins with what the coefficients make of the first rows of `from`.
fn rotate<T: Accumulator>(
    coefficients: MatRef<'_, f64>,
    from: &Tensor<T>,
    to: &mut Tensor<T>,
    rows: usize,
) -> Result<()> {
    let target = to.view_mut().slice_rows(0..coefficients.nrows());
    combine(coefficients, &from.view().slice_rows(0..rows), target, Target::Replaced)
}

/// Copies rows to those of `to` from `start` on.
fn copy<T: Accumulator>(from: &TensorView<'_, T>, to: &mut Tensor<T>, start: usize) -> Result<()> {
    let rows = from.shape()[0];
    let target = to.view_mut().slice_rows(start..start + rows);
    add_scaled(1.0, from, target, Target::Replaced)
}
