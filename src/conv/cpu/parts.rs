//! Weight gradients: sums over all images and positions, in as many parts as the shape, not the number
//! of threads, calls for.

use std::ops::Range;

use super::runs::{self, Runs};
use crate::conv::problem::Problem;
use crate::element::Element;
use crate::error::Result;
use crate::patches::pieces::Pieces;
use crate::plan::Pass;
use crate::workers::{Room, Scratch, Shared, Workers, totals};

/// Tasks there should be at least, when there are enough tiles.
const TASKS: usize = 16;
/// Bytes of partial sums over all tasks, at most.
const PARTIAL_BYTES: usize = 16 << 20;

/// What a task has to do: one piece of the weight, over some of the tiles.
pub(super) struct Task {
    /// Which piece.
    pub piece: usize,
    pub tiles: Range<usize>,
}

/// Writes a task's sums: outputs (over all groups) by patch entries, laid out as that piece of the
/// weight and contiguous.
pub(super) type Write<'a, A> = &'a (dyn Fn(Range<usize>, Range<usize>, &mut [A]) + Sync);

/// How the sums of a weight gradient are split: into pieces of the weight, and each piece's sum over all
/// tiles into parts of consecutive tiles, which are then added up in order.
#[derive(Debug)]
pub(super) struct Parts {
    problem: Problem,
    pieces: usize,
    /// The tiles of each part.
    tiles: Pieces,
}

impl Parts {
    /// For a weight gradient in so many pieces, each summed over so many tiles.
    pub fn new<T: Element>(p: &Problem, pieces: usize, tiles: usize) -> Self {
        let affordable = (PARTIAL_BYTES / size_of::<T::Acc>() / p.weight_len()).max(1);
        let wanted = TASKS.div_ceil(pieces).min(tiles).min(affordable).max(1);
        let tiles = Pieces::new(tiles, tiles.div_ceil(wanted).max(1));
        Parts { problem: p.clone(), pieces, tiles }
    }

    /// Tasks that sum up.
    pub fn tasks(&self) -> usize {
        self.pieces * self.tiles.count()
    }

    /// Whom it takes, if a task takes that much room.
    pub fn workers<T: Element>(&self, room: Room) -> Workers {
        let partial = if self.tiles.count() > 1 { self.tiles.count() } else { 0 };
        let common = Room::default().and::<T::Acc>(partial * self.problem.weight_len());
        let totals = totals(self.problem.weight_len());
        Workers::new(self.tasks().max(totals), room).with_common(common)
    }

    /// What is done after the sums.
    pub fn explain(&self, passes: &mut Vec<Pass>) {
        if self.tiles.count() > 1 {
            let tasks = totals(self.problem.weight_len());
            let how = format!("{} parts of the sums, in order", self.tiles.count());
            passes.push(Pass::on_cpu("add up parts", tasks).by(how));
        }
    }

    /// Has `sum` called for every piece and part, and adds up the parts' results, in order, into `dw`.
    ///
    /// # Safety
    /// The pieces must cover the weight, and different pieces must be disjoint: `sum` may `Write` only
    /// to the piece it is given, all of it.
    pub unsafe fn sum<T: Element>(
        &self,
        workers: &Workers,
        dw: &mut [T],
        memory: &mut [u8],
        sum: impl Fn(Task, &mut Scratch, Write<'_, T::Acc>) -> Result<()> + Sync,
    ) -> Result<()> {
        let (p, parts, len) = (&self.problem, self.tiles.count(), dw.len());
        if parts == 0 {
            dw.fill(T::default());
            return Ok(());
        }
        let (mut common, memory) = workers.split(memory);
        let task = |task: usize| Task {
            piece: task % self.pieces,
            tiles: self.tiles.get(task / self.pieces),
        };
        if parts == 1 {
            let target = Shared::new(dw);
            return workers.share_out(self.pieces, memory, |number, scratch| {
                let write = |outputs: Range<usize>, entries: Range<usize>, sums: &mut [T::Acc]| {
                    let runs = runs::weight(p, outputs, entries);
                    // SAFETY: tasks have disjoint pieces, as promised by the caller.
                    unsafe { runs::write(p.layout, sums, runs.len, None, &target, runs) };
                };
                sum(task(number), scratch, &write)
            });
        }
        let partial = common.take::<T::Acc>(parts * len);
        let target = Shared::new(&mut *partial);
        workers.share_out(self.tasks(), memory, |number, scratch| {
            let write = |outputs: Range<usize>, entries: Range<usize>, sums: &mut [T::Acc]| {
                let runs = runs::weight(p, outputs, entries);
                let runs = Runs { start: runs.start + number / self.pieces * len, ..runs };
                // SAFETY: as above, and parts have a copy of the weight each.
                unsafe { runs::write(p.layout, sums, runs.len, None, &target, runs) };
            };
            sum(task(number), scratch, &write)
        })?;
        workers.add_up(partial, dw)
    }
}
