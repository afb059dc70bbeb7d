//! Assembly on the CPU: every task writes a contiguous range of rows, front to back.
//!
//! The closed-form row pointers say where each range goes, so tasks share nothing. Large matrices are
//! written past the caches. Beyond the matrix itself a task keeps the templates of one channel.

use std::ops::Range;

use rayon::prelude::*;

use super::index::Index;
use super::plan::{Plan, row_ranges};
use super::template::{BLOCK, Rows, Templates};
use crate::element::Element;
use crate::error::Result;
use crate::stream::{StreamWriter, worthwhile};

/// Tasks per thread, so that a thread that is late does not hold up the others for long.
const TASKS_PER_THREAD: usize = 4;

/// Rows of the matrix and where they go.
struct Task<'a, T, I> {
    rows: Range<usize>,
    /// Where each row starts, and one more element if this is the last task.
    indptr: &'a mut [I],
    indices: &'a mut [I],
    data: &'a mut [T],
}

/// Writes the matrix into buffers of exactly its size.
pub(super) fn assemble<T: Element, I: Index>(
    plan: &Plan,
    weight: &[T],
    bias: Option<&[T]>,
    indptr: &mut [I],
    indices: &mut [I],
    data: &mut [T],
) -> Result<()> {
    let streaming = worthwhile(size_of_val(indices) + size_of_val(data));
    let rows = plan.rows();
    let (last, starts) = indptr.split_last_mut().expect("there is one more row pointer than rows");
    *last = I::from_usize(data.len());
    let mut tasks = Vec::new();
    let mut rest = (starts, indices, data);
    for rows in row_ranges(rows, rayon::current_num_threads() * TASKS_PER_THREAD) {
        let size = plan.entries_before(rows.end) - plan.entries_before(rows.start);
        let (own_indptr, indptr) = rest.0.split_at_mut(rows.len());
        let (own_indices, indices) = rest.1.split_at_mut(size);
        let (own_data, data) = rest.2.split_at_mut(size);
        rest = (indptr, indices, data);
        tasks.push(Task { rows, indptr: own_indptr, indices: own_indices, data: own_data });
    }
    tasks.into_par_iter().try_for_each(|task| write_rows(plan, weight, bias, task, streaming))
}

fn write_rows<T: Element, I: Index>(
    plan: &Plan,
    weight: &[T],
    bias: Option<&[T]>,
    task: Task<'_, T, I>,
    streaming: bool,
) -> Result<()> {
    let mut templates = Templates::<T, I>::new(plan)?;
    let mut columns = StreamWriter::new(task.indices, streaming);
    let mut values = StreamWriter::new(task.data, streaming);
    let mut moved = [I::from_usize(0); BLOCK];
    let bias_column = plan.bias_column();
    let line_length = plan.axes[2].rows.rows();
    let mut pointer = plan.entries_before(task.rows.start);
    let mut row = task.rows.start;
    while row < task.rows.end {
        let mut position = plan.position(row);
        templates.select(position, weight);
        let bias = bias.map(|bias| bias[position.channel]);
        let line_end = task.rows.end.min(row + line_length - position.at[2]);
        while row < line_end {
            let block = templates.rows(position.at[2], line_end - row, bias)?;
            let starts = &mut task.indptr[row - task.rows.start..][..block.count];
            for (number, start) in starts.iter_mut().enumerate() {
                *start = I::from_usize(pointer + number * block.length);
            }
            let first = plan.first_column(position);
            write_columns(&block, first, bias_column, &mut moved, &mut columns);
            values.write(block.values);
            pointer += block.values.len();
            row += block.count;
            position.at[2] += block.count;
        }
    }
    Ok(())
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
