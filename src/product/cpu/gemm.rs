//! Matrix products on slices, by faer.

use faer::{Accum, MatMut, MatRef};

use crate::element::Accumulator;
use crate::geometry::Layout;

/// A matrix in a slice: element (i, j) is `data[i·row + j·column]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a, A> {
    pub data: &'a [A],
    pub row: usize,
    pub column: usize,
}

/// A matrix in a slice, for writing: element (i, j) is `data[i·row + j·column]`.
#[derive(Debug)]
pub(crate) struct MatrixMut<'a, A> {
    pub data: &'a mut [A],
    pub row: usize,
    pub column: usize,
}

/// Extents of a product: `rows` × `columns` sums of `terms` products.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dimensions {
    pub rows: usize,
    pub columns: usize,
    pub terms: usize,
}

impl<'a, A> Matrix<'a, A> {
    /// A matrix whose rows are channels and whose columns are positions (or, of a weight, patch entries),
    /// from contiguous runs that start `step` apart: they are its rows, or channels last its columns.
    pub fn of_runs(layout: Layout, data: &'a [A], step: usize) -> Self {
        let rows = Matrix { data, row: step, column: 1 };
        if layout == Layout::ChannelsFirst { rows } else { rows.t() }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Matrix { data: self.data, row: self.column, column: self.row }
    }

    /// The matrix that starts at element (i, j).
    pub fn from(self, i: usize, j: usize) -> Self {
        Matrix { data: &self.data[i * self.row + j * self.column..], ..self }
    }
}

impl<'a, A> MatrixMut<'a, A> {
    /// As [`Matrix::of_runs`].
    pub fn of_runs(layout: Layout, data: &'a mut [A], step: usize) -> Self {
        let rows = MatrixMut { data, row: step, column: 1 };
        if layout == Layout::ChannelsFirst { rows } else { rows.t() }
    }

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
pub(crate) enum Old {
    /// They are overwritten without being read.
    Replaced,
    /// The product is added to them.
    Kept,
}

/// `c = a·b` or `c += a·b` on the calling thread. No dimension may be 0.
///
/// # Panics
/// When an operand's slice is shorter than its extents make it: an error in this crate.
pub(crate) fn gemm<A: Accumulator>(
    Dimensions { rows: m, columns: n, terms: k }: Dimensions,
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
