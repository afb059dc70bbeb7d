//! Register tiles for groups with a single row, where products with one row would load a vector for
//! every multiplication: consecutive lines of the result are the rows of a tile instead.
//!
//! A padded line q of the input is read by output line h through tap q − h·stride, so a tile of four
//! lines loads each padded line once and multiplies it by up to four taps; rows that have no tap at a
//! line are masked out. As lines are taken one by one, a slab need not be unfolded along the last axis:
//! a padded copy of the plane serves, at which every tap is a shift.

use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::geometry::{Axes, Box3};
use crate::patches::slab::Slab;
use crate::product::cpu::{Products, RegisterTiles, Step};

/// Output lines in a tile.
const LINES: usize = 4;

/// Whether to take lines for rows: where there are enough, the last axis is not strided, and few lanes
/// of a line's last vector are wasted.
pub(super) fn pays(axes: &Axes, lanes: usize) -> bool {
    let width = axes[2].outputs();
    axes[2].stride() == 1
        && axes[1].outputs() >= LINES
        && 4 * width.next_multiple_of(lanes) <= 5 * width
}

/// The axes of the padded copy.
pub(super) fn padded_axes(axes: &Axes) -> Result<Axes> {
    Ok(Axes::new([axes[0].clone(), axes[1].clone(), axes[2].padded_axis()?]))
}

/// How to compute one row of a result over a box of outputs, all of them on the last axis.
#[derive(Debug)]
pub(super) struct Lines {
    slab: Slab,
    /// Output lines at each outer output, and the distance of two of them in the sums.
    height: usize,
    pitch: usize,
    steps: Vec<Step>,
    /// For each line of a tile and each step the tap by which it is multiplied.
    taps: Vec<Option<usize>>,
}

impl Lines {
    /// `padded` are the [`padded_axes`] of `axes`.
    pub fn new(axes: &Axes, padded: &Axes, outputs: &Box3, lanes: usize) -> Self {
        let [map_d, map_h, map_w] = &**axes;
        let height = outputs[1].len();
        let outputs = [outputs[0].clone(), outputs[1].clone(), 0..padded[2].outputs()];
        let slab = Slab::new(padded, outputs);
        let (stride, dilation) = (map_h.stride(), map_h.dilation());
        // The tap through which output line m of a tile reads padded line q.
        let tap = |m: usize, q: usize| {
            let distance = q.checked_sub(m * stride)?;
            let k = distance / dilation;
            (distance % dilation == 0 && k < map_h.taps()).then_some(k)
        };
        let last_line = map_h.padded_position(LINES - 1, map_h.taps() - 1);
        let (mut steps, mut terms) = (Vec::new(), Vec::new());
        for d in 0..map_d.taps() {
            for q in 0..=last_line {
                let rows = (0..LINES).map(|m| u32::from(tap(m, q).is_some()) << m).sum();
                let line = slab.line(0, map_d.padded_position(0, d), q);
                for w in (0..map_w.taps()).filter(|_| rows != 0) {
                    let patch = line + map_w.padded_position(0, w);
                    steps.push(Step { weight: steps.len(), patch, rows });
                    terms.push([d, q, w]);
                }
            }
        }
        let mut taps = Vec::with_capacity(LINES * steps.len());
        for m in 0..LINES {
            taps.extend(
                terms
                    .iter()
                    .map(|&[d, q, w]| tap(m, q).map(|h| (d * map_h.taps() + h) * map_w.taps() + w)),
            );
        }
        let pitch = map_w.outputs().next_multiple_of(lanes);
        Lines { slab, height, pitch, steps, taps }
    }

    /// Whether the box has lines enough for a tile.
    pub fn fits(&self) -> bool {
        self.height >= LINES
    }

    /// Distance of two lines in the sums.
    pub fn pitch(&self) -> usize {
        self.pitch
    }

    /// Elements of the padded copy, with room to read vectors behind it.
    pub fn slab_len(&self) -> usize {
        self.slab.len() + self.pitch
    }

    /// Elements of the table of a tile's weights.
    pub fn table_len(&self) -> usize {
        self.taps.len()
    }

    /// `sums = Σ weights·plane` over all taps. The sums are those of a row in `correlation.rs`; `slab` and
    /// `table` are memory to use.
    pub fn multiply<T: Element>(
        &self,
        plane: &[T],
        step: usize,
        weights: impl Fn(usize) -> T::Acc,
        slab: &mut [T::Acc],
        table: &mut [T::Acc],
        sums: &mut [T::Acc],
    ) {
        self.slab.fill(&[plane], step, slab);
        let table = &mut table[..self.taps.len()];
        for (entry, tap) in table.iter_mut().zip(&self.taps) {
            *entry = tap.map_or(T::Acc::ZERO, &weights);
        }
        let tiles = <T::Acc as RegisterTiles>::best_tiles();
        let (tile, lanes, depth) = (&tiles.masked, tiles.lanes, self.slab.depth());
        let line_step = self.slab.block_len() / self.height;
        let last = self.steps.iter().map(|step| step.patch).max().unwrap_or(0)
            + (depth - 1) * self.slab.depth_step()
            + (self.height - LINES) * line_step
            + self.pitch;
        let block = self.height * self.pitch;
        assert!(tile.rows == LINES && self.fits());
        assert!(last <= slab.len() && depth * block <= sums.len());
        for d in 0..depth {
            for start in (0..self.height).step_by(LINES) {
                // The last tile is moved up, and computes some lines again.
                let start = start.min(self.height - LINES);
                let patches = &slab[d * self.slab.depth_step() + start * line_step..];
                let mut column = 0;
                while column < self.pitch {
                    let (vectors, kernel) = tile.kernel((self.pitch - column) / lanes);
                    let operands = Products {
                        steps: self.steps.as_ptr(),
                        count: self.steps.len(),
                        weights: table.as_ptr(),
                        row: self.steps.len(),
                        patches: patches[column..].as_ptr(),
                        sums: sums[d * block + start * self.pitch + column..].as_mut_ptr(),
                        pitch: self.pitch,
                        add: false,
                    };
                    // SAFETY: the table has a weight for each line of a tile at each step; by the
                    // assertions above all lines read and written exist; this machine has the
                    // instructions of its best tiles.
                    unsafe { kernel(operands) };
                    column += vectors * lanes;
                }
            }
        }
    }
}
