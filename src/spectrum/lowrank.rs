//! The randomized decomposition of Halko, Martinsson & Tropp 2011 (their algorithms 4.4 and 5.1), as
//! `torch.svd_lowrank` does it, on panels.

use faer::Mat;

use super::lanczos::{Found, defect, residuals};
use super::norm::finite;
use super::small::decompose;
use crate::element::Accumulator;
use crate::error::Result;
use crate::operator::{Direction, Operator};
use crate::panel::{Random, Target, combine, orthonormalise, roughly_orthonormalise};
use crate::tensor::Tensor;

/// Ratios of lengths up to which vectors are not made orthogonal between an application and the next.
const ALIKE: f64 = 10.0;

/// `count` triplets from a random subspace after `iterations` power iterations.
pub(super) fn low_rank<T: Accumulator>(
    operator: &Operator<T>,
    count: usize,
    iterations: usize,
    seed: u64,
) -> Result<Found<T>> {
    let [m, n] = operator.shape();
    let device = operator.device();
    // As PyTorch does: B = QᵀA is then as small as it can be.
    let (there, back, long, short) = match n <= m {
        true => (Direction::Forward, Direction::Adjoint, m, n),
        false => (Direction::Adjoint, Direction::Forward, n, m),
    };
    let panel = |len: usize| Tensor::<T>::for_result(device, &[count, len]);
    let mut random = Random { seed, calls: 0 };
    let (mut narrow, mut z) = (panel(short)?, panel(short)?);
    let (mut wide, mut q) = (panel(long)?, panel(long)?);
    let mut applications = 0;
    let mut apply = |direction, x: &Tensor<T>, y: &mut Tensor<T>| {
        applications += count as u64;
        operator.run(direction, x.view(), y.view_mut())
    };
    random.fill(z.view_mut())?;
    apply(there, &z, &mut wide)?;
    for _ in 0..iterations {
        // In between a basis only has to keep its vectors apart; where they are of like lengths, as those of
        // flat spectra are, an application leaves them so.
        let rough = roughly_orthonormalise(&wide.view(), q.view_mut())?;
        if rough.is_none() {
            basis(operator, &mut wide, &mut q, &mut random)?;
        }
        apply(back, &q, &mut narrow)?;
        if rough.is_some_and(|ratio| ratio <= ALIKE) {
            std::mem::swap(&mut narrow, &mut z);
        } else if roughly_orthonormalise(&narrow.view(), z.view_mut())?.is_none() {
            basis(operator, &mut narrow, &mut z, &mut random)?;
        }
        apply(there, &z, &mut wide)?;
    }
    basis(operator, &mut wide, &mut q, &mut random)?;
    apply(back, &q, &mut narrow)?;
    // B = L·Z with orthonormal rows in Z, so that B's decomposition is that of L.
    let lower = basis(operator, &mut narrow, &mut z, &mut random)?;
    let found = decompose(lower.as_ref())?;
    let (mut u, mut v) = (wide, narrow);
    combine(found.u.transpose(), &q.view(), u.view_mut(), Target::Replaced)?;
    combine(found.v.transpose(), &z.view(), v.view_mut(), Target::Replaced)?;
    drop((q, z));
    let values = found.values;
    let first = residuals(operator, there, &v, &u, &values)?;
    // Aᵀ·U = Bᵀ·(L's left vectors) = V·Σ, up to the rounding of these products.
    let second = 32.0 * T::DTYPE.unit_roundoff() * values.first().copied().unwrap_or(0.0);
    applications += count as u64;
    let orthogonality = defect(&v.view())?.max(defect(&u.view())?);
    let residuals = first.into_iter().map(|first| [first, second]).collect();
    let (u, v) = if n <= m { (u, v) } else { (v, u) };
    Ok(Found { values, residuals, u, v, applications, interrupted: false, orthogonality })
}

/// An orthonormal basis of the rows of `w`, which is overwritten: W = L·Q. Rows that are not finite, which
/// have no rough basis either, are an error.
fn basis<T: Accumulator>(
    operator: &Operator<T>,
    w: &mut Tensor<T>,
    q: &mut Tensor<T>,
    random: &mut Random,
) -> Result<Mat<f64>> {
    let none = Tensor::<T>::for_result(&w.device(), &[0, w.shape()[1]])?;
    // What is rounding is known only relative to the other rows.
    let lower = orthonormalise(w, q.view_mut(), &none.view(), 0.0, random)?.lower;
    finite(operator, (0..lower.ncols()).flat_map(|c| lower.col(c).iter().copied()))?;
    Ok(lower)
}
