//! The GPU that is timed, and what it can do at best.

use std::sync::Arc;

use convmat::cudarc::cublas::sys::cublasOperation_t::CUBLAS_OP_N;
use convmat::cudarc::cublas::{CudaBlas, Gemm, GemmConfig};
use convmat::cudarc::driver::sys::{CUdevice_attribute, CUevent_flags};
use convmat::cudarc::driver::{
    CudaContext, CudaEvent, CudaSlice, CudaStream, DeviceRepr, ValidAsZeroBits,
};
use convmat::{DType, Device, Element};
use half::{bf16, f16};

use crate::outcome::Result;
use crate::shapes::eighths;

/// Calls before those that count.
const WARM_UP: usize = 3;
/// Calls that count: as many as fit in this time, within bounds.
const SECONDS: f64 = 0.1;
const CALLS: (usize, usize) = (20, 200);

/// A stream and what is timed on it.
pub struct Gpu {
    stream: Arc<CudaStream>,
    /// Overwriting it leaves nothing else in the L2 cache.
    flush: CudaSlice<u8>,
}

/// Seconds of a call on the device.
pub struct Times {
    pub median: f64,
    pub shortest: f64,
    pub calls: usize,
}

/// What the machine does at best, in this run.
pub struct Roofline {
    /// Copying on the device: bytes read and bytes written, a second.
    pub copy: f64,
    /// Filling memory: bytes a second.
    pub store: f64,
    /// cuBLAS's product of two large matrices: operations a second. Empty without cuBLAS.
    pub gemm: Vec<(DType, f64)>,
}

impl Gpu {
    /// The GPU with this ordinal, on a stream of the bench's own.
    pub fn open(ordinal: usize) -> Result<(Gpu, Device)> {
        // Says why where there is none; cudarc's calls panic where a library is missing.
        Device::cuda(ordinal)?;
        let context = CudaContext::new(ordinal)?;
        let l2 = context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?;
        let stream = context.new_stream()?;
        // Large enough, too, that the host is done with launching when it has been overwritten.
        let flush = stream.alloc_zeros((4 * l2 as usize).max(256 << 20))?;
        let device = Device::on_stream(stream.clone())?;
        Ok((Gpu { stream, flush }, device))
    }

    /// Times a call that queues work on the stream. Before each, the L2 cache is overwritten.
    pub fn time(&mut self, call: &mut dyn FnMut() -> Result<()>) -> Result<Times> {
        for _ in 0..WARM_UP {
            call()?;
        }
        let once = self.rounds(1, call)?[0];
        let calls = ((SECONDS / once) as usize).clamp(CALLS.0, CALLS.1);
        let mut times = self.rounds(calls, call)?;
        times.sort_by(f64::total_cmp);
        let median = (times[(calls - 1) / 2] + times[calls / 2]) / 2.0;
        Ok(Times { median, shortest: times[0], calls })
    }

    fn rounds(&mut self, count: usize, call: &mut dyn FnMut() -> Result<()>) -> Result<Vec<f64>> {
        let context = self.stream.context();
        let event = || context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        let mut events: Vec<(CudaEvent, CudaEvent)> = Vec::new();
        for _ in 0..count {
            events.push((event()?, event()?));
        }
        for (start, end) in &events {
            self.stream.memset_zeros(&mut self.flush)?;
            start.record(&self.stream)?;
            call()?;
            end.record(&self.stream)?;
        }
        self.stream.synchronize()?;
        events.iter().map(|(start, end)| Ok(f64::from(start.elapsed_ms(end)?) / 1e3)).collect()
    }

    pub fn roofline(&mut self, dtypes: &[DType]) -> Result<Roofline> {
        const BYTES: usize = 1 << 30;
        let stream = self.stream.clone();
        let from = stream.alloc_zeros::<u8>(BYTES)?;
        let mut to = stream.alloc_zeros::<u8>(BYTES)?;
        let store = self.time(&mut || Ok(stream.memset_zeros(&mut to)?))?;
        let copy = self.time(&mut || Ok(stream.memcpy_dtod(&from, &mut to)?))?;
        let mut gemm = Vec::new();
        if has_cublas() {
            let blas = CudaBlas::new(stream.clone())?;
            for &dtype in dtypes {
                let rate = match dtype {
                    DType::F16 => self.gemm::<f16>(&blas, 8192),
                    DType::BF16 => self.gemm::<bf16>(&blas, 8192),
                    DType::F32 => self.gemm::<f32>(&blas, 8192),
                    DType::F64 => self.gemm::<f64>(&blas, 4096),
                    _ => continue,
                };
                gemm.push((dtype, rate?));
            }
        }
        let rate = |bytes: usize, times: Times| bytes as f64 / times.median;
        Ok(Roofline { copy: rate(2 * BYTES, copy), store: rate(BYTES, store), gemm })
    }

    /// Operations a second of a product of two square matrices with random elements. `f32` is not rounded
    /// to TF32.
    fn gemm<T>(&mut self, blas: &CudaBlas, size: usize) -> Result<f64>
    where
        T: Element + DeviceRepr + ValidAsZeroBits,
        CudaBlas: Gemm<T>,
    {
        let matrix = |seed| -> Vec<T> {
            eighths(size * size, seed).iter().map(|&value| T::from_f64(value.into())).collect()
        };
        let (a, b) = (self.stream.clone_htod(&matrix(1))?, self.stream.clone_htod(&matrix(2))?);
        let mut c = self.stream.alloc_zeros::<T>(size * size)?;
        let n = i32::try_from(size)?;
        let times = self.time(&mut || {
            let (alpha, beta) = (T::from_f64(1.0), T::from_f64(0.0));
            let (transa, transb) = (CUBLAS_OP_N, CUBLAS_OP_N);
            let config =
                GemmConfig { transa, transb, m: n, n, k: n, alpha, lda: n, ldb: n, beta, ldc: n };
            // SAFETY: all three matrices have `size` rows and columns.
            unsafe { blas.gemm(config, &a, &b, &mut c)? };
            Ok(())
        })?;
        Ok(2.0 * (size as f64).powi(3) / times.median)
    }
}

fn has_cublas() -> bool {
    Device::probe().iter().any(|part| part.name == "cublas" && part.found.is_ok())
}
