//! What the compiler made of a kernel: counts of machine instructions (SASS), as `nvdisasm` of the CUDA toolkit
//! lists them. It is by no means required: `CONVMAT_NVDISASM` names it, else it is looked for in `PATH`.

use std::fmt;

#[cfg(feature = "cuda")]
mod listing;

#[cfg(feature = "cuda")]
pub(in crate::device::cuda) use listing::Disassembler;

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
    /// Of a line of numbers, as `line` writes it.
    pub(in crate::device::cuda) fn read(line: &str) -> Option<Self> {
        let numbers = line.split(' ').map(|number| number.parse().ok());
        let numbers = numbers.collect::<Option<Vec<u32>>>()?;
        let (whole, rest) = numbers.split_at_checked(NUMBERS)?;
        let whole = SassCounts::from_numbers(whole)?;
        Some(Sass { whole, main_loop: SassCounts::from_numbers(rest) })
    }
}
