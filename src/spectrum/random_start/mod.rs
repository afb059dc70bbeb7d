//! The largest or the smallest singular value from random starts: a bound that is certain, and on the other
//! side one that is wrong for few of them.
//!
//! Golub–Kahan bidiagonalisation from a random unit vector v gives A·V = U·B. Its k-th vector is p(AᵀA)·v,
//! where B's coefficients define the polynomial p, and has unit length: an eigenvalue λ of AᵀA whose
//! eigenvector x has |⟨v, x⟩| ≥ δ satisfies |p(λ)|·δ ≤ 1. Beyond the eigenvalues of BᵀB p grows quickly, so λ
//! is hardly beyond them. And P(|⟨v, x⟩| < δ) ≤ δ·√(2n/π) (Hochstenbach 2013, "Probabilistic upper bounds
//! for the matrix two-norm"). Where the iteration ends by itself, because v lies in a small invariant
//! subspace, another random vector begins a run of its own, and probabilities are multiplied.
//!
//! Vectors lose their orthogonality only in directions in which B's values have converged (Paige 1971). It is
//! looked at from time to time; once it begins to go, V is kept orthogonal, which keeps U so (Simon & Zha
//! 2000). To keep it so from the start took as long as the products with A.

mod run;

use std::ops::ControlFlow;

use super::bidiagonal::Bidiagonal;
use super::norm::{finite, negligible};
use super::options::Progress;
use crate::element::Accumulator;
use crate::error::Result;
use crate::operator::{Direction, Operator};
use crate::panel::{Random, Target, add_scaled, dots, norms, project_out};
use crate::tensor::Tensor;
use run::bounds;
pub(super) use run::{Bounds, End};

/// Steps between two looks at how orthogonal vectors are.
const CHECK: usize = 8;

/// Inner products of unit vectors up to which these count as orthogonal, in roots of the unit roundoff: they
/// grow tenfold between two looks, and one root is what coefficients bear (Simon 1984).
const ORTHOGONAL: f64 = 1e-2;

/// Vectors up to this length are kept orthogonal at every step: they are cheap, and converge early.
const SHORT: usize = 1 << 14;

/// What is wished of the iteration.
pub(super) struct Goal {
    pub end: End,
    /// How far the two bounds may be apart, in parts of the certain one.
    pub gap: f64,
    /// The share of starts for which the other may be wrong.
    pub failure_probability: f64,
    /// Steps, at most.
    pub steps: usize,
}

/// What [`bracket`] found.
pub(super) struct Bracket {
    /// Of the largest a lower bound, of the smallest an upper one, but for rounding.
    pub found: f64,
    /// On the other side, but for the share of starts.
    pub other: Option<f64>,
    /// Steps.
    pub steps: usize,
    /// Whether one random start has given all of them.
    pub one_start: bool,
    /// The same of the largest.
    pub largest: Bounds,
    /// The largest coefficient: the norm is no smaller.
    pub scale: f64,
    pub applications: u64,
}

/// Bounds of a singular value, by steps until they are near enough or the caller ends it.
pub(super) fn bracket<T: Accumulator>(
    operator: &Operator<T>,
    goal: &Goal,
    seed: u64,
    progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Bracket> {
    let steps = goal.steps.min(operator.shape()[0]).min(operator.shape()[1]);
    let mut iteration = Iteration::new(operator, steps, seed)?;
    let mut gap = f64::INFINITY;
    while iteration.done < steps {
        iteration.step()?;
        // The bounds take as long as an application of a small operator, and longer for long runs.
        if iteration.done.is_multiple_of(1 + iteration.done / 64) || iteration.done == steps {
            gap = iteration.bounds(goal, goal.end).gap();
        }
        let reached = gap <= goal.gap;
        let state = Progress {
            applications: iteration.applications,
            wanted: 1,
            converged: usize::from(reached),
            residual: gap,
        };
        if progress(&state).is_break() || reached {
            break;
        }
    }
    let Bounds { found, other } = iteration.bounds(goal, goal.end);
    Ok(Bracket {
        found,
        other,
        steps: iteration.done,
        one_start: iteration.runs.len() == 1,
        largest: iteration.bounds(goal, End::Largest),
        scale: iteration.scale,
        applications: iteration.applications,
    })
}

/// The iteration's state. V has the shorter vectors.
struct Iteration<'a, T: Accumulator> {
    operator: &'a Operator<T>,
    /// The direction that goes from V to U.
    forward: Direction,
    /// `[steps, n]`: all vectors.
    v: Tensor<T>,
    /// `[1, n]`: the next one, unless a run begins, before it is given unit length.
    z: Tensor<T>,
    /// `[1, m]`: the last vector of U.
    u: Tensor<T>,
    /// `[1, m]`.
    w: Tensor<T>,
    /// Finished rows of V.
    done: usize,
    /// Whether vectors have begun to lose their orthogonality, and every next one is made orthogonal to all.
    converging: bool,
    runs: Vec<Bidiagonal>,
    /// The largest coefficient.
    scale: f64,
    random: Random,
    applications: u64,
}

impl<'a, T: Accumulator> Iteration<'a, T> {
    fn new(operator: &'a Operator<T>, steps: usize, seed: u64) -> Result<Self> {
        let [m, n] = operator.shape();
        let (long, short) = (m.max(n), m.min(n));
        let panel =
            |rows: usize, len: usize| Tensor::<T>::for_result(operator.device(), &[rows, len]);
        Ok(Iteration {
            operator,
            forward: if n <= m { Direction::Forward } else { Direction::Adjoint },
            v: panel(steps, short)?,
            z: panel(1, short)?,
            u: panel(1, long)?,
            w: panel(1, long)?,
            done: 0,
            converging: short <= SHORT,
            runs: Vec::new(),
            scale: 0.0,
            random: Random { seed, calls: 0 },
            applications: 0,
        })
    }

    /// Below this a norm is rounding.
    fn negligible(&self) -> f64 {
        negligible::<T>(self.scale)
    }

    /// One more vector on either side.
    fn step(&mut self) -> Result<()> {
        let row = self.done..self.done + 1;
        let before = match self.runs.last() {
            Some(run) if run.coupling() > self.negligible() => run.coupling(),
            _ => {
                self.random.fill(self.z.view_mut())?;
                project_out(&self.v.view().slice_rows(0..self.done), self.z.view_mut())?;
                self.runs.push(Bidiagonal::default());
                0.0
            }
        };
        let norm = norms(&self.z.view())?[0];
        let target = self.v.view_mut().slice_rows(row.clone());
        add_scaled(norm.recip(), &self.z.view(), target, Target::Replaced)?;
        self.done += 1;
        // A·v, less what it has along the last u.
        let v = self.v.view().slice_rows(row);
        self.operator.run(self.forward, v.clone(), self.w.view_mut())?;
        self.applications += 1;
        if before > 0.0 {
            add_scaled(-before, &self.u.view(), self.w.view_mut(), Target::Kept)?;
        }
        let alpha = norms(&self.w.view())?[0];
        finite(self.operator, [alpha])?;
        self.scale = self.scale.max(alpha);
        if alpha <= self.negligible() {
            drop(v);
            self.take(alpha, 0.0);
            return Ok(());
        }
        add_scaled(alpha.recip(), &self.w.view(), self.u.view_mut(), Target::Replaced)?;
        // Aᵀ·u, less what it has along v.
        self.operator.run(self.forward.reversed(), self.u.view(), self.z.view_mut())?;
        self.applications += 1;
        add_scaled(-alpha, &v, self.z.view_mut(), Target::Kept)?;
        drop(v);
        let beta = self.orthogonalised()?;
        finite(self.operator, [beta])?;
        self.take(alpha, beta);
        Ok(())
    }

    fn take(&mut self, alpha: f64, beta: f64) {
        self.scale = self.scale.max(beta);
        let run = self.runs.last_mut().expect("a step begins with a run");
        run.diagonal.push(alpha);
        run.above.push(beta);
    }

    /// Has the next vector orthogonal to the others, as far as it has to be, and returns its length.
    fn orthogonalised(&mut self) -> Result<f64> {
        let basis = self.v.view().slice_rows(0..self.done);
        if self.converging {
            project_out(&basis, self.z.view_mut())?;
            return Ok(norms(&self.z.view())?[0]);
        }
        let length = norms(&self.z.view())?[0];
        if !self.done.is_multiple_of(CHECK) {
            return Ok(length);
        }
        let parts = dots(&basis, &self.z.view())?;
        let worst = (0..self.done).map(|i| parts[(i, 0)].abs()).fold(0.0, f64::max);
        if worst <= ORTHOGONAL * T::DTYPE.unit_roundoff().sqrt() * length {
            return Ok(length);
        }
        self.converging = true;
        project_out(&basis, self.z.view_mut())?;
        Ok(norms(&self.z.view())?[0])
    }

    fn bounds(&self, goal: &Goal, end: End) -> Bounds {
        // A·v = 0 to rounding, or Aᵀ·u = 0: a coefficient below this is not known.
        let least = self.scale * self.negligible();
        let vectors = self.v.shape()[1];
        let mut bounds = bounds(&self.runs, end, vectors, least, goal.failure_probability);
        if self.done == vectors {
            bounds.other = Some(bounds.found);
        }
        bounds
    }
}
