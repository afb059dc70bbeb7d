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
use crate::device::cuda::gemm::{Call, Gemm, Operand};
use crate::element::DType;
use crate::error::Result;

/// cuBLAS on one stream.
#[derive(Debug)]
pub(crate) struct Blas {
    queue: Queue,
    handle: sys::cublasHandle_t,
    /// Held by the thread that uses the handle.
    turn: Mutex<()>,
}

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
        for call in gemm.calls() {
            // SAFETY: passed on to the caller.
            unsafe { self.call(&call?)? };
        }
        Ok(())
    }

    /// # Safety
    /// As [`Blas::gemm`].
    unsafe fn call(&self, call: &Call) -> Result<()> {
        let Call { m, n, k, batch, a, b, c, .. } = *call;
        let operation = |operand: Operand| match operand.transposed {
            true => sys::cublasOperation_t::CUBLAS_OP_T,
            false => sys::cublasOperation_t::CUBLAS_OP_N,
        };
        let kind = |dtype: DType| match dtype {
            DType::F16 => Type::CUDA_R_16F,
            DType::BF16 => Type::CUDA_R_16BF,
            DType::F32 => Type::CUDA_R_32F,
            DType::F64 => Type::CUDA_R_64F,
        };
        let (factors, output) = (kind(call.factors), kind(call.output));
        // Strict IEEE arithmetic for f32, unless TF32 is allowed.
        let compute = match call.factors {
            DType::F64 => Compute::CUBLAS_COMPUTE_64F,
            DType::F32 if call.tf32 => Compute::CUBLAS_COMPUTE_32F_FAST_TF32,
            _ => Compute::CUBLAS_COMPUTE_32F,
        };
        // alpha and beta have the type that sums have.
        let wide = [call.alpha, call.beta];
        let narrow = wide.map(|factor| factor as f32);
        let [alpha, beta]: [*const c_void; 2] = match call.factors {
            DType::F64 => [(&raw const wide[0]).cast(), (&raw const wide[1]).cast()],
            _ => [(&raw const narrow[0]).cast(), (&raw const narrow[1]).cast()],
        };
        let pointer = |operand: Operand| operand.address as *mut c_void;

        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let multiply = || {
            // SAFETY: the handle is alive, alpha and beta are read before this returns (they are on the
            // host), and the caller answers for the matrices.
            unsafe {
                result::gemm_strided_batched_ex(
                    self.handle,
                    operation(a),
                    operation(b),
                    m,
                    n,
                    k,
                    alpha,
                    pointer(a),
                    factors,
                    a.leading,
                    a.stride,
                    pointer(b),
                    factors,
                    b.leading,
                    b.stride,
                    beta,
                    pointer(c),
                    output,
                    c.leading,
                    c.stride,
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

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: the handle is used by no later call. An error leaves nothing to be done.
        let _ = self.queue.attempt(|_| Ok(unsafe { result::destroy_handle(self.handle) }));
    }
}
