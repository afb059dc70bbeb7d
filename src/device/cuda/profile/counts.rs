//! What the blocks of a launch did, counted.

use std::collections::BTreeSet;

use super::cache::{Cache, LINE, SECTOR, Touched};
use super::record::{
    EXCHANGES, FUSED_F32, FUSED_F64, Kind, MMA_BF16, MMA_F16, MMA_TF32, Recording,
};
use super::requests::{Request, WARP, requests, wavefronts};

macro_rules! counts {
    ($($(#[$about:meta])* $name:ident,)+) => {
        /// Totals over blocks.
        #[derive(Clone, Copy, Debug, Default, PartialEq)]
        pub(super) struct Counts {
            $($(#[$about])* pub $name: f64,)+
        }

        impl Counts {
            pub fn add(&mut self, other: &Counts) {
                $(self.$name += other.$name;)+
            }

            /// Of `all` blocks, where so many counted `self` and the first some of them `first`: all others
            /// are taken to be like those after the first, which found caches filled and weights read.
            pub fn extrapolated(&self, first: (&Counts, usize), counted: usize, all: usize) -> Counts {
                let (first, some) = first;
                let factor = (all - some) as f64 / (counted - some) as f64;
                Counts { $($name: first.$name + (self.$name - first.$name) * factor,)+ }
            }
        }
    };
}

counts! {
    load_requests,
    load_bytes,
    load_sectors,
    load_lines,
    load_sectors_past_l1,
    load_sectors_past_l2,
    load_sectors_compulsory,
    store_requests,
    store_bytes,
    store_sectors,
    store_lines,
    store_sectors_compulsory,
    atomics,
    shared_requests,
    shared_wavefronts,
    shared_wavefronts_ideal,
    matrix_loads,
    copies,
    /// Products with an addition, of single threads.
    fused_f32,
    fused_f64,
    /// Instructions of a warp.
    mma_f16,
    mma_bf16,
    mma_tf32,
    exchanges,
    barriers,
    /// Lanes that did not take part in requests, and all lanes of these.
    idle_lanes,
    lanes,
    /// Barrier intervals of blocks in which something is read from memory and waited for.
    waits,
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
        counts.fused_f32 = count(FUSED_F32);
        counts.fused_f64 = count(FUSED_F64);
        counts.mma_f16 = count(MMA_F16);
        counts.mma_bf16 = count(MMA_BF16);
        counts.mma_tf32 = count(MMA_TF32);
        counts.exchanges = count(EXCHANGES);
        let meetings =
            recording.records.iter().filter(|record| record.kind == Kind::Meeting).count();
        counts.barriers = meetings as f64 / threads as f64;
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
        block.counts.waits = waits.len() as f64;
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
            counts.shared_requests += 1.0;
            counts.shared_wavefronts += taken as f64;
            counts.shared_wavefronts_ideal += ideal as f64;
            counts.matrix_loads += f64::from(u8::from(request.kind == Kind::MatrixRow));
            return;
        }
        request.pieces(LINE, pieces);
        let lines = pieces.len() as f64;
        request.pieces(SECTOR, pieces);
        match request.kind {
            Kind::Load | Kind::CopyLoad | Kind::CopyLoadPastL1 => {
                counts.load_requests += 1.0;
                counts.load_bytes += bytes;
                counts.load_sectors += pieces.len() as f64;
                counts.load_lines += lines;
                counts.copies += f64::from(u8::from(request.kind != Kind::Load));
                let past = pieces
                    .iter()
                    .copied()
                    .filter(|&sector| request.kind == Kind::CopyLoadPastL1 || l1.misses(sector));
                let before = self.past_l1.len();
                self.past_l1.extend(past);
                counts.load_sectors_past_l1 += (self.past_l1.len() - before) as f64;
                self.loaded.extend(pieces.iter());
                if request.kind == Kind::Load {
                    waits.insert(request.interval);
                }
            }
            Kind::Atomic => {
                counts.atomics += f64::from(lanes);
                self.stored.extend(pieces.iter());
            }
            _ => {
                counts.store_requests += 1.0;
                counts.store_bytes += bytes;
                counts.store_sectors += pieces.len() as f64;
                counts.store_lines += lines;
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
        self.counts.load_sectors_past_l2 += missed as f64;
        block.loaded.iter().for_each(|&sector| self.loaded.insert(sector));
        block.stored.iter().for_each(|&sector| self.stored.insert(sector));
        self.counts.load_sectors_compulsory = self.loaded.len() as f64;
        self.counts.store_sectors_compulsory = self.stored.len() as f64;
    }
}
