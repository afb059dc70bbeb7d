//! Golub–Kahan bidiagonalisation of several random starts at once.
//!
//! Each probe has coefficients of its own; they share applications, which take a block of vectors in less
//! time than one by one. The side with the shorter vectors is V, orthogonalised against all of its own
//! basis. U needs its last vector only, and stays orthogonal enough by itself (Simon & Zha 2000).

use std::ops::ControlFlow;

use faer::Mat;

use super::super::bidiagonal::Bidiagonal;
use super::super::norm::{finite, negligible};
use super::super::options::Progress;
use crate::element::Accumulator;
use crate::error::Result;
use crate::operator::{Direction, Operator};
use crate::panel::{Random, Target, add_scaled, combine, norms, project_out};
use crate::tensor::Tensor;

/// Bytes of the bases that are in memory at a time, about.
const MEMORY: usize = 512 << 20;

/// Probes that share applications, at most: more take no less time each.
const BLOCK: usize = 8;

/// What all probes found. A last coupling of 0 means that the space is invariant, which makes the quadrature
/// exact.
pub(super) struct Found {
    pub probes: Vec<Bidiagonal>,
    pub applications: u64,
    pub interrupted: bool,
}

/// The probes of an operator.
pub(super) struct Probes<'a, T: Accumulator> {
    operator: &'a Operator<T>,
    /// The direction that goes from V to U.
    forward: Direction,
    /// The lengths of vectors of V and of U.
    short: usize,
    long: usize,
    probes: usize,
    steps: usize,
    random: Random,
    found: Vec<Bidiagonal>,
    applications: u64,
}

impl<'a, T: Accumulator> Probes<'a, T> {
    pub(super) fn new(operator: &'a Operator<T>, probes: usize, steps: usize, seed: u64) -> Self {
        let [m, n] = operator.shape();
        let forward = if n <= m { Direction::Forward } else { Direction::Adjoint };
        let random = Random { seed, calls: 0 };
        let (short, long, found) = (m.min(n), m.max(n), Vec::new());
        Probes { operator, forward, short, long, probes, steps, random, found, applications: 0 }
    }

    /// Takes all probes, some at a time.
    pub(super) fn run(
        mut self,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Found> {
        let basis = self.steps.saturating_mul(self.short).saturating_mul(size_of::<T>());
        // Two at least: of what a caller ends early there is to be a standard error.
        let block = (MEMORY / basis.max(1)).clamp(2, BLOCK);
        let mut interrupted = false;
        while self.found.len() < self.probes && !interrupted {
            let left = self.probes - self.found.len();
            interrupted = self.block(block.min(left), progress)?.is_break();
        }
        Ok(Found { probes: self.found, applications: self.applications, interrupted })
    }

    fn panel(&self, rows: usize, len: usize) -> Result<Tensor<T>> {
        Tensor::for_result(self.operator.device(), &[rows, len])
    }

    /// Takes so many probes together, until all have their steps or have ended.
    fn block(
        &mut self,
        probes: usize,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let first = self.found.len();
        self.found.extend((0..probes).map(|_| Bidiagonal::default()));
        let mut bases =
            (0..probes).map(|_| self.panel(self.steps, self.short)).collect::<Result<Vec<_>>>()?;
        let mut start = self.panel(probes, self.short)?;
        // A probe's numbers do not depend on how many are taken together.
        for row in 0..probes {
            self.random.fill(start.view_mut().slice_rows(row..row + 1))?;
        }
        let lengths = norms(&start.view())?;
        // The probes that go on: the rows of `v`, and of U's last vectors `u`.
        let mut active: Vec<usize> = (0..probes).collect();
        let mut v = self.panel(probes, self.short)?;
        let all: Vec<usize> = (0..probes).collect();
        pick(&all, |row| lengths[row].recip(), &start, &mut v, Target::Replaced)?;
        drop(start);
        let mut u: Option<Tensor<T>> = None;
        for step in 0..self.steps {
            for (row, &probe) in active.iter().enumerate() {
                let target = bases[probe].view_mut().slice_rows(step..step + 1);
                add_scaled(1.0, &v.view().slice_rows(row..row + 1), target, Target::Replaced)?;
            }
            // A·v, less what it has along the last u.
            let mut w = self.panel(active.len(), self.long)?;
            self.operator.run(self.forward, v.view(), w.view_mut())?;
            self.applications += active.len() as u64;
            let rows: Vec<usize> = (0..active.len()).collect();
            if let Some(u) = u.take() {
                let above = |row: usize| -self.found[first + active[row]].above[step - 1];
                pick(&rows, above, &u, &mut w, Target::Kept)?;
            }
            let lengths = norms(&w.view())?;
            let left = self.take(first, &active, &lengths, |probe| &mut probe.diagonal)?;
            let mut next = self.panel(left.len(), self.long)?;
            pick(&left, |row| lengths[row].recip(), &w, &mut next, Target::Replaced)?;
            drop(w);
            // Those whose image is in U's space have all that Aᵀ·A makes of their start.
            for (row, &probe) in active.iter().enumerate() {
                if !left.contains(&row) {
                    self.found[first + probe].above.push(0.0);
                }
            }
            // Aᵀ·u, less what it has along V.
            let mut z = self.panel(left.len(), self.short)?;
            self.operator.run(self.forward.reversed(), next.view(), z.view_mut())?;
            self.applications += left.len() as u64;
            pick(&left, |row| -lengths[row], &v, &mut z, Target::Kept)?;
            active = left.iter().map(|&row| active[row]).collect();
            for (row, &probe) in active.iter().enumerate() {
                let basis = bases[probe].view().slice_rows(0..step + 1);
                project_out(&basis, z.view_mut().slice_rows(row..row + 1))?;
            }
            let lengths = norms(&z.view())?;
            let left = self.take(first, &active, &lengths, |probe| &mut probe.above)?;
            active = left.iter().map(|&row| active[row]).collect();
            let going_on = step + 1 < self.steps && !active.is_empty();
            let state = Progress {
                applications: self.applications,
                wanted: self.probes,
                converged: if going_on { first } else { first + probes },
                residual: f64::INFINITY,
            };
            let ended = progress(&state).is_break();
            if ended && (going_on || self.found.len() < self.probes) {
                return Ok(ControlFlow::Break(()));
            }
            if !going_on {
                break;
            }
            v = self.panel(left.len(), self.short)?;
            pick(&left, |row| lengths[row].recip(), &z, &mut v, Target::Replaced)?;
            let mut last = self.panel(left.len(), self.long)?;
            pick(&left, |_| 1.0, &next, &mut last, Target::Replaced)?;
            u = Some(last);
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Notes a coefficient of each of these probes, and returns the rows of those that go on: that are not
    /// rounding.
    fn take(
        &mut self,
        first: usize,
        active: &[usize],
        lengths: &[f64],
        of: impl Fn(&mut Bidiagonal) -> &mut Vec<f64>,
    ) -> Result<Vec<usize>> {
        finite(self.operator, lengths.iter().copied())?;
        let mut left = Vec::with_capacity(active.len());
        for (row, (&probe, &length)) in active.iter().zip(lengths).enumerate() {
            let found = &mut self.found[first + probe];
            let negligible = negligible::<T>(found.scale());
            let goes_on = length > negligible;
            of(found).push(if goes_on { length } else { 0.0 });
            if goes_on {
                left.push(row);
            }
        }
        Ok(left)
    }
}

/// Row i of `to` becomes, or is added, row `rows[i]` of `from` with its factor.
fn pick<T: Accumulator>(
    rows: &[usize],
    factor: impl Fn(usize) -> f64,
    from: &Tensor<T>,
    to: &mut Tensor<T>,
    target: Target,
) -> Result<()> {
    let columns = from.shape()[0];
    let entry = |i: usize, j: usize| if rows[i] == j { factor(j) } else { 0.0 };
    let coefficients = Mat::from_fn(rows.len(), columns, entry);
    combine(coefficients.as_ref(), &from.view(), to.view_mut(), target)
}
