//! The bias gradient: the sum of each channel of dy.
//!
//! | layout | a task sums up |
//! |---|---|
//! | channels first | a channel, plane after plane |
//! | channels last | all channels of some positions; these partial sums are then added up in order |

use crate::element::{Accumulator, Element, each_batch};
use crate::error::Result;
use crate::geometry::Layout;
use crate::patches::pieces::Pieces;
use crate::plan::{Explanation, Pass};
use crate::workers::{Room, Shared, Workers};

/// Positions that a task sums up, channels last.
const POSITIONS: usize = 1024;
/// Channels whose partial sums a task adds up.
const TOTALS: usize = 64;

/// `db[c]` = sum of channel c of `dy`.
#[derive(Debug)]
pub(crate) struct BackwardBias {
    layout: Layout,
    batch: usize,
    outputs: usize,
    /// Positions of an image.
    positions: usize,
    /// Pieces of the positions of all images.
    pieces: Pieces,
}

impl BackwardBias {
    /// For a gradient of so many images, channels and positions.
    pub(in crate::conv) fn new<T: Element>(
        layout: Layout,
        batch: usize,
        outputs: usize,
        positions: usize,
        explanation: &mut Explanation,
    ) -> (Self, Workers) {
        let pieces = Pieces::new(batch * positions, POSITIONS);
        let (workers, reason) = match layout {
            Layout::ChannelsFirst => {
                let how = format!("16 partial sums in {}", <T::Acc as Element>::DTYPE);
                explanation.passes.push(Pass::on_cpu("sum up a channel", outputs).by(how));
                (Workers::new(outputs, Room::default()), "a channel's planes are contiguous")
            }
            Layout::ChannelsLast => {
                let (tasks, totals) = (pieces.count(), outputs.div_ceil(TOTALS));
                let how = format!("all channels, in {}", <T::Acc as Element>::DTYPE);
                explanation.passes.push(Pass::on_cpu("sum up positions", tasks).by(how));
                let how = format!("{tasks} partial sums a channel, in order");
                explanation.passes.push(Pass::on_cpu("add up parts", totals).by(how));
                let common = Room::default().and::<T::Acc>(tasks * outputs);
                let workers = Workers::new(tasks.max(totals), Room::default());
                (workers.with_common(common), "a position's channels are contiguous")
            }
        };
        explanation.algorithm = "sums".into();
        explanation.reason = reason.into();
        (BackwardBias { layout, batch, outputs, positions, pieces }, workers)
    }

    /// Writes all of `db`.
    pub(in crate::conv) fn run<T: Element>(
        &self,
        workers: &Workers,
        dy: &[T],
        db: &mut [T],
        memory: &mut [u8],
    ) -> Result<()> {
        let Self { batch, outputs, positions, .. } = *self;
        let (mut common, _) = workers.split(memory);
        match self.layout {
            Layout::ChannelsFirst => workers.share_out_slice(db, 1, |first, db| {
                for (c, db) in (first..).zip(db) {
                    let plane = |n: usize| &dy[(n * outputs + c) * positions..][..positions];
                    let planes = (0..batch).map(plane);
                    *db = T::from_acc(planes.map(sum).fold(T::Acc::ZERO, |a, b| a + b));
                }
            }),
            Layout::ChannelsLast => {
                let partial = common.take::<T::Acc>(self.pieces.count() * outputs);
                let shared = Shared::new(&mut *partial);
                workers.share_out(self.pieces.count(), &mut [], |piece, _| {
                    // SAFETY: every task has sums of its own.
                    let sums = unsafe { shared.run(piece * outputs, outputs) };
                    sums.fill(T::Acc::ZERO);
                    let positions = self.pieces.get(piece);
                    let rows = &dy[positions.start * outputs..positions.end * outputs];
                    for row in rows.chunks_exact(outputs) {
                        each_batch(row, |start, row| {
                            sums[start..].iter_mut().zip(row).for_each(|(sum, &v)| *sum += v);
                        });
                    }
                    Ok(())
                })?;
                let partial = &*partial;
                workers.share_out_slice(db, TOTALS, |first, db| {
                    for (c, db) in (first..).zip(db) {
                        let column = partial.iter().skip(c).step_by(outputs);
                        *db = T::from_acc(column.fold(T::Acc::ZERO, |a, &b| a + b));
                    }
                })
            }
        }
    }
}

/// A sum in 16 interleaved parts: faster than one chain of additions, and more accurate.
fn sum<T: Element>(values: &[T]) -> T::Acc {
    let mut parts = [T::Acc::ZERO; 16];
    // A batch is a multiple of the parts.
    each_batch(values, |_, values| {
        let chunks = values.chunks_exact(parts.len());
        let rest = chunks.remainder();
        chunks.for_each(|chunk| parts.iter_mut().zip(chunk).for_each(|(s, &v)| *s += v));
        parts.iter_mut().zip(rest).for_each(|(s, &v)| *s += v);
    });
    parts.into_iter().fold(T::Acc::ZERO, |a, b| a + b)
}
