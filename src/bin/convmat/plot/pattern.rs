//! The pattern of a sparse matrix: where its entries are.

use convmat::{Csr, Element, Index, IndexView};

use super::Format;
use super::axes::{Axis, Frame, title, whole_ticks};
use super::canvas::{Canvas, HEIGHT, WIDTH, render};
use crate::failure::Failure;
use crate::report::count;

/// Left, top, right and bottom end of the room that the matrix gets.
const ROOM: [f64; 4] = [105.0, 70.0, WIDTH - 30.0, HEIGHT - 68.0];

/// The least extent of a matrix that is long and narrow.
const NARROW: f64 = 200.0;

/// The shades of cells, from few entries to all that fit; white is for none.
const LIGHTEST: f64 = 205.0;
const LEVELS: f64 = 16.0;

/// How a matrix is divided into cells: rows and columns of each, and how many there are.
struct Grid {
    matrix: [usize; 2],
    cells: [usize; 2],
    /// Extent of a cell in units.
    extent: [f64; 2],
}

impl Grid {
    fn new(shape: [usize; 2]) -> Self {
        let room = [ROOM[3] - ROOM[1], ROOM[2] - ROOM[0]];
        let axes = [0, 1];
        let scale = axes.map(|a| room[a] / shape[a].max(1) as f64);
        let scale = scale[0].min(scale[1]);
        let lengths = axes.map(|a| (shape[a] as f64 * scale).clamp(NARROW, room[a]));
        let cells = axes.map(|a| shape[a].clamp(1, lengths[a] as usize));
        // Whole units, so that all cells are alike.
        let extent = axes.map(|a| (lengths[a] / cells[a] as f64).floor().max(1.0));
        Grid { matrix: shape, cells, extent }
    }

    /// The largest number of entries that a cell can have.
    fn most(&self) -> usize {
        let [rows, columns] = [0, 1].map(|a| self.matrix[a].div_ceil(self.cells[a]));
        rows.saturating_mul(columns)
    }

    /// The cell of each position of an axis is `position · cells / length`, rounded down.
    fn cell(&self, axis: usize, position: usize) -> usize {
        (position as u128 * self.cells[axis] as u128 / self.matrix[axis] as u128) as usize
    }
}

/// Number of entries in each cell, row by row.
fn counts<T: Element>(matrix: &Csr<T>, grid: &Grid) -> Vec<u64> {
    fn add<I: Index>(indices: &[I], cell_of: &[u32], cells: &mut [u64]) {
        for index in indices {
            cells[cell_of[index.to_usize()] as usize] += 1;
        }
    }
    let [_, columns] = grid.cells;
    let mut counts = vec![0; grid.cells[0] * columns];
    let cell_of: Vec<u32> = (0..matrix.columns()).map(|c| grid.cell(1, c) as u32).collect();
    for (r, row) in matrix.iter_rows().into_iter().flatten().enumerate() {
        let cells = &mut counts[grid.cell(0, r) * columns..][..columns];
        match row.indices() {
            IndexView::I32(indices) => add(indices, &cell_of, cells),
            IndexView::I64(indices) => add(indices, &cell_of, cells),
        }
    }
    counts
}

/// A picture of the matrix, which is on the host: row 0 on top, a cell for each entry where there is room,
/// and otherwise darker cells where there are more entries.
pub fn plot<T: Element>(matrix: &Csr<T>, format: Format) -> Result<Vec<u8>, Failure> {
    let grid = Grid::new(matrix.shape());
    let counts = counts(matrix, &grid);
    let most = grid.most();
    let darkest = counts.iter().copied().max().unwrap_or(0);
    // Between the two, equal steps in the root of the number: half as dark is a quarter of the entries.
    let shade = |n: u64| {
        let share = (n as f64 / darkest as f64).sqrt();
        let level = (share * LEVELS).ceil() / LEVELS;
        (n > 0).then_some((LIGHTEST * (1.0 - level)) as u8)
    };
    let shades: Vec<_> = counts.iter().map(|&n| shade(n)).collect();
    let [rows, columns] = matrix.shape();
    let heading =
        format!("{} × {} matrix, nnz {}", count(rows), count(columns), count(matrix.nnz()));
    let below = match most {
        1 => String::new(),
        _ => format!("darkest cell: {} of {} entries", count(darkest), count(most)),
    };
    render(format, |canvas| draw(canvas, &grid, &shades, &heading, &below))
}

fn draw(
    canvas: &mut Canvas<'_>,
    grid: &Grid,
    shades: &[Option<u8>],
    heading: &str,
    below: &str,
) -> Result<(), Failure> {
    let [left, top] = [ROOM[0], ROOM[1]];
    let lengths = [0, 1].map(|a| grid.cells[a] as f64 * grid.extent[a]);
    let [bottom, right] = [top + lengths[0], left + lengths[1]];
    // The tick of a row or column is at its middle.
    let axis = |a: usize, units| {
        let values = [-0.5, grid.matrix[a].max(1) as f64 - 0.5];
        Axis { values, units, logarithmic: false }
    };
    let ticks = |a: usize, room: f64| {
        whole_ticks(0, grid.matrix[a].saturating_sub(1), ((lengths[a] / room) as usize).max(1))
    };
    let frame = Frame {
        x: axis(1, [left, right]),
        y: axis(0, [top, bottom]),
        x_ticks: &ticks(1, 80.0),
        y_ticks: &ticks(0, 40.0),
        x_label: "column",
        y_label: "row",
    };
    title(canvas, left, heading, below)?;
    canvas.cells([left, top], [grid.extent[1], grid.extent[0]], grid.cells[1], shades)?;
    frame.draw(canvas)
}
