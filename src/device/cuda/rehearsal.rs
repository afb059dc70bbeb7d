//! A rehearsal of a GPU: takes every call, computes nothing, and so tells which kernels some work needs.
//! It may compile them with NVRTC, which needs no GPU.

use std::any::Any;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::driver::{CompileFailure, Driver, Kernel, Resources, Unit};
use super::gemm::Gemm;
#[cfg(feature = "cuda")]
use super::gpu::nvrtc::{self, Toolchain};
use super::target::Target;
use crate::error::Result;

/// What takes a GPU's place while work is rehearsed.
#[derive(Debug)]
pub(super) struct Rehearsal {
    name: String,
    toolchain: String,
    target: Target,
    /// Whether cuBLAS takes the place of kernels of the crate's.
    has_blas: bool,
    identity: u64,
    /// What to compile for; without, images are empty.
    #[cfg(feature = "cuda")]
    compiler: Option<Toolchain>,
    /// What compiled kernels need, by their images.
    needs: Mutex<HashMap<u64, Vec<(String, Resources)>>>,
    next_address: AtomicU64,
}

impl Rehearsal {
    /// A rehearsal of this device, on which nothing is compiled.
    ///
    /// # Errors
    /// As [`Driver::has_blas`].
    pub(super) fn instead_of(driver: &dyn Driver) -> Result<Self> {
        Ok(Rehearsal {
            name: format!("rehearsal for {}", driver.name()),
            toolchain: driver.toolchain(),
            target: driver.target(),
            has_blas: driver.has_blas()?,
            identity: fresh_identity(),
            #[cfg(feature = "cuda")]
            compiler: None,
            needs: Mutex::default(),
            next_address: AtomicU64::new(ALIGNMENT),
        })
    }

    /// A device of this compute capability on which kernels are compiled.
    ///
    /// # Errors
    /// Why they cannot be.
    #[cfg(feature = "cuda")]
    pub(super) fn compiling(capability: u32) -> std::result::Result<Self, String> {
        // With the NVRTC that a device of this machine would use, which then finds the images in the cache.
        let compiler = Toolchain::new(capability, super::gpu::libraries::driver().ok())?;
        Ok(Rehearsal {
            name: format!("compiler for {}", compiler.target()),
            toolchain: compiler.key(),
            target: Target::of("", capability, 100),
            has_blas: false,
            identity: fresh_identity(),
            compiler: Some(compiler),
            needs: Mutex::default(),
            next_address: AtomicU64::new(ALIGNMENT),
        })
    }
}

const ALIGNMENT: u64 = 256;

fn fresh_identity() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // The top half of the range: contexts and simulators have other numbers.
    u64::MAX - NEXT.fetch_add(1, Ordering::Relaxed)
}

fn hash(image: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    image.hash(&mut hasher);
    hasher.finish()
}

impl Driver for Rehearsal {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn identity(&self) -> u64 {
        self.identity
    }

    fn description(&self) -> String {
        format!("computes nothing; {}", self.toolchain.lines().next().unwrap_or_default())
    }

    fn toolchain(&self) -> String {
        self.toolchain.clone()
    }

    fn capability(&self) -> u32 {
        self.target.capability
    }

    fn has_blas(&self) -> Result<bool> {
        Ok(self.has_blas)
    }

    fn multiprocessors(&self) -> u32 {
        self.target.multiprocessors
    }

    fn target(&self) -> Target {
        self.target
    }

    fn memory(&self) -> Result<(u64, u64)> {
        Ok((u64::MAX / 2, u64::MAX / 2))
    }

    fn compile(&self, unit: &Unit) -> std::result::Result<Vec<u8>, CompileFailure> {
        #[cfg(feature = "cuda")]
        if let Some(compiler) = self.compiler {
            let (image, log) = compiler.compile_with_log(unit)?;
            let mut needs = self.needs.lock().unwrap_or_else(PoisonError::into_inner);
            needs.insert(hash(&image), nvrtc::needs(&log));
            return Ok(image);
        }
        let _ = unit;
        Ok(Vec::new())
    }

    fn load(&self, image: &[u8], entry: &str) -> Result<Box<dyn Kernel>> {
        let needs = self.needs.lock().unwrap_or_else(PoisonError::into_inner);
        let found = needs.get(&hash(image)).into_iter().flatten().find(|(name, _)| name == entry);
        Ok(Box::new(Unlaunched(found.map(|(_, needs)| *needs).unwrap_or_default())))
    }

    fn allocate(&self, bytes: usize) -> Result<Option<u64>> {
        let bytes = (bytes as u64).next_multiple_of(ALIGNMENT);
        Ok(Some(self.next_address.fetch_add(bytes, Ordering::Relaxed)))
    }

    unsafe fn free(&self, _: u64, _: usize) {}

    unsafe fn upload(&self, _: &[u8], _: u64) -> Result<()> {
        Ok(())
    }

    unsafe fn download(&self, _: u64, to: &mut [u8]) -> Result<()> {
        to.fill(0);
        Ok(())
    }

    unsafe fn copy(&self, _: u64, _: u64, _: usize) -> Result<()> {
        Ok(())
    }

    unsafe fn clear(&self, _: u64, _: usize) -> Result<()> {
        Ok(())
    }

    unsafe fn gemm(&self, _: &Gemm) -> Result<()> {
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn trim(&self) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A kernel that is never run.
#[derive(Debug)]
struct Unlaunched(Resources);

impl Kernel for Unlaunched {
    fn resources(&self) -> Resources {
        self.0
    }

    unsafe fn launch(&self, _: [u32; 3], _: u32, _: &[u8]) -> Result<()> {
        Ok(())
    }
}
