//! GPUs to predict for, by what their makers publish.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// A GPU that kernels are profiled and modelled for, by the figures of NVIDIA's data sheets and white papers
/// (A100: "NVIDIA A100 Tensor Core GPU Architecture", 2020; H100 and H200: "NVIDIA H100 Tensor Core GPU
/// Architecture", 2022, SXM5, and the H200 data sheet; L4 and RTX 4090: "NVIDIA Ada GPU Architecture", 2022;
/// RTX 5090: "NVIDIA RTX Blackwell GPU Architecture", 2025), and for limits of a multiprocessor the CUDA C++
/// Programming Guide. Rates are those of dense products at the boost clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// As [`FromStr`] reads it.
    pub name: &'static str,
    /// Compute capability as 10·major + minor.
    pub capability: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Boost clock, in Hz.
    pub clock: f64,
    /// Of device memory, in bytes a second.
    pub memory_bandwidth: f64,
    /// L2 cache, in bytes.
    pub l2_bytes: u64,
    /// L1 cache and shared memory of a multiprocessor, in bytes.
    pub l1_bytes: u64,
    /// Shared memory of a multiprocessor, at most, in bytes.
    pub shared_bytes: u64,
    /// Threads that a multiprocessor holds at a time.
    pub threads: u32,
    /// Blocks that a multiprocessor holds at a time.
    pub blocks: u32,
    /// FLOP a second of f32 outside of tensor cores.
    pub f32_rate: f64,
    /// FLOP a second of f64 outside of tensor cores.
    pub f64_rate: f64,
    /// FLOP a second of f64 by tensor cores. Where they are not said to be faster at it, as fast as without.
    pub f64_tensor_rate: f64,
    /// FLOP a second of tensor cores on f16 and bf16, summed in f32.
    pub half_rate: f64,
    /// FLOP a second of tensor cores on TF32.
    pub tf32_rate: f64,
    /// The part of the tensor cores' rates that products of single warps (`mma.sync`, all that kernels here
    /// use) reach at most. On Hopper the full rate takes `wgmma`, products of four warps that read shared
    /// memory: of f16 summed in f32, `mma` was measured at 494 of an H800 PCIe's 757 TFLOP/s, and `wgmma` at
    /// 96% (Luo et al., "Dissecting the NVIDIA Hopper Architecture through Microbenchmarking and Multiple Level
    /// Analysis", 2025, arXiv:2501.12084). TF32 is taken to be alike; for f64 there is no `wgmma`, and `mma` is
    /// taken to reach all.
    pub mma_sync_fraction: f64,
}

impl Target {
    const H100: Target = Target {
        name: "h100",
        capability: 90,
        multiprocessors: 132,
        clock: 1.98e9,
        memory_bandwidth: 3.35e12,
        l2_bytes: 50 << 20,
        l1_bytes: 256 << 10,
        shared_bytes: 228 << 10,
        threads: 2048,
        blocks: 32,
        f32_rate: 66.9e12,
        f64_rate: 33.5e12,
        f64_tensor_rate: 66.9e12,
        half_rate: 989.4e12,
        tf32_rate: 494.7e12,
        mma_sync_fraction: 0.65,
    };

    /// Every GPU that is known.
    pub const ALL: [Target; 6] = [
        Target {
            name: "a100",
            capability: 80,
            multiprocessors: 108,
            clock: 1.41e9,
            memory_bandwidth: 2.039e12,
            l2_bytes: 40 << 20,
            l1_bytes: 192 << 10,
            shared_bytes: 164 << 10,
            threads: 2048,
            blocks: 32,
            f32_rate: 19.5e12,
            f64_rate: 9.7e12,
            f64_tensor_rate: 19.5e12,
            half_rate: 312e12,
            tf32_rate: 156e12,
            mma_sync_fraction: 1.0,
        },
        Target::H100,
        Target { name: "h200", memory_bandwidth: 4.8e12, ..Target::H100 },
        Target {
            name: "l4",
            capability: 89,
            multiprocessors: 58,
            clock: 2.04e9,
            memory_bandwidth: 0.3e12,
            l2_bytes: 48 << 20,
            l1_bytes: 128 << 10,
            shared_bytes: 100 << 10,
            threads: 1536,
            blocks: 24,
            f32_rate: 30.3e12,
            f64_rate: 0.47e12,
            f64_tensor_rate: 0.47e12,
            half_rate: 121e12,
            tf32_rate: 60e12,
            mma_sync_fraction: 1.0,
        },
        Target {
            name: "rtx4090",
            capability: 89,
            multiprocessors: 128,
            clock: 2.52e9,
            memory_bandwidth: 1.008e12,
            l2_bytes: 72 << 20,
            l1_bytes: 128 << 10,
            shared_bytes: 100 << 10,
            threads: 1536,
            blocks: 24,
            f32_rate: 82.6e12,
            f64_rate: 1.29e12,
            f64_tensor_rate: 1.29e12,
            half_rate: 165.2e12,
            tf32_rate: 82.6e12,
            mma_sync_fraction: 1.0,
        },
        Target {
            name: "rtx5090",
            capability: 120,
            multiprocessors: 170,
            clock: 2.407e9,
            memory_bandwidth: 1.792e12,
            l2_bytes: 96 << 20,
            l1_bytes: 128 << 10,
            shared_bytes: 100 << 10,
            threads: 1536,
            blocks: 24,
            f32_rate: 104.8e12,
            f64_rate: 1.64e12,
            f64_tensor_rate: 1.64e12,
            half_rate: 209.5e12,
            tf32_rate: 104.8e12,
            mma_sync_fraction: 1.0,
        },
    ];

    /// The one that a GPU is, or is another build of, by the name that CUDA has for it: `NVIDIA H100 80GB HBM3`,
    /// `NVIDIA GeForce RTX 4090`.
    pub fn nearest(gpu: &str) -> Option<Target> {
        let lower = gpu.to_lowercase();
        let words: Vec<&str> = lower.split(|c: char| !c.is_alphanumeric()).collect();
        let named = |target: &Target| {
            let pairs = words.windows(2).any(|pair| pair.concat() == target.name);
            pairs || words.contains(&target.name)
        };
        Target::ALL.into_iter().find(named)
    }

    /// What is known of a GPU of this name, compute capability and number of multiprocessors: the one of that name,
    /// else the nearest, with that share of its rates, memory bandwidth and L2 cache.
    pub(crate) fn of(name: &str, capability: u32, multiprocessors: u32) -> Target {
        let distance = |target: &Target| {
            let size = target.multiprocessors.abs_diff(multiprocessors);
            (target.capability.abs_diff(capability), size)
        };
        let by_kind = || {
            let [first, rest @ ..] = Target::ALL;
            let nearer = |best, next| if distance(&next) < distance(&best) { next } else { best };
            rest.into_iter().fold(first, nearer)
        };
        let known = Target::nearest(name).unwrap_or_else(by_kind);
        let share = f64::from(multiprocessors) / f64::from(known.multiprocessors);
        Target {
            capability,
            multiprocessors,
            l2_bytes: (known.l2_bytes as f64 * share) as u64,
            memory_bandwidth: known.memory_bandwidth * share,
            f32_rate: known.f32_rate * share,
            f64_rate: known.f64_rate * share,
            f64_tensor_rate: known.f64_tensor_rate * share,
            half_rate: known.half_rate * share,
            tf32_rate: known.tf32_rate * share,
            ..known
        }
    }

    /// Blocks of a kernel that a multiprocessor holds at a time; at least one.
    pub fn resident_blocks(&self, threads: u32, registers: Option<u32>, shared_bytes: u64) -> u32 {
        /// Registers of a multiprocessor, and what they are given out by to a warp.
        const REGISTERS: u32 = 65536;
        const GRANULE: u32 = 256;
        /// Shared memory that the system keeps of each block.
        const RESERVED: u64 = 1024;
        let warps = threads.div_ceil(32);
        let by_threads = self.threads / (warps * 32);
        let by_registers =
            registers.filter(|&registers| registers > 0).map_or(u32::MAX, |registers| {
                REGISTERS / ((registers * 32).next_multiple_of(GRANULE) * warps)
            });
        let by_shared = (self.shared_bytes / (shared_bytes + RESERVED)) as u32;
        by_threads.min(by_registers).min(by_shared).min(self.blocks).max(1)
    }

    /// How often multiprocessors that hold so many blocks at a time are filled with `blocks`.
    pub(super) fn waves(&self, blocks: f64, resident: f64) -> f64 {
        (blocks / (f64::from(self.multiprocessors) * resident)).ceil()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Reads a name, as `Display` writes it.
impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Target::ALL.into_iter().find(|target| target.name == text).ok_or_else(|| {
            let names = Target::ALL.map(|target| target.name).join(", ");
            Error::invalid("target", format!("{text:?}"), format!("expected one of {names}"))
        })
    }
}
