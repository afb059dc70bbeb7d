//! What of CUDA this machine has, or why not.
//!
//! Nothing is opened, and no library that is missing is called: see `libraries`.

use std::fmt;

use cudarc::driver::{DriverError, result, sys};

use super::libraries::{NO_DEVICE, cublas, dotted, driver, reason};
use super::nvrtc as compiler;
use crate::device::Probe;

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
    parts.push(part("cublas", cublas(driver().ok())));
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
    let nvrtc = compiler::for_driver(driver().ok())?;
    let (major, minor) = nvrtc.version;
    let range = match (nvrtc.supported.first(), nvrtc.supported.last()) {
        (Some(&first), Some(&last)) => {
            format!(" for compute capability {} to {}", dotted(first), dotted(last))
        }
        _ => String::new(),
    };
    Ok(format!("NVRTC {major}.{minor}{range}"))
}

#[cfg(test)]
mod tests {
    use super::super::libraries::{cublas_suits, split};
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
        match cublas(None) {
            Ok(version) => assert!(version.starts_with("cuBLAS 1"), "{version}"),
            Err(reason) => assert!(reason.contains("cuBLAS"), "{reason}"),
        }
    }

    #[test]
    fn cublas_is_not_newer_than_the_driver() {
        assert_eq!(cublas_suits((12, 4), Some((12, 0))).unwrap(), "cuBLAS 12.4");
        assert_eq!(cublas_suits((12, 4), Some((13, 1))).unwrap(), "cuBLAS 12.4");
        let reason = cublas_suits((13, 1), Some((12, 4))).unwrap_err();
        assert!(reason.contains("13.1") && reason.contains("12.4"), "{reason}");
        assert!(cublas_suits((11, 2), None).is_err());
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
