//! The CUDA driver as a [`Driver`]: one context and one stream of it.

use std::any::Any;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result};

use super::blas::Blas;
use super::graph;
use super::libraries::{self, reason};
use super::module;
use super::nvrtc::Toolchain;
use super::pool::Pool;
use super::probe::{self, DeviceFacts};
use super::queue::Queue;
use crate::device::cuda::driver::{CompileFailure, Driver, Graph, Kernel, Unit};
use crate::device::cuda::gemm::Gemm;
use crate::device::cuda::target::Target;
use crate::error::Result;

/// A CUDA device, opened.
#[derive(Debug)]
pub(crate) struct Runtime {
    queue: Queue,
    facts: DeviceFacts,
    toolchain: Toolchain,
    /// `None` where the device has no memory pools.
    pool: Option<Pool>,
    /// Memory given back while a graph was captured, which the driver takes back afterwards only.
    given_back: Mutex<Vec<u64>>,
    blas: OnceLock<Workspaced>,
    /// Held by the thread that makes cuBLAS's handle.
    making_blas: Mutex<()>,
    /// Whether it was said that there is none.
    said_no_blas: AtomicBool,
}

/// cuBLAS and the memory it works in.
#[derive(Debug)]
struct Workspaced {
    blas: Blas,
    workspace: u64,
    bytes: usize,
}

impl Runtime {
    /// The device with this ordinal: its primary context and default stream.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub(crate) fn open(ordinal: usize) -> Result<Self, String> {
        let (facts, toolchain) = look(ordinal)?;
        Self::new(context(ordinal)?.default_stream(), facts, toolchain)
    }

    /// The device with this ordinal: its primary context and a new stream, which no other work waits for.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub(crate) fn on_new_stream(ordinal: usize) -> Result<Self, String> {
        // Says what is missing before anything is called.
        look(ordinal)?;
        let stream = context(ordinal)?.new_stream();
        Self::on_stream(stream.map_err(|error| format!("no stream: {}", reason(error)))?)
    }

    /// The device of a caller's stream; all work is queued there.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub(crate) fn on_stream(stream: Arc<CudaStream>) -> Result<Self, String> {
        const PER_THREAD: usize = 2;
        if stream.cu_stream() as usize == PER_THREAD {
            return Err("the per-thread default stream is another one in each thread".into());
        }
        let (facts, toolchain) = look(stream.context().ordinal())?;
        let runtime = Self::new(stream, facts, toolchain)?;
        let opening = runtime.queue.outside_capture("opening the device");
        opening.map_err(|error| error.to_string())?;
        // The stream may be captured at any time, and then it is too late.
        runtime.blas().map_err(|error| error.to_string())?;
        Ok(runtime)
    }

    fn new(
        stream: Arc<CudaStream>,
        facts: DeviceFacts,
        toolchain: Toolchain,
    ) -> Result<Self, String> {
        let queue = Queue { name: format!("cuda:{}", facts.ordinal).into(), stream };
        let pool =
            match queue.stream.context().has_async_alloc() {
                true => Some(queue.attempt(|_| Pool::new(facts.ordinal)).map_err(|error| {
                    format!("its memory pool cannot be had: {}", reason(error))
                })?),
                false => None,
            };
        Ok(Runtime {
            queue,
            facts,
            toolchain,
            pool,
            given_back: Mutex::default(),
            blas: OnceLock::new(),
            making_blas: Mutex::default(),
            said_no_blas: AtomicBool::new(false),
        })
    }

    /// The stream that all work is queued on.
    pub(crate) fn stream(&self) -> &Arc<CudaStream> {
        &self.queue.stream
    }

    pub(super) fn queue(&self) -> &Queue {
        &self.queue
    }

    /// cuBLAS for this stream; `None` where it is not there or did not start, which the log says once. What
    /// did not start, as for want of memory, is tried again by the next call. The first call that succeeds
    /// waits for the device.
    ///
    /// # Errors
    /// [`crate::Error::Device`] when there is none yet and a graph is captured, in which none can be made.
    pub(crate) fn blas(&self) -> Result<Option<&Blas>> {
        if let Some(found) = self.blas.get() {
            return Ok(Some(&found.blas));
        }
        let present = libraries::cublas(Some(self.facts.driver));
        if present.is_ok() {
            self.queue.outside_capture("making cuBLAS's handle")?;
        }
        let _turn = self.making_blas.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = self.blas.get() {
            return Ok(Some(&found.blas));
        }
        match present.and_then(|_| self.make_blas()) {
            Ok(made) => Ok(Some(&self.blas.get_or_init(|| made).blas)),
            Err(reason) => {
                if !self.said_no_blas.swap(true, Ordering::Relaxed) {
                    let name = &self.queue.name;
                    log::warn!(
                        "{name}: matrix products are the crate's own, without cuBLAS: {reason}"
                    );
                }
                Ok(None)
            }
        }
    }

    fn make_blas(&self) -> Result<Workspaced, String> {
        // What NVIDIA recommends.
        let bytes = if self.facts.capability >= 90 { 32 << 20 } else { 4 << 20 };
        let found = self.allocate(bytes).map_err(|error| error.to_string())?;
        let workspace = found.ok_or_else(|| format!("there are no {bytes} bytes to work in"))?;
        // SAFETY: the library is present; `drop` frees the workspace after the handle.
        match unsafe { Blas::open(&self.queue, workspace, bytes) } {
            Ok(blas) => Ok(Workspaced { blas, workspace, bytes }),
            Err(reason) => {
                // SAFETY: it was just allocated, and nothing uses it.
                unsafe { self.free(workspace, bytes) };
                Err(reason)
            }
        }
    }

    /// Queues that these are freed, which is not possible while a graph is captured.
    fn free_all(&self, addresses: impl Iterator<Item = u64>) {
        for address in addresses {
            let freed = self.queue.call("freeing memory", |stream| match self.pool {
                // SAFETY: the address is from `allocate`, and used by no later call.
                Some(_) => unsafe { result::free_async(address, stream) },
                // SAFETY: as above; the stream is alive, and queued work is done when it is freed.
                None => unsafe {
                    result::stream::synchronize(stream)?;
                    result::free_sync(address)
                },
            });
            if let Err(error) = freed {
                log::warn!("{error}");
            }
        }
    }

    fn try_allocate(&self, bytes: usize) -> Result<u64, DriverError> {
        self.queue.attempt(|stream| match &self.pool {
            // SAFETY: pool and stream are alive; the contents may be anything.
            Some(pool) => unsafe { result::mem_pool::alloc_async(pool.0, bytes, stream) },
            // SAFETY: the contents may be anything.
            None => unsafe { result::malloc_sync(bytes) },
        })
    }
}

fn context(ordinal: usize) -> Result<Arc<CudaContext>, String> {
    CudaContext::new(ordinal)
        .map_err(|error| format!("its context cannot be had: {}", reason(error)))
}

fn look(ordinal: usize) -> Result<(DeviceFacts, Toolchain), String> {
    let mut devices = probe::cuda()?;
    if ordinal >= devices.len() {
        let plural = if devices.len() == 1 { "device" } else { "devices" };
        return Err(format!("the CUDA driver finds {} {plural}", devices.len()));
    }
    let facts = devices.swap_remove(ordinal);
    let toolchain = Toolchain::new(facts.capability, Some(facts.driver))?;
    Ok((facts, toolchain))
}

impl Driver for Runtime {
    fn name(&self) -> String {
        self.queue.name.to_string()
    }

    fn identity(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let stream = &self.queue.stream;
        (stream.context().cu_ctx() as usize, stream.cu_stream() as usize).hash(&mut hasher);
        hasher.finish()
    }

    fn description(&self) -> String {
        format!("{}, {}", self.facts, self.toolchain)
    }

    fn toolchain(&self) -> String {
        self.toolchain.key()
    }

    fn capability(&self) -> u32 {
        self.facts.capability
    }

    fn has_blas(&self) -> Result<bool> {
        Ok(self.blas()?.is_some())
    }

    fn multiprocessors(&self) -> u32 {
        self.facts.multiprocessors
    }

    fn target(&self) -> Target {
        Target::of(&self.facts.name, self.capability(), self.multiprocessors())
    }

    fn memory(&self) -> Result<(u64, u64)> {
        let (free, total) =
            self.queue.call("asking for free memory", |_| result::mem_get_info())?;
        Ok((free as u64, total as u64))
    }

    fn compile(&self, unit: &Unit) -> Result<Vec<u8>, CompileFailure> {
        // The image could not be loaded.
        self.queue
            .outside_capture("compiling")
            .map_err(|error| CompileFailure { log: error.to_string() })?;
        self.toolchain.compile(unit)
    }

    fn load(&self, image: &[u8], entry: &str) -> Result<Box<dyn Kernel>> {
        module::load(&self.queue, image, entry)
    }

    fn allocate(&self, bytes: usize) -> Result<Option<u64>> {
        const EXHAUSTED: DriverError = DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        if bytes as u64 > self.facts.memory {
            return Ok(None);
        }
        // It would be the graph's memory, and gone before its next launch.
        self.queue.outside_capture("allocating memory")?;
        let mut found = self.try_allocate(bytes);
        if found == Err(EXHAUSTED) {
            // Memory freed lately may wait for queued work, or lie in pieces of other sizes.
            self.trim()?;
            found = self.try_allocate(bytes);
        }
        match found {
            Ok(address) => Ok(Some(address)),
            Err(EXHAUSTED) => Ok(None),
            Err(error) => Err(self.queue.error("allocating memory", reason(error))),
        }
    }

    unsafe fn free(&self, address: u64, _bytes: usize) {
        let mut given_back = self.given_back.lock().unwrap_or_else(PoisonError::into_inner);
        given_back.push(address);
        if !self.queue.is_capturing().unwrap_or(false) {
            self.free_all(given_back.drain(..));
        }
    }

    unsafe fn upload(&self, from: &[u8], to: u64) -> Result<()> {
        let what = "copying to the device";
        // Each launch of the graph would read the host's memory again, wherever that is by then.
        self.queue.outside_capture(what)?;
        self.queue.call(what, |stream| {
            // SAFETY: the target is memory of this driver. The driver has taken the bytes of pageable
            // memory when this returns; memory that it knows itself it may still be reading, so that
            // is waited for.
            unsafe {
                result::memcpy_htod_async(to, from, stream)?;
                if is_known(from) { result::stream::synchronize(stream) } else { Ok(()) }
            }
        })
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        let what = "copying to the host";
        self.queue.outside_capture(what)?;
        self.queue.call(what, |stream| {
            // SAFETY: the source is memory of this driver; the target is borrowed until the copy is done.
            unsafe {
                result::memcpy_dtoh_async(to, from, stream)?;
                result::stream::synchronize(stream)
            }
        })
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.queue.call("copying on the device", |stream| {
            // SAFETY: both ranges are memory of this driver.
            unsafe { result::memcpy_dtod_async(to, from, bytes, stream) }
        })
    }

    unsafe fn clear(&self, address: u64, bytes: usize) -> Result<()> {
        self.queue.call("clearing memory", |stream| {
            // SAFETY: the range is memory of this driver.
            unsafe { result::memset_d8_async(address, 0, bytes, stream) }
        })
    }

    unsafe fn gemm(&self, gemm: &Gemm) -> Result<()> {
        match self.blas()? {
            // SAFETY: passed on to the caller.
            Some(blas) => unsafe { blas.gemm(gemm) },
            None => Err(self.queue.error("multiplying matrices", "there is no cuBLAS".into())),
        }
    }

    fn begin_capture(&self) -> Result<()> {
        graph::begin(&self.queue, self.name())
    }

    fn end_capture(&self) -> Result<Box<dyn Graph>> {
        graph::end(&self.queue)
    }

    fn synchronize(&self) -> Result<()> {
        let what = "waiting for queued work";
        self.queue.outside_capture(what)?;
        self.queue.call(what, |stream| {
            // SAFETY: the stream is alive.
            unsafe { result::stream::synchronize(stream) }
        })
    }

    fn trim(&self) -> Result<()> {
        // What is freed by work still queued would stay.
        self.synchronize()?;
        match &self.pool {
            Some(pool) => self.queue.call("giving back memory", |_| {
                // SAFETY: the pool is alive.
                unsafe { result::mem_pool::trim_to(pool.0, 0) }
            }),
            None => Ok(()),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some(Workspaced { blas, workspace, bytes }) = self.blas.take() {
            drop(blas);
            // SAFETY: the handle, which used it, is gone.
            unsafe { self.free(workspace, bytes) };
        }
        let given_back = std::mem::take(&mut self.given_back);
        let given_back = given_back.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.free_all(given_back.into_iter());
        if let Some(pool) = self.pool.take() {
            // SAFETY: nothing is allocated from it any more by this runtime; memory handed to the caller
            // keeps what it needs of the pool.
            let _ = self.queue.attempt(|_| unsafe { result::mem_pool::destroy(pool.0) });
        }
    }
}

/// Whether the driver knows this memory of the host's, as when it is page-locked.
fn is_known(memory: &[u8]) -> bool {
    let mut kind = 0u32;
    let attribute = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
    let address = memory.as_ptr() as u64;
    // SAFETY: this attribute is a 32-bit integer; the address is only looked up.
    let found = unsafe { sys::cuPointerGetAttribute((&raw mut kind).cast(), attribute, address) };
    found == CUresult::CUDA_SUCCESS
}
