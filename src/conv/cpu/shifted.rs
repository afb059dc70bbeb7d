//! One matrix product per tap, accumulated: `y += W_tap · X_tap`, where `X_tap` is what the tap reads
//! at each output, a shifted view of a padded copy of the input.
//!
//! The copy is a slab (see [`Slab`]) of some channels and of the inputs that one box of outputs reads,
//! with strides, dilation and padding resolved, so that each tap's view is a block of it.

use std::ops::Range;

use rayon::prelude::*;

use super::gemm::{Matrix, MatrixMut, Old, gemm};
use super::partial::{Part, Workspace, Write, sum_over_tiles};
use super::runs::{
    self, Scratch, Shared, digits, oriented, oriented_mut, piece, pieces, read, room, shift, zeros,
};
use super::tiles::{Landing, fill_slab, input_boxes, output_boxes, positions, taps_outermost};
use crate::conv::problem::Problem;
use crate::element::Element;
use crate::error::Result;
use crate::geometry::{Box3, Layout, volume};
use crate::patches::slab::Slab;

/// Output positions in a tile, at most.
const POSITIONS: usize = 1024;
/// Elements in a task's slab of all its channels, unless one channel of one line has more.
const SLAB: usize = 128 << 10;
/// Elements a task sums up at a time.
const SUMS: usize = 512 << 10;

/// How many channels' slabs a task fills at a time.
fn channels_at_a_time(p: &Problem, boxes: &[Box3]) -> usize {
    let largest = boxes.iter().map(|part| Slab::new(&p.axes, part.clone()).len()).max();
    (SLAB / largest.unwrap_or(1).max(1)).clamp(1, p.channels_per_group())
}

/// A tap's weights for some channels of a group, as a matrix of outputs × channels, from the weight
/// with taps outermost.
fn tap_weights<'a, A>(
    p: &Problem,
    w: &'a [A],
    tap: usize,
    outputs: &Range<usize>,
    channels: &Range<usize>,
) -> Matrix<'a, A> {
    let per_group = p.channels_per_group();
    let w = &w[tap * p.outputs * per_group..];
    let step = if p.layout == Layout::ChannelsFirst { per_group } else { p.outputs };
    oriented(p.layout, w, step).from(outputs.start, channels.start)
}

/// A tap's view of `channels` channels, as a matrix of channels × positions of the `d`th slice of the
/// box.
fn tap_view<'a, A>(
    p: &Problem,
    slab: &Slab,
    data: &'a [A],
    channels: usize,
    tap: [usize; 3],
    d: usize,
) -> Matrix<'a, A> {
    match p.layout {
        Layout::ChannelsFirst => oriented(p.layout, data, slab.len()).from(0, slab.block(tap, d)),
        Layout::ChannelsLast => oriented(p.layout, data, channels).from(0, slab.block(tap, d)),
    }
}

pub(super) fn forward<T: Element>(
    p: &Problem,
    x: &[T],
    w: &[T],
    bias: Option<&[T]>,
    y: &mut [T],
) -> Result<()> {
    let mut wide = Scratch::new();
    let w = taps_outermost(p, w, &mut wide)?;
    let boxes = output_boxes(p, POSITIONS, SLAB);
    let (outputs, at_a_time) = (p.outputs_per_group(), channels_at_a_time(p, &boxes));
    let rows = (SUMS / POSITIONS).min(outputs);
    let radices = [p.batch, p.groups, outputs.div_ceil(rows), boxes.len()];
    let y = Shared::new(y);
    let init = || [const { Scratch::<T::Acc>::new() }; 2];
    (0..radices.iter().product()).into_par_iter().try_for_each_init(init, |[sums, data], task| {
        let [n, group, block, part] = digits(task, radices);
        let block = shift(piece(outputs, rows, block), group * outputs);
        let part = &boxes[part];
        let (slab, len) = (Slab::new(&p.axes, part.clone()), volume(part));
        let step = if p.layout == Layout::ChannelsFirst { len } else { block.len() };
        let sums = zeros(sums, block.len() * len)?;
        for channels in pieces(p.channels_per_group(), at_a_time) {
            let data = room(data, channels.len() * slab.len())?;
            let first = group * p.channels_per_group();
            fill_slab(p, &slab, &part[2], x, n, shift(channels.clone(), first), data);
            for (index, tap) in p.axes.each_tap().enumerate() {
                for d in 0..slab.depth() {
                    gemm(
                        [block.len(), slab.block_len(), channels.len()],
                        tap_weights(p, w, index, &block, &channels),
                        tap_view(p, &slab, data, channels.len(), tap, d),
                        oriented_mut(p.layout, sums, step).from(0, d * slab.block_len()),
                        Old::Kept,
                    );
                }
            }
        }
        let bias = bias.map(|bias| &bias[block.clone()]);
        let target = runs::output(p, n, block, positions(part, p.output_extents()));
        // SAFETY: each task has outputs of its own.
        unsafe { runs::write(p.layout, sums, step, bias, &y, target) };
        Ok(())
    })
}

pub(super) fn backward_input<T: Element>(
    p: &Problem,
    dy: &[T],
    w: &[T],
    bias: Option<&[T]>,
    dx: &mut [T],
) -> Result<()> {
    let mut wide = Scratch::new();
    let w = taps_outermost(p, w, &mut wide)?;
    let boxes = output_boxes(p, POSITIONS, usize::MAX);
    let parts = input_boxes(p, SUMS);
    let largest = parts.iter().map(volume).max().unwrap_or(1).max(POSITIONS);
    let (channels, outputs) = (p.channels_per_group(), p.outputs_per_group());
    let at_a_time = (SUMS / largest).clamp(1, channels);
    let radices = [p.batch, p.groups, channels.div_ceil(at_a_time), parts.len()];
    let dx = Shared::new(dx);
    let init = || [const { Scratch::<T::Acc>::new() }; 3];
    (0..radices.iter().product()).into_par_iter().try_for_each_init(init, |scratch, task| {
        let [sums, tile, wide] = scratch;
        let [n, group, block, part] = digits(task, radices);
        let (block, part) = (piece(channels, at_a_time, block), &parts[part]);
        let group_outputs = shift(0..outputs, group * outputs);
        let count = block.len();
        let sums = zeros(sums, count * volume(part))?;
        for outputs_box in &boxes {
            let landing = Landing::new(p, outputs_box, part);
            if landing.is_empty() {
                continue;
            }
            let len = volume(outputs_box);
            let range = positions(outputs_box, p.output_extents());
            let dy = read(p.layout, dy, runs::output(p, n, group_outputs.clone(), range), wide)?;
            let tile = room(tile, count * len)?;
            let step = if p.layout == Layout::ChannelsFirst { len } else { count };
            for (index, tap) in p.axes.each_tap().enumerate() {
                let weights = tap_weights(p, w, index, &group_outputs, &block);
                let product = oriented_mut(p.layout, tile, step);
                gemm([count, len, outputs], weights.t(), dy, product, Old::Replaced);
                let sums_step =
                    if p.layout == Layout::ChannelsFirst { volume(part) } else { count };
                landing.add(p.layout, tap, count, [step, sums_step], tile, sums);
            }
        }
        let block = shift(block, group * channels);
        let bias = bias.map(|bias| &bias[block.clone()]);
        let target = runs::input(p, n, block, positions(part, p.input_extents()));
        // SAFETY: each task has inputs of its own.
        unsafe { runs::write(p.layout, sums, target.len, bias, &dx, target) };
        Ok(())
    })
}

pub(super) fn backward_weight<T: Element>(
    p: &Problem,
    x: &[T],
    dy: &[T],
    dw: &mut [T],
) -> Result<()> {
    let boxes = output_boxes(p, POSITIONS, SLAB);
    let (outputs, k) = (p.outputs_per_group(), p.taps());
    let rows = (SUMS / k).clamp(1, outputs);
    let at_a_time = channels_at_a_time(p, &boxes).min((SUMS / (rows * k)).max(1));
    let blocks = [p.groups, outputs.div_ceil(rows), p.channels_per_group().div_ceil(at_a_time)];
    let sum = |part: Part<3>, scratch: &mut Workspace<T::Acc>, write: Write<'_, T::Acc>| {
        let [sums, data, wide, _] = scratch;
        let [group, row, block] = part.block;
        let row = shift(piece(outputs, rows, row), group * outputs);
        let block = piece(p.channels_per_group(), at_a_time, block);
        let sums = zeros(sums, row.len() * block.len() * k)?;
        for tile in part.tiles {
            let (n, part) = (tile / boxes.len(), &boxes[tile % boxes.len()]);
            let slab = Slab::new(&p.axes, part.clone());
            let data = room(data, block.len() * slab.len())?;
            let channels = shift(block.clone(), group * p.channels_per_group());
            fill_slab(p, &slab, &part[2], x, n, channels, data);
            let range = positions(part, p.output_extents());
            let dy = read(p.layout, dy, runs::output(p, n, row.clone(), range), wide)?;
            for (index, tap) in p.axes.each_tap().enumerate() {
                for d in 0..slab.depth() {
                    gemm(
                        [row.len(), block.len(), slab.block_len()],
                        dy.from(0, d * slab.block_len()),
                        tap_view(p, &slab, data, block.len(), tap, d).t(),
                        tap_sums(p, sums, index, row.len(), block.len()),
                        Old::Kept,
                    );
                }
            }
        }
        match p.layout {
            Layout::ChannelsFirst => write(row, block.start * k..block.end * k, sums),
            Layout::ChannelsLast => {
                let len = row.len() * block.len();
                for (tap, sums) in sums.chunks_exact_mut(len).enumerate() {
                    let entries = shift(block.clone(), tap * p.channels_per_group());
                    write(row.clone(), entries, sums);
                }
            }
        }
        Ok(())
    };
    // SAFETY: blocks are disjoint pieces of the outputs and channels, and each is written by itself.
    unsafe { sum_over_tiles(p, blocks, p.batch * boxes.len(), dw, sum) }
}

/// A tap's sums, as a matrix of outputs × channels, in sums laid out as the block of the weight:
/// `[output][channel][tap]` channels first, `[tap][channel][output]` channels last.
fn tap_sums<'a, A>(
    p: &Problem,
    sums: &'a mut [A],
    tap: usize,
    outputs: usize,
    channels: usize,
) -> MatrixMut<'a, A> {
    let k = p.taps();
    match p.layout {
        Layout::ChannelsFirst => MatrixMut { data: &mut sums[tap..], row: channels * k, column: k },
        Layout::ChannelsLast => {
            MatrixMut { data: &mut sums[tap * channels * outputs..], row: 1, column: outputs }
        }
    }
}
