//! What the coefficients of Golub–Kahan runs from random starts say of the extreme singular values.

use std::f64::consts::FRAC_2_PI;

use crate::spectrum::bidiagonal::Bidiagonal;

/// Which singular value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::spectrum) enum End {
    Largest,
    /// The last of min(m, n).
    Smallest,
}

impl Bidiagonal {
    /// ln |p(t)|, for t beyond all eigenvalues of BᵀB. By the pivots of t − BᵀB, or of BᵀB − t: p is their
    /// product over that of the couplings, of which none counts as less than `least`.
    fn growth(&self, t: f64, end: End, least: f64) -> Option<f64> {
        let (mut ratio, mut growth, mut beta_before) = (0.0, 0.0, 0.0);
        for (&alpha, &beta) in self.diagonal.iter().zip(&self.above) {
            let diagonal = alpha * alpha + beta_before * beta_before;
            let pivot: f64 = match end {
                End::Largest => t - diagonal - ratio,
                End::Smallest => diagonal - t - ratio,
            };
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

/// A singular value, bracketed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::spectrum) struct Bounds {
    /// Of B: the largest is a bound from below and the smallest one from above.
    pub found: f64,
    /// On the other side, but for the share of starts.
    pub other: Option<f64>,
}

impl Bounds {
    /// The distance of the two, in parts of the one found.
    pub fn gap(&self) -> f64 {
        match self.other {
            Some(other) if other == self.found => 0.0,
            Some(other) => (other / self.found - 1.0).abs(),
            None => f64::INFINITY,
        }
    }
}

/// What runs from random starts of `n` elements say of a singular value.
pub(super) fn bounds(
    runs: &[Bidiagonal],
    end: End,
    n: usize,
    least: f64,
    failure_probability: f64,
) -> Bounds {
    let all = |t: f64| runs.iter().map(|run| run.growth(t, end, least)).collect::<Option<Vec<_>>>();
    // BᵀB's norm is at most that of its largest row's sum.
    let top = 4.0 * runs.iter().map(Bidiagonal::scale).fold(0.0, f64::max).powi(2);
    if top == 0.0 {
        return Bounds { found: 0.0, other: Some(0.0) };
    }
    // ln of the probability that a start is so far from an eigenvector.
    let chance = (FRAC_2_PI * n as f64).sqrt().ln();
    let enough = |t: f64| {
        let growths = all(t)?;
        let evidence = growths.iter().map(|growth| (growth - chance).max(0.0)).sum::<f64>();
        (evidence >= -failure_probability.ln()).then_some(())
    };
    if end == End::Smallest {
        // The pivots at 0 are those of BᵀB, which rounding may have made indefinite.
        if all(0.0).is_none() {
            return Bounds { found: 0.0, other: Some(0.0) };
        }
        let eigenvalue = bisect(top, 0.0, |t| all(t).is_some());
        let other = enough(0.0).map(|()| bisect(eigenvalue, 0.0, |t| enough(t).is_some()).sqrt());
        return Bounds { found: eigenvalue.sqrt(), other };
    }
    let eigenvalue = bisect(0.0, top, |t| all(t).is_some());
    let doublings = std::iter::successors(Some(2.0 * eigenvalue), |t| Some(2.0 * t));
    let other = doublings
        .take(64)
        .find(|&t| enough(t).is_some())
        .map(|above| bisect(eigenvalue, above, |t| enough(t).is_some()).sqrt());
    Bounds { found: eigenvalue.sqrt(), other }
}

/// The number nearest to the first from which on to the second, where it holds, the condition holds.
fn bisect(outside: f64, inside: f64, holds: impl Fn(f64) -> bool) -> f64 {
    let (mut outside, mut inside) = (outside, inside);
    // A hundred halvings: as exact as numbers are, down to 10⁻³⁰ of the two.
    for _ in 0..100 {
        let middle = outside.midpoint(inside);
        if middle == outside || middle == inside {
            break;
        }
        if holds(middle) { inside = middle } else { outside = middle }
    }
    inside
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Coefficients of the iteration on a diagonal matrix in exact order, `f64` and orthogonalised twice.
    fn run(diagonal: &[f64], start: &[f64], steps: usize) -> Bidiagonal {
        let n = diagonal.len();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let (mut basis, mut run) = (Vec::<Vec<f64>>::new(), Bidiagonal::default());
        let (mut u, mut z) = (vec![0.0; n], start.to_vec());
        for _ in 0..steps {
            let norm = dot(&z, &z).sqrt();
            let v: Vec<f64> = z.iter().map(|z| z / norm).collect();
            let beta = run.coupling();
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
            run.diagonal.push(alpha);
            run.above.push(dot(&z, &z).sqrt());
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
            for (&alpha, &beta) in longer.diagonal.iter().zip(&longer.above) {
                let (v, u, before) = next;
                let u = (3.0 * v - before * u) / alpha;
                next = ((3.0 * u - alpha * v) / beta, u, beta);
            }
            let growth = longer.growth(9.0, End::Largest, 0.0).unwrap();
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
            let found = bounds(&[run], End::Largest, n, 0.0, p);
            let upper = found.other.unwrap();
            assert!(upper >= 1.05 * (1.0 - 1e-12), "{steps}: {found:?}");
            // And another, with more of it, is not far off.
            start[0] = length / (n as f64).sqrt();
            let found =
                bounds(&[super::tests::run(&diagonal, &start, steps)], End::Largest, n, 0.0, p);
            assert!(found.found <= 1.05 + 1e-12 && found.other.unwrap() >= 1.05, "{found:?}");
        }
    }

    #[test]
    fn runs_that_end_early_add_up() {
        // Of the identity, every run ends at once: how little is then left says how sure it is.
        let one = || Bidiagonal { diagonal: vec![1.0], above: vec![0.0] };
        let few = bounds(&[one()], End::Largest, 100, 1e-6, 1e-12);
        let more = bounds(&[one(), one(), one()], End::Largest, 100, 1e-6, 1e-12);
        assert!(few.other.unwrap() > 2.0);
        assert!((more.found - 1.0).abs() < 1e-12 && more.other.unwrap() < 1.1, "{few:?} {more:?}");
        assert_eq!(
            bounds(
                &[Bidiagonal { diagonal: vec![0.0], above: vec![0.0] }],
                End::Largest,
                9,
                0.0,
                1e-12
            )
            .gap(),
            0.0
        );
    }

    #[test]
    fn the_smallest_is_bracketed_likewise() {
        let (n, p) = (200, 1e-6);
        let mut diagonal: Vec<f64> = (0..n).map(|i| 1.0 + i as f64 / n as f64).collect();
        diagonal[0] = 0.8;
        for steps in [10, 20, 40] {
            let mut start: Vec<f64> = (0..n).map(|i| 1.0 + (i % 3) as f64).collect();
            let length = start[1..].iter().map(|v| v * v).sum::<f64>().sqrt();
            // Just as improbable a start as the bound allows for.
            start[0] = length * p / (FRAC_2_PI * n as f64).sqrt();
            let found = bounds(&[run(&diagonal, &start, steps)], End::Smallest, n, 0.0, p);
            assert!(found.found >= 0.8, "{steps}: {found:?}");
            assert!(found.other.is_none_or(|lower| lower <= 0.8 * (1.0 + 1e-12)), "{found:?}");
            assert!(steps < 40 || found.other.unwrap() > 0.7, "{found:?}");
        }
    }
}
