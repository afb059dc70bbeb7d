//! Eigendecompositions of factors, on the host.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::{Mat, MatRef, Par};
use rayon::prelude::*;

use super::matrix::{as_matrix, matrix, product};
use crate::device::Device;
use crate::element::Accumulator;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// The eigenvalues and eigenvectors of a factor, group by group: factor = Q·diag(values)·Qᵀ.
///
/// Computed on the host in f64, whatever the factor's elements, and rounded once; each group's by one
/// thread, so that results are the same whatever their number. Factors are positive semidefinite: eigenvalues
/// that rounding makes negative are 0.
#[derive(Clone, Debug, PartialEq)]
pub struct FactorEigen<F: Accumulator> {
    pub(super) values: Tensor<F>,
    pub(super) vectors: Tensor<F>,
}

impl<F: Accumulator> FactorEigen<F> {
    /// The eigenvalues `[g, n]`, ascending within a group, on the host.
    pub fn values(&self) -> &Tensor<F> {
        &self.values
    }

    /// Q, `[g, n, n]`: the columns are orthonormal eigenvectors, in the order of the values; on the host.
    pub fn vectors(&self) -> &Tensor<F> {
        &self.vectors
    }
}

/// A group's eigenvalues, ascending, and eigenvectors as columns.
struct Decomposition {
    values: Vec<f64>,
    vectors: Mat<f64>,
}

/// Decomposes a factor `[g, n, n]` on the host.
pub(super) fn decompose<F: Accumulator>(name: &str, factor: &Tensor<F>) -> Result<FactorEigen<F>> {
    let n = factor.shape()[1];
    let found = each_group(name, factor, |found| {
        let values: Vec<F> = found.values.iter().map(|&value| F::from_f64(value)).collect();
        let entries = (0..n * n).map(|at| F::from_f64(found.vectors[(at / n, at % n)]));
        Ok((values, entries.collect::<Vec<F>>()))
    })?;
    let (values, vectors): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    let groups = factor.shape()[0];
    Ok(FactorEigen {
        values: Tensor::from_vec(&Device::Cpu, &[groups, n], values.concat())?,
        vectors: Tensor::from_vec(&Device::Cpu, &[groups, n, n], vectors.concat())?,
    })
}

/// (factor + shift·I)^power, `[g, n, n]` on the host, in f64 until the end.
pub(super) fn power<F: Accumulator>(
    name: &str,
    factor: &Tensor<F>,
    shift: f64,
    power: f64,
) -> Result<Tensor<F>> {
    let n = factor.shape()[1];
    let found = each_group(name, factor, |found| {
        let powers: Vec<f64> =
            found.values.iter().map(|value| (value + shift).powf(power)).collect();
        let scaled: Vec<f64> =
            (0..n * n).map(|at| found.vectors[(at / n, at % n)] * powers[at % n]).collect();
        let entries = product(as_matrix(&scaled, n, n), found.vectors.transpose())?;
        // Symmetric to the last bit, as the factor is.
        let symmetric = |at: usize| 0.5 * (entries[at] + entries[at % n * n + at / n]);
        Ok((0..n * n).map(|at| F::from_f64(symmetric(at))).collect::<Vec<F>>())
    })?;
    Tensor::from_vec(&Device::Cpu, factor.shape(), found.concat())
}

fn each_group<F: Accumulator, R: Send>(
    name: &str,
    factor: &Tensor<F>,
    then: impl Fn(Decomposition) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let groups = 0..factor.shape()[0];
    let found = groups.into_par_iter().map(|group| {
        let found = of(matrix(factor, group)).ok_or_else(|| {
            let n = factor.shape()[1];
            let reason = "its eigenvalues did not converge: are all elements finite?";
            Error::invalid(format!("{name} of group {group}"), format!("[{n}, {n}]"), reason)
        })?;
        then(found)
    });
    found.collect()
}

/// Of a symmetric matrix, whose lower triangle is read; `None` where the iteration does not converge.
fn of<F: Accumulator>(matrix: MatRef<'_, F>) -> Option<Decomposition> {
    let n = matrix.nrows();
    let wide = Mat::from_fn(n, n, |i, j| matrix[(i, j)].to_f64());
    let (yes, par) = (ComputeEigenvectors::Yes, Par::Seq);
    let scratch = self_adjoint_evd_scratch::<f64>(n, yes, par, Default::default());
    let mut memory = MemBuffer::try_new(scratch).ok()?;
    let (mut diagonal, mut vectors) = (Diag::zeros(n), Mat::zeros(n, n));
    let stack = MemStack::new(&mut memory);
    let (values, target) = (diagonal.as_mut(), Some(vectors.as_mut()));
    self_adjoint_evd(wide.as_ref(), values, target, par, stack, Default::default()).ok()?;
    let values: Vec<f64> = diagonal.column_vector().iter().map(|value| value.max(0.0)).collect();
    let finite = values.iter().all(|value| value.is_finite());
    finite.then_some(Decomposition { values, vectors })
}
