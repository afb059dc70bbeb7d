//! Inverses of damped factors, on the host.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::cholesky::llt::inverse::{inverse, inverse_scratch};
use faer::traits::RealField;
use faer::{Mat, MatRef, Par};
use rayon::prelude::*;

use super::lowrank::{self, LowRank, LowRankBound};
use super::matrix::{as_matrix, matrix, product};
use crate::device::Device;
use crate::element::{Accumulator, DType};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// The inverse of a damped factor, group by group, on the host.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Inverse<F: Accumulator> {
    /// `[g, n, n]`.
    Dense(Tensor<F>),
    LowRank(Box<LowRank<F>>),
}

impl<F: Accumulator> Inverse<F> {
    /// Of scale·factor + shift·I, with a shift for each group and the factor `[g, n, n]` on the host.
    pub fn new(
        name: &str,
        factor: &Tensor<F>,
        scale: f64,
        shifts: &[f64],
        rank: Option<usize>,
    ) -> Result<Self> {
        let n = factor.shape()[1];
        if let Some(rank) = rank.filter(|&rank| rank < n) {
            let inverse = lowrank::invert(name, factor, scale, shifts, rank)?;
            return Ok(Inverse::LowRank(Box::new(inverse)));
        }
        let groups = shifts.par_iter().enumerate().map(|(group, &shift)| {
            let source = matrix(factor, group);
            inverted(source, scale, shift).ok_or_else(|| {
                let argument = format!("{name} of group {group}");
                let reason = format!(
                    "with {shift:e} added to its diagonal it is not positive definite, or its inverse is too \
                     large, even in f64: more damping helps"
                );
                Error::invalid(argument, format!("[{n}, {n}]"), reason)
            })
        });
        let groups: Vec<Vec<F>> = groups.collect::<Result<_>>()?;
        let inverse = Tensor::from_vec(&Device::Cpu, factor.shape(), groups.concat())?;
        Ok(Inverse::Dense(inverse))
    }

    /// x·M for a group's inverse M and a row-major matrix of so many rows.
    pub fn after(&self, group: usize, x: &[F], rows: usize) -> Result<Vec<F>> {
        match self {
            Inverse::Dense(inverse) => {
                let inverse = matrix(inverse, group);
                product(as_matrix(x, rows, inverse.nrows()), inverse)
            }
            Inverse::LowRank(inverse) => inverse.after(group, x, rows),
        }
    }

    /// M·x for a row-major matrix of so many columns.
    pub fn before(&self, group: usize, x: &[F], columns: usize) -> Result<Vec<F>> {
        match self {
            Inverse::Dense(inverse) => {
                let inverse = matrix(inverse, group);
                product(inverse, as_matrix(x, inverse.nrows(), columns))
            }
            Inverse::LowRank(inverse) => inverse.before(group, x, columns),
        }
    }

    /// How far the factor is from what was inverted, where that is not the factor.
    pub fn bounds(&self) -> Option<Vec<LowRankBound>> {
        match self {
            Inverse::Dense(_) => None,
            Inverse::LowRank(inverse) => Some(inverse.bounds()),
        }
    }
}

/// By Cholesky's factorisation in the factor's own type or, where that fails, in f64.
fn inverted<F: Accumulator>(factor: MatRef<'_, F>, scale: f64, shift: f64) -> Option<Vec<F>> {
    let n = factor.nrows();
    let damped =
        |i: usize, j: usize| scale * factor[(i, j)].to_f64() + if i == j { shift } else { 0.0 };
    if F::DTYPE == DType::F32 {
        let narrow = Mat::<f32>::from_fn(n, n, |i, j| damped(i, j) as f32);
        let found = by_cholesky(narrow).map(|m| rounded(&m, |value: f32| value.into()));
        if let Some(Some(found)) = found {
            return Some(found);
        }
    }
    rounded(&by_cholesky(Mat::<f64>::from_fn(n, n, damped))?, |value| value)
}

/// All elements row by row, the lower triangle mirrored; `None` if one is not finite.
fn rounded<F: Accumulator, T: Copy>(matrix: &Mat<T>, widen: impl Fn(T) -> f64) -> Option<Vec<F>> {
    let n = matrix.nrows();
    let element = |at: usize| {
        let (i, j) = (at / n, at % n);
        let value = F::from_f64(widen(matrix[(i.max(j), i.min(j))]));
        value.to_f64().is_finite().then_some(value)
    };
    (0..n * n).map(element).collect()
}

/// The lower triangle of the inverse, of a matrix whose lower triangle is read; `None` where it is not
/// positive definite.
fn by_cholesky<T: RealField>(mut matrix: Mat<T>) -> Option<Mat<T>> {
    let (n, par) = (matrix.nrows(), Par::Seq);
    let scratch = cholesky_in_place_scratch::<T>(n, par, Default::default());
    let mut memory = MemBuffer::try_new(scratch.or(inverse_scratch::<T>(n, par))).ok()?;
    let stack = MemStack::new(&mut memory);
    let none = Default::default();
    cholesky_in_place(matrix.as_mut(), none, par, stack, Default::default()).ok()?;
    let mut result = Mat::<T>::zeros(n, n);
    inverse(result.as_mut(), matrix.as_ref(), par, stack);
    Some(result)
}
