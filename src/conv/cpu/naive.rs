//! The definition, one element of the result at a time. Nothing here is clever: the other algorithms
//! are tested against these loops.

use rayon::prelude::*;

use crate::conv::problem::{Problem, Strides, WeightStrides};
use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::geometry::{Layout, ravel, unravel};

/// `y[n, co, o] = bias[co] + Σ w[co, ci, tap]·x[n, c, i(o, tap)]`.
pub(super) fn forward<T: Element>(
    p: &Problem,
    x: &[T],
    w: &[T],
    bias: Option<&[T]>,
    y: &mut [T],
) -> Result<()> {
    let (xs, ys, ws) = (p.input_strides(), p.output_strides(), p.weight_strides());
    y.par_iter_mut().enumerate().for_each(|(index, y)| {
        let (n, co, o) = coordinates(p.layout, &ys, p.outputs, index);
        let first = co / p.outputs_per_group() * p.channels_per_group();
        let mut sum = bias.map_or(T::Acc::ZERO, |b| b[co].to_acc());
        each_read(p, unravel(o, p.output_extents()), |tap, i| {
            for ci in 0..p.channels_per_group() {
                sum += w[ws.at(co, ci, tap)].to_acc() * x[xs.at(n, first + ci, i)].to_acc();
            }
        });
        *y = T::from_acc(sum);
    });
    Ok(())
}

/// `dx[n, c, i] = bias[c] + Σ w[co, ci, tap]·dy[n, co, o]` over the (o, tap) that read i.
pub(super) fn backward_input<T: Element>(
    p: &Problem,
    dy: &[T],
    w: &[T],
    bias: Option<&[T]>,
    dx: &mut [T],
) -> Result<()> {
    let (xs, ys, ws) = (p.input_strides(), p.output_strides(), p.weight_strides());
    let rows = p.adjoint_rows()?;
    let (outputs, taps) = (p.output_extents(), p.tap_extents());
    dx.par_iter_mut().enumerate().for_each(|(index, dx)| {
        let (n, c, i) = coordinates(p.layout, &xs, p.channels, index);
        let (group, ci) = (c / p.channels_per_group(), c % p.channels_per_group());
        let first = group * p.outputs_per_group();
        let mut sum = bias.map_or(T::Acc::ZERO, |b| b[c].to_acc());
        let [id, ih, iw] = unravel(i, p.input_extents());
        for (od, kd) in readers(rows[0].row(id)) {
            for (oh, kh) in readers(rows[1].row(ih)) {
                for (ow, kw) in readers(rows[2].row(iw)) {
                    let (o, tap) = (ravel([od, oh, ow], outputs), ravel([kd, kh, kw], taps));
                    for co in first..first + p.outputs_per_group() {
                        sum += w[ws.at(co, ci, tap)].to_acc() * dy[ys.at(n, co, o)].to_acc();
                    }
                }
            }
        }
        *dx = T::from_acc(sum);
    });
    Ok(())
}

/// `dw[co, ci, tap] = Σ dy[n, co, o]·x[n, c, i(o, tap)]` over images and output positions.
pub(super) fn backward_weight<T: Element>(
    p: &Problem,
    x: &[T],
    dy: &[T],
    dw: &mut [T],
) -> Result<()> {
    let (xs, ys, ws) = (p.input_strides(), p.output_strides(), p.weight_strides());
    dw.par_iter_mut().enumerate().for_each(|(index, dw)| {
        let (co, ci, tap) = weight_coordinates(p, &ws, index);
        let c = co / p.outputs_per_group() * p.channels_per_group() + ci;
        let tap = unravel(tap, p.tap_extents());
        let mut sum = T::Acc::ZERO;
        for o in 0..p.output_positions() {
            let Some(i) = source(p, unravel(o, p.output_extents()), tap) else { continue };
            for n in 0..p.batch {
                sum += dy[ys.at(n, co, o)].to_acc() * x[xs.at(n, c, i)].to_acc();
            }
        }
        *dw = T::from_acc(sum);
    });
    Ok(())
}

/// (image, channel, position) of the element at `index`.
fn coordinates(
    layout: Layout,
    strides: &Strides,
    channels: usize,
    index: usize,
) -> (usize, usize, usize) {
    let (image, rest) = (index / strides.image, index % strides.image);
    match layout {
        Layout::ChannelsFirst => (image, rest / strides.channel, rest % strides.channel),
        Layout::ChannelsLast => (image, rest % channels, rest / channels),
    }
}

/// (output channel, input channel of its group, tap) of the weight element at `index`.
fn weight_coordinates(p: &Problem, strides: &WeightStrides, index: usize) -> (usize, usize, usize) {
    let (inputs, taps) = (p.channels_per_group(), p.taps());
    match p.layout {
        Layout::ChannelsFirst => (index / strides.output, index / taps % inputs, index % taps),
        Layout::ChannelsLast => {
            (index % p.outputs, index / p.outputs % inputs, index / strides.tap)
        }
    }
}

/// The input position that output `o` reads through `tap`; `None` when the tap is dropped.
fn source(p: &Problem, o: [usize; 3], tap: [usize; 3]) -> Option<usize> {
    let [d, h, w] = &*p.axes;
    let at = [d.source(o[0], tap[0])?, h.source(o[1], tap[1])?, w.source(o[2], tap[2])?];
    Some(ravel(at, p.input_extents()))
}

/// Calls `visit(tap, input position)` for every tap of output `o` that is not dropped.
fn each_read(p: &Problem, o: [usize; 3], mut visit: impl FnMut(usize, usize)) {
    for tap in 0..p.taps() {
        if let Some(i) = source(p, o, unravel(tap, p.tap_extents())) {
            visit(tap, i);
        }
    }
}

/// The (output, tap) pairs of an adjoint row.
fn readers<'a>(
    row: impl Iterator<Item = (usize, &'a [usize])>,
) -> impl Iterator<Item = (usize, usize)> {
    row.flat_map(|(o, taps)| taps.iter().map(move |&k| (o, k)))
}
