//! The index map of one axis, as tables: all the index arithmetic the crate has.
//!
//! Output position `o` and tap `k` read the padded position `q = o·stride + k·dilation`; the input
//! position behind `q` is `q − low` when that lies inside, and what the padding mode makes of it
//! otherwise. The map is separable by axis, so a convolution in D dimensions is D of these.

use std::ops::Range;

use super::padding::PaddingMode;
use crate::error::Result;
use crate::memory::try_with_capacity;

/// Marks a dropped tap in the source table.
const DROPPED: usize = usize::MAX;

/// The index map of one axis.
#[derive(Clone, Debug)]
pub struct AxisMap {
    inputs: usize,
    outputs: usize,
    taps: usize,
    stride: usize,
    dilation: usize,
    mode: PaddingMode,
    /// Input position behind each padded position that any (o, k) reads.
    padded: Vec<usize>,
    /// The padded positions that lie inside the input: there the map is `q − low`.
    inside: Range<usize>,
    low: i64,
}

impl AxisMap {
    /// Tables for an axis of `inputs` elements. `low` may be negative (positions cropped), which
    /// only the adjoint of a convolution needs.
    pub(super) fn new(
        inputs: usize,
        outputs: usize,
        taps: usize,
        stride: usize,
        dilation: usize,
        low: i64,
        mode: PaddingMode,
    ) -> Result<Self> {
        let extent =
            if outputs == 0 { 0 } else { (outputs - 1) * stride + (taps - 1) * dilation + 1 };
        // With one output there is no next one, and with one tap no other: distances to them may be any number,
        // and everything that is proportional to a stride would be, too. One that is longer than the axis stays
        // so: it does not divide the inputs.
        let stride = if outputs > 1 { stride } else { stride.min(extent.max(inputs) + 1) };
        let dilation = if taps > 1 { dilation } else { 1 };
        let mut padded = try_with_capacity("the index table of an axis", extent)?;
        padded.extend(
            (0..extent as i64).map(|q| mode.source(q - low, inputs as i64).unwrap_or(DROPPED)),
        );
        let start = low.clamp(0, extent as i64) as usize;
        let end = (low + inputs as i64).clamp(start as i64, extent as i64) as usize;
        // Where no padded position is ever read the mode says nothing, and zeros is the simplest.
        let mode = if start == 0 && end == extent { PaddingMode::Zeros } else { mode };
        Ok(AxisMap {
            inputs,
            outputs,
            taps,
            stride,
            dilation,
            mode,
            padded,
            inside: start..end,
            low,
        })
    }

    /// An axis of extent 1, for those that a layer with fewer axes lacks: one input, one output, one tap.
    pub(super) fn unit() -> Self {
        AxisMap {
            inputs: 1,
            outputs: 1,
            taps: 1,
            stride: 1,
            dilation: 1,
            mode: PaddingMode::Zeros,
            padded: vec![0],
            inside: 0..1,
            low: 0,
        }
    }

    /// Input extent, in elements.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Output extent, in elements.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Number of taps.
    pub fn taps(&self) -> usize {
        self.taps
    }

    /// Padded positions from one output to the next; where there is one output, perhaps less than was asked
    /// for.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Padded positions from one tap to the next; 1 where there is one tap.
    pub fn dilation(&self) -> usize {
        self.dilation
    }

    /// What the positions outside the input read; `Zeros` where none is ever read.
    pub fn mode(&self) -> PaddingMode {
        self.mode
    }

    /// Number of padded positions that any (output, tap) reads: (outputs − 1)·stride +
    /// (taps − 1)·dilation + 1.
    pub fn padded_extent(&self) -> usize {
        self.padded.len()
    }

    /// The padded position that output `o` reads through tap `k`.
    pub fn padded_position(&self, o: usize, k: usize) -> usize {
        o * self.stride + k * self.dilation
    }

    /// The input position behind padded position `q`; `None` when the tap is dropped.
    pub fn padded_source(&self, q: usize) -> Option<usize> {
        match self.padded[q] {
            DROPPED => None,
            i => Some(i),
        }
    }

    /// The input position that output `o` reads through tap `k`; `None` when the tap is dropped.
    pub fn source(&self, o: usize, k: usize) -> Option<usize> {
        self.padded_source(self.padded_position(o, k))
    }

    /// Padded positions in front of the input; negative when its first positions are cropped.
    /// The numbers that the map is made from: what has the same is the same map.
    #[cfg(gpu)]
    pub(crate) fn numbers(&self) -> ([usize; 5], i64, PaddingMode) {
        let sizes = [self.inputs, self.outputs, self.taps, self.stride, self.dilation];
        (sizes, self.low, self.mode)
    }

    pub(crate) fn low(&self) -> i64 {
        self.low
    }

    /// The padded positions behind which the input lies unchanged: `padded_source(q)` =
    /// `q − inside.start + padded_source(inside.start)`.
    pub fn inside(&self) -> Range<usize> {
        self.inside.clone()
    }

    /// The outputs whose padded position through tap `k` lies in `band`.
    pub(crate) fn outputs_reading(&self, k: usize, band: &Range<usize>) -> Range<usize> {
        let first = |q: usize| q.saturating_sub(k * self.dilation).div_ceil(self.stride);
        let end = first(band.end).min(self.outputs);
        first(band.start).min(end)..end
    }

    /// The padded axis itself: the map with one tap whose outputs are the padded positions.
    pub(crate) fn padded_axis(&self) -> Result<AxisMap> {
        AxisMap::new(self.inputs, self.padded.len(), 1, 1, 1, self.low, self.mode)
    }

    /// The same outputs and taps on an input that is padded already.
    pub(crate) fn on_padded_input(&self) -> Result<AxisMap> {
        let (inputs, mode) = (self.padded.len(), PaddingMode::Zeros);
        AxisMap::new(inputs, self.outputs, self.taps, self.stride, self.dilation, 0, mode)
    }

    /// What one tap alone reads: the map with one tap, at the same outputs.
    #[cfg(gpu)]
    pub(crate) fn tap_axis(&self, tap: usize) -> Result<AxisMap> {
        let low = self.low - (tap * self.dilation) as i64;
        AxisMap::new(self.inputs, self.outputs, 1, self.stride, 1, low, self.mode)
    }

    /// For each input, the number of (output, tap) pairs that read it.
    pub fn overlap(&self) -> Vec<usize> {
        // Through one tap, outputs that follow each other read inputs a stride apart: where they begin and end is
        // enough to know.
        let (mut counts, mut ends) = (vec![0; self.inputs], vec![0; self.inputs]);
        let mut folded = Vec::new();
        for k in 0..self.taps {
            let reading = self.outputs_reading(k, &self.inside);
            if !reading.is_empty() {
                let first = (self.padded_position(reading.start, k) as i64 - self.low) as usize;
                counts[first] += 1;
                if let Some(end) = ends.get_mut(first + reading.len() * self.stride) {
                    *end += 1;
                }
            }
            // What the padding mode makes of positions outside.
            if self.mode != PaddingMode::Zeros {
                let others = (0..reading.start).chain(reading.end..self.outputs);
                others.filter_map(|o| self.source(o, k)).for_each(|i| folded.push(i));
            }
        }
        for i in self.stride..self.inputs {
            counts[i] = counts[i] + counts[i - self.stride] - ends[i];
        }
        folded.into_iter().for_each(|i| counts[i] += 1);
        counts
    }

    /// The outputs that read something through tap `k`.
    #[cfg(gpu)]
    fn reading(&self, k: usize) -> Range<usize> {
        match self.mode {
            PaddingMode::Zeros => self.outputs_reading(k, &self.inside),
            _ => 0..self.outputs,
        }
    }

    /// For each tap, the number of outputs that read something through it.
    #[cfg(gpu)]
    pub(crate) fn outputs_of_taps(&self) -> Vec<usize> {
        (0..self.taps).map(|k| self.reading(k).len()).collect()
    }

    /// For each output, the number of taps through which it reads something.
    #[cfg(gpu)]
    pub(crate) fn taps_of_outputs(&self) -> Vec<usize> {
        let mut counts = vec![0; self.outputs];
        let mut ends = vec![0; self.outputs + 1];
        for reading in (0..self.taps).map(|k| self.reading(k)).filter(|reading| !reading.is_empty())
        {
            counts[reading.start] += 1;
            ends[reading.end] += 1;
        }
        for o in 1..self.outputs {
            counts[o] = counts[o] + counts[o - 1] - ends[o];
        }
        counts
    }

    /// The adjoint of a zero-padded axis, for those inputs whose padded position is `phase` modulo the
    /// stride: over them, and over the taps that reach them, it again is the map of a convolution, with
    /// stride 1. `None` when there is no such input or tap, or the mode is another: then an input may
    /// be read several times through one tap.
    pub(crate) fn adjoint_phase(&self, phase: usize) -> Option<Result<AdjointPhase>> {
        let (stride, dilation) = (self.stride, self.dilation);
        let first = (phase as i64 - self.low).rem_euclid(stride as i64) as usize;
        let reaches = |&k: &usize| k * dilation % stride == phase;
        let tap = (0..self.taps.min(stride)).find(reaches)?;
        if self.mode != PaddingMode::Zeros || first >= self.inputs {
            return None;
        }
        let tap_step = stride / gcd(stride, dilation);
        let (taps, inputs) =
            ((self.taps - tap).div_ceil(tap_step), (self.inputs - first).div_ceil(stride));
        let dilation = dilation * tap_step / stride;
        // Input `first` is read through `tap` by this output, and through the next one `dilation` before.
        let reader = (first as i64 + self.low - (tap * self.dilation) as i64) / stride as i64;
        let low = ((taps - 1) * dilation) as i64 - reader;
        let mode = PaddingMode::Zeros;
        let map = AxisMap::new(self.outputs, inputs, taps, 1, dilation, low, mode);
        let taps = (0..taps).rev().map(|t| tap + t * tap_step).collect();
        Some(map.map(|map| AdjointPhase { map, first, stride, taps }))
    }

    /// For each output, the distinct inputs it reads and the taps that share each.
    pub fn rows(&self) -> Result<AxisRows> {
        AxisRows::new(self, false)
    }

    /// For each input, the distinct outputs that read it and the taps through which they do: the
    /// rows of the adjoint.
    pub fn adjoint_rows(&self) -> Result<AxisRows> {
        AxisRows::new(self, true)
    }
}

/// One phase of an axis's adjoint.
#[derive(Clone, Debug)]
pub(crate) struct AdjointPhase {
    /// From outputs to the inputs of this phase, and the taps that reach them.
    pub map: AxisMap,
    /// The first input of this phase, and the distance to the next.
    pub first: usize,
    pub stride: usize,
    /// The axis's tap behind each tap of the map.
    pub taps: Vec<usize>,
}

pub(crate) fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// One axis as a sparse matrix pattern: for each row, its sorted distinct columns, and for each of
/// those the taps whose weights add up there.
#[derive(Clone, Debug)]
pub struct AxisRows {
    columns: usize,
    /// Where each row's entries start: the exclusive prefix sums P of the counts c. Length rows + 1.
    start: Vec<usize>,
    column: Vec<usize>,
    tap_start: Vec<usize>,
    tap: Vec<usize>,
}

impl AxisRows {
    fn new(map: &AxisMap, adjoint: bool) -> Result<Self> {
        let (rows, columns) =
            if adjoint { (map.inputs, map.outputs) } else { (map.outputs, map.inputs) };
        let what = "the row table of an axis";
        // (row, column, tap) triples in that order; the columns of a row come out sorted.
        let mut triples = try_with_capacity(what, map.outputs.saturating_mul(map.taps))?;
        for o in 0..map.outputs {
            triples.extend((0..map.taps).filter_map(|k| {
                let i = map.source(o, k)?;
                Some(if adjoint { (i, o, k) } else { (o, i, k) })
            }));
        }
        triples.sort_unstable();
        let mut start: Vec<usize> = try_with_capacity(what, rows + 1)?;
        let mut column = try_with_capacity(what, triples.len())?;
        let mut tap_start = try_with_capacity(what, triples.len() + 1)?;
        let mut tap = try_with_capacity(what, triples.len())?;
        let mut last = None;
        for &(row, col, k) in &triples {
            if last != Some((row, col)) {
                start.resize(start.len().max(row + 1), column.len());
                tap_start.push(tap.len());
                column.push(col);
                last = Some((row, col));
            }
            tap.push(k);
        }
        start.resize(rows + 1, column.len());
        tap_start.push(tap.len());
        Ok(AxisRows { columns, start, column, tap_start, tap })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.start.len() - 1
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Number of entries over all rows: the total S.
    pub fn total(&self) -> usize {
        self.column.len()
    }

    /// Number of entries in the rows before `row`: the prefix sum P.
    pub fn before(&self, row: usize) -> usize {
        self.start[row]
    }

    /// Number of entries in `row`: the count c.
    pub fn count(&self, row: usize) -> usize {
        self.start[row + 1] - self.start[row]
    }

    /// The entries of `row`: (column, the taps whose weights add up there), columns ascending.
    pub fn row(&self, row: usize) -> impl ExactSizeIterator<Item = (usize, &[usize])> {
        (self.start[row]..self.start[row + 1])
            .map(|e| (self.column[e], &self.tap[self.tap_start[e]..self.tap_start[e + 1]]))
    }
}
