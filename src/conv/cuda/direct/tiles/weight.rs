//! The gradient by the weight: chunks of the tiles of each group, whose sums the last block of the group adds up, or
//! another launch.

use super::{Operation, Shape, Tile};
use crate::conv::cuda::arguments::spec;
use crate::conv::cuda::finish::{Sums, finish};
use crate::conv::problem::Problem;
use crate::device::cuda::structs::{DirectTilesArgs, DirectTilesWeightArgs};
use crate::device::cuda::{BANK_BYTES, Draft, Pointer, Region, blocks};
use crate::element::Element;
use crate::error::Result;

/// Blocks of the weight's kernel for each multiprocessor that are worth having, at least and at most, where GPUs have
/// about as many as an H100; and bytes of their partial sums.
const BLOCKS: [usize; 2] = [2, 7];
pub(super) const MULTIPROCESSORS: usize = 132;
const PARTIAL_BYTES: usize = 32 << 20;
/// Chunks that the last block adds up: each thread reads an element of each; and blocks that are enough, where
/// these are no more.
const PARTS: usize = 64;
const ENOUGH_BLOCKS: usize = 256;
/// Instructions of threads in the time of another launch, about.
pub(super) const SECOND_LAUNCH: f64 = 8e7;

/// Tiles of the weight's kernel.
pub(super) struct Chunks {
    /// Blocks over groups.
    pub groups: usize,
    /// Tiles of each over all images, in a chunk at most, and chunks.
    pub count: usize,
    pub length: usize,
    pub chunks: usize,
    /// Whether the last block of each group adds up its chunks, and no other launch.
    pub together: bool,
}

impl Chunks {
    /// How many blocks a multiprocessor has to run, one after the other or together.
    pub fn rounds(&self) -> usize {
        (self.groups * self.chunks).div_ceil(MULTIPROCESSORS)
    }
}

impl Tile {
    /// Writes `dw`.
    pub fn launch_weight<T: Element>(
        &self,
        draft: &mut Draft,
        p: &Problem,
        [x, dy, dw]: [Region<T>; 3],
    ) -> Result<()> {
        let shape = &Shape::new::<T>(p, Operation::BackwardWeight);
        let shared_out = self.chunks(shape);
        draft.expect(self.weight_work(shape, &shared_out));
        let Chunks { groups, count, length, chunks, together } = shared_out;
        let elements = dw.len();
        let held = draft.held();
        let partials = if chunks > 1 { chunks * elements } else { 0 };
        let partial = draft.workspace::<T::Acc>("partial weight gradients", partials)?;
        let counters = match chunks > 1 && together {
            true => draft.counters("counters of blocks", groups),
            false => Pointer::NULL,
        };
        let arguments = DirectTilesWeightArgs {
            tiles: DirectTilesArgs {
                operand: x.pointer(),
                result: dw.pointer(),
                ..self.arguments(shape)
            },
            gradient: dy.pointer(),
            partial: partial.pointer(),
            counters,
            length: (count / chunks) as i64,
            longer: (count % chunks) as i64,
            parts: if together { chunks as i64 } else { 0 },
            elements: elements as i64,
        };
        let largest = (chunks + 1) * length.max(elements).max(groups);
        let spec = spec::<T>(draft.device(), p, "direct_tiles.cu", "direct_tiles_weight", largest);
        let spec = self.spec(spec, shape).define("WEIGHT", 1);
        let threads = self.block(shape) as u32;
        // SAFETY: the operands have the problem's extents, outside of which the kernel does not reach; it
        // writes the partial sums, a weight's length for each chunk, and `dw` where it adds them up.
        unsafe { draft.launch(spec, blocks(groups * chunks, 1)?, threads, &arguments) };
        if !together {
            let sums = Sums { parts: chunks, part: elements, ..Sums::whole(partial.into()) };
            // SAFETY: as above.
            unsafe { finish(draft, sums, None, dw)? };
        }
        draft.release(held);
        Ok(())
    }

    /// How the tiles of the weight's kernel are shared out.
    pub(super) fn chunks(&self, shape: &Shape) -> Chunks {
        let [groups, tiles @ ..] = self.grid(shape);
        let count = tiles.iter().product::<usize>() * shape.p.batch;
        let bytes = shape.p.weight_len() * shape.words * BANK_BYTES;
        let most = (PARTIAL_BYTES / bytes.max(1)).clamp(1, count.max(1));
        let together = most <= PARTS || groups * PARTS >= ENOUGH_BLOCKS;
        // Another launch where the last block would have too much left to do.
        let most = if together { most.min(PARTS) } else { most };
        let [few, many] = BLOCKS.map(|blocks| (blocks * MULTIPROCESSORS / groups).clamp(1, most));
        // As few tiles for a multiprocessor as can be.
        let chunks_of = |length: usize| {
            let chunks = count.div_ceil(length).max(1);
            Chunks { groups, count, length, chunks, together: together || chunks == 1 }
        };
        let shortest = count.div_ceil(many).max(1);
        let best = (shortest..=count.div_ceil(few)).min_by_key(|&length| {
            let chunks = chunks_of(length);
            chunks.rounds() * (chunks.length + 1)
        });
        chunks_of(best.unwrap_or(shortest))
    }

    /// Of the weight's kernel, sums of a block's threads that are stored, and read by others; and bytes of those that
    /// are left, stored and read as well.
    pub(super) fn sums(&self, shape: &Shape) -> usize {
        2 * shape.held * self.outs * self.block(shape)
    }

    pub(super) fn part(&self, shape: &Shape) -> usize {
        2 * shape.held * self.outs * self.units(shape) * shape.words * BANK_BYTES
    }
}
