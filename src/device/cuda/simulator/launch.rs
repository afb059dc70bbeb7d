//! Launches of loaded kernels, block by block.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use libloading::os::unix::Library;
use rayon::prelude::*;

use super::block::{self, Clock, Launch, Outcome, RunBlock};
use super::queue::{Stream, Work};
use super::{FIRST, Shared, failure};
use crate::device::cuda::driver::{Kernel, Resources};
use crate::device::cuda::profile::{LaunchShape, Profiler, Sass, mix};
use crate::error::{Error, Result};

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
    /// `run` is inside it.
    pub _library: Library,
}

/// A launch that is due.
#[derive(Debug)]
pub(super) struct Launched {
    grid: [u32; 3],
    blocks: usize,
    threads: u32,
    /// Aligned for any argument.
    arguments: Vec<u128>,
}

/// A kernel on a stream.
#[derive(Debug)]
pub(super) struct OnStream {
    pub kernel: Arc<Loaded>,
    pub stream: Arc<Stream>,
}

impl Loaded {
    fn check(&self, grid: [u32; 3], threads: u32, arguments: &[u8]) -> Result<Launched, String> {
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
        let blocks = blocks.ok_or_else(|| format!("{grid:?} blocks are too many to count"))?;
        let mut aligned = vec![0u128; arguments.len().div_ceil(size_of::<u128>())];
        bytemuck::cast_slice_mut(&mut aligned)[..arguments.len()].copy_from_slice(arguments);
        Ok(Launched { grid, blocks, threads, arguments: aligned })
    }

    fn failed(&self, reason: String) -> Error {
        failure(format!("kernel {}", self.name), reason)
    }
}

impl Kernel for OnStream {
    fn resources(&self) -> Resources {
        self.kernel.resources.unwrap_or_default()
    }

    unsafe fn launch(&self, grid: [u32; 3], threads: u32, arguments: &[u8]) -> Result<()> {
        let launched = self.kernel.check(grid, threads, arguments);
        let launched = launched.map_err(|reason| self.kernel.failed(reason))?;
        self.stream.queue(Work::Launch(self.kernel.clone(), Arc::new(launched)))
    }
}

impl Launched {
    /// Where the block with this number is in the grid.
    fn place(&self, at: usize) -> [u32; 3] {
        let (width, height) = (self.grid[0] as usize, self.grid[1] as usize);
        [at % width, at / width % height, at / width / height].map(|n| n as u32)
    }
}

impl Shared {
    /// Runs a launch; what its arguments point to is the promise of who queued it.
    pub(super) fn launch(&self, kernel: &Loaded, launched: &Launched) -> Result<()> {
        let number = self.launches.fetch_add(1, Ordering::Relaxed);
        let seed = mix(self.seed ^ mix(number));
        let done = match &self.profiler {
            Some(profiler) => self.profile(profiler, kernel, launched, seed),
            None if self.sanitizes => self.watch(kernel, launched, seed),
            None => self.run(kernel, launched, seed),
        };
        done.and_then(|()| self.check_overrun()).map_err(|reason| kernel.failed(reason))
    }

    /// What is to be run of a block.
    fn block(&self, launched: &Launched, at: usize, seed: u64) -> Launch {
        let Launched { grid, threads, arguments, .. } = launched;
        let (arguments, shared) = (arguments.as_ptr().cast(), self.machine.shared_bytes);
        Launch::new(
            arguments,
            *grid,
            launched.place(at),
            *threads,
            shared,
            mix(seed ^ mix(at as u64)),
        )
    }

    /// Why a block failed, if it did.
    fn failure_of(&self, launched: &Launched, at: usize, outcome: Outcome) -> Result<(), String> {
        let reason = match outcome {
            Outcome::Done => return Ok(()),
            Outcome::Failed(reason) => reason,
            Outcome::BadAccess(reason, address) => {
                format!("{reason} {}", self.memory.locate(address))
            }
        };
        let Launched { grid, threads, .. } = launched;
        let block = launched.place(at);
        Err(format!("block {block:?} of {grid:?} with {threads} threads: {reason}"))
    }

    fn run(&self, kernel: &Loaded, launched: &Launched, seed: u64) -> Result<(), String> {
        let blocks = self.ends.map_or(launched.blocks, |ends| launched.blocks.min(2 * ends));
        let order = Order::new(blocks, seed);
        let run = |i: usize| {
            let at = order.at(i);
            // Of more, the first and the last.
            let at = if at < blocks.div_ceil(2) { at } else { launched.blocks - blocks + at };
            // SAFETY: `run` is the entry of the kernel that takes these arguments; what they point to is
            // the promise of who queued the launch.
            let outcome = unsafe { block::run(kernel.run, self.block(launched, at, seed)) };
            self.failure_of(launched, at, outcome).err()
        };
        let threads = launched.threads as usize;
        let first = if blocks.saturating_mul(threads) < SMALL_LAUNCH {
            (0..blocks).find_map(run)
        } else {
            let together = SMALL_LAUNCH / threads;
            (0..blocks).into_par_iter().with_min_len(together.max(1)).find_map_first(run)
        };
        first.map_or(Ok(()), Err)
    }

    /// Blocks one after the other, so that the sanitizer's clock tells what is ordered.
    fn watch(&self, kernel: &Loaded, launched: &Launched, seed: u64) -> Result<(), String> {
        // A launch is far from so many barriers.
        const LATE: u32 = 1 << 31;
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        if *clock > LATE {
            self.memory.age();
            *clock = FIRST;
        }
        let places = self.memory.places();
        let mut time = Clock { now: *clock, begun: *clock + 1, arrivals: Vec::new() };
        let order = Order::new(launched.blocks, seed);
        let done = (0..launched.blocks).map(|i| order.at(i)).try_for_each(|at| {
            let launch = self.block(launched, at, seed);
            // SAFETY: as for run() above.
            let outcome = unsafe { block::run_watched(kernel.run, launch, &places, &mut time) };
            self.failure_of(launched, at, outcome)
        });
        *clock = time.now;
        done
    }

    fn profile(
        &self,
        profiler: &Profiler,
        kernel: &Loaded,
        launched: &Launched,
        seed: u64,
    ) -> Result<(), String> {
        let Launched { grid, blocks, threads, .. } = *launched;
        let places = self.memory.places();
        let allocations: Vec<_> = places.iter().map(|place| place.start..place.end).collect();
        let span = match (allocations.first(), allocations.last()) {
            (Some(first), Some(last)) => first.start..last.end,
            _ => 0..0,
        };
        let is_global = |address: u64| {
            let after = allocations.partition_point(|range| range.start <= address);
            after > 0 && allocations[after - 1].contains(&address)
        };
        let Loaded { ref name, resources, sass, .. } = *kernel;
        let allocations = &*allocations;
        let shape = LaunchShape { kernel: name, grid, threads, resources, sass, allocations };
        let run = |at: usize| {
            let launch = self.block(launched, at, seed);
            // SAFETY: as for run() above.
            let (outcome, recording, shared_bytes) =
                unsafe { block::run_recorded(kernel.run, launch, span.clone()) };
            self.failure_of(launched, at, outcome).map(|()| (recording, shared_bytes))
        };
        profiler.launch(shape, &profiler.drawn(blocks, mix(seed)), is_global, run)
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
