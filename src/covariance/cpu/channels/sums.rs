//! From the sums of classes to the matrix.

use super::{BLOCK, Channels, ROWS};
use crate::covariance::cpu::landing::{Landing, Target};
use crate::element::Accumulator;
use crate::error::Result;
use crate::geometry::Layout;
use crate::patches::entries::Entries;
use crate::patches::pieces::digits;
use crate::workers::Workers;

/// The sums of all classes of all groups.
pub(super) struct ClassSums<'a, F> {
    pub of: &'a Channels,
    pub data: &'a [F],
}

impl<F: Accumulator> ClassSums<'_, F> {
    /// Writes them to the matrices, by pieces of rows and columns.
    pub(super) fn land(
        &self,
        workers: &Workers,
        landing: &Landing<F>,
        memory: &mut [u8],
    ) -> Result<()> {
        let (p, pieces) = (&self.of.p, &self.of.entries);
        let radices = [p.groups, pieces.len(), pieces.len()];
        workers.share_out(radices.iter().product(), memory, |task, scratch| {
            let [group, i, j] = digits(task, radices);
            if i < j {
                return Ok(());
            }
            let (rows, columns) = (&pieces[i], &pieces[j]);
            let tile = scratch.take::<F>(rows.len() * columns.len());
            self.read(group, rows, columns, tile);
            let targets = [i, j].map(|piece| &self.of.targets[piece]);
            // SAFETY: each task has two pieces of its own, or one.
            unsafe { landing.put(group, targets, tile, i == j) };
            if p.bias && j == 0 {
                let ones = &mut tile[..rows.len()];
                self.read_ones(group, rows, ones);
                let last = &Target::Run(p.entries()..p.entries() + 1);
                // SAFETY: each task with j = 0 has a piece of its own of the last row.
                unsafe { landing.put(group, [last, targets[0]], ones, false) };
            }
            Ok(())
        })
    }

    /// The products of some entries with others, those of the matrix's lower triangle at least.
    fn read(&self, group: usize, rows: &Entries, columns: &Entries, tile: &mut [F]) {
        let (of, layout, pitch) = (self.of, self.of.p.layout, columns.len());
        for (a, tap_a) in rows.taps.clone().enumerate() {
            for (b, tap_b) in columns.taps.clone().enumerate() {
                let ((phase_a, start_a), (phase_b, start_b)) = (of.places[tap_a], of.places[tap_b]);
                let lag: [isize; 3] = std::array::from_fn(|axis| start_b[axis] - start_a[axis]);
                let direct = lag > [0; 3] || (lag == [0; 3] && phase_a >= phase_b);
                // Lanes of the right block run along the columns if direct, else along the rows.
                let (outer, outer_phase, inner, inner_phase) = match direct {
                    true => (&rows.channels, phase_a, &columns.channels, phase_b),
                    false => (&columns.channels, phase_b, &rows.channels, phase_a),
                };
                let (lag, start) = match direct {
                    true => (lag, start_a),
                    false => (lag.map(|lag| -lag), start_b),
                };
                let at = |outer: usize, inner: usize| -> usize {
                    let (c, other) = if direct { (outer, inner) } else { (inner, outer) };
                    place(layout, rows, c, a) * pitch + place(layout, columns, other, b)
                };
                let step = at(0, 1) - at(0, 0);
                // Channels of one class at a time.
                for (first, left, rows) in of.runs(outer_phase, outer, ROWS) {
                    for (from, right, count) in of.runs(inner_phase, inner, BLOCK) {
                        let Some(lines) = self.lines(group, left, right, lag, start) else {
                            continue;
                        };
                        let count = count.min(lines.count);
                        for row in 0..rows {
                            let sums = &lines.sums[row * lines.pitch..][..count];
                            let target = tile[at(first + row, from)..].iter_mut().step_by(step);
                            target.zip(sums).for_each(|(target, &sum)| *target = sum);
                        }
                    }
                }
            }
        }
    }

    /// The products of some entries with the appended 1.
    fn read_ones(&self, group: usize, rows: &Entries, tile: &mut [F]) {
        let of = self.of;
        let one = (of.blocks.len() - 1) * BLOCK;
        for (a, tap) in rows.taps.clone().enumerate() {
            let (phase, start) = of.places[tap];
            for (number, c) in rows.channels.clone().enumerate() {
                let left = of.virtual_channel(phase, c);
                let lines = self.lines(group, left, one, [0; 3], start);
                tile[place(of.p.layout, rows, number, a)] = lines.map_or(F::ZERO, |l| l.sums[0]);
            }
        }
    }

    /// The sums of the virtual channels from `left` on with those from `right` on that are of one class, over
    /// the window of this start; `None` above the diagonal.
    fn lines(
        &self,
        group: usize,
        left: usize,
        right: usize,
        lag: [isize; 3],
        start: [isize; 3],
    ) -> Option<Lines<'_, F>> {
        let of = self.of;
        let (block, row) = (left / BLOCK, left % BLOCK);
        let number = of.table[of.index(lag, block, row / ROWS, right / BLOCK)];
        let class = of.classes.get(number as usize)?;
        let shape = of.shape(class);
        let windows = of.windows_of(class, 0);
        let [d, h, w] = [0, 1, 2].map(|axis| windows[axis].place(start[axis] as usize));
        let window = (d * shape.windows[1] + h) * shape.windows[2] + w;
        // A square has lanes up to its last row only.
        let count = shape.width.checked_sub(right % BLOCK).filter(|&count| count > 0)?;
        let at = (window * shape.rows + row - class.rows.start) * shape.width + right % BLOCK;
        let sums = &self.data[group * of.sums + class.sums..][..shape.len()];
        Some(Lines { sums: &sums[at..], pitch: shape.width, count })
    }
}

/// Sums of a class: rows that are `pitch` apart, of which each has `count`.
struct Lines<'a, F> {
    sums: &'a [F],
    pitch: usize,
    count: usize,
}

/// The place of a channel and a tap of a piece, counted from its first ones.
pub(super) fn place(layout: Layout, entries: &Entries, channel: usize, tap: usize) -> usize {
    match layout {
        Layout::ChannelsFirst => channel * entries.taps.len() + tap,
        Layout::ChannelsLast => tap * entries.channels.len() + channel,
    }
}
