//! Where everything goes, from the per-axis tables alone: the row pointers in closed form, and which rows
//! look alike.
//!
//! With per-axis counts c of distinct columns, exclusive prefix sums P, totals S, column channels per
//! group Cg, and β = 1 with bias else 0, the entries before row (channel, d, h, w) are
//!
//! ```text
//!   channel·(Cg·S_D·S_H·S_W + β·D·H·W)
//! + Cg·(P_D[d]·S_H·S_W + c_D[d]·(P_H[h]·S_W + c_H[h]·P_W[w]))
//! + β·((d·H + h)·W + w)
//! ```
//!
//! so no scan is needed, and every row can be written without regard to the others.

use std::collections::HashMap;
use std::ops::Range;

use super::call::{Call, Channels, WeightOrder};
use crate::error::Result;
use crate::geometry::AxisRows;
use crate::memory::try_with_capacity;

/// One axis: its rows, and which of them are shifted copies of each other.
#[derive(Debug)]
pub(super) struct Axis {
    pub(super) rows: AxisRows,
    /// First column of each row (0 in an empty one).
    pub(super) first: Vec<usize>,
    /// Rows of one class have the same taps at the same distances from their first column.
    pub(super) class: Vec<usize>,
    /// For each class, a row of it.
    pub(super) representative: Vec<usize>,
    /// For each class, the distance between the first columns of neighbours in a run.
    pub(super) step: Vec<usize>,
    /// For each row, how many rows from here on, this one included, are of its class and one step
    /// apart.
    pub(super) run: Vec<usize>,
    /// For each class, the length of its longest run.
    pub(super) longest: Vec<usize>,
    taps: usize,
}

/// Everything about a convolution's matrix but its values.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) channels: Channels,
    pub(super) axes: [Axis; 3],
    pub(super) order: WeightOrder,
}

/// A row by its channel and position.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowPosition {
    pub(super) channel: usize,
    pub(super) at: [usize; 3],
}

impl Places {
    pub(super) fn new(call: Call) -> Result<Self> {
        let Call { channels, order, axes: [d, h, w], taps, .. } = call;
        let axes = [Axis::new(d, taps[0])?, Axis::new(h, taps[1])?, Axis::new(w, taps[2])?];
        Ok(Places { channels, axes, order })
    }

    /// Number of rows.
    pub(super) fn rows(&self) -> usize {
        self.channels.groups * self.channels.rows * self.positions()
    }

    fn positions(&self) -> usize {
        self.axes.iter().map(|axis| axis.rows.rows()).product()
    }

    /// Number of positions of a column channel.
    pub(super) fn plane(&self) -> usize {
        self.axes.iter().map(|axis| axis.rows.columns()).product()
    }

    /// Number of taps K.
    pub(super) fn taps(&self) -> usize {
        self.axes.iter().map(|axis| axis.taps).product()
    }

    /// The bias column, if there is one.
    pub(super) fn bias_column(&self) -> Option<usize> {
        let columns = self.channels.groups * self.channels.columns * self.plane();
        self.channels.bias.then_some(columns)
    }

    /// The channel and position of a row.
    pub(super) fn position(&self, row: usize) -> RowPosition {
        let [_, h, w] = self.axes.each_ref().map(|axis| axis.rows.rows());
        let positions = self.positions();
        let within = row % positions;
        RowPosition { channel: row / positions, at: [within / (h * w), within / w % h, within % w] }
    }

    /// Number of entries before `row`: the closed form above.
    pub(super) fn entries_before(&self, row: usize) -> usize {
        let RowPosition { channel, at: [d, h, w] } = if row < self.rows() {
            self.position(row)
        } else {
            RowPosition { channel: self.channels.groups * self.channels.rows, at: [0; 3] }
        };
        let [axis_d, axis_h, axis_w] = self.axes.each_ref().map(|axis| &axis.rows);
        let (total_h, total_w) = (axis_h.total(), axis_w.total());
        let beta = usize::from(self.channels.bias);
        let per_channel =
            self.channels.columns * axis_d.total() * total_h * total_w + beta * self.positions();
        let mut before = channel * per_channel;
        if channel < self.channels.groups * self.channels.rows {
            let inner = axis_h.before(h) * total_w + axis_h.count(h) * axis_w.before(w);
            before += self.channels.columns
                * (axis_d.before(d) * total_h * total_w + axis_d.count(d) * inner);
            before += beta * ((d * axis_h.rows() + h) * axis_w.rows() + w);
        }
        before
    }

    /// The first column of a row's group and position: its entries are counted from there.
    pub(super) fn first_column(&self, row: RowPosition) -> usize {
        let group = row.channel / self.channels.rows;
        let [d, h, w] = std::array::from_fn(|a| self.axes[a].first[row.at[a]]);
        let [_, columns_h, columns_w] = self.axes.each_ref().map(|axis| axis.rows.columns());
        group * self.channels.columns * self.plane() + (d * columns_h + h) * columns_w + w
    }

    /// Entries of a row whose position has these classes, the bias column's included.
    pub(super) fn length(&self, classes: [usize; 3]) -> usize {
        let counts = [0, 1, 2].map(|axis| self.axes[axis].class_count(classes[axis]));
        let cell: usize = counts.iter().product();
        self.channels.columns * cell + usize::from(self.channels.bias)
    }

    /// Copies the weights that a row channel uses to `[column channel of the group, tap]`.
    pub(super) fn pack<T: Copy>(&self, weight: &[T], channel: usize, packed: &mut [T]) {
        let (order, rows) = (&self.order, self.channels.rows);
        let base = channel / rows * order.group + channel % rows * order.row;
        for (column, packed) in packed.chunks_exact_mut(self.taps()).enumerate() {
            let weight = &weight[base + column * order.column..];
            packed.iter_mut().zip(weight.iter().step_by(order.tap)).for_each(|(p, &w)| *p = w);
        }
    }
}

impl Axis {
    fn new(rows: AxisRows, taps: usize) -> Result<Self> {
        let what = "the row classes of an axis";
        let count = rows.rows();
        let mut axis = Axis {
            first: try_with_capacity(what, count)?,
            class: try_with_capacity(what, count)?,
            representative: Vec::new(),
            step: Vec::new(),
            run: try_with_capacity(what, count)?,
            longest: Vec::new(),
            taps,
            rows,
        };
        axis.classify();
        axis.find_runs();
        Ok(axis)
    }

    fn classify(&mut self) {
        let mut known: HashMap<Vec<usize>, usize> = HashMap::new();
        let mut signature = Vec::new();
        for row in 0..self.rows.rows() {
            signature.clear();
            let first = self.rows.row(row).next().map_or(0, |(column, _)| column);
            for (column, taps) in self.rows.row(row) {
                signature.extend([column - first, taps.len()]);
                signature.extend(taps);
            }
            let class = known.get(&signature).copied().unwrap_or_else(|| {
                known.insert(signature.clone(), self.representative.len());
                self.representative.push(row);
                self.representative.len() - 1
            });
            self.first.push(first);
            self.class.push(class);
        }
    }

    fn find_runs(&mut self) {
        let neighbours = |row: &usize| self.class.get(row + 1) == Some(&self.class[*row]);
        let mut step = vec![None; self.representative.len()];
        for row in (0..self.class.len()).filter(neighbours) {
            let distance = self.first[row + 1].checked_sub(self.first[row]);
            step[self.class[row]] = step[self.class[row]].or(distance);
        }
        self.run.resize(self.class.len(), 1);
        for row in (0..self.class.len()).rev().filter(neighbours) {
            let distance = self.first[row + 1].checked_sub(self.first[row]);
            if distance.is_some() && distance == step[self.class[row]] {
                self.run[row] = self.run[row + 1] + 1;
            }
        }
        self.longest = vec![1; self.representative.len()];
        for (&class, &run) in self.class.iter().zip(&self.run) {
            self.longest[class] = self.longest[class].max(run);
        }
        self.step = step.into_iter().map(|step| step.unwrap_or(0)).collect();
    }

    /// Number of classes.
    pub(super) fn classes(&self) -> usize {
        self.representative.len()
    }

    /// Number of entries in a row of `class`.
    pub(super) fn class_count(&self, class: usize) -> usize {
        self.rows.count(self.representative[class])
    }

    /// The entries of a row of `class`: (distance from its first column, taps).
    pub(super) fn class_row(&self, class: usize) -> impl Iterator<Item = (usize, &[usize])> {
        let row = self.representative[class];
        self.rows.row(row).map(move |(column, taps)| (column - self.first[row], taps))
    }

    /// Number of taps.
    pub(super) fn taps(&self) -> usize {
        self.taps
    }
}

/// At most `tasks` ranges of rows, as equal as can be.
pub(super) fn row_ranges(rows: usize, tasks: usize) -> Vec<Range<usize>> {
    let size = rows.div_ceil(tasks.max(1)).max(1);
    (0..rows.div_ceil(size)).map(|t| t * size..rows.min((t + 1) * size)).collect()
}
