//! Products of two blocks over the positions of a segment.

use std::ops::Range;

use crate::covariance::cpu::panel::Panel;
use crate::element::Accumulator;
use crate::geometry::Box3;
use crate::product::cpu::{Outer, Run, tile};

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
    /// `tile[m][j] = Σ left[q][m]·right[q + lag][j]` over the positions of a segment of all images, or adds it.
    pub(super) fn run(&self, view: &Panel, segment: Box3, tile: &mut [F], mut add: bool) {
        let [_, lines, width] = view.held;
        let len = segment[2].len();
        // Lines are cut where they are long; where they are short, some are taken together.
        for start in (0..len).step_by(TERMS) {
            let len = (len - start).min(TERMS);
            let mut runs = [Run { left: 0, right: 0 }; TERMS];
            let (most, mut count) = (TERMS / len, 0);
            let mut flush = |runs: &[Run]| {
                self.multiply(runs, len, tile, add);
                add = true;
            };
            for image in 0..view.images.len() {
                for d in segment[0].clone() {
                    for h in segment[1].clone() {
                        let line = image * view.positions() + (d * lines + h) * width;
                        let q = line + segment[2].start + start;
                        let left = q * self.widths[0] + self.rows.start;
                        let right = (q as isize + self.lag) as usize * self.widths[1];
                        runs[count] = Run { left, right };
                        count += 1;
                        if count == most {
                            flush(&runs[..count]);
                            count = 0;
                        }
                    }
                }
            }
            if count > 0 {
                flush(&runs[..count]);
            }
        }
    }

    fn multiply(&self, runs: &[Run], len: usize, sums: &mut [F], add: bool) {
        let tiles = F::best_tiles();
        let (rows, width) = (self.rows.len(), self.columns);
        let furthest = |start: fn(&Run) -> usize, step: usize| {
            runs.iter().map(start).max().unwrap_or(0) + (len - 1) * step
        };
        assert!(furthest(|run| run.left, self.widths[0]) + rows <= self.left.len());
        assert!(furthest(|run| run.right, self.widths[1]) + width <= self.right.len());
        assert!(rows * width <= sums.len() && width.is_multiple_of(tiles.lanes));
        let mut row = 0;
        while row < rows {
            let tile = tile(tiles.outer, rows - row);
            let mut column = 0;
            while column < width {
                let (vectors, kernel) = tile.kernel((width - column) / tiles.lanes);
                let operands = Outer {
                    runs: runs.as_ptr(),
                    count: runs.len(),
                    len,
                    left: self.left[row..].as_ptr(),
                    left_step: self.widths[0],
                    right: self.right[column..].as_ptr(),
                    right_step: self.widths[1],
                    sums: sums[row * width + column..].as_mut_ptr(),
                    pitch: width,
                    add,
                };
                // SAFETY: by the assertions above all rows and columns of every term exist, and so do those
                // of the sums; this machine has the instructions of its best tiles.
                unsafe { kernel(operands) };
                column += vectors * tiles.lanes;
            }
            row += tile.rows;
        }
    }
}
