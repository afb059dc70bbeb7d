//! Where sums go: into the lower triangle of a group's matrix, and onto the upper where that is stored.

use std::ops::Range;

use crate::covariance::options::{SymmetricStorage, Update};
use crate::covariance::problem::Problem;
use crate::element::Accumulator;
use crate::error::Result;
use crate::stream;
use crate::workers::{Shared, Workers};

/// Elements of a column that are gathered before they are written.
const LINE: usize = 256;

/// The matrices of all groups, of which tasks write elements of their own.
pub(super) struct Landing<'a, F> {
    target: Shared<'a, F>,
    storage: SymmetricStorage,
    rows: usize,
    stored: usize,
    decay: F,
    scale: F,
    /// Whether the matrices are written past the caches.
    streaming: bool,
}

impl<'a, F: Accumulator> Landing<'a, F> {
    pub fn new(p: &Problem, target: &'a mut [F], update: Update) -> Self {
        Landing {
            target: Shared::new(target),
            storage: p.storage,
            rows: p.rows(),
            stored: p.stored(),
            decay: F::from_f64(update.decay),
            scale: F::from_f64(update.scale),
            streaming: stream::worthwhile(p.groups * p.stored() * size_of::<F>()),
        }
    }

    /// `decay·old + scale·sum`, at an element of the lower triangle and its mirror image.
    ///
    /// # Safety
    /// Nothing else may use these two elements.
    #[inline]
    pub unsafe fn put_one(&self, group: usize, row: usize, column: usize, sum: F) {
        let (row, column) = if row < column { (column, row) } else { (row, column) };
        // SAFETY: promised by the caller.
        unsafe {
            let at = &mut self.lower(group, row, column..column + 1)[0];
            *at = self.updated(*at, sum);
            if self.storage == SymmetricStorage::Full && row != column {
                self.upper(group, column, row..row + 1)[0] = *at;
            }
        }
    }

    /// The same for a tile of rows × columns, of which either all or, of a square, the lower triangle is
    /// in the matrix's lower triangle. What is in the tile afterwards means nothing.
    ///
    /// # Safety
    /// Nothing else may use the elements of these rows and columns, and their mirror images.
    pub unsafe fn put(&self, group: usize, targets: [&Target; 2], tile: &mut [F], square: bool) {
        let [Target::Run(rows), Target::Run(columns)] = targets else {
            let pitch = targets[1].len();
            for i in 0..targets[0].len() {
                let end = if square { i + 1 } else { pitch };
                for (j, &sum) in tile[i * pitch..][..end].iter().enumerate() {
                    let (row, column) = (targets[0].get(i), targets[1].get(j));
                    // SAFETY: promised by the caller.
                    unsafe { self.put_one(group, row, column, sum) };
                }
            }
            return;
        };
        let pitch = columns.len();
        for (row, sums) in rows.clone().zip(tile.chunks_exact_mut(pitch)) {
            let end = if square { row + 1 } else { columns.end };
            // SAFETY: promised by the caller.
            let target = unsafe { self.lower(group, row, columns.start..end) };
            self.update(target, &mut sums[..end - columns.start]);
        }
        if self.storage == SymmetricStorage::Full {
            // SAFETY: promised by the caller.
            unsafe { self.mirror(group, [rows, columns], tile, square) };
        }
        if self.streaming {
            stream::fence();
        }
    }

    /// Writes a tile's mirror image.
    ///
    /// # Safety
    /// As for [`Landing::put`].
    unsafe fn mirror(
        &self,
        group: usize,
        [rows, columns]: [&Range<usize>; 2],
        tile: &[F],
        square: bool,
    ) {
        let pitch = columns.len();
        let mut line = [F::ZERO; LINE];
        for (j, column) in columns.clone().enumerate() {
            let first = if square { j + 1 } else { 0 };
            // SAFETY: promised by the caller.
            let target = unsafe { self.upper(group, column, rows.start + first..rows.end) };
            for (number, target) in target.chunks_mut(LINE).enumerate() {
                let line = &mut line[..target.len()];
                let from = tile[(first + number * LINE) * pitch + j..].iter().step_by(pitch);
                line.iter_mut().zip(from).for_each(|(to, &value)| *to = value);
                stream::copy(target, line, self.streaming);
            }
        }
    }

    /// `decay·old + scale·sum` of neighbours, which the sums become as well.
    fn update(&self, target: &mut [F], sums: &mut [F]) {
        let (decay, scale) = (self.decay, self.scale);
        if decay == F::ZERO {
            sums.iter_mut().for_each(|sum| *sum = scale * *sum);
            return stream::copy(target, sums, self.streaming);
        }
        for (target, sum) in target.iter_mut().zip(sums) {
            *sum = decay * *target + scale * *sum;
            *target = *sum;
        }
    }

    #[inline]
    fn updated(&self, old: F, sum: F) -> F {
        let new = self.scale * sum;
        if self.decay == F::ZERO { new } else { self.decay * old + new }
    }

    /// Columns of a row of the lower triangle.
    ///
    /// # Safety
    /// While the result is alive, nothing else may use these elements.
    #[allow(clippy::mut_from_ref)] // Disjointness is the caller's to guarantee.
    unsafe fn lower(&self, group: usize, row: usize, columns: Range<usize>) -> &mut [F] {
        let start = group * self.stored + self.storage.row(self.rows, row) + columns.start;
        // SAFETY: promised by the caller.
        unsafe { self.target.run(start, columns.len()) }
    }

    /// Columns of a row of the upper triangle, which is stored.
    ///
    /// # Safety
    /// As for the lower one.
    #[allow(clippy::mut_from_ref)] // As above.
    unsafe fn upper(&self, group: usize, row: usize, columns: Range<usize>) -> &mut [F] {
        // SAFETY: promised by the caller.
        unsafe {
            self.target.run(group * self.stored + row * self.rows + columns.start, columns.len())
        }
    }
}

/// Rows or columns of a matrix.
#[derive(Debug)]
pub(super) enum Target {
    Run(Range<usize>),
    List(Vec<usize>),
}

impl Target {
    fn len(&self) -> usize {
        match self {
            Target::Run(range) => range.len(),
            Target::List(list) => list.len(),
        }
    }

    fn get(&self, index: usize) -> usize {
        match self {
            Target::Run(range) => range.start + index,
            Target::List(list) => list[index],
        }
    }
}

/// `target = decay·target`, all of it.
pub(super) fn decay<F: Accumulator>(workers: &Workers, target: &mut [F], decay: f64) -> Result<()> {
    if decay == 1.0 {
        return Ok(());
    }
    let factor = F::from_f64(decay);
    workers.share_out_slice(target, 1 << 14, |_, values| match decay == 0.0 {
        true => values.fill(F::ZERO),
        false => values.iter_mut().for_each(|value| *value = factor * *value),
    })
}
