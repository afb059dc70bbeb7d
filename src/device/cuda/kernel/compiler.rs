//! Kernels are compiled once, kept in memory, and on disk for the next process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::cache::Cache;
use super::spec::Spec;
use crate::device::cuda::KernelInfo;
use crate::device::cuda::driver::{Driver, Kernel};
use crate::error::{Error, Result};

/// A kernel that is being compiled, or is there.
type Slot = Arc<Mutex<Option<Arc<dyn Kernel>>>>;

/// The kernels of one device.
#[derive(Debug)]
pub(in crate::device::cuda) struct Compiler {
    toolchain: String,
    cache: Cache,
    /// Whether the cache is read; it is written in any case.
    reuse: bool,
    slots: Mutex<HashMap<Spec, Slot>>,
}

impl Compiler {
    pub(in crate::device::cuda) fn new(driver: &dyn Driver, reuse: bool) -> Self {
        Compiler { reuse, ..Compiler::with(driver, Cache::open()) }
    }

    /// One that neither reads nor writes the cache on disk.
    pub(in crate::device::cuda) fn without_cache(driver: &dyn Driver) -> Self {
        Compiler::with(driver, Cache::none())
    }

    fn with(driver: &dyn Driver, cache: Cache) -> Self {
        Compiler { toolchain: driver.toolchain(), cache, reuse: true, slots: Mutex::default() }
    }

    /// All that was asked for so far.
    pub(in crate::device::cuda) fn specs(&self) -> Vec<Spec> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// All that is ready to be launched.
    pub(in crate::device::cuda) fn kernels(&self) -> Vec<KernelInfo> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let info = |(spec, slot): (&Spec, &Slot)| {
            let slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
            let needs = slot.as_ref()?.resources();
            Some(KernelInfo {
                name: spec.describe(),
                registers: needs.registers,
                shared_bytes: needs.shared_bytes,
                local_bytes: needs.local_bytes,
            })
        };
        slots.iter().filter_map(info).collect()
    }

    /// The kernel, compiled if need be. Different kernels are compiled in parallel by as many threads as
    /// ask for them; threads that ask for the same one wait for it.
    pub(in crate::device::cuda) fn kernel(
        &self,
        driver: &dyn Driver,
        spec: &Spec,
    ) -> Result<Arc<dyn Kernel>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = match slots.get(spec) {
            Some(slot) => slot.clone(),
            None => slots.entry(spec.clone()).or_default().clone(),
        };
        drop(slots);
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = &*slot {
            return Ok(kernel.clone());
        }
        let kernel: Arc<dyn Kernel> = self.build(driver, spec)?.into();
        *slot = Some(kernel.clone());
        Ok(kernel)
    }

    fn build(&self, driver: &dyn Driver, spec: &Spec) -> Result<Box<dyn Kernel>> {
        let failed = |log| Error::Compile { kernel: spec.describe(), device: driver.name(), log };
        if let Some(name) = spec.unknown_switch() {
            return Err(failed(format!("{} has no switch {name}", spec.source().name)));
        }
        let unit = spec.unit();
        let key = format!("{:016x}\n{}\n{}", spec.source().hash, self.toolchain, unit.text);
        // An image that the driver refuses was damaged in a way that the cache's checksum does not see,
        // or is for another machine: compile it again.
        let cached = if self.reuse { self.cache.read(&key) } else { None };
        let cached = cached.and_then(|image| driver.load(&image, spec.entry()).ok());
        if let Some(kernel) = cached {
            return Ok(kernel);
        }
        log::debug!("{}: compiling {}", driver.name(), spec.describe());
        let image = driver.compile(&unit).map_err(|failure| failed(failure.log))?;
        let kernel = driver.load(&image, spec.entry())?;
        self.cache.write(&key, &image);
        Ok(kernel)
    }
}

#[cfg(all(test, feature = "simulator", unix))]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::device::cuda::simulator::Simulator;
    use crate::device::cuda::structs::{Divisor, UnfoldArgs};
    use crate::device::cuda::{Arguments, CudaDevice, KernelOptions};
    use crate::element::DType;
    use crate::geometry::Layout;
    use crate::{Conv, Device, Tensor};

    /// A simulator that keeps its kernels in `folder`, if there is a C++ compiler.
    fn device(folder: &Path) -> Option<CudaDevice> {
        match Simulator::open(Default::default()) {
            Ok(simulator) => {
                let compiler = Compiler::with(&simulator, Cache::in_folder(folder));
                let options = KernelOptions { specialise: false, ..KernelOptions::default() };
                Some(CudaDevice::assemble(Box::new(simulator), compiler, options))
            }
            Err(reason) => {
                eprintln!("skipped: {reason}");
                None
            }
        }
    }

    #[test]
    fn damaged_files_are_compiled_again_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let unfold = || {
            let device = Device::Cuda(device(folder.path())?);
            let x = Tensor::from_vec(&device, &[1, 1, 4], vec![1f32, 2., 3., 4.]).unwrap();
            Some(Conv::new([3]).unfold(&x).unwrap().into_vec().unwrap())
        };
        let Some(patches) = unfold() else { return };
        assert_eq!(patches, [1., 2., 2., 3., 3., 4.]);
        let files: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(files.len(), 1);
        let path = files[0].as_ref().unwrap().path();
        let whole = fs::read(&path).unwrap();
        for damage in 0..3 {
            let mut damaged = whole.clone();
            match damage {
                0 => damaged.truncate(whole.len() / 2),
                1 => damaged[whole.len() / 2] ^= 1,
                _ => damaged.clear(),
            }
            fs::write(&path, &damaged).unwrap();
            assert_eq!(unfold().unwrap(), patches);
            assert_ne!(fs::read(&path).unwrap(), damaged);
        }
    }

    #[test]
    fn what_does_not_compile_says_where() {
        let folder = tempfile::tempdir().unwrap();
        let Some(device) = device(folder.path()) else { return };
        match device.kernel(&Spec::new("unfold.cu", "unfold").define("VECTOR", 3)) {
            Err(Error::Compile { kernel, device, log }) => {
                assert_eq!((kernel.as_str(), device.as_str()), ("unfold VECTOR=3", "simulator"));
                assert!(log.contains("unfold.cu:") && log.contains("ELEMENT"), "{log}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is kept of it");
    }

    #[test]
    fn what_is_defined_has_to_be_declared() {
        let folder = tempfile::tempdir().unwrap();
        let Some(device) = device(folder.path()) else { return };
        for device in [&device, &device.rehearsal().unwrap()] {
            match device.kernel(&Spec::new("unfold.cu", "unfold").define("VECTR", 1)) {
                Err(Error::Compile { log, .. }) => assert_eq!(log, "unfold.cu has no switch VECTR"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn an_unknown_padding_mode_does_not_compile() {
        let folder = tempfile::tempdir().unwrap();
        let Some(device) = device(folder.path()) else { return };
        for (mode, message) in [("7", "no padding mode"), ("REFLECTED", "REFLECTED")] {
            match device.kernel(&Spec::new("unfold.cu", "unfold").define("MODE", mode)) {
                Err(Error::Compile { log, .. }) => assert!(log.contains(message), "{log}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_struct_of_another_layout_does_not_compile() {
        let folder = tempfile::tempdir().unwrap();
        let Some(device) = device(folder.path()) else { return };
        let spec = |check| {
            let spec =
                Spec::new("unfold.cu", "unfold").define("VECTOR", 1).define("INDEX_BITS", 32);
            spec.element(DType::F32).layout(Layout::ChannelsFirst).checked_by(check)
        };
        device.kernel(&spec(UnfoldArgs::CHECK)).unwrap();
        let last = format!("line) == {}", size_of::<Divisor>());
        assert!(UnfoldArgs::CHECK.contains(&last), "{}", UnfoldArgs::CHECK);
        assert_eq!(UnfoldArgs::OPEN, [0, 8]);
        // Of nested structs, too.
        for (field, message) in [("groups", "UnfoldArgs is laid"), ("magic", "Divisor is laid")] {
            let wrong =
                UnfoldArgs::CHECK.replace(&format!("{field}) == "), &format!("{field}) == 1"));
            match device.kernel(&spec(wrong.leak())) {
                Err(Error::Compile { log, .. }) => assert!(log.contains(message), "{log}"),
                other => panic!("{other:?}"),
            }
        }
    }
}
