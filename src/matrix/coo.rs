//! Triplets.

use rayon::prelude::*;

use super::csr::Csr;
use super::index::{IndexView, Indices};
use crate::device::Device;
use crate::element::IndexWidth;
use crate::element::{Accumulator, Element};
use crate::error::{Error, Result};
use crate::memory::try_with_capacity;
use crate::tensor::Tensor;

/// A sparse matrix as (row, column, value) triplets, in any order; entries at the same place add up.
/// The fields are those of `scipy.sparse.coo_matrix`.
///
/// The crate's own operations hand out triplets in row-major order without duplicates.
#[derive(Clone, Debug, PartialEq)]
pub struct Coo<T> {
    shape: [usize; 2],
    rows: Indices,
    columns: Indices,
    data: Vec<T>,
}

impl<T: Element> Coo<T> {
    /// The matrix of these triplets, taken over without copying.
    ///
    /// # Errors
    /// [`Error::ElementType`] when rows and columns differ in width; [`Error::Shape`] when there are
    /// not as many rows, columns and values; [`Error::Invalid`] names the first triplet outside the
    /// matrix.
    pub fn new(
        shape: [usize; 2],
        rows: impl Into<Indices>,
        columns: impl Into<Indices>,
        data: Vec<T>,
    ) -> Result<Self> {
        let (rows, columns) = (rows.into(), columns.into());
        if rows.width() != columns.width() {
            return Err(Error::ElementType {
                argument: "columns".into(),
                expected: format!("{}, as rows has", rows.width()),
                found: columns.width().to_string(),
            });
        }
        for (name, indices, extent) in [("rows", &rows, shape[0]), ("columns", &columns, shape[1])]
        {
            if indices.len() != data.len() {
                let expected = format!("[{}], as many as values", data.len());
                return Err(Error::shape(name, expected, &[indices.len()]));
            }
            if let Some(at) = indices.view().iter().position(|i| i >= extent) {
                let value = indices.view().at(at) as i64;
                let reason = format!("it must be at least 0 and below {extent}");
                return Err(Error::invalid(format!("{name}[{at}]"), value, reason));
            }
        }
        Ok(Coo { shape, rows, columns, data })
    }

    /// The matrix of triplets known to lie inside it.
    pub(super) fn trusted(
        shape: [usize; 2],
        rows: Indices,
        columns: Indices,
        data: Vec<T>,
    ) -> Self {
        Coo { shape, rows, columns, data }
    }

    /// Numbers of rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Number of triplets, explicit zeros and duplicates included.
    pub fn nnz(&self) -> usize {
        self.data.len()
    }

    /// Where the matrix is.
    pub fn device(&self) -> Device {
        Device::Cpu
    }

    /// The row of each triplet.
    pub fn row_indices(&self) -> IndexView<'_> {
        self.rows.view()
    }

    /// The column of each triplet.
    pub fn column_indices(&self) -> IndexView<'_> {
        self.columns.view()
    }

    /// The value of each triplet.
    pub fn data(&self) -> &[T] {
        &self.data
    }

    /// Rows, columns and values, handed over without copying.
    pub fn into_parts(self) -> (Indices, Indices, Vec<T>) {
        (self.rows, self.columns, self.data)
    }

    /// The matrix in compressed sparse row form, in the narrowest index width. Triplets at the same
    /// place add up, in the order they have here, in the accumulator type; the sum is rounded once.
    ///
    /// # Errors
    /// [`Error::Allocation`] when it does not fit in memory.
    pub fn to_csr(&self) -> Result<Csr<T>> {
        let (rows, columns) = (self.rows.view(), self.columns.view());
        let place = |entry: &usize| (rows.at(*entry), columns.at(*entry));
        let mut order: Vec<usize> = try_with_capacity("the order of the triplets", self.nnz())?;
        order.extend(0..self.nnz());
        order.par_sort_by_key(place);

        let what = "the compressed matrix";
        let mut indptr: Vec<usize> = try_with_capacity(what, self.shape[0].saturating_add(1))?;
        let mut indices: Vec<usize> = try_with_capacity(what, self.nnz())?;
        let mut data: Vec<T> = try_with_capacity(what, self.nnz())?;
        indptr.push(0);
        for shared in order.chunk_by(|a, b| place(a) == place(b)) {
            let (row, column) = place(&shared[0]);
            indptr.resize(row + 1, indices.len());
            indices.push(column);
            data.push(match shared {
                [single] => self.data[*single],
                _ => {
                    let mut sum = T::Acc::ZERO;
                    shared.iter().for_each(|&entry| sum += self.data[entry].to_acc());
                    T::from_acc(sum)
                }
            });
        }
        indptr.resize(self.shape[0] + 1, indices.len());
        let width = IndexWidth::for_matrix(self.shape.map(|n| n as u64), data.len() as u64);
        let indptr = Indices::collect(what, width, indptr.into_iter())?;
        let indices = Indices::collect(what, width, indices.into_iter())?;
        Csr::new(self.shape, indptr, indices, data)
    }

    /// The matrix as a tensor `[rows, columns]`, absent entries 0; triplets at the same place add up.
    ///
    /// # Errors
    /// [`Error::TooLarge`] or [`Error::Allocation`] when it does not fit in memory.
    pub fn to_dense(&self) -> Result<Tensor<T>> {
        self.to_csr()?.to_dense()
    }
}
