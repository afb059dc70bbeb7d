//! By tiles in shared memory, `kernels/conv/direct_tiles.cu`: forward, the gradient by the input where strides are
//! 1, and the gradient by the weight.

use super::pieces;
use crate::conv::cuda::arguments::spec;
use crate::conv::cuda::finish::{Sums, finish};
use crate::conv::cuda::known::Known;
use crate::conv::cuda::sectors::{WARP, sectors};
use crate::conv::problem::{Numbers, Problem};
use crate::device::FULL_ALIGNMENT;
use crate::device::cuda::structs::{Convolution, DirectTilesArgs, DirectTilesWeightArgs};
use crate::device::cuda::{
    BANK_BYTES, BANKS, Divisor, Draft, LOADS_AT_A_TIME, Pointer, Region, SECTOR, Spec, Target,
    Work, bank_passes, blocks, is_specialised, vector,
};
use crate::element::{DType, Element};
use crate::error::Result;
use crate::geometry::{Layout, gcd};

/// Positions on an axis that a thread computes, at most.
const POSITIONS: usize = 8;
/// Registers that a thread may spend on weights, sums and a column of the operand together.
const REGISTERS: usize = 112;
/// Threads of a block, and bytes of its tile: so that a multiprocessor has several.
const THREADS: std::ops::RangeInclusive<usize> = 32..=256;
const TILE_BYTES: usize = 44 << 10;
/// Threads that are worth having, before each of them computes more.
const ENOUGH_THREADS: usize = 1 << 15;
/// Instructions, about, to read an element of a tile and convert it; to copy some neighbours into it; to store a
/// result; and all that a thread does once.
const READ: usize = 2;
const COPIED: usize = 12;
const STORED: usize = 5;
const THREAD: usize = 200;

/// Registers of a thread that hold addresses and the like, about.
const ADDRESSES: usize = 24;

/// Blocks of the weight's kernel that are worth having, and bytes of their partial sums.
const WEIGHT_BLOCKS: usize = 1024;
const PARTIAL_BYTES: usize = 32 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Operation {
    Forward,
    BackwardInput,
    BackwardWeight,
}

/// What is convolved, with the result in the place of `y`: of the gradient by the input, `dy` and `dx`.
struct Shape<'p> {
    p: &'p Problem,
    operation: Operation,
    /// Channels of a group of the operand and of the result.
    channels: usize,
    outputs: usize,
    /// Extents of the result.
    extents: [usize; 3],
    /// Taps, strides and dilations of the two inner axes.
    taps: [usize; 2],
    strides: [usize; 2],
    dilations: [usize; 2],
    /// Taps whose weights, or whose sums, a thread holds at a time.
    held: usize,
    /// Bytes of an element, and registers of a sum.
    size: usize,
    words: usize,
}

impl<'p> Shape<'p> {
    fn new<T: Element>(p: &'p Problem, operation: Operation) -> Self {
        let (channels, outputs) = (p.channels_per_group(), p.outputs_per_group());
        let inner = [&p.axes[1], &p.axes[2]];
        let mirrored = operation == Operation::BackwardInput;
        let taps = inner.map(|map| map.taps());
        let planes = if operation == Operation::BackwardWeight { p.axes[0].taps() } else { 1 };
        Shape {
            p,
            operation,
            channels: if mirrored { outputs } else { channels },
            outputs: if mirrored { channels } else { outputs },
            extents: if mirrored { p.input_extents() } else { p.output_extents() },
            taps,
            strides: inner.map(|map| map.stride()),
            dilations: inner.map(|map| map.dilation()),
            held: planes * taps[0] * taps[1],
            size: size_of::<T>(),
            words: super::words(T::Acc::DTYPE),
        }
    }

    fn mirrored(&self) -> bool {
        self.operation == Operation::BackwardInput
    }

    fn weight(&self) -> bool {
        self.operation == Operation::BackwardWeight
    }

    /// Input channels of a group that a thread adds up.
    fn summed(&self) -> usize {
        if self.weight() { 1 } else { self.channels }
    }

    /// Instructions of a thread for a plane of the operand, about, with so many passes for each read.
    fn plane(&self, [rows, columns]: [usize; 2], outs: usize, passes: usize) -> usize {
        let taps = self.taps[0] * self.taps[1];
        let reads = self.span(0, rows) * self.span(1, columns) * READ * passes;
        let weights = if self.weight() { 0 } else { taps * outs * READ };
        self.summed() * (rows * columns * outs * taps + reads + weights)
    }

    /// Positions of the operand that so many neighbours of the result read on one of the inner axes.
    fn span(&self, axis: usize, positions: usize) -> usize {
        (positions - 1) * self.strides[axis] + (self.taps[axis] - 1) * self.dilations[axis] + 1
    }
}

/// How the result is shared out: see the kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tile {
    outs: usize,
    /// Rows and columns of a thread.
    positions: [usize; 2],
    groups: usize,
    /// Threads down and across.
    threads: [usize; 2],
    copy: usize,
    shift: usize,
    /// Elements from one line of the tile to the next.
    pitch: usize,
    /// Neighbours of the result that are stored at a time (channels first).
    store: usize,
}

/// What a tile depends on.
type Question = (Numbers, DType, bool, Operation, [u64; 2], usize);

impl Tile {
    /// `None` where there is no room for a tile. Alignments are those of the operand, and of the result, or `dy`.
    pub fn new<T: Element>(
        p: &Problem,
        specialise: bool,
        operation: Operation,
        alignments: [u64; 2],
    ) -> Option<Tile> {
        Self::with_threads::<T>(p, specialise, operation, alignments, ENOUGH_THREADS)
    }

    /// The same, with at least so many threads, if there is enough for them to do.
    pub fn with_threads<T: Element>(
        p: &Problem,
        specialise: bool,
        operation: Operation,
        alignments: [u64; 2],
        threads: usize,
    ) -> Option<Tile> {
        static KNOWN: Known<Question, Option<Tile>> = Known::new();
        let question = (p.numbers(), T::DTYPE, specialise, operation, alignments, threads);
        let find = || Self::find::<T>(p, specialise, operation, alignments, threads);
        KNOWN.answer(question, find, |_| true)
    }

    fn find<T: Element>(
        p: &Problem,
        specialise: bool,
        operation: Operation,
        alignments: [u64; 2],
        threads: usize,
    ) -> Option<Tile> {
        let unit_strides = p.axes[1].stride() == 1 && p.axes[2].stride() == 1;
        let shape = &Shape::new::<T>(p, operation);
        if !is_specialised(&p.axes, specialise)
            || shape.mirrored() && !(unit_strides && p.axes.is_zero_padded())
        {
            return None;
        }
        let most_outs = (REGISTERS / 2 / (shape.held * shape.words)).clamp(1, POSITIONS);
        let is_vector = |outs: usize| match p.layout {
            Layout::ChannelsFirst => true,
            Layout::ChannelsLast => {
                let bytes = outs * shape.size;
                outs.is_power_of_two() && bytes <= 16 && alignments[1].is_multiple_of(bytes as u64)
            }
        };
        let outs = (1..=most_outs)
            .rev()
            .find(|&outs| shape.outputs.is_multiple_of(outs) && is_vector(outs))?;
        // As much for a thread as a block has room for.
        let best = |limit| {
            let positions = Self::positions(shape, outs, limit, threads)?;
            Some(Self::block_of(shape, outs, positions)?.aligned(shape, alignments))
        };
        [POSITIONS, POSITIONS / 2, POSITIONS / 4, 1].into_iter().find_map(best)
    }

    /// The block that takes the fewest instructions, where operands are aligned.
    fn block_of(shape: &Shape, outs: usize, positions: [usize; 2]) -> Option<Tile> {
        let mut best: Option<(f64, Tile)> = None;
        for groups in [1, 2, 4, 8, 16, 32] {
            for down in [1, 2, 4, 8] {
                for across in [1, 2, 4, 8, 16] {
                    let threads = [down, across];
                    let tile = Tile {
                        outs,
                        positions,
                        groups,
                        threads,
                        copy: 1,
                        shift: 0,
                        pitch: 0,
                        store: 1,
                    };
                    // Before its pitch is looked for, which takes the longest.
                    if !tile.has_enough(shape) {
                        continue;
                    }
                    let tile = tile.aligned(shape, [FULL_ALIGNMENT; 2]);
                    if tile.bytes(shape) > TILE_BYTES {
                        continue;
                    }
                    let cost = tile.cost(shape);
                    if best.is_none_or(|(least, _)| cost < least) {
                        best = Some((cost, tile));
                    }
                }
            }
        }
        best.map(|(_, tile)| tile)
    }

    /// With the widest copies and stores that alignments allow.
    fn aligned(mut self, shape: &Shape, [operand, result]: [u64; 2]) -> Tile {
        [self.copy, self.shift] = self.copies(shape, operand);
        if shape.p.layout == Layout::ChannelsFirst {
            let lengths = [shape.extents[2], self.threads[1] * self.positions[1]];
            self.store = vector(shape.size, &lengths, &[result]);
        }
        self.pitch = self.pitch_without_conflicts(shape);
        self
    }

    /// The rows and columns of a thread that take the fewest instructions.
    fn positions(shape: &Shape, outs: usize, most: usize, enough: usize) -> Option<[usize; 2]> {
        let [depth, height, width] = shape.extents;
        let units = shape.p.groups * (shape.outputs / outs) * shape.channels / shape.summed();
        let others = shape.p.batch * units * depth;
        let mut best: Option<(f64, [usize; 2])> = None;
        for [rows, bands] in (1..=most).map(|limit| pieces(height, limit)) {
            for [columns, strips] in (1..=most).map(|limit| pieces(width, limit)) {
                let results = rows * columns * outs;
                let registers = (results + shape.held * outs + shape.span(0, rows)) * shape.words;
                if registers > REGISTERS && results > 1 {
                    continue;
                }
                // Channels first, lanes of a warp are so many columns apart, which may be in the same bank.
                let passes = match shape.p.layout {
                    Layout::ChannelsFirst => gcd(columns * shape.strides[1], BANK_BYTES),
                    Layout::ChannelsLast => 1,
                };
                let thread = shape.plane([rows, columns], outs, passes) + THREAD;
                let threads = (bands * strips * others) as f64;
                let cost = threads.max(enough as f64) * thread as f64;
                if best.is_none_or(|(least, _)| cost < least) {
                    best = Some((cost, [rows, columns]));
                }
            }
        }
        best.map(|(_, positions)| positions)
    }

    /// Neighbours that are copied at a time, and columns that a line of the tile begins early.
    fn copies(&self, shape: &Shape, alignment: u64) -> [usize; 2] {
        let size = shape.size;
        let (channels, map) = (shape.channels, &shape.p.axes[2]);
        let width = if shape.mirrored() { map.outputs() } else { map.inputs() };
        let step = self.threads[1] * self.positions[1] * shape.strides[1];
        let fits = |copy: usize| match shape.p.layout {
            Layout::ChannelsLast => {
                [self.groups, shape.p.groups].iter().all(|of| (of * channels).is_multiple_of(copy))
            }
            Layout::ChannelsFirst => {
                let whole = width.is_multiple_of(copy) && step.is_multiple_of(copy);
                whole && shape.p.axes.is_zero_padded()
            }
        };
        let copy = [16, 4]
            .into_iter()
            .filter(|bytes| bytes % size == 0 && alignment.is_multiple_of(*bytes as u64))
            .map(|bytes| bytes / size)
            .find(|&copy| fits(copy))
            .unwrap_or(1);
        if shape.p.layout == Layout::ChannelsLast {
            return [copy, 0];
        }
        // The first column that the first result reads, in the operand.
        let first = match shape.mirrored() {
            true => map.low() - ((map.taps() - 1) * map.dilation()) as i64,
            false => -map.low(),
        };
        [copy, first.rem_euclid(copy as i64) as usize]
    }

    /// Lines of the tile and elements of each.
    fn lines(&self, shape: &Shape) -> [usize; 2] {
        let [rows, columns] =
            [0, 1].map(|axis| shape.span(axis, self.threads[axis] * self.positions[axis]));
        let channels = self.groups * shape.channels;
        match shape.p.layout {
            Layout::ChannelsFirst => {
                [channels * rows, (self.shift + columns).next_multiple_of(self.copy)]
            }
            Layout::ChannelsLast => [rows, columns * channels],
        }
    }

    /// What the threads at a place of the block share out, and threads of the block.
    fn units(&self, shape: &Shape) -> usize {
        self.groups * (shape.outputs / self.outs) * (shape.channels / shape.summed())
    }

    fn block(&self, shape: &Shape) -> usize {
        self.units(shape) * self.threads[0] * self.threads[1]
    }

    /// Blocks over groups, depths, rows and columns.
    fn grid(&self, shape: &Shape) -> [usize; 4] {
        let [depth, height, width] = shape.extents;
        let groups = shape.p.groups.div_ceil(self.groups);
        let [rows, columns] = [0, 1].map(|axis| self.threads[axis] * self.positions[axis]);
        [groups, depth, height.div_ceil(rows), width.div_ceil(columns)]
    }

    /// Whether a block has neither too many threads nor too few.
    fn has_enough(&self, shape: &Shape) -> bool {
        let block = self.block(shape);
        // Channels last, a sector of memory belongs to one block.
        let its = self.groups * shape.channels.min(shape.outputs) * shape.size;
        let whole = shape.p.layout == Layout::ChannelsFirst
            || self.groups >= shape.p.groups
            || its.is_multiple_of(SECTOR);
        whole && THREADS.contains(&block) && block.is_multiple_of(32)
    }

    /// Bytes of shared memory.
    fn bytes(&self, shape: &Shape) -> usize {
        let tile = self.lines(shape)[0] * self.pitch * shape.size;
        let results = if shape.weight() {
            shape.held * self.outs * (self.block(shape) + 1) * shape.words * BANK_BYTES
        } else if shape.p.layout == Layout::ChannelsFirst {
            let positions: usize = self.positions.iter().product();
            self.block(shape) * self.outs * positions * shape.size
        } else {
            0
        };
        tile.max(results)
    }

    /// As little as spares threads conflicts in the banks of shared memory.
    fn pitch_without_conflicts(&self, shape: &Shape) -> usize {
        let line = self.lines(shape)[1];
        let pitches = (line..line + BANKS * BANK_BYTES / shape.size).step_by(self.copy);
        let passes = |pitch| Tile { pitch, ..*self }.passes(shape);
        let fits = |pitch: &usize| Tile { pitch: *pitch, ..*self }.bytes(shape) <= TILE_BYTES;
        let mut best: Option<(usize, usize)> = None;
        for pitch in pitches.take_while(fits) {
            let next = (passes(pitch), pitch);
            if best.is_none_or(|best| next.0 < best.0) {
                best = Some(next);
            }
            // There is nothing better.
            if next.0 == 1 {
                break;
            }
        }
        best.map_or(line, |(_, pitch)| pitch)
    }

    /// Passes of the banks that a read of a warp's takes.
    fn passes(&self, shape: &Shape) -> usize {
        let [down, across] = self.threads;
        let (places, units) = (down * across, self.units(shape));
        let first = shape.p.layout == Layout::ChannelsFirst;
        let rows = shape.span(0, down * self.positions[0]);
        let [channel, column] = match first {
            true => [rows * self.pitch, 1],
            false => [1, self.groups * shape.channels],
        };
        let words: [usize; BANKS] = std::array::from_fn(|thread| {
            let (unit, place) = match first {
                true => (thread / places, thread % places),
                false => (thread % units, thread / units),
            };
            let row = place / across * self.positions[0] * shape.strides[0];
            let its = place % across * self.positions[1] * shape.strides[1];
            let summed = shape.summed();
            let group = unit / (units / self.groups) * shape.channels;
            let of = group + if summed == 1 { unit % shape.channels } else { 0 };
            (of * channel + row * self.pitch + its * column) * shape.size / BANK_BYTES
        });
        bank_passes(words)
    }

    /// Instructions of all threads, about.
    fn cost(&self, shape: &Shape) -> f64 {
        let [lines, line] = self.lines(shape);
        let results = self.positions[0] * self.positions[1] * self.outs;
        let planes = shape.p.axes[0].taps();
        let plane = shape.plane(self.positions, self.outs, self.passes(shape));
        let thread = planes * plane + results * STORED + THREAD;
        // Lanes of a warp have a line each as far as it is short.
        let slots = (line / self.copy).next_multiple_of(4);
        let copied = planes * lines * slots.next_power_of_two().min(slots.next_multiple_of(32));
        // Bytes from and to the L2 cache take as long as an instruction of a thread, about, at another place.
        let bytes = planes * lines * line * shape.size + self.stored(shape);
        let blocks = self.grid(shape).iter().product::<usize>() as f64;
        blocks * (self.block(shape) * thread + copied * COPIED + bytes) as f64
    }

    /// Bytes of all sectors that a block stores to: channels first, its lines may begin and end in the middle.
    fn stored(&self, shape: &Shape) -> usize {
        let [rows, columns] = [0, 1].map(|axis| self.threads[axis] * self.positions[axis]);
        let bytes = columns * shape.size;
        match shape.p.layout {
            Layout::ChannelsFirst => {
                let ends = if bytes.is_multiple_of(SECTOR) { 0 } else { SECTOR };
                self.groups * shape.outputs * rows * (bytes + ends)
            }
            Layout::ChannelsLast => self.groups * shape.outputs * rows * bytes,
        }
    }

    /// What the kernel is expected to do for `y`, or for `dx`.
    fn work(&self, shape: &Shape, target: &Target) -> Work {
        let p = shape.p;
        let threads = self.block(shape);
        let blocks = (self.grid(shape).iter().product::<usize>() * p.batch) as f64;
        let warps = threads as f64 / 32.0;
        let depth = &p.axes[0];
        let met = if shape.mirrored() { depth.overlap() } else { depth.taps_of_outputs() };
        let planes = met.iter().sum::<usize>() as f64 / met.len().max(1) as f64;
        // What a thread does for a plane.
        let taps = shape.taps[0] * shape.taps[1];
        let positions: usize = self.positions.iter().product();
        let weights = (shape.channels * taps * self.outs) as f64;
        let reads: usize =
            [0, 1].map(|axis| shape.span(axis, self.positions[axis])).iter().product();
        let reads = (shape.channels * reads) as f64;
        let products = (shape.channels * positions * self.outs * taps) as f64;
        // And a warp, of the copies.
        let [lines, line] = self.lines(shape);
        let slots = line / self.copy;
        let lanes = slots.next_power_of_two().clamp(4, 32);
        let copies = (lines.div_ceil((threads / lanes).max(1)) * slots.div_ceil(lanes)) as f64;
        let copied = self.copy * shape.size;
        let stored = self.stored(shape) as f64;
        let (stores, of_lines) = match p.layout {
            // Into the tile's place, and from there in lines.
            Layout::ChannelsFirst => {
                let vectors = (positions * self.outs / self.store) as f64;
                ((positions * self.outs) as f64, 2.0 * vectors)
            }
            Layout::ChannelsLast => (positions as f64, 0.0),
        };
        // Sectors of the weights that a warp loads at a time.
        let slices = shape.outputs / self.outs;
        let sectors = match p.layout {
            Layout::ChannelsFirst => WARP.div_ceil(self.threads.iter().product()) as f64,
            Layout::ChannelsLast if shape.mirrored() => {
                let groups = WARP.div_ceil(slices).min(self.groups);
                slices.min(WARP) as f64 * sectors(shape.size, groups, shape.channels)
            }
            Layout::ChannelsLast => sectors(shape.size, self.units(shape).min(WARP), self.outs),
        };
        let tile = (lines * line * shape.size) as f64;
        let its_weights = (self.groups * shape.channels * shape.outputs * taps * shape.size) as f64;
        // Copies of 16 bytes go around the L1 cache; all are written to shared memory.
        let through_l1 = if copied == 16 { 1.0 } else { 2.0 };
        let mut work = Work { blocks, ..Work::default() };
        work.resident = target
            .resident_blocks(threads as u32, Some(self.registers(shape)), self.bytes(shape) as u64)
            .into();
        work.memory = ((p.input_len() + p.output_len() + p.weight_len()) * shape.size) as f64;
        work.l2 = blocks * (planes * (tile + its_weights) + stored);
        work.l1 = blocks
            * (warps * planes * (reads * self.passes(shape) as f64 + weights * sectors / 4.0)
                + planes * (warps * copies).max(through_l1 * tile / 128.0)
                + warps * (stores + of_lines)
                + stored / 128.0);
        work.instructions = blocks
            * warps
            * (planes * (weights + reads + products + 2.0 * copies) + stores + of_lines);
        let flop = 2.0 * blocks * threads as f64 * planes * products;
        *if shape.words > 1 { &mut work.f64_flop } else { &mut work.f32_flop } = flop;
        // Weights are loaded before each plane is there and, of other channels, after that.
        let intervals = planes * if shape.channels > 1 { 2.0 } else { 1.0 };
        let alone = if matches!(copied, 4 | 16) { 0.0 } else { copies };
        work.waits = intervals.max(planes * (weights + alone) / LOADS_AT_A_TIME);
        work
    }

    /// Registers of a thread, about: sums, weights and a column of the operand, and what addresses take.
    fn registers(&self, shape: &Shape) -> u32 {
        let results: usize = self.positions.iter().product::<usize>() * self.outs;
        let values = results + shape.held * self.outs + shape.span(0, self.positions[0]);
        ((values * shape.words + ADDRESSES).next_multiple_of(8)) as u32
    }

    /// What all kernels are made for.
    fn spec(&self, spec: Spec, shape: &Shape) -> Spec {
        spec.geometry(&shape.p.axes, true)
            .define("MIRRORED", usize::from(shape.mirrored()))
            .define("ALL_GROUPS", shape.p.groups)
            .define("CHANNELS", shape.channels)
            .define("OUTS", self.outs)
            .define("SLICES", shape.outputs / self.outs)
            .define("GROUPS", self.groups)
            .define("ROWS", self.positions[0])
            .define("COLUMNS", self.positions[1])
            .define("DOWN", self.threads[0])
            .define("ACROSS", self.threads[1])
            .define("COPY", self.copy)
            .define("SHIFT", self.shift)
            .define("PITCH", self.pitch)
            .define("STORED", self.store)
    }

    fn arguments(&self, shape: &Shape) -> DirectTilesArgs {
        let [group_blocks, depths, rows, columns] = self.grid(shape).map(Divisor::new);
        DirectTilesArgs {
            operand: Pointer::NULL,
            weight: Pointer::NULL,
            bias: Pointer::NULL,
            result: Pointer::NULL,
            conv: Convolution::new(shape.p),
            group_blocks,
            depths,
            rows,
            columns,
        }
    }

    /// Writes `result`: `y`, or `dx` of [`Operation::BackwardInput`].
    pub fn launch<T: Element>(
        &self,
        draft: &mut Draft,
        p: &Problem,
        operation: Operation,
        [operand, weight, result]: [Region<T>; 3],
        bias: Option<Region<T>>,
    ) -> Result<()> {
        let shape = &Shape::new::<T>(p, operation);
        let count = self.grid(shape).iter().product::<usize>() * p.batch;
        let arguments = DirectTilesArgs {
            operand: operand.pointer(),
            weight: weight.pointer(),
            bias: bias.map_or(Pointer::NULL, |bias| bias.pointer()),
            result: result.pointer(),
            ..self.arguments(shape)
        };
        let spec = spec::<T>(draft.device(), p, "direct_tiles.cu", "direct_tiles", count);
        let threads = self.block(shape) as u32;
        draft.expect(self.work(shape, draft.device().target()));
        // SAFETY: the operands have the problem's extents, outside of which the kernel does not reach; it
        // writes `result` only.
        unsafe { draft.launch(self.spec(spec, shape), blocks(count, 1)?, threads, &arguments) };
        Ok(())
    }

    /// Writes `dw`.
    pub fn launch_weight<T: Element>(
        &self,
        draft: &mut Draft,
        p: &Problem,
        [x, dy, dw]: [Region<T>; 3],
    ) -> Result<()> {
        let shape = &Shape::new::<T>(p, Operation::BackwardWeight);
        let [groups, tiles @ ..] = self.grid(shape);
        let count = tiles.iter().product::<usize>() * p.batch;
        let elements = dw.len();
        let chunks = (WEIGHT_BLOCKS / groups)
            .min(PARTIAL_BYTES / (elements * size_of::<T::Acc>()))
            .clamp(1, count);
        let length = count.div_ceil(chunks);
        let chunks = count.div_ceil(length);
        let held = draft.held();
        let partial = draft.workspace::<T::Acc>("partial weight gradients", chunks * elements)?;
        let arguments = DirectTilesWeightArgs {
            tiles: DirectTilesArgs { operand: x.pointer(), ..self.arguments(shape) },
            gradient: dy.pointer(),
            partial: partial.pointer(),
            count: count as i64,
            length: length as i64,
            elements: elements as i64,
        };
        let largest = (chunks + 1) * length.max(elements).max(groups);
        let spec = spec::<T>(draft.device(), p, "direct_tiles.cu", "direct_tiles_weight", largest);
        let spec = self.spec(spec, shape).define("WEIGHT", 1);
        let threads = self.block(shape) as u32;
        // SAFETY: the operands have the problem's extents, outside of which the kernel does not reach; it
        // writes the partial sums, a weight's length for each chunk.
        unsafe { draft.launch(spec, blocks(groups * chunks, 1)?, threads, &arguments) };
        let sums = Sums { parts: chunks, part: elements, ..Sums::whole(partial.into()) };
        // SAFETY: as above.
        unsafe { finish(draft, sums, None, dw)? };
        draft.release(held);
        Ok(())
    }
}
