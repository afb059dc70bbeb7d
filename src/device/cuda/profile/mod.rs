//! Profiles: what every launch costs, counted from what its threads read, write and compute, and a prediction
//! of its time on a GPU. Counts are the same at every run; nothing here is measured.
//!
//! Predictions over what was published, as tests of the simulator have them: transposes on a K20c 0.6 to 2.1, and
//! products of f16 matrices by `mma.sync` 1.04 to 1.17 times the rate on an H100 (64% of the dense rate for 55% to
//! 62%), 1.29 times on an A100 (99% for 77%).
//!
//! | file | holds |
//! |---|---|
//! | `record.rs` | what the kernels' side writes down |
//! | `requests.rs` | accesses of threads as requests of warps; bank conflicts |
//! | `cache.rs` | caches |
//! | `counts.rs` | blocks, counted and added up |
//! | `model.rs` | from counts to time |
//! | `sass.rs` | instructions, as the compiler made them |

mod cache;
mod counts;
mod model;
pub(super) mod record;
mod requests;
pub(super) mod sass;

use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use counts::{Block, Bounds, Counts, Total};
pub use counts::{GlobalAccesses, Operations, SharedAccesses};
pub use model::Model;
use record::Recording;
pub use sass::{Sass, SassCounts, SassWidths};

pub use super::cost::Limiter;
use super::driver::Resources;
pub use super::target::Target;

/// What is profiled, and for what.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Profiling {
    /// The GPU whose caches and limits are taken: the simulator has its compute capability and number of
    /// multiprocessors.
    pub target: Target,
    /// Blocks of a launch that are run and counted, at most: some of a larger grid, drawn from the seed in
    /// groups of neighbours. The others are not run, so that results are not what they should be; counts
    /// are scaled, different sectors to no more than what is allocated there. By default all.
    pub blocks: Option<u32>,
}

impl Profiling {
    /// All blocks, for this GPU.
    pub fn new(target: Target) -> Self {
        Profiling { target, blocks: None }
    }
}

/// A launch, profiled.
#[derive(Clone, Debug, PartialEq)]
pub struct LaunchProfile {
    /// The kernel's name.
    pub kernel: String,
    /// Blocks on each axis.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Blocks that were counted: where there are more, all other figures are scaled.
    pub counted_blocks: u64,
    /// All blocks.
    pub blocks: u64,
    /// Registers of a thread, as compiled for the target by NVRTC; `None` where NVRTC is absent.
    pub registers: Option<u32>,
    /// Bytes of a thread in local memory, likewise.
    pub local_bytes: Option<u32>,
    /// Machine instructions, as compiled for the target by NVRTC; `None` where NVRTC or `nvdisasm` is absent.
    pub sass: Option<Sass>,
    /// Bytes of a block in shared memory.
    pub shared_bytes: u64,
    /// Warps that a multiprocessor holds at a time, of those that it can.
    pub occupancy: f64,
    /// Accesses to global memory.
    pub global: GlobalAccesses,
    /// Accesses to shared memory.
    pub shared: SharedAccesses,
    /// All else.
    pub operations: Operations,
    /// How long it would take.
    pub model: Model,
}

/// A table: a line of what was launched, and one each for global memory, shared memory, what is computed, machine
/// instructions (of a turn of the main loop, if there is one) and the model.
impl fmt::Display for LaunchProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LaunchProfile { kernel, grid, threads, global, shared, operations, .. } = self;
        write!(f, "{kernel}  grid {grid:?} of {threads} threads")?;
        match self.registers {
            Some(registers) => write!(f, ", {registers} registers")?,
            None => f.write_str(", registers unknown without NVRTC")?,
        }
        if let Some(local) = self.local_bytes.filter(|&bytes| bytes > 0) {
            write!(f, ", {local} B local")?;
        }
        let occupancy = 100.0 * self.occupancy;
        write!(f, ", {} B shared, occupancy {occupancy:.0}%", self.shared_bytes)?;
        if self.counted_blocks < self.blocks {
            write!(f, "; scaled from {} of {} blocks", self.counted_blocks, self.blocks)?;
        }
        let of_ideal = |taken: f64, ideal: f64| if ideal > 0.0 { taken / ideal } else { 1.0 };
        if global.load_requests > 0.0 {
            write!(
                f,
                "\n  loads   {:.0} requests, {:.0} sectors ({:.1} a request), {:.0} past L1, {:.0} past L2, \
                 {:.0} compulsory",
                global.load_requests,
                global.load_sectors,
                global.load_sectors / global.load_requests,
                global.load_sectors_past_l1,
                global.load_sectors_past_l2,
                global.load_sectors_compulsory,
            )?;
        }
        if global.store_requests > 0.0 {
            write!(
                f,
                "\n  stores  {:.0} requests, {:.0} sectors ({:.1} a request), {:.0} compulsory",
                global.store_requests,
                global.store_sectors,
                global.store_sectors / global.store_requests,
                global.store_sectors_compulsory,
            )?;
        }
        if global.load_requests + global.store_requests > 0.0 {
            write!(f, "; efficiency {:.0}%", 100.0 * global.efficiency())?;
        }
        if shared.requests > 0.0 {
            write!(
                f,
                "\n  shared  {:.0} requests, {:.0} wavefronts, {:.2} times the ideal",
                shared.requests,
                shared.wavefronts,
                of_ideal(shared.wavefronts, shared.wavefronts_ideal),
            )?;
        }
        let counts = [
            (operations.fused_f32 + operations.fused_f64, "fused"),
            (operations.mma(), "mma"),
            (shared.matrix_loads, "ldmatrix"),
            (operations.copies, "asynchronous copies"),
            (operations.exchanges, "shuffles"),
            (operations.barriers, "barriers"),
            (global.atomics, "atomics"),
        ];
        let counts = counts.into_iter().filter(|(count, _)| *count > 0.0);
        let mut work: Vec<String> = counts.map(|(count, of)| format!("{count:.0} {of}")).collect();
        work.push(format!("{:.0}% of lanes idle in requests", 100.0 * operations.idle));
        write!(f, "\n  work    {}", work.join(", "))?;
        if let Some(Sass { whole, main_loop }) = self.sass {
            match main_loop {
                Some(counts) => {
                    write!(f, "\n  sass    main loop of {counts}; {} in all", whole.instructions)?;
                }
                None => write!(f, "\n  sass    {whole}")?,
            }
        }
        let Model { seconds, fraction, limiter } = self.model;
        write!(
            f,
            "\n  model   {:.1} us, {:.0}% of the roofline, bound by {limiter} (predicted, not measured)",
            1e6 * seconds,
            100.0 * fraction,
        )
    }
}

/// What a simulator keeps when it profiles.
#[derive(Debug)]
pub(super) struct Profiler {
    pub profiling: Profiling,
    launches: Mutex<Vec<LaunchProfile>>,
}

/// Blocks that are drawn together.
const NEIGHBOURS: usize = 8;

impl Profiler {
    pub fn new(profiling: Profiling) -> Self {
        Profiler { profiling, launches: Mutex::default() }
    }

    /// The launches since the last call.
    pub fn take(&self) -> Vec<LaunchProfile> {
        std::mem::take(&mut *self.launches.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The blocks of so many that are counted, in their order.
    pub fn drawn(&self, blocks: usize, seed: u64) -> Vec<usize> {
        let most = self.profiling.blocks.map_or(usize::MAX, |most| most.max(1) as usize);
        if blocks <= most {
            return (0..blocks).collect();
        }
        let groups = most.div_ceil(NEIGHBOURS);
        let mut drawn = Vec::with_capacity(most);
        for group in 0..groups {
            // One from each of equal parts of the grid.
            let [start, end] = [group, group + 1].map(|group| group * blocks / groups);
            let count = NEIGHBOURS.min(most - drawn.len()).min(end - start);
            let free = end - start - count + 1;
            let first = start + (mix(seed ^ group as u64) % free as u64) as usize;
            drawn.extend(first..first + count);
        }
        drawn
    }

    /// Puts a launch together. `run` runs a block of the drawn ones and gives what was written down of it.
    pub fn launch<E: Send>(
        &self,
        shape: LaunchShape<'_>,
        drawn: &[usize],
        is_global: impl Fn(u64) -> bool + Sync,
        run: impl Fn(usize) -> Result<(Recording, u64), E> + Sync,
    ) -> Result<(), E> {
        use rayon::prelude::*;
        let target = &self.profiling.target;
        let LaunchShape { kernel, grid, threads, resources, sass, allocations } = shape;
        let blocks: u64 = grid.iter().map(|&n| u64::from(n)).product();
        let registers = resources.map(|resources| resources.registers);
        let mut total = Total::new(target.l2_bytes);
        let mut first = (Counts::default(), 0);
        let (mut shared_bytes, mut resident) = (0, 1);
        // What was written down of a block may be large: a few at a time.
        let mut counted = 0;
        let half = drawn.len() / 2;
        let together = rayon::current_num_threads().max(1);
        let mut rest = drawn;
        while !rest.is_empty() {
            // The first block says how much shared memory there is, and with it what L1 cache is left.
            let now = if counted == 0 { 1 } else { together.min(rest.len()) };
            let (some, later) = rest.split_at(now);
            rest = later;
            let done: Vec<_> = some.par_iter().map(|&at| run(at)).collect::<Result<_, E>>()?;
            if counted == 0 {
                shared_bytes = done[0].1;
                resident = target.resident_blocks(threads, registers, shared_bytes);
            }
            let left = target.l1_bytes.saturating_sub(u64::from(resident) * shared_bytes);
            let l1 = left / u64::from(resident);
            let blocks: Vec<Block> = done
                .par_iter()
                .map(|(recording, _)| Block::new(recording, threads as usize, l1, &is_global))
                .collect();
            for block in &blocks {
                total.add(block);
                counted += 1;
                if counted == half {
                    first = (total.counts, counted);
                }
            }
        }
        let counts = match counted as u64 == blocks {
            true => total.counts,
            false => {
                let all = total.counts.extrapolated((&first.0, first.1), counted, blocks as usize);
                let [loaded, stored] = total.surroundings(allocations);
                let l2 = target.l2_bytes as f64 / cache::SECTOR as f64;
                let waves = target.waves(blocks as f64, resident.into());
                all.within(&Bounds { loaded, stored, l2, waves })
            }
        };
        let warps = f64::from(threads.div_ceil(32));
        let profile = LaunchProfile {
            kernel: kernel.into(),
            grid,
            threads,
            counted_blocks: counted as u64,
            blocks,
            registers,
            local_bytes: resources.map(|resources| resources.local_bytes),
            sass,
            shared_bytes,
            occupancy: warps * f64::from(resident) / f64::from(target.threads / 32),
            global: counts.global,
            shared: counts.shared,
            operations: Operations {
                idle: if counts.lanes > 0.0 { counts.idle_lanes / counts.lanes } else { 0.0 },
                ..counts.operations
            },
            model: model::predict(target, &counts, blocks as f64, resident),
        };
        self.launches.lock().unwrap_or_else(PoisonError::into_inner).push(profile);
        Ok(())
    }
}

/// A number with about half of its bits flipped, one to one (the finaliser of SplitMix64).
pub(super) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// What is launched.
pub(super) struct LaunchShape<'a> {
    pub kernel: &'a str,
    pub grid: [u32; 3],
    pub threads: u32,
    pub resources: Option<Resources>,
    pub sass: Option<Sass>,
    /// Where memory is allocated, ascending.
    pub allocations: &'a [Range<u64>],
}
