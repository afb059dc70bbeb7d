//! The loops of the definition, one element at a time: slow, easy to believe, and without workspace.

use crate::covariance::options::{Update, WeightSharing};
use crate::covariance::problem::{Part, Problem};
use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::geometry::{Layout, unravel};
use crate::plan::Pass;
use crate::workers::{Room, Shared, Workers};

#[derive(Debug)]
pub(crate) struct Naive {
    problem: Problem,
    /// For each tap of the layer its part, and the tap in that; `None` where no output reads through it.
    taps: Vec<Option<(usize, usize)>>,
}

/// What a row of the matrix holds the products of.
#[derive(Clone, Copy)]
enum Row<'a> {
    /// A channel, counted over all groups, through a tap of a part; `None` where nothing is read.
    Entry { channel: usize, tap: Option<(&'a Part, usize)> },
    /// The appended 1.
    Bias,
}

impl Naive {
    pub fn new(p: &Problem, passes: &mut Vec<Pass>) -> (Self, Workers) {
        let mut taps = vec![None; p.taps];
        for (number, part) in p.parts.iter().enumerate() {
            part.taps.iter().enumerate().for_each(|(tap, &of)| taps[of] = Some((number, tap)));
        }
        let tasks = p.groups * p.rows();
        passes.push(Pass::on_cpu("loops of the definition", tasks));
        (Naive { problem: p.clone(), taps }, Workers::new(tasks, Room::default()))
    }

    pub fn run<T: Element, F: Accumulator>(
        &self,
        workers: &Workers,
        x: &[T],
        update: Update,
        target: &mut [F],
    ) -> Result<()> {
        let p = &self.problem;
        let (d, stored) = (p.rows(), p.stored());
        let shared = Shared::new(target);
        let (decay, scale) = (F::from_f64(update.decay), F::from_f64(update.scale));
        workers.share_out(p.groups * d, &mut [], |task, _| {
            let (group, i) = (task / d, task % d);
            let start = group * stored + p.storage.row(d, i);
            for j in 0..=i {
                let sum = self.sum::<T, F>(x, self.row(group, i), self.row(group, j));
                // SAFETY: this task alone has the lower triangle's row i, and reads and writes no other.
                let at = unsafe { &mut shared.run(start + j, 1)[0] };
                let old = if update.decay == 0.0 { F::ZERO } else { decay * *at };
                *at = old + scale * sum;
            }
            Ok(())
        })?;
        super::mirror(workers, p, target)
    }

    fn row(&self, group: usize, row: usize) -> Row<'_> {
        let p = &self.problem;
        if row == p.entries() {
            return Row::Bias;
        }
        let (channel, tap) = p.entry(row);
        let tap = self.taps[tap].map(|(part, tap)| (&p.parts[part], tap));
        Row::Entry { channel: group * p.channels_per_group() + channel, tap }
    }

    /// The sum of the products of two entries.
    fn sum<T: Element, F: Accumulator>(&self, x: &[T], i: Row<'_>, j: Row<'_>) -> F {
        let p = &self.problem;
        let mut sum = F::ZERO;
        for n in 0..p.batch {
            let value = |row, o| self.value::<T, F>(x, n, row, o);
            match (p.sharing, i, j) {
                (WeightSharing::Reduce, ..) => {
                    sum += self.total::<T, F>(x, n, i) * self.total::<T, F>(x, n, j)
                }
                (WeightSharing::Expand, Row::Bias, other)
                | (WeightSharing::Expand, other, Row::Bias) => {
                    sum += self.total::<T, F>(x, n, other)
                }
                (
                    WeightSharing::Expand,
                    Row::Entry { tap: Some((part, _)), .. },
                    Row::Entry { tap: Some((other, _)), .. },
                ) if std::ptr::eq(part, other) => {
                    (0..part.axes.outputs()).for_each(|o| sum += value(i, o) * value(j, o));
                }
                // Outputs of different phases.
                (WeightSharing::Expand, Row::Entry { .. }, Row::Entry { .. }) => {}
            }
        }
        sum
    }

    /// The sum of an entry over an image's outputs.
    fn total<T: Element, F: Accumulator>(&self, x: &[T], n: usize, row: Row<'_>) -> F {
        match row {
            Row::Bias => F::from_f64(self.problem.positions as f64),
            Row::Entry { tap: None, .. } => F::ZERO,
            Row::Entry { tap: Some((part, _)), .. } => (0..part.axes.outputs())
                .fold(F::ZERO, |sum, o| sum + self.value::<T, F>(x, n, row, o)),
        }
    }

    /// What an entry of the patch at an output of its part is.
    fn value<T: Element, F: Accumulator>(&self, x: &[T], n: usize, row: Row<'_>, o: usize) -> F {
        let Row::Entry { channel, tap: Some((part, tap)) } = row else { return F::ONE };
        let p = &self.problem;
        let [o_d, o_h, o_w] = unravel(o, part.axes.output_extents());
        let [k_d, k_h, k_w] = unravel(tap, part.axes.tap_extents());
        let [d, h, w] = &*part.axes;
        let (Some(d), Some(y), Some(z)) =
            (d.source(o_d, k_d), h.source(o_h, k_h), w.source(o_w, k_w))
        else {
            return F::ZERO;
        };
        let at = (d * h.inputs() + y) * w.inputs() + z;
        let image = n * p.channels * part.axes.inputs();
        let at = match p.layout {
            Layout::ChannelsFirst => image + channel * part.axes.inputs() + at,
            Layout::ChannelsLast => image + at * p.channels + channel,
        };
        F::from_f64(x[at].to_f64())
    }
}
