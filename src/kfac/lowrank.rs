//! Factors by their largest eigenvalues alone, the others replaced by their mean.

use super::matrix::{as_matrix, matrix, product, row, trace};
use crate::device::Device;
use crate::element::Accumulator;
use crate::error::{Error, Result};
use crate::operator::Operator;
use crate::tensor::Tensor;

/// How far a factor A is from `V·(D − s·I)·Vᵀ + s·I`, with the r largest eigenvalues D, their eigenvectors V
/// and s = (tr A − tr D)/(n − r), the mean of the others. Of eigenvalues between 0 and the least of D with
/// this sum and this sum of squares, and up to the rounding and the residuals of D and V.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LowRankBound {
    /// The Frobenius norm of the difference: √(‖A‖²_F − ‖D‖²_F − (n − r)·s²).
    pub frobenius: f64,
    /// At least the spectral norm of the difference: the lesser of its Frobenius norm and of
    /// max(s, the least of D − s).
    pub spectral: f64,
}

/// `(A + shift·I)⁻¹ ≈ Vᵀ·diag(values)·V + rest·I`, V's rows the eigenvectors: the identity of Woodbury, which
/// is diagonal in V.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LowRank<F: Accumulator> {
    /// `[g, r, n]`.
    pub vectors: Tensor<F>,
    /// `[g, r]`.
    pub values: Tensor<F>,
    /// `[g, 1]`.
    pub rest: Tensor<F>,
    /// `[g, 2]`: a [`LowRankBound`] for each group, of the factor as it is kept.
    pub bounds: Tensor<f64>,
}

/// The inverse of scale·factor + shift·I, with a shift for each group.
pub(super) fn invert<F: Accumulator>(
    name: &str,
    factor: &Tensor<F>,
    scale: f64,
    shifts: &[f64],
    rank: usize,
) -> Result<LowRank<F>> {
    let n = factor.shape()[1];
    let groups = shifts.len();
    let (mut vectors, mut values, mut rest, mut bounds) = (vec![], vec![], vec![], vec![]);
    for (group, &shift) in shifts.iter().enumerate() {
        let source = matrix(factor, group);
        let wide: Vec<f64> = (0..n * n).map(|at| source[(at / n, at % n)].to_f64()).collect();
        let total: f64 = wide.iter().map(|value| value * value).sum();
        let dense = Tensor::from_vec(&Device::Cpu, &[n, n], wide)?;
        // A symmetric matrix without negative eigenvalues: they are its singular values.
        let found = match total > 0.0 {
            true => Some(Operator::from_dense(dense)?.svd(rank)?),
            false => None,
        };
        let (largest, basis) = match found {
            Some(found) if !found.is_converged() => {
                let reason = "its largest eigenvalues did not converge";
                let argument = format!("{name} of group {group}");
                return Err(Error::invalid(argument, format!("[{n}, {n}]"), reason));
            }
            Some(found) => (found.values, found.v.map(Tensor::into_vec).transpose()?),
            None => (vec![0.0; rank], None),
        };
        let basis = basis.unwrap_or_else(|| vec![0.0; rank * n]);
        let mean = ((trace(source) - largest.iter().sum::<f64>()) / (n - rank) as f64).max(0.0);
        let squares: f64 = largest.iter().map(|value| value * value).sum();
        let frobenius = (total - squares - (n - rank) as f64 * mean * mean).max(0.0).sqrt();
        let least = largest.last().copied().unwrap_or(0.0);
        bounds.extend([frobenius, frobenius.min(mean.max(least - mean))]);
        let others = 1.0 / (scale * mean + shift);
        vectors.extend(basis.into_iter().map(F::from_f64));
        values.extend(largest.iter().map(|d| F::from_f64(1.0 / (scale * d + shift) - others)));
        rest.push(F::from_f64(others));
    }
    Ok(LowRank {
        vectors: Tensor::from_vec(&Device::Cpu, &[groups, rank, n], vectors)?,
        values: Tensor::from_vec(&Device::Cpu, &[groups, rank], values)?,
        rest: Tensor::from_vec(&Device::Cpu, &[groups, 1], rest)?,
        bounds: Tensor::from_vec(&Device::Cpu, &[groups, 2], bounds)?,
    })
}

impl<F: Accumulator> LowRank<F> {
    /// x·M for a group's inverse M and a matrix of so many rows.
    pub fn after(&self, group: usize, x: &[F], rows: usize) -> Result<Vec<F>> {
        let vectors = matrix(&self.vectors, group);
        let (rank, n) = (vectors.nrows(), vectors.ncols());
        let mut parts = product(as_matrix(x, rows, n), vectors.transpose())?;
        let values = row(&self.values, group);
        parts.iter_mut().enumerate().for_each(|(at, part)| *part = *part * values[at % rank]);
        let result = product(as_matrix(&parts, rows, rank), vectors)?;
        Ok(self.with_rest(group, x, result))
    }

    /// M·x for a matrix of so many columns.
    pub fn before(&self, group: usize, x: &[F], columns: usize) -> Result<Vec<F>> {
        let vectors = matrix(&self.vectors, group);
        let (rank, n) = (vectors.nrows(), vectors.ncols());
        let mut parts = product(vectors, as_matrix(x, n, columns))?;
        let values = row(&self.values, group);
        parts.iter_mut().enumerate().for_each(|(at, part)| *part = *part * values[at / columns]);
        let result = product(vectors.transpose(), as_matrix(&parts, rank, columns))?;
        Ok(self.with_rest(group, x, result))
    }

    fn with_rest(&self, group: usize, x: &[F], mut result: Vec<F>) -> Vec<F> {
        let rest = row(&self.rest, group)[0];
        result.iter_mut().zip(x).for_each(|(result, &x)| *result += rest * x);
        result
    }

    /// A bound for each group.
    pub fn bounds(&self) -> Vec<LowRankBound> {
        let bound = |pair: &[f64]| LowRankBound { frobenius: pair[0], spectral: pair[1] };
        self.bounds.view().host().chunks_exact(2).map(bound).collect()
    }
}
