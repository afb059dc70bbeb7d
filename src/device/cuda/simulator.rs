//! The simulator: runs the kernels on the CPU, compiled by the host's C++ compiler, and watches them for
//! mistakes that a GPU may hide. `kernels/simulator/simulator.h` lists what it detects; in addition every
//! allocation ends at an inaccessible page and begins as NaN, freed memory is inaccessible, and ranges
//! given to copies are checked.
//!
//! Blocks run in parallel, in an order that differs from launch to launch as the order of threads does.
//! Calls return when their work is done.
//!
//! With the sanitizer kernels are watched access by access (`kernels/simulator/sanitizer.h`), and memory knows
//! which of its bytes were written: what a download reads has to be. Launches, copies, clearings and frees wait
//! until somebody waits for them, and streams of one GPU then take turns in an order drawn from the seed, so
//! that what lives too short is gone or poison.
//!
//! Environment, read when the simulator is opened:
//! - `CXX`: the compiler, else the first found of `c++`, `g++`, `clang++`;
//! - `CONVMAT_SIMULATOR_SEED`: the number that orders are drawn from;
//! - `CONVMAT_SIMULATOR_MEMORY`: bytes of device memory, else what the host has;
//! - `CONVMAT_SIMULATOR_SANITIZE`: `undefined` makes undefined behaviour an error, `accesses` (GCC only)
//!   turns the sanitizer on.

use std::any::Any;
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::driver::{CompileFailure, Driver, Graph, Kernel, Unit};
use super::gemm::Gemm;
use super::profile::{LaunchProfile, Profiler, Profiling, Target};
use super::simulation::{Machine, Simulation};
use crate::error::{Error, Result};

mod blas;
mod block;
mod cells;
mod compiler;
mod image;
mod launch;
mod memory;
mod queue;
#[cfg(test)]
mod tests;

use block::RunBlock;
use compiler::{Compiler, Watch};
use launch::{Loaded, OnStream};
use memory::{Memory, MemoryKind};
use queue::{Queues, Stream, Work};

const NAME: &str = "simulator";
/// The sanitizer's clock begins after the time of what the host has written.
const FIRST: u32 = 2;

#[derive(Debug)]
pub(crate) struct Simulator {
    identity: u64,
    compiler: Compiler,
    stream: Arc<Stream>,
}

/// A simulated GPU.
#[derive(Debug)]
struct Shared {
    memory: Memory,
    machine: Machine,
    has_blas: bool,
    seed: u64,
    launches: AtomicU64,
    profiler: Option<Profiler>,
    sanitizes: bool,
    /// The sanitizer's, in launches that run one at a time.
    clock: Mutex<u32>,
    queues: Mutex<Queues>,
    /// Of larger launches only so many of the first blocks and of the last are run.
    ends: Option<usize>,
}

impl Shared {
    fn check_overrun(&self) -> Result<(), String> {
        self.memory.find_overrun().map_or(Ok(()), Err)
    }
}

/// A simulator as it is made.
#[derive(Clone, Copy, Debug)]
struct Setup {
    machine: Machine,
    blas: bool,
    seed: u64,
    /// Bytes.
    memory: u64,
    watch: Watch,
    profiling: Option<Profiling>,
    /// See [`Shared::ends`]; memory is then taken from the host only where it is written.
    ends: Option<usize>,
}

impl Simulator {
    /// Opens a simulator, or tells why it cannot be used. What is not given the environment says.
    pub(crate) fn open(simulation: Simulation) -> Result<Simulator, String> {
        let Simulation { seed, memory, machine, blas, sanitizer, profiling, .. } = simulation;
        let given = |value: Option<u64>, variable| match value {
            Some(value) => Ok(Some(value)),
            None => number_from(variable),
        };
        let seed = given(seed, "CONVMAT_SIMULATOR_SEED")?.unwrap_or(0);
        let memory = match given(memory, "CONVMAT_SIMULATOR_MEMORY")? {
            Some(bytes) => bytes,
            None => memory::of_host()?,
        };
        let watch = match (profiling, sanitizer) {
            (Some(_), true) => return Err("it profiles or sanitizes, not both".into()),
            (Some(_), false) => Watch::Profile,
            (None, true) => Watch::Accesses,
            (None, false) => Watch::of_environment()?,
        };
        let machine = profiling.map_or(machine, |profiling| Machine::of(&profiling.target));
        if machine.multiprocessors == 0 {
            return Err("a GPU of 0 multiprocessors runs nothing".into());
        }
        let compiler = Compiler::find(watch, machine.capability)?;
        let setup = Setup { machine, blas, seed, memory, watch, profiling, ends: None };
        Ok(Simulator::new(compiler, setup))
    }

    /// With a compiler for the same machine and the same to watch.
    fn new(compiler: Compiler, setup: Setup) -> Simulator {
        block::catch_faults();
        let Setup { machine, blas, seed, memory, watch, profiling, ends } = setup;
        let alignment = match profiling {
            Some(_) => memory::DEVICE_ALIGNMENT,
            None => memory::ALIGNMENT,
        };
        let sanitizes = watch == Watch::Accesses;
        let kind = MemoryKind { alignment, cells: sanitizes, sparse: ends.is_some() };
        let shared = Shared {
            memory: Memory::new(memory, kind),
            machine,
            has_blas: blas,
            seed,
            launches: AtomicU64::new(0),
            profiler: profiling.map(Profiler::new),
            sanitizes,
            clock: Mutex::new(FIRST),
            queues: Mutex::default(),
            ends,
        };
        Simulator::on(Stream::new(Arc::new(shared)), compiler)
    }

    fn on(stream: Stream, compiler: Compiler) -> Simulator {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Simulator {
            // Far from the ordinals of real devices.
            identity: 1 << 63 | NEXT.fetch_add(1, Ordering::Relaxed),
            compiler,
            stream: Arc::new(stream),
        }
    }

    /// The same GPU on another stream.
    #[cfg(test)]
    fn on_new_stream(&self) -> Simulator {
        Simulator::on(Stream::new(self.stream.shared.clone()), self.compiler.clone())
    }

    fn shared(&self) -> &Shared {
        &self.stream.shared
    }

    fn profiled_for(&self) -> Option<&Target> {
        self.shared().profiler.as_ref().map(|profiler| &profiler.profiling.target)
    }

    /// Launches that were profiled since the last call.
    pub(super) fn take_profile(&self) -> Vec<LaunchProfile> {
        self.shared().profiler.as_ref().map(Profiler::take).unwrap_or_default()
    }
}

/// A GPU of which only so many of the first and of the last blocks of a launch are run, with memory that is taken
/// from the host only where it is touched: for tensors of any size.
#[cfg(test)]
pub(crate) fn of_ends(blocks: usize) -> Option<crate::Device> {
    let setup = Setup { ends: Some(blocks), memory: 1 << 44, ..tests::setup(0) };
    let options = super::KernelOptions::default();
    let device = super::CudaDevice::new(Box::new(tests::set_up(setup)?), options);
    Some(crate::Device::Cuda(device))
}

fn number_from(variable: &str) -> Result<Option<u64>, String> {
    match std::env::var_os(variable) {
        None => Ok(None),
        Some(text) => match text.to_str().and_then(|text| text.parse().ok()) {
            Some(number) => Ok(Some(number)),
            None => Err(format!("{variable} is {text:?}: expected a whole number")),
        },
    }
}

fn failure(call: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::Device { device: NAME.into(), call: call.into(), reason: reason.into() }
}

impl Driver for Simulator {
    fn name(&self) -> String {
        NAME.into()
    }

    fn identity(&self) -> u64 {
        self.identity
    }

    fn description(&self) -> String {
        let threads = rayon::current_num_threads();
        let plural = if threads == 1 { "" } else { "s" };
        format!("kernels on the CPU, {threads} thread{plural}, {}", self.compiler.version())
    }

    fn toolchain(&self) -> String {
        match self.profiled_for() {
            Some(target) => {
                let nvrtc = image::nvrtc_for(target).unwrap_or_else(|reason| reason);
                format!("{} for {target}, {nvrtc}", self.compiler.toolchain())
            }
            None => self.compiler.toolchain(),
        }
    }

    fn capability(&self) -> u32 {
        self.shared().machine.capability
    }

    fn has_blas(&self) -> Result<bool> {
        Ok(self.shared().has_blas)
    }

    fn multiprocessors(&self) -> u32 {
        self.shared().machine.multiprocessors
    }

    fn target(&self) -> Target {
        let of_its_kind = || Target::of("", self.capability(), self.multiprocessors());
        self.profiled_for().copied().unwrap_or_else(of_its_kind)
    }

    fn memory(&self) -> Result<(u64, u64)> {
        self.stream.finish()?;
        Ok(self.shared().memory.free_and_total())
    }

    fn compile(&self, unit: &Unit) -> Result<Vec<u8>, CompileFailure> {
        self.stream
            .outside_capture("compiling")
            .map_err(|error| CompileFailure { log: error.to_string() })?;
        let object = self.compiler.compile(unit)?;
        let needs =
            self.profiled_for().map(|target| image::needs(unit, target)).unwrap_or_default();
        Ok(image::assemble(object, &needs))
    }

    fn load(&self, image: &[u8], entry: &str) -> Result<Box<dyn Kernel>> {
        let call = format!("loading {entry}");
        self.stream.outside_capture(&call)?;
        let failed = |reason: String| failure(&*call, reason);
        // The dynamic loader trusts what it is given.
        let (object, needs) =
            image::take_apart(image).ok_or_else(|| failed("the image is damaged".into()))?;
        let mut file = tempfile::Builder::new()
            .prefix("convmat-")
            .suffix(".so")
            .tempfile()
            .map_err(|error| failed(format!("no temporary file: {error}")))?;
        file.write_all(object).map_err(|error| failed(error.to_string()))?;
        // The file can go once it is loaded: its pages stay mapped.
        let path = file.into_temp_path();
        // SAFETY: the object is what compile() made, as the checksum shows, and its initialisers do
        // nothing.
        let library = unsafe { Library::open(Some(&*path), RTLD_NOW | RTLD_LOCAL) }
            .map_err(|error| failed(error.to_string()))?;
        // SAFETY: KERNEL in simulator.h defines both symbols with these types.
        let (run, [threads, argument_bytes]) = unsafe {
            let run = library.get::<RunBlock>(format!("convmat_block_{entry}"));
            let limits = library.get::<*const [u32; 2]>(format!("convmat_limits_{entry}"));
            match (run, limits) {
                (Ok(run), Ok(limits)) => (*run, **limits),
                (Err(error), _) | (_, Err(error)) => return Err(failed(error.to_string())),
            }
        };
        let kernel = Loaded {
            name: entry.into(),
            run,
            threads,
            argument_bytes: argument_bytes as usize,
            resources: image::resources_of(needs, entry),
            sass: image::sass_of(needs, entry),
            _library: library,
        };
        Ok(Box::new(OnStream { kernel: Arc::new(kernel), stream: self.stream.clone() }))
    }

    fn allocate(&self, bytes: usize) -> Result<Option<u64>> {
        self.stream.outside_capture("allocating memory")?;
        let memory = &self.shared().memory;
        if let Some(address) = memory.allocate(bytes) {
            return Ok(Some(address));
        }
        // What is freed by work still queued may be enough.
        self.stream.finish()?;
        Ok(memory.allocate(bytes))
    }

    unsafe fn free(&self, address: u64, bytes: usize) {
        let freed = match self.stream.outside_capture("freeing memory") {
            Ok(()) => self.stream.queue(Work::Free { address, bytes }),
            Err(error) => return self.stream.refuse(error),
        };
        if let Err(error) = freed {
            log::error!("{error}");
        }
    }

    unsafe fn upload(&self, from: &[u8], to: u64) -> Result<()> {
        self.stream.outside_capture("upload")?;
        self.shared().memory.check(to, from.len()).map_err(|reason| failure("upload", reason))?;
        match self.shared().sanitizes {
            // The host may use its memory for something else before its turn comes.
            true => self.stream.queue(Work::Upload { from: from.into(), to }),
            false => self.shared().upload(from, to),
        }
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.stream.outside_capture("download")?;
        self.stream.finish()?;
        let memory = &self.shared().memory;
        memory
            .check(from, to.len())
            .and_then(|()| memory.check_written(from, to.len()))
            .map_err(|reason| failure("download", reason))?;
        // SAFETY: the source is live memory of ours, and `to` is the host's.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        let memory = &self.shared().memory;
        memory
            .check(from, bytes)
            .and_then(|()| memory.check(to, bytes))
            .map_err(|reason| failure("copy", reason))?;
        if from.abs_diff(to) < bytes as u64 {
            return Err(failure("copy", format!("{from:#x} and {to:#x} overlap in {bytes} bytes")));
        }
        self.stream.queue(Work::Copy { from, to, bytes })
    }

    unsafe fn clear(&self, address: u64, bytes: usize) -> Result<()> {
        self.shared().memory.check(address, bytes).map_err(|reason| failure("clear", reason))?;
        self.stream.queue(Work::Clear { address, bytes })
    }

    unsafe fn gemm(&self, gemm: &Gemm) -> Result<()> {
        if !self.shared().has_blas {
            return Err(failure("multiplying matrices", "there is no cuBLAS"));
        }
        // cuBLAS refuses at the call what it cannot count.
        gemm.calls().try_for_each(|call| call.map(drop))?;
        self.stream.queue(Work::Gemm(*gemm))
    }

    fn begin_capture(&self) -> Result<()> {
        self.stream.begin_capture()
    }

    fn end_capture(&self) -> Result<Box<dyn Graph>> {
        Ok(Box::new(self.stream.end_capture()?))
    }

    fn synchronize(&self) -> Result<()> {
        self.stream.outside_capture("waiting for queued work")?;
        self.stream.finish()
    }

    fn trim(&self) -> Result<()> {
        self.stream.outside_capture("giving back memory")?;
        self.stream.finish()?;
        self.shared().memory.trim();
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
