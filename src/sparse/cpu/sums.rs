//! Sums, as tasks have them, written to where they belong.

use std::ops::Range;

use crate::element::Element;
use crate::geometry::{Box3, Layout, ravel};
use crate::sparse::problem::Strides;
use crate::workers::Shared;

/// Positions, channels last, whose sums are read together: the lanes of a cache line.
const TOGETHER: usize = 16;

/// Sums of some channels at the positions of a box: channel r's begin at `r·pitch`, and in there line h of
/// outer position d at `d·block + h·line`.
pub(super) struct Sums<'s, A> {
    pub data: &'s mut [A],
    pub pitch: usize,
    pub block: usize,
    pub line: usize,
    pub place: &'s Box3,
}

/// An activation that tasks write.
pub(super) struct Target<'t, T> {
    pub data: Shared<'t, T>,
    pub layout: Layout,
    pub strides: Strides,
    pub extents: [usize; 3],
}

impl<T: Element> Target<'_, T> {
    /// Writes the sums of some channels, counted over all groups, rounding each once after adding the bias,
    /// which has an element for every channel.
    ///
    /// # Safety
    /// Nothing else may use these elements of the target.
    pub unsafe fn write(
        &self,
        image: usize,
        channels: Range<usize>,
        sums: Sums<'_, T::Acc>,
        bias: Option<&[T]>,
    ) {
        let [place_d, place_h, place_w] = sums.place;
        // Lines that follow each other in both are one run.
        let together = sums.line == place_w.len() && place_w.len() == self.extents[2];
        let (lines, len) = match together {
            true => (1, place_h.len() * place_w.len()),
            false => (place_h.len(), place_w.len()),
        };
        for d in 0..place_d.len() {
            for h in 0..lines {
                let at = [place_d.start + d, place_h.start + h, place_w.start];
                let first = self.strides.at(image, channels.start, ravel(at, self.extents));
                let from = d * sums.block + h * sums.line;
                let run = Run { first, from, len, pitch: sums.pitch, channels: channels.clone() };
                // SAFETY: promised by the caller.
                unsafe {
                    match self.layout {
                        Layout::ChannelsFirst => self.write_first(run, sums.data, bias),
                        Layout::ChannelsLast => self.write_last(run, sums.data, bias),
                    }
                }
            }
        }
    }

    /// # Safety
    /// As [`Target::write`].
    unsafe fn write_first(&self, run: Run, sums: &mut [T::Acc], bias: Option<&[T]>) {
        for (row, channel) in run.channels.enumerate() {
            let sums = &mut sums[row * run.pitch + run.from..][..run.len];
            if let Some(bias) = bias {
                let bias = bias[channel].to_acc();
                sums.iter_mut().for_each(|sum| *sum += bias);
            }
            // SAFETY: promised by the caller.
            let target = unsafe { self.data.run(run.first + row * self.strides.channel, run.len) };
            T::narrow(sums, target);
        }
    }

    /// # Safety
    /// As [`Target::write`].
    unsafe fn write_last(&self, run: Run, sums: &[T::Acc], bias: Option<&[T]>) {
        let bias = bias.map(|bias| &bias[run.channels.clone()]);
        for start in (0..run.len).step_by(TOGETHER) {
            for position in start..run.len.min(start + TOGETHER) {
                let first = run.first + position * self.strides.position;
                // SAFETY: promised by the caller.
                let target = unsafe { self.data.run(first, run.channels.len()) };
                let sums = sums[run.from + position..].iter().step_by(run.pitch);
                match bias {
                    Some(bias) => {
                        for ((target, &sum), bias) in target.iter_mut().zip(sums).zip(bias) {
                            *target = T::from_acc(sum + bias.to_acc());
                        }
                    }
                    None => {
                        target.iter_mut().zip(sums).for_each(|(t, &sum)| *t = T::from_acc(sum));
                    }
                }
            }
        }
    }
}

/// Consecutive positions of some channels.
struct Run {
    /// Where the first channel's first position is in the target.
    first: usize,
    /// Where its sum is behind the start of a channel's sums.
    from: usize,
    len: usize,
    pitch: usize,
    channels: Range<usize>,
}

/// Copies consecutive positions of some channels of an activation as rows of accumulators, `pitch` apart.
pub(super) fn copy_rows<T: Element>(
    source: &[T],
    strides: Strides,
    image: usize,
    channels: Range<usize>,
    positions: Range<usize>,
    pitch: usize,
    rows: &mut [T::Acc],
) {
    let len = positions.len();
    if strides.position == 1 {
        for (channel, row) in channels.zip(rows.chunks_mut(pitch)) {
            T::widen(
                &source[strides.at(image, channel, positions.start)..][..len],
                &mut row[..len],
            );
        }
        return;
    }
    // Channels are neighbours: a few positions at a time, so that lines of both stay in cache.
    for start in (0..len).step_by(TOGETHER) {
        for position in start..len.min(start + TOGETHER) {
            let first = strides.at(image, channels.start, positions.start + position);
            let source = &source[first..][..channels.len()];
            let target = rows[position..].iter_mut().step_by(pitch);
            target.zip(source).for_each(|(target, value)| *target = value.to_acc());
        }
    }
}
