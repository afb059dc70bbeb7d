//! Matrix products on slices, by faer.

use faer::{Accum, MatMut, MatRef};

use crate::element::Accumulator;

/// A matrix in a slice: element (i, j) is `data[i·row + j·column]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix<'a, A> {
    pub data: &'a [A],
    pub row: usize,
    pub column: usize,
}

/// A matrix in a slice, for writing: element (i, j) is `data[i·row + j·column]`.
#[derive(Debug)]
pub(super) struct MatrixMut<'a, A> {
    pub data: &'a mut [A],
    pub row: usize,
    pub column: usize,
}

impl<'a, A> Matrix<'a, A> {
    /// The transpose.
    pub fn t(self) -> Self {
        Matrix { data: self.data, row: self.column, column: self.row }
    }

    /// The matrix that starts at element (i, j).
    pub fn from(self, i: usize, j: usize) -> Self {
        Matrix { data: &self.data[i * self.row + j * self.column..], ..self }
    }
}

impl<A> MatrixMut<'_, A> {
    /// The transpose.
    pub fn t(self) -> Self {
        MatrixMut { data: self.data, row: self.column, column: self.row }
    }

    /// The matrix that starts at element (i, j).
    pub fn from(self, i: usize, j: usize) -> Self {
        MatrixMut { data: &mut self.data[i * self.row + j * self.column..], ..self }
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

/// `c = a·b` or `c += a·b` on the calling thread, with c of m × n and a of m × k elements, none of
/// which may be 0.
///
/// # Panics
/// When an operand's slice is shorter than its extents make it: an error in this crate.
pub(super) fn gemm<A: Accumulator>(
    [m, n, k]: [usize; 3],
    a: Matrix<'_, A>,
    b: Matrix<'_, A>,
    c: MatrixMut<'_, A>,
    old: Old,
) {
    let fits = |rows: usize, columns: usize, row: usize, column: usize, len: usize| {
        rows > 0 && columns > 0 && (rows - 1) * row + (columns - 1) * column < len
    };
    assert!(fits(m, k, a.row, a.column, a.data.len()), "the left operand is too short");
    assert!(fits(k, n, b.row, b.column, b.data.len()), "the right operand is too short");
    assert!(fits(m, n, c.row, c.column, c.data.len()), "the target is too short");
    assert!(distinct([m, n], [c.row, c.column]), "the target overlaps itself");
    let accumulate = if old == Old::Kept { Accum::Add } else { Accum::Replace };
    let (a_data, b_data, c_data) = (a.data.as_ptr(), b.data.as_ptr(), c.data.as_mut_ptr());
    // SAFETY: all elements of each matrix lie inside its slice, and those of `c` are distinct, by the
    // assertions above; the slices outlive the views.
    unsafe {
        let a = MatRef::from_raw_parts(a_data, m, k, a.row as isize, a.column as isize);
        let b = MatRef::from_raw_parts(b_data, k, n, b.row as isize, b.column as isize);
        let c = MatMut::from_raw_parts_mut(c_data, m, n, c.row as isize, c.column as isize);
        A::matmul(c, accumulate, a, b);
    }
}

/// Whether no two elements of a matrix lie on one another: one axis must step over all of the other.
fn distinct(extents: [usize; 2], steps: [usize; 2]) -> bool {
    let clear = |inner: usize, outer: usize| {
        (extents[inner] == 1 || steps[inner] > 0)
            && (extents[outer] == 1 || steps[outer] > (extents[inner] - 1) * steps[inner])
    };
    clear(0, 1) || clear(1, 0)
}
