//! Singular value decompositions of dense matrices on the host, on one thread so that results are the same
//! whatever their number.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::svd::{self, ComputeSvdVectors};
use faer::{ColRef, Mat, MatRef, Par};

use crate::error::{Error, Result};

/// A thin decomposition: the columns of `u` and `v` belong to the values, which descend.
pub(super) struct Decomposition {
    pub u: Mat<f64>,
    pub values: Vec<f64>,
    pub v: Mat<f64>,
}

/// U, σ and V.
pub(super) fn decompose(matrix: MatRef<'_, f64>) -> Result<Decomposition> {
    let (m, n) = (matrix.nrows(), matrix.ncols());
    let size = m.min(n);
    let (mut u, mut v) = (Mat::zeros(m, size), Mat::zeros(n, size));
    let mut values = Diag::zeros(size);
    let thin = ComputeSvdVectors::Thin;
    let scratch = svd::svd_scratch::<f64>(m, n, thin, thin, Par::Seq, Default::default());
    svd::svd(
        matrix,
        values.as_mut(),
        Some(u.as_mut()),
        Some(v.as_mut()),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    )
    .map_err(|_| not_converged(m, n))?;
    let values = to_vec(values.column_vector());
    Ok(Decomposition { u, values, v })
}

/// The singular values alone, descending.
pub(super) fn singular_values(matrix: MatRef<'_, f64>) -> Result<Vec<f64>> {
    let (m, n) = (matrix.nrows(), matrix.ncols());
    let mut values = Diag::zeros(m.min(n));
    let none = ComputeSvdVectors::No;
    let scratch = svd::svd_scratch::<f64>(m, n, none, none, Par::Seq, Default::default());
    let mut memory = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut memory);
    svd::svd(matrix, values.as_mut(), None, None, Par::Seq, stack, Default::default())
        .map_err(|_| not_converged(m, n))?;
    Ok(to_vec(values.column_vector()))
}

fn to_vec(column: ColRef<'_, f64>) -> Vec<f64> {
    column.iter().copied().collect()
}

fn not_converged(m: usize, n: usize) -> Error {
    let reason = "its singular values did not converge: are all elements finite?";
    Error::invalid("the matrix", format!("[{m}, {n}]"), reason)
}
