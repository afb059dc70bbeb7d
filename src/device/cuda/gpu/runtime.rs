//! The CUDA driver as a [`Driver`]: one context and one stream of it.

use std::any::Any;
use std::collections::hash_map::DefaultHasher;
use std::ffi::c_void;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock};

use cudarc::driver::sys::{self, CUfunction_attribute, CUmemoryPool, CUresult};
use cudarc::driver::{CudaContext, CudaFunction, CudaStream, DriverError, result};
use cudarc::nvrtc::Ptx;

use super::blas::Blas;
use super::libraries::reason;
use super::nvrtc::{self, Target};
use super::probe::{self, DeviceFacts};
use super::queue::Queue;
use crate::device::cuda::driver::{CompileFailure, Driver, Gemm, Kernel, Resources, Unit};
use crate::error::Result;

/// A CUDA device, opened.
#[derive(Debug)]
pub(crate) struct Runtime {
    queue: Queue,
    facts: DeviceFacts,
    target: Target,
    /// `None` where the device has no memory pools.
    pool: Option<Pool>,
    blas: OnceLock<Result<Blas, String>>,
}

impl Runtime {
    /// The device with this ordinal: its primary context and default stream.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub(crate) fn open(ordinal: usize) -> Result<Self, String> {
        let (facts, target) = look(ordinal)?;
        let context = CudaContext::new(ordinal)
            .map_err(|error| format!("its context cannot be had: {}", reason(error)))?;
        Self::new(context.default_stream(), facts, target)
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
        let (facts, target) = look(stream.context().ordinal())?;
        Self::new(stream, facts, target)
    }

    fn new(stream: Arc<CudaStream>, facts: DeviceFacts, target: Target) -> Result<Self, String> {
        let queue = Queue { name: format!("cuda:{}", facts.ordinal).into(), stream };
        let pool =
            match queue.stream.context().has_async_alloc() {
                true => Some(queue.attempt(|_| Pool::new(facts.ordinal)).map_err(|error| {
                    format!("its memory pool cannot be had: {}", reason(error))
                })?),
                false => None,
            };
        Ok(Runtime { queue, facts, target, pool, blas: OnceLock::new() })
    }

    /// The stream that all work is queued on.
    pub(crate) fn stream(&self) -> &Arc<CudaStream> {
        &self.queue.stream
    }

    pub(super) fn queue(&self) -> &Queue {
        &self.queue
    }

    /// cuBLAS for this stream, or why there is none. The first call makes it, which waits for the device
    /// and is not possible while a graph is captured.
    pub(crate) fn blas(&self) -> Result<&Blas, &str> {
        self.blas.get_or_init(|| Blas::open(&self.queue)).as_ref().map_err(String::as_str)
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

fn look(ordinal: usize) -> Result<(DeviceFacts, Target), String> {
    let mut devices = probe::cuda()?;
    if ordinal >= devices.len() {
        let plural = if devices.len() == 1 { "device" } else { "devices" };
        return Err(format!("the CUDA driver finds {} {plural}", devices.len()));
    }
    let facts = devices.swap_remove(ordinal);
    let target = Target::new(facts.capability)?;
    Ok((facts, target))
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
        format!("{}, {}", self.facts, self.toolchain())
    }

    fn toolchain(&self) -> String {
        // `present` was asked when the device was opened.
        let (major, minor) = nvrtc::present().unwrap_or_default();
        format!("NVRTC {major}.{minor} for {}", self.target)
    }

    fn capability(&self) -> u32 {
        self.facts.capability
    }

    fn has_blas(&self) -> bool {
        self.blas().is_ok()
    }

    fn multiprocessors(&self) -> u32 {
        self.facts.multiprocessors
    }

    fn memory(&self) -> Result<(u64, u64)> {
        let (free, total) =
            self.queue.call("asking for free memory", |_| result::mem_get_info())?;
        Ok((free as u64, total as u64))
    }

    fn compile(&self, unit: &Unit) -> Result<Vec<u8>, CompileFailure> {
        nvrtc::compile(unit, self.target)
    }

    fn load(&self, image: &[u8], entry: &str) -> Result<Box<dyn Kernel>> {
        let what = format!("loading {entry}");
        if !nvrtc::is_whole(image) {
            return Err(self.queue.error(&what, "the image is damaged".into()));
        }
        self.queue.call(&what, |_| {
            let context = self.queue.stream.context();
            let module = context.load_module(Ptx::from_binary(image.to_vec()))?;
            let function = module.load_function(entry)?;
            let attribute = |which| function.get_attribute(which).map(|value| value as u32);
            let resources = Resources {
                registers: attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
                shared_bytes: attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
                local_bytes: attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
            };
            let (queue, what) = (self.queue.clone(), format!("launching {entry}"));
            Ok(Box::new(Loaded { queue, what, function, resources }) as Box<dyn Kernel>)
        })
    }

    fn allocate(&self, bytes: usize) -> Result<Option<u64>> {
        const EXHAUSTED: DriverError = DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        if bytes as u64 > self.facts.memory {
            return Ok(None);
        }
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

    unsafe fn upload(&self, from: &[u8], to: u64) -> Result<()> {
        self.queue.call("copying to the device", |stream| {
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
        self.queue.call("copying to the host", |stream| {
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
        match self.blas() {
            // SAFETY: passed on to the caller.
            Ok(blas) => unsafe { blas.gemm(gemm) },
            Err(reason) => Err(self.queue.error("multiplying matrices", reason.into())),
        }
    }

    fn synchronize(&self) -> Result<()> {
        self.queue.call("waiting for queued work", |stream| {
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
        if let Some(pool) = self.pool.take() {
            // SAFETY: nothing is allocated from it any more by this runtime; memory handed to the caller
            // keeps what it needs of the pool.
            let _ = self.queue.attempt(|_| unsafe { result::mem_pool::destroy(pool.0) });
        }
    }
}

/// A memory pool of our own: the device's default pool is the program's, and so are its settings.
#[derive(Debug)]
struct Pool(CUmemoryPool);

// SAFETY: pools are used through calls to the driver, which any thread may make.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Pool {
    fn new(ordinal: usize) -> Result<Self, DriverError> {
        /// `CUmemPoolProps`. The bindings' struct has other field names in each version of CUDA; the
        /// layout is the same in all.
        #[repr(C)]
        struct Properties {
            allocation: u32,
            handles: u32,
            location: u32,
            device: i32,
            security: *mut c_void,
            reserved: [u8; 64],
        }
        const _: () = assert!(size_of::<Properties>() == size_of::<sys::CUmemPoolProps>());
        const _: () = assert!(align_of::<Properties>() == align_of::<sys::CUmemPoolProps>());
        let properties = Properties {
            allocation: sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED as u32,
            // None: it is not shared with other processes.
            handles: 0,
            location: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE as u32,
            device: ordinal as i32,
            security: std::ptr::null_mut(),
            reserved: [0; 64],
        };
        // SAFETY: the driver reads a struct of this layout.
        let pool = Pool(unsafe { result::mem_pool::create((&raw const properties).cast())? });
        // Freed memory is kept for later results, as it is on the CPU; giving it back to the system and
        // asking for it again would cost more than most operations.
        let mut threshold = u64::MAX;
        // SAFETY: the pool is alive, and this attribute is a 64-bit integer.
        unsafe {
            result::mem_pool::set_attribute(
                pool.0,
                sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
                (&raw mut threshold).cast(),
            )?;
        }
        Ok(pool)
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

/// A kernel in a context.
#[derive(Debug)]
struct Loaded {
    queue: Queue,
    what: String,
    function: CudaFunction,
    resources: Resources,
}

impl Kernel for Loaded {
    fn resources(&self) -> Resources {
        self.resources
    }

    unsafe fn launch(&self, grid: [u32; 3], threads: u32, arguments: &[u8]) -> Result<()> {
        let [x, y, z] = grid;
        // The driver copies the parameters before it returns.
        let mut parameters = [arguments.as_ptr() as *mut c_void];
        let (function, block) = (self.function.cu_function(), (threads, 1, 1));
        self.queue.call(&self.what, |stream| {
            // SAFETY: the function and the stream are alive; the caller answers for the arguments.
            unsafe { result::launch_kernel(function, (x, y, z), block, 0, stream, &mut parameters) }
        })
    }
}
