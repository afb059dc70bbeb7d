//! What both ways to squares of rotated gradients share.

use std::ops::Range;

use super::tiles::plain_rows;
use crate::covariance::Update;
use crate::element::Accumulator;
use crate::error::Result;
use crate::geometry::Layout;
use crate::patches::pieces::Pieces;
use crate::per_example::problem::Problem;
use crate::product::cpu::{Dimensions, Matrix, MatrixMut, Old, gemm};
use crate::workers::{Shared, Workers};

/// Columns of the result that a task computes, at most and at least.
const WIDEST: usize = 256;
const NARROWEST: usize = 64;
/// Tasks that there should be, at least.
const TASKS: usize = 16;

/// Matrices whose columns are eigenvectors, one for each group; `None` for the identity.
#[derive(Clone, Copy)]
pub(crate) struct Rotations<'a, F> {
    pub of_patches: Option<&'a [F]>,
    pub of_gradients: Option<&'a [F]>,
}

/// Where rotated squares go: a group's rows are `columns` long.
#[derive(Clone, Copy)]
pub(super) struct Target<'a, F> {
    pub data: Shared<'a, F>,
    pub update: Update,
    /// Whether these are the first squares: those that the old values decay for.
    pub first: bool,
    /// Elements of a row.
    pub columns: usize,
}

/// How the columns of a group's result are shared, if something else shares it among so many tasks already.
pub(super) fn column_pieces(p: &Problem, others: usize) -> Pieces {
    let wanted = TASKS.div_ceil(others.max(1));
    let size = p.columns().div_ceil(wanted).next_multiple_of(16).clamp(NARROWEST, WIDEST);
    // As even as can be.
    let count = p.columns().div_ceil(size).max(1);
    Pieces::new(p.columns(), p.columns().div_ceil(count).max(1))
}

/// `Q_Gᵀ·g` at every position of the examples of a chunk, laid out as `plain`.
pub(super) fn rotate_plain<F: Accumulator>(
    workers: &Workers,
    p: &Problem,
    plain: &[F],
    q_g: &[F],
    examples: usize,
    rotated: &mut [F],
    memory: &mut [u8],
) -> Result<()> {
    let (o, t) = (p.plain_per_group(), p.positions());
    let rotated = Shared::new(rotated);
    workers.share_out(examples, memory, |n, _| {
        // SAFETY: tasks have images of their own.
        let image = unsafe { rotated.run(n * p.plain_len(), p.plain_len()) };
        for group in 0..p.groups {
            let q_g = Matrix { data: &q_g[group * o * o..][..o * o], row: 1, column: o };
            let source = plain_rows(p, plain, n, group, 0..o, 0);
            let first = group * o;
            let target = match p.layout {
                Layout::ChannelsFirst => {
                    MatrixMut { data: &mut image[first * t..], row: t, column: 1 }
                }
                Layout::ChannelsLast => {
                    MatrixMut { data: &mut image[first..], row: 1, column: p.plain }
                }
            };
            let size = Dimensions { rows: o, columns: t, terms: o };
            gemm(size, q_g, source, target, Old::Replaced);
        }
        Ok(())
    })
}

/// Adds squares to sums.
pub(super) fn add_squares<F: Accumulator>(values: &[F], sums: &mut [F]) {
    sums.iter_mut().zip(values).for_each(|(sum, &value)| *sum += value * value);
}

/// What an old value counts.
pub(super) fn decayed<F: Accumulator>(value: F, update: Update) -> F {
    if update.decay == 0.0 { F::ZERO } else { F::from_f64(update.decay) * value }
}

impl<F: Accumulator> Target<'_, F> {
    /// Adds sums of squares of some rows, counted over all groups, and columns.
    ///
    /// # Safety
    /// Nothing else may use these elements.
    pub unsafe fn add(&self, squares: &[F], first: usize, rows: usize, columns: Range<usize>) {
        let scale = F::from_f64(self.update.scale);
        for (row, squares) in (first..first + rows).zip(squares.chunks_exact(columns.len())) {
            // SAFETY: promised by the caller.
            let target =
                unsafe { self.data.run(row * self.columns + columns.start, columns.len()) };
            for (value, &square) in target.iter_mut().zip(squares) {
                let old = if self.first { decayed(*value, self.update) } else { *value };
                *value = old + scale * square;
            }
        }
    }
}
