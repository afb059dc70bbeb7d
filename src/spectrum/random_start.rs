//! The largest singular value from random starts: a lower bound, and an upper one that is wrong for few of
//! them.
//!
//! Golub–Kahan bidiagonalisation from a random unit vector v gives A·V = U·B. Its k-th vector is p(AᵀA)·v,
//! where B's coefficients define the polynomial p, and has unit length: an eigenvalue λ of AᵀA whose
//! eigenvector x has |⟨v, x⟩| ≥ δ satisfies |p(λ)|·δ ≤ 1. Above the eigenvalues of BᵀB p grows quickly, so λ
//! is hardly above them. And P(|⟨v, x⟩| < δ) ≤ δ·√(2n/π) (Hochstenbach 2013, "Probabilistic upper bounds
//! for the matrix two-norm"). Where the iteration ends by itself, because v lies in a small invariant
//! subspace, another random vector begins a run of its own, and probabilities are multiplied.
//!
//! Vectors lose their orthogonality only in directions in which B's values have converged (Paige 1971). It is
//! looked at from time to time; once it begins to go, V is kept orthogonal, which keeps U so (Simon & Zha
//! 2000). To keep both from the start took as long as the products with A.

use std::f64::consts::FRAC_2_PI;
use std::ops::ControlFlow;

use super::options::Progress;
use crate::element::Accumulator;
use crate::error::Result;
use crate::operator::{Direction, Operator};
use crate::panel::{Random, Target, add_scaled, dots, norms, project_out};
use crate::tensor::Tensor;

/// Steps between two looks at how orthogonal vectors are.
const CHECK: usize = 8;

/// Inner products of unit vectors up to which these count as orthogonal, in roots of the unit roundoff: they
/// grow tenfold between two looks, and one root is what coefficients bear (Simon 1984).
const ORTHOGONAL: f64 = 1e-2;

/// Vectors up to this length are kept orthogonal at every step: they are cheap, and converge early.
const SHORT: usize = 1 << 14;

/// What is wished of the iteration.
pub(super) struct Goal {
    /// Parts of the lower bound that the upper may be above it.
    pub gap: f64,
    /// The share of starts for which the upper bound may be wrong.
    pub failure_probability: f64,
    /// Steps, at most.
    pub steps: usize,
}

/// What [`largest`] found.
pub(super) struct Largest {
    /// A lower bound, but for rounding.
    pub value: f64,
    /// An upper one, but for the share of starts.
    pub upper: Option<f64>,
    /// Steps from the one random start; none where there were several.
    pub steps: Option<usize>,
    pub applications: u64,
}

/// The largest singular value, by steps until the bounds are near enough or the caller ends it.
pub(super) fn largest<T: Accumulator>(
    operator: &Operator<T>,
    goal: &Goal,
    seed: u64,
    progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Largest> {
    let steps = goal.steps.min(operator.shape()[0]).min(operator.shape()[1]);
    let mut iteration = Iteration::new(operator, steps, seed)?;
    while iteration.done < steps {
        iteration.step()?;
        let gap = iteration.bounds(goal).gap();
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
    let Bounds { lower, upper } = iteration.bounds(goal);
    Ok(Largest {
        value: lower,
        upper,
        steps: (iteration.runs.len() == 1).then_some(iteration.done),
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
    runs: Vec<Run>,
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
        16.0 * T::DTYPE.unit_roundoff() * self.scale
    }

    /// One more vector on either side.
    fn step(&mut self) -> Result<()> {
        let row = self.done..self.done + 1;
        let before = match self.runs.last() {
            Some(run) if run.last_beta() > self.negligible() => run.last_beta(),
            _ => {
                self.random.fill(self.z.view_mut())?;
                project_out(&self.v.view().slice_rows(0..self.done), self.z.view_mut())?;
                self.runs.push(Run::default());
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
        self.take(alpha, beta);
        Ok(())
    }

    fn take(&mut self, alpha: f64, beta: f64) {
        self.scale = self.scale.max(beta);
        let run = self.runs.last_mut().expect("a step begins with a run");
        run.alphas.push(alpha);
        run.betas.push(beta);
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

    fn bounds(&self, goal: &Goal) -> Bounds {
        // A·v = 0 to rounding, or Aᵀ·u = 0: a coefficient below this is not known.
        let least = self.scale * self.negligible();
        let vectors = self.v.shape()[1];
        let mut bounds = bounds(&self.runs, vectors, least, goal.failure_probability);
        if self.done == vectors {
            bounds.upper = Some(bounds.lower);
        }
        bounds
    }
}

/// The coefficients of a run.
#[derive(Debug, Default)]
struct Run {
    /// The diagonal of B.
    alphas: Vec<f64>,
    /// What is beside it, to the right, and last what couples the next vector.
    betas: Vec<f64>,
}

impl Run {
    fn last_beta(&self) -> f64 {
        self.betas.last().copied().unwrap_or(0.0)
    }

    /// ln p(t), for t above all eigenvalues of BᵀB. By the pivots of t − BᵀB: p is their product over that of
    /// the couplings, of which none counts as less than `least`.
    fn growth(&self, t: f64, least: f64) -> Option<f64> {
        let (mut ratio, mut growth, mut beta_before) = (0.0, 0.0, 0.0);
        for (&alpha, &beta) in self.alphas.iter().zip(&self.betas) {
            let pivot: f64 = t - (alpha * alpha + beta_before * beta_before) - ratio;
            if pivot <= 0.0 {
                return None;
            }
            let coupling = (alpha * beta).max(least);
            growth += (pivot / coupling).ln();
            ratio = coupling / pivot * coupling;
            beta_before = beta;
        }
        Some(growth)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Bounds {
    lower: f64,
    upper: Option<f64>,
}

impl Bounds {
    /// In parts of the lower one.
    fn gap(&self) -> f64 {
        match self.upper {
            Some(upper) if upper <= self.lower => 0.0,
            Some(upper) => upper / self.lower - 1.0,
            None => f64::INFINITY,
        }
    }
}

/// What runs from random starts of `n` elements say of the largest singular value.
fn bounds(runs: &[Run], n: usize, least: f64, failure_probability: f64) -> Bounds {
    let all = |t: f64| runs.iter().map(|run| run.growth(t, least)).collect::<Option<Vec<_>>>();
    // BᵀB's norm is at most that of its largest row's sum.
    let coefficients = runs.iter().flat_map(|run| run.alphas.iter().chain(&run.betas));
    let top = 4.0 * coefficients.fold(0.0f64, |most, &c| most.max(c)).powi(2);
    if top == 0.0 {
        return Bounds { lower: 0.0, upper: Some(0.0) };
    }
    let eigenvalue = bisect(0.0, top, |t| all(t).is_some());
    // ln of the probability that a start is so far from an eigenvector.
    let chance = (FRAC_2_PI * n as f64).sqrt().ln();
    let evidence = |t: f64| {
        all(t).map(|growths| growths.iter().map(|growth| (growth - chance).max(0.0)).sum::<f64>())
    };
    let enough = |t: f64| evidence(t).is_some_and(|evidence| evidence >= -failure_probability.ln());
    let doublings = std::iter::successors(Some(2.0 * eigenvalue), |t| Some(2.0 * t));
    let upper = doublings
        .take(64)
        .find(|&t| enough(t))
        .map(|above| bisect(eigenvalue, above, enough).sqrt());
    Bounds { lower: eigenvalue.sqrt(), upper }
}

/// The least number between the two from which on the condition, which holds at the second, holds.
fn bisect(below: f64, above: f64, holds: impl Fn(f64) -> bool) -> f64 {
    let (mut below, mut above) = (below, above);
    while above - below > 4.0 * f64::EPSILON * above {
        let middle = below.midpoint(above);
        if holds(middle) { above = middle } else { below = middle }
    }
    above
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Coefficients of the iteration on a diagonal matrix in exact order, `f64` and orthogonalised twice.
    fn run(diagonal: &[f64], start: &[f64], steps: usize) -> Run {
        let n = diagonal.len();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let (mut basis, mut run) = (Vec::<Vec<f64>>::new(), Run::default());
        let (mut u, mut z) = (vec![0.0; n], start.to_vec());
        for _ in 0..steps {
            let norm = dot(&z, &z).sqrt();
            let v: Vec<f64> = z.iter().map(|z| z / norm).collect();
            let beta = run.last_beta();
            let w: Vec<f64> = (0..n).map(|i| diagonal[i] * v[i] - beta * u[i]).collect();
            let alpha = dot(&w, &w).sqrt();
            u = w.iter().map(|w| w / alpha).collect();
            z = (0..n).map(|i| diagonal[i] * u[i] - alpha * v[i]).collect();
            basis.push(v);
            for _ in 0..2 {
                for v in &basis {
                    let part = dot(v, &z);
                    z.iter_mut().zip(v).for_each(|(z, v)| *z -= part * v);
                }
            }
            run.alphas.push(alpha);
            run.betas.push(dot(&z, &z).sqrt());
        }
        run
    }

    #[test]
    fn growth_is_that_of_the_next_vector() {
        // The component of the k-th vector along an eigenvector is p(λ) times that of the first.
        let diagonal: Vec<f64> = (0..40).map(|i| 1.0 + (i as f64 * 0.37).sin()).collect();
        let mut diagonal = diagonal;
        diagonal[7] = 3.0;
        let mut start = vec![1.0; 40];
        start[7] = 1e-9;
        let norm = (39.0f64 + 1e-18).sqrt();
        for steps in [1, 3, 6] {
            let longer = run(&diagonal, &start, steps);
            // The next vector's component, by the same recurrence on one more step.
            let mut next = (1.0 / norm * 1e-9, 0.0, 0.0);
            for (&alpha, &beta) in longer.alphas.iter().zip(&longer.betas) {
                let (v, u, before) = next;
                let u = (3.0 * v - before * u) / alpha;
                next = ((3.0 * u - alpha * v) / beta, u, beta);
            }
            let growth = longer.growth(9.0, 0.0).unwrap();
            let expected = (next.0 / (1e-9 / norm)).ln();
            assert!((growth - expected).abs() < 1e-6, "{growth} {expected}");
        }
    }

    #[test]
    fn a_start_that_hides_the_largest_is_what_the_bound_allows_for() {
        // Just as improbable a start as the bound allows for: it still holds.
        let n = 200;
        let mut diagonal: Vec<f64> = (0..n).map(|i| i as f64 / n as f64).collect();
        diagonal[0] = 1.05;
        let p = 1e-6;
        for steps in [10, 20, 30] {
            let mut start: Vec<f64> = (0..n).map(|i| 1.0 + (i % 3) as f64).collect();
            let length = start[1..].iter().map(|v| v * v).sum::<f64>().sqrt();
            start[0] = length * p / (FRAC_2_PI * n as f64).sqrt();
            let run = run(&diagonal, &start, steps);
            let found = bounds(&[run], n, 0.0, p);
            let upper = found.upper.unwrap();
            assert!(upper >= 1.05 * (1.0 - 1e-12), "{steps}: {found:?}");
            // And another, with more of it, is not far off.
            start[0] = length / (n as f64).sqrt();
            let found = bounds(&[super::tests::run(&diagonal, &start, steps)], n, 0.0, p);
            assert!(found.lower <= 1.05 + 1e-12 && found.upper.unwrap() >= 1.05, "{found:?}");
        }
    }

    #[test]
    fn runs_that_end_early_add_up() {
        // Of the identity, every run ends at once: how little is then left says how sure it is.
        let one = || Run { alphas: vec![1.0], betas: vec![0.0] };
        let few = bounds(&[one()], 100, 1e-6, 1e-12);
        let more = bounds(&[one(), one(), one()], 100, 1e-6, 1e-12);
        assert!(few.upper.unwrap() > 2.0);
        assert!((more.lower - 1.0).abs() < 1e-12 && more.upper.unwrap() < 1.1, "{few:?} {more:?}");
        assert_eq!(
            bounds(&[Run { alphas: vec![0.0], betas: vec![0.0] }], 9, 0.0, 1e-12).gap(),
            0.0
        );
    }
}
