//! The contents of rows that look alike, built once and copied.
//!
//! A row's pattern depends only on the class of its position on each axis, but for where it starts;
//! its values depend on the channel as well. Neighbouring rows of one class are one step apart, so
//! short rows are kept as a block of several, and copying stays worthwhile for depthwise layers.

use super::places::{Axis, Places, RowPosition};
use crate::element::Element;
use crate::matrix::index::Index;
use crate::workers::{Room, Scratch};

/// Blocks have about this many entries where rows are shorter.
pub(super) const BLOCK: usize = 1024;

/// Templates of all combinations of classes are kept when they have at most this many entries, so
/// that they stay in a core's cache; else those of one line of rows.
const KEPT: usize = 1 << 17;

/// Where a task keeps which templates.
#[derive(Debug)]
pub(super) struct Slots {
    /// Whether there is a slot for every combination of classes, or for those of one line only.
    keep_all: bool,
    /// Where each slot's entries begin, and where the last's end.
    start: Vec<usize>,
    /// The most entries that a row has in one column channel, and the most taps behind them.
    most_entries: usize,
    most_taps: usize,
}

impl Slots {
    pub(super) fn new(places: &Places) -> Self {
        let [d, h, w] = &places.axes;
        let counts = places.axes.each_ref().map(|axis| {
            let counts = (0..axis.classes()).map(|class| axis.class_count(class));
            (counts.clone().sum::<usize>(), counts.max().unwrap_or(0))
        });
        let all = counts.iter().fold(places.channels.columns, |all, c| all.saturating_mul(c.0));
        let keep_all = all <= KEPT;
        let mut start = vec![0usize];
        let mut add = |entries: usize| start.push(start[start.len() - 1].saturating_add(entries));
        if keep_all {
            for class_d in 0..d.classes() {
                for class_h in 0..h.classes() {
                    for class_w in 0..w.classes() {
                        let length = places.length([class_d, class_h, class_w]);
                        add(length * block(w, class_w, length));
                    }
                }
            }
        } else {
            // Of any line: a block has at most BLOCK entries or one row, and no more rows than a run.
            for class_w in 0..w.classes() {
                let cell = counts[0].1.saturating_mul(counts[1].1);
                let cell = cell.saturating_mul(w.class_count(class_w));
                let longest = cell.saturating_mul(places.channels.columns).saturating_add(1);
                add(longest.max(BLOCK).min(longest.saturating_mul(w.longest[class_w])));
            }
        }
        let most =
            |of: &dyn Fn(&Axis) -> usize| places.axes.iter().map(of).fold(1, usize::saturating_mul);
        let taps = |axis: &Axis| {
            let of = |class| axis.class_row(class).map(|(_, taps)| taps.len()).sum::<usize>();
            (0..axis.classes()).map(of).max().unwrap_or(0)
        };
        let entries = |axis: &Axis| {
            (0..axis.classes()).map(|class| axis.class_count(class)).max().unwrap_or(0)
        };
        Slots { keep_all, start, most_entries: most(&entries), most_taps: most(&taps) }
    }

    fn count(&self) -> usize {
        self.start.len() - 1
    }

    fn entries(&self) -> usize {
        self.start[self.count()]
    }

    /// The memory that [`Templates::new`] takes.
    pub(super) fn room<T: Element>(&self, places: &Places, index: usize) -> Room {
        let weights = places.channels.columns.saturating_mul(places.taps());
        Room::default()
            .and::<u8>(self.entries().saturating_mul(index))
            .and::<T>(self.entries())
            .and::<u8>(self.count())
            .and::<u8>(self.count())
            .and::<T>(weights)
            .and::<usize>(self.most_entries)
            .and::<usize>(self.most_entries.saturating_add(1))
            .and::<usize>(self.most_taps)
    }
}

/// Rows in a block of rows with this class on the last axis.
fn block(axis: &Axis, class: usize, length: usize) -> usize {
    (BLOCK / length.max(1)).clamp(1, axis.longest[class])
}

/// The templates in use by one task.
pub(super) struct Templates<'p, 's, T, I> {
    places: &'p Places,
    slots: &'p Slots,
    columns: &'s mut [I],
    values: &'s mut [T],
    /// For each slot, whether its columns are there, and whether its values are.
    has_columns: &'s mut [u8],
    has_values: &'s mut [u8],
    /// The classes (depth, height) that the slots of one line are for.
    line: Option<[usize; 2]>,
    /// The channel that the values are of, and its weights as `[column channel, tap]`.
    channel: Option<usize>,
    packed: &'s mut [T],
    cell: Cell<'s>,
}

/// The entries of a row within one column channel.
struct Cell<'s> {
    columns: &'s mut [usize],
    /// Where each entry's taps start; one more than entries.
    tap_start: &'s mut [usize],
    taps: &'s mut [usize],
    entries: usize,
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

impl<'p, 's, T: Element, I: Index> Templates<'p, 's, T, I> {
    /// No templates yet, and the memory for them.
    pub(super) fn new(places: &'p Places, slots: &'p Slots, memory: &mut Scratch<'s>) -> Self {
        let weights = places.channels.columns * places.taps();
        Templates {
            places,
            slots,
            columns: memory.take(slots.entries()),
            values: memory.take(slots.entries()),
            has_columns: memory.zeros(slots.count()),
            has_values: memory.zeros(slots.count()),
            line: None,
            channel: None,
            packed: memory.take(weights),
            cell: Cell {
                columns: memory.take(slots.most_entries),
                tap_start: memory.take(slots.most_entries + 1),
                taps: memory.take(slots.most_taps),
                entries: 0,
            },
        }
    }

    /// Makes the templates those of a line of rows: a channel and the first two coordinates.
    pub(super) fn select(&mut self, row: RowPosition, weight: &[T]) {
        let line = [0, 1].map(|a| self.places.axes[a].class[row.at[a]]);
        let new_line = !self.slots.keep_all && self.line != Some(line);
        self.line = Some(line);
        if self.channel != Some(row.channel) {
            self.channel = Some(row.channel);
            self.places.pack(weight, row.channel, self.packed);
            self.has_values.fill(0);
        }
        if new_line {
            self.has_values.fill(0);
            self.has_columns.fill(0);
        }
    }

    /// At most `limit` rows of the selected line from position `w` on.
    pub(super) fn rows(&mut self, w: usize, limit: usize, bias: Option<T>) -> Rows<'_, T, I> {
        let [_, axis_h, axis] = &self.places.axes;
        let class = axis.class[w];
        let [d, h] = self.line.unwrap_or_default();
        let length = self.places.length([d, h, class]);
        let block = block(axis, class, length);
        let line = if self.slots.keep_all { d * axis_h.classes() + h } else { 0 };
        let slot = line * axis.classes() + class;
        if self.has_columns[slot] == 0 || self.has_values[slot] == 0 {
            self.cell.fill(self.places, [d, h, class]);
            self.build(slot, length, block, axis.step[class], bias);
        }
        let count = axis.run[w].min(limit).min(block);
        let start = self.slots.start[slot];
        Rows {
            length,
            count,
            columns: &self.columns[start..][..count * length],
            values: &self.values[start..][..count * length],
        }
    }

    /// Builds what is missing of a slot: `block` rows of `length` entries.
    fn build(&mut self, slot: usize, length: usize, block: usize, step: usize, bias: Option<T>) {
        let start = self.slots.start[slot];
        let own = length - usize::from(bias.is_some());
        if self.has_columns[slot] == 0 {
            let columns = &mut self.columns[start..][..block * length];
            self.cell.write_columns(self.places, &mut columns[..own]);
            columns[own..length].fill(I::from_usize(0));
            for row in 1..block {
                let shift = I::from_usize(row * step);
                let (first, others) = columns.split_at_mut(row * length);
                let row = others[..length].iter_mut().zip(&first[..length]);
                row.for_each(|(column, first)| *column = first.plus(shift));
            }
            self.has_columns[slot] = 1;
        }
        if self.has_values[slot] == 0 {
            let values = &mut self.values[start..][..block * length];
            self.cell.write_values(self.packed, self.places.taps(), &mut values[..own]);
            if let Some(bias) = bias {
                values[own] = bias;
            }
            (1..block).for_each(|row| values.copy_within(..length, row * length));
            self.has_values[slot] = 1;
        }
    }
}

impl Cell<'_> {
    /// The entries of a row whose position has these classes.
    fn fill(&mut self, places: &Places, classes: [usize; 3]) {
        let [axis_d, axis_h, axis_w] = &places.axes;
        let (taps_h, taps_w) = (axis_h.taps(), axis_w.taps());
        let (columns_h, columns_w) = (axis_h.rows.columns(), axis_w.rows.columns());
        let (mut entry, mut end) = (0, 0);
        for (d, shared_d) in axis_d.class_row(classes[0]) {
            for (h, shared_h) in axis_h.class_row(classes[1]) {
                for (w, shared_w) in axis_w.class_row(classes[2]) {
                    self.columns[entry] = (d * columns_h + h) * columns_w + w;
                    self.tap_start[entry] = end;
                    entry += 1;
                    for tap_d in shared_d {
                        for tap_h in shared_h {
                            let tap = (tap_d * taps_h + tap_h) * taps_w;
                            let own = &mut self.taps[end..][..shared_w.len()];
                            own.iter_mut().zip(shared_w).for_each(|(t, tap_w)| *t = tap + tap_w);
                            end += shared_w.len();
                        }
                    }
                }
            }
        }
        self.tap_start[entry] = end;
        self.entries = entry;
    }

    fn write_columns<I: Index>(&self, places: &Places, entries: &mut [I]) {
        if self.entries == 0 {
            return;
        }
        for (channel, entries) in entries.chunks_exact_mut(self.entries).enumerate() {
            let base = channel * places.plane();
            let columns = entries.iter_mut().zip(&*self.columns);
            columns.for_each(|(entry, column)| *entry = I::from_usize(base + column));
        }
    }

    /// Weights of taps that fall on the same column add up in the accumulator type and are rounded
    /// once; single ones are copied bit by bit.
    fn write_values<T: Element>(&self, packed: &[T], taps: usize, entries: &mut [T]) {
        if self.entries == 0 {
            return;
        }
        let starts = &self.tap_start[..=self.entries];
        let single = starts[self.entries] == self.entries;
        let channels = entries.chunks_exact_mut(self.entries);
        for (entries, weights) in channels.zip(packed.chunks_exact(taps)) {
            if single {
                let taps = entries.iter_mut().zip(&*self.taps);
                taps.for_each(|(entry, &tap)| *entry = weights[tap]);
                continue;
            }
            for (entry, range) in entries.iter_mut().zip(starts.windows(2)) {
                let [first, others @ ..] = &self.taps[range[0]..range[1]] else {
                    *entry = T::default();
                    continue;
                };
                if others.is_empty() {
                    *entry = weights[*first];
                    continue;
                }
                let mut sum = weights[*first].to_acc();
                others.iter().for_each(|&tap| sum += weights[tap].to_acc());
                *entry = T::from_acc(sum);
            }
        }
    }
}
