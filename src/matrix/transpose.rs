//! Transposition: a counting sort by column.
//!
//! Work is split by ranges of columns. A task walks all rows and picks out its own columns, which are
//! contiguous in every row; the rows it sees ascend, so the result is the same
//! whatever the number of tasks, and every task owns a contiguous part of the result.

use std::ops::Range;

use rayon::prelude::*;

use super::csr::Csr;
use super::index::Index;
#[cfg(gpu)]
use super::product::cuda::transposed;
use super::storage::{Pattern, Storage, Structure, with_pattern};
use crate::element::Element;
use crate::error::Result;
use crate::memory::try_zeroed;

impl<T: Element> Csr<T> {
    /// The transposed matrix, on the same device. On a GPU the entries are sorted, which takes memory
    /// for up to four more indices and two more values of each meanwhile.
    ///
    /// # Errors
    /// [`crate::Error::Allocation`] when it does not fit in memory.
    pub fn transpose(&self) -> Result<Csr<T>> {
        let shape = [self.columns(), self.rows()];
        match self.storage() {
            Storage::Cpu(host) => with_pattern!(&host.structure, p => {
                let (pattern, data) = transpose(p, &host.data, self.columns())?;
                Ok(Csr::trusted(shape, pattern, data))
            }),
            #[cfg(gpu)]
            Storage::Cuda(parts) => Ok(Csr::on_cuda(shape, transposed(&self.extent(), parts)?)),
        }
    }
}

/// As many equal ranges of `0..columns` as there are threads, at most.
pub(super) fn column_ranges(columns: usize) -> Vec<Range<usize>> {
    let size = columns.div_ceil(rayon::current_num_threads()).max(1);
    (0..columns.div_ceil(size)).map(|t| t * size..columns.min((t + 1) * size)).collect()
}

/// Picks the entries in a range of columns out of each row.
pub(super) struct ColumnWindow {
    columns: Range<usize>,
    /// Where the range began and ended in the row before.
    last: [usize; 2],
}

impl ColumnWindow {
    pub(super) fn new(columns: &Range<usize>) -> Self {
        ColumnWindow { columns: columns.clone(), last: [0; 2] }
    }

    /// The entries of `row` that lie in the range of columns.
    #[inline]
    pub(super) fn entries<I: Index>(&mut self, source: &Pattern<I>, row: usize) -> Range<usize> {
        let all = source.range(row);
        let indices = &source.indices[all.clone()];
        for (last, bound) in self.last.iter_mut().zip([self.columns.start, self.columns.end]) {
            *last = split(indices, bound, *last);
        }
        all.start + self.last[0]..all.start + self.last[1]
    }
}

/// The number of indices below `bound`. Rows resemble each other, so the place found in the row before
/// is tried first: bisecting a row that is not in cache yet costs more than adding it up.
#[inline]
fn split<I: Index>(indices: &[I], bound: usize, guess: usize) -> usize {
    let guess = guess.min(indices.len());
    let (below, above) = indices.split_at(guess);
    let fits = below.last().is_none_or(|i| i.to_usize() < bound)
        && above.first().is_none_or(|i| i.to_usize() >= bound);
    if fits { guess } else { indices.partition_point(|i| i.to_usize() < bound) }
}

fn transpose<T: Element, I: Index>(
    source: &Pattern<I>,
    data: &[T],
    columns: usize,
) -> Result<(Pattern<I>, Vec<T>)>
where
    Pattern<I>: Into<Structure>,
{
    let what = "the transposed matrix";
    let mut indptr: Vec<I> = try_zeroed(what, columns + 1)?;
    let mut indices: Vec<I> = try_zeroed(what, data.len())?;
    let mut values: Vec<T> = try_zeroed(what, data.len())?;
    let ranges = column_ranges(columns);
    count(source, &ranges, &mut indptr[1..]);
    for column in 0..columns {
        indptr[column + 1] = indptr[column + 1].plus(indptr[column]);
    }

    let mut tasks = Vec::with_capacity(ranges.len());
    let (mut rest_indices, mut rest_values) = (&mut indices[..], &mut values[..]);
    for range in &ranges {
        let size = indptr[range.end].to_usize() - indptr[range.start].to_usize();
        let (own_indices, others) = rest_indices.split_at_mut(size);
        rest_indices = others;
        let (own_values, others) = rest_values.split_at_mut(size);
        rest_values = others;
        tasks.push((range.clone(), own_indices, own_values));
    }
    tasks.into_par_iter().try_for_each(|(range, own_indices, own_values)| {
        let base = indptr[range.start].to_usize();
        // Where the next entry of each own column goes.
        let mut next: Vec<I> = try_zeroed("the transposition's cursors", range.len())?;
        next.copy_from_slice(&indptr[range.clone()]);
        let mut window = ColumnWindow::new(&range);
        for row in 0..source.indptr.len() - 1 {
            for entry in window.entries(source, row) {
                let cursor = &mut next[source.indices[entry].to_usize() - range.start];
                let at = cursor.to_usize() - base;
                own_indices[at] = I::from_usize(row);
                own_values[at] = data[entry];
                *cursor = cursor.plus(I::from_usize(1));
            }
        }
        Ok(())
    })?;
    Ok((Pattern { indptr, indices }, values))
}

/// Number of entries in each column.
fn count<I: Index>(source: &Pattern<I>, ranges: &[Range<usize>], counts: &mut [I]) {
    let size = ranges.first().map_or(1, Range::len);
    counts.par_chunks_mut(size).zip(ranges).for_each(|(own, range)| {
        let mut window = ColumnWindow::new(range);
        for row in 0..source.indptr.len() - 1 {
            for entry in window.entries(source, row) {
                let own_count = &mut own[source.indices[entry].to_usize() - range.start];
                *own_count = own_count.plus(I::from_usize(1));
            }
        }
    });
}
