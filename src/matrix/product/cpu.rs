//! Products on the CPU.
//!
//! Forward products are parallel over rows. Adjoint products are parallel over ranges of columns, of
//! which each task picks its own out of every row. In both, each element of the result is one sum in
//! a fixed order: the same bytes whatever the number of threads. Half types are summed in `f32`.

use std::ops::Range;

use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::matrix::index::Index;
use crate::matrix::storage::{Extent, Pattern};
use crate::matrix::transpose::{ColumnWindow, column_ranges};
use crate::plan::{Explanation, Pass};
use crate::workers::{Room, Scratch, Shared, Workers};

/// Rows a task takes at least.
const ROWS_PER_TASK: usize = 64;

/// Tasks per thread, so that a thread with long rows does not hold up the others for long.
const TASKS_PER_THREAD: usize = 16;

/// How a matrix is multiplied.
#[derive(Debug)]
pub(crate) struct SparseProduct {
    vectors: usize,
    adjoint: bool,
    /// The rows of the result, as they are shared out.
    parts: Vec<Range<usize>>,
}

impl SparseProduct {
    /// A plan for elements of this type, and whom it takes.
    pub(super) fn new<T: Element>(
        extent: &Extent,
        adjoint: bool,
        vectors: usize,
        explanation: &mut Explanation,
    ) -> (Self, Workers) {
        // Sums of another type than the elements' are made apart from them.
        let apart = T::DTYPE != <T::Acc as Element>::DTYPE;
        let (parts, sums) = if vectors == 0 {
            (Vec::new(), 0)
        } else if adjoint {
            let ranges = column_ranges(extent.columns);
            let longest = ranges.iter().map(Range::len).max().unwrap_or(0);
            (ranges, longest * vectors)
        } else {
            let tasks = rayon::current_num_threads() * TASKS_PER_THREAD;
            let size = extent.rows.div_ceil(tasks).max(ROWS_PER_TASK);
            let starts = (0..extent.rows).step_by(size);
            let ranges = starts.map(|start| start..extent.rows.min(start + size));
            // A single vector's sum is in registers.
            (ranges.collect(), if vectors == 1 { 0 } else { vectors })
        };
        let room = Room::default().and::<T::Acc>(if apart { sums } else { 0 });
        let (algorithm, reason, what) = if adjoint {
            let reason = "each task adds up a range of columns, which it picks out of every row";
            ("columns", reason, "add up columns")
        } else {
            ("rows", "rows are summed each on its own, in a fixed order", "sum rows")
        };
        explanation.algorithm = algorithm.into();
        explanation.reason = reason.into();
        explanation.passes.push(
            Pass::on_cpu(what, parts.len()).by(format!("sums in {}", <T::Acc as Element>::DTYPE)),
        );
        let workers = Workers::new(parts.len(), room);
        (SparseProduct { vectors, adjoint, parts }, workers)
    }

    /// Writes all of `output`.
    pub(super) fn run<T: Element, I: Index>(
        &self,
        workers: &Workers,
        p: &Pattern<I>,
        data: &[T],
        input: &[T],
        output: &mut [T],
        memory: &mut [u8],
    ) -> Result<()> {
        let vectors = self.vectors;
        let output = Shared::new(output);
        workers.share_out(self.parts.len(), memory, |task, scratch| {
            let part = &self.parts[task];
            // SAFETY: the parts do not overlap.
            let target = unsafe { output.run(part.start * vectors, part.len() * vectors) };
            if self.adjoint {
                accumulate(target, scratch, |sum| {
                    adjoint_add(p, data, input, vectors, part, sum);
                });
            } else if vectors == 1 {
                for (row, target) in part.clone().zip(target) {
                    let range = p.range(row);
                    let sum = dot(&p.indices[range.clone()], &data[range], input);
                    *target = T::from_acc(sum);
                }
            } else {
                for (row, target) in part.clone().zip(target.chunks_exact_mut(vectors)) {
                    accumulate(target, &mut scratch.part(), |sum| {
                        for entry in p.range(row) {
                            let column = p.indices[entry].to_usize();
                            add_scaled(sum, data[entry], &input[column * vectors..][..vectors]);
                        }
                    });
                }
            }
            Ok(())
        })
    }
}

/// Runs `add` on zeroed sums and rounds them to `target`: in place where sums are elements, else in memory
/// of the worker's.
fn accumulate<T: Element>(
    target: &mut [T],
    scratch: &mut Scratch,
    add: impl FnOnce(&mut [T::Acc]),
) {
    if let Some(sum) = T::as_acc_mut(target) {
        sum.fill(T::Acc::ZERO);
        return add(sum);
    }
    let sum = scratch.zeros::<T::Acc>(target.len());
    add(sum);
    T::narrow(sum, target);
}

/// Four interleaved partial sums, so that one addition need not wait for the one before.
fn dot<T: Element, I: Index>(indices: &[I], values: &[T], x: &[T]) -> T::Acc {
    let mut sums = [T::Acc::ZERO; 4];
    let (index_blocks, index_tail) = indices.as_chunks::<4>();
    let (value_blocks, value_tail) = values.as_chunks::<4>();
    for (index, value) in index_blocks.iter().zip(value_blocks) {
        for lane in 0..4 {
            sums[lane] += value[lane].to_acc() * x[index[lane].to_usize()].to_acc();
        }
    }
    for (lane, (index, value)) in index_tail.iter().zip(value_tail).enumerate() {
        sums[lane] += value.to_acc() * x[index.to_usize()].to_acc();
    }
    (sums[0] + sums[1]) + (sums[2] + sums[3])
}

#[inline]
fn add_scaled<T: Element>(sum: &mut [T::Acc], factor: T, x: &[T]) {
    let factor = factor.to_acc();
    for (sum, x) in sum.iter_mut().zip(x) {
        *sum += factor * x.to_acc();
    }
}

/// Adds the rows' entries in the columns of `range` to `sum`.
fn adjoint_add<T: Element, I: Index>(
    p: &Pattern<I>,
    data: &[T],
    y: &[T],
    vectors: usize,
    range: &Range<usize>,
    sum: &mut [T::Acc],
) {
    let mut window = ColumnWindow::new(range);
    for (row, y) in y.chunks_exact(vectors).enumerate() {
        let own = window.entries(p, row);
        let entries = p.indices[own.clone()].iter().zip(&data[own]);
        let entries = entries.map(|(i, &value)| (i.to_usize() - range.start, value));
        if vectors == 1 {
            let factor = y[0].to_acc();
            entries.for_each(|(column, value)| sum[column] += value.to_acc() * factor);
        } else {
            entries.for_each(|(c, value)| add_scaled(&mut sum[c * vectors..][..vectors], value, y));
        }
    }
}
