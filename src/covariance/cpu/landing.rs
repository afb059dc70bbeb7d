//! Where sums go: into the lower triangle of a group's matrix, and onto the upper where that is stored.

use crate::covariance::options::{SymmetricStorage, Update};
use crate::covariance::problem::Problem;
use crate::element::Accumulator;
use crate::error::Result;
use crate::workers::{Shared, Workers};

/// The matrices of all groups, of which tasks write elements of their own.
pub(super) struct Landing<'a, F> {
    target: Shared<'a, F>,
    storage: SymmetricStorage,
    rows: usize,
    stored: usize,
    decay: F,
    scale: F,
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
        }
    }

    /// `decay·old + scale·sum`, at an element and its mirror image.
    ///
    /// # Safety
    /// Nothing else may use these two elements.
    #[inline]
    pub unsafe fn put(&self, group: usize, row: usize, column: usize, sum: F) {
        let (row, column) = if row < column { (column, row) } else { (row, column) };
        let start = group * self.stored;
        // SAFETY: promised by the caller.
        unsafe {
            let at = &mut self.target.run(start + self.storage.row(self.rows, row) + column, 1)[0];
            let new = self.scale * sum;
            let value = if self.decay == F::ZERO { new } else { self.decay * *at + new };
            *at = value;
            if self.storage == SymmetricStorage::Full && row != column {
                self.target.run(start + column * self.rows + row, 1)[0] = value;
            }
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
