//! What a plan does, for people and scripts.

use std::fmt;

#[cfg(gpu)]
use crate::device::cuda::{Gemm, Queued, Resources, Spec};

/// What a plan will do, and why.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Explanation {
    /// What is computed: `unfold`, `forward`, ….
    pub operation: &'static str,
    /// Of what: shapes, element type and geometry.
    pub subject: String,
    /// Where: `cpu`, `cuda:0`, ….
    pub device: String,
    /// By which algorithm.
    pub algorithm: String,
    /// Why that one.
    pub reason: String,
    /// Seconds that it is expected to take, by public figures of the device; `None` where nothing is expected.
    pub expected_seconds: Option<f64>,
    /// What else was considered, the fastest first.
    pub alternatives: Vec<Alternative>,
    /// Whether operands of `f32` are rounded to TF32 before they are multiplied: see
    /// [`crate::PlanOptions::allow_tf32`].
    pub tf32: bool,
    /// What is done, in order.
    pub passes: Vec<Pass>,
    /// Bytes of workspace that a run takes.
    pub workspace_bytes: u64,
    /// Floating-point operations of the definition, a multiplication and an addition counting 2; those of
    /// dropped taps are counted.
    pub flop: u64,
    /// Bytes of memory that have to be moved at least: every operand read or written once.
    pub bytes: u64,
}

/// An algorithm that was not taken.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Alternative {
    /// Its name.
    pub algorithm: String,
    /// Seconds that it is expected to take.
    pub seconds: f64,
}

/// One pass over the data: a kernel on CUDA, a parallel loop on the CPU.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Pass {
    /// The kernel, or what a task on the CPU does.
    pub kernel: String,
    /// What the kernel is compiled for, or how the CPU's loop is made.
    pub specialisation: String,
    /// Rows and columns of the result that a block or a task computes, where that is so.
    pub tile: Option<[usize; 2]>,
    /// Blocks on the three axes of the grid.
    pub grid: Option<[u32; 3]>,
    /// Threads in a block.
    pub block: Option<u32>,
    /// Registers of a thread; 0 where that is not known.
    pub registers: Option<u32>,
    /// Shared memory of a block, in bytes.
    pub shared_bytes: Option<u32>,
    /// Local memory of a thread, in bytes: registers that were spilled.
    pub local_bytes: Option<u32>,
    /// Tasks that are shared out among the threads of the CPU.
    pub tasks: Option<usize>,
}

impl Pass {
    /// A parallel loop on the CPU.
    pub(crate) fn on_cpu(kernel: impl Into<String>, tasks: usize) -> Self {
        Pass { kernel: kernel.into(), tasks: Some(tasks), ..Pass::default() }
    }

    /// How the loop is made.
    pub(crate) fn by(self, specialisation: impl Into<String>) -> Self {
        Pass { specialisation: specialisation.into(), ..self }
    }

    /// What a task computes of the result.
    pub(crate) fn with_tile(self, tile: [usize; 2]) -> Self {
        Pass { tile: Some(tile), ..self }
    }

    /// A step of a program.
    #[cfg(gpu)]
    pub(super) fn queued(step: Queued<'_>) -> Self {
        match step {
            Queued::Launch { spec, grid, threads, needs } => {
                Pass::launched(spec, grid, threads, needs)
            }
            Queued::Gemm(gemm) => Pass::multiplied(gemm),
            Queued::Clear { bytes } => Pass::cleared(bytes),
        }
    }

    /// A launch.
    #[cfg(gpu)]
    fn launched(spec: &Spec, grid: [u32; 3], threads: u32, needs: Resources) -> Self {
        Pass {
            kernel: spec.entry().into(),
            specialisation: spec.definitions(),
            tile: spec.tile(),
            grid: Some(grid),
            block: Some(threads),
            registers: Some(needs.registers),
            shared_bytes: Some(needs.shared_bytes),
            local_bytes: Some(needs.local_bytes),
            tasks: None,
        }
    }

    /// Products by cuBLAS.
    #[cfg(gpu)]
    fn multiplied(gemm: &Gemm) -> Self {
        let Gemm { dtype, output, m, n, k, batch, tf32, .. } = gemm;
        let rounded = if *tf32 { " by TF32" } else { "" };
        Pass {
            kernel: "cublas".into(),
            specialisation: format!("{batch} of {m}x{n}x{k}, {dtype} to {output}{rounded}"),
            ..Pass::default()
        }
    }

    /// Memory set to zero.
    #[cfg(gpu)]
    fn cleared(bytes: usize) -> Self {
        Pass { kernel: "clear".into(), specialisation: format!("{bytes} bytes"), ..Pass::default() }
    }
}

/// A line for what is done and why, one for each pass, one for what it takes.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} of {} on {}", self.operation, self.subject, self.device)?;
        writeln!(f, "  algorithm {}: {}", self.algorithm, self.reason)?;
        if self.tf32 {
            writeln!(f, "  precision operands rounded to TF32, sums of f32")?;
        }
        for (number, pass) in self.passes.iter().enumerate() {
            writeln!(f, "  pass {}    {pass}", number + 1)?;
        }
        if let Some(seconds) = self.expected_seconds {
            write!(f, "  expected  {:.1} us", 1e6 * seconds)?;
            for Alternative { algorithm, seconds } in &self.alternatives {
                write!(f, ", {algorithm} {:.1} us", 1e6 * seconds)?;
            }
            writeln!(f, " (by public figures, not measured)")?;
        }
        let Explanation { workspace_bytes, flop, bytes, .. } = self;
        write!(
            f,
            "  takes     {workspace_bytes} bytes of workspace, {flop} FLOP, {bytes} bytes at least"
        )
    }
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kernel)?;
        if !self.specialisation.is_empty() {
            write!(f, " ({})", self.specialisation)?;
        }
        if let Some([rows, columns]) = self.tile {
            write!(f, ", tiles of {rows}x{columns}")?;
        }
        if let Some([x, y, z]) = self.grid {
            write!(f, ", grid {x}x{y}x{z}")?;
        }
        if let Some(threads) = self.block {
            write!(f, " of {threads} threads")?;
        }
        if let Some(registers) = self.registers.filter(|&registers| registers > 0) {
            write!(f, ", {registers} registers")?;
        }
        for (bytes, what) in [(self.shared_bytes, "shared"), (self.local_bytes, "spilled")] {
            if let Some(bytes) = bytes.filter(|&bytes| bytes > 0) {
                write!(f, ", {bytes} bytes {what}")?;
            }
        }
        match self.tasks {
            Some(1) => f.write_str(", 1 task"),
            Some(tasks) => write!(f, ", {tasks} tasks"),
            None => Ok(()),
        }
    }
}
