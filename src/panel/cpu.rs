//! Panels on the CPU.
//!
//! Both passes go over pieces of the vectors that stay in a core's cache, in parallel; what a piece gives
//! depends on its place alone, so results do not depend on the number of threads. Few vectors are bound by
//! memory and go through plain loops; many are products of matrices, which faer multiplies.

use faer::{Accum, Mat, MatMut, MatRef};
use pulp::Arch;
use rayon::prelude::*;

use super::Target;
use crate::element::Accumulator;
use crate::product::cpu::{Dimensions, Matrix, MatrixMut, Old, gemm};

/// Elements of a piece.
const PIECE: usize = 4096;

/// Pieces of a task: as many as leave few sums to add up afterwards.
const PIECES: usize = 4;

/// From so many rows on both sides it is a matrix product.
const PRODUCT: usize = 4;

/// Bytes of a piece of all rows, about, that stay in a core's cache during a product.
const CACHED: usize = 512 << 10;

/// Rows of a sum that are computed together: those that need fewer terms than others take no more.
const ROWS: usize = 48;

/// The inner products of the rows of `a` and `b`, `a` having `rows`.
pub(super) fn dots<T: Accumulator>(a: &[T], b: &[T], rows: usize) -> Mat<f64> {
    let len = a.len().checked_div(rows).unwrap_or(0);
    let others = b.len().checked_div(len).unwrap_or(0);
    if len == 0 || others == 0 {
        return Mat::zeros(rows, others);
    }
    let product = rows >= PRODUCT && others >= PRODUCT;
    pieces(len, [rows, others], PIECE, |piece, sums| match product {
        true => piece.product(a, b, sums),
        false => piece.dots(a, b, sums),
    })
}

/// The inner products of the rows of a panel with one another; products and their sums over a piece in `W`.
pub(super) fn gram<T: Accumulator, W: Accumulator>(a: &[T], rows: usize) -> Mat<f64> {
    let len = a.len().checked_div(rows).unwrap_or(0);
    if len == 0 {
        return Mat::zeros(rows, rows);
    }
    if rows < PRODUCT {
        return dots(a, a, rows);
    }
    let longest = cached::<W>(rows);
    let mut total = pieces(len, [rows, rows], longest, |piece, sums| piece.gram::<T, W>(a, sums));
    // Only the lower triangle was multiplied.
    for i in 0..rows {
        (0..i).for_each(|j| total[(j, i)] = total[(i, j)]);
    }
    total
}

/// Elements of a piece of so many rows that stay in the cache.
fn cached<T>(rows: usize) -> usize {
    (CACHED / size_of::<T>() / rows).next_power_of_two().clamp(128, PIECE)
}

/// What `add` adds to sums, piece by piece of vectors of `len` elements.
fn pieces(
    len: usize,
    [rows, columns]: [usize; 2],
    longest: usize,
    add: impl Fn(Piece, MatMut<'_, f64>) + Sync,
) -> Mat<f64> {
    let step = PIECE * PIECES;
    let task = |task: usize| {
        let mut sums = Mat::<f64>::zeros(rows, columns);
        let end = ((task + 1) * step).min(len);
        for start in (task * step..end).step_by(longest) {
            add(Piece { start, len: longest.min(end - start), pitch: len }, sums.as_mut());
        }
        sums
    };
    let tasks = len.div_ceil(step);
    let sums: Vec<Mat<f64>> = (0..tasks).into_par_iter().map(task).collect();
    let mut total = Mat::<f64>::zeros(rows, columns);
    sums.iter().for_each(|part| total += part);
    total
}

/// A range of the vectors' elements.
struct Piece {
    start: usize,
    len: usize,
    pitch: usize,
}

impl Piece {
    fn of<'a, T>(&self, panel: &'a [T], row: usize) -> &'a [T] {
        &panel[row * self.pitch + self.start..][..self.len]
    }

    /// Adds what this piece gives to each inner product.
    fn dots<T: Accumulator>(&self, a: &[T], b: &[T], mut sums: MatMut<'_, f64>) {
        Arch::new().dispatch(|| {
            for j in 0..sums.ncols() {
                let right = self.of(b, j);
                for i in 0..sums.nrows() {
                    sums[(i, j)] += dot(self.of(a, i), right);
                }
            }
        });
    }

    fn product<T: Accumulator>(&self, a: &[T], b: &[T], mut sums: MatMut<'_, f64>) {
        let (rows, columns) = (sums.nrows(), sums.ncols());
        let mut parts = vec![T::ZERO; rows * columns];
        let left = Matrix { data: &a[self.start..], row: self.pitch, column: 1 };
        let right = Matrix { data: &b[self.start..], row: 1, column: self.pitch };
        let target = MatrixMut { data: &mut parts, row: columns, column: 1 };
        let dimensions = Dimensions { rows, columns, terms: self.len };
        gemm(dimensions, left, right, target, Old::Replaced);
        for i in 0..rows {
            for j in 0..columns {
                sums[(i, j)] += parts[i * columns + j].to_f64();
            }
        }
    }

    /// The lower triangle of the products of a panel with itself.
    fn gram<T: Accumulator, W: Accumulator>(&self, a: &[T], mut sums: MatMut<'_, f64>) {
        let rows = sums.nrows();
        let mut converted = vec![W::ZERO; rows * self.len];
        for (row, target) in converted.chunks_exact_mut(self.len).enumerate() {
            let from = self.of(a, row);
            target.iter_mut().zip(from).for_each(|(to, from)| *to = W::from_f64(from.to_f64()));
        }
        let mut parts = Mat::<W>::from_fn(rows, rows, |_, _| W::ZERO);
        let panel = MatRef::from_row_major_slice(&converted, rows, self.len);
        W::matmul_symmetric(parts.as_mut(), panel);
        for j in 0..rows {
            (j..rows).for_each(|i| sums[(i, j)] += parts[(i, j)].to_f64());
        }
    }
}

/// The inner product of two runs, in `T`, by lanes that the compiler makes vectors of.
#[inline(always)]
fn dot<T: Accumulator>(a: &[T], b: &[T]) -> f64 {
    const LANES: usize = 64;
    let mut sums = [T::ZERO; LANES];
    let (left, right) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = left.remainder().iter().zip(right.remainder());
    let rest: f64 = rest.map(|(&x, &y)| x.to_f64() * y.to_f64()).sum();
    for (x, y) in left.zip(right) {
        let (x, y): (&[T; LANES], &[T; LANES]) = (x.try_into().unwrap(), y.try_into().unwrap());
        for lane in 0..LANES {
            sums[lane] += x[lane] * y[lane];
        }
    }
    rest + sums.iter().map(|sum| sum.to_f64()).sum::<f64>()
}

/// `y = C·x` or `y += C·x` over the rows of both panels.
pub(super) fn combine<T: Accumulator>(
    coefficients: MatRef<'_, f64>,
    x: &[T],
    y: &mut [T],
    target: Target,
) {
    let (rows, columns) = (coefficients.nrows(), coefficients.ncols());
    let len = y.len() / rows;
    if len == 0 {
        return;
    }
    let factors: Vec<T> = (0..rows * columns)
        .map(|at| T::from_f64(coefficients[(at / columns.max(1), at % columns.max(1))]))
        .collect();
    if rows >= PRODUCT && columns >= PRODUCT {
        return multiply(
            &factors,
            columns,
            x,
            MatMut::from_row_major_slice_mut(y, rows, len),
            target,
        );
    }
    let shared = crate::workers::Shared::new(y);
    (0..len.div_ceil(PIECE)).into_par_iter().for_each(|task| {
        let start = task * PIECE;
        let piece = Piece { start, len: PIECE.min(len - start), pitch: len };
        for row in 0..rows {
            // SAFETY: each task has elements of its own of every row.
            let y = unsafe { shared.run(row * len + start, piece.len) };
            if target == Target::Replaced {
                y.fill(T::ZERO);
            }
            let factors = &factors[row * columns..][..columns];
            Arch::new().dispatch(|| add(factors, x, &piece, y));
        }
    });
}

/// The same as a product of matrices.
fn multiply<T: Accumulator>(
    factors: &[T],
    columns: usize,
    x: &[T],
    y: MatMut<'_, T>,
    target: Target,
) {
    let (rows, len) = (y.nrows(), y.ncols());
    let factors = MatRef::from_row_major_slice(factors, rows, columns);
    let x = MatRef::from_row_major_slice(x, columns, len);
    let accumulate = if target == Target::Kept { Accum::Add } else { Accum::Replace };
    let longest = cached::<T>(columns);
    y.par_col_chunks_mut(longest).enumerate().for_each(|(piece, mut y)| {
        let x = x.subcols(piece * longest, y.ncols());
        for start in (0..rows).step_by(ROWS) {
            let some = ROWS.min(rows - start);
            let factors = factors.subrows(start, some);
            // Of a triangular matrix the first rows need few terms.
            let zero = |&column: &usize| (0..some).all(|row| factors[(row, column)] == T::ZERO);
            let terms = columns - (0..columns).rev().take_while(zero).count();
            let mut y = y.as_mut().subrows_mut(start, some);
            if terms > 0 {
                T::matmul(y, accumulate, factors.subcols(0, terms), x.subrows(0, terms));
            } else if target == Target::Replaced {
                y.fill(T::ZERO);
            }
        }
    });
}

/// Adds a piece of the rows of `x` with their factors to `y`, four at a time.
#[inline(always)]
fn add<T: Accumulator>(factors: &[T], x: &[T], piece: &Piece, y: &mut [T]) {
    let mut row = 0;
    for four in factors.chunks(4) {
        if let &[a, b, c, d] = four {
            let [p, q, r, s] = [0, 1, 2, 3].map(|more| piece.of(x, row + more));
            let terms = p.iter().zip(q).zip(r).zip(s);
            for (y, (((&p, &q), &r), &s)) in y.iter_mut().zip(terms) {
                *y += (a * p + b * q) + (c * r + d * s);
            }
        } else {
            for (more, &factor) in four.iter().enumerate() {
                let x = piece.of(x, row + more);
                y.iter_mut().zip(x).for_each(|(y, &x)| *y += factor * x);
            }
        }
        row += four.len();
    }
}
