//! Finds the host's C++ compiler and makes shared objects of kernels.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use super::super::driver::{CompileFailure, Unit};
use super::super::kernel::sources::{SIMULATOR, SIMULATOR_HASH, SOURCES};

/// Kernels see no name of the system, so warnings are about house style, not portability. Products and
/// sums are rounded one by one, as on the device, where `fused` says otherwise.
const FLAGS: &[&str] = &[
    "-x",
    "c++",
    "-std=c++17",
    "-O1",
    "-g0",
    "-w",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-DCONVMAT_SIMULATOR",
];
/// Used where the compiler knows them. Names must stay apart between objects; variables without a value
/// get one that stands out.
const OPTIONAL_FLAGS: &[&str] = &["-fno-gnu-unique", "-ftrivial-auto-var-init=pattern"];
/// Have a call made for every access: what watches races in other programs, without its library. (That of
/// addresses leaves out a write behind a read of the same.) A pack is moved by one access, not taken to pieces. The
/// parameters are GCC's; Clang has others.
const ACCESSES: &[&str] = &[
    "-fsanitize=thread",
    "--param=tsan-distinguish-volatile=0",
    "--param=tsan-instrument-func-entry-exit=0",
    "-fno-tree-sra",
];

/// What kernels are watched for beyond what the simulator always sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watch {
    Nothing,
    /// Undefined behaviour traps.
    Undefined,
    /// Every access is checked: `kernels/simulator/sanitizer.h`.
    Accesses,
    /// Every access is written down.
    Profile,
}

impl Watch {
    /// What the environment asks for.
    pub(super) fn of_environment() -> Result<Watch, String> {
        const VARIABLE: &str = "CONVMAT_SIMULATOR_SANITIZE";
        Watch::named(&std::env::var(VARIABLE).unwrap_or_default())
            .map_err(|reason| format!("{VARIABLE} {reason}"))
    }

    pub(super) fn named(name: &str) -> Result<Watch, String> {
        match name {
            "" => Ok(Watch::Nothing),
            "undefined" => Ok(Watch::Undefined),
            "accesses" => Ok(Watch::Accesses),
            other => Err(format!("is {other:?}: expected undefined or accesses")),
        }
    }

    /// The flags that it takes, and what is asked for by them.
    fn flags(self) -> (Vec<&'static str>, &'static str) {
        let with = |define| [ACCESSES, &[define]].concat();
        match self {
            Watch::Nothing => (Vec::new(), ""),
            Watch::Undefined => {
                let flags = vec!["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"];
                (flags, "traps for undefined behaviour")
            }
            Watch::Accesses => (with("-DCONVMAT_SIMULATOR_SANITIZER"), "the sanitizer"),
            Watch::Profile => (with("-DCONVMAT_SIMULATOR_PROFILE"), "profiles"),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Compiler {
    /// The program and arguments of its own.
    command: Vec<String>,
    version: String,
    flags: Vec<Cow<'static, str>>,
}

impl Compiler {
    /// The compiler that the environment names, or the first one found.
    pub(super) fn find(watch: Watch, capability: u32) -> Result<Compiler, String> {
        let named = std::env::var("CXX").ok().filter(|name| !name.trim().is_empty());
        let candidates = match &named {
            Some(named) => vec![named.as_str()],
            None => vec!["c++", "g++", "clang++"],
        };
        let mut reasons = Vec::new();
        for candidate in candidates {
            match Compiler::new(candidate, watch, capability) {
                Ok(compiler) => return Ok(compiler),
                Err(reason) => reasons.push(reason),
            }
        }
        Err(format!("no C++ compiler works: {}", reasons.join("; ")))
    }

    pub(super) fn new(command: &str, watch: Watch, capability: u32) -> Result<Compiler, String> {
        let command: Vec<String> = command.split_whitespace().map(String::from).collect();
        let flags = FLAGS.iter().copied().map(Cow::from).collect();
        let mut compiler = Compiler { command, version: String::new(), flags };
        compiler.flags.push(format!("-D__CUDA_ARCH__={capability}0").into());
        let name = compiler.command.join(" ");
        let version = compiler.run(&["--version"], None).map_err(|e| format!("{name}: {e}"))?;
        compiler.version = version.lines().next().unwrap_or(&name).trim().to_string();
        // A rounding once is slow without the instruction, which compilers do not use unless told to.
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("fma") {
            compiler.flags.push("-mfma".into());
        }
        for flag in OPTIONAL_FLAGS {
            let trial = ["-Werror", "-fsyntax-only", "-x", "c++", flag, "/dev/null"];
            if compiler.run(&trial, None).is_ok() {
                compiler.flags.push((*flag).into());
            }
        }
        let (flags, words) = watch.flags();
        if !flags.is_empty() {
            let trial = [&flags, &["-fsyntax-only", "-x", "c++", "/dev/null"][..]].concat();
            let refused = |log| format!("{name} cannot do {words}: {log}");
            compiler.run(&trial, None).map_err(refused)?;
            compiler.flags.extend(flags.into_iter().map(Cow::from));
        }
        Ok(compiler)
    }

    pub(super) fn version(&self) -> &str {
        &self.version
    }

    pub(super) fn toolchain(&self) -> String {
        let command = self.command.join(" ");
        let flags = self.flags.join(" ");
        format!("{command} ({}) {flags}, simulator {SIMULATOR_HASH:016x}", self.version)
    }

    /// The bytes of a shared object.
    pub(super) fn compile(&self, unit: &Unit) -> Result<Vec<u8>, CompileFailure> {
        let failed = |error: io::Error| CompileFailure { log: format!("{}: {error}", unit.file) };
        let folder = tempfile::Builder::new().prefix("convmat-").tempdir().map_err(failed)?;
        let kernels = SOURCES.iter().map(|source| (source.name, source.text));
        for (name, text) in kernels.chain(SIMULATOR.iter().copied()) {
            fs::write(folder.path().join(name), text).map_err(failed)?;
        }
        // The unit includes its kernel file, so it has another name.
        const UNIT: &str = "unit.cpp";
        const COMPILED: &str = "unit.o";
        const OBJECT: &str = "object.so";
        fs::write(folder.path().join(UNIT), &unit.text).map_err(failed)?;
        let mut arguments: Vec<&str> = self.flags.iter().map(|flag| &**flag).collect();
        arguments.extend(["-c", UNIT, "-o", COMPILED]);
        // Linked apart: the flags that have calls made would have libraries linked that define them.
        for arguments in [&arguments[..], &["-shared", COMPILED, "-o", OBJECT, "-lm"]] {
            self.run(arguments, Some(folder.path())).map_err(|log| CompileFailure { log })?;
        }
        fs::read(folder.path().join(OBJECT)).map_err(failed)
    }

    /// What it prints, or what it complains about.
    fn run(
        &self,
        arguments: &[impl AsRef<OsStr>],
        folder: Option<&Path>,
    ) -> Result<String, String> {
        let (program, own) = self.command.split_first().ok_or("no program is named")?;
        let mut command = Command::new(program);
        command.args(own).args(arguments).stdin(Stdio::null()).env("LC_ALL", "C");
        // A sanitizer's runtime loaded into this program is not meant for the compiler.
        command.env_remove("LD_PRELOAD");
        if let Some(folder) = folder {
            command.current_dir(folder);
        }
        let output = command.output().map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(format!("{}\n{}", output.status, text(&output.stderr)))
        }
    }
}
