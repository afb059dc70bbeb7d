//! The adjoint: sums of dy by the transposed pattern, each tap's then added to where they land.

use super::sums::{Sums, Target, copy_rows};
use super::table::{RowSums, Table, arrange, room};
use crate::conv::WithWeight;
use crate::element::Element;
use crate::error::Result;
use crate::geometry::{Box3, Layout, volume};
use crate::patches::Images;
use crate::patches::landing::Landing;
use crate::patches::pieces::{Pieces, digits, shift};
use crate::patches::slab::{boxes, largest, positions};
use crate::plan::Pass;
use crate::product::cpu::{Old, RegisterTiles};
use crate::sparse::problem::Problem;
use crate::workers::{Room, Shared, Workers};

/// Positions of dy that are multiplied at a time, at most.
const POSITIONS: usize = 2048;
/// Elements of dy that are copied at a time, at most, unless a single position has more.
const GRADIENTS: usize = 128 << 10;
/// Elements of the result that a task sums up, at most, unless a single line has more.
const RESULTS: usize = 64 << 10;
/// Channels that a task sums up, at most.
const CHANNELS: usize = 64;

/// `dx = Σ fold_tap(W_tapᵀ·dy) + b`.
#[derive(Debug)]
pub(in crate::sparse) struct BackwardInput {
    problem: Problem,
    outputs: Vec<Box3>,
    /// The boxes of inputs that tasks sum up, and the boxes of outputs that land in each.
    inputs: Vec<Box3>,
    landings: Vec<Vec<(usize, Landing)>>,
    /// A group's input channels.
    channels: Pieces,
    /// Entries by (input channel over all groups, tap), which multiply rows of dy `pitch` apart.
    table: Table,
    order: Vec<usize>,
    pitch: usize,
}

impl BackwardInput {
    pub fn new<T: Element>(p: &Problem, passes: &mut Vec<Pass>) -> Result<(Self, Workers)> {
        let lanes = <T::Acc as RegisterTiles>::best_tiles().lanes;
        let rows = p.outputs_per_group();
        let outputs = boxes(p.axes.output_extents(), |outputs| {
            volume(outputs) <= POSITIONS && volume(outputs) * rows <= GRADIENTS
        });
        let inputs = boxes(p.axes.input_extents(), |inputs| volume(inputs) <= RESULTS);
        // Of rows of positions, whatever the layout of the operands.
        let layout = Layout::ChannelsFirst;
        let (axes, channels, groups) = (p.axes.clone(), p.channels, p.groups);
        let images = Images { layout, axes, channels, groups };
        let landings = Landing::between(&images, &outputs, &inputs);
        let per_group = p.channels_per_group();
        let at_a_time = (RESULTS / largest(&inputs).max(1)).clamp(1, CHANNELS.min(per_group));
        let channels = Pieces::new(per_group, at_a_time);
        let pitch = largest(&outputs).next_multiple_of(lanes);

        let order = p.transposed()?;
        let table = Table::new(&order, |entry| order.row_of[entry] % rows * pitch)?;

        let own = Room::default()
            .and::<T::Acc>(channels.longest() * largest(&inputs))
            .and::<T::Acc>(rows * pitch)
            .and::<T::Acc>(pitch);
        let tile = [channels.longest(), largest(&inputs)];
        let problem = p.clone();
        let order = order.order;
        let plan =
            BackwardInput { problem, outputs, inputs, landings, channels, table, order, pitch };
        let pass = Pass::on_cpu("multiply entries and fold tap by tap", plan.tasks());
        passes.push(pass.by(format!("{lanes} lanes")).with_tile(tile));
        let workers = Workers::new(plan.tasks(), own).with_common(room::<T>(p.pattern.len()));
        Ok((plan, workers))
    }

    fn tasks(&self) -> usize {
        let p = &self.problem;
        p.batch * p.groups * self.channels.count() * self.inputs.len()
    }
}

impl WithWeight for BackwardInput {
    fn run<T: Element>(
        &self,
        workers: &Workers,
        dy: &[T],
        values: &[T],
        bias: Option<&[T]>,
        dx: &mut [T],
        memory: &mut [u8],
    ) -> Result<()> {
        let BackwardInput { problem: p, outputs, inputs, landings, channels, table, order, pitch } =
            self;
        let (mut common, memory) = workers.split(memory);
        let values = arrange(workers, values, order, &mut common)?;
        let (rows, taps) = (p.outputs_per_group(), p.axes.taps());
        let extents = p.axes.output_extents();
        let (layout, strides) = (p.layout, p.input_strides());
        // Boxes cover consecutive positions, so the target is one line.
        let line = [1, 1, p.axes.inputs()];
        let (data, streaming) = (Shared::new(dx), false);
        let target = Target { data, layout, strides, extents: line, streaming };
        let radices = [p.batch, p.groups, channels.count(), inputs.len()];
        workers.share_out(self.tasks(), memory, |task, scratch| {
            let [image, group, piece, number] = digits(task, radices);
            let (landings, area) = (&landings[number], &inputs[number]);
            let channels = shift(channels.get(piece), group * p.channels_per_group());
            let len = volume(area);
            let sums = scratch.zeros::<T::Acc>(channels.len() * len);
            let gradients = scratch.take::<T::Acc>(rows * pitch);
            let product = scratch.take::<T::Acc>(*pitch);
            for (number, landing) in landings {
                let range = positions(&outputs[*number], extents);
                let of_group = group * rows..(group + 1) * rows;
                let count = range.len();
                copy_rows(dy, p.output_strides(), image, of_group, range, *pitch, gradients);
                for (channel, sums) in channels.clone().zip(sums.chunks_exact_mut(len)) {
                    for (index, tap) in p.axes.each_tap().enumerate() {
                        let row = channel * taps + index;
                        if table.is_empty(row) {
                            continue;
                        }
                        let sums_of_tap =
                            RowSums { data: &mut *product, pitch: 0, old: Old::Replaced };
                        table.multiply(row..row + 1, values, gradients, count, sums_of_tap);
                        landing.add(tap, 1, count, product, len, sums);
                    }
                }
            }
            let range = positions(area, p.axes.input_extents());
            let place = [0..1, 0..1, range];
            let sums = Sums { data: sums, pitch: len, line: len, place: &place };
            // SAFETY: each task has channels and inputs of its own.
            unsafe { target.write(image, channels, sums, bias) };
            Ok(())
        })
    }
}
