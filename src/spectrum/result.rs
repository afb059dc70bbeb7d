//! Singular values, with what is known of how good they are, and what follows from them.

use super::options::{Method, Top};
use crate::element::Accumulator;
use crate::tensor::Tensor;

/// The largest singular values of an operator, or all of them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Spectrum<T: Accumulator> {
    /// How they were computed.
    pub method: Method,
    /// Rows and columns of the operator.
    pub shape: [usize; 2],
    /// Descending. Those that rounding does not tell from 0 are 0.
    pub values: Vec<f64>,
    /// Of each value, the larger of ‖A·v − σ·u‖ and ‖Aᵀ·u − σ·v‖, computed from the vectors (but the second
    /// of [`Method::Randomized`], which is rounding by its construction): some singular value is as near as
    /// that. Empty where no vectors were asked for.
    pub residuals: Vec<f64>,
    /// Whether each value's residual is within the tolerance. Exact methods' always are.
    pub converged: Vec<bool>,
    /// Vectors that the operator or its adjoint was applied to; 0 for exact methods.
    pub applications: u64,
    /// The left singular vectors, the rows of `[k, m]`.
    pub u: Option<Tensor<T>>,
    /// The right singular vectors, the rows of `[k, n]`.
    pub v: Option<Tensor<T>>,
    /// The largest entry of UᵀU − I and VᵀV − I; 0 where no vectors were asked for.
    pub orthogonality: f64,
    /// Whether a limit or the caller ended the iteration.
    pub interrupted: bool,
    pub(crate) all: Option<Vec<f64>>,
    pub(crate) frobenius_norm: Option<f64>,
}

impl<T: Accumulator> Spectrum<T> {
    /// Whether every value has converged, and none is missing.
    pub fn is_converged(&self) -> bool {
        !self.interrupted && self.converged.iter().all(|&converged| converged)
    }

    /// All min(m, n) singular values, descending, where the method gives them.
    pub fn all_values(&self) -> Option<&[f64]> {
        self.all.as_deref()
    }

    /// The spectral norm, where its residual is within the tolerance.
    pub fn norm(&self) -> Option<f64> {
        self.values.first().copied().filter(|_| self.converged[0])
    }

    /// The smallest `count` of all singular values, ascending, where the method gives them.
    pub fn smallest(&self, count: usize) -> Option<Vec<f64>> {
        self.all.as_ref().map(|all| all.iter().rev().take(count).copied().collect())
    }

    /// The largest singular value over the smallest, where all are known; infinite for an operator of less
    /// than full rank.
    pub fn condition_number(&self) -> Option<f64> {
        let all = self.all.as_ref()?;
        let (most, least) = (all.first()?, all.last()?);
        Some(if *least > 0.0 { most / least } else { f64::INFINITY })
    }

    /// The root of the sum of squares of all singular values, where it is known: for layers from their
    /// index tables.
    pub fn frobenius_norm(&self) -> Option<f64> {
        let all = || self.all.as_ref().map(|all| all.iter().map(|v| v * v).sum::<f64>().sqrt());
        self.frobenius_norm.or_else(all)
    }

    /// ‖A‖²_F / ‖A‖²: between 1 and the rank.
    pub fn stable_rank(&self) -> Option<f64> {
        let norm = self.norm().filter(|&norm| norm > 0.0)?;
        Some((self.frobenius_norm()? / norm).powi(2))
    }

    /// The exponential of [`Spectrum::entropy`] (Roy & Vetterli 2007): between 1 and the rank.
    pub fn effective_rank(&self) -> Option<f64> {
        self.entropy().map(f64::exp)
    }

    /// The entropy of all singular values as shares of their sum, in nats.
    pub fn entropy(&self) -> Option<f64> {
        let nuclear = self.nuclear_norm().filter(|&sum| sum > 0.0)?;
        let shares = self.all.as_ref()?.iter().map(|value| value / nuclear);
        Some(-shares.filter(|&p| p > 0.0).map(|p| p * p.ln()).sum::<f64>())
    }

    /// The sum of all singular values.
    pub fn nuclear_norm(&self) -> Option<f64> {
        self.all.as_ref().map(|all| all.iter().sum())
    }

    /// ln |det A|, the sum of the logarithms of all singular values, of a square operator; −∞ where it is
    /// singular.
    pub fn log_determinant(&self) -> Option<f64> {
        let all = self.all.as_ref().filter(|_| self.shape[0] == self.shape[1])?;
        Some(all.iter().map(|value| value.ln()).sum())
    }

    /// How many of the values an answer of `top` has.
    pub(super) fn count(shape: [usize; 2], top: Top) -> usize {
        match top {
            Top::Count(count) => count,
            Top::All => shape[0].min(shape[1]),
        }
    }
}
