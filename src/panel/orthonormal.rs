//! Orthonormal panels: CholeskyQR, repeated where one pass is not accurate enough, shifted where Cholesky's
//! factorisation fails, and vector by vector where vectors depend on one another.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::{Mat, Par};

use super::{Products, Target, add_scaled, combine, dots, fill_normal, gram};
use crate::element::Accumulator;
use crate::error::Result;
use crate::tensor::{Tensor, TensorView, TensorViewMut};

/// Passes of CholeskyQR before vectors are taken one by one.
const PASSES: usize = 4;

/// The Euclidean norm of each row; not a number where an element is not, which callers see to.
pub(crate) fn norms<T: Accumulator>(panel: &TensorView<'_, T>) -> Result<Vec<f64>> {
    // Some rows at a time: all inner products of many would be computed for their diagonal alone.
    const ROWS: usize = 4;
    let rows = panel.shape()[0];
    let mut norms = Vec::with_capacity(rows);
    for start in (0..rows).step_by(ROWS) {
        let part = panel.slice_rows(start..(start + ROWS).min(rows));
        let products = dots(&part, &part)?;
        norms.extend((0..products.nrows()).map(|i| products[(i, i)].sqrt()));
    }
    Ok(norms)
}

/// Takes the components along an orthonormal basis out of the rows of `w`, and returns them: entry (i, j) is
/// that of row j along basis vector i. Done again where little was left, which is when rounding tells
/// ("twice is enough").
pub(crate) fn project_out<T: Accumulator>(
    basis: &TensorView<'_, T>,
    mut w: TensorViewMut<'_, T>,
) -> Result<Mat<f64>> {
    let mut found = Mat::zeros(basis.shape()[0], w.shape()[0]);
    if basis.shape()[0] == 0 {
        return Ok(found);
    }
    let mut before = norms(&w.as_view())?;
    for _ in 0..2 {
        let parts = dots(basis, &w.as_view())?;
        combine((-parts.transpose()).as_ref(), basis, w.reborrow(), Target::Kept)?;
        found += &parts;
        let taken = |j: usize| (0..parts.nrows()).map(|i| parts[(i, j)].powi(2)).sum::<f64>();
        // What is left, by Pythagoras: the criterion of Daniel, Gragg, Kaufman & Stewart 1976.
        let kept = |j: usize| before[j].powi(2) - taken(j);
        if (0..before.len()).all(|j| kept(j) > 0.5 * before[j].powi(2)) {
            break;
        }
        before = norms(&w.as_view())?;
    }
    Ok(found)
}

/// What [`orthonormalise`] found.
pub(crate) struct Factors {
    /// L, lower triangular, with W = L·Q. Rows of vectors that were replaced have zeros on the diagonal.
    pub lower: Mat<f64>,
}

/// Where replacements of dependent vectors come from: a seed, and how many calls there were.
pub(crate) struct Random {
    pub seed: u64,
    pub calls: u64,
}

impl Random {
    /// Fills a panel, each time with other numbers.
    pub(crate) fn fill<T: Accumulator>(&mut self, panel: TensorViewMut<'_, T>) -> Result<()> {
        self.calls += 1;
        fill_normal(panel, self.seed, self.calls)
    }
}

/// Writes an orthonormal panel Q with W = L·Q to `q`, its rows orthogonal to `basis`, to which those of W
/// are orthogonal already. Vectors that are `negligible` or shorter once the others' components are taken
/// out are replaced by random ones. W is overwritten.
///
/// CholeskyQR with Gram matrices in `f64` (Yamamoto et al. 2015), shifted where that fails (Fukaya et al.
/// 2020).
pub(crate) fn orthonormalise<T: Accumulator>(
    w: &mut Tensor<T>,
    mut q: TensorViewMut<'_, T>,
    basis: &TensorView<'_, T>,
    negligible: f64,
    random: &mut Random,
) -> Result<Factors> {
    let (rows, len) = (w.shape()[0], w.shape()[1]);
    // Rounding of the panel's own type decides from which condition on a pass has to be repeated.
    let good = if size_of::<T>() == 4 { 1e3 } else { 10.0 };
    let mut total = Mat::<f64>::identity(rows, rows);
    for _ in 0..PASSES {
        let gram = gram(&w.view(), Products::Wide)?;
        let longest = (0..rows).map(|i| gram[(i, i)]).fold(0.0, f64::max);
        let shortest = (0..rows).map(|i| gram[(i, i)]).fold(f64::INFINITY, f64::min);
        if shortest.sqrt() <= negligible || shortest <= longest * f64::EPSILON.powi(2) {
            break;
        }
        let (lower, shifted) = match cholesky(&gram) {
            Some(lower) => (lower, false),
            None => {
                let trace: f64 = (0..rows).map(|i| gram[(i, i)]).sum();
                let sizes = (len * rows + rows * (rows + 1)) as f64;
                let shift = 11.0 * sizes * f64::EPSILON * trace;
                let mut moved = gram.clone();
                (0..rows).for_each(|i| moved[(i, i)] += shift);
                match cholesky(&moved) {
                    Some(lower) => (lower, true),
                    None => break,
                }
            }
        };
        let pivots = (0..rows).map(|i| lower[(i, i)]);
        let (least, most) = pivots.fold((f64::INFINITY, 0.0f64), |(l, m), p| (l.min(p), m.max(p)));
        if !shifted && least * total[(rows - 1, rows - 1)].abs() <= negligible {
            break;
        }
        let inverse = inverse_of_lower(&lower);
        total = &total * &lower;
        combine(inverse.as_ref(), &w.view(), q.reborrow(), Target::Replaced)?;
        if !shifted && most / least <= good {
            return Ok(Factors { lower: total });
        }
        add_scaled(1.0, &q.as_view(), w.view_mut(), Target::Replaced)?;
    }
    let own = one_by_one(w, q, basis, negligible, random)?;
    Ok(Factors { lower: &total * &own })
}

/// Pivots of a factor up to which a basis by it in the elements' own type is good enough to go on with.
const MODERATE: f64 = 30.0;

/// Writes a basis of W's rows to `q` that is orthonormal only roughly, to some thousandths: one pass of
/// CholeskyQR in the elements' own type, in half the time. The ratio of the factor's pivots, by which the
/// rows' lengths differ along their least direction; none where that is too large, and `q` is not written.
pub(crate) fn roughly_orthonormalise<T: Accumulator>(
    w: &TensorView<'_, T>,
    q: TensorViewMut<'_, T>,
) -> Result<Option<f64>> {
    let Some(lower) = cholesky(&gram(w, Products::Native)?) else { return Ok(None) };
    let pivots = (0..lower.nrows()).map(|i| lower[(i, i)]);
    let (least, most) = pivots.fold((f64::INFINITY, 0.0f64), |(l, m), p| (l.min(p), m.max(p)));
    let ratio = most / least;
    if ratio.is_nan() || ratio > MODERATE {
        return Ok(None);
    }
    combine(inverse_of_lower(&lower).as_ref(), w, q, Target::Replaced)?;
    Ok(Some(ratio))
}

/// [`orthonormalise`] by Gram and Schmidt's method, vector by vector.
fn one_by_one<T: Accumulator>(
    w: &mut Tensor<T>,
    mut q: TensorViewMut<'_, T>,
    basis: &TensorView<'_, T>,
    negligible: f64,
    random: &mut Random,
) -> Result<Mat<f64>> {
    let rows = w.shape()[0];
    let mut lower = Mat::<f64>::zeros(rows, rows);
    for row in 0..rows {
        let before = norms(&w.view().slice_rows(row..row + 1))?[0];
        let others =
            project_out(&q.as_view().slice_rows(0..row), w.view_mut().slice_rows(row..row + 1))?;
        (0..row).for_each(|i| lower[(row, i)] = others[(i, 0)]);
        let mut norm = norms(&w.view().slice_rows(row..row + 1))?[0];
        let noise = 64.0 * 2.0 * T::DTYPE.unit_roundoff() * before;
        if norm <= negligible.max(noise) {
            // A random vector has next to no chance to depend on fewer than all; where nothing is left the
            // space is full, which callers see to.
            for _ in 0..3 {
                random.fill(w.view_mut().slice_rows(row..row + 1))?;
                project_out(basis, w.view_mut().slice_rows(row..row + 1))?;
                let earlier = q.as_view().slice_rows(0..row);
                project_out(&earlier, w.view_mut().slice_rows(row..row + 1))?;
                project_out(basis, w.view_mut().slice_rows(row..row + 1))?;
                norm = norms(&w.view().slice_rows(row..row + 1))?[0];
                if norm > 1e-3 {
                    break;
                }
            }
        } else {
            lower[(row, row)] = norm;
        }
        let scale = Mat::from_fn(1, 1, |_, _| if norm > 0.0 { norm.recip() } else { 0.0 });
        let target = q.reborrow().slice_rows(row..row + 1);
        combine(scale.as_ref(), &w.view().slice_rows(row..row + 1), target, Target::Replaced)?;
    }
    Ok(lower)
}

/// The lower triangular factor, if the matrix is positive definite.
fn cholesky(matrix: &Mat<f64>) -> Option<Mat<f64>> {
    let n = matrix.nrows();
    let mut lower = matrix.clone();
    let mut memory =
        MemBuffer::new(cholesky_in_place_scratch::<f64>(n, Par::Seq, Default::default()));
    let stack = MemStack::new(&mut memory);
    let regularization = Default::default();
    cholesky_in_place(lower.as_mut(), regularization, Par::Seq, stack, Default::default()).ok()?;
    (0..n).for_each(|j| (0..j).for_each(|i| lower[(i, j)] = 0.0));
    (0..n).all(|i| lower[(i, i)].is_finite()).then_some(lower)
}

/// The inverse of a lower triangular matrix with a positive diagonal.
fn inverse_of_lower(lower: &Mat<f64>) -> Mat<f64> {
    let mut inverse = Mat::<f64>::identity(lower.nrows(), lower.nrows());
    faer::linalg::triangular_solve::solve_lower_triangular_in_place(
        lower.as_ref(),
        inverse.as_mut(),
        Par::Seq,
    );
    inverse
}
