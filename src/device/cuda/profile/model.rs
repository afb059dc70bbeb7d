//! How long a launch would take, by the resource that it keeps busy the longest.

use std::fmt;

use super::counts::Counts;
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

/// A prediction, by published figures: nothing was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Model {
    /// Of the launch, in seconds.
    pub seconds: f64,
    /// The time that the roofline leaves (compulsory traffic at the memory's bandwidth, products at their
    /// units' peak rate) over the predicted time.
    pub fraction: f64,
    /// What takes the longest.
    pub limiter: Limiter,
}

/// Seconds from one small launch to the end of the next, about, as published measurements of launch latency
/// have it.
const LAUNCH: f64 = 2.5e-6;
/// Seconds of a read from device memory, about (published microbenchmarks: 450 to 750 ns).
const LATENCY: f64 = 0.6e-6;
/// Bytes that a multiprocessor exchanges with the L2 cache in a cycle, and that its L1 cache moves.
const L2_BYTES: f64 = 64.0;
const L1_BYTES: f64 = 128.0;
/// Instructions of warps that a multiprocessor issues in a cycle.
const ISSUED: f64 = 4.0;

/// `blocks` of so many, of which a multiprocessor holds `resident` at a time.
pub(super) fn predict(target: &Target, counts: &Counts, blocks: f64, resident: u32) -> Model {
    let Counts { global, shared, operations, .. } = counts;
    let bytes = |sectors: f64| 32.0 * sectors;
    let sm = f64::from(target.multiprocessors);
    // Multiprocessors without a block do nothing.
    let busy = sm.min(blocks);
    let cycles = busy * target.clock;
    let memory = bytes(global.load_sectors_past_l2 + global.store_sectors_compulsory);
    let past_l1 = bytes(global.load_sectors_past_l1 + global.store_sectors);
    // Copies of 16 bytes (`cp.async.cg`) go from the L2 cache into shared memory, where they are wavefronts
    // already: the PTX ISA has them pass the L1 cache by.
    let through_l1 = global.load_sectors - counts.around_l1 + global.store_sectors;
    let l1 = shared.wavefronts + bytes(through_l1) / L1_BYTES;
    // Addresses, loops and conversions are not seen: a lower bound.
    let instructions = global.load_requests
        + global.store_requests
        + shared.requests
        + (operations.fused_f32 + operations.fused_f64) / 32.0
        + operations.mma()
        + operations.exchanges;
    let fma =
        2.0 * (operations.fused_f32 / target.f32_rate + operations.fused_f64 / target.f64_rate);
    // Seconds of so many products with 16×8 sums of so many terms.
    let products = |count: f64, terms: f64, rate: f64| count * 2.0 * 16.0 * 8.0 * terms / rate;
    let halves = products(operations.mma_f16 + operations.mma_bf16, 16.0, target.half_rate);
    let words = products(operations.mma_tf32, 8.0, target.tf32_rate);
    let doubles = products(operations.mma_f64, 8.0, target.f64_tensor_rate);
    let tensor = halves + words + doubles;
    let by_mma_sync = (halves + words) / target.mma_sync_fraction + doubles;
    let waves = target.waves(blocks, resident);
    let times = [
        (Limiter::Memory, memory / target.memory_bandwidth),
        (Limiter::L2, past_l1 / (L2_BYTES * cycles)),
        (Limiter::L1, l1 / cycles),
        (Limiter::Issue, instructions / (ISSUED * cycles)),
        (Limiter::Fma, fma * sm / busy),
        (Limiter::Tensor, by_mma_sync * sm / busy),
        (Limiter::Latency, LATENCY * waves * (counts.waits / blocks).max(1.0)),
        (Limiter::Launch, LAUNCH),
    ];
    let (limiter, longest) = times
        .into_iter()
        .fold(times[0], |longest, next| if next.1 > longest.1 { next } else { longest });
    let seconds = if limiter == Limiter::Launch { LAUNCH } else { longest + LAUNCH };
    let compulsory = bytes(global.load_sectors_compulsory + global.store_sectors_compulsory);
    let roofline = (compulsory / target.memory_bandwidth).max(fma).max(tensor);
    Model { seconds, fraction: roofline / seconds, limiter }
}
