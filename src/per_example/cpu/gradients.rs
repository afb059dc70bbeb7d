//! The gradients themselves, example after example.

use super::source::{Operands, Source};
use super::tiles::Tiles;
use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::patches::pieces::digits;
use crate::per_example::problem::Problem;
use crate::plan::Explanation;
use crate::workers::{Room, Shared, Workers};

/// `∇W_n` for every n.
#[derive(Debug)]
pub(crate) struct Gradients {
    problem: Problem,
    source: Source,
    tiles: Tiles,
}

impl Gradients {
    pub fn new<T: Element, F: Accumulator>(
        p: &Problem,
        explanation: &mut Explanation,
    ) -> (Self, Workers) {
        let (source, tiles) = (Source::new::<T, F>(p, usize::MAX, false), Tiles::new::<F>(p));
        let tasks = source.chunks.longest() * tiles.pieces();
        explanation.algorithm = "tiles".into();
        explanation.reason = "every example's gradient is stored".into();
        explanation.passes.push(tiles.explain::<F>(tasks, "store"));
        let workers = Workers::new(tasks, tiles.room::<F>());
        let workers = workers.with_common(source.room::<F>(Room::default()));
        (Gradients { problem: p.clone(), source, tiles }, workers)
    }

    pub fn run<T: Element, F: Accumulator>(
        &self,
        workers: &Workers,
        operands: Operands<'_, T>,
        target: &mut [F],
        memory: &mut [u8],
    ) -> Result<()> {
        let Gradients { problem: p, source, tiles } = self;
        let (len, columns) = (p.gradient_len(), p.columns());
        let (mut common, memory) = workers.split(memory);
        let mut copies = source.copies::<F>(&mut common);
        let target = Shared::new(target);
        for chunk in source.chunks.each() {
            let read = source.load(workers, p, operands, chunk.clone(), None, &mut copies)?;
            workers.share_out(chunk.len() * tiles.pieces(), memory, |task, scratch| {
                let [n, piece] = digits(task, [chunk.len(), tiles.pieces()]);
                let first = (chunk.start + n) * len;
                tiles.sum(read.gathered, read.plain, n..n + 1, piece, scratch, |part| {
                    p.each_run(part, |row, column, values| {
                        let row = part.group * p.rows() + row;
                        // SAFETY: every element of a gradient is in one piece of it.
                        let target =
                            unsafe { target.run(first + row * columns + column, values.len()) };
                        target.copy_from_slice(values);
                    });
                });
                Ok(())
            })?;
        }
        Ok(())
    }
}
