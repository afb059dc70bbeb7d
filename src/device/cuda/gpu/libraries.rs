//! The libraries of CUDA: whether each is there, and how old.
//!
//! They are loaded when they are first called, and a call into a library that is not there panics; so does
//! formatting an error of a driver that is not there. Every way into them starts here, at the question
//! whether they are.

use cudarc::driver::{DriverError, result, sys};

/// The oldest driver that has all functions called here, memory pools among them.
const OLDEST_DRIVER: (u32, u32) = (11, 2);

/// The oldest cuBLAS that has all functions called here: that of CUDA 11.4, cudarc's oldest.
const OLDEST_CUBLAS: (u32, u32) = (11, 5);

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

/// cuBLAS's version, or why it cannot be used under a driver of this version of CUDA.
pub(super) fn cublas(driver: Option<(u32, u32)>) -> Result<String, String> {
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
    cublas_suits((version[0] as u32, version[1] as u32), driver)
}

/// Whether this version of cuBLAS may be used: its kernels are machine code, which a driver of an older major
/// version does not load.
pub(super) fn cublas_suits(
    version: (u32, u32),
    driver: Option<(u32, u32)>,
) -> Result<String, String> {
    let (major, minor) = version;
    at_least("cuBLAS is", version, OLDEST_CUBLAS)?;
    match driver {
        Some((newest, point)) if major > newest => Err(format!(
            "cuBLAS is {major}.{minor}, which needs a newer driver than the present one, for CUDA \
             {newest}.{point}"
        )),
        _ => Ok(format!("cuBLAS {major}.{minor}")),
    }
}

pub(super) const NO_DEVICE: &str = "the CUDA driver finds no device";

/// Starts the driver: the version of CUDA that it supports, or why it cannot be used.
pub(in crate::device::cuda) fn driver() -> Result<(u32, u32), String> {
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
    at_least("the driver is for CUDA", version, OLDEST_DRIVER)?;
    Ok(version)
}

/// Fails for a version older than the oldest that is supported.
pub(super) fn at_least(what: &str, version: (u32, u32), oldest: (u32, u32)) -> Result<(), String> {
    let ((major, minor), (least, and)) = (version, oldest);
    match version < oldest {
        true => Err(format!("{what} {major}.{minor}, but {least}.{and} or newer is needed")),
        false => Ok(()),
    }
}

/// 13020 is version 13.2.
pub(super) fn split(version: i32) -> (u32, u32) {
    (version as u32 / 1000, version as u32 % 1000 / 10)
}

/// 90 is compute capability 9.0.
pub(in crate::device) fn dotted(capability: u32) -> String {
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
