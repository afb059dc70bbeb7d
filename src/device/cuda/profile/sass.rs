//! What the compiler made of a kernel: counts of machine instructions (SASS), as `nvdisasm` of the CUDA toolkit
//! lists them. It is by no means required: `CONVMAT_NVDISASM` names it, else it is looked for in `PATH`.
//!
//! A loop is what lies between a branch backwards and where that leads, unless a thread ends on the way: then it
//! is code that was moved out of the way and comes back. The main loop is, of the innermost loops with products
//! by tensor cores, that with the most of them; where no loop has any, the same of fused products, and where
//! there are none either, of accesses to global memory.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

/// Accesses of a thread to global memory, by the bits of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SassWidths {
    /// As many as there are of each of [`SassWidths::BITS`].
    counts: [u32; Self::BITS.len()],
}

impl SassWidths {
    /// The widths that there are.
    pub const BITS: [u32; 6] = [8, 16, 32, 64, 128, 256];

    /// How many there are of so many bits.
    pub fn of(&self, bits: u32) -> u32 {
        self.each().find(|&(width, _)| width == bits).map_or(0, |(_, count)| count)
    }

    /// Widths in bits, ascending, and how many there are of each, where there are some.
    pub fn each(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        Self::BITS.into_iter().zip(self.counts).filter(|&(_, count)| count > 0)
    }

    /// All of them.
    pub fn total(&self) -> u32 {
        self.counts.iter().sum()
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> u32 {
        self.each().map(|(bits, count)| bits / 8 * count).sum()
    }

    /// Of an instruction with these parts, `LDG.E.128` for one; 32 bits unless it says otherwise.
    fn add(&mut self, parts: &[&str]) {
        let bits = |part: &&str| match *part {
            "U8" | "S8" => Some(8),
            "U16" | "S16" => Some(16),
            number => number.parse().ok(),
        };
        let bits = parts.iter().skip(1).filter_map(bits).find(|bits| Self::BITS.contains(bits));
        let bits = bits.unwrap_or(32);
        if let Some(at) = Self::BITS.iter().position(|&width| width == bits) {
            self.counts[at] += 1;
        }
    }
}

/// `4 of 128 bits and 1 of 32 bits`.
impl fmt::Display for SassWidths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each: Vec<String> =
            self.each().map(|(bits, count)| format!("{count} of {bits} bits")).collect();
        f.write_str(&each.join(" and "))
    }
}

/// Instructions of some stretch of a kernel, each counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SassCounts {
    /// All of them, but for what fills up the end of a kernel.
    pub instructions: u32,
    /// Products by tensor cores: `HMMA` and the like.
    pub mma: u32,
    /// Fused products of f32: `FFMA`.
    pub ffma: u32,
    /// Fused products of f64: `DFMA`.
    pub dfma: u32,
    /// Loads from global memory: `LDG`, or `LD` where the compiler does not know that it is global.
    pub loads: SassWidths,
    /// Stores to global memory: `STG` or `ST`.
    pub stores: SassWidths,
    /// Asynchronous copies from global to shared memory: `LDGSTS`.
    pub copies: SassWidths,
    /// Loads from shared memory: `LDS`.
    pub shared_loads: u32,
    /// Loads of matrices from shared memory: `LDSM`.
    pub matrix_loads: u32,
    /// Stores to shared memory: `STS`.
    pub shared_stores: u32,
}

/// Numbers that counts are written as.
const NUMBERS: usize = 7 + 3 * SassWidths::BITS.len();

impl SassCounts {
    /// Instructions for each of what the stretch is for, and what that is: a product by tensor cores (`mma`), else
    /// a fused product of a thread (`fma`), else a byte that a thread loads or stores (`byte`). `None` where there
    /// is nothing of it.
    pub fn each_takes(&self) -> Option<(f64, &'static str)> {
        let moved = self.loads.bytes() + self.stores.bytes() + self.copies.bytes();
        let kinds = [(self.mma, "mma"), (self.ffma + self.dfma, "fma"), (moved, "byte")];
        let (count, of) = kinds.into_iter().find(|&(count, _)| count > 0)?;
        Some((f64::from(self.instructions) / f64::from(count), of))
    }

    fn add(&mut self, opcode: &str) {
        let parts: Vec<&str> = opcode.split('.').collect();
        self.instructions += 1;
        match parts[0] {
            "HMMA" | "IMMA" | "DMMA" | "QMMA" | "OMMA" | "HGMMA" => self.mma += 1,
            "FFMA" => self.ffma += 1,
            // Of two neighbours at once.
            "FFMA2" => self.ffma += 2,
            "DFMA" => self.dfma += 1,
            "LDG" | "LD" => self.loads.add(&parts),
            "STG" | "ST" => self.stores.add(&parts),
            "LDGSTS" => self.copies.add(&parts),
            "LDS" => self.shared_loads += 1,
            "LDSM" => self.matrix_loads += 1,
            "STS" => self.shared_stores += 1,
            _ => {}
        }
    }

    fn numbers(&self) -> Vec<u32> {
        let SassCounts { instructions, mma, ffma, dfma, loads, stores, copies, .. } = *self;
        let mut numbers = vec![instructions, mma, ffma, dfma];
        numbers.extend([self.shared_loads, self.matrix_loads, self.shared_stores]);
        numbers.extend([loads, stores, copies].iter().flat_map(|widths| widths.counts));
        numbers
    }

    fn from_numbers(numbers: &[u32]) -> Option<Self> {
        let (&[instructions, mma, ffma, dfma, shared_loads, matrix_loads, shared_stores], widths) =
            numbers.split_first_chunk()?;
        let widths = |at: usize| {
            let counts = widths.chunks(SassWidths::BITS.len()).nth(at)?.try_into().ok()?;
            Some(SassWidths { counts })
        };
        let (loads, stores, copies) = (widths(0)?, widths(1)?, widths(2)?);
        Some(SassCounts {
            instructions,
            mma,
            ffma,
            dfma,
            loads,
            stores,
            copies,
            shared_loads,
            matrix_loads,
            shared_stores,
        })
    }
}

/// `275 instructions, 8.6 a mma: 32 mma, 12 ldmatrix, copies 8 of 128 bits`.
impl fmt::Display for SassCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} instructions", self.instructions)?;
        if let Some((instructions, of)) = self.each_takes() {
            write!(f, ", {instructions:.1} a {of}")?;
        }
        let counts = [
            (self.mma, "mma"),
            (self.ffma, "ffma"),
            (self.dfma, "dfma"),
            (self.matrix_loads, "ldmatrix"),
            (self.shared_loads, "shared loads"),
            (self.shared_stores, "shared stores"),
        ];
        let counts = counts.iter().filter(|(count, _)| *count > 0);
        let mut parts: Vec<String> = counts.map(|(count, of)| format!("{count} {of}")).collect();
        for (widths, of) in
            [(self.loads, "loads"), (self.stores, "stores"), (self.copies, "copies")]
        {
            if widths.total() > 0 {
                parts.push(format!("{of} {widths}"));
            }
        }
        if parts.is_empty() { Ok(()) } else { write!(f, ": {}", parts.join(", ")) }
    }
}

/// A kernel's machine instructions, counted. What they do is not: a loop's are those of one turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sass {
    /// Of the whole kernel, with functions of its own.
    pub whole: SassCounts,
    /// Of a turn of its main loop, whichever way a turn takes: of the innermost loops with products by tensor
    /// cores (else with fused products, else with accesses to global memory) that with the most.
    pub main_loop: Option<SassCounts>,
}

impl Sass {
    /// A line of numbers, which [`Sass::read`] reads.
    pub(in crate::device::cuda) fn line(&self) -> String {
        let counts = [Some(self.whole), self.main_loop];
        let numbers = counts.iter().flatten().flat_map(SassCounts::numbers);
        numbers.map(|number| number.to_string()).collect::<Vec<_>>().join(" ")
    }

    pub(in crate::device::cuda) fn read(line: &str) -> Option<Self> {
        let numbers = line.split(' ').map(|number| number.parse().ok());
        let numbers = numbers.collect::<Option<Vec<u32>>>()?;
        let (whole, rest) = numbers.split_at_checked(NUMBERS)?;
        let whole = SassCounts::from_numbers(whole)?;
        Some(Sass { whole, main_loop: SassCounts::from_numbers(rest) })
    }
}

/// Each kernel of a listing by `nvdisasm -c`, by its name.
pub(super) fn kernels(listing: &str) -> Vec<(String, Sass)> {
    let mut found: Vec<(String, Code)> = Vec::new();
    for line in listing.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix(".section\t") {
            // Another kind of section ends the code before it.
            let name = section.strip_prefix(".text.");
            let name = name.map(|rest| rest.split(',').next().unwrap_or(rest));
            found.push((name.unwrap_or_default().into(), Code::default()));
        } else if let Some((_, code)) = found.last_mut() {
            code.read(line);
        }
    }
    let kernels = found.into_iter().filter(|(name, _)| !name.is_empty());
    kernels.map(|(name, code)| (name, code.counted())).collect()
}

/// Instructions in their order.
#[derive(Default)]
struct Code<'a> {
    instructions: Vec<Instruction<'a>>,
    /// By label, the instruction behind it.
    labels: HashMap<&'a str, usize>,
}

struct Instruction<'a> {
    opcode: &'a str,
    /// Which threads execute it, `@!P0` for one; empty where all do.
    guard: &'a str,
    /// Where it branches to.
    target: Option<&'a str>,
}

impl<'a> Code<'a> {
    fn read(&mut self, line: &'a str) {
        if let Some(label) = line.strip_suffix(':') {
            self.labels.insert(label, self.instructions.len());
            return;
        }
        let Some((_, text)) = line.strip_prefix("/*").and_then(|rest| rest.split_once("*/")) else {
            return;
        };
        let text = text.trim_start();
        let (guard, text) = match text.starts_with('@') {
            true => text.split_once(' ').unwrap_or((text, "")),
            false => ("", text),
        };
        let text = text.trim_start();
        let opcode = text.split([' ', ';']).next().unwrap_or_default();
        // Numbers of other sections have comments of the same form.
        if !opcode.starts_with(|first: char| first.is_ascii_uppercase()) {
            return;
        }
        let target = text.split_once("`(").and_then(|(_, rest)| rest.split_once(')'));
        let target = target.filter(|_| opcode.starts_with("BRA")).map(|(label, _)| label);
        self.instructions.push(Instruction { opcode, guard, target });
    }

    /// From where to where the branch goes, backwards.
    fn loop_of(&self, branch: usize) -> Option<Range<usize>> {
        let start = *self.labels.get(self.instructions[branch].target?)?;
        let ends = |instruction: &Instruction| {
            let kind = instruction.opcode.split('.').next();
            instruction.guard.is_empty() && matches!(kind, Some("EXIT" | "RET"))
        };
        let range = start..branch + 1;
        let is_loop = start < branch && !self.instructions[range.clone()].iter().any(ends);
        is_loop.then_some(range)
    }

    fn counts(&self, range: Range<usize>) -> SassCounts {
        let mut counts = SassCounts::default();
        for instruction in &self.instructions[range] {
            // Some are there for the time they take, and do nothing.
            match instruction.guard {
                "@!PT" | "@!UPT" => counts.instructions += 1,
                _ => counts.add(instruction.opcode),
            }
        }
        counts
    }

    fn counted(mut self) -> Sass {
        // Behind the last instruction: a branch to itself, and nothing again and again.
        while self.instructions.last().is_some_and(|last| last.opcode == "NOP") {
            self.instructions.pop();
        }
        if let Some(Instruction { target: Some(target), .. }) = self.instructions.last()
            && self.labels.get(target) == Some(&(self.instructions.len() - 1))
        {
            self.instructions.pop();
        }
        let all = 0..self.instructions.len();
        // Several branches to the same place are one loop, to the last of them.
        let mut loops: HashMap<usize, Range<usize>> = HashMap::new();
        for range in all.clone().filter_map(|branch| self.loop_of(branch)) {
            loops.insert(range.start, range);
        }
        let loops: Vec<(Range<usize>, SassCounts)> =
            loops.into_values().map(|range| (range.clone(), self.counts(range))).collect();
        let kinds: [fn(&SassCounts) -> u32; 3] = [
            |counts| counts.mma,
            |counts| counts.ffma + counts.dfma,
            |counts| counts.loads.total() + counts.stores.total() + counts.copies.total(),
        ];
        let main_loop = kinds.iter().find_map(|kind| {
            let has = || loops.iter().filter(|(_, counts)| kind(counts) > 0);
            let is_inside = |inner: &Range<usize>, outer: &Range<usize>| {
                inner != outer && outer.start <= inner.start && inner.end <= outer.end
            };
            has()
                .filter(|(outer, _)| !has().any(|(inner, _)| is_inside(inner, outer)))
                .max_by_key(|(range, counts)| (kind(counts), range.start))
                .map(|&(_, counts)| counts)
        });
        Sass { whole: self.counts(all), main_loop }
    }
}

#[cfg(feature = "cuda")]
pub(in crate::device::cuda) use program::Disassembler;

#[cfg(feature = "cuda")]
mod program {
    use std::process::{Command, Stdio};
    use std::sync::LazyLock;

    use super::{Sass, kernels};

    /// An `nvdisasm` that works.
    #[derive(Debug)]
    pub struct Disassembler {
        command: String,
        /// The line that says its version.
        pub version: String,
    }

    impl Disassembler {
        /// The one of this process, or why there is none.
        pub fn find() -> Result<&'static Disassembler, &'static str> {
            static FOUND: LazyLock<Result<Disassembler, String>> = LazyLock::new(|| {
                let named = std::env::var("CONVMAT_NVDISASM").ok().filter(|name| !name.is_empty());
                let found = Disassembler::new(named.as_deref().unwrap_or("nvdisasm"));
                if let (Some(_), Err(reason)) = (named, &found) {
                    log::warn!("CONVMAT_NVDISASM: {reason}");
                }
                found
            });
            FOUND.as_ref().map_err(String::as_str)
        }

        pub(super) fn new(command: &str) -> Result<Self, String> {
            let mut disassembler = Disassembler { command: command.into(), version: String::new() };
            let text = disassembler.run(&["--version"])?;
            let version = text.lines().find(|line| line.contains("release"));
            disassembler.version = version
                .ok_or_else(|| format!("{command}: no version in {text:?}"))?
                .trim()
                .to_string();
            Ok(disassembler)
        }

        /// The kernels of a CUBIN, by their names.
        pub fn kernels(&self, cubin: &[u8]) -> Result<Vec<(String, Sass)>, String> {
            let file = tempfile::Builder::new().prefix("convmat-").suffix(".cubin").tempfile();
            let file = file.map_err(|error| format!("no temporary file: {error}"))?;
            std::fs::write(file.path(), cubin).map_err(|error| error.to_string())?;
            let path = file.path().to_str().ok_or("the temporary file's name is not UTF-8")?;
            self.run(&["-c", path]).map(|listing| kernels(&listing))
        }

        fn run(&self, arguments: &[&str]) -> Result<String, String> {
            let failed = |reason: String| format!("{}: {reason}", self.command);
            let output = Command::new(&self.command).args(arguments).stdin(Stdio::null()).output();
            let output = output.map_err(|error| failed(error.to_string()))?;
            if output.status.success() {
                return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
            }
            let log = String::from_utf8_lossy(&output.stderr);
            Err(failed(format!("{}: {}", output.status, log.trim())))
        }
    }
}

#[cfg(test)]
mod tests;
