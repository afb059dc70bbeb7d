//! What stands between the crate's launch code and a machine that runs kernels: compile, load, allocate,
//! copy, launch. The CUDA driver is one implementation, the simulator the other; everything above this
//! interface is the same for both.

use std::any::Any;
use std::fmt;

use super::gemm::Gemm;
use super::target::Target;
use crate::error::{Error, Result};

/// A translation unit: generated definitions followed by one kernel file.
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    /// The file in `kernels/`, for example `unfold.cu`.
    pub file: &'static str,
    /// The whole text to compile. It includes headers by their plain names.
    pub text: String,
}

/// Why a unit did not compile.
#[derive(Debug)]
pub(crate) struct CompileFailure {
    /// The compiler's words, or why it could not be run.
    pub log: String,
}

/// What a compiled kernel needs of the machine, as far as the driver can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resources {
    pub registers: u32,
    pub shared_bytes: u32,
    /// Bytes per thread in local memory: spills and arrays that are indexed dynamically.
    pub local_bytes: u32,
}

/// A machine that runs kernels.
///
/// Addresses are the driver's own (`u64`); no memory is touched through them but by these calls. Work is
/// queued in the order of the calls; `download` waits for it.
pub(crate) trait Driver: fmt::Debug + Send + Sync {
    /// The name that selects it: `cuda:0`, `simulator`.
    fn name(&self) -> String;

    /// Tells devices apart: operands with equal identities may meet in one operation.
    fn identity(&self) -> u64;

    /// For people: what the device is and what compiles for it.
    fn description(&self) -> String;

    /// Names compiler, version, options and target: what makes images of the same source differ. The first
    /// line is for people.
    fn toolchain(&self) -> String;

    /// Compute capability as 10·major + minor.
    fn capability(&self) -> u32;

    /// Whether cuBLAS multiplies matrices here.
    ///
    /// # Errors
    /// [`Error::Device`] when that cannot be found out now, as while a graph is captured.
    fn has_blas(&self) -> Result<bool>;

    /// Number of multiprocessors.
    fn multiprocessors(&self) -> u32;

    /// The GPU that it is, as far as its figures are known, else one of its kind.
    fn target(&self) -> Target;

    /// Free and total memory, in bytes.
    fn memory(&self) -> Result<(u64, u64)>;

    /// Compiles to an image that `load` takes. May be called from many threads at once.
    fn compile(&self, unit: &Unit) -> Result<Vec<u8>, CompileFailure>;

    /// Makes the kernel `entry` of an image ready to be launched. An error means that the image is not
    /// usable here, as when a file was damaged.
    fn load(&self, image: &[u8], entry: &str) -> Result<Box<dyn Kernel>>;

    /// Memory with any contents, aligned to at least 16 bytes (CUDA: 256); `None` when there is not enough. `bytes` > 0.
    fn allocate(&self, bytes: usize) -> Result<Option<u64>>;

    /// Releases memory after the work queued so far.
    ///
    /// # Safety
    /// `address` is from `allocate` of this driver, with this size, and used by no later call.
    unsafe fn free(&self, address: u64, bytes: usize);

    /// Copies from the host. The source may be reused when this returns.
    ///
    /// # Safety
    /// `to..to + from.len()` is memory of this driver.
    unsafe fn upload(&self, from: &[u8], to: u64) -> Result<()>;

    /// Waits for the work queued so far and copies to the host.
    ///
    /// # Safety
    /// `from..from + to.len()` is memory of this driver.
    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<()>;

    /// Copies within the device; the ranges do not overlap.
    ///
    /// # Safety
    /// Both ranges are memory of this driver.
    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;

    /// Sets every byte to zero.
    ///
    /// # Safety
    /// The range is memory of this driver.
    unsafe fn clear(&self, address: u64, bytes: usize) -> Result<()>;

    /// Waits for the work queued so far.
    fn synchronize(&self) -> Result<()>;

    /// Queues matrix products by cuBLAS: only where `has_blas` says so.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for sizes that cuBLAS cannot count, [`Error::Device`].
    ///
    /// # Safety
    /// The matrices are memory of this driver, as large as sizes, leading dimensions and strides say, and
    /// `c` overlaps neither factor.
    unsafe fn gemm(&self, gemm: &Gemm) -> Result<()> {
        let _ = gemm;
        Err(Error::Device {
            device: self.name(),
            call: "multiplying matrices".into(),
            reason: "there is no cuBLAS".into(),
        })
    }

    /// From now on, until [`Driver::end_capture`], records what this thread queues in place of doing it. Only
    /// launches, products, clearings and copies on the device can be.
    ///
    /// # Errors
    /// [`Error::Invalid`] where that is not possible, [`Error::Device`].
    fn begin_capture(&self) -> Result<()> {
        Err(Error::invalid("device", self.name(), "its work cannot be captured"))
    }

    /// What was recorded.
    ///
    /// # Errors
    /// [`Error::Device`]: what was queued meanwhile cannot be captured.
    fn end_capture(&self) -> Result<Box<dyn Graph>> {
        Err(Error::invalid("device", self.name(), "its work cannot be captured"))
    }

    /// Gives back what freed memory the driver keeps.
    fn trim(&self) -> Result<()>;

    /// For callers that know which driver this is.
    fn as_any(&self) -> &dyn Any;
}

/// A kernel ready to be launched.
pub(crate) trait Kernel: fmt::Debug + Send + Sync {
    fn resources(&self) -> Resources;

    /// Queues a launch.
    ///
    /// # Safety
    /// `arguments` are the bytes of the kernel's argument struct, and the addresses in it are memory of
    /// the driver, large enough for what the kernel does with this grid and block.
    unsafe fn launch(&self, grid: [u32; 3], threads: u32, arguments: &[u8]) -> Result<()>;
}

/// Queued work, recorded.
pub(crate) trait Graph: Send + Sync {
    /// Queues all of it.
    ///
    /// # Safety
    /// What the work was given when it was recorded is still there.
    unsafe fn launch(&mut self) -> Result<()>;
}
