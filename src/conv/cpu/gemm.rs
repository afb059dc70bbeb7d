//! Matrix products on slices, by faer.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use crate::element::Accumulator;

/// Distances from one row, and from one column, of a matrix to the next, in elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Steps {
    pub row: usize,
    pub column: usize,
}

impl Steps {
    /// The steps of the transpose.
    pub fn transposed(self) -> Steps {
        Steps { row: self.column, column: self.row }
    }

    /// Number of elements from the first to past the last one of a matrix.
    fn span(self, rows: usize, columns: usize) -> usize {
        (rows - 1) * self.row + (columns - 1) * self.column + 1
    }
}

/// What becomes of the target's old values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Old {
    /// They are overwritten without being read.
    Replaced,
    /// The product is added to them.
    Kept,
}

/// `c = a·b` or `c += a·b` on the calling thread, with c of m × n and a of m × k elements, m and n at
/// least 1.
///
/// # Panics
/// When an operand's slice is shorter than its extents and steps make it: an error in this crate.
#[allow(clippy::too_many_arguments)] // A matrix product has three sizes and three operands.
pub(super) fn gemm<A: Accumulator>(
    (m, n, k): (usize, usize, usize),
    a: &[A],
    a_steps: Steps,
    b: &[A],
    b_steps: Steps,
    c: &mut [A],
    c_steps: Steps,
    old: Old,
) {
    assert!(m > 0 && n > 0 && c_steps.span(m, n) <= c.len(), "the target is too short");
    assert!(k == 0 || a_steps.span(m, k) <= a.len(), "the left operand is too short");
    assert!(k == 0 || b_steps.span(k, n) <= b.len(), "the right operand is too short");
    assert!(distinct(m, n, c_steps), "the target overlaps itself");
    let accumulate = if old == Old::Kept { Accum::Add } else { Accum::Replace };
    // SAFETY: all elements of each matrix lie inside its slice, and those of `c` are distinct, by the
    // assertions above; the slices outlive the views.
    unsafe {
        let a = MatRef::from_raw_parts(a.as_ptr(), m, k, a_steps.row as isize, a_steps.column as isize);
        let b = MatRef::from_raw_parts(b.as_ptr(), k, n, b_steps.row as isize, b_steps.column as isize);
        let c = MatMut::from_raw_parts_mut(
            c.as_mut_ptr(),
            m,
            n,
            c_steps.row as isize,
            c_steps.column as isize,
        );
        matmul(c, accumulate, a, b, A::ONE, Par::Seq);
    }
}

/// Whether no two elements of an m × n matrix with these steps lie on one another: one axis must step
/// over all of the other.
fn distinct(m: usize, n: usize, steps: Steps) -> bool {
    let clear = |inner: usize, count: usize, outer: usize, outer_count: usize| {
        (count == 1 || inner > 0) && (outer_count == 1 || outer > (count - 1) * inner)
    };
    clear(steps.row, m, steps.column, n) || clear(steps.column, n, steps.row, m)
}
