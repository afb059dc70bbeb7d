//! Products of rows by register tiles, of any extents.

use super::factor::Factor;
use super::micro::{Products, RegisterTiles, Step, tile};

/// Operands of [`multiply_rows`]: each is where a kernel's [`Products`] have it.
pub(crate) struct Rows<'a, F> {
    pub steps: &'a [Step],
    /// Row m of a step is at `weights[step.weight + m·row]`.
    pub weights: &'a [F],
    pub row: usize,
    /// Column j of a step is at `patches[step.patch + j]`.
    pub patches: &'a [F],
    /// Rows of the result, and columns: whole vectors of [`crate::product::cpu::RegisterTiles::best_tiles`].
    pub rows: usize,
    pub columns: usize,
}

/// `sums[m·pitch + j] (+)= Σ weights[step.weight + m·row]·patches[step.patch + j]` for all rows and columns.
///
/// # Panics
/// When an operand is shorter than that, or columns are no whole vectors: an error in this crate.
pub(crate) fn multiply_rows<F: Factor>(
    operands: &Rows<'_, F>,
    sums: &mut [F::Sum],
    pitch: usize,
    add: bool,
) {
    let Rows { steps, weights, row: row_step, patches, rows, columns } = *operands;
    if rows == 0 || columns == 0 {
        return;
    }
    let (tiles, lanes) = (F::tiles(), <F::Sum as RegisterTiles>::best_tiles().lanes);
    let furthest = |field: fn(&Step) -> usize| steps.iter().map(field).max();
    let (weight, patch) = (furthest(|step| step.weight), furthest(|step| step.patch));
    assert!(weight.is_none_or(|weight| weight + (rows - 1) * row_step < weights.len()));
    assert!(patch.is_none_or(|patch| patch + columns <= patches.len()));
    assert!(columns.is_multiple_of(lanes) && (rows - 1) * pitch + columns <= sums.len());
    let mut row = 0;
    while row < rows {
        let tile = tile(tiles, rows - row);
        let panels = (row..rows + 1 - tile.rows).step_by(tile.rows);
        let mut column = 0;
        while column < columns {
            let (vectors, kernel) = tile.kernel((columns - column) / lanes);
            for row in panels.clone() {
                let operands = Products {
                    steps: steps.as_ptr(),
                    count: steps.len(),
                    weights: weights.as_ptr().wrapping_add(row * row_step),
                    row: row_step,
                    patches: patches.as_ptr().wrapping_add(column),
                    sums: sums[row * pitch + column..].as_mut_ptr(),
                    pitch,
                    add,
                };
                // SAFETY: by the assertions above, all rows of weights and sums exist, and all columns behind
                // every step; this machine has the instructions of its best tiles.
                unsafe { kernel(operands) };
            }
            column += vectors * lanes;
        }
        row += panels.len() * tile.rows;
    }
}
