//! Sums, as tasks have them, written to where they belong.

use std::ops::Range;

use crate::element::Element;
use crate::geometry::{Box3, Layout, Strides, ravel};
use crate::stream;
use crate::workers::Shared;

/// Positions, channels last, whose sums are read together: the lanes of a cache line.
const TOGETHER: usize = 16;

/// Sums of some channels at the positions of a box with one outer position: channel r's begin at `r·pitch`,
/// and in there line h at `h·line`.
pub(super) struct Sums<'s, A> {
    pub data: &'s mut [A],
    pub pitch: usize,
    pub line: usize,
    pub place: &'s Box3,
}

/// An activation that tasks write.
pub(super) struct Target<'t, T> {
    pub data: Shared<'t, T>,
    pub layout: Layout,
    pub strides: Strides,
    pub extents: [usize; 3],
    /// Whether it is written past the caches, channels first: elements are accumulators then.
    pub streaming: bool,
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
        let Sums { data, pitch, line, place } = sums;
        let [d, h, w] = place.each_ref().map(|range| range.start);
        let (lines, width) = (place[1].len(), place[2].len());
        // Lines of the target that follow each other are written together.
        let whole = width == self.extents[2];
        for (number, channel) in channels.clone().enumerate() {
            if self.layout == Layout::ChannelsLast {
                break;
            }
            let sums = &mut data[number * pitch..][..(lines - 1) * line + width];
            if whole && line != width {
                (1..lines).for_each(|h| sums.copy_within(h * line..h * line + width, h * width));
            }
            let (count, len, step) =
                if whole { (1, lines * width, 0) } else { (lines, width, line) };
            for number in 0..count {
                let at = ravel([d, h + number, w], self.extents);
                let sums = &mut sums[number * step..][..len];
                if let Some(bias) = bias {
                    let bias = bias[channel].to_acc();
                    sums.iter_mut().for_each(|sum| *sum += bias);
                }
                // SAFETY: promised by the caller.
                let target = unsafe { self.data.run(self.strides.at(image, channel, at), len) };
                match self.streaming {
                    true => match T::as_acc_mut(target) {
                        Some(target) => stream::copy(target, sums, true),
                        None => T::narrow(sums, target),
                    },
                    false => T::narrow(sums, target),
                }
            }
        }
        if self.layout == Layout::ChannelsLast {
            let bias = bias.map(|bias| &bias[channels.clone()]);
            for number in 0..lines {
                let at = ravel([d, h + number, w], self.extents);
                let first = self.strides.at(image, channels.start, at);
                let run = LastRun { first, len: width, channels: channels.len(), pitch };
                // SAFETY: promised by the caller.
                unsafe { self.write_last(run, &data[number * line..], bias) };
            }
        }
    }

    /// Has what was written past the caches seen by whoever waits for the task.
    pub fn finish(&self) {
        if self.streaming {
            stream::fence();
        }
    }

    /// Writes consecutive positions of consecutive channels, which are neighbours.
    ///
    /// # Safety
    /// As [`Target::write`].
    unsafe fn write_last(&self, run: LastRun, sums: &[T::Acc], bias: Option<&[T]>) {
        let LastRun { first, len, channels, pitch } = run;
        for start in (0..len).step_by(TOGETHER) {
            for position in start..len.min(start + TOGETHER) {
                let first = first + position * self.strides.position;
                // SAFETY: promised by the caller.
                let target = unsafe { self.data.run(first, channels) };
                let sums = sums[position..].iter().step_by(pitch);
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

/// Consecutive positions of some channels, channels last.
struct LastRun {
    /// Where the first channel's first position is in the target.
    first: usize,
    len: usize,
    channels: usize,
    /// From a channel's sums to the next one's.
    pitch: usize,
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
            let source = &source[strides.at(image, channel, positions.start)..][..len];
            T::widen(source, &mut row[..len]);
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
