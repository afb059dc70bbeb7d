//! How large a matrix will be.

use crate::element::DType;
use crate::element::IndexWidth;
use crate::error::{Error, Result};

/// The size of a convolution's matrix, known without assembling it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatrixSize {
    rows: u64,
    columns: u64,
    nnz: u64,
}

impl MatrixSize {
    /// The size with these factors of rows, columns (and columns added to them) and entries (without
    /// the bias column's).
    pub(super) fn checked(
        rows: &[u128],
        (columns, bias_columns): (&[u128], u128),
        entries: &[u128],
    ) -> Result<Self> {
        // 8-byte values with 8-byte indices must be countable in bytes.
        const LIMIT: u128 = (i64::MAX / 16) as u128;
        let product = |what: &str, factors: &[u128], extra: u128| -> Result<u64> {
            let product = if factors.contains(&0) {
                Some(0)
            } else {
                factors.iter().try_fold(1u128, |p, &f| p.checked_mul(f))
            };
            let total = product.and_then(|p| p.checked_add(extra));
            total.filter(|&t| t < LIMIT).map(|t| t as u64).ok_or_else(|| {
                let factors: Vec<_> = factors.iter().map(u128::to_string).collect();
                Error::TooLarge {
                    what: what.into(),
                    value: factors.join(" x "),
                    limit: LIMIT as u64 - 1,
                }
            })
        };
        let rows = product("the number of rows of the matrix", rows, 0)?;
        let columns = product("the number of columns of the matrix", columns, bias_columns)?;
        let bias_entries = bias_columns * u128::from(rows);
        let nnz = product("the number of entries of the matrix", entries, bias_entries)?;
        Ok(MatrixSize { rows, columns, nnz })
    }

    /// Number of rows: output channels × output positions.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Number of columns: input channels × input positions, and one more with a bias.
    pub fn columns(&self) -> u64 {
        self.columns
    }

    /// Number of stored entries, explicit zeros included.
    pub fn nnz(&self) -> u64 {
        self.nnz
    }

    /// How wide row pointers and column indices are.
    pub fn index_width(&self) -> IndexWidth {
        IndexWidth::for_matrix([self.rows, self.columns], self.nnz)
    }

    /// Bytes that row pointers, column indices and values of this type occupy together.
    pub fn bytes(&self, dtype: DType) -> u64 {
        let index = self.index_width().size() as u64;
        self.nnz * (index + dtype.size() as u64) + (self.rows + 1) * index
    }
}
