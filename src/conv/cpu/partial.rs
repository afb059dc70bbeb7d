//! Weight gradients: sums over all images and positions, cut into as many parts as the shape, not the
//! number of threads, calls for.

use std::ops::Range;

use rayon::prelude::*;

use super::runs::{self, Scratch, Shared, digits, piece};
use crate::conv::problem::Problem;
use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::memory::try_zeroed;

/// Tasks there should be at least, when there are enough tiles.
const TASKS: usize = 16;
/// Bytes of partial sums over all tasks, at most.
const PARTIAL_BYTES: usize = 16 << 20;

/// What a task has to do: one block of the weight, over some of the tiles.
pub(super) struct Part<const N: usize> {
    /// Which block, by coordinates.
    pub block: [usize; N],
    pub tiles: Range<usize>,
}

/// A task's memory.
pub(super) type Workspace<A> = [Scratch<A>; 4];

/// Writes a task's sums: outputs (over all groups) by patch entries, laid out as that block of the
/// weight and contiguous.
pub(super) type Write<'a, A> = &'a (dyn Fn(Range<usize>, Range<usize>, &mut [A]) + Sync);

/// Runs `sum` for every block and a number of chunks of the tiles, and adds up the chunks' results, in
/// order, into `dw`.
///
/// # Safety
/// The blocks must cover the weight, and different blocks must be disjoint: `sum` may `Write` only to
/// the block it is given.
pub(super) unsafe fn sum_over_tiles<T: Element, const N: usize>(
    p: &Problem,
    blocks: [usize; N],
    tiles: usize,
    dw: &mut [T],
    sum: impl Fn(Part<N>, &mut Workspace<T::Acc>, Write<'_, T::Acc>) -> Result<()> + Sync,
) -> Result<()> {
    if tiles == 0 {
        dw.fill(T::default());
        return Ok(());
    }
    let count: usize = blocks.iter().product();
    let affordable = (PARTIAL_BYTES / size_of::<T::Acc>() / dw.len()).max(1);
    let wanted = TASKS.div_ceil(count).min(tiles).min(affordable);
    let per_chunk = tiles.div_ceil(wanted);
    let chunks = tiles.div_ceil(per_chunk);
    let init = || Workspace::<T::Acc>::default();
    let part = |task: usize| {
        let (chunk, block) = (task / count, task % count);
        Part { block: digits(block, blocks), tiles: piece(tiles, per_chunk, chunk) }
    };
    if chunks == 1 {
        let target = Shared::new(dw);
        return (0..count).into_par_iter().try_for_each_init(init, |scratch, task| {
            let write = |outputs: Range<usize>, entries: Range<usize>, sums: &mut [T::Acc]| {
                let runs = runs::weight(p, outputs, entries);
                // SAFETY: tasks have disjoint blocks, as promised by the caller.
                unsafe { runs::write(p.layout, sums, runs.len, None, &target, runs) };
            };
            sum(part(task), scratch, &write)
        });
    }
    let len = dw.len();
    let mut partial = try_zeroed::<T::Acc>("partial weight gradients", chunks * len)?;
    let target = Shared::new(&mut partial);
    (0..count * chunks).into_par_iter().try_for_each_init(init, |scratch, task| {
        let write = |outputs: Range<usize>, entries: Range<usize>, sums: &mut [T::Acc]| {
            let mut runs = runs::weight(p, outputs, entries);
            runs.start += task / count * len;
            // SAFETY: as above, and chunks have a copy of the weight each.
            unsafe { runs::write(p.layout, sums, runs.len, None, &target, runs) };
        };
        sum(part(task), scratch, &write)
    })?;
    dw.par_iter_mut().enumerate().for_each(|(index, dw)| {
        let parts = partial[index..].iter().step_by(len);
        *dw = T::from_acc(parts.fold(T::Acc::ZERO, |sum, &part| sum + part));
    });
    Ok(())
}
