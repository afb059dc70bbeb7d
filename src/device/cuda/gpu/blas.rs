//! cuBLAS's matrix products on device addresses.
//!
//! For one handle, one stream and one version of the library the same call gives the same bytes: cuBLAS
//! promises this as long as its atomics mode is off, which it is, and one handle does not serve several
//! streams at once. Each runtime has a handle of its own.

use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use cudarc::cublas::result;
use cudarc::cublas::sys::{self, cublasComputeType_t as Compute, cudaDataType as Type};

use super::queue::Queue;
use crate::device::cuda::driver::{Gemm, Matrix};
use crate::element::DType;
use crate::error::{Error, Result};

/// cuBLAS on one stream.
#[derive(Debug)]
pub(crate) struct Blas {
    queue: Queue,
    handle: sys::cublasHandle_t,
    /// Held by the thread that uses the handle.
    turn: Mutex<()>,
}

/// Products that one call takes: kernels of cuBLAS's have one on each plane of a grid, which has so many.
const MOST_PRODUCTS: usize = 65535;

// SAFETY: a handle belongs to a context, not to a thread.
unsafe impl Send for Blas {}
// SAFETY: as above, and threads take turns.
unsafe impl Sync for Blas {}

impl Blas {
    /// cuBLAS with this memory for what its kernels put down. Left to itself it would allocate at its first
    /// product, in a graph that is captured as well.
    ///
    /// # Errors
    /// Why there is none.
    ///
    /// # Safety
    /// The library is present, and the workspace is memory of the queue's device, for as long as this lives.
    pub(super) unsafe fn open(queue: &Queue, workspace: u64, bytes: usize) -> Result<Self, String> {
        let failed = |error: String| format!("cuBLAS does not start: {error}");
        let made = queue.call("making cuBLAS's handle", |_| Ok(result::create_handle()));
        let handle = made.map_err(|error| failed(error.to_string()))?;
        let handle = handle.map_err(|error| failed(error.to_string()))?;
        let blas = Blas { queue: queue.clone(), handle, turn: Mutex::default() };
        // Not before the stream is set, which gives the handle a workspace of cuBLAS's own again.
        let configured = queue.call("setting up cuBLAS", |_| {
            Ok(blas.configure().and_then(|()| {
                // SAFETY: the handle is alive; the caller answers for the memory.
                unsafe { sys::cublasSetWorkspace_v2(handle, workspace as *mut c_void, bytes) }
                    .result()
            }))
        });
        let configured = configured.map_err(|error| failed(error.to_string()))?;
        configured.map_err(|error| failed(error.to_string()))?;
        Ok(blas)
    }

    fn configure(&self) -> Result<(), result::CublasError> {
        let host = sys::cublasPointerMode_t::CUBLAS_POINTER_MODE_HOST;
        let off = sys::cublasAtomicsMode_t::CUBLAS_ATOMICS_NOT_ALLOWED;
        // Parts of a sum of half types are kept in f32, too: one rounding for each element.
        let math = sys::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
        // SAFETY: the handle is alive, and the queue keeps its stream alive.
        unsafe {
            result::set_stream(self.handle, self.queue.stream.cu_stream().cast())?;
            sys::cublasSetPointerMode_v2(self.handle, host).result()?;
            sys::cublasSetAtomicsMode(self.handle, off).result()?;
            sys::cublasSetMathMode(self.handle, math).result()
        }
    }

    /// Queues the products.
    ///
    /// # Errors
    /// [`Error::TooLarge`] when cuBLAS cannot count so far, [`Error::Device`].
    ///
    /// # Safety
    /// The matrices are memory of this device, as large as sizes, leading dimensions and strides say, and
    /// `c` overlaps neither factor.
    pub(crate) unsafe fn gemm(&self, gemm: &Gemm) -> Result<()> {
        let Gemm { m, n, batch, .. } = gemm;
        if *m == 0 || *n == 0 || *batch == 0 {
            return Ok(());
        }
        for part in parts(gemm) {
            // SAFETY: passed on to the caller.
            unsafe { self.gemm_part(&part)? };
        }
        Ok(())
    }

    /// # Safety
    /// As [`Blas::gemm`].
    unsafe fn gemm_part(&self, gemm: &Gemm) -> Result<()> {
        let Gemm { m, n, k, batch, a, b, c, .. } = gemm;
        let (m, n, k) = (count("rows", *m)?, count("columns", *n)?, count("summands", *k)?);
        let batch = count("products of a batch", *batch)?;
        let leading = |matrix: &Matrix| count("elements from row to row", matrix.leading);
        let (lda, ldb, ldc) = (leading(a)?, leading(b)?, leading(c)?);
        let operation = |matrix: &Matrix| match matrix.transposed {
            true => sys::cublasOperation_t::CUBLAS_OP_T,
            false => sys::cublasOperation_t::CUBLAS_OP_N,
        };
        let kind = |dtype: DType| match dtype {
            DType::F16 => Type::CUDA_R_16F,
            DType::BF16 => Type::CUDA_R_16BF,
            DType::F32 => Type::CUDA_R_32F,
            DType::F64 => Type::CUDA_R_64F,
        };
        let (factor, output) = (kind(gemm.dtype), kind(gemm.output));
        // Strict IEEE arithmetic for f32: no TF32.
        let compute = match gemm.dtype {
            DType::F64 => Compute::CUBLAS_COMPUTE_64F,
            _ => Compute::CUBLAS_COMPUTE_32F,
        };
        // The factors have the type that sums have.
        let wide = [gemm.alpha, gemm.beta];
        let narrow = wide.map(|factor| factor as f32);
        let [alpha, beta]: [*const c_void; 2] = match gemm.dtype {
            DType::F64 => [(&raw const wide[0]).cast(), (&raw const wide[1]).cast()],
            _ => [(&raw const narrow[0]).cast(), (&raw const narrow[1]).cast()],
        };
        let pointer = |matrix: &Matrix| matrix.address.distance() as *mut c_void;
        let stride = |matrix: &Matrix| matrix.stride as i64;

        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // cuBLAS counts by columns. Matrices by rows are their transposes to it, and cᵀ = bᵀ·aᵀ.
        let multiply = || {
            // SAFETY: the handle is alive, the factors are read before this returns (they are on the
            // host), and the caller answers for the matrices.
            unsafe {
                result::gemm_strided_batched_ex(
                    self.handle,
                    operation(b),
                    operation(a),
                    n,
                    m,
                    k,
                    alpha,
                    pointer(b),
                    factor,
                    ldb,
                    stride(b),
                    pointer(a),
                    factor,
                    lda,
                    stride(a),
                    beta,
                    pointer(c),
                    output,
                    ldc,
                    stride(c),
                    batch,
                    compute,
                    sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
                )
            }
        };
        let what = "cuBLAS's matrix product";
        let outcome = self.queue.call(what, |_| Ok(multiply()))?;
        outcome.map_err(|error| self.queue.error(what, error.to_string()))
    }
}

/// The same products in batches that one call takes.
fn parts(gemm: &Gemm) -> impl Iterator<Item = Gemm> {
    (0..gemm.batch).step_by(MOST_PRODUCTS).map(|first| {
        let from = |matrix: Matrix, dtype: DType| {
            let bytes = first * matrix.stride * dtype.size();
            Matrix { address: matrix.address.offset(bytes), ..matrix }
        };
        Gemm {
            batch: MOST_PRODUCTS.min(gemm.batch - first),
            a: from(gemm.a, gemm.dtype),
            b: from(gemm.b, gemm.dtype),
            c: from(gemm.c, gemm.output),
            ..*gemm
        }
    })
}

fn count(what: &str, value: usize) -> Result<i32> {
    i32::try_from(value).map_err(|_| Error::TooLarge {
        what: format!("the number of {what} in a matrix product"),
        value: value.to_string(),
        limit: i32::MAX as u64,
    })
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: the handle is used by no later call. An error leaves nothing to be done.
        let _ = self.queue.attempt(|_| Ok(unsafe { result::destroy_handle(self.handle) }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cuda::Pointer;

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
        };
        let found: Vec<Gemm> = parts(&gemm).collect();
        assert_eq!(found.iter().map(|part| part.batch).collect::<Vec<_>>(), [65535, 65535, 18930]);
        for (part, first) in found.iter().zip([0, 65535, 131_070]) {
            assert_eq!(part.a.address, Pointer::at((1 << 20) + first * 16 * 2));
            assert_eq!(part.b.address, Pointer::at(1 << 30));
            assert_eq!(part.c.address, Pointer::at((1 << 40) + first * 20 * 4));
        }
        assert_eq!(parts(&Gemm { batch: 3, ..gemm }).count(), 1);
    }
}
