//! Matrix products by cuBLAS: as the crate describes them, by rows, and as cuBLAS takes them, by columns.

use super::kernel::pointer::Pointer;
use crate::element::DType;
use crate::error::{Error, Result};

/// A matrix by rows, or one for each product of a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    pub address: Pointer,
    /// From one row to the next, in elements.
    pub leading: usize,
    /// From one product's matrix to the next one's, in elements; 0 when they share it.
    pub stride: usize,
    /// Whether the factor is this matrix's transpose; its rows are then the factor's columns.
    pub transposed: bool,
}

/// `c = alpha·a·b + beta·c`, for each product of a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gemm {
    /// The type of `a` and `b`.
    pub dtype: DType,
    /// The type of `c`: that of the factors, or `f32` for factors of a half type.
    pub output: DType,
    /// Rows of `a` and `c`, columns of `b` and `c`, and what is summed over (at least 1).
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub batch: usize,
    pub a: Matrix,
    pub b: Matrix,
    /// Not transposed. With `beta` 0 it is only written.
    pub c: Matrix,
    pub alpha: f64,
    pub beta: f64,
    /// Whether factors, of f32, are rounded to TF32 first.
    pub tf32: bool,
}

/// Products that one call takes: kernels of cuBLAS's have one on each plane of a grid, which has so many.
pub(super) const MOST_PRODUCTS: usize = 65535;

/// The arguments of a call of `cublasGemmStridedBatchedEx`, whose matrices are by columns: what is by rows is
/// its transpose to cuBLAS, and cᵀ = bᵀ·aᵀ, so that its `a` is our `b`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Call {
    pub m: i32,
    pub n: i32,
    pub k: i32,
    pub batch: i32,
    pub a: Operand,
    pub b: Operand,
    pub c: Operand,
    /// Of `a` and `b`; of `c`.
    pub factors: DType,
    pub output: DType,
    pub alpha: f64,
    pub beta: f64,
    pub tf32: bool,
}

/// A matrix by columns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Operand {
    pub address: u64,
    /// `CUBLAS_OP_T` in place of `CUBLAS_OP_N`.
    pub transposed: bool,
    /// From one column to the next, in elements.
    pub leading: i32,
    pub stride: i64,
}

impl Gemm {
    /// The same with the addresses that a run puts in the slots.
    pub(super) fn resolved(&self, slots: &[u64]) -> Self {
        let at = |matrix: Matrix| Matrix {
            address: Pointer::at(matrix.address.resolve(slots)),
            ..matrix
        };
        Gemm { a: at(self.a), b: at(self.b), c: at(self.c), ..*self }
    }

    /// The calls that make all products; the addresses are known.
    pub(super) fn calls(&self) -> impl Iterator<Item = Result<Call>> {
        let batch = if self.m == 0 || self.n == 0 { 0 } else { self.batch };
        (0..batch).step_by(MOST_PRODUCTS).map(|first| self.call(first))
    }

    /// The products from this one on that one call makes.
    fn call(&self, first: usize) -> Result<Call> {
        let operand = |matrix: &Matrix, dtype: DType| {
            Ok(Operand {
                address: matrix.address.distance() + (first * matrix.stride * dtype.size()) as u64,
                transposed: matrix.transposed,
                leading: count("elements from row to row", matrix.leading)?,
                stride: matrix.stride as i64,
            })
        };
        Ok(Call {
            m: count("columns", self.n)?,
            n: count("rows", self.m)?,
            k: count("summands", self.k)?,
            batch: count("products of a batch", MOST_PRODUCTS.min(self.batch - first))?,
            a: operand(&self.b, self.dtype)?,
            b: operand(&self.a, self.dtype)?,
            c: operand(&self.c, self.output)?,
            factors: self.dtype,
            output: self.output,
            alpha: self.alpha,
            beta: self.beta,
            tf32: self.tf32,
        })
    }
}

fn count(what: &str, value: usize) -> Result<i32> {
    i32::try_from(value).map_err(|_| Error::TooLarge {
        what: format!("the number of {what} in a matrix product"),
        value: value.to_string(),
        limit: i32::MAX as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_batches_are_several_calls() {
        let matrix = |address, stride| Matrix {
            address: Pointer::at(address),
            leading: 4,
            stride,
            transposed: false,
        };
        let gemm = Gemm {
            dtype: DType::F16,
            output: DType::F32,
            m: 4,
            n: 4,
            k: 4,
            batch: 150_000,
            a: matrix(1 << 20, 16),
            b: matrix(1 << 30, 0),
            c: matrix(1 << 40, 20),
            alpha: 1.,
            beta: 0.,
            tf32: false,
        };
        let found: Vec<Call> = gemm.calls().map(Result::unwrap).collect();
        assert_eq!(found.iter().map(|call| call.batch).collect::<Vec<_>>(), [65535, 65535, 18930]);
        for (call, first) in found.iter().zip([0, 65535, 131_070]) {
            assert_eq!(call.b.address, (1 << 20) + first * 16 * 2);
            assert_eq!(call.a.address, 1 << 30);
            assert_eq!(call.c.address, (1 << 40) + first * 20 * 4);
        }
        assert_eq!(Gemm { batch: 3, ..gemm }.calls().count(), 1);
        for nothing in [Gemm { batch: 0, ..gemm }, Gemm { m: 0, ..gemm }, Gemm { n: 0, ..gemm }] {
            assert_eq!(nothing.calls().count(), 0);
        }
        let large = Gemm { k: 1 << 31, batch: 1, ..gemm };
        assert!(matches!(large.calls().next(), Some(Err(Error::TooLarge { .. }))));
    }
}
