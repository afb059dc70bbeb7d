//! What the blocks of a launch did, counted.

use std::collections::BTreeSet;
use std::ops::Range;

use super::cache::{Cache, LINE, SECTOR, Touched};
use super::record::{
    EXCHANGES, FUSED_F32, FUSED_F64, Kind, MMA_BF16, MMA_F16, MMA_F64, MMA_TF32, Recording,
};
use super::requests::{Request, WARP, requests, wavefronts};
use crate::device::cuda::cost::LOADS_AT_A_TIME;

/// Structs of numbers that add up.
macro_rules! counted {
    ($($(#[$what:meta])* $public:vis struct $name:ident {
        $($(#[$about:meta])* pub $field:ident: $type:ty,)+
    })+) => {
        $(
            $(#[$what])*
            #[derive(Clone, Copy, Debug, Default, PartialEq)]
            $public struct $name {
                $($(#[$about])* pub $field: $type,)+
            }

            impl Counted for $name {
                fn with(&self, other: &Self, join: &impl Fn(f64, f64) -> f64) -> Self {
                    $name { $($field: self.$field.with(&other.$field, join),)+ }
                }
            }
        )+
    };
}

/// What is made of numbers.
trait Counted {
    /// Every number joined with the other's.
    fn with(&self, other: &Self, join: &impl Fn(f64, f64) -> f64) -> Self;
}

impl Counted for f64 {
    fn with(&self, other: &Self, join: &impl Fn(f64, f64) -> f64) -> Self {
        join(*self, *other)
    }
}

counted! {
    /// Accesses of a launch to global memory. A sector has 32 bytes, a line 128; a request is what a warp asks
    /// for with one instruction.
    pub struct GlobalAccesses {
        /// Loads, asynchronous copies among them.
        pub load_requests: f64,
        /// Bytes that lanes ask for.
        pub load_bytes: f64,
        /// Sectors of requests, each counted once for a request.
        pub load_sectors: f64,
        /// Lines of requests.
        pub load_lines: f64,
        /// Those not found in the L1 cache: of each block the share that resident blocks leave each other, the
        /// least recently used line going.
        pub load_sectors_past_l1: f64,
        /// Those not found in the L2 cache either, blocks one after the other.
        pub load_sectors_past_l2: f64,
        /// Different sectors of the launch.
        pub load_sectors_compulsory: f64,
        /// Stores.
        pub store_requests: f64,
        /// Bytes that lanes write.
        pub store_bytes: f64,
        /// Sectors of requests.
        pub store_sectors: f64,
        /// Lines of requests.
        pub store_lines: f64,
        /// Different sectors of the launch.
        pub store_sectors_compulsory: f64,
        /// Atomic operations of lanes.
        pub atomics: f64,
    }

    /// Accesses of a launch to shared memory.
    pub struct SharedAccesses {
        /// Instructions of warps.
        pub requests: f64,
        /// Passes of the banks.
        pub wavefronts: f64,
        /// Passes if no two words were in one bank.
        pub wavefronts_ideal: f64,
        /// Instructions that load matrices for tensor cores.
        pub matrix_loads: f64,
    }

    /// What a launch computes.
    pub struct Operations {
        /// Products of f32 with an addition outside of tensor cores, of single threads.
        pub fused_f32: f64,
        /// The same of f64.
        pub fused_f64: f64,
        /// Products by tensor cores, of warps: 16×8×16 of f16.
        pub mma_f16: f64,
        /// 16×8×16 of bf16.
        pub mma_bf16: f64,
        /// 16×8×8 of TF32.
        pub mma_tf32: f64,
        /// 16×8×8 of f64.
        pub mma_f64: f64,
        /// Shuffles between lanes.
        pub exchanges: f64,
        /// Barriers of blocks.
        pub barriers: f64,
        /// Asynchronous copies, of warps.
        pub copies: f64,
        /// Lanes that took no part in requests to memory, of all lanes.
        pub idle: f64,
    }

    /// Totals over blocks.
    pub(super) struct Counts {
        pub global: GlobalAccesses,
        pub shared: SharedAccesses,
        /// But for the idle lanes, which are a share of all in the end.
        pub operations: Operations,
        /// Lanes that did not take part in requests, and all lanes of these.
        pub idle_lanes: f64,
        pub lanes: f64,
        /// How often blocks wait for memory: barrier intervals in which something is read and waited for, or as
        /// often as the loads of a warp take their time one after the other.
        pub waits: f64,
        /// Sectors that asynchronous copies load around the L1 cache.
        pub around_l1: f64,
    }
}

impl GlobalAccesses {
    /// Compulsory sectors of all that are moved between the L1 caches and the L2 cache; 1 where none are.
    pub fn efficiency(&self) -> f64 {
        let moved = self.load_sectors_past_l1 + self.store_sectors;
        let compulsory = self.load_sectors_compulsory + self.store_sectors_compulsory;
        if moved > 0.0 { compulsory / moved } else { 1.0 }
    }
}

impl Operations {
    /// Products by tensor cores, of all types.
    pub fn mma(&self) -> f64 {
        self.mma_f16 + self.mma_bf16 + self.mma_tf32 + self.mma_f64
    }
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        *self = self.with(other, &|sum, new| sum + new);
    }

    /// Of `all` blocks, where so many counted `self` and the first some of them `first`: all others
    /// are taken to be like those after the first, which found caches filled and weights read.
    pub fn extrapolated(&self, first: (&Counts, usize), counted: usize, all: usize) -> Counts {
        let (first, some) = first;
        let factor = (all - some) as f64 / (counted - some) as f64;
        first.with(self, &|first, whole| first + (whole - first) * factor)
    }
}

/// What bounds counts that are scaled from some blocks, which do not see what they share with the others.
pub(super) struct Bounds {
    /// Sectors of all that is loaded from, and of all that is stored to.
    pub loaded: f64,
    pub stored: f64,
    /// Of the L2 cache.
    pub l2: f64,
    /// How often multiprocessors are filled with blocks.
    pub waves: f64,
}

impl Counts {
    /// Different sectors are no more than there are. What blocks share that run at the same time is read from
    /// memory once for all of them, and once for all blocks if everything has room in the L2 cache.
    pub fn within(mut self, bounds: &Bounds) -> Counts {
        let global = &mut self.global;
        let most = |count: &mut f64, bound: f64| *count = count.min(bound);
        most(&mut global.load_sectors_compulsory, bounds.loaded);
        most(&mut global.store_sectors_compulsory, bounds.stored);
        let once = global.load_sectors_compulsory;
        let times = if once <= bounds.l2 { 1.0 } else { bounds.waves };
        most(&mut global.load_sectors_past_l2, times * once);
        self
    }
}

/// What one block did, and the sectors it asked for that others may find in the L2 cache.
pub(super) struct Block {
    counts: Counts,
    past_l1: Vec<u64>,
    loaded: Vec<u64>,
    stored: Vec<u64>,
}

impl Block {
    /// Of a block of so many threads, with so many bytes of L1 cache.
    pub fn new(
        recording: &Recording,
        threads: usize,
        l1: u64,
        is_global: impl Fn(u64) -> bool,
    ) -> Self {
        let mut block = Block {
            counts: Counts::default(),
            past_l1: Vec::new(),
            loaded: Vec::new(),
            stored: Vec::new(),
        };
        let counts = &mut block.counts;
        let count = |which: usize| recording.counts[which] as f64;
        counts.operations.fused_f32 = count(FUSED_F32);
        counts.operations.fused_f64 = count(FUSED_F64);
        counts.operations.mma_f16 = count(MMA_F16);
        counts.operations.mma_bf16 = count(MMA_BF16);
        counts.operations.mma_tf32 = count(MMA_TF32);
        counts.operations.mma_f64 = count(MMA_F64);
        counts.operations.exchanges = count(EXCHANGES);
        let meetings =
            recording.records.iter().filter(|record| record.kind == Kind::Meeting).count();
        counts.operations.barriers = meetings as f64 / threads as f64;
        let warps = requests(&recording.records, threads, is_global);
        let mut waits = BTreeSet::new();
        let mut l1 = Cache::new(l1);
        // Warps take turns, request by request.
        let longest = warps.iter().map(Vec::len).max().unwrap_or(0);
        let mut pieces = Vec::new();
        for at in 0..longest {
            for (warp, requests) in warps.iter().enumerate() {
                let Some(request) = requests.get(at) else { continue };
                let size = WARP.min(threads - warp * WARP) as u32;
                block.take(request, size, &mut l1, &mut pieces, &mut waits);
            }
        }
        // Loads of a warp follow each other, some at a time, even where no barrier waits for them.
        let loads = |requests: &Vec<Request>| {
            let read = |request: &&Request| !request.shared && request.kind == Kind::Load;
            requests.iter().filter(read).count()
        };
        let most = warps.iter().map(loads).max().unwrap_or(0);
        block.counts.waits = (waits.len() as f64).max(most as f64 / LOADS_AT_A_TIME);
        block
    }

    fn take(
        &mut self,
        request: &Request,
        size: u32,
        l1: &mut Cache,
        pieces: &mut Vec<u64>,
        waits: &mut BTreeSet<u32>,
    ) {
        let counts = &mut self.counts;
        let lanes = request.lanes.count_ones();
        counts.lanes += f64::from(size);
        counts.idle_lanes += f64::from(size - lanes);
        let bytes = f64::from(lanes) * f64::from(request.bytes);
        if request.shared {
            let (taken, ideal) = wavefronts(request);
            counts.shared.requests += 1.0;
            counts.shared.wavefronts += taken as f64;
            counts.shared.wavefronts_ideal += ideal as f64;
            counts.shared.matrix_loads += f64::from(u8::from(request.kind == Kind::MatrixRow));
            return;
        }
        request.pieces(LINE, pieces);
        let lines = pieces.len() as f64;
        request.pieces(SECTOR, pieces);
        match request.kind {
            Kind::Load | Kind::CopyLoad | Kind::CopyLoadPastL1 => {
                counts.global.load_requests += 1.0;
                counts.global.load_bytes += bytes;
                counts.global.load_sectors += pieces.len() as f64;
                counts.global.load_lines += lines;
                counts.operations.copies += f64::from(u8::from(request.kind != Kind::Load));
                let past = pieces
                    .iter()
                    .copied()
                    .filter(|&sector| request.kind == Kind::CopyLoadPastL1 || l1.misses(sector));
                let before = self.past_l1.len();
                self.past_l1.extend(past);
                counts.global.load_sectors_past_l1 += (self.past_l1.len() - before) as f64;
                self.loaded.extend(pieces.iter());
                if request.kind == Kind::CopyLoadPastL1 {
                    counts.around_l1 += pieces.len() as f64;
                }
                if request.kind == Kind::Load {
                    waits.insert(request.interval);
                }
            }
            Kind::Atomic => {
                counts.global.atomics += f64::from(lanes);
                self.stored.extend(pieces.iter());
            }
            _ => {
                counts.global.store_requests += 1.0;
                counts.global.store_bytes += bytes;
                counts.global.store_sectors += pieces.len() as f64;
                counts.global.store_lines += lines;
                self.stored.extend(pieces.iter());
            }
        }
    }
}

/// Blocks of a launch, added up in their order.
pub(super) struct Total {
    pub counts: Counts,
    l2: Cache,
    loaded: Touched,
    stored: Touched,
}

impl Total {
    pub fn new(l2: u64) -> Self {
        let (loaded, stored) = (Touched::default(), Touched::default());
        Total { counts: Counts::default(), l2: Cache::new(l2), loaded, stored }
    }

    pub fn add(&mut self, block: &Block) {
        self.counts.add(&block.counts);
        let missed = block.past_l1.iter().filter(|&&sector| self.l2.misses(sector)).count();
        self.counts.global.load_sectors_past_l2 += missed as f64;
        block.loaded.iter().for_each(|&sector| self.loaded.insert(sector));
        block.stored.iter().for_each(|&sector| self.stored.insert(sector));
        self.counts.global.load_sectors_compulsory = self.loaded.len() as f64;
        self.counts.global.store_sectors_compulsory = self.stored.len() as f64;
    }

    /// Sectors of the allocations that something was loaded from, and stored to.
    pub fn surroundings(&self, allocations: &[Range<u64>]) -> [f64; 2] {
        [&self.loaded, &self.stored].map(|touched| touched.surroundings(allocations) as f64)
    }
}
