//! The contents of rows that look alike, built once and copied.
//!
//! A row's pattern depends only on the class of its position on each axis, but for where it starts;
//! its values depend on the channel as well. Neighbouring rows of one class are one step apart, so
//! short rows are kept as a block of several, and copying stays worthwhile for depthwise layers.

use super::index::Index;
use super::plan::{Plan, RowPosition};
use crate::element::Element;
use crate::error::{Error, Result};

/// Blocks have about this many entries where rows are shorter.
pub(super) const BLOCK: usize = 1024;

/// Templates of all combinations of classes are kept when they have at most this many entries, so
/// that they stay in a core's cache; else those of one line of rows.
const KEPT: usize = 1 << 17;

/// A block of rows of one class combination.
struct Template<X> {
    entries: Vec<X>,
    ready: bool,
}

/// The templates in use by one task.
pub(super) struct Templates<'p, T, I> {
    plan: &'p Plan,
    /// Whether there is a slot for every combination of classes, or for those of one line only.
    keep_all: bool,
    columns: Vec<Template<I>>,
    values: Vec<Template<T>>,
    /// The classes (depth, height) that the slots of one line are for.
    line: Option<[usize; 2]>,
    /// The channel that the values are of, and its weights as `[column channel, tap]`.
    channel: Option<usize>,
    packed: Vec<T>,
    cell: Cell,
}

/// The entries of a row within one column channel.
#[derive(Default)]
struct Cell {
    columns: Vec<usize>,
    /// Where each entry's taps start; one more than entries.
    tap_start: Vec<usize>,
    taps: Vec<usize>,
}

/// A run of equal rows, as templates of at least that many.
pub(super) struct Rows<'t, T, I> {
    /// Entries per row, the bias column's included.
    pub(super) length: usize,
    /// Number of rows.
    pub(super) count: usize,
    /// Columns relative to the first row's first column; those of the bias are placeholders.
    pub(super) columns: &'t [I],
    pub(super) values: &'t [T],
}

impl<'p, T: Element, I: Index> Templates<'p, T, I> {
    pub(super) fn new(plan: &'p Plan) -> Result<Self> {
        let [d, h, w] = &plan.axes;
        let entries: usize = plan
            .axes
            .iter()
            .map(|axis| (0..axis.classes()).map(|c| axis.class_count(c)).sum::<usize>())
            .product();
        let keep_all = entries.saturating_mul(plan.channels.columns) <= KEPT;
        let lines = if keep_all { d.classes() * h.classes() } else { 1 };
        let mut templates = Templates {
            plan,
            keep_all,
            columns: Vec::new(),
            values: Vec::new(),
            line: None,
            channel: None,
            packed: Vec::new(),
            cell: Cell::default(),
        };
        let slots = lines * w.classes();
        reserve(&mut templates.columns, slots)?;
        reserve(&mut templates.values, slots)?;
        templates.columns.extend((0..slots).map(|_| Template::empty()));
        templates.values.extend((0..slots).map(|_| Template::empty()));
        reserve(&mut templates.packed, plan.channels.columns.saturating_mul(plan.taps()))?;
        Ok(templates)
    }

    /// Makes the templates those of a line of rows: a channel and the first two coordinates.
    pub(super) fn select(&mut self, row: RowPosition, weight: &[T]) {
        let line = [0, 1].map(|a| self.plan.axes[a].class[row.at[a]]);
        let new_line = !self.keep_all && self.line != Some(line);
        self.line = Some(line);
        if self.channel != Some(row.channel) {
            self.channel = Some(row.channel);
            self.plan.pack(weight, row.channel, &mut self.packed);
            self.values.iter_mut().for_each(|template| template.ready = false);
        }
        if new_line {
            self.values.iter_mut().for_each(|template| template.ready = false);
            self.columns.iter_mut().for_each(|template| template.ready = false);
        }
    }

    /// At most `limit` rows of the selected line from position `w` on.
    pub(super) fn rows(
        &mut self,
        w: usize,
        limit: usize,
        bias: Option<T>,
    ) -> Result<Rows<'_, T, I>> {
        let axis = &self.plan.axes[2];
        let class = axis.class[w];
        let [d, h] = self.line.unwrap_or_default();
        let per_channel = self.plan.axes[0].class_count(d)
            * self.plan.axes[1].class_count(h)
            * axis.class_count(class);
        let length = self.plan.channels.columns * per_channel + usize::from(bias.is_some());
        let block = (BLOCK / length.max(1)).clamp(1, axis.longest[class]);
        let line = if self.keep_all { d * self.plan.axes[1].classes() + h } else { 0 };
        let slot = line * axis.classes() + class;
        if !(self.columns[slot].ready && self.values[slot].ready) {
            self.cell.fill(self.plan, [d, h, class]);
            self.build(slot, length, block, axis.step[class], bias)?;
        }
        let count = axis.run[w].min(limit).min(block);
        Ok(Rows {
            length,
            count,
            columns: &self.columns[slot].entries[..count * length],
            values: &self.values[slot].entries[..count * length],
        })
    }

    /// Builds what is missing of a slot: `block` rows of `length` entries.
    fn build(
        &mut self,
        slot: usize,
        length: usize,
        block: usize,
        step: usize,
        bias: Option<T>,
    ) -> Result<()> {
        let (columns, values) = (&mut self.columns[slot], &mut self.values[slot]);
        if !columns.ready {
            let entries = &mut columns.entries;
            entries.clear();
            reserve(entries, block * length)?;
            self.cell.write_columns(self.plan, entries);
            entries.resize(length, I::from_usize(0));
            for row in 1..block {
                let shift = I::from_usize(row * step);
                entries.extend_from_within(..length);
                entries[row * length..].iter_mut().for_each(|e| *e = e.plus(shift));
            }
            columns.ready = true;
        }
        if !values.ready {
            let entries = &mut values.entries;
            entries.clear();
            reserve(entries, block * length)?;
            self.cell.write_values(&self.packed, self.plan.taps(), entries);
            entries.extend(bias);
            (1..block).for_each(|_| entries.extend_from_within(..length));
            values.ready = true;
        }
        Ok(())
    }
}

impl<X> Template<X> {
    fn empty() -> Self {
        Template { entries: Vec::new(), ready: false }
    }
}

impl Cell {
    /// The entries of a row whose position has these classes.
    fn fill(&mut self, plan: &Plan, classes: [usize; 3]) {
        let [axis_d, axis_h, axis_w] = &plan.axes;
        let (taps_h, taps_w) = (axis_h.taps(), axis_w.taps());
        let (columns_h, columns_w) = (axis_h.rows.columns(), axis_w.rows.columns());
        self.columns.clear();
        self.taps.clear();
        self.tap_start.clear();
        for (d, shared_d) in axis_d.class_row(classes[0]) {
            for (h, shared_h) in axis_h.class_row(classes[1]) {
                for (w, shared_w) in axis_w.class_row(classes[2]) {
                    self.columns.push((d * columns_h + h) * columns_w + w);
                    self.tap_start.push(self.taps.len());
                    for tap_d in shared_d {
                        for tap_h in shared_h {
                            let tap = (tap_d * taps_h + tap_h) * taps_w;
                            self.taps.extend(shared_w.iter().map(|tap_w| tap + tap_w));
                        }
                    }
                }
            }
        }
        self.tap_start.push(self.taps.len());
    }

    fn write_columns<I: Index>(&self, plan: &Plan, entries: &mut Vec<I>) {
        for channel in 0..plan.channels.columns {
            let base = channel * plan.plane();
            entries.extend(self.columns.iter().map(|column| I::from_usize(base + column)));
        }
    }

    /// Weights of taps that fall on the same column add up in the accumulator type and are rounded
    /// once; single ones are copied bit by bit.
    fn write_values<T: Element>(&self, packed: &[T], taps: usize, entries: &mut Vec<T>) {
        let single = self.taps.len() == self.columns.len();
        for weights in packed.chunks_exact(taps) {
            if single {
                entries.extend(self.taps.iter().map(|&tap| weights[tap]));
                continue;
            }
            entries.extend(self.tap_start.windows(2).map(|range| {
                let [first, others @ ..] = &self.taps[range[0]..range[1]] else {
                    return T::default();
                };
                if others.is_empty() {
                    return weights[*first];
                }
                let mut sum = weights[*first].to_acc();
                others.iter().for_each(|&tap| sum += weights[tap].to_acc());
                T::from_acc(sum)
            }));
        }
    }
}

fn reserve<X>(vector: &mut Vec<X>, additional: usize) -> Result<()> {
    vector.try_reserve(additional).map_err(|_| Error::Allocation {
        what: "a block of matrix rows".into(),
        bytes: (additional as u64).saturating_mul(size_of::<X>() as u64),
    })
}
