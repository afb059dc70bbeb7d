//! What of CUDA this machine has, or why not.
//!
//! The libraries are loaded when they are first called, and a call into a library that is not there
//! panics; so does formatting an error of a driver that is not there. Every way into them starts here, at
//! the question whether they are.

use std::fmt;

use cudarc::driver::{DriverError, result, sys};

use crate::device::Probe;

/// The oldest driver and the oldest NVRTC that have all functions called here: memory pools, and the list
/// of architectures with CUBINs for them.
pub(super) const OLDEST: (u32, u32) = (11, 2);

/// Whether the library of this module of cudarc can be loaded; when it is linked, it has been.
macro_rules! is_present {
    ($module:ident) => {{
        #[cfg(feature = "dynamic-linking")]
        let present = true;
        #[cfg(not(feature = "dynamic-linking"))]
        let present = {
            static PRESENT: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
            // SAFETY: loading the library runs its initialisers, which take no part in this process's
            // memory.
            *PRESENT.get_or_init(|| unsafe { cudarc::$module::sys::is_culib_present() })
        };
        present
    }};
}
pub(super) use is_present;

/// What is known of a device without opening it.
#[derive(Clone, Debug)]
pub(crate) struct DeviceFacts {
    pub ordinal: usize,
    pub name: String,
    /// Compute capability as 10·major + minor.
    pub capability: u32,
    pub multiprocessors: u32,
    /// Total memory, in bytes.
    pub memory: u64,
    /// The version of CUDA that the driver supports.
    pub driver: (u32, u32),
}

/// `NVIDIA H200, compute capability 9.0, 139.8 GiB, driver for CUDA 13.0`.
impl fmt::Display for DeviceFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = (self.capability / 10, self.capability % 10);
        let gibibytes = self.memory as f64 / (1u64 << 30) as f64;
        write!(f, "{}, compute capability {major}.{minor}, {gibibytes:.1} GiB, ", self.name)?;
        write!(f, "driver for CUDA {}.{}", self.driver.0, self.driver.1)
    }
}

/// The parts of `Device::probe` that have to do with CUDA: every device, or why there are none, and the
/// libraries.
pub(crate) fn parts() -> Vec<Probe> {
    let part = |name: &str, found| Probe { name: name.into(), found };
    let mut parts = match cuda() {
        Ok(devices) => devices
            .iter()
            .map(|device| part(&format!("cuda:{}", device.ordinal), Ok(device.to_string())))
            .collect(),
        Err(reason) => vec![part("cuda", Err(reason))],
    };
    parts.push(part("nvrtc", nvrtc()));
    parts.push(part("cublas", cublas()));
    parts
}

/// The devices that the driver finds, at least one, or why there are none.
pub(crate) fn cuda() -> Result<Vec<DeviceFacts>, String> {
    let driver = driver()?;
    let count = result::device::get_count().map_err(reason)?;
    if count < 1 {
        return Err(NO_DEVICE.into());
    }
    (0..count)
        .map(|ordinal| {
            let device = result::device::get(ordinal).map_err(reason)?;
            facts(device, ordinal as usize, driver)
                .map_err(|error| format!("cuda:{ordinal}: {}", reason(error)))
        })
        .collect()
}

fn facts(
    device: sys::CUdevice,
    ordinal: usize,
    driver: (u32, u32),
) -> Result<DeviceFacts, DriverError> {
    use sys::CUdevice_attribute as Attribute;
    // SAFETY: `device` is from the driver.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) };
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok(DeviceFacts {
        ordinal,
        name: result::device::get_name(device)?,
        capability: (10 * major + minor) as u32,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
        // SAFETY: `device` is from the driver.
        memory: unsafe { result::device::total_mem(device)? } as u64,
        driver,
    })
}

/// NVRTC's version and what it compiles for, or why it cannot be used.
pub(crate) fn nvrtc() -> Result<String, String> {
    let (major, minor) = super::nvrtc::present()?;
    let supported = super::nvrtc::supported();
    let range = match (supported.first(), supported.last()) {
        (Some(&first), Some(&last)) => {
            format!(" for compute capability {} to {}", dotted(first), dotted(last))
        }
        _ => String::new(),
    };
    Ok(format!("NVRTC {major}.{minor}{range}"))
}

/// cuBLAS's version, or why it cannot be used.
pub(crate) fn cublas() -> Result<String, String> {
    use cudarc::cublas::sys::{cublasGetProperty, libraryPropertyType as Property};
    if !is_present!(cublas) {
        return Err(format!("cuBLAS ({}) is not found", library("cublas", "cublas64")));
    }
    let mut version = [0; 2];
    for (part, value) in
        [Property::MAJOR_VERSION, Property::MINOR_VERSION].into_iter().zip(&mut version)
    {
        // SAFETY: the library is present, and `value` is an integer to be written.
        unsafe { cublasGetProperty(part, value) }
            .result()
            .map_err(|error| format!("cuBLAS does not say its version: {error}"))?;
    }
    Ok(format!("cuBLAS {}.{}", version[0], version[1]))
}

const NO_DEVICE: &str = "the CUDA driver finds no device";

/// Starts the driver: the version of CUDA that it supports, or why it cannot be used.
pub(super) fn driver() -> Result<(u32, u32), String> {
    if !is_present!(driver) {
        return Err(format!("the CUDA driver ({}) is not found", library("cuda", "nvcuda")));
    }
    match result::init() {
        Ok(()) => {}
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Err(NO_DEVICE.into()),
        Err(error) => return Err(format!("the CUDA driver does not start: {}", reason(error))),
    }
    let mut version = 0;
    // SAFETY: the library is present, and `version` is an integer to be written.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(reason)?;
    let version = split(version);
    if version < OLDEST {
        let ((major, minor), (least, and)) = (version, OLDEST);
        return Err(format!(
            "the driver is for CUDA {major}.{minor}, but {least}.{and} or newer is needed"
        ));
    }
    Ok(version)
}

/// 13020 is version 13.2.
fn split(version: i32) -> (u32, u32) {
    (version as u32 / 1000, version as u32 % 1000 / 10)
}

/// 90 is compute capability 9.0.
pub(super) fn dotted(capability: u32) -> String {
    format!("{}.{}", capability / 10, capability % 10)
}

/// The file name of a library, for messages.
pub(super) fn library(unix: &str, windows: &str) -> String {
    if cfg!(windows) { format!("{windows}*.dll") } else { format!("lib{unix}.so") }
}

/// The driver's words for an error, and its name.
pub(super) fn reason(error: DriverError) -> String {
    // The name comes from the bindings; the words are asked of the driver.
    let name = format!("{:?}", error.0);
    let words = is_present!(driver).then(|| error.error_string().ok()).flatten();
    match words {
        Some(words) => format!("{} ({name})", words.to_string_lossy()),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absence_is_a_reason_and_no_panic() {
        match cuda() {
            Ok(devices) => assert!(devices.iter().all(|device| device.capability >= 30)),
            Err(reason) => assert!(reason.contains("driver"), "{reason}"),
        }
        match nvrtc() {
            Ok(version) => assert!(version.starts_with("NVRTC 1"), "{version}"),
            Err(reason) => assert!(reason.contains("NVRTC"), "{reason}"),
        }
        match cublas() {
            Ok(version) => assert!(version.starts_with("cuBLAS 1"), "{version}"),
            Err(reason) => assert!(reason.contains("cuBLAS"), "{reason}"),
        }
    }

    #[test]
    fn errors_have_words_without_a_driver() {
        let said = reason(DriverError(sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS));
        assert!(said.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{said}");
    }

    #[test]
    fn versions_and_facts_are_readable() {
        assert_eq!(split(11020), (11, 2));
        assert_eq!(split(13000), (13, 0));
        let facts = DeviceFacts {
            ordinal: 0,
            name: "NVIDIA H200".into(),
            capability: 90,
            multiprocessors: 132,
            memory: 150_000_000_000,
            driver: (13, 0),
        };
        let expected = "NVIDIA H200, compute capability 9.0, 139.7 GiB, driver for CUDA 13.0";
        assert_eq!(facts.to_string(), expected);
    }
}
