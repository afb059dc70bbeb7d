//! Groups with few channels, without patches and products: every element is read from memory about once. By tiles
//! (`direct/tiles.rs`, `kernels/conv/direct_tiles.cu`), else by `kernels/conv/direct.cu`.

#[cfg(all(test, feature = "simulator", unix))]
mod tests;
mod tiles;

use tiles::{Operation, Tile};

use super::arguments::spec;
use super::finish::{Sums, finish};
use super::sectors::{WARP, WeightsApart, neighbours, sectors};
use crate::conv::problem::Problem;
use crate::device::cuda::LOADS_AT_A_TIME;
use crate::device::cuda::structs::{Convolution, DirectArgs};
use crate::device::cuda::{
    CudaDevice, Divisor, Draft, Pointer, Region, SECTOR, Spec, THREADS, Work, blocks,
    is_specialised, vector,
};
use crate::element::{DType, Element};
use crate::error::Result;
use crate::geometry::{AxisMap, Layout};

/// Channels of the result that a thread computes, at most, where they are not neighbours.
const OUTS: usize = 8;
/// Rows that a thread computes, at most.
const ROWS: usize = 8;
/// Registers that a thread may spend on its sums, on the weights of a column, and on the sums of the
/// weight's kernel, of which there is one for each tap.
const SUMS: usize = 32;
const WEIGHTS: usize = 36;
const WEIGHT_SUMS: usize = 64;
/// And on the inputs of a column.
const INPUTS: usize = 40;
/// Threads that are worth having, before each of them computes more rows.
const ENOUGH_THREADS: usize = 1 << 17;
/// Threads in a block of the weight's kernel, of which each should have so many columns of rows to add up.
const WEIGHT_THREADS: usize = 128;
const COLUMNS_PER_THREAD: usize = 8;
/// Blocks of the weight's kernel, unless there are more units of work, and bytes of their partial sums.
const WEIGHT_BLOCKS: usize = 2048;
const PARTIAL_BYTES: usize = 32 << 20;
/// Shared memory of a block, in bytes.
const SHARED_BYTES: usize = 48 << 10;

/// What a kernel here is expected to do: little besides reading and writing memory. `threads` each read their
/// operands one after the other; 0 where blocks read tiles of them at once.
fn work<T: Element>(p: &Problem, threads: usize) -> Work {
    let (inputs, outputs) = (p.input_len(), p.output_len());
    let bytes = (inputs + outputs + p.weight_len()) * size_of::<T>();
    let products = p.flop() as f64 / 64.0;
    let blocks = inputs.max(outputs).div_ceil(8 * THREADS as usize);
    let mut work = Work::moving(blocks, 1.05 * bytes as f64);
    work.f32_flop = p.flop() as f64;
    work.instructions += 1.5 * products;
    work.l1 += 0.35 * products;
    let loads = match threads {
        // Of a tile's threads, the weights of each channel.
        0 => p.channels_per_group() * p.outputs_per_group().min(OUTS) * p.taps(),
        // Else about one for four products.
        threads => (32.0 * products) as usize / threads / 4,
    };
    work.waits = 1.0 + loads as f64 / LOADS_AT_A_TIME;
    work
}

/// Arguments for threads that have `extents` of depths, rows and columns, and so many vectors of channels.
fn arguments(p: &Problem, extents: [usize; 3], vectors: usize, group: usize) -> DirectArgs {
    let [depths, rows, columns] = extents.map(Divisor::new);
    DirectArgs {
        x: Pointer::NULL,
        y: Pointer::NULL,
        weight: Pointer::NULL,
        bias: Pointer::NULL,
        result: Pointer::NULL,
        count: (p.batch * extents.iter().product::<usize>() * vectors) as i64,
        conv: Convolution::new(p),
        cells: [0; 2],
        length: 0,
        elements: 0,
        depths,
        rows,
        columns,
        vectors: Divisor::new(vectors),
        group: Divisor::new(group),
        units: Divisor::new(1),
    }
}

/// What a kernel is made for, besides the geometry.
#[derive(Clone, Copy, Debug)]
struct Columns {
    depthwise: bool,
    /// Channels of the result that a thread computes, and of the operand that it reads at a time.
    outs: usize,
    ins: usize,
    rows: usize,
}

impl Columns {
    fn spec(self, spec: Spec, p: &Problem) -> Spec {
        spec.geometry(&p.axes, true)
            .define("DEPTHWISE", usize::from(self.depthwise))
            .define("OUTS", self.outs)
            .define("INS", self.ins)
            .define("ROWS", self.rows)
    }

    /// What so many threads are expected to do for `y` or `dx`.
    fn work<T: Element>(self, p: &Problem, threads: usize, read: &Read) -> Work {
        let [depth, height, width] = p.tap_extents();
        let channels = if self.depthwise { 1 } else { read.channels.max(1) };
        let columns = depth * width * (channels / self.ins.min(channels));
        let weights = columns * height * self.outs * if self.depthwise { 1 } else { self.ins };
        let columns = columns * read.span;
        let (warps, size) = (threads.div_ceil(WARP) as f64, size_of::<T>());
        let moved = (p.input_len() + p.output_len() + p.weight_len()) * size;
        let mut work = Work::moving(threads.div_ceil(THREADS as usize), moved as f64);
        // Neighbouring threads have vectors of channels, and positions.
        let [vectors, positions] =
            neighbours(p.layout, WARP, read.results / self.outs, read.positions);
        let groups = (vectors * self.outs).div_ceil(read.per_group.max(1));
        let of_weights = read.weights.sectors(vectors, self.outs);
        let of_columns = match p.layout {
            Layout::ChannelsFirst => groups as f64 * sectors(size, positions, read.position),
            Layout::ChannelsLast => {
                let apart = if self.depthwise { self.outs } else { read.channels };
                let each = if self.depthwise { vectors } else { groups };
                let vector = (self.ins * size) as f64 / SECTOR as f64;
                positions as f64 * (sectors(size, each, apart) - 1.0 + vector.max(1.0))
            }
        };
        let loads = (columns + weights) as f64;
        work.l1 += warps * (columns as f64 * of_columns + weights as f64 * of_weights) / 4.0;
        work.instructions += warps * loads + p.flop() as f64 / 64.0;
        *if words(T::Acc::DTYPE) > 1 { &mut work.f64_flop } else { &mut work.f32_flop } =
            p.flop() as f64;
        work.waits = (loads / LOADS_AT_A_TIME).max(1.0);
        work.resident = 4.0;
        work
    }
}

/// What threads read for an activation.
struct Read {
    /// Rows of a column, and channels of a group.
    span: usize,
    channels: usize,
    /// Channels of the result, and of a group of it; and neighbours that are at the same place.
    results: usize,
    per_group: usize,
    positions: usize,
    weights: WeightsApart,
    /// How far what neighbouring positions read is apart.
    position: usize,
}

/// Registers that a sum takes.
fn words(dtype: DType) -> usize {
    dtype.size().div_ceil(4)
}

/// Whether channels are neighbours and groups are one channel, so that several are computed as one.
fn is_depthwise(p: &Problem) -> bool {
    p.layout == Layout::ChannelsLast && p.channels_per_group() == 1 && p.outputs_per_group() == 1
}

/// How many channels of the result a thread computes: of `per_group`, at most `limit`.
fn outs<T: Element>(p: &Problem, per_group: usize, limit: usize, alignments: &[u64]) -> usize {
    match p.layout {
        Layout::ChannelsFirst => {
            (1..=OUTS.min(limit)).rev().find(|&outs| per_group.is_multiple_of(outs)).unwrap_or(1)
        }
        Layout::ChannelsLast => {
            let neighbours = if is_depthwise(p) { p.channels } else { per_group };
            let mut outs = vector(size_of::<T>(), &[neighbours], alignments);
            while outs > limit.max(1) {
                outs /= 2;
            }
            outs
        }
    }
}

/// How many channels of the operand a thread reads at a time, from `span` rows.
fn ins<T: Element>(
    p: &Problem,
    outs: usize,
    per_group: usize,
    span: usize,
    alignment: u64,
) -> usize {
    if is_depthwise(p) {
        return outs;
    }
    if p.layout == Layout::ChannelsFirst {
        return 1;
    }
    let mut ins = vector(size_of::<T>(), &[per_group], &[alignment]);
    while ins > 1 && span * ins * size_of::<T>() > 4 * INPUTS {
        ins /= 2;
    }
    ins
}

/// `extent` cut evenly into pieces of at most `limit`: (length, number).
fn pieces(extent: usize, limit: usize) -> [usize; 2] {
    let number = extent.div_ceil(limit.max(1)).max(1);
    let length = extent.div_ceil(number).max(1);
    [length, extent.div_ceil(length)]
}

/// The same, with smaller pieces where those give too few threads, `others` for each piece.
fn rows(extent: usize, mut limit: usize, others: usize) -> [usize; 2] {
    limit = limit.clamp(1, ROWS);
    while limit > 1 && pieces(extent, limit)[1].saturating_mul(others) < ENOUGH_THREADS {
        limit /= 2;
    }
    pieces(extent, limit)
}

/// The most rows, at most `limit`, whose `span` of inputs a thread has registers for.
fn most_rows<T: Element>(
    p: &Problem,
    outs: usize,
    limit: usize,
    span: impl Fn(usize) -> usize,
) -> usize {
    let ins = if is_depthwise(p) { outs } else { 1 };
    let fits = |&rows: &usize| span(rows) * ins * size_of::<T>() <= 4 * INPUTS;
    (1..=limit.min(ROWS)).rev().find(fits).unwrap_or(1)
}

/// Rows between the first and the last that one output reads, on the middle axis.
fn reach(p: &Problem) -> usize {
    (p.axes[1].taps() - 1) * p.axes[1].dilation()
}

/// Whether there are kernels for this geometry: each is made for one.
fn is_known(device: &CudaDevice, p: &Problem) -> bool {
    is_specialised(&p.axes, device.options().specialise) && reach(p) < INPUTS
}

/// Whether there is a kernel for `y`.
pub(super) fn has_forward(device: &CudaDevice, p: &Problem) -> bool {
    is_known(device, p)
}

/// Whether there is a kernel for `dx`: not in modes other than zeros, where several padded positions read
/// one input, and not where a stride's cell takes too many registers.
pub(super) fn has_backward_input<T: Element>(device: &CudaDevice, p: &Problem) -> bool {
    let cell = p.axes[1].stride() * p.axes[2].stride();
    is_known(device, p) && p.axes.is_zero_padded() && words(T::Acc::DTYPE) * cell <= SUMS
}

/// Whether there is a kernel for `dw`: its sums, one for each tap, have to fit in registers.
pub(super) fn has_backward_weight<T: Element>(device: &CudaDevice, p: &Problem) -> bool {
    is_known(device, p) && p.taps() * words(T::Acc::DTYPE) <= WEIGHT_SUMS
}

/// Computes `y`, where [`has_forward`].
pub(super) fn forward<T: Element>(
    draft: &mut Draft,
    p: &Problem,
    x: Region<T>,
    w: Region<T>,
    bias: Option<Region<T>>,
    y: Region<T>,
) -> Result<()> {
    let specialise = draft.device().options().specialise;
    let alignments = [x.alignment(), y.alignment()];
    if let Some(tile) = Tile::new::<T>(p, specialise, Operation::Forward, alignments) {
        return tile.launch(draft, p, Operation::Forward, [x, w, y], bias);
    }
    let [depths, heights, columns] = p.output_extents();
    let words = words(T::Acc::DTYPE);
    let per_group = p.outputs_per_group();
    let outs = outs::<T>(p, per_group, WEIGHTS / (words * p.axes[1].taps()), &alignments);
    let vectors = p.outputs / outs;
    let span = |rows| (rows - 1) * p.axes[1].stride() + reach(p) + 1;
    let limit = most_rows::<T>(p, outs, SUMS / (words * outs), span);
    let [rows, blocks_of_rows] = rows(heights, limit, p.batch * vectors * depths * columns);
    let span = span(rows);
    let ins = ins::<T>(p, outs, p.channels_per_group(), span, x.alignment());
    let tile = Columns { depthwise: is_depthwise(p), outs, ins, rows };
    let arguments = DirectArgs {
        x: x.pointer(),
        weight: w.pointer(),
        bias: bias.map_or(Pointer::NULL, |bias| bias.pointer()),
        result: y.pointer(),
        ..arguments(p, [depths, blocks_of_rows, columns], vectors, (per_group / outs).max(1))
    };
    let read = Read {
        span,
        channels: p.channels_per_group(),
        results: p.outputs,
        per_group,
        positions: depths * blocks_of_rows * columns,
        weights: WeightsApart::of_outputs::<T>(p),
        position: p.axes[2].stride(),
    };
    // SAFETY: the operands have the problem's extents, outside of which the kernel does not reach; it
    // writes `y` only.
    unsafe { launch::<T>(draft, p, tile, &read, "direct_forward", &arguments) }
}

/// Computes `dx`, where [`has_backward_input`].
pub(super) fn backward_input<T: Element>(
    draft: &mut Draft,
    p: &Problem,
    dy: Region<T>,
    w: Region<T>,
    bias: Option<Region<T>>,
    dx: Region<T>,
) -> Result<()> {
    let specialise = draft.device().options().specialise;
    let alignments = [dy.alignment(), dx.alignment()];
    if let Some(tile) = Tile::new::<T>(p, specialise, Operation::BackwardInput, alignments) {
        return tile.launch(draft, p, Operation::BackwardInput, [dy, w, dx], bias);
    }
    let cell = p.axes[1].stride() * p.axes[2].stride();
    let words = words(T::Acc::DTYPE);
    // The cells that the inputs of an axis lie in.
    let cells = |map: &AxisMap| {
        let (low, stride) = (map.low() as usize, map.stride());
        [low / stride, (low + map.inputs() - 1) / stride - low / stride + 1]
    };
    let ([first_row, heights], [first_column, columns]) = (cells(&p.axes[1]), cells(&p.axes[2]));
    let depths = p.axes[0].inputs();
    let per_group = p.channels_per_group();
    let limit = (WEIGHTS / (words * p.axes[1].taps())).min(SUMS / (words * cell));
    let outs = outs::<T>(p, per_group, limit, &alignments);
    let vectors = p.channels / outs;
    let span = |rows| rows + reach(p) / p.axes[1].stride();
    let limit = most_rows::<T>(p, outs, SUMS / (words * outs * cell), span);
    let [rows, blocks_of_rows] = rows(heights, limit, p.batch * vectors * depths * columns);
    let span = span(rows);
    let ins = ins::<T>(p, outs, p.outputs_per_group(), span, dy.alignment());
    let tile = Columns { depthwise: is_depthwise(p), outs, ins, rows };
    let arguments = DirectArgs {
        y: dy.pointer(),
        weight: w.pointer(),
        bias: bias.map_or(Pointer::NULL, |bias| bias.pointer()),
        result: dx.pointer(),
        cells: [first_row as i64, first_column as i64],
        ..arguments(p, [depths, blocks_of_rows, columns], vectors, (per_group / outs).max(1))
    };
    let read = Read {
        span,
        channels: p.outputs_per_group(),
        results: p.channels,
        per_group,
        positions: depths * blocks_of_rows * columns,
        // Of groups of one channel, the weights lie as their outputs do.
        weights: if is_depthwise(p) {
            WeightsApart::of_outputs::<T>(p)
        } else {
            WeightsApart::of_inputs::<T>(p)
        },
        position: 1,
    };
    // SAFETY: as in `forward`; it writes `dx` only.
    unsafe { launch::<T>(draft, p, tile, &read, "direct_backward_input", &arguments) }
}

/// # Safety
/// The pointers are operands of the problem.
unsafe fn launch<T: Element>(
    draft: &mut Draft,
    p: &Problem,
    tile: Columns,
    read: &Read,
    entry: &'static str,
    arguments: &DirectArgs,
) -> Result<()> {
    let count = arguments.count as usize;
    let spec = tile.spec(spec::<T>(draft.device(), p, "direct.cu", entry, count), p);
    draft.expect(tile.work::<T>(p, count, read));
    // SAFETY: passed on to the caller.
    unsafe { draft.launch(spec, blocks(count, THREADS)?, THREADS, arguments) };
    Ok(())
}

/// Computes `dw`, where [`has_backward_weight`].
pub(super) fn backward_weight<T: Element>(
    draft: &mut Draft,
    p: &Problem,
    x: Region<T>,
    dy: Region<T>,
    dw: Region<T>,
) -> Result<()> {
    let specialise = draft.device().options().specialise;
    let alignments = [x.alignment(), dy.alignment()];
    let tile = Tile::new::<T>(p, specialise, Operation::BackwardWeight, alignments);
    if let Some(tile) = tile {
        return tile.launch_weight(draft, p, [x, dy, dw]);
    }
    let plan = WeightPlan::new::<T>(p, &alignments);
    draft.expect(work::<T>(p, plan.unit_blocks * plan.chunks * WEIGHT_THREADS));
    let elements = dw.len();
    let held = draft.held();
    let partial = draft.workspace::<T::Acc>("partial weight gradients", plan.chunks * elements)?;
    let [depths, _, columns] = p.output_extents();
    let vectors = p.outputs / plan.tile.outs;
    let group = (p.outputs_per_group() / plan.tile.outs).max(1);
    let arguments = DirectArgs {
        x: x.pointer(),
        y: dy.pointer(),
        result: partial.pointer(),
        count: plan.count as i64,
        length: plan.length as i64,
        elements: elements as i64,
        units: Divisor::new(plan.unit_blocks),
        ..arguments(p, [depths, plan.blocks_of_rows, columns], vectors, group)
    };
    let largest = (plan.chunks + 1) * plan.length.max(elements);
    let spec = spec::<T>(draft.device(), p, "direct.cu", "direct_backward_weight", largest);
    let spec = plan.tile.spec(spec, p).define("LANES", plan.lanes);
    let grid = blocks(plan.unit_blocks * plan.chunks, 1)?;
    // SAFETY: the operands have the problem's extents, outside of which the kernel does not reach; it
    // writes the partial sums, a weight's length for each chunk.
    unsafe { draft.launch(spec, grid, WEIGHT_THREADS as u32, &arguments) };
    let sums = Sums { parts: plan.chunks, part: elements, ..Sums::whole(partial.into()) };
    // SAFETY: as above.
    unsafe { finish(draft, sums, None, dw)? };
    draft.release(held);
    Ok(())
}

/// How the weight's gradient is shared out.
struct WeightPlan {
    tile: Columns,
    blocks_of_rows: usize,
    /// Columns of rows, over all images.
    count: usize,
    /// Neighbours of a warp that have a unit each.
    lanes: usize,
    unit_blocks: usize,
    chunks: usize,
    /// Columns of rows in a chunk.
    length: usize,
}

impl WeightPlan {
    fn new<T: Element>(p: &Problem, alignments: &[u64]) -> Self {
        let (depthwise, taps) = (is_depthwise(p), p.taps());
        let words = words(T::Acc::DTYPE);
        let outs = outs::<T>(p, p.outputs_per_group(), WEIGHT_SUMS / (words * taps), alignments);
        let [depths, heights, columns] = p.output_extents();
        let span = |rows| (rows - 1) * p.axes[1].stride() + reach(p) + 1;
        let limit = most_rows::<T>(p, outs, 16 / (words * outs), span);
        let [rows, blocks_of_rows] = pieces(heights, limit);
        let inputs = if depthwise { 1 } else { p.channels_per_group() };
        let units = inputs * (p.outputs / outs);
        let mut lanes = match p.layout {
            Layout::ChannelsFirst => 1,
            Layout::ChannelsLast => units.next_power_of_two().min(32),
        };
        let bytes = size_of::<T::Acc>();
        while lanes > 1 && WEIGHT_THREADS / 32 * taps * outs * lanes * bytes > SHARED_BYTES {
            lanes /= 2;
        }
        let unit_blocks = units.div_ceil(lanes);
        let count = p.batch * depths * blocks_of_rows * columns;
        let elements = p.outputs * p.channels_per_group() * taps;
        let length = COLUMNS_PER_THREAD * WEIGHT_THREADS / lanes;
        let chunks = (WEIGHT_BLOCKS / unit_blocks)
            .min(count.div_ceil(length))
            .min(PARTIAL_BYTES / (elements * bytes))
            .max(1);
        let length = count.div_ceil(chunks);
        let ins = if depthwise { outs } else { 1 };
        WeightPlan {
            tile: Columns { depthwise, outs, ins, rows },
            blocks_of_rows,
            count,
            lanes,
            unit_blocks,
            chunks: count.div_ceil(length),
            length,
        }
    }
}
