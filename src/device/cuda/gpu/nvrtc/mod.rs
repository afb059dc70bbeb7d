//! Compiling kernels with NVRTC, CUDA's compiler at run time. It needs neither a GPU nor a driver.

use std::ffi::{CStr, CString, c_char, c_int};
use std::fmt;

mod library;
#[cfg(test)]
mod tests;

use super::libraries::dotted;
use crate::device::cuda::driver::{CompileFailure, Resources, Unit};
use crate::device::cuda::kernel::sources::SOURCES;
pub(super) use library::for_driver;
use library::{Handle, Nvrtc};

/// What is asked of the compiler beside the architecture.
const OPTIONS: [&str; 2] = [
    "--std=c++17",
    // Puts registers, shared memory and spills in the log.
    "--ptxas-options=-v",
];

/// An NVRTC, and what it compiles for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Toolchain {
    nvrtc: &'static Nvrtc,
    target: Target,
}

impl Toolchain {
    /// The best for a device of this compute capability, under a driver of this version of CUDA; without a
    /// driver, for whichever loads it elsewhere.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn new(capability: u32, driver: Option<(u32, u32)>) -> Result<Self, String> {
        let nvrtc = for_driver(driver)?;
        let target = Target::among(capability, nvrtc.version, driver, &nvrtc.supported)?;
        Ok(Toolchain { nvrtc, target })
    }

    /// What makes images of the same source differ: on its first line what people want to know of it.
    pub(crate) fn key(&self) -> String {
        format!("{self}\n{}\n{}", self.nvrtc.file, OPTIONS.join(" "))
    }

    pub(crate) fn target(&self) -> Target {
        self.target
    }

    /// Compiles to an image that the driver loads: a CUBIN, or PTX with a NUL at its end.
    pub(crate) fn compile(&self, unit: &Unit) -> Result<Vec<u8>, CompileFailure> {
        self.compile_with_log(unit).map(|(image, _)| image)
    }

    /// Compiles, and gives the log as well: warnings, and what each kernel needs.
    pub(crate) fn compile_with_log(
        &self,
        unit: &Unit,
    ) -> Result<(Vec<u8>, String), CompileFailure> {
        let program = Program::new(self.nvrtc, unit)?;
        let outcome = program.compile(self.target);
        let log = program.log();
        let failed = |error: String| {
            let silent = log.trim().is_empty();
            let log = if silent { format!("{}: {error}", unit.file) } else { log.clone() };
            CompileFailure { log }
        };
        outcome.map_err(failed)?;
        let image = program.image(self.target).map_err(failed)?;
        Ok((image, log))
    }
}

/// `NVRTC 12.8 for sm_90`.
impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.nvrtc.version;
        write!(f, "NVRTC {major}.{minor} for {}", self.target)
    }
}

/// What to compile for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    capability: u32,
    /// Machine code, else PTX, which the driver finishes.
    cubin: bool,
}

impl Target {
    /// The best for a device of this compute capability: its machine code if NVRTC knows it, else PTX of
    /// the newest architecture below, if the driver is new enough to read it; else that architecture's
    /// machine code, which devices of the same major capability run.
    ///
    /// No kernel uses what only one architecture has, so none is compiled for `sm_90a` and the like.
    ///
    /// # Errors
    /// Why there is none.
    fn among(
        capability: u32,
        version: (u32, u32),
        driver: Option<(u32, u32)>,
        supported: &[u32],
    ) -> Result<Self, String> {
        if supported.contains(&capability) {
            return Ok(Target { capability, cubin: true });
        }
        let below = supported.iter().copied().filter(|&below| below < capability).max();
        // Each version of CUDA has PTX of its own, which older drivers do not read.
        let readable = driver.is_none_or(|driver| version <= driver);
        match below {
            Some(below) if readable => Ok(Target { capability: below, cubin: false }),
            Some(below) if below / 10 == capability / 10 => {
                Ok(Target { capability: below, cubin: true })
            }
            Some(_) => {
                let (newest, point) = driver.unwrap_or_default();
                Err(format!(
                    "NVRTC {}.{} has no machine code for compute capability {}, and its PTX is newer than \
                     the driver, for CUDA {newest}.{point}, reads",
                    version.0,
                    version.1,
                    dotted(capability),
                ))
            }
            None => Err(format!(
                "NVRTC {}.{} does not compile for compute capability {} (the oldest it knows is {})",
                version.0,
                version.1,
                dotted(capability),
                supported.iter().copied().min().map_or("none".into(), dotted),
            )),
        }
    }
}

/// As in the compiler's option: `sm_90`, `compute_86`.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", if self.cubin { "sm" } else { "compute" }, self.capability)
    }
}

/// A program of NVRTC's, and the texts that it may refer to.
struct Program {
    nvrtc: &'static Nvrtc,
    raw: Handle,
    _texts: Vec<CString>,
}

impl Program {
    fn new(nvrtc: &'static Nvrtc, unit: &Unit) -> Result<Self, CompileFailure> {
        let failed = |error: String| CompileFailure { log: format!("{}: {error}", unit.file) };
        let terminated = |text: &str| {
            CString::new(text).map_err(|_| failed("the source has a NUL character".into()))
        };
        let mut texts = vec![terminated(&unit.text)?];
        for source in SOURCES {
            texts.extend([terminated(source.name)?, terminated(source.text)?]);
        }
        let pointers = |from: usize| -> Vec<*const c_char> {
            texts[from..].iter().step_by(2).map(|text| text.as_ptr()).collect()
        };
        let (names, headers) = (pointers(1), pointers(2));
        let mut raw = std::ptr::null_mut();
        // SAFETY: there are as many headers as names, all of them NUL-terminated and alive in `texts`.
        let made = unsafe {
            (nvrtc.functions().nvrtcCreateProgram)(
                &mut raw,
                texts[0].as_ptr(),
                c"definitions".as_ptr(),
                headers.len() as c_int,
                headers.as_ptr(),
                names.as_ptr(),
            )
        };
        nvrtc.check(made).map_err(failed)?;
        Ok(Program { nvrtc, raw, _texts: texts })
    }

    fn compile(&self, target: Target) -> Result<(), String> {
        let options = std::iter::once(format!("--gpu-architecture={target}"))
            .chain(OPTIONS.map(String::from))
            .map(|option| CString::new(option).map_err(|error| error.to_string()))
            .collect::<Result<Vec<CString>, String>>()?;
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the program is not destroyed yet, and the options are NUL-terminated.
        self.nvrtc.check(unsafe {
            let compile = self.nvrtc.functions().nvrtcCompileProgram;
            compile(self.raw, pointers.len() as c_int, pointers.as_ptr())
        })
    }

    fn log(&self) -> String {
        let functions = self.nvrtc.functions();
        let log = self.bytes(functions.nvrtcGetProgramLogSize, functions.nvrtcGetProgramLog);
        // In C it is a string, whose NUL is counted.
        let log = log.unwrap_or_default();
        CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy().into_owned()
    }

    fn image(&self, target: Target) -> Result<Vec<u8>, String> {
        let functions = self.nvrtc.functions();
        match target.cubin {
            true => self.bytes(functions.nvrtcGetCUBINSize, functions.nvrtcGetCUBIN),
            false => self.bytes(functions.nvrtcGetPTXSize, functions.nvrtcGetPTX),
        }
    }

    /// What two functions tell of the program: how many bytes, and these.
    fn bytes(
        &self,
        size: unsafe extern "C" fn(Handle, *mut usize) -> c_int,
        get: unsafe extern "C" fn(Handle, *mut c_char) -> c_int,
    ) -> Result<Vec<u8>, String> {
        let mut bytes = 0;
        // SAFETY: the program is compiled and not destroyed yet, and `bytes` an integer to be written.
        self.nvrtc.check(unsafe { size(self.raw, &mut bytes) })?;
        let mut found = vec![0u8; bytes];
        // SAFETY: as above, and there is room for so many bytes.
        self.nvrtc.check(unsafe { get(self.raw, found.as_mut_ptr().cast()) })?;
        Ok(found)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program is used by no later call. An error means that there is nothing to destroy.
        unsafe { (self.nvrtc.functions().nvrtcDestroyProgram)(&mut self.raw) };
    }
}

/// Whether an image ends where it says it does: the driver is not told its length. A CUBIN is an ELF file
/// of 64 bits, PTX a string with a NUL at its end.
pub(crate) fn is_whole(image: &[u8]) -> bool {
    if !image.starts_with(b"\x7fELF") {
        return image.last() == Some(&0);
    }
    let number = |at: usize, bytes: usize| -> Option<u64> {
        let little_endian = image.get(at..at + bytes)?.iter().rev();
        Some(little_endian.fold(0, |number, &byte| number << 8 | u64::from(byte)))
    };
    // The section and program headers come last in the file: where each begins, and size and number.
    let end = |start, size| {
        let headers = number(size, 2)?.checked_mul(number(size + 2, 2)?)?;
        number(start, 8)?.checked_add(headers)
    };
    let ends = [end(40, 58), end(32, 54)];
    ends.into_iter().all(|end| end.is_some_and(|end| end <= image.len() as u64))
}

/// What the log says that each kernel needs: its name, and registers, shared memory and local memory.
pub(crate) fn needs(log: &str) -> Vec<(String, Resources)> {
    let number = |line: &str, unit: &str| -> u32 {
        let before = line.find(unit).map_or("", |at| &line[..at]);
        let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or("");
        digits.parse().unwrap_or(0)
    };
    let mut found: Vec<(String, Resources)> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or(rest);
            found.push((name.into(), Resources::default()));
        } else if let Some((_, needs)) = found.last_mut() {
            if line.contains("bytes stack frame") {
                needs.local_bytes = number(line, " bytes stack frame")
                    .max(number(line, " bytes spill stores"))
                    .max(number(line, " bytes spill loads"));
            } else if line.contains("Used ") {
                needs.registers = number(line, " registers");
                needs.shared_bytes = number(line, " bytes smem");
            }
        }
    }
    found
}
