//! Weights made from matrices: this crate's, and the parts of SciPy's and PyTorch's.

use super::weight::{Pattern, SparseWeight, WHAT};
use crate::device::Device;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::geometry::Conv;
use crate::matrix::{Coo, Csr, Indices};
use crate::memory::try_with_capacity;

impl<T: Element> SparseWeight<T> {
    /// The weight of `conv` that this matrix is, `[output channels, (C/g)·K]` with columns in the order of
    /// the convolution's layout: see [`SparseWeight`]. Stored zeros stay entries.
    ///
    /// # Errors
    /// [`Error::Shape`] when the kernel's taps do not divide the columns, [`Error::Invalid`] when the groups
    /// do not divide the rows, [`Error::TooLarge`] when 32-bit indices do not suffice,
    /// [`Error::DeviceMismatch`] unless the matrix is on the host.
    pub fn from_csr<const D: usize>(conv: &Conv<D>, matrix: &Csr<T>) -> Result<Self> {
        let mut pattern = Pattern::of_matrix(conv, matrix.shape())?;
        let parts = matrix.indptr().zip(matrix.indices()).zip(matrix.data());
        let Some(((starts, columns), data)) = parts else {
            return Err(Error::DeviceMismatch {
                left: "the matrix".into(),
                left_device: matrix.device().to_string(),
                right: WHAT.into(),
                right_device: Device::Cpu.to_string(),
            });
        };
        pattern.starts = try_with_capacity(WHAT, matrix.rows() + 1)?;
        pattern.starts.push(0);
        pattern.columns = try_with_capacity(WHAT, columns.len())?;
        let mut columns = columns.iter();
        for row in 1..=matrix.rows() {
            let end = starts.get(row).unwrap_or(pattern.columns.len());
            let count = end - pattern.columns.len();
            pattern.columns.extend(columns.by_ref().take(count).map(|column| column as i32));
            pattern.end_row()?;
        }
        let mut values = try_with_capacity(WHAT, data.len())?;
        values.extend_from_slice(data);
        SparseWeight::assemble(pattern, values)
    }

    /// The weight of `conv` that these triplets are, as [`SparseWeight::from_csr`]. They may be in any
    /// order; those at one place add up, in the order they have, in the accumulator type, and are rounded
    /// once, as SciPy and PyTorch do.
    ///
    /// # Errors
    /// As [`SparseWeight::from_csr`].
    ///
    /// ```
    /// use convmat::{Conv, SparseWeight};
    /// let conv = Conv::new([2, 2]).groups(2);
    /// let filter = conv.gathering_filter_coo::<f32>(4)?;
    /// let weight = SparseWeight::from_coo(&conv, &filter)?;
    /// assert_eq!((weight.shape(), weight.entries()), ([16, 8], 16));
    /// assert_eq!(weight.to_dense()?, conv.gathering_filter(4)?);
    /// # Ok::<(), convmat::Error>(())
    /// ```
    pub fn from_coo<const D: usize>(conv: &Conv<D>, matrix: &Coo<T>) -> Result<Self> {
        // Before the triplets are sorted, which takes longer.
        Pattern::of_matrix(conv, matrix.shape())?;
        Self::from_csr(conv, &matrix.to_csr()?)
    }

    /// The weight of `conv` with these row pointers, columns and values, as SciPy's `csr_matrix` and
    /// PyTorch's `sparse_csr_tensor` have them. The columns of a row may be in any order; values of one place
    /// add up, as in [`SparseWeight::from_coo`].
    ///
    /// # Errors
    /// As [`SparseWeight::from_csr`]; [`Error::Shape`] also when there are not `shape[0] + 1` row pointers or
    /// not as many values as columns; [`Error::Invalid`] names the first row pointer that does not start at 0,
    /// decreases, or does not end at the number of entries, and the first column outside the matrix;
    /// [`Error::ElementType`] when row pointers and columns differ in width.
    pub fn from_parts<const D: usize>(
        conv: &Conv<D>,
        shape: [usize; 2],
        indptr: impl Into<Indices>,
        indices: impl Into<Indices>,
        data: Vec<T>,
    ) -> Result<Self> {
        Pattern::of_matrix(conv, shape)?;
        let (indptr, indices) = (indptr.into(), indices.into());
        let rows = rows_of(shape[0], &indptr, data.len())?;
        let rows = Indices::collect(WHAT, indices.width(), rows.into_iter())?;
        if indptr.width() != indices.width() {
            return Err(Error::ElementType {
                argument: "indices".into(),
                expected: format!("{}, as indptr has", indptr.width()),
                found: indices.width().to_string(),
            });
        }
        Self::from_coo(conv, &Coo::new(shape, rows, indices, data)?)
    }
}

/// The row of each of so many entries.
fn rows_of(rows: usize, indptr: &Indices, entries: usize) -> Result<Vec<usize>> {
    if indptr.len() != rows + 1 {
        let expected = format!("[{}], one more than rows", rows + 1);
        return Err(Error::shape("indptr", expected, &[indptr.len()]));
    }
    // Negative pointers are huge numbers here, and written as what they are in messages.
    let broken = |at: usize, value: usize, reason: String| {
        Err(Error::invalid(format!("indptr[{at}]"), value as i64, reason))
    };
    let mut all = try_with_capacity(WHAT, entries)?;
    for (at, end) in indptr.view().iter().enumerate() {
        if at == 0 && end != 0 {
            return broken(at, end, "it must be 0".into());
        }
        if end < all.len() {
            return broken(at, end, format!("it must not be less than {}", all.len()));
        }
        if end > entries || (at == rows && end != entries) {
            let reason = format!("the number of entries is {entries}");
            return broken(at, end, reason);
        }
        // The pointer at 0 is 0, and adds none.
        all.resize(end, at.saturating_sub(1));
    }
    Ok(all)
}
