//! NVRTC as a library: which of the versions on this machine compiles for a driver, and its functions.
//!
//! cudarc would take the first that it finds. A driver does not load machine code of a newer major version of
//! CUDA than its own, and where several versions are installed that may be the first.

use std::ffi::{CStr, c_char, c_int, c_void};

use super::super::libraries::{at_least, library};

/// The oldest NVRTC that compiles the kernels: it is the first that knows `__grid_constant__`.
pub(super) const OLDEST: (u32, u32) = (11, 7);

pub(super) type Handle = *mut c_void;

macro_rules! functions {
    ($($name:ident($($argument:ty),*) -> $result:ty;)*) => {
        /// The functions that are called.
        #[allow(non_snake_case)]
        #[derive(Debug)]
        pub(super) struct Functions {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl Functions {
            #[cfg(not(feature = "dynamic-linking"))]
            fn of(library: &libloading::Library) -> Result<Self, libloading::Error> {
                // SAFETY: NVRTC's functions of these names have these types, in every version.
                unsafe { Ok(Functions { $($name: *library.get(stringify!($name))?,)* }) }
            }

            #[cfg(feature = "dynamic-linking")]
            fn linked() -> Self {
                mod linked {
                    use super::*;
                    unsafe extern "C" {
                        $(pub fn $name($(_: $argument),*) -> $result;)*
                    }
                }
                Functions { $($name: linked::$name,)* }
            }
        }
    };
}

functions! {
    nvrtcVersion(*mut c_int, *mut c_int) -> c_int;
    nvrtcGetNumSupportedArchs(*mut c_int) -> c_int;
    nvrtcGetSupportedArchs(*mut c_int) -> c_int;
    nvrtcCreateProgram(
        *mut Handle, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char
    ) -> c_int;
    nvrtcCompileProgram(Handle, c_int, *const *const c_char) -> c_int;
    nvrtcDestroyProgram(*mut Handle) -> c_int;
    nvrtcGetProgramLogSize(Handle, *mut usize) -> c_int;
    nvrtcGetProgramLog(Handle, *mut c_char) -> c_int;
    nvrtcGetCUBINSize(Handle, *mut usize) -> c_int;
    nvrtcGetCUBIN(Handle, *mut c_char) -> c_int;
    nvrtcGetPTXSize(Handle, *mut usize) -> c_int;
    nvrtcGetPTX(Handle, *mut c_char) -> c_int;
    nvrtcGetErrorString(c_int) -> *const c_char;
}

/// A version of NVRTC.
#[derive(Debug)]
pub(crate) struct Nvrtc {
    pub version: (u32, u32),
    /// The compute capabilities that it compiles for, in ascending order.
    pub supported: Vec<u32>,
    /// The library's file and its size, where they are known: what tells patches of one version apart, which
    /// NVRTC itself does not say.
    pub file: String,
    functions: Functions,
}

impl Nvrtc {
    fn new(functions: Functions) -> Result<Self, String> {
        let said = |status: c_int| check(&functions, status);
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both are integers to be written.
        said(unsafe { (functions.nvrtcVersion)(&mut major, &mut minor) })
            .map_err(|error| format!("NVRTC does not say its version: {error}"))?;
        let unsaid = |error| format!("NVRTC does not say what it compiles for: {error}");
        let mut count = 0;
        // SAFETY: `count` is an integer to be written.
        said(unsafe { (functions.nvrtcGetNumSupportedArchs)(&mut count) }).map_err(unsaid)?;
        let mut supported = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: there is room for `count` integers.
        let listed = unsafe { (functions.nvrtcGetSupportedArchs)(supported.as_mut_ptr()) };
        said(listed).map_err(unsaid)?;
        let mut supported: Vec<u32> = supported.into_iter().map(|of| of as u32).collect();
        supported.sort_unstable();
        let file = file_of(functions.nvrtcVersion as *const c_void);
        Ok(Nvrtc { version: (major as u32, minor as u32), supported, file, functions })
    }

    pub(super) fn functions(&self) -> &Functions {
        &self.functions
    }

    /// # Errors
    /// NVRTC's name for what went wrong.
    pub(super) fn check(&self, status: c_int) -> Result<(), String> {
        check(&self.functions, status)
    }
}

fn check(functions: &Functions, status: c_int) -> Result<(), String> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: any number is allowed.
    let name = unsafe { (functions.nvrtcGetErrorString)(status) };
    if name.is_null() {
        return Err(format!("error {status}"));
    }
    // SAFETY: these are strings of the library's, which stays loaded.
    Err(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
}

/// The NVRTC that compiles for a driver of this version of CUDA; without, for images that some other
/// machine's driver will load.
///
/// # Errors
/// Why there is none: nothing is found, or each that is found is too old or too new.
pub(crate) fn for_driver(driver: Option<(u32, u32)>) -> Result<&'static Nvrtc, String> {
    let mut reasons: Vec<String> = Vec::new();
    for found in installed() {
        let reason = match found {
            Ok(nvrtc) => match suits(nvrtc.version, driver) {
                Ok(()) => return Ok(nvrtc),
                Err(reason) => reason,
            },
            Err(reason) => reason.clone(),
        };
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    match reasons.is_empty() {
        true => Err(format!("NVRTC ({}) is not found", library("nvrtc", "nvrtc64"))),
        false => Err(reasons.join("; ")),
    }
}

/// Whether this version compiles the kernels, into what a driver of that version loads.
pub(super) fn suits(version: (u32, u32), driver: Option<(u32, u32)>) -> Result<(), String> {
    let (major, minor) = version;
    at_least("NVRTC is", version, OLDEST)?;
    match driver {
        Some((newest, point)) if major > newest => Err(format!(
            "NVRTC is {major}.{minor}, but the driver, for CUDA {newest}.{point}, loads what NVRTC \
             {newest} and older compile"
        )),
        _ => Ok(()),
    }
}

/// Those on this machine, each loaded when the iterator comes to it and for good.
#[cfg(not(feature = "dynamic-linking"))]
fn installed() -> impl Iterator<Item = &'static Result<Nvrtc, String>> {
    use std::sync::OnceLock;

    // That of the toolkit whose folder is on the linker's path, then the newest. Version 11.2 and later
    // ones of CUDA 11 have one name.
    const NAMES: [&str; 4] = if cfg!(windows) {
        ["nvrtc.dll", "nvrtc64_130_0.dll", "nvrtc64_120_0.dll", "nvrtc64_112_0.dll"]
    } else {
        ["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2"]
    };
    static FOUND: [OnceLock<Option<Result<Nvrtc, String>>>; 4] = [const { OnceLock::new() }; 4];
    let open = |name: &str| {
        // SAFETY: loading the library runs its initialisers, which take no part in this process's memory.
        let library = unsafe { libloading::Library::new(name) }.ok()?;
        let functions = Functions::of(&library);
        // The functions are called as long as the process lives.
        std::mem::forget(library);
        Some(functions.map_err(|error| format!("{name}: {error}")).and_then(Nvrtc::new))
    };
    NAMES
        .iter()
        .zip(&FOUND)
        .filter_map(move |(name, slot)| slot.get_or_init(|| open(name)).as_ref())
}

/// The one that the program is linked to.
#[cfg(feature = "dynamic-linking")]
fn installed() -> impl Iterator<Item = &'static Result<Nvrtc, String>> {
    static LINKED: std::sync::OnceLock<Result<Nvrtc, String>> = std::sync::OnceLock::new();
    std::iter::once(LINKED.get_or_init(|| Nvrtc::new(Functions::linked())))
}

/// The file that has this function, and its size; empty where it is not known.
#[cfg(unix)]
fn file_of(function: *const c_void) -> String {
    let mut found = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: the address is only looked up, and `found` is to be written.
    let known = unsafe { libc::dladdr(function, found.as_mut_ptr()) } != 0;
    // SAFETY: zeros are a value of it, which dladdr has replaced if it knows the address.
    let name = unsafe { found.assume_init() }.dli_fname;
    if !known || name.is_null() {
        return String::new();
    }
    // SAFETY: the name is a string that lives as long as the library is loaded.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
    // Links lead to the file with the whole version in its name.
    let Ok(path) = std::fs::canonicalize(name) else { return String::new() };
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    std::fs::metadata(&path)
        .map(|facts| format!("{name}, {} bytes", facts.len()))
        .unwrap_or_default()
}

#[cfg(not(unix))]
fn file_of(_: *const c_void) -> String {
    String::new()
}
