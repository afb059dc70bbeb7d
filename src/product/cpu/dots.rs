//! Dot products of rows by register tiles.

use super::micro::{Dots, tile};
use crate::element::Accumulator;

/// Elements of a row of dots taken at a time: a tile's rows stay in L1.
const DOTS: usize = 1024;

/// `sums[m][n] += Σ left[m]·right[n]`, lane by lane, for all rows of both.
pub(crate) fn add_dots<A: Accumulator>(
    left: &[A],
    row: usize,
    right: &[A],
    starts: &[usize],
    len: usize,
    rows: usize,
    sums: &mut [A],
) {
    let tiles = A::best_tiles();
    let furthest = starts.iter().max().map_or(0, |start| start + len);
    assert!(furthest <= right.len() && (rows - 1) * row + len <= left.len());
    assert!(rows * starts.len() * tiles.lanes <= sums.len());
    for start in (0..len).step_by(DOTS) {
        let piece_len = DOTS.min(len - start);
        let mut m = 0;
        while m < rows {
            let tile = tile(tiles.dots, rows - m);
            let mut n = 0;
            while n < starts.len() {
                let (columns, kernel) = tile.kernel(starts.len() - n);
                let operands = Dots {
                    len: piece_len,
                    left: left[m * row + start..].as_ptr(),
                    row,
                    right: right[start..].as_ptr(),
                    starts: starts[n..].as_ptr(),
                    sums: sums[(m * starts.len() + n) * tiles.lanes..].as_mut_ptr(),
                    pitch: starts.len(),
                };
                // SAFETY: by the assertions above, all rows exist and are long enough; this machine
                // has the instructions of its best tiles.
                unsafe { kernel(operands) };
                n += columns;
            }
            m += tile.rows;
        }
    }
}
