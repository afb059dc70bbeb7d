//! Products of two blocks over the positions of a segment.

use std::ops::Range;

use crate::covariance::cpu::panel::Panel;
use crate::element::Accumulator;
use crate::geometry::Box3;
use crate::product::cpu::{Products, Step, tile};

/// Terms of a product that are summed up in registers.
const TERMS: usize = 128;

/// The operands of a class's products.
pub(super) struct Product<'a, F> {
    pub left: &'a [F],
    pub right: &'a [F],
    /// Of the blocks.
    pub widths: [usize; 2],
    pub rows: Range<usize>,
    pub columns: usize,
    pub lag: isize,
}

impl<F: Accumulator> Product<'_, F> {
    /// `tile[m][j] = Σ left[q][m]·right[q + lag][j]` over the positions of a segment of all images.
    pub(super) fn run(&self, view: &Panel, segment: Box3, tile: &mut [F]) {
        let mut steps = [Step { weight: 0, patch: 0, rows: 0 }; TERMS];
        let (mut count, mut first) = (0, true);
        let [_, lines, width] = view.held;
        for image in 0..view.images.len() {
            for d in segment[0].clone() {
                for h in segment[1].clone() {
                    let line = image * view.positions() + (d * lines + h) * width;
                    for q in line + segment[2].start..line + segment[2].end {
                        let weight = q * self.widths[0] + self.rows.start;
                        let patch = (q as isize + self.lag) as usize * self.widths[1];
                        steps[count] = Step { weight, patch, rows: 0 };
                        count += 1;
                        if count == TERMS {
                            self.multiply(&steps, tile, !first);
                            (count, first) = (0, false);
                        }
                    }
                }
            }
        }
        if count > 0 {
            self.multiply(&steps[..count], tile, !first);
        }
    }

    fn multiply(&self, steps: &[Step], sums: &mut [F], add: bool) {
        let tiles = F::best_tiles();
        let (rows, width) = (self.rows.len(), self.columns);
        let furthest = |field: fn(&Step) -> usize| steps.iter().map(field).max().unwrap_or(0);
        assert!(furthest(|step| step.weight) + rows <= self.left.len());
        assert!(furthest(|step| step.patch) + width <= self.right.len());
        assert!(rows * width <= sums.len() && width.is_multiple_of(tiles.lanes));
        let mut row = 0;
        while row < rows {
            let tile = tile(tiles.products, rows - row);
            let mut column = 0;
            while column < width {
                let (vectors, kernel) = tile.kernel((width - column) / tiles.lanes);
                let operands = Products {
                    steps: steps.as_ptr(),
                    count: steps.len(),
                    weights: self.left[row..].as_ptr(),
                    row: 1,
                    patches: self.right[column..].as_ptr(),
                    sums: sums[row * width + column..].as_mut_ptr(),
                    pitch: width,
                    add,
                };
                // SAFETY: by the assertions above all rows and columns of every step exist, and so do those
                // of the sums; this machine has the instructions of its best tiles.
                unsafe { kernel(operands) };
                column += vectors * tiles.lanes;
            }
            row += tile.rows;
        }
    }
}
