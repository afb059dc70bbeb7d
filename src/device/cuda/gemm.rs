//! Matrix products on device addresses: cuBLAS's where it is found, else the crate's own.

use super::CudaDevice;
use crate::element::DType;
use crate::error::Result;

/// A matrix by rows, or one for each product of a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    pub address: u64,
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
    /// Whether `f32` factors may be rounded to TF32.
    pub tf32: bool,
}

impl CudaDevice {
    /// Queues the products.
    ///
    /// # Errors
    /// [`crate::Error::TooLarge`] for sizes that cannot be counted, [`crate::Error::Device`],
    /// [`crate::Error::Compile`].
    ///
    /// # Safety
    /// The matrices are memory of this device, as large as sizes, leading dimensions and strides say, and
    /// `c` overlaps neither factor.
    pub(crate) unsafe fn gemm(&self, gemm: &Gemm) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(runtime) = self.driver().as_any().downcast_ref::<super::runtime::Runtime>()
            && let Ok(blas) = runtime.blas()
        {
            // SAFETY: passed on to the caller.
            return unsafe { blas.gemm(gemm) };
        }
        let _ = gemm;
        Err(self.not_yet("matrix product"))
    }
}
