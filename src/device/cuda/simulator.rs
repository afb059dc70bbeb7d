//! The simulator: runs the kernels on the CPU, compiled by the host's C++ compiler, and watches them for
//! mistakes that a GPU may hide. `kernels/simulator/simulator.h` lists what it detects; in addition every
//! allocation ends at an inaccessible page and begins as NaN, freed memory is inaccessible, and ranges
//! given to copies are checked.
//!
//! Blocks run in parallel, in an order that differs from launch to launch as the order of threads does.
//! Calls return when their work is done.
//!
//! Environment, read when the simulator is opened:
//! - `CXX`: the compiler, else the first found of `c++`, `g++`, `clang++`;
//! - `CONVMAT_SIMULATOR_SEED`: the number that orders are drawn from;
//! - `CONVMAT_SIMULATOR_MEMORY`: bytes of device memory, else what the host has;
//! - `CONVMAT_SIMULATOR_SANITIZE`: `undefined` makes undefined behaviour an error, `address` (GCC only)
//!   accesses to shared memory outside of arrays.

use std::any::Any;
use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher as _;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::driver::{CompileFailure, Driver, Kernel, Resources, Unit};
use super::profile::{LaunchProfile, Profiler, Profiling, Sass, Target};
use crate::error::{Error, Result};

mod block;
mod compiler;
mod launch;
mod memory;
#[cfg(test)]
mod tests;

use block::RunBlock;
use compiler::{Compiler, Watch};
use launch::Loaded;
use memory::Memory;

const NAME: &str = "simulator";
/// As a device of capability 8.0: the newest whose features all have a counterpart in the simulator.
const CAPABILITY: u32 = 80;
/// Few, so that launches sized by this number walk through their data in several steps.
const MULTIPROCESSORS: u32 = 4;

#[derive(Debug)]
pub(crate) struct Simulator {
    identity: u64,
    /// What is refused while a graph is as if captured, and whether it is.
    capture: Capture,
    compiler: Compiler,
    shared: Arc<Shared>,
}

/// Work as it is while a stream is captured into a graph: launches, copies and clearings are recorded; what
/// waits, allocates, compiles or reads cannot be.
#[derive(Debug, Default)]
struct Capture {
    active: AtomicBool,
    /// The first call that could not return an error of its own.
    refused: Mutex<Option<Error>>,
}

impl Capture {
    fn check(&self, call: &str) -> Result<()> {
        match self.active.load(Ordering::Relaxed) {
            true => Err(failure(call, "it is not possible while a graph is captured")),
            false => Ok(()),
        }
    }
}

/// What kernels need of the simulator that loaded them.
#[derive(Debug)]
struct Shared {
    memory: Memory,
    seed: u64,
    launches: AtomicU64,
    profiler: Option<Profiler>,
}

impl Shared {
    fn check_overrun(&self) -> Result<(), String> {
        self.memory.find_overrun().map_or(Ok(()), Err)
    }
}

impl Simulator {
    /// Opens a simulator, or tells why it cannot be used. What is not given the environment says.
    pub(crate) fn open(
        seed: Option<u64>,
        memory: Option<u64>,
        profiling: Option<Profiling>,
    ) -> Result<Simulator, String> {
        let given = |value: Option<u64>, variable| match value {
            Some(value) => Ok(Some(value)),
            None => number_from(variable),
        };
        let seed = given(seed, "CONVMAT_SIMULATOR_SEED")?.unwrap_or(0);
        let limit = match given(memory, "CONVMAT_SIMULATOR_MEMORY")? {
            Some(bytes) => bytes,
            None => memory::of_host()?,
        };
        let sanitizer = std::env::var("CONVMAT_SIMULATOR_SANITIZE").unwrap_or_default();
        let watch = match (profiling, &*sanitizer) {
            (Some(_), _) => Watch::Profile,
            (None, "") => Watch::Nothing,
            (None, sanitizer) => Watch::Sanitizer(sanitizer),
        };
        Ok(Simulator::new(Compiler::find(watch)?, seed, limit, profiling))
    }

    fn new(compiler: Compiler, seed: u64, limit: u64, profiling: Option<Profiling>) -> Simulator {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        block::catch_faults();
        let alignment = match profiling {
            Some(_) => memory::DEVICE_ALIGNMENT,
            None => memory::ALIGNMENT,
        };
        Simulator {
            // Far from the ordinals of real devices.
            identity: 1 << 63 | NEXT.fetch_add(1, Ordering::Relaxed),
            capture: Capture::default(),
            compiler,
            shared: Arc::new(Shared {
                memory: Memory::new(limit, alignment),
                seed,
                launches: AtomicU64::new(0),
                profiler: profiling.map(Profiler::new),
            }),
        }
    }

    fn target(&self) -> Option<&Target> {
        self.shared.profiler.as_ref().map(|profiler| &profiler.profiling.target)
    }

    /// Launches that were profiled since the last call.
    pub(super) fn take_profile(&self) -> Vec<LaunchProfile> {
        self.shared.profiler.as_ref().map(Profiler::take).unwrap_or_default()
    }
}

impl Simulator {
    /// Does the work as if it were captured into a graph: see [`Capture`].
    ///
    /// # Errors
    /// What the work returns, or the first call that a capture does not allow.
    pub(super) fn capture<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<R> {
        self.capture.active.store(true, Ordering::Relaxed);
        let done = work();
        self.capture.active.store(false, Ordering::Relaxed);
        let refused = self.capture.refused.lock().unwrap_or_else(PoisonError::into_inner).take();
        match refused {
            Some(error) => Err(error),
            None => done,
        }
    }
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
        match self.target() {
            Some(target) => {
                let nvrtc = nvrtc_for(target).unwrap_or_else(|reason| reason);
                format!("{} for {target}, {nvrtc}", self.compiler.toolchain())
            }
            None => self.compiler.toolchain(),
        }
    }

    fn capability(&self) -> u32 {
        self.target().map_or(CAPABILITY, |target| target.capability)
    }

    fn has_blas(&self) -> Result<bool> {
        Ok(false)
    }

    fn multiprocessors(&self) -> u32 {
        self.target().map_or(MULTIPROCESSORS, |target| target.multiprocessors)
    }

    fn memory(&self) -> Result<(u64, u64)> {
        Ok(self.shared.memory.free_and_total())
    }

    fn compile(&self, unit: &Unit) -> Result<Vec<u8>, CompileFailure> {
        self.capture
            .check("compiling")
            .map_err(|error| CompileFailure { log: error.to_string() })?;
        let mut image = self.compiler.compile(unit)?;
        let needs = self.target().map(|target| needs(unit, target)).unwrap_or_default();
        image.extend_from_slice(needs.as_bytes());
        image.extend_from_slice(&(needs.len() as u64).to_le_bytes());
        let sum = checksum(&image);
        image.extend_from_slice(&sum);
        Ok(image)
    }

    fn load(&self, image: &[u8], entry: &str) -> Result<Box<dyn Kernel>> {
        let call = format!("loading {entry}");
        self.capture.check(&call)?;
        let failed = |reason: String| failure(&*call, reason);
        // The dynamic loader trusts what it is given.
        let damaged = || failed("the image is damaged".into());
        let whole = match image.split_last_chunk::<8>() {
            Some((whole, sum)) if checksum(whole) == *sum => whole,
            _ => return Err(damaged()),
        };
        let (rest, len) = whole.split_last_chunk::<8>().ok_or_else(damaged)?;
        let end = rest.len().checked_sub(u64::from_le_bytes(*len) as usize).ok_or_else(damaged)?;
        let (object, needs) = rest.split_at(end);
        let needs = std::str::from_utf8(needs).map_err(|_| damaged())?;
        let mut file = tempfile::Builder::new()
            .prefix("convmat-")
            .suffix(".so")
            .tempfile()
            .map_err(|error| failed(format!("no temporary file: {error}")))?;
        file.write_all(object).map_err(|error| failed(error.to_string()))?;
        // The file can go once it is loaded: its pages stay mapped.
        let path = file.into_temp_path();
        // SAFETY: the object is what compile() made, as the checksum shows, and has no initialisers.
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
        Ok(Box::new(Loaded {
            name: entry.into(),
            run,
            threads,
            argument_bytes: argument_bytes as usize,
            resources: resources_of(needs, entry),
            sass: sass_of(needs, entry),
            shared: self.shared.clone(),
            _library: library,
        }))
    }

    fn allocate(&self, bytes: usize) -> Result<Option<u64>> {
        self.capture.check("allocating memory")?;
        Ok(self.shared.memory.allocate(bytes))
    }

    unsafe fn free(&self, address: u64, bytes: usize) {
        if let Err(error) = self.capture.check("freeing memory") {
            let mut refused = self.capture.refused.lock().unwrap_or_else(PoisonError::into_inner);
            refused.get_or_insert(error);
        }
        if let Err(reason) = self.shared.memory.free(address, bytes) {
            log::error!("simulator: free failed: {reason}");
        }
    }

    unsafe fn upload(&self, from: &[u8], to: u64) -> Result<()> {
        self.capture.check("upload")?;
        self.shared.memory.check(to, from.len()).map_err(|reason| failure("upload", reason))?;
        // SAFETY: the target is live memory of ours, and `from` is the host's.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.capture.check("download")?;
        self.shared.memory.check(from, to.len()).map_err(|reason| failure("download", reason))?;
        // SAFETY: the source is live memory of ours, and `to` is the host's.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        let memory = &self.shared.memory;
        memory
            .check(from, bytes)
            .and_then(|()| memory.check(to, bytes))
            .map_err(|reason| failure("copy", reason))?;
        if from.abs_diff(to) < bytes as u64 {
            return Err(failure("copy", format!("{from:#x} and {to:#x} overlap in {bytes} bytes")));
        }
        // SAFETY: both are live memory of ours and do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    unsafe fn clear(&self, address: u64, bytes: usize) -> Result<()> {
        self.shared.memory.check(address, bytes).map_err(|reason| failure("clear", reason))?;
        // SAFETY: this is live memory of ours.
        unsafe { std::ptr::write_bytes(address as *mut u8, 0, bytes) };
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        self.capture.check("waiting for queued work")
    }

    fn trim(&self) -> Result<()> {
        self.capture.check("giving back memory")?;
        self.shared.memory.trim();
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// What compiles for the target besides, or why nothing does.
fn nvrtc_for(target: &Target) -> Result<String, String> {
    #[cfg(feature = "cuda")]
    {
        let nvrtc = super::gpu::nvrtc::Toolchain::new(target.capability, None)?.key();
        let nvdisasm = super::profile::sass::Disassembler::find();
        Ok(format!("{nvrtc}, {}", nvdisasm.map_or("no nvdisasm", |found| &found.version)))
    }
    #[cfg(not(feature = "cuda"))]
    {
        Err(format!("without NVRTC for {target}"))
    }
}

/// What the kernels of a unit need on the target, a line for each, and where `nvdisasm` is found, another for
/// their instructions; empty where NVRTC cannot say.
fn needs(unit: &Unit, target: &Target) -> String {
    #[cfg(feature = "cuda")]
    {
        use super::gpu::nvrtc;
        let compiled = nvrtc::Toolchain::new(target.capability, None)
            .ok()
            .and_then(|toolchain| toolchain.compile_with_log(unit).ok());
        let Some((image, log)) = compiled else { return String::new() };
        let line = |(name, needs): (String, Resources)| {
            format!("{name} {} {} {}\n", needs.registers, needs.shared_bytes, needs.local_bytes)
        };
        // Where NVRTC does not know the target, the image is no machine code.
        let nvdisasm = super::profile::sass::Disassembler::find().ok();
        let nvdisasm = nvdisasm.filter(|_| image.starts_with(b"\x7fELF"));
        let listed = nvdisasm.and_then(|nvdisasm| {
            let failed = |reason| log::warn!("{}: no instructions: {reason}", unit.file);
            nvdisasm.kernels(&image).map_err(failed).ok()
        });
        let sass = |(name, sass): (String, Sass)| format!("{SASS}{name} {}\n", sass.line());
        let listed = listed.unwrap_or_default().into_iter().map(sass);
        nvrtc::needs(&log).into_iter().map(line).chain(listed).collect()
    }
    #[cfg(not(feature = "cuda"))]
    {
        let _ = (unit, target);
        String::new()
    }
}

/// Begins a line of [`needs`] with instructions.
const SASS: &str = "sass:";

/// The inverse of [`needs`].
fn resources_of(needs: &str, entry: &str) -> Option<Resources> {
    let line = needs.lines().find(|line| line.split(' ').next() == Some(entry))?;
    let mut numbers = line.split(' ').skip(1).map_while(|number| number.parse().ok());
    let [registers, shared_bytes, local_bytes] = std::array::from_fn(|_| numbers.next());
    Some(Resources {
        registers: registers?,
        shared_bytes: shared_bytes?,
        local_bytes: local_bytes?,
    })
}

fn sass_of(needs: &str, entry: &str) -> Option<Sass> {
    let of = |line: &'_ str| {
        Some(Sass::read(line.strip_prefix(SASS)?.strip_prefix(entry)?.strip_prefix(' ')?))
    };
    needs.lines().find_map(of).flatten()
}

fn checksum(object: &[u8]) -> [u8; 8] {
    // Against damage, not malice.
    let mut hasher = DefaultHasher::new();
    hasher.write(object);
    hasher.finish().to_le_bytes()
}
