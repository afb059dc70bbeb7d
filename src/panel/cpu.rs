//! Panels on the CPU.
//!
//! Both passes go over pieces of the vectors that stay in a core's cache, in parallel; what a piece gives
//! depends on its place alone, so results do not depend on the number of threads. Few vectors are bound by
//! memory and go through plain loops; many are products of matrices, which faer multiplies.

use faer::{Accum, Mat, MatMut, MatRef, Par};
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

/// The inner products of the rows of `a` and `b`, `a` having `rows`; with `wide`, of a panel with itself
/// and in `f64` throughout.
pub(super) fn dots<T: Accumulator>(a: &[T], b: &[T], rows: usize, wide: bool) -> Mat<f64> {
    let len = a.len().checked_div(rows).unwrap_or(0);
    let others = b.len().checked_div(len).unwrap_or(0);
    if len == 0 || others == 0 {
        return Mat::zeros(rows, others);
    }
    let step = PIECE * PIECES;
    let task = |task: usize| {
        let mut sums = Mat::<f64>::zeros(rows, others);
        let end = ((task + 1) * step).min(len);
        for start in (task * step..end).step_by(PIECE) {
            let piece = Piece { start, len: PIECE.min(end - start), pitch: len };
            if wide && rows >= PRODUCT {
                piece.gram(a, rows, sums.as_mut());
            } else if rows >= PRODUCT && others >= PRODUCT {
                piece.product(a, b, sums.as_mut());
            } else {
                piece.dots(a, b, sums.as_mut());
            }
        }
        sums
    };
    let tasks = len.div_ceil(step);
    let sums: Vec<Mat<f64>> = (0..tasks).into_par_iter().map(task).collect();
    let mut total = Mat::<f64>::zeros(rows, others);
    sums.iter().for_each(|part| total += part);
    if wide && rows >= PRODUCT {
        // Only the lower triangle was multiplied.
        for i in 0..rows {
            (0..i).for_each(|j| total[(j, i)] = total[(i, j)]);
        }
    }
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

    /// The products of a panel with itself, converted to `f64` first.
    fn gram<T: Accumulator>(&self, a: &[T], rows: usize, sums: MatMut<'_, f64>) {
        let mut converted = vec![0.0; rows * self.len];
        for (row, target) in converted.chunks_exact_mut(self.len).enumerate() {
            target.iter_mut().zip(self.of(a, row)).for_each(|(to, from)| *to = from.to_f64());
        }
        let panel = MatRef::from_row_major_slice(&converted, rows, self.len);
        faer::linalg::matmul::triangular::matmul(
            sums,
            faer::linalg::matmul::triangular::BlockStructure::TriangularLower,
            Accum::Add,
            panel,
            faer::linalg::matmul::triangular::BlockStructure::Rectangular,
            panel.transpose(),
            faer::linalg::matmul::triangular::BlockStructure::Rectangular,
            1.0,
            Par::Seq,
        );
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
    let shared = crate::workers::Shared::new(y);
    (0..len.div_ceil(PIECE)).into_par_iter().for_each(|task| {
        let start = task * PIECE;
        let piece = Piece { start, len: PIECE.min(len - start), pitch: len };
        // SAFETY: each task has elements of its own of every row.
        let row_of = |row: usize| unsafe { shared.run(row * len + start, piece.len) };
        if rows < PRODUCT || columns < PRODUCT {
            for row in 0..rows {
                let y = row_of(row);
                if target == Target::Replaced {
                    y.fill(T::ZERO);
                }
                let factors = &factors[row * columns..][..columns];
                Arch::new().dispatch(|| add(factors, x, &piece, y));
            }
            return;
        }
        let mut sums = vec![T::ZERO; rows * piece.len];
        let left = Matrix { data: &factors, row: columns, column: 1 };
        let right = Matrix { data: &x[start..], row: len, column: 1 };
        let dimensions = Dimensions { rows, columns: piece.len, terms: columns };
        let product = MatrixMut { data: &mut sums, row: piece.len, column: 1 };
        gemm(dimensions, left, right, product, Old::Replaced);
        for (row, sums) in sums.chunks_exact(piece.len).enumerate() {
            let y = row_of(row);
            match target {
                Target::Replaced => y.copy_from_slice(sums),
                Target::Kept => y.iter_mut().zip(sums).for_each(|(y, &sum)| *y += sum),
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
