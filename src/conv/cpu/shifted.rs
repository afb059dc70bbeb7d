//! One matrix product per tap, accumulated: `y += W_tap · X_tap`, where `X_tap` is what the tap reads
//! at each output, a shifted view of a padded copy of the input.
//!
//! The copy is a slab (see [`Slab`]) of some channels and of the inputs that one box of outputs reads,
//! with strides, dilation and padding resolved, so that each tap's view is a block of it.

use std::ops::Range;

use super::parts::{Parts, Task, Write};
use super::runs::{self, read, step, widened, widens};
use crate::conv::problem::Problem;
use crate::element::Element;
use crate::error::Result;
use crate::geometry::{Box3, Layout, volume};
use crate::patches::landing::Landing;
use crate::patches::pieces::{Pieces, digits, shift};
use crate::patches::slab::{Slab, boxes, largest, positions};
use crate::plan::Pass;
use crate::product::cpu::{Dimensions, FactorOf, Matrix, MatrixMut, Old, gemm};
use crate::workers::{Room, Scratch, Shared, Workers};

/// Output positions in a tile, at most.
const POSITIONS: usize = 1024;
/// Elements in a task's slab of all its channels, unless one channel of one line has more.
const SLAB: usize = 128 << 10;
/// Elements a task sums up at a time.
const SUMS: usize = 512 << 10;

/// Boxes of outputs, and the slab of each.
#[derive(Debug)]
struct Slabs {
    boxes: Vec<Box3>,
    slabs: Vec<Slab>,
    /// Elements of the largest.
    longest: usize,
}

impl Slabs {
    fn new(p: &Problem) -> Self {
        let boxes = boxes(p.output_extents(), |outputs| {
            volume(outputs) <= POSITIONS && Slab::len_for(&p.axes, outputs) <= SLAB
        });
        let slabs: Vec<_> =
            boxes.iter().map(|outputs| Slab::new(&p.axes, outputs.clone())).collect();
        let longest = slabs.iter().map(Slab::len).max().unwrap_or(0);
        Slabs { boxes, slabs, longest }
    }

    /// How many channels' slabs a task fills at a time.
    fn channels_at_a_time(&self, p: &Problem) -> usize {
        (SLAB / self.longest.max(1)).clamp(1, p.channels_per_group())
    }
}

/// Fills the slab of some channels, counted over all groups, of one image: channels first
/// `[channel][slab]`, channels last `[slab][channel]`.
fn fill_slab<T: Element>(
    p: &Problem,
    slab: &Slab,
    x: &[T],
    n: usize,
    channels: Range<usize>,
    data: &mut [T::Acc],
) {
    let positions = p.input_positions();
    let image = &x[n * p.channels * positions..][..p.channels * positions];
    match p.layout {
        Layout::ChannelsFirst => {
            for (channel, data) in channels.zip(data.chunks_exact_mut(slab.len())) {
                slab.fill(&[&image[channel * positions..][..positions]], 1, data);
            }
        }
        Layout::ChannelsLast => slab.fill_channels_last(image, p.channels, channels, data),
    }
}

/// The weight with its taps outermost, `[tap][output][channel of the group]` channels first and
/// `[tap][channel of the group][output]` channels last, so that a tap's weights are a matrix.
#[derive(Debug)]
struct TapsOutermost {
    problem: Problem,
    /// Elements of the copy; none where the weight is so as it lies.
    copy: usize,
    tasks: usize,
    /// Elements that a task writes.
    len: usize,
}

/// Elements that a task widens.
const WIDENED: usize = 16 << 10;

impl TapsOutermost {
    fn new<T: Element>(p: &Problem, passes: &mut Vec<Pass>) -> Self {
        let (len, how) = match p.layout {
            Layout::ChannelsFirst => (p.weight_len() / p.taps(), "taps outermost"),
            Layout::ChannelsLast => (WIDENED, "as it lies"),
        };
        let needed = widens::<T>() || p.layout == Layout::ChannelsFirst;
        let copy = if needed { p.weight_len() } else { 0 };
        let tasks = copy.div_ceil(len);
        if needed {
            let how = format!("{how}, in {}", <T::Acc as Element>::DTYPE);
            passes.push(Pass::on_cpu("copy the weight", tasks).by(how));
        }
        TapsOutermost { problem: p.clone(), copy, tasks, len }
    }

    /// Memory for the copy.
    fn room<T: Element>(&self) -> Room {
        Room::default().and::<T::Acc>(self.copy)
    }

    /// The weight, copied to the workers' common memory if need be.
    fn make<'a, T: Element>(
        &self,
        workers: &Workers,
        w: &'a [T],
        common: &mut Scratch<'a>,
    ) -> Result<&'a [T::Acc]> {
        let (p, copy) = (&self.problem, common.take::<T::Acc>(self.copy));
        if let (true, Some(w)) = (copy.is_empty(), T::as_acc(w)) {
            return Ok(w);
        }
        let taps = p.taps();
        workers.share_out_slice(copy, self.len, |start, copy| match p.layout {
            Layout::ChannelsLast => T::widen(&w[start..][..copy.len()], copy),
            Layout::ChannelsFirst => {
                T::Acc::interleave(&[&w[start / self.len..]], taps, copy);
            }
        })?;
        Ok(copy)
    }
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
    let step = step(p.layout, p.outputs, per_group);
    Matrix::of_runs(p.layout, w, step).from(outputs.start, channels.start)
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
    let step = step(p.layout, channels, slab.len());
    Matrix::of_runs(p.layout, data, step).from(0, slab.block(tap, d))
}

/// How a pass is made, for people.
fn describe(channels: usize) -> String {
    format!("products by faer, {channels} channels at a time")
}

/// `y = Σ W_tap · X_tap + b`.
#[derive(Debug)]
pub(crate) struct Forward {
    problem: Problem,
    weight: TapsOutermost,
    slabs: Slabs,
    /// A group's output channels, and its input channels.
    rows: Pieces,
    channels: Pieces,
}

impl Forward {
    pub fn new<T: Element>(p: &Problem, passes: &mut Vec<Pass>) -> (Self, Workers) {
        let weight = TapsOutermost::new::<T>(p, passes);
        let slabs = Slabs::new(p);
        let outputs = p.outputs_per_group();
        let rows = Pieces::new(outputs, (SUMS / POSITIONS).min(outputs));
        let channels = Pieces::new(p.channels_per_group(), slabs.channels_at_a_time(p));
        let room = Room::default()
            .and::<T::Acc>(rows.longest() * largest(&slabs.boxes))
            .and::<T::Acc>(channels.longest() * slabs.longest);
        let tile = [rows.longest(), largest(&slabs.boxes)];
        let common = weight.room::<T>();
        let plan = Forward { problem: p.clone(), weight, slabs, rows, channels };
        let pass = Pass::on_cpu("multiply tap by tap", plan.tasks());
        passes.push(pass.by(describe(channels.longest())).with_tile(tile));
        let workers = Workers::new(plan.tasks().max(plan.weight.tasks), room).with_common(common);
        (plan, workers)
    }

    fn tasks(&self) -> usize {
        let p = &self.problem;
        p.batch * p.groups * self.rows.count() * self.slabs.boxes.len()
    }

    pub fn run<T: Element>(
        &self,
        workers: &Workers,
        x: &[T],
        w: &[T],
        bias: Option<&[T]>,
        y: &mut [T],
        memory: &mut [u8],
    ) -> Result<()> {
        let Forward { problem: p, slabs, rows, channels, .. } = self;
        let (mut common, memory) = workers.split(memory);
        let w = self.weight.make(workers, w, &mut common)?;
        let y = Shared::new(y);
        let radices = [p.batch, p.groups, rows.count(), slabs.boxes.len()];
        workers.share_out(self.tasks(), memory, |task, scratch| {
            let [n, group, piece, number] = digits(task, radices);
            let rows = shift(rows.get(piece), group * p.outputs_per_group());
            let (outputs, slab) = (&slabs.boxes[number], &slabs.slabs[number]);
            let len = volume(outputs);
            let sums_step = step(p.layout, rows.len(), len);
            let sums = scratch.zeros::<T::Acc>(rows.len() * len);
            let data = scratch.take::<T::Acc>(channels.longest() * slab.len());
            for channels in channels.each() {
                let data = &mut data[..channels.len() * slab.len()];
                let first = group * p.channels_per_group();
                fill_slab(p, slab, x, n, shift(channels.clone(), first), data);
                let (columns, terms) = (slab.block_len(), channels.len());
                for (index, tap) in p.axes.each_tap().enumerate() {
                    for d in 0..slab.depth() {
                        let target = MatrixMut::of_runs(p.layout, sums, sums_step);
                        gemm(
                            Dimensions { rows: rows.len(), columns, terms },
                            tap_weights(p, w, index, &rows, &channels),
                            tap_view(p, slab, data, channels.len(), tap, d),
                            target.from(0, d * columns),
                            Old::Kept,
                        );
                    }
                }
            }
            let bias = bias.map(|bias| &bias[rows.clone()]);
            let target = runs::output(p, n, rows, positions(outputs, p.output_extents()));
            // SAFETY: each task has outputs of its own.
            unsafe { runs::write(p.layout, sums, sums_step, bias, &y, target) };
            Ok(())
        })
    }
}

/// `dx = Σ fold_tap(W_tapᵀ · dy) + b`.
#[derive(Debug)]
pub(crate) struct BackwardInput {
    problem: Problem,
    weight: TapsOutermost,
    outputs: Vec<Box3>,
    /// The boxes of inputs that tasks sum up, and the boxes of outputs that land in each.
    inputs: Vec<Box3>,
    landings: Vec<Vec<(usize, Landing)>>,
    /// A group's input channels.
    channels: Pieces,
}

impl BackwardInput {
    pub fn new<T: Element>(p: &Problem, passes: &mut Vec<Pass>) -> (Self, Workers) {
        let weight = TapsOutermost::new::<T>(p, passes);
        let outputs = boxes(p.output_extents(), |outputs| volume(outputs) <= POSITIONS);
        let inputs = boxes(p.input_extents(), |inputs| volume(inputs) <= SUMS);
        let landings = Landing::between(&p.images(), &outputs, &inputs);
        let per_group = p.channels_per_group();
        let at_a_time = (SUMS / largest(&inputs).max(POSITIONS)).clamp(1, per_group);
        let channels = Pieces::new(per_group, at_a_time);
        let rows = channels.longest();
        let room = Room::default()
            .and::<T::Acc>(rows * largest(&inputs))
            .and::<T::Acc>(rows * largest(&outputs))
            .and::<T::Acc>(widened::<T>(p.outputs_per_group() * largest(&outputs)));
        let common = weight.room::<T>();
        let tile = [rows, largest(&inputs)];
        let plan =
            BackwardInput { problem: p.clone(), weight, outputs, inputs, landings, channels };
        let pass = Pass::on_cpu("multiply and fold tap by tap", plan.tasks());
        passes.push(pass.by(describe(rows)).with_tile(tile));
        let workers = Workers::new(plan.tasks().max(plan.weight.tasks), room).with_common(common);
        (plan, workers)
    }

    fn tasks(&self) -> usize {
        let p = &self.problem;
        p.batch * p.groups * self.channels.count() * self.inputs.len()
    }

    pub fn run<T: Element>(
        &self,
        workers: &Workers,
        dy: &[T],
        w: &[T],
        bias: Option<&[T]>,
        dx: &mut [T],
        memory: &mut [u8],
    ) -> Result<()> {
        let BackwardInput { problem: p, outputs, inputs, landings, channels, .. } = self;
        let (mut common, memory) = workers.split(memory);
        let w = self.weight.make(workers, w, &mut common)?;
        let terms = p.outputs_per_group();
        let longest = largest(outputs);
        let dx = Shared::new(dx);
        let radices = [p.batch, p.groups, channels.count(), inputs.len()];
        workers.share_out(self.tasks(), memory, |task, scratch| {
            let [n, group, piece, area] = digits(task, radices);
            let (channel, landings, area) = (channels.get(piece), &landings[area], &inputs[area]);
            let group_outputs = shift(0..terms, group * terms);
            let count = channel.len();
            let sums = scratch.zeros::<T::Acc>(count * volume(area));
            let product = scratch.take::<T::Acc>(count * longest);
            let wide = scratch.take::<T::Acc>(widened::<T>(terms * longest));
            let sums_step = step(p.layout, count, volume(area));
            for (number, landing) in landings {
                let len = volume(&outputs[*number]);
                let range = positions(&outputs[*number], p.output_extents());
                let dy = read(p.layout, dy, runs::output(p, n, group_outputs.clone(), range), wide);
                let product = &mut product[..count * len];
                let step = step(p.layout, count, len);
                for (index, tap) in p.axes.each_tap().enumerate() {
                    let weights = tap_weights(p, w, index, &group_outputs, &channel);
                    let target = MatrixMut::of_runs(p.layout, product, step);
                    let size = Dimensions { rows: count, columns: len, terms };
                    gemm(size, weights.t(), dy, target, Old::Replaced);
                    landing.add(tap, count, step, product, sums_step, sums);
                }
            }
            let channel = shift(channel, group * p.channels_per_group());
            let bias = bias.map(|bias| &bias[channel.clone()]);
            let target = runs::input(p, n, channel, positions(area, p.input_extents()));
            // SAFETY: each task has inputs of its own.
            unsafe { runs::write(p.layout, sums, target.len, bias, &dx, target) };
            Ok(())
        })
    }
}

/// `dW_tap = dy · X_tapᵀ`.
#[derive(Debug)]
pub(crate) struct BackwardWeight {
    problem: Problem,
    slabs: Slabs,
    /// A group's output channels, and its input channels.
    rows: Pieces,
    channels: Pieces,
    parts: Parts,
}

impl BackwardWeight {
    pub fn new<T: Element>(p: &Problem, passes: &mut Vec<Pass>) -> (Self, Workers) {
        let slabs = Slabs::new(p);
        let (outputs, taps) = (p.outputs_per_group(), p.taps());
        let rows = Pieces::new(outputs, (SUMS / taps).clamp(1, outputs));
        let affordable = (SUMS / (rows.longest() * taps)).max(1);
        let at_a_time = slabs.channels_at_a_time(p).min(affordable);
        let channels = Pieces::new(p.channels_per_group(), at_a_time);
        let pieces = p.groups * rows.count() * channels.count();
        let parts = Parts::new::<T>(p, pieces, p.batch * slabs.boxes.len());
        let room = Room::default()
            .and::<T::Acc>(rows.longest() * channels.longest() * taps)
            .and::<T::Acc>(channels.longest() * slabs.longest)
            .and::<T::Acc>(widened::<T>(rows.longest() * largest(&slabs.boxes)));
        let pass = Pass::on_cpu("multiply tap by tap", parts.tasks());
        let tile = [rows.longest(), channels.longest()];
        passes.push(pass.by(describe(channels.longest())).with_tile(tile));
        parts.explain(passes);
        let workers = parts.workers::<T>(room);
        (BackwardWeight { problem: p.clone(), slabs, rows, channels, parts }, workers)
    }

    pub fn run<T: Element>(
        &self,
        workers: &Workers,
        x: &[T],
        dy: &[T],
        dw: &mut [T],
        memory: &mut [u8],
    ) -> Result<()> {
        let BackwardWeight { problem: p, slabs, rows, channels, parts } = self;
        let taps = p.taps();
        let longest = largest(&slabs.boxes);
        let sum = |task: Task, scratch: &mut Scratch, write: Write<'_, T::Acc>| {
            let radices = [p.groups, rows.count(), channels.count()];
            let [group, row, channel] = digits(task.piece, radices);
            let rows = shift(rows.get(row), group * p.outputs_per_group());
            let channel = channels.get(channel);
            let sums = scratch.zeros::<T::Acc>(rows.len() * channel.len() * taps);
            let data = scratch.take::<T::Acc>(channel.len() * slabs.longest);
            let wide = scratch.take::<T::Acc>(widened::<T>(rows.len() * longest));
            for tile in task.tiles {
                let (n, number) = (tile / slabs.boxes.len(), tile % slabs.boxes.len());
                let (outputs, slab) = (&slabs.boxes[number], &slabs.slabs[number]);
                let data = &mut data[..channel.len() * slab.len()];
                let channels = shift(channel.clone(), group * p.channels_per_group());
                fill_slab(p, slab, x, n, channels, data);
                let range = positions(outputs, p.output_extents());
                let dy = read(p.layout, dy, runs::output(p, n, rows.clone(), range), wide);
                let terms = slab.block_len();
                for (index, tap) in p.axes.each_tap().enumerate() {
                    for d in 0..slab.depth() {
                        gemm(
                            Dimensions { rows: rows.len(), columns: channel.len(), terms },
                            dy.from(0, d * terms),
                            tap_view(p, slab, data, channel.len(), tap, d).t(),
                            tap_sums(p, sums, index, rows.len(), channel.len()),
                            Old::Kept,
                        );
                    }
                }
            }
            match p.layout {
                Layout::ChannelsFirst => {
                    write(rows, channel.start * taps..channel.end * taps, sums)
                }
                Layout::ChannelsLast => {
                    let len = rows.len() * channel.len();
                    for (tap, sums) in sums.chunks_exact_mut(len).enumerate() {
                        let entries = shift(channel.clone(), tap * p.channels_per_group());
                        write(rows.clone(), entries, sums);
                    }
                }
            }
            Ok(())
        };
        // SAFETY: pieces are disjoint ranges of the outputs and channels, each written by itself.
        unsafe { parts.sum(workers, dw, memory, sum) }
    }
}

/// A tap's sums, as a matrix of outputs × channels, in sums laid out as the piece of the weight:
/// `[output][channel][tap]` channels first, `[tap][channel][output]` channels last.
fn tap_sums<'a, A>(
    p: &Problem,
    sums: &'a mut [A],
    tap: usize,
    outputs: usize,
    channels: usize,
) -> MatrixMut<'a, A> {
    let taps = p.taps();
    match p.layout {
        Layout::ChannelsFirst => {
            MatrixMut { data: &mut sums[tap..], row: channels * taps, column: taps }
        }
        Layout::ChannelsLast => {
            MatrixMut { data: &mut sums[tap * channels * outputs..], row: 1, column: outputs }
        }
    }
}
