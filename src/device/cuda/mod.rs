//! CUDA devices: the crate's kernels, compiled at run time, and the memory they work on.
//!
//! `driver` is the interface to a machine that runs kernels. The CUDA driver is behind it, and so is the
//! simulator, which runs the same sources on the CPU; all else here is the same for both. A capability's
//! `cuda.rs` describes the kernel it wants as a [`Spec`], fills the argument struct and launches.

#[cfg(test)]
mod answers;
mod buffer;
mod cost;
mod driver;
mod gemm;
#[cfg(feature = "cuda")]
pub(crate) mod gpu;
mod graph;
mod kernel;
#[cfg(feature = "simulator")]
pub(crate) mod profile;
mod program;
mod rehearsal;
#[cfg(feature = "simulator")]
mod simulation;
#[cfg(all(feature = "simulator", unix))]
pub(crate) mod simulator;
mod tables;
mod target;

#[cfg(feature = "cuda")]
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

#[cfg(feature = "cuda")]
pub(crate) use buffer::Lease;
pub(crate) use buffer::{DeviceBuffer, DeviceSlice, DeviceSliceMut};
pub(crate) use cost::{LOADS_AT_A_TIME, Work};
pub(crate) use driver::Resources;
use driver::{Driver, Kernel};
pub(crate) use gemm::{Gemm, Matrix};
#[cfg(feature = "cuda")]
pub(crate) use gpu::runtime::Runtime;
pub use graph::CudaGraph;
pub(crate) use kernel::arguments::{
    AxesArguments, BANK_BYTES, BANKS, SECTOR, THREADS, bank_passes, blocks, position_divisors,
    vector,
};
use kernel::compiler::Compiler;
pub(crate) use kernel::pointer::{Arguments, PerRun, Pointer};
pub(crate) use kernel::spec::{Spec, axis_bound, is_specialised};
pub(crate) use kernel::structs;
pub(crate) use kernel::structs::{Adjoint, Divisor};
#[cfg(feature = "simulator")]
use profile::LaunchProfile;
pub(crate) use program::{Draft, Program, Queued, Region};
use rehearsal::Rehearsal;
#[cfg(feature = "simulator")]
pub use simulation::{Machine, Simulation};
use tables::Tables;
pub(crate) use target::Target;

use crate::device::Device;
use crate::error::{Error, Result};

/// Says why a test is skipped, or fails it when `CONVMAT_REQUIRE` names the part that is missing.
#[cfg(test)]
fn skipped(part: &str, reason: &str) {
    let required = std::env::var("CONVMAT_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name == part), "{part} is required, but: {reason}");
    println!("skipped: {reason}");
}

/// A CUDA GPU with a stream, or the simulator of one. A handle: clones are the same device.
///
/// Work is queued on the stream; only reads to the host wait for it. Two handles are equal, and their
/// tensors may meet in one operation, when context and stream are the same.
#[derive(Clone)]
pub struct CudaDevice(Arc<Inner>);

struct Inner {
    driver: Box<dyn Driver>,
    compiler: Compiler,
    options: KernelOptions,
    tables: Tables,
    target: Target,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tables.release(&*self.driver);
    }
}

/// A compiled kernel and what it takes of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelInfo {
    /// Its name and what it was compiled for.
    pub name: String,
    /// Registers of a thread; 0 where that is not known, as when it was read from the cache by a rehearsal.
    pub registers: u32,
    /// Shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// Local memory of a thread, in bytes: registers that were spilled.
    pub local_bytes: u32,
}

/// How kernels are compiled. By default as is fastest.
#[derive(Clone, Copy, Debug)]
pub struct KernelOptions {
    /// Whether kernels are made for a layer's kernel extents, strides, dilations and padding mode, or take
    /// them as arguments, which saves compilations when every layer is another.
    pub specialise: bool,
    /// Whether kernels use 64-bit indices even where 32 bits suffice.
    pub wide: bool,
    /// Whether kernels that earlier processes compiled are read from the cache on disk.
    pub reuse: bool,
}

impl Default for KernelOptions {
    fn default() -> Self {
        KernelOptions { specialise: true, wide: false, reuse: true }
    }
}

impl CudaDevice {
    fn new(driver: Box<dyn Driver>, options: KernelOptions) -> Self {
        let compiler = Compiler::new(&*driver, options.reuse);
        Self::assemble(driver, compiler, options)
    }

    fn assemble(driver: Box<dyn Driver>, compiler: Compiler, options: KernelOptions) -> Self {
        let (tables, target) = (Tables::default(), driver.target());
        CudaDevice(Arc::new(Inner { driver, compiler, options, tables, target }))
    }

    /// The GPU with this ordinal, on its default stream: the same device each time.
    #[cfg(feature = "cuda")]
    pub(super) fn open(ordinal: usize) -> Result<Self> {
        static OPEN: Mutex<BTreeMap<usize, CudaDevice>> = Mutex::new(BTreeMap::new());
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = open.get(&ordinal) {
            return Ok(device.clone());
        }
        let runtime = Runtime::open(ordinal).map_err(|reason| Error::DeviceUnavailable {
            device: format!("cuda:{ordinal}"),
            reason,
        })?;
        let device = Self::new(Box::new(runtime), KernelOptions::default());
        open.insert(ordinal, device.clone());
        Ok(device)
    }

    /// The GPU of a caller's stream, on that stream.
    #[cfg(feature = "cuda")]
    pub(super) fn on_stream(stream: Arc<cudarc::driver::CudaStream>) -> Result<Self> {
        let name = format!("cuda:{}", stream.context().ordinal());
        let runtime = Runtime::on_stream(stream)
            .map_err(|reason| Error::DeviceUnavailable { device: name, reason })?;
        Ok(Self::new(Box::new(runtime), KernelOptions::default()))
    }

    /// The GPU with this ordinal, on a stream of its own: another device each time.
    #[cfg(feature = "cuda")]
    pub(super) fn on_new_stream(ordinal: usize) -> Result<Self> {
        let runtime = Runtime::on_new_stream(ordinal).map_err(|reason| {
            Error::DeviceUnavailable { device: format!("cuda:{ordinal}"), reason }
        })?;
        Ok(Self::new(Box::new(runtime), KernelOptions::default()))
    }

    /// The stream that all work is queued on; `None` for a simulator.
    #[cfg(feature = "cuda")]
    pub fn stream(&self) -> Option<&Arc<cudarc::driver::CudaStream>> {
        self.runtime().map(Runtime::stream)
    }

    /// Captures what `work` queues on this device's stream into a graph, instead of running it. Runs of plans
    /// made beforehand may be captured, on tensors and with workspaces made beforehand. Allocating and
    /// compiling, copies from and to the host and waiting are errors that name the call; one-call forms
    /// allocate.
    ///
    /// # Errors
    /// What `work` returns; [`Error::Invalid`] when the device's stream is the legacy default stream, as that of
    /// [`Device::cuda`] is; [`Error::Device`]. A simulator refuses to free memory meanwhile, too, and is to be
    /// used by no other thread.
    pub fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<CudaGraph> {
        graph::capture(self, work)
    }

    /// The CUDA runtime behind this device, if it is not a simulator's.
    #[cfg(feature = "cuda")]
    pub(crate) fn runtime(&self) -> Option<&Runtime> {
        self.driver().as_any().downcast_ref()
    }

    /// A rehearsal of a GPU of this compute capability that compiles and computes nothing.
    #[cfg(feature = "cuda")]
    pub(super) fn compile_only(capability: u32, options: KernelOptions) -> Result<Self> {
        match Rehearsal::compiling(capability) {
            Ok(rehearsal) => Ok(Self::new(Box::new(rehearsal), options)),
            Err(reason) => {
                let device = format!("compute capability {}", gpu::libraries::dotted(capability));
                Err(Error::DeviceUnavailable { device, reason })
            }
        }
    }

    /// The simulator, as by default: the same device each time.
    #[cfg(feature = "simulator")]
    pub(super) fn simulator() -> Result<Self> {
        static OPEN: Mutex<Option<CudaDevice>> = Mutex::new(None);
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = &*open {
            return Ok(device.clone());
        }
        let device = Self::simulated(Simulation::default())?;
        Ok(open.insert(device).clone())
    }

    /// A simulator of its own.
    #[cfg(feature = "simulator")]
    pub(super) fn simulated(simulation: Simulation) -> Result<Self> {
        let unavailable = |reason| Error::DeviceUnavailable { device: "simulator".into(), reason };
        #[cfg(unix)]
        {
            let Simulation { specialise, wide_indices: wide, .. } = simulation;
            let simulator = simulator::Simulator::open(simulation).map_err(unavailable)?;
            Ok(Self::new(Box::new(simulator), KernelOptions { specialise, wide, reuse: true }))
        }
        #[cfg(not(unix))]
        {
            let _ = simulation;
            Err(unavailable("it needs a Unix system".into()))
        }
    }

    /// Launches that a profiling simulator has counted since the last call.
    #[cfg(feature = "simulator")]
    pub(super) fn take_profile(&self) -> Vec<LaunchProfile> {
        #[cfg(unix)]
        if let Some(simulator) = self.driver().as_any().downcast_ref::<simulator::Simulator>() {
            return simulator.take_profile();
        }
        Vec::new()
    }

    pub(super) fn prepare(&self, work: impl FnOnce(&Device) -> Result<()>) -> Result<usize> {
        let rehearsal = self.rehearsal()?;
        work(&Device::Cuda(rehearsal.clone()))?;
        let specs = rehearsal.0.compiler.specs();
        specs.par_iter().try_for_each(|spec| self.kernel(spec).map(drop))?;
        Ok(specs.len())
    }

    /// A device on which nothing is compiled or computed.
    fn rehearsal(&self) -> Result<CudaDevice> {
        let rehearsal = Box::new(Rehearsal::instead_of(self.driver())?);
        let compiler = Compiler::without_cache(&*rehearsal);
        Ok(Self::assemble(rehearsal, compiler, self.options()))
    }

    /// The kernels that were compiled, or read from the cache, so far: in the order of their names.
    pub fn kernels(&self) -> Vec<KernelInfo> {
        let mut kernels = self.0.compiler.kernels();
        kernels.sort_by(|a, b| a.name.cmp(&b.name));
        kernels
    }

    /// The GPU that it is, as far as its figures are known, else one of its kind.
    pub(crate) fn target(&self) -> &Target {
        &self.0.target
    }

    pub(crate) fn driver(&self) -> &dyn Driver {
        &*self.0.driver
    }

    pub(crate) fn options(&self) -> KernelOptions {
        self.0.options
    }

    /// The kernel of this description, compiled if it is not at hand.
    pub(crate) fn kernel(&self, spec: &Spec) -> Result<Arc<dyn Kernel>> {
        self.0.compiler.kernel(self.driver(), spec)
    }

    /// For people: what it is.
    pub fn description(&self) -> String {
        self.driver().description()
    }

    /// Waits until all work queued so far is done.
    ///
    /// # Errors
    /// [`crate::Error::Device`] when some of it failed.
    pub fn synchronize(&self) -> Result<()> {
        self.driver().synchronize()
    }

    /// Free and total memory, in bytes.
    ///
    /// # Errors
    /// [`crate::Error::Device`].
    pub fn memory(&self) -> Result<(u64, u64)> {
        self.driver().memory()
    }

    pub(crate) fn release_memory(&self) {
        if let Err(error) = self.driver().trim() {
            log::warn!("{error}");
        }
    }
}

impl PartialEq for CudaDevice {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.driver().identity() == other.driver().identity()
    }
}

impl Eq for CudaDevice {}

impl Hash for CudaDevice {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.driver().identity().hash(state);
    }
}

impl fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaDevice({}, {})", self.driver().name(), self.driver().description())
    }
}

/// `cuda:0`, `simulator`.
impl fmt::Display for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.driver().name())
    }
}
