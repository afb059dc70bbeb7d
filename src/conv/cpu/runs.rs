//! What tasks read and write of operands: runs of contiguous elements, a fixed step apart.
//!
//! In both layouts what a task uses of an activation (some channels at consecutive positions) and of a weight
//! (some outputs, consecutive patch entries) has one contiguous axis. Channels first, that is the
//! position or patch entry; channels last, the channel. Everything else about the layouts is the same
//! matrix product with rows and columns exchanged, see [`Matrix::of_runs`].

use std::ops::Range;

use crate::conv::problem::Problem;
use crate::element::Element;
use crate::geometry::Layout;
use crate::product::cpu::Matrix;
use crate::workers::Shared;

/// `count` runs of `len` contiguous elements; the first starts at `start`, the others `step` apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Runs {
    pub start: usize,
    pub count: usize,
    pub step: usize,
    pub len: usize,
}

/// The runs of an activation with `channels` (over all groups) channels per image and `positions`
/// positions: these channels at these positions of image `n`.
fn activation(
    p: &Problem,
    channels: usize,
    positions: usize,
    n: usize,
    channel: Range<usize>,
    position: Range<usize>,
) -> Runs {
    let image = n * channels * positions;
    match p.layout {
        Layout::ChannelsFirst => Runs {
            start: image + channel.start * positions + position.start,
            count: channel.len(),
            step: positions,
            len: position.len(),
        },
        Layout::ChannelsLast => Runs {
            start: image + position.start * channels + channel.start,
            count: position.len(),
            step: channels,
            len: channel.len(),
        },
    }
}

/// The runs of an input.
pub(super) fn input(p: &Problem, n: usize, channel: Range<usize>, position: Range<usize>) -> Runs {
    activation(p, p.channels, p.input_positions(), n, channel, position)
}

/// The runs of an output.
pub(super) fn output(p: &Problem, n: usize, channel: Range<usize>, position: Range<usize>) -> Runs {
    activation(p, p.outputs, p.output_positions(), n, channel, position)
}

/// The runs of a weight: output channels, counted over all groups, by consecutive entries of their
/// group's patch, in the order of the layout.
pub(super) fn weight(p: &Problem, outputs: Range<usize>, entries: Range<usize>) -> Runs {
    let patch = p.channels_per_group() * p.taps();
    match p.layout {
        Layout::ChannelsFirst => Runs {
            start: outputs.start * patch + entries.start,
            count: outputs.len(),
            step: patch,
            len: entries.len(),
        },
        Layout::ChannelsLast => Runs {
            start: entries.start * p.outputs + outputs.start,
            count: entries.len(),
            step: p.outputs,
            len: outputs.len(),
        },
    }
}

/// The distance between the runs of a contiguous matrix of `rows` × `columns`.
pub(super) fn step(layout: Layout, rows: usize, columns: usize) -> usize {
    if layout == Layout::ChannelsFirst { columns } else { rows }
}

/// Whether elements are not accumulators, and have to be copied to be multiplied.
pub(super) fn widens<T: Element>() -> bool {
    T::as_acc(&[]).is_none()
}

/// Elements of memory that [`read`] takes for a matrix of `len` elements.
pub(super) fn widened<T: Element>(len: usize) -> usize {
    if widens::<T>() { len } else { 0 }
}

/// Runs as a matrix of accumulators: where they are if elements are accumulators, and widened into
/// `wide` if not.
pub(super) fn read<'a, T: Element>(
    layout: Layout,
    data: &'a [T],
    runs: Runs,
    wide: &'a mut [T::Acc],
) -> Matrix<'a, T::Acc> {
    if let Some(data) = T::as_acc(data) {
        return Matrix::of_runs(layout, &data[runs.start..], runs.step);
    }
    let wide = &mut wide[..runs.count * runs.len];
    for (run, wide) in wide.chunks_exact_mut(runs.len).enumerate() {
        T::widen(&data[runs.start + run * runs.step..][..runs.len], wide);
    }
    Matrix::of_runs(layout, wide, runs.len)
}

/// Writes runs of accumulators, `step` apart in `sums`, rounding them once, after adding `bias`, which
/// has an element for each channel of the runs.
///
/// # Safety
/// No other task may use the runs of `target`.
pub(super) unsafe fn write<T: Element>(
    layout: Layout,
    sums: &mut [T::Acc],
    step: usize,
    bias: Option<&[T]>,
    target: &Shared<'_, T>,
    runs: Runs,
) {
    for run in 0..runs.count {
        let sums = &mut sums[run * step..][..runs.len];
        match (bias, layout) {
            (None, _) => {}
            (Some(bias), Layout::ChannelsFirst) => {
                let bias = bias[run].to_acc();
                sums.iter_mut().for_each(|sum| *sum += bias);
            }
            (Some(bias), Layout::ChannelsLast) => {
                sums.iter_mut().zip(bias).for_each(|(sum, b)| *sum += b.to_acc());
            }
        }
        // SAFETY: promised by the caller.
        let target = unsafe { target.run(runs.start + run * runs.step, runs.len) };
        T::narrow(sums, target);
    }
}
