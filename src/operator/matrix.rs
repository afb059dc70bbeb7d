//! The matrix of an operator.

use super::{Expression, Given, Operator};
use crate::device::Device;
use crate::element::Accumulator;
use crate::error::{Error, Result, checked_product};
use crate::matrix::Csr;
use crate::memory::try_zeroed;
use crate::tensor::Tensor;

/// Vectors that are applied at a time.
const BLOCK: usize = 64;

impl<T: Accumulator> Operator<T> {
    /// The operator as a sparse matrix, on the host: the columns are what it makes of the unit vectors,
    /// entries that are zero left out. A matrix is copied as it is.
    ///
    /// # Errors
    /// [`Error::Allocation`] when it does not fit in memory; what applying fails with.
    pub fn to_matrix(&self) -> Result<Csr<T>> {
        match self.expression() {
            Expression::Given(Given::Sparse(matrix), _) => {
                matrix.try_clone()?.to_device(&Device::Cpu)
            }
            Expression::Adjoint(inner) => inner.to_matrix()?.transpose(),
            _ => self.assembled(),
        }
    }

    /// The operator as a dense matrix `[m, n]`, on the host.
    ///
    /// # Errors
    /// As [`Operator::to_matrix`].
    pub fn to_dense(&self) -> Result<Tensor<T>> {
        let [m, n] = self.shape();
        checked_product("the dense matrix", &[m, n])?;
        let mut dense: Vec<T> = try_zeroed("a dense matrix", m * n)?;
        self.each_column(|column, values| {
            for (row, &value) in values.iter().enumerate() {
                dense[row * n + column] = value;
            }
            Ok(())
        })?;
        Tensor::from_vec(&Device::Cpu, &[m, n], dense)
    }

    /// Calls `visit` with every column.
    fn each_column(&self, mut visit: impl FnMut(usize, &[T]) -> Result<()>) -> Result<()> {
        let [m, n] = self.shape();
        for start in (0..n).step_by(BLOCK) {
            let vectors = BLOCK.min(n - start);
            let mut units: Vec<T> = try_zeroed("unit vectors", vectors * n)?;
            (0..vectors).for_each(|v| units[v * n + start + v] = T::ONE);
            let units = Tensor::from_vec(self.device(), &[vectors, n], units)?;
            let columns = self.apply(&units)?.into_vec()?;
            if m > 0 {
                for (v, column) in columns.chunks_exact(m).enumerate() {
                    visit(start + v, column)?;
                }
            }
        }
        Ok(())
    }

    fn assembled(&self) -> Result<Csr<T>> {
        let [m, n] = self.shape();
        // By columns: the rows of the transposed matrix.
        let mut starts = vec![0i64];
        let (mut rows, mut values) = (Vec::new(), Vec::new());
        let full = |len: usize| Error::Allocation {
            what: "the operator's matrix".into(),
            bytes: (len * (8 + size_of::<T>())) as u64,
        };
        self.each_column(|_, column| {
            for (row, &value) in column.iter().enumerate().filter(|(_, v)| **v != T::ZERO) {
                if rows.len() == rows.capacity() {
                    rows.try_reserve(rows.len().max(1024)).map_err(|_| full(rows.len()))?;
                    values.try_reserve(values.len().max(1024)).map_err(|_| full(rows.len()))?;
                }
                rows.push(row as i64);
                values.push(value);
            }
            starts.push(rows.len() as i64);
            Ok(())
        })?;
        Csr::new([n, m], starts, rows, values)?.transpose()
    }
}
