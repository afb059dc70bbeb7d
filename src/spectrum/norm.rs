//! The spectral norm, bracketed: from below by Lanczos, from above by what is certain and by what is as
//! good as certain.

use std::ops::ControlFlow;

use super::bound::{NormBound, norm_bound};
use super::frobenius::frobenius_norm;
use super::options::Progress;
use super::random_start::{End, Goal, bracket};
use crate::element::Accumulator;
use crate::error::{Error, Result};
use crate::operator::{Expression, Given, Operator};

/// What makes up for the rounding of a product or a sum of bounds.
const UP: f64 = 1.0 + 2.0 * f64::EPSILON;

/// What a caller wishes of a norm's bracket.
#[derive(Clone, Copy, Debug)]
pub struct NormOptions {
    pub(super) gap: f64,
    pub(super) failure_probability: f64,
    pub(super) seed: u64,
}

impl Default for NormOptions {
    fn default() -> Self {
        NormOptions { gap: 0.01, failure_probability: 1e-12, seed: 0 }
    }
}

impl NormOptions {
    /// A probabilistic upper bound within 1% of the lower, wrong once in 10¹² random starts.
    pub fn new() -> Self {
        NormOptions::default()
    }

    /// How far the probabilistic upper bound may be above the lower, in parts of that.
    pub fn gap(self, gap: f64) -> Self {
        NormOptions { gap, ..self }
    }

    /// The share of random starts for which the probabilistic upper bound may be wrong.
    pub fn failure_probability(self, probability: f64) -> Self {
        NormOptions { failure_probability: probability, ..self }
    }

    /// Where the random start comes from.
    pub fn seed(self, seed: u64) -> Self {
        NormOptions { seed, ..self }
    }

    pub(super) fn check(&self) -> Result<()> {
        let NormOptions { gap, failure_probability, .. } = *self;
        if !(gap > 0.0 && gap.is_finite()) {
            return Err(Error::invalid("gap", gap, "it must be positive and finite"));
        }
        if !(failure_probability > 0.0 && failure_probability < 1.0) {
            let reason = "it must lie between 0 and 1";
            return Err(Error::invalid("failure probability", failure_probability, reason));
        }
        Ok(())
    }
}

/// A bracket of an operator's spectral norm.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Norm {
    /// What Lanczos found: no norm is below it.
    pub lower: f64,
    /// What is certain, where anything is: see `bound`.
    pub upper: Option<f64>,
    /// What `upper` follows from, and the operator it is for.
    pub bound: Option<String>,
    /// Above the norm but for a share of random starts, which `failure_probability` says.
    pub probabilistic_upper: Option<f64>,
    /// See `probabilistic_upper`.
    pub failure_probability: Option<f64>,
    /// Vectors that the operator or its adjoint was applied to.
    pub applications: u64,
}

impl<T: Accumulator> Operator<T> {
    /// The spectral norm: a lower bound by Lanczos from a random start; a deterministic upper bound of
    /// layers, matrices and what algebra makes of them ([`Operator::norm_bound`]); and the lower of two
    /// probabilistic ones. By Kuczyński & Woźniakowski 1992: after k steps from a uniform direction the
    /// largest eigenvalue ξ that Lanczos sees of AᵀA satisfies P[λ₁ > ξ/(1 − ε)] ≤ 1.648·√n·e^(−√ε·(2k − 1)),
    /// which says how many steps the gap wished for takes at most. By Hochstenbach 2013: a start that hides
    /// a larger eigenvalue from the polynomials that the iteration has found is as improbable.
    ///
    /// # Errors
    /// [`Error::Invalid`] for options out of range or an empty operator; what applying fails with.
    pub fn norm(
        &self,
        options: &NormOptions,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Norm> {
        options.check()?;
        let NormOptions { gap, failure_probability, seed } = *options;
        let bound = self.norm_bound()?;
        let n = self.shape()[0].min(self.shape()[1]);
        if n == 0 {
            return Err(empty(self.shape()));
        }
        // Either bound may fail half as often.
        let share = failure_probability / 2.0;
        let steps = steps_for(n, gap, share);
        let goal = Goal { end: End::Largest, gap, failure_probability: share, steps };
        let found = bracket(self, &goal, seed, progress)?;
        let epsilon = epsilon_after(n, found.steps, share).filter(|_| found.one_start);
        let by_steps = epsilon.map(|epsilon| found.found / (1.0 - epsilon).sqrt());
        // Rounding of products and of the coefficients.
        let rounding = 32.0 * T::DTYPE.unit_roundoff();
        let least = found.other.into_iter().chain(by_steps).reduce(f64::min);
        let probabilistic = least.map(|upper| upper * (1.0 + rounding));
        Ok(Norm {
            lower: found.found * (1.0 - rounding),
            upper: bound.as_ref().map(|bound| bound.value),
            bound: bound.map(|bound| bound.bound),
            probabilistic_upper: probabilistic,
            failure_probability: probabilistic.map(|_| failure_probability),
            applications: found.applications,
        })
    }

    /// A certain upper bound of the spectral norm, computed without applying the operator; `None` where a
    /// closure is part of it. Of a layer from its symbol, see [`NormBound`]; of a matrix √(‖A‖₁·‖A‖∞) or the
    /// Frobenius norm; of products the product, of sums the sum.
    ///
    /// # Errors
    /// [`Error::Allocation`]; [`Error::Invalid`] for a matrix whose elements are not finite, or too large
    /// for their squares to be.
    pub fn norm_bound(&self) -> Result<Option<NormBound>> {
        let known = |value: f64, bound: &str| Some(NormBound { value, bound: bound.into() });
        Ok(match self.expression() {
            Expression::Identity => known(1.0, "the identity"),
            Expression::Layer(layer, _) => Some(norm_bound(layer)?),
            Expression::Adjoint(inner) => inner.norm_bound()?,
            Expression::Composition(outer, inner) => {
                match (outer.norm_bound()?, inner.norm_bound()?) {
                    (Some(outer), Some(inner)) => Some(NormBound {
                        value: outer.value * inner.value * UP,
                        bound: format!("({}) times ({})", outer.bound, inner.bound),
                    }),
                    _ => None,
                }
            }
            Expression::Sum(terms) => {
                let (mut value, mut words) = (0.0, Vec::new());
                for (factor, term) in terms {
                    let Some(bound) = term.norm_bound()? else { return Ok(None) };
                    value += factor.abs() * bound.value;
                    words.push(format!("{} times ({})", factor.abs(), bound.bound));
                }
                let up = UP.powi(terms.len() as i32);
                Some(NormBound { value: value * up, bound: words.join(" plus ") })
            }
            Expression::Given(Given::Closure, _) => None,
            Expression::Given(Given::Sparse(matrix), _) => {
                let matrix = matrix.try_clone()?.to_device(&crate::device::Device::Cpu)?;
                let mut sums = Sums::new(matrix.columns());
                for row in matrix.iter_rows().into_iter().flatten() {
                    sums.add_row(row.iter().map(|(column, value)| (column, value.to_f64())));
                }
                finite(self, [sums.squares])?;
                Some(sums.bound("a sparse matrix"))
            }
            Expression::Given(Given::Dense, _) => {
                let [m, n] = self.shape();
                let dense = self.to_dense()?.into_vec()?;
                let mut sums = Sums::new(n);
                for row in dense.chunks_exact(n.max(1)).take(m) {
                    sums.add_row(row.iter().map(|value| value.to_f64()).enumerate());
                }
                finite(self, [sums.squares])?;
                Some(sums.bound("a dense matrix"))
            }
        })
    }

    /// The Frobenius norm, where it is known without applying the operator: of layers, from their index
    /// tables, of sparse matrices, and of adjoints and multiples of those.
    ///
    /// # Errors
    /// [`Error::Allocation`] for the tables.
    pub fn frobenius_norm(&self) -> Result<Option<f64>> {
        Ok(match self.expression() {
            Expression::Layer(layer, _) => Some(frobenius_norm(layer)?),
            Expression::Adjoint(inner) => inner.frobenius_norm()?,
            Expression::Identity => Some((self.shape()[0] as f64).sqrt()),
            Expression::Sum(terms) => match &terms[..] {
                [(factor, term)] => term.frobenius_norm()?.map(|norm| factor.abs() * norm),
                _ => None,
            },
            Expression::Given(Given::Sparse(matrix), _) => matrix
                .data()
                .map(|data| data.iter().map(|value| value.to_f64().powi(2)).sum::<f64>().sqrt()),
            Expression::Given(..) | Expression::Composition(..) => None,
        })
    }
}

pub(super) fn empty(shape: [usize; 2]) -> Error {
    Error::invalid("operator", format!("{shape:?}"), "it has no rows or no columns")
}

/// Below this a norm is rounding, where others are as large as `scale`.
pub(super) fn negligible<T: Accumulator>(scale: f64) -> f64 {
    16.0 * T::DTYPE.unit_roundoff() * scale
}

/// Ends an iteration in which something was not finite.
pub(super) fn finite<T: Accumulator>(
    operator: &Operator<T>,
    numbers: impl IntoIterator<Item = f64>,
) -> Result<()> {
    if numbers.into_iter().all(f64::is_finite) {
        return Ok(());
    }
    let reason = "its results are not finite, or too large to be squared";
    Err(Error::invalid("operator", operator, reason))
}

/// Sums of magnitudes by row and by column, and of squares.
struct Sums {
    columns: Vec<f64>,
    largest_row: f64,
    squares: f64,
}

impl Sums {
    fn new(columns: usize) -> Self {
        Sums { columns: vec![0.0; columns], largest_row: 0.0, squares: 0.0 }
    }

    fn add_row(&mut self, entries: impl Iterator<Item = (usize, f64)>) {
        let mut row = 0.0;
        for (column, value) in entries {
            row += value.abs();
            self.columns[column] += value.abs();
            self.squares += value * value;
        }
        self.largest_row = self.largest_row.max(row);
    }

    fn bound(self, what: &str) -> NormBound {
        let columns = self.columns.iter().copied().fold(0.0, f64::max);
        let (by_sums, frobenius) = ((columns * self.largest_row).sqrt(), self.squares.sqrt());
        // All sums are of positive terms: relative errors are small.
        let up = 1.0 + 1e-9;
        match by_sums <= frobenius {
            true => NormBound {
                value: by_sums * up,
                bound: format!("largest row and column sums of {what}"),
            },
            false => {
                NormBound { value: frobenius * up, bound: format!("the Frobenius norm of {what}") }
            }
        }
    }
}

/// Steps after which the bound is within the gap, for vectors of `n` elements.
fn steps_for(n: usize, gap: f64, probability: f64) -> usize {
    let epsilon = 1.0 - (1.0 + gap).powi(-2);
    let exponent = (1.648 * (n as f64).sqrt() / probability).ln();
    // k < n is what the theorem takes.
    ((exponent / epsilon.sqrt() + 1.0) / 2.0).ceil().max(2.0) as usize
}

/// The ε for which the bound holds with this probability of failure; none while it is not below 1.
fn epsilon_after(n: usize, steps: usize, probability: f64) -> Option<f64> {
    let exponent = (1.648 * (n as f64).sqrt() / probability).ln();
    let root = exponent / (2.0 * steps as f64 - 1.0);
    (root < 1.0).then_some(root * root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enough_steps_are_just_enough() {
        for n in [2, 1000, 200_704] {
            for gap in [0.001, 0.01, 0.3] {
                let steps = steps_for(n, gap, 1e-12);
                let reached =
                    |steps| epsilon_after(n, steps, 1e-12).map_or(9.0, |e| (1.0 - e).powf(-0.5));
                assert!(reached(steps) <= 1.0 + gap + 1e-12);
                assert!(reached(steps - 1) > 1.0 + gap);
            }
        }
    }
}
