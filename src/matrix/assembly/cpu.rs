//! Assembly on the CPU: every task writes a contiguous range of rows, front to back.
//!
//! The closed-form row pointers say where each range goes, so tasks share nothing. Large matrices are
//! written past the caches. Beyond the matrix itself a task keeps the templates of one channel.

use std::ops::Range;

use super::places::{Places, row_ranges};
use super::template::{BLOCK, Rows, Slots, Templates};
use crate::element::Element;
use crate::error::Result;
use crate::matrix::index::Index;
use crate::matrix::storage::Extent;
use crate::matrix::target::CsrBuffers;
use crate::plan::{Explanation, Pass};
use crate::stream::{StreamWriter, worthwhile};
use crate::workers::{Scratch, Shared, Workers};

/// Tasks per thread, so that a thread that is late does not hold up the others for long.
const TASKS_PER_THREAD: usize = 4;

/// How a matrix is written, and all tables for it.
#[derive(Debug)]
pub(crate) struct Assembly {
    places: Places,
    slots: Slots,
    tasks: Vec<Task>,
    /// Whether the matrix is written past the caches.
    streaming: bool,
}

/// Rows of the matrix, and where their entries go.
#[derive(Debug)]
struct Task {
    rows: Range<usize>,
    entries: Range<usize>,
}

impl Assembly {
    /// A plan for elements of this type, and whom it takes.
    pub(super) fn new<T: Element>(
        places: Places,
        extent: &Extent,
        explanation: &mut Explanation,
    ) -> (Self, Workers) {
        let ranges = row_ranges(extent.rows, rayon::current_num_threads() * TASKS_PER_THREAD);
        let tasks = ranges.into_iter().map(|rows| {
            let entries = places.entries_before(rows.start)..places.entries_before(rows.end);
            Task { rows, entries }
        });
        let tasks: Vec<_> = tasks.collect();
        let slots = Slots::new(&places);
        let room = slots.room::<T>(&places, extent.width.size());
        let streaming = worthwhile(extent.nnz * (extent.width.size() + size_of::<T>()));
        explanation.algorithm = "templates".into();
        explanation.reason =
            "rows that look alike are made once for each channel, and copied".into();
        let stores = if streaming { "stores past the caches" } else { "stores to the caches" };
        explanation.passes.push(Pass::on_cpu("write rows", tasks.len()).by(stores));
        let workers = Workers::new(tasks.len(), room);
        (Assembly { places, slots, tasks, streaming }, workers)
    }

    /// Writes all of the matrix into buffers of its size and index width.
    pub(super) fn run<T: Element, I: Index>(
        &self,
        workers: &Workers,
        weight: &[T],
        bias: Option<&[T]>,
        target: CsrBuffers<'_, T, I>,
        memory: &mut [u8],
    ) -> Result<()> {
        let CsrBuffers { indptr, indices, data } = target;
        let (last, starts) =
            indptr.split_last_mut().expect("there is one more row pointer than rows");
        *last = I::from_usize(data.len());
        let (starts, indices, data) =
            (Shared::new(starts), Shared::new(indices), Shared::new(data));
        workers.share_out(self.tasks.len(), memory, |task, scratch| {
            let Task { rows, entries } = &self.tasks[task];
            // SAFETY: rows and entries belong to one task each.
            let part = unsafe {
                CsrBuffers {
                    indptr: starts.run(rows.start, rows.len()),
                    indices: indices.run(entries.start, entries.len()),
                    data: data.run(entries.start, entries.len()),
                }
            };
            self.write_rows(&self.tasks[task], weight, bias, part, scratch);
            Ok(())
        })
    }

    /// Writes a task's rows.
    fn write_rows<T: Element, I: Index>(
        &self,
        task: &Task,
        weight: &[T],
        bias: Option<&[T]>,
        target: CsrBuffers<'_, T, I>,
        scratch: &mut Scratch<'_>,
    ) {
        let Assembly { places, slots, streaming, .. } = self;
        let mut templates = Templates::<T, I>::new(places, slots, scratch);
        let mut columns = StreamWriter::new(target.indices, *streaming);
        let mut values = StreamWriter::new(target.data, *streaming);
        let mut moved = [I::from_usize(0); BLOCK];
        let bias_column = places.bias_column();
        let line_length = places.axes[2].rows.rows();
        let mut pointer = task.entries.start;
        let mut row = task.rows.start;
        while row < task.rows.end {
            let mut position = places.position(row);
            templates.select(position, weight);
            let bias = bias.map(|bias| bias[position.channel]);
            let line_end = task.rows.end.min(row + line_length - position.at[2]);
            while row < line_end {
                let block = templates.rows(position.at[2], line_end - row, bias);
                let starts = &mut target.indptr[row - task.rows.start..][..block.count];
                for (number, start) in starts.iter_mut().enumerate() {
                    *start = I::from_usize(pointer + number * block.length);
                }
                let first = places.first_column(position);
                write_columns(&block, first, bias_column, &mut moved, &mut columns);
                values.write(block.values);
                pointer += block.values.len();
                row += block.count;
                position.at[2] += block.count;
            }
        }
    }
}

/// Writes a block's columns, moved to where its first row starts.
fn write_columns<T, I: Index>(
    block: &Rows<'_, T, I>,
    first: usize,
    bias_column: Option<usize>,
    moved: &mut [I; BLOCK],
    target: &mut StreamWriter<'_, I>,
) {
    let shift = I::from_usize(first);
    let mut offset = 0;
    for piece in block.columns.chunks(BLOCK) {
        let moved = &mut moved[..piece.len()];
        for (moved, column) in moved.iter_mut().zip(piece) {
            *moved = column.plus(shift);
        }
        if let Some(column) = bias_column {
            // The bias is each row's last entry.
            let mut end = (offset / block.length + 1) * block.length - 1;
            while end < offset + piece.len() {
                moved[end - offset] = I::from_usize(column);
                end += block.length;
            }
        }
        target.write(moved);
        offset += piece.len();
    }
}
