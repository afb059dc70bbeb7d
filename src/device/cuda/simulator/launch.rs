//! Launches of loaded kernels, block by block.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use libloading::os::unix::Library;
use rayon::prelude::*;

use super::block::{self, Launch, Outcome, RunBlock};
use super::{Shared, failure};
use crate::device::cuda::driver::{Kernel, Resources};
use crate::device::cuda::profile::{LaunchShape, Sass, mix};
use crate::error::Result;

/// CUDA's limit on the threads of a block.
const MOST_THREADS: u32 = 1024;
/// CUDA's limits on the blocks of a grid, by axis.
const MOST_BLOCKS: [u32; 3] = [i32::MAX as u32, 65535, 65535];
/// Launches of fewer threads run on the calling thread: sharing them out would take longer.
const SMALL_LAUNCH: usize = 4096;

/// A kernel in a shared object.
#[derive(Debug)]
pub(super) struct Loaded {
    pub name: String,
    pub run: RunBlock,
    /// The most that a block may have.
    pub threads: u32,
    pub argument_bytes: usize,
    /// On the target of a profile, if NVRTC is there.
    pub resources: Option<Resources>,
    /// Likewise, if `nvdisasm` is there, too.
    pub sass: Option<Sass>,
    pub shared: Arc<Shared>,
    /// `run` is inside it.
    pub _library: Library,
}

impl Loaded {
    fn check(&self, grid: [u32; 3], threads: u32, arguments: &[u8]) -> Result<usize, String> {
        let blocks = grid.iter().try_fold(1usize, |product, &n| product.checked_mul(n as usize));
        if grid.iter().zip(MOST_BLOCKS).any(|(&n, most)| n == 0 || n > most) {
            return Err(format!("a grid of {grid:?} blocks is outside 1 to {MOST_BLOCKS:?}"));
        }
        let most = self.threads.min(MOST_THREADS);
        if threads == 0 || threads > most {
            return Err(format!("a block of {threads} threads is outside 1 to {most}"));
        }
        if arguments.len() != self.argument_bytes {
            let (given, taken) = (arguments.len(), self.argument_bytes);
            return Err(format!("{given} bytes of arguments for a kernel that takes {taken}"));
        }
        blocks.ok_or_else(|| format!("{grid:?} blocks are too many to count"))
    }
}

impl Kernel for Loaded {
    fn resources(&self) -> Resources {
        self.resources.unwrap_or_default()
    }

    unsafe fn launch(&self, grid: [u32; 3], threads: u32, arguments: &[u8]) -> Result<()> {
        let failed = |reason: String| failure(format!("kernel {}", self.name), reason);
        let blocks = self.check(grid, threads, arguments).map_err(failed)?;
        let mut aligned = vec![0u128; arguments.len().div_ceil(mem::size_of::<u128>())];
        bytemuck::cast_slice_mut(&mut aligned)[..arguments.len()].copy_from_slice(arguments);
        let launch_number = self.shared.launches.fetch_add(1, Ordering::Relaxed);
        let seed = mix(self.shared.seed ^ mix(launch_number));
        let (width, height) = (grid[0] as usize, grid[1] as usize);
        let place =
            |at: usize| [at % width, at / width % height, at / width / height].map(|n| n as u32);
        let launch = |at: usize| {
            let seed = mix(seed ^ mix(at as u64));
            Launch::new(aligned.as_ptr().cast(), grid, place(at), threads, seed)
        };
        let failure_of = |at: usize, outcome: Outcome| {
            let reason = match outcome {
                Outcome::Done => return None,
                Outcome::Failed(reason) => reason,
                Outcome::BadAccess(reason, address) => {
                    format!("{reason} {}", self.shared.memory.locate(address))
                }
            };
            let block = place(at);
            Some(format!("block {block:?} of {grid:?} with {threads} threads: {reason}"))
        };
        if let Some(profiler) = &self.shared.profiler {
            let ranges = self.shared.memory.ranges();
            let span = match (ranges.first(), ranges.last()) {
                (Some(first), Some(last)) => first.start..last.end,
                _ => 0..0,
            };
            let is_global = |address: u64| {
                let after = ranges.partition_point(|range| range.start <= address);
                after > 0 && ranges[after - 1].contains(&address)
            };
            let (kernel, allocations) = (&*self.name, &*ranges);
            let Loaded { resources, sass, .. } = *self;
            let shape = LaunchShape { kernel, grid, threads, resources, sass, allocations };
            let run = |at: usize| {
                // SAFETY: as for run() below.
                let (outcome, recording, shared_bytes) =
                    unsafe { block::run_recorded(self.run, launch(at), span.clone()) };
                match failure_of(at, outcome) {
                    None => Ok((recording, shared_bytes)),
                    Some(reason) => Err(reason),
                }
            };
            let drawn = profiler.drawn(blocks, mix(seed));
            let done = profiler.launch(shape, &drawn, is_global, run);
            return done.and_then(|()| self.shared.check_overrun()).map_err(failed);
        }
        let order = Order::new(blocks, seed);
        let run = |i: usize| {
            let at = order.at(i);
            // SAFETY: `run` is the entry of the kernel that takes these arguments; what they point to is
            // the caller's promise.
            let outcome = unsafe { block::run(self.run, launch(at)) };
            failure_of(at, outcome)
        };
        let first = if blocks.saturating_mul(threads as usize) < SMALL_LAUNCH {
            (0..blocks).find_map(run)
        } else {
            let together = SMALL_LAUNCH / threads as usize;
            (0..blocks).into_par_iter().with_min_len(together.max(1)).find_map_first(run)
        };
        match first {
            Some(reason) => Err(failed(reason)),
            None => self.shared.check_overrun().map_err(failed),
        }
    }
}

/// An order of `count` blocks that needs no memory: steps of one size, from a start, around a circle.
pub(super) struct Order {
    count: u128,
    step: u128,
    start: u128,
}

impl Order {
    pub(super) fn new(count: usize, seed: u64) -> Order {
        let gcd = |mut a: u128, mut b: u128| {
            while b != 0 {
                (a, b) = (b, a % b);
            }
            a
        };
        let count = count as u128;
        let mut step = u128::from(mix(seed)) % count;
        while gcd(step, count) != 1 {
            step += 1;
        }
        Order { count, step, start: u128::from(seed) % count }
    }

    pub(super) fn at(&self, i: usize) -> usize {
        ((self.start + self.step * i as u128) % self.count) as usize
    }
}
