//! The dense gathering filter on the CPU: tasks fill lines of it.

use super::{FilterSize, one};
use crate::element::Element;
use crate::error::Result;
use crate::geometry::Layout;
use crate::plan::{Explanation, Pass};
use crate::workers::{Room, Shared, Workers};

/// Bytes a task should write at least, so that scheduling does not show.
const TASK_BYTES: usize = 128 << 10;

/// How the filter is filled.
#[derive(Debug)]
pub(crate) struct Filter {
    /// Elements of a line.
    width: usize,
    /// Line l has a one at l % block and, if it is longer than that, every `block` elements from there.
    block: usize,
    /// Lines of a task.
    lines: usize,
    tasks: usize,
}

impl Filter {
    pub(super) fn new<T: Element>(
        layout: Layout,
        size: &FilterSize,
        explanation: &mut Explanation,
    ) -> (Self, Workers) {
        // Flattened to two axes, the weight is the matrix or, with channels last, its transpose.
        let (height, width) = match layout {
            Layout::ChannelsFirst => (size.rows, size.block),
            Layout::ChannelsLast => (size.block, size.rows),
        };
        let lines = (TASK_BYTES / size_of::<T>() / width).max(1);
        let tasks = height.div_ceil(lines);
        explanation.reason = "all but the ones is zero".into();
        explanation.passes.push(Pass::on_cpu("fill lines", tasks).with_tile([lines, width]));
        let workers = Workers::new(tasks, Room::default());
        (Filter { width, block: size.block, lines, tasks }, workers)
    }

    /// Writes all of `filter`.
    pub(super) fn run<T: Element>(
        &self,
        workers: &Workers,
        filter: &mut [T],
        memory: &mut [u8],
    ) -> Result<()> {
        let (all, filter) = (filter.len(), Shared::new(filter));
        let each = self.lines * self.width;
        workers.share_out(self.tasks, memory, |task, _| {
            let start = task * each;
            // SAFETY: parts of different tasks do not overlap.
            let target = unsafe { filter.run(start, each.min(all - start)) };
            target.fill(T::default());
            for (line, target) in target.chunks_exact_mut(self.width).enumerate() {
                let first = (task * self.lines + line) % self.block;
                target[first..].iter_mut().step_by(self.block).for_each(|one| *one = self::one());
            }
            Ok(())
        })
    }
}
