//! Weights no row of which has two entries: every output is an input, scaled where its value is not 1. The
//! gathering filter, whose convolution is unfold, is one of these.

use std::ops::Range;

use crate::conv::WithWeight;
use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::geometry::{Box3, Layout, ravel, unravel};
use crate::patches::pieces::digits;
use crate::patches::slab::{SLAB_BYTES, Slab, output_boxes};
use crate::plan::Pass;
use crate::sparse::problem::Problem;
use crate::sparse::weight::Pattern;
use crate::stream::{self, StreamWriter};
use crate::workers::{Room, Scratch, Shared, Workers};

/// Bytes of output that a task writes at least, channels last, so that scheduling does not show.
const TASK_BYTES: usize = 128 << 10;

/// Whether no row has two entries.
pub(super) fn is_gathering(pattern: &Pattern) -> bool {
    pattern.starts.windows(2).all(|ends| ends[1] - ends[0] <= 1)
}

/// `y[o] = w·x[i(o)]`.
#[derive(Debug)]
pub(in crate::sparse) struct Gather {
    problem: Problem,
    by: By,
    tasks: usize,
    /// Whether results are written past the caches.
    streaming: bool,
}

#[derive(Debug)]
enum By {
    /// Channels first, a task per channel and box: the rows that each input channel is copied to, over all
    /// groups.
    Planes { boxes: Vec<(Box3, Slab)>, rows: Vec<Vec<Copied>> },
    /// Channels last, a task per so many positions: the runs of output channels.
    Positions { each: usize, runs: Vec<Run> },
}

/// An output channel and the entry that it is, with its tap; none where the row is empty.
#[derive(Clone, Copy, Debug)]
struct Copied {
    row: usize,
    from: Option<(usize, [usize; 3])>,
}

/// Consecutive output channels that copy consecutive input channels through one tap, by consecutive entries.
#[derive(Clone, Debug)]
struct Run {
    rows: Range<usize>,
    /// Tap and first channel; none where rows are empty.
    from: Option<(usize, usize)>,
    entry: usize,
}

impl Gather {
    pub fn new<T: Element>(p: &Problem, passes: &mut Vec<Pass>) -> (Self, Workers) {
        let size = size_of::<T>();
        let bytes = p.batch * p.outputs * p.axes.outputs() * size;
        let streaming = stream::worthwhile(bytes);
        let (by, tasks, room) = match p.layout {
            Layout::ChannelsFirst => {
                let boxes: Vec<_> = output_boxes(&p.axes, SLAB_BYTES / size)
                    .into_iter()
                    .map(|outputs| (outputs.clone(), Slab::new(&p.axes, outputs)))
                    .collect();
                let largest = |len: fn(&Slab) -> usize| {
                    boxes.iter().map(|(_, slab)| len(slab)).max().unwrap_or(0)
                };
                let room = Room::default().and::<T>(largest(Slab::len));
                let room = room.and::<T>(largest(Slab::block_len));
                let tasks = p.batch * p.channels * boxes.len();
                (By::Planes { boxes, rows: rows_of_channels(p) }, tasks, room)
            }
            Layout::ChannelsLast => {
                let each = (TASK_BYTES / (p.outputs * size)).max(1);
                let room = Room::default().and::<T>(p.outputs).and::<usize>(p.axes.taps());
                let tasks = (p.batch * p.axes.outputs()).div_ceil(each);
                (By::Positions { each, runs: runs(p) }, tasks, room)
            }
        };
        let stores = if streaming { "stores past the caches" } else { "stores to the caches" };
        passes.push(Pass::on_cpu("copy entries", tasks).by(stores));
        (Gather { problem: p.clone(), by, tasks, streaming }, Workers::new(tasks, room))
    }
}

/// For every input channel the rows that read it. Empty rows are the first channel's of their group.
fn rows_of_channels(p: &Problem) -> Vec<Vec<Copied>> {
    let (pattern, taps) = (&p.pattern, p.axes.tap_extents());
    let mut rows = vec![Vec::new(); p.channels];
    for row in 0..p.outputs {
        let first = row / p.outputs_per_group() * p.channels_per_group();
        let entry = pattern.row(row).next();
        let place = entry.map(|entry| (entry, pattern.place(entry)));
        let channel = place.map_or(0, |(_, (channel, _))| channel);
        let from = place.map(|(entry, (_, tap))| (entry, unravel(tap, taps)));
        rows[first + channel].push(Copied { row, from });
    }
    rows
}

fn runs(p: &Problem) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for row in 0..p.outputs {
        let first = row / p.outputs_per_group() * p.channels_per_group();
        let entry = p.pattern.row(row).next();
        let from = entry.map(|entry| {
            let (channel, tap) = p.pattern.place(entry);
            (tap, first + channel)
        });
        let entry = entry.unwrap_or(0);
        match runs.last_mut() {
            Some(last)
                if last.rows.end == row
                    && match (last.from, from) {
                        (Some((tap, first)), Some((own, channel))) => {
                            tap == own && channel == first + last.rows.len()
                        }
                        (last, own) => last == own,
                    } =>
            {
                last.rows.end += 1;
            }
            _ => runs.push(Run { rows: row..row + 1, from, entry }),
        }
    }
    runs
}

/// What outputs are made of besides the input; `None` if they are copies, bit by bit.
#[derive(Clone, Copy)]
struct Scaling<'a, T> {
    values: &'a [T],
    bias: Option<&'a [T]>,
}

impl<'a, T: Element> Scaling<'a, T> {
    fn new(values: &'a [T], bias: Option<&'a [T]>) -> Option<Self> {
        let one = T::from_acc(T::Acc::ONE);
        let copies = bias.is_none() && values.iter().all(|&value| value == one);
        (!copies).then_some(Scaling { values, bias })
    }

    /// Output channel `row` of what was read by `entry`.
    fn apply(&self, row: usize, entry: usize, read: T) -> T {
        let product = self.values[entry].to_acc() * read.to_acc();
        match self.bias {
            Some(bias) => T::from_acc(product + bias[row].to_acc()),
            None => T::from_acc(product),
        }
    }

    /// Output channel `row` if it has no entry.
    fn empty(&self, row: usize) -> T {
        self.bias.map_or(T::default(), |bias| bias[row])
    }
}

impl WithWeight for Gather {
    fn run<T: Element>(
        &self,
        workers: &Workers,
        x: &[T],
        values: &[T],
        bias: Option<&[T]>,
        y: &mut [T],
        memory: &mut [u8],
    ) -> Result<()> {
        let p = &self.problem;
        let scaling = Scaling::new(values, bias);
        let (all, target) = (y.len(), Shared::new(y));
        workers.share_out(self.tasks, memory, |task, scratch| {
            match &self.by {
                By::Planes { boxes, rows } => {
                    let [image, channel, number] = digits(task, [p.batch, p.channels, boxes.len()]);
                    let (outputs, slab) = &boxes[number];
                    let plane = &x[p.input_strides().at(image, channel, 0)..][..p.axes.inputs()];
                    let rows = &rows[channel];
                    self.plane(image, plane, rows, outputs, slab, scaling, scratch, &target);
                }
                By::Positions { each, runs } => {
                    let start = task * each * p.outputs;
                    // SAFETY: tasks have positions of their own.
                    let part = unsafe { target.run(start, (each * p.outputs).min(all - start)) };
                    self.positions(task * each, runs, x, scaling, scratch, part);
                }
            }
            Ok(())
        })
    }
}

impl Gather {
    /// A box of all rows that one input plane is copied to.
    #[allow(clippy::too_many_arguments, reason = "a task, taken apart")]
    fn plane<T: Element>(
        &self,
        image: usize,
        plane: &[T],
        rows: &[Copied],
        outputs: &Box3,
        slab: &Slab,
        scaling: Option<Scaling<'_, T>>,
        scratch: &mut Scratch,
        target: &Shared<'_, T>,
    ) {
        let p = &self.problem;
        let data = scratch.take::<T>(slab.len());
        let staged = scratch.take::<T>(slab.block_len());
        slab.copy(plane, 1, data);
        let first = ravel(outputs.each_ref().map(|range| range.start), p.axes.output_extents());
        let len = slab.depth() * slab.block_len();
        let whole = len == p.axes.outputs();
        // Neighbouring rows are neighbours in memory where the box is the whole plane.
        for rows in rows.chunk_by(|a, b| whole && a.row + 1 == b.row) {
            let start = p.output_strides().at(image, rows[0].row, first);
            // SAFETY: a box's outputs of these rows are this task's.
            let target = unsafe { target.run(start, rows.len() * len) };
            let mut writer = StreamWriter::new(target, self.streaming);
            for &Copied { row, from } in rows {
                for d in 0..slab.depth() {
                    let read = from.map(|(entry, tap)| {
                        (entry, &data[slab.block(tap, d)..][..slab.block_len()])
                    });
                    match (read, scaling) {
                        (Some((_, read)), None) => writer.write(read),
                        (Some((entry, read)), Some(scaling)) => {
                            let each = staged.iter_mut().zip(read);
                            each.for_each(|(y, &x)| *y = scaling.apply(row, entry, x));
                            writer.write(staged);
                        }
                        (None, scaling) => {
                            staged.fill(scaling.map_or(T::default(), |by| by.empty(row)));
                            writer.write(staged);
                        }
                    }
                }
            }
        }
    }

    /// Consecutive positions of channels-last images, from `first` on.
    fn positions<T: Element>(
        &self,
        first: usize,
        runs: &[Run],
        x: &[T],
        scaling: Option<Scaling<'_, T>>,
        scratch: &mut Scratch,
        part: &mut [T],
    ) {
        /// In place of a position that is read: none is.
        const DROPPED: usize = usize::MAX;
        let p = &self.problem;
        let staged = scratch.take::<T>(p.outputs);
        let sources = scratch.take::<usize>(p.axes.taps());
        let count = part.len() / p.outputs;
        let (extents, xs) = (p.axes.output_extents(), p.input_strides());
        let [map_d, map_h, map_w] = &*p.axes;
        let mut writer = StreamWriter::new(part, self.streaming);
        for position in first..first + count {
            let image = position / p.axes.outputs();
            let at = unravel(position % p.axes.outputs(), extents);
            let mut next = sources.iter_mut();
            for d in (0..map_d.taps()).map(|tap| map_d.source(at[0], tap)) {
                for h in (0..map_h.taps()).map(|tap| map_h.source(at[1], tap)) {
                    let line = d.zip(h).map(|(d, h)| d * map_h.inputs() + h);
                    for (tap, source) in (0..map_w.taps()).zip(&mut next) {
                        let read = line.zip(map_w.source(at[2], tap));
                        *source = read.map_or(DROPPED, |(line, w)| line * map_w.inputs() + w);
                    }
                }
            }
            for Run { rows, from, entry } in runs {
                let target = &mut staged[rows.clone()];
                let read = from.map(|(tap, channel)| (sources[tap], channel));
                match (read, scaling) {
                    (Some((DROPPED, _)), None) => target.fill(T::default()),
                    (Some((source, channel)), None) => {
                        let read = &x[xs.at(image, channel, source)..][..rows.len()];
                        target.copy_from_slice(read);
                    }
                    (Some((source, channel)), Some(scaling)) => {
                        for (number, (target, row)) in
                            target.iter_mut().zip(rows.clone()).enumerate()
                        {
                            let read = match source {
                                DROPPED => T::default(),
                                source => x[xs.at(image, channel + number, source)],
                            };
                            *target = scaling.apply(row, entry + number, read);
                        }
                    }
                    (None, scaling) => {
                        for (target, row) in target.iter_mut().zip(rows.clone()) {
                            *target = scaling.map_or(T::default(), |by| by.empty(row));
                        }
                    }
                }
            }
            writer.write(staged);
        }
    }
}
