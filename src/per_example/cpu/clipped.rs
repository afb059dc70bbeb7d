//! The sum of gradients that are each scaled to a norm of at most a limit: the norms first, then the sum of
//! the gradients of scaled dy.

use super::norms::Norms;
use super::source::{Operands, Source};
use super::tiles::Tiles;
use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::patches::pieces::{Pieces, digits};
use crate::per_example::clipped::check_norms;
use crate::per_example::problem::Problem;
use crate::plan::{Explanation, Pass};
use crate::workers::{Room, Shared, Workers};

/// Tasks there should be at least, if there are enough examples.
const TASKS: usize = 16;
/// Bytes of partial sums, at most.
const PARTIAL_BYTES: usize = 16 << 20;
/// Elements of the gradient whose parts a task adds up.
const TOTALS: usize = 16 << 10;

/// `Σ_n min(1, limit/‖∇W_n‖)·∇W_n`.
#[derive(Debug)]
pub(crate) struct Clipped {
    problem: Problem,
    norms: Norms,
    source: Source,
    tiles: Tiles,
    /// Parts that a chunk's sum is made of.
    parts: usize,
}

impl Clipped {
    pub fn new<T: Element, F: Accumulator>(
        p: &Problem,
        explanation: &mut Explanation,
    ) -> Result<(Self, Workers)> {
        let (norms, needs) = Norms::by::<T, F>(p, None, explanation)?;
        let (source, tiles) = (Source::new::<T, F>(p, usize::MAX, true), Tiles::new::<F>(p));
        let affordable = PARTIAL_BYTES / size_of::<F>() / p.gradient_len().max(1);
        let most = source.chunks.longest().min(affordable).max(1);
        let parts = TASKS.div_ceil(tiles.pieces().max(1)).min(most);
        let tasks = parts * tiles.pieces();
        explanation.algorithm = format!("{}, then scaled", explanation.algorithm);
        explanation.passes.push(tiles.explain::<F>(tasks, "sum up over scaled examples"));
        let totals = p.gradient_len().div_ceil(TOTALS);
        explanation.passes.push(
            Pass::on_cpu("add up parts", totals).by(format!("{parts} parts a sum, in order")),
        );
        let common = Room::default().and::<F>(p.batch).and::<F>(parts * p.gradient_len());
        // The norms' memory is used again for the sum.
        let tasks = tasks.max(totals).max(needs.tasks);
        let workers = Workers::new(tasks, tiles.room::<F>().or(needs.room));
        let workers = workers.with_common(source.room::<F>(common).or(needs.common));
        Ok((Clipped { problem: p.clone(), norms, source, tiles, parts }, workers))
    }

    /// Writes the sum and the norms.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] when a norm is not finite; the gradient then is as it was.
    pub fn run<T: Element, F: Accumulator>(
        &self,
        workers: &Workers,
        operands: Operands<'_, T>,
        limit: f64,
        [gradient, norms]: [&mut [F]; 2],
        memory: &mut [u8],
    ) -> Result<()> {
        let Clipped { problem: p, source, tiles, parts, .. } = self;
        let (mut common, memory) = workers.split(memory);
        self.norms.find(workers, operands, norms, common.part(), memory)?;
        check_norms(norms)?;
        let factors = common.take::<F>(p.batch);
        for (factor, norm) in factors.iter_mut().zip(&*norms) {
            let norm = norm.to_f64();
            *factor = F::from_f64(if norm > limit { limit / norm } else { 1.0 });
        }
        let factors = &*factors;
        let (len, columns) = (p.gradient_len(), p.columns());
        let sums = common.take::<F>(parts * len);
        let mut copies = source.copies::<F>(&mut common);
        gradient.fill(F::ZERO);
        for chunk in source.chunks.each() {
            let examples = Pieces::new(chunk.len(), chunk.len().div_ceil(*parts));
            let read = source.load(workers, p, operands, chunk, Some(factors), &mut copies)?;
            let target = Shared::new(&mut *sums);
            workers.share_out(examples.count() * tiles.pieces(), memory, |task, scratch| {
                let [part, piece] = digits(task, [examples.count(), tiles.pieces()]);
                let (first, images) = (part * len, examples.get(part));
                tiles.sum(read.gathered, read.plain, images, piece, scratch, |part| {
                    p.each_run(part, |row, column, values| {
                        let row = part.group * p.rows() + row;
                        // SAFETY: every element of a part is in one piece of it.
                        let target =
                            unsafe { target.run(first + row * columns + column, values.len()) };
                        target.copy_from_slice(values);
                    });
                });
                Ok(())
            })?;
            let sums = &*sums;
            workers.share_out_slice(gradient, TOTALS, |start, gradient| {
                for part in sums.chunks_exact(len).take(examples.count()) {
                    let pairs = gradient.iter_mut().zip(&part[start..]);
                    pairs.for_each(|(sum, &part)| *sum += part);
                }
            })?;
        }
        Ok(())
    }
}
