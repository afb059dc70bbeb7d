//! Compiling kernels with NVRTC, CUDA's compiler at run time. It needs neither a GPU nor a driver.

use std::ffi::{CStr, CString, c_char};
use std::fmt;
use std::sync::OnceLock;

use cudarc::nvrtc::result::{self, NvrtcError};
use cudarc::nvrtc::sys;

use super::libraries::{OLDEST, dotted, is_present, library};
use crate::device::cuda::driver::{CompileFailure, Resources, Unit};
use crate::device::cuda::kernel::sources::SOURCES;

/// NVRTC's version, or why it cannot be used.
pub(crate) fn present() -> Result<(u32, u32), String> {
    static VERSION: OnceLock<Result<(u32, u32), String>> = OnceLock::new();
    VERSION.get_or_init(look).clone()
}

fn look() -> Result<(u32, u32), String> {
    if !is_present!(nvrtc) {
        return Err(format!("NVRTC ({}) is not found", library("nvrtc", "nvrtc64")));
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is present, and both are integers to be written.
    unsafe { sys::nvrtcVersion(&mut major, &mut minor) }
        .result()
        .map_err(|error| format!("NVRTC does not say its version: {error}"))?;
    let version = (major as u32, minor as u32);
    if version < OLDEST {
        let (least, and) = OLDEST;
        return Err(format!("NVRTC is {major}.{minor}, but {least}.{and} or newer is needed"));
    }
    Ok(version)
}

/// The compute capabilities that NVRTC compiles for, in ascending order; none when it is absent.
pub(crate) fn supported() -> Vec<u32> {
    let ask = || {
        present().ok()?;
        let mut count = 0;
        // SAFETY: the library is present, and `count` is an integer to be written.
        unsafe { sys::nvrtcGetNumSupportedArchs(&mut count) }.result().ok()?;
        let mut found = vec![0; usize::try_from(count).ok()?];
        // SAFETY: there is room for `count` integers.
        unsafe { sys::nvrtcGetSupportedArchs(found.as_mut_ptr()) }.result().ok()?;
        let mut found: Vec<u32> = found.into_iter().map(|of| of as u32).collect();
        found.sort_unstable();
        Some(found)
    };
    ask().unwrap_or_default()
}

/// What to compile for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    capability: u32,
    /// Machine code, else PTX, which the driver finishes.
    cubin: bool,
    /// With the features that only this very architecture has (`sm_90a`).
    specific: bool,
}

impl Target {
    /// The best for a device of this compute capability: its machine code if NVRTC knows it, else PTX of
    /// the newest architecture below, which a driver that knows the device also knows.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn new(capability: u32) -> Result<Self, String> {
        let version = present()?;
        Self::among(capability, version, &supported())
    }

    fn among(capability: u32, version: (u32, u32), supported: &[u32]) -> Result<Self, String> {
        if supported.contains(&capability) {
            // NVRTC 11.8 compiles for sm_90, but not for sm_90a.
            let specific = matches!(capability, 90 | 100 | 120) && version.0 >= 12;
            return Ok(Target { capability, cubin: true, specific });
        }
        match supported.iter().copied().filter(|&below| below < capability).max() {
            Some(capability) => Ok(Target { capability, cubin: false, specific: false }),
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

/// As in the compiler's option: `sm_90a`, `compute_86`.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.cubin { "sm" } else { "compute" };
        write!(f, "{kind}_{}{}", self.capability, if self.specific { "a" } else { "" })
    }
}

/// Compiles to an image that the driver loads: a CUBIN, or PTX with a NUL at its end.
pub(crate) fn compile(unit: &Unit, target: Target) -> Result<Vec<u8>, CompileFailure> {
    compile_with_log(unit, target).map(|(image, _)| image)
}

/// Compiles, and gives the log as well: warnings, and what each kernel needs.
pub(crate) fn compile_with_log(
    unit: &Unit,
    target: Target,
) -> Result<(Vec<u8>, String), CompileFailure> {
    present().map_err(|log| CompileFailure { log })?;
    let program = Program::new(unit)?;
    let options = [
        format!("--gpu-architecture={target}"),
        "--std=c++17".into(),
        // Puts registers, shared memory and spills in the log.
        "--ptxas-options=-v".into(),
    ];
    // SAFETY: the program is not destroyed yet.
    let outcome = unsafe { result::compile_program(program.raw, &options) };
    let log = program.log();
    outcome.map_err(|error| failure(unit, error, &log))?;
    let image = program.image(target).map_err(|error| failure(unit, error, &log))?;
    Ok((image, log))
}

fn failure(unit: &Unit, error: NvrtcError, log: &str) -> CompileFailure {
    let log = if log.trim().is_empty() { format!("{}: {error}", unit.file) } else { log.into() };
    CompileFailure { log }
}

/// A program of NVRTC's, and the texts that it may refer to.
struct Program {
    raw: sys::nvrtcProgram,
    _texts: Vec<CString>,
}

impl Program {
    fn new(unit: &Unit) -> Result<Self, CompileFailure> {
        let terminated = |text: &str| {
            let log = || format!("{}: the source has a NUL character", unit.file);
            CString::new(text).map_err(|_| CompileFailure { log: log() })
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
        unsafe {
            sys::nvrtcCreateProgram(
                &mut raw,
                texts[0].as_ptr(),
                c"definitions".as_ptr(),
                headers.len() as i32,
                headers.as_ptr(),
                names.as_ptr(),
            )
        }
        .result()
        .map_err(|error| failure(unit, error, ""))?;
        Ok(Program { raw, _texts: texts })
    }

    fn log(&self) -> String {
        // SAFETY: the program is not destroyed yet.
        let log = unsafe { result::get_program_log(self.raw) }.unwrap_or_default();
        // In C it is a string, whose NUL is counted.
        let log: Vec<u8> = log.into_iter().map(|c| c as u8).collect();
        CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy().into_owned()
    }

    fn image(&self, target: Target) -> Result<Vec<u8>, NvrtcError> {
        if !target.cubin {
            // SAFETY: the program is compiled and not destroyed yet.
            let text = unsafe { result::get_ptx(self.raw)? };
            return Ok(text.into_iter().map(|c| c as u8).collect());
        }
        let mut bytes = 0;
        // SAFETY: the program is compiled and not destroyed yet, and `bytes` an integer to be written.
        unsafe { sys::nvrtcGetCUBINSize(self.raw, &mut bytes) }.result()?;
        let mut image = vec![0u8; bytes];
        // SAFETY: as above, and there is room for so many bytes.
        unsafe { sys::nvrtcGetCUBIN(self.raw, image.as_mut_ptr().cast()) }.result()?;
        Ok(image)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // An error would mean that there is nothing to destroy.
        // SAFETY: the program is used by no later call.
        let _ = unsafe { result::destroy_program(self.raw) };
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

#[cfg(test)]
mod tests {
    use super::super::tests::skipped;
    use super::*;

    const TARGETS: [u32; 7] = [75, 80, 86, 89, 90, 100, 120];

    /// Every name of the headers in `kernels/` that kernels use, once each.
    const EVERYTHING: &str = r#"
#include "platform.cuh"
#include "element.cuh"
#include "geometry.cuh"

struct Args {
    Axes axes;
    Divisor plane, line;
    u64 from, to, counter;
    i64 count;
};

KERNEL(everything, Args, 128) {
    SHARED(u16, tile, 1024);
    SHARED(f32, words, 128);
    const ELEMENT* from = (const ELEMENT*)args.from;
    ELEMENT* to = (ELEMENT*)args.to;
    Index at = (Index)blockIdx.x * 128 + (Index)threadIdx.x;
    int lane = threadIdx.x % 32;
    if (args.count < 0) trap("no work");

    copy_async_16(tile + 8 * threadIdx.x, (const u16*)args.from + 8 * at, at < args.count);
    copy_async_4(words + threadIdx.x, (const f32*)args.from + at, at < args.count);
    copy_async_commit();
    copy_async_wait<0>();
    barrier();

    u32 a[4], b[4];
    load_matrices(a, tile + 8 * lane);
    load_matrices_transposed(b, tile + 256 + 8 * lane);
    f32 d[4] = {0, 0, 0, 0};
    mma_f16(d, a, {b[0], b[1]});
#if __CUDA_ARCH__ >= 800
    mma_bf16(d, a, {b[2], b[3]});
    u32 rounded[4];
    UNROLL
    for (int i = 0; i < 4; ++i) rounded[i] = to_tf32(words[(lane + 32 * i) % 128]);
    mma_tf32(d, rounded, {rounded[0], rounded[1]});
#endif
    warp_barrier();

    Position p = position(at, args.plane, args.line);
    Index k = at % taps<2>(args.axes);
    Acc sum = 0;
    Index i = source<2>(args.axes, p.w, k), j = source<1>(args.axes, p.h, 0);
    if (i >= 0 && j >= 0) sum += to_acc(load(from + i + j * inputs<2>(args.axes)));
    if (p.d < outputs<0>(args.axes)) {
        for (Index r = 0; r < readers<2>(args.axes, p.w); ++r) {
            Index o = reader_output<2>(args.axes, padded_position<2>(args.axes, p.w, r), k);
            if (o >= 0) sum = fused(sum, to_acc(from[o]), to_acc(zero<ELEMENT>()));
        }
    }
    sum += shuffle(sum, 0) + shuffle_down(sum, 1) + shuffle_xor(sum, 2);
    sum = larger(smaller(sum, (Acc)1e6), (Acc)(d[0] + d[1] + d[2] + d[3]));
    u32 voters = warp_ballot(sum > 0);
    atomic_add((i32*)args.counter, (i32)voters);
    atomic_add((i64*)args.counter + 1, (i64)voters);

    const int WIDTH = 8 / sizeof(ELEMENT);
    Pack<ELEMENT, WIDTH> pack = load_pack<ELEMENT, WIDTH>(from + WIDTH * at);
    pack.at[0] = from_acc<ELEMENT>(sum);
    store_pack(to + WIDTH * at, pack);
    store_streaming(to + WIDTH * args.count + at, from_acc<ELEMENT>(f16_to_f32(f32_to_f16(d[0]))));
}
"#;

    fn unit(definitions: &[(&str, &str)], source: &str) -> Unit {
        let definitions =
            definitions.iter().map(|(name, value)| format!("#define {name} {value}\n"));
        Unit { file: "everything.cu", text: definitions.collect::<String>() + source }
    }

    #[test]
    fn headers_compile_for_every_architecture() {
        if let Err(reason) = present() {
            return skipped("nvrtc", &reason);
        }
        let known = [("TAPS", "1, 3, 3"), ("STRIDES", "1, 2, 2"), ("DILATIONS", "1, 1, 1")];
        let configurations = [
            ("f32", "ZEROS", "32"),
            ("f64", "REFLECT", "64"),
            ("f16", "REPLICATE", "32"),
            ("bf16", "CIRCULAR", "64"),
        ];
        for capability in TARGETS {
            let target = Target::new(capability).unwrap();
            for (index, (element, mode, bits)) in configurations.into_iter().enumerate() {
                let mut definitions =
                    vec![("ELEMENT", element), ("MODE", mode), ("INDEX_BITS", bits)];
                definitions.push(("LAYOUT", "CHANNELS_FIRST"));
                definitions.extend(known.iter().filter(|_| index % 2 == 0));
                let (image, log) = compile_with_log(&unit(&definitions, EVERYTHING), target)
                    .unwrap_or_else(|failure| panic!("{target} {definitions:?}: {}", failure.log));
                if !target.cubin {
                    println!("NVRTC has no machine code for {}", dotted(capability));
                    continue;
                }
                assert!(image.starts_with(b"\x7fELF") && is_whole(&image));
                assert!([0, 60, image.len() / 2].iter().all(|&end| !is_whole(&image[..end])));
                let needs = needs(&log);
                println!("{target} {element} {mode} {bits}: {needs:?}");
                let [(name, needs)] = &needs[..] else { panic!("{log}") };
                assert_eq!(name, "everything");
                assert!(needs.registers > 16, "{log}");
                assert_eq!(needs.shared_bytes, 2048 + 512, "{log}");
                // Division of 64-bit numbers may be a call, which spills.
                assert!(needs.local_bytes == 0 || bits == "64", "{log}");
                assert!(!log.contains("warning"), "{log}");
            }
        }
    }

    #[test]
    fn ptx_of_the_newest_architecture_below() {
        if let Err(reason) = present() {
            return skipped("nvrtc", &reason);
        }
        let source = "extern \"C\" __global__ void nothing() {}\n";
        let target = Target { capability: 80, cubin: false, specific: false };
        let image = compile(&unit(&[], source), target).unwrap();
        assert!(is_whole(&image) && !is_whole(&image[..image.len() / 2]));
        let text = String::from_utf8_lossy(&image);
        assert!(text.contains(".target sm_80") && text.contains("nothing"), "{text}");
    }

    #[test]
    fn the_log_names_file_and_line() {
        if let Err(reason) = present() {
            return skipped("nvrtc", &reason);
        }
        let target = Target::new(80).unwrap();
        let broken = unit(&[("A", "1")], "#include \"platform.cuh\"\n\nint b = undeclared;\n");
        let log = compile(&broken, target).unwrap_err().log;
        assert!(log.contains("(4): error") && log.contains("undeclared"), "{log}");
        // In a header, too, with the header's name.
        let broken = unit(&[("u8", "@")], "#include \"platform.cuh\"\n");
        let log = compile(&broken, target).unwrap_err().log;
        assert!(log.contains("platform.cuh(") && log.contains("error"), "{log}");
        let absent = unit(&[], "#include \"absent.cuh\"\n");
        let log = compile(&absent, target).unwrap_err().log;
        assert!(log.contains("absent.cuh"), "{log}");
        let log = compile(&unit(&[], "\0"), target).unwrap_err().log;
        assert!(log.contains("NUL"), "{log}");
    }

    #[test]
    fn many_threads_compile() {
        if let Err(reason) = present() {
            return skipped("nvrtc", &reason);
        }
        let target = Target::new(80).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    let source = format!("extern \"C\" __global__ void k{thread}() {{}}\n");
                    let (_, log) = compile_with_log(&unit(&[], &source), target).unwrap();
                    assert_eq!(needs(&log)[0].0, format!("k{thread}"));
                });
            }
        });
    }

    #[test]
    fn targets() {
        let known = [75, 80, 86, 90, 100, 120];
        let target = |capability| {
            Target::among(capability, (12, 8), &known).map(|target| target.to_string())
        };
        assert_eq!(target(75).unwrap(), "sm_75");
        assert_eq!(target(89).unwrap(), "compute_86");
        assert_eq!(target(90).unwrap(), "sm_90a");
        assert_eq!(target(100).unwrap(), "sm_100a");
        assert_eq!(target(103).unwrap(), "compute_100");
        assert_eq!(target(120).unwrap(), "sm_120a");
        let reason = target(70).unwrap_err();
        assert!(reason.contains("7.0") && reason.contains("7.5"), "{reason}");
        let hopper = Target::among(90, (11, 8), &known).unwrap();
        assert_eq!(hopper.to_string(), "sm_90");
        assert!(Target::among(90, (12, 0), &[]).is_err());
    }

    #[test]
    fn needs_are_read_from_the_log() {
        let log = "ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90a'
ptxas info    : Function properties for first
    16 bytes stack frame, 24 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 8192 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function 'second' for 'sm_90a'
ptxas info    : Function properties for second
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, 356 bytes cmem[0]
";
        let first = Resources { registers: 255, shared_bytes: 8192, local_bytes: 24 };
        let second = Resources { registers: 8, shared_bytes: 0, local_bytes: 0 };
        assert_eq!(needs(log), [("first".to_string(), first), ("second".to_string(), second)]);
    }
}
