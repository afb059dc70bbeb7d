//! The definition, one element of the result at a time. Nothing here is clever: the other algorithms
//! are tested against these loops.

use crate::conv::problem::{Problem, WeightStrides};
use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::geometry::{AxisRows, Layout, Strides, ravel, unravel};
use crate::plan::Pass;
use crate::workers::{Room, Workers};

/// Products that a task sums up, about, unless a single element has more.
const PRODUCTS: usize = 64 << 10;

/// A pass over so many elements, each of which is a sum of so many products: the elements of a task, and
/// whom it takes.
fn pass(elements: usize, products: usize, passes: &mut Vec<Pass>) -> (usize, Workers) {
    let per_task = (PRODUCTS / products.max(1)).max(1);
    let tasks = elements.div_ceil(per_task);
    passes.push(Pass::on_cpu("sum up each element", tasks).by("the definition's loops"));
    (per_task, Workers::new(tasks, Room::default()))
}

/// `y[n, co, o] = bias[co] + Σ w[co, ci, tap]·x[n, c, i(o, tap)]`.
#[derive(Debug)]
pub(crate) struct Forward {
    problem: Problem,
    per_task: usize,
}

impl Forward {
    pub fn new(p: &Problem, passes: &mut Vec<Pass>) -> (Self, Workers) {
        let elements = p.batch * p.outputs * p.output_positions();
        let (per_task, workers) = pass(elements, p.channels_per_group() * p.taps(), passes);
        (Forward { problem: p.clone(), per_task }, workers)
    }

    pub fn run<T: Element>(
        &self,
        workers: &Workers,
        x: &[T],
        w: &[T],
        bias: Option<&[T]>,
        y: &mut [T],
    ) -> Result<()> {
        let p = &self.problem;
        let (xs, ys, ws) = (p.input_strides(), p.output_strides(), p.weight_strides());
        let inputs = p.channels_per_group();
        let element = |index: usize| {
            let (n, co, o) = coordinates(p.layout, &ys, p.outputs, index);
            let first = co / p.outputs_per_group() * inputs;
            let mut sum = bias.map_or(T::Acc::ZERO, |b| b[co].to_acc());
            each_read(p, unravel(o, p.output_extents()), |tap, i| {
                for ci in 0..inputs {
                    sum += w[ws.at(co, ci, tap)].to_acc() * x[xs.at(n, first + ci, i)].to_acc();
                }
            });
            T::from_acc(sum)
        };
        workers.share_out_slice(y, self.per_task, |start, y| {
            (start..).zip(y).for_each(|(index, y)| *y = element(index));
        })
    }
}

/// `dx[n, c, i] = bias[c] + Σ w[co, ci, tap]·dy[n, co, o]` over the (o, tap) that read i.
#[derive(Debug)]
pub(crate) struct BackwardInput {
    problem: Problem,
    rows: [AxisRows; 3],
    per_task: usize,
}

impl BackwardInput {
    pub fn new(p: &Problem, passes: &mut Vec<Pass>) -> Result<(Self, Workers)> {
        let elements = p.batch * p.channels * p.input_positions();
        let (per_task, workers) = pass(elements, p.outputs_per_group() * p.taps(), passes);
        Ok((BackwardInput { problem: p.clone(), rows: p.adjoint_rows()?, per_task }, workers))
    }

    pub fn run<T: Element>(
        &self,
        workers: &Workers,
        dy: &[T],
        w: &[T],
        bias: Option<&[T]>,
        dx: &mut [T],
    ) -> Result<()> {
        let BackwardInput { problem: p, rows, per_task } = self;
        let (xs, ys, ws) = (p.input_strides(), p.output_strides(), p.weight_strides());
        let (outputs, taps) = (p.output_extents(), p.tap_extents());
        let element = |index: usize| {
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
            T::from_acc(sum)
        };
        workers.share_out_slice(dx, *per_task, |start, dx| {
            (start..).zip(dx).for_each(|(index, dx)| *dx = element(index));
        })
    }
}

/// `dw[co, ci, tap] = Σ dy[n, co, o]·x[n, c, i(o, tap)]` over images and output positions.
#[derive(Debug)]
pub(crate) struct BackwardWeight {
    problem: Problem,
    per_task: usize,
}

impl BackwardWeight {
    pub fn new(p: &Problem, passes: &mut Vec<Pass>) -> (Self, Workers) {
        let (per_task, workers) = pass(p.weight_len(), p.batch * p.output_positions(), passes);
        (BackwardWeight { problem: p.clone(), per_task }, workers)
    }

    pub fn run<T: Element>(
        &self,
        workers: &Workers,
        x: &[T],
        dy: &[T],
        dw: &mut [T],
    ) -> Result<()> {
        let p = &self.problem;
        let (xs, ys, ws) = (p.input_strides(), p.output_strides(), p.weight_strides());
        let element = |index: usize| {
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
            T::from_acc(sum)
        };
        workers.share_out_slice(dw, self.per_task, |start, dw| {
            (start..).zip(dw).for_each(|(index, dw)| *dw = element(index));
        })
    }
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
