//! Kernels in a context, ready to be launched.

use std::ffi::{CString, c_void};

use cudarc::driver::result;
use cudarc::driver::sys::{CUfunction, CUfunction_attribute, CUmodule};

use super::libraries::reason;
use super::nvrtc;
use super::queue::Queue;
use crate::device::cuda::driver::{Kernel, Resources};
use crate::error::Result;

/// The kernel `entry` of an image, for launches on the queue.
///
/// # Errors
/// [`crate::Error::Device`], also when the image is damaged and while a graph is captured.
pub(super) fn load(queue: &Queue, image: &[u8], entry: &str) -> Result<Box<dyn Kernel>> {
    let what = format!("loading {entry}");
    if !nvrtc::is_whole(image) {
        return Err(queue.error(&what, "the image is damaged".into()));
    }
    queue.outside_capture(&what)?;
    let name = CString::new(entry).map_err(|error| queue.error(&what, error.to_string()))?;
    queue.call(&what, |_| {
        // SAFETY: the image is whole: an ELF file, or text with a NUL at its end.
        let raw = unsafe { result::module::load_data(image.as_ptr().cast())? };
        let module = Module { queue: queue.clone(), raw };
        // SAFETY: the module is loaded.
        let function = unsafe { result::module::get_function(raw, name)? };
        let attribute = |which| {
            // SAFETY: the function is of a module that is loaded.
            let value = unsafe { result::function::get_function_attribute(function, which) };
            value.map(|value| value as u32)
        };
        let resources = Resources {
            registers: attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            shared_bytes: attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
            local_bytes: attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
        };
        let what = format!("launching {entry}");
        Ok(Box::new(Loaded { module, what, function, resources }) as Box<dyn Kernel>)
    })
}

/// A module in a context. cudarc's own would fail with errors that it has kept of other calls.
#[derive(Debug)]
struct Module {
    queue: Queue,
    raw: CUmodule,
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: the module is used by no later call; a graph that has its kernels keeps the device.
        let unloaded = self.queue.attempt(|_| unsafe { result::module::unload(self.raw) });
        if let Err(error) = unloaded {
            log::warn!("{}: unloading a kernel failed: {}", self.queue.name, reason(error));
        }
    }
}

/// A kernel in a context.
#[derive(Debug)]
struct Loaded {
    module: Module,
    what: String,
    function: CUfunction,
    resources: Resources,
}

// SAFETY: modules and functions belong to a context, not to a thread.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

impl Kernel for Loaded {
    fn resources(&self) -> Resources {
        self.resources
    }

    unsafe fn launch(&self, grid: [u32; 3], threads: u32, arguments: &[u8]) -> Result<()> {
        let [x, y, z] = grid;
        // The driver copies the parameters before it returns.
        let mut parameters = [arguments.as_ptr() as *mut c_void];
        let (function, block) = (self.function, (threads, 1, 1));
        self.module.queue.call(&self.what, |stream| {
            // SAFETY: the function and the stream are alive; the caller answers for the arguments.
            unsafe { result::launch_kernel(function, (x, y, z), block, 0, stream, &mut parameters) }
        })
    }
}
