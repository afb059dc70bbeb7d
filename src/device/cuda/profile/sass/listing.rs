//! Listings by `nvdisasm`, read and counted.
//!
//! A loop is what lies between a branch backwards and where that leads, unless a thread ends on the way: then it
//! is code that was moved out of the way and comes back. The main loop is, of the innermost loops with products
//! by tensor cores, that with the most of them; where no loop has any, the same of fused products, and where
//! there are none either, of accesses to global memory.

use std::collections::HashMap;
use std::ops::Range;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use super::{Sass, SassCounts, SassWidths};

impl SassWidths {
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

impl SassCounts {
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
}

impl Sass {
    /// A line of numbers, which [`Sass::read`] reads.
    pub(in crate::device::cuda) fn line(&self) -> String {
        let counts = [Some(self.whole), self.main_loop];
        let numbers = counts.iter().flatten().flat_map(SassCounts::numbers);
        numbers.map(|number| number.to_string()).collect::<Vec<_>>().join(" ")
    }
}

/// Each kernel of a listing by `nvdisasm -c`, by its name.
fn kernels(listing: &str) -> Vec<(String, Sass)> {
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

/// An `nvdisasm` that works.
#[derive(Debug)]
pub(in crate::device::cuda) struct Disassembler {
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

    fn new(command: &str) -> Result<Self, String> {
        let mut disassembler = Disassembler { command: command.into(), version: String::new() };
        let text = disassembler.run(&["--version"])?;
        let version = text.lines().find(|line| line.contains("release"));
        disassembler.version =
            version.ok_or_else(|| format!("{command}: no version in {text:?}"))?.trim().to_string();
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

#[cfg(test)]
mod tests;
