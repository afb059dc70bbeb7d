//! Blocks of tensors as tasks read and write them: runs of contiguous elements, a fixed step apart.
//!
//! In both layouts a block of an activation (some channels at consecutive positions) and of a weight
//! (some outputs, consecutive patch entries) has one contiguous axis. Channels first, that is the
//! position or patch entry; channels last, the channel. Everything else about the layouts is the same
//! matrix product with rows and columns exchanged, see [`oriented`].

use std::marker::PhantomData;
use std::ops::Range;

use super::gemm::{Matrix, MatrixMut};
use crate::conv::problem::Problem;
use crate::element::Element;
use crate::error::Result;
use crate::geometry::Layout;
use crate::memory::try_with_capacity;

/// `count` runs of `len` contiguous elements; the first starts at `start`, the others `step` apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Runs {
    pub start: usize,
    pub count: usize,
    pub step: usize,
    pub len: usize,
}

/// The block of an activation with `channels` (over all groups) channels per image and `positions`
/// positions: these channels at these positions of image `n`.
pub(super) fn activation(
    p: &Problem,
    [channels, positions]: [usize; 2],
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

/// The block of an input.
pub(super) fn input(p: &Problem, n: usize, channel: Range<usize>, position: Range<usize>) -> Runs {
    activation(p, [p.channels, p.input_positions()], n, channel, position)
}

/// The block of an output.
pub(super) fn output(p: &Problem, n: usize, channel: Range<usize>, position: Range<usize>) -> Runs {
    activation(p, [p.outputs, p.output_positions()], n, channel, position)
}

/// The block of a weight: output channels, counted over all groups, by consecutive entries of their
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

/// Runs as a matrix whose rows are channels and whose columns are positions (or, for a weight, patch
/// entries): the runs are its rows, or channels last its columns.
pub(super) fn oriented<A>(layout: Layout, data: &[A], step: usize) -> Matrix<'_, A> {
    let rows = Matrix { data, row: step, column: 1 };
    if layout == Layout::ChannelsFirst { rows } else { rows.t() }
}

/// As [`oriented`], for writing.
pub(super) fn oriented_mut<A>(layout: Layout, data: &mut [A], step: usize) -> MatrixMut<'_, A> {
    let rows = MatrixMut { data, row: step, column: 1 };
    if layout == Layout::ChannelsFirst { rows } else { rows.t() }
}

/// A task's memory, kept from one task to the next.
pub(super) type Scratch<A> = Vec<A>;

/// The first `len` elements of the scratch memory, of any value, after making room for them.
pub(super) fn room<A: Element>(scratch: &mut Scratch<A>, len: usize) -> Result<&mut [A]> {
    if scratch.len() < len {
        *scratch = Vec::new();
        let mut grown = try_with_capacity("a workspace", len)?;
        grown.resize(len, A::default());
        *scratch = grown;
    }
    Ok(&mut scratch[..len])
}

/// As [`room`], all zeros.
pub(super) fn zeros<A: Element>(scratch: &mut Scratch<A>, len: usize) -> Result<&mut [A]> {
    let room = room(scratch, len)?;
    room.fill(A::default());
    Ok(room)
}

/// Runs as accumulators: where they are if elements are accumulators, and widened into `scratch` if
/// not. Returned as a matrix with the orientation of [`oriented`].
pub(super) fn read<'a, T: Element>(
    layout: Layout,
    data: &'a [T],
    runs: Runs,
    scratch: &'a mut Scratch<T::Acc>,
) -> Result<Matrix<'a, T::Acc>> {
    if let Some(data) = T::as_acc(data) {
        return Ok(oriented(layout, &data[runs.start..], runs.step));
    }
    let wide = room(scratch, runs.count * runs.len)?;
    for (run, wide) in wide.chunks_exact_mut(runs.len).enumerate() {
        T::widen(&data[runs.start + run * runs.step..][..runs.len], wide);
    }
    Ok(oriented(layout, wide, runs.len))
}

/// A slice that tasks write disjoint parts of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shared<'a, T> {
    data: *mut T,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: all access is through `Shared::run`, whose callers vouch for disjointness.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub fn new(data: &'a mut [T]) -> Self {
        Shared { data: data.as_mut_ptr(), len: data.len(), borrowed: PhantomData }
    }

    /// A run of the slice.
    ///
    /// # Safety
    /// While the result is alive, nothing else may use any part of this run.
    #[allow(clippy::mut_from_ref)] // Disjointness is the caller's to guarantee.
    pub unsafe fn run(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: the run lies inside the slice, which is borrowed for 'a; the caller sees to it that
        // no other reference to it exists.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }
}

impl<T: Element> Shared<'_, T> {
    /// Writes rounded accumulators to the elements `start`, `start + step`, ….
    ///
    /// # Safety
    /// Nothing else may use these elements.
    pub unsafe fn scatter(&self, start: usize, step: usize, values: &[T::Acc]) {
        let last = start + (values.len().max(1) - 1) * step;
        assert!(values.is_empty() || last < self.len);
        for (index, &value) in values.iter().enumerate() {
            // SAFETY: inside the slice by the assertion; the caller sees to the rest.
            unsafe { *self.data.add(start + index * step) = T::from_acc(value) };
        }
    }
}

/// Writes runs of accumulators, `step` apart in `sums`, rounding them once, after adding `bias`, which
/// has an element for each channel of the block.
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

/// The digits of `index` in a mixed radix, the last one fastest: which task it is.
pub(super) fn digits<const N: usize>(mut index: usize, radices: [usize; N]) -> [usize; N] {
    let mut digits = [0; N];
    for (digit, radix) in digits.iter_mut().zip(radices).rev() {
        *digit = index % radix;
        index /= radix;
    }
    digits
}

/// The `index`th of the pieces of at most `size` that `0..extent` is cut into.
pub(super) fn piece(extent: usize, size: usize, index: usize) -> Range<usize> {
    index * size..((index + 1) * size).min(extent)
}

/// The pieces of at most `size` that `0..extent` is cut into.
pub(super) fn pieces(extent: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..extent.div_ceil(size)).map(move |index| piece(extent, size, index))
}

/// A range counted from `origin`, counted from 0.
pub(super) fn shift(range: Range<usize>, origin: usize) -> Range<usize> {
    range.start + origin..range.end + origin
}
