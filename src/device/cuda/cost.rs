//! How long a launch takes, by the resource that it keeps busy the longest: the one formula by which `auto`
//! chooses, from what is known of a computation beforehand, and profiles predict, from what they counted.

use std::fmt;

use super::target::Target;

/// What binds a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Limiter {
    /// Bandwidth of device memory.
    Memory,
    /// Bandwidth of the L2 cache.
    L2,
    /// Passes of a multiprocessor's L1 cache and shared memory.
    L1,
    /// Instructions that a multiprocessor issues.
    Issue,
    /// Products outside of tensor cores.
    Fma,
    /// Tensor cores.
    Tensor,
    /// Waiting for memory, with too little else to do.
    Latency,
    /// The launch itself.
    Launch,
}

impl fmt::Display for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Limiter::Memory => "memory",
            Limiter::L2 => "l2",
            Limiter::L1 => "l1",
            Limiter::Issue => "issue",
            Limiter::Fma => "fma",
            Limiter::Tensor => "tensor",
            Limiter::Latency => "latency",
            Limiter::Launch => "launch",
        })
    }
}

/// What the blocks of a launch do, all together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Work {
    pub blocks: f64,
    /// Blocks that a multiprocessor holds at a time.
    pub resident: f64,
    /// Bytes to and from device memory, and between it or the L2 cache and multiprocessors.
    pub memory: f64,
    pub l2: f64,
    /// Passes of an L1 cache or of shared memory, each of up to 128 bytes.
    pub l1: f64,
    /// Instructions of warps.
    pub instructions: f64,
    /// FLOP outside of tensor cores, in f32 and in f64.
    pub f32_flop: f64,
    pub f64_flop: f64,
    /// FLOP of tensor cores, of half types, of TF32 and of f64.
    pub half_tensor_flop: f64,
    pub tf32_tensor_flop: f64,
    pub f64_tensor_flop: f64,
    /// How often a block waits for what it reads.
    pub waits: f64,
}

/// Seconds from one small launch to the end of the next, about, as published measurements of launch latency
/// have it.
const LAUNCH: f64 = 2.5e-6;
/// Seconds of a read from device memory, about (published microbenchmarks: 450 to 750 ns).
const LATENCY: f64 = 0.6e-6;
/// Loads of a warp that are answered in the time of one from device memory: a few are under way together, and most
/// are of what is in a cache.
pub(crate) const LOADS_AT_A_TIME: f64 = 32.0;
/// Bytes that a multiprocessor exchanges with the L2 cache in a cycle.
const L2_BYTES: f64 = 64.0;
/// Instructions of warps that a multiprocessor issues in a cycle.
const ISSUED: f64 = 4.0;

impl Work {
    /// That of blocks that read and write so many bytes of memory, as they follow each other.
    pub(crate) fn moving(blocks: usize, bytes: f64) -> Self {
        // Of what is read and written through the L1 cache, 128 bytes take an instruction, and as many more.
        let l1 = bytes / 128.0;
        Work {
            blocks: blocks as f64,
            resident: 8.0,
            memory: bytes,
            l2: bytes,
            l1,
            instructions: 2.0 * l1,
            waits: 1.0,
            ..Work::default()
        }
    }

    /// So many times as much, by the same blocks.
    pub(crate) fn times(&self, factor: f64) -> Self {
        let Work { blocks, resident, waits, .. } = *self;
        Work {
            blocks,
            resident,
            memory: self.memory * factor,
            l2: self.l2 * factor,
            l1: self.l1 * factor,
            instructions: self.instructions * factor,
            f32_flop: self.f32_flop * factor,
            f64_flop: self.f64_flop * factor,
            half_tensor_flop: self.half_tensor_flop * factor,
            tf32_tensor_flop: self.tf32_tensor_flop * factor,
            f64_tensor_flop: self.f64_tensor_flop * factor,
            waits,
        }
    }

    /// Seconds on tensor cores, if all multiprocessors were busy, at the part of the rate that single warps reach.
    fn tensor(&self, target: &Target, by_warps: f64) -> f64 {
        let single =
            self.half_tensor_flop / target.half_rate + self.tf32_tensor_flop / target.tf32_rate;
        single / by_warps + self.f64_tensor_flop / target.f64_tensor_rate
    }

    /// The same on the other units.
    fn fma(&self, target: &Target) -> f64 {
        self.f32_flop / target.f32_rate + self.f64_flop / target.f64_rate
    }

    /// Seconds of the products at the units' peak rates.
    #[cfg(feature = "simulator")]
    pub(crate) fn peak(&self, target: &Target) -> f64 {
        self.fma(target).max(self.tensor(target, 1.0))
    }

    /// Seconds, and what takes the longest.
    pub(crate) fn seconds(&self, target: &Target) -> (f64, Limiter) {
        let sm = f64::from(target.multiprocessors);
        // Multiprocessors that would be busy all the time: while the last blocks run, others do nothing.
        let busy = self.blocks / (self.blocks / sm).ceil();
        let cycles = busy * target.clock;
        let waves = target.waves(self.blocks, self.resident);
        let tensor = self.tensor(target, target.mma_sync_fraction);
        let times = [
            (Limiter::Memory, self.memory / target.memory_bandwidth),
            (Limiter::L2, self.l2 / (L2_BYTES * cycles)),
            (Limiter::L1, self.l1 / cycles),
            (Limiter::Issue, self.instructions / (ISSUED * cycles)),
            (Limiter::Fma, self.fma(target) * sm / busy),
            (Limiter::Tensor, tensor * sm / busy),
            (Limiter::Latency, LATENCY * waves * self.waits.max(1.0)),
            (Limiter::Launch, LAUNCH),
        ];
        let (limiter, longest) = times
            .into_iter()
            .fold(times[0], |longest, next| if next.1 > longest.1 { next } else { longest });
        (if limiter == Limiter::Launch { LAUNCH } else { longest + LAUNCH }, limiter)
    }
}
