//! From counts to a prediction.

use super::counts::Counts;
use crate::device::cuda::cost::{Limiter, Work};
use crate::device::cuda::target::Target;

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

/// `blocks` of so many, of which a multiprocessor holds `resident` at a time.
pub(super) fn predict(target: &Target, counts: &Counts, blocks: f64, resident: u32) -> Model {
    let Counts { global, shared, operations, .. } = counts;
    let bytes = |sectors: f64| 32.0 * sectors;
    // Copies of 16 bytes (`cp.async.cg`) go from the L2 cache into shared memory, where they are wavefronts
    // already: the PTX ISA has them pass the L1 cache by.
    let through_l1 = global.load_sectors - counts.around_l1 + global.store_sectors;
    // So many products with 16×8 sums of so many terms.
    let products = |count: f64, terms: f64| count * 2.0 * 16.0 * 8.0 * terms;
    let work = Work {
        blocks,
        resident: f64::from(resident),
        memory: bytes(global.load_sectors_past_l2 + global.store_sectors_compulsory),
        l2: bytes(global.load_sectors_past_l1 + global.store_sectors),
        l1: shared.wavefronts + bytes(through_l1) / 128.0,
        // Addresses, loops and conversions are not seen: a lower bound.
        instructions: global.load_requests
            + global.store_requests
            + shared.requests
            + (operations.fused_f32 + operations.fused_f64) / 32.0
            + operations.mma()
            + operations.exchanges,
        f32_flop: 2.0 * operations.fused_f32,
        f64_flop: 2.0 * operations.fused_f64,
        half_tensor_flop: products(operations.mma_f16 + operations.mma_bf16, 16.0),
        tf32_tensor_flop: products(operations.mma_tf32, 8.0),
        f64_tensor_flop: products(operations.mma_f64, 8.0),
        waits: counts.waits / blocks,
    };
    let (seconds, limiter) = work.seconds(target);
    let compulsory = bytes(global.load_sectors_compulsory + global.store_sectors_compulsory);
    let roofline = (compulsory / target.memory_bandwidth).max(work.peak(target));
    Model { seconds, fraction: roofline / seconds, limiter }
}
