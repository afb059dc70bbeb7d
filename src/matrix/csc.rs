//! Compressed sparse columns.

use super::canonical::AxisNames;
use super::csr::{Csr, Row};
use super::index::{IndexView, Indices};
use crate::device::Device;
use crate::element::Element;
use crate::element::IndexWidth;
use crate::error::Result;
use crate::tensor::Tensor;

/// A sparse matrix in compressed sparse column form, always canonical: the rows of a column ascend
/// and none occurs twice.
///
/// Column `c` has the entries `indptr[c]..indptr[c + 1]` of `indices` (their rows) and `data` (their
/// values), as `scipy.sparse.csc_matrix`.
///
/// `clone` fails as that of [`Csr`] does: [`Csc::try_clone`] returns an error instead.
#[derive(Clone, Debug, PartialEq)]
pub struct Csc<T: Element> {
    /// The compressed sparse rows of the transposed matrix are these columns.
    transposed: Csr<T>,
}

const CSC_NAMES: AxisNames = AxisNames { major: "column", minor: "row" };

impl<T: Element> Csc<T> {
    /// The matrix with these column pointers, row indices and values, taken over without copying.
    ///
    /// # Errors
    /// As [`Csr::new`], with rows and columns exchanged.
    pub fn new(
        shape: [usize; 2],
        indptr: impl Into<Indices>,
        indices: impl Into<Indices>,
        data: Vec<T>,
    ) -> Result<Self> {
        let shape = [shape[1], shape[0]];
        let transposed = Csr::checked(shape, indptr.into(), indices.into(), data, &CSC_NAMES)?;
        Ok(Csc { transposed })
    }

    pub(super) fn of_transposed(transposed: Csr<T>) -> Self {
        Csc { transposed }
    }

    /// A copy of the matrix, where it is.
    ///
    /// # Errors
    /// As [`Csr::try_clone`].
    pub fn try_clone(&self) -> Result<Self> {
        self.transposed.try_clone().map(Csc::of_transposed)
    }

    /// Numbers of rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        let [columns, rows] = self.transposed.shape();
        [rows, columns]
    }

    /// Number of stored entries, explicit zeros included.
    pub fn nnz(&self) -> usize {
        self.transposed.nnz()
    }

    /// Where the matrix is.
    pub fn device(&self) -> Device {
        self.transposed.device()
    }

    /// How wide column pointers and row indices are.
    pub fn index_width(&self) -> IndexWidth {
        self.transposed.index_width()
    }

    /// The same matrix on `device`, as [`Csr::to_device`].
    ///
    /// # Errors
    /// As [`Csr::to_device`].
    pub fn to_device(self, device: &Device) -> Result<Self> {
        self.transposed.to_device(device).map(Csc::of_transposed)
    }

    /// The column pointers, if the matrix is on the host: where each column's entries start, and the
    /// number of entries last.
    pub fn indptr(&self) -> Option<IndexView<'_>> {
        self.transposed.indptr()
    }

    /// The row of each entry, if the matrix is on the host.
    pub fn indices(&self) -> Option<IndexView<'_>> {
        self.transposed.indices()
    }

    /// The value of each entry, if the matrix is on the host.
    pub fn data(&self) -> Option<&[T]> {
        self.transposed.data()
    }

    /// Column pointers, row indices and values, as [`Csr::into_parts`].
    ///
    /// # Errors
    /// As [`Csr::into_parts`].
    pub fn into_parts(self) -> Result<(Indices, Indices, Vec<T>)> {
        self.transposed.into_parts()
    }

    /// One column; `None` past the last, and when the matrix is not on the host.
    pub fn column(&self, column: usize) -> Option<Row<'_, T>> {
        self.transposed.row(column)
    }

    /// All columns, in order, if the matrix is on the host.
    pub fn iter_columns(&self) -> Option<impl ExactSizeIterator<Item = Row<'_, T>>> {
        self.transposed.iter_rows()
    }

    /// The matrix in compressed sparse row form.
    ///
    /// # Errors
    /// As [`Csr::transpose`].
    pub fn to_csr(&self) -> Result<Csr<T>> {
        self.transposed.transpose()
    }

    /// The transposed matrix in compressed sparse row form: the same data under another name.
    pub fn into_transposed_csr(self) -> Csr<T> {
        self.transposed
    }

    /// The matrix as a tensor `[rows, columns]`, absent entries 0.
    ///
    /// # Errors
    /// [`crate::Error::TooLarge`] or [`crate::Error::Allocation`] when it does not fit in memory.
    pub fn to_dense(&self) -> Result<Tensor<T>> {
        self.to_csr()?.to_dense()
    }
}
