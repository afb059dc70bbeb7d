//! By tiles in shared memory, `kernels/conv/direct_tiles.cu`: forward, the gradient by the input where strides are
//! 1, and the gradient by the weight.
//!
//! | file | holds |
//! |---|---|
//! | `tiles/weight.rs` | how the tiles of the gradient by the weight are shared out and added up |
//! | `tiles/expected.rs` | what the kernels are expected to do |

mod expected;
mod weight;

use weight::{MULTIPROCESSORS, SECOND_LAUNCH};

use super::pieces;
use crate::conv::cuda::arguments::spec;
use crate::conv::cuda::known::Known;
use crate::conv::problem::{Numbers, Problem};
use crate::device::FULL_ALIGNMENT;
use crate::device::cuda::structs::{Convolution, DirectTilesArgs};
use crate::device::cuda::{
    BANK_BYTES, BANKS, Divisor, Draft, Pointer, Region, SECTOR, Spec, bank_passes, blocks,
    is_specialised, vector,
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
/// Bytes that are copied at a time, at most.
const FULL_COPY: usize = 16;
/// Threads that are worth having, before each of them computes more.
const ENOUGH_THREADS: usize = 1 << 15;
/// Instructions, about, to read an element of a tile and convert it; to copy some neighbours into it; to store a
/// result; and all that a thread does once.
const READ: usize = 2;
const COPIED: usize = 12;
const STORED: usize = 5;
const THREAD: usize = 200;

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

/// What a thread reads of tiles in shared memory.
struct Reads {
    requests: usize,
    /// Passes of the banks, for its warp.
    passes: usize,
    /// Elements that are no sums' yet.
    converted: usize,
}

impl Reads {
    /// Instructions of a thread with so many products, about, or what takes as long: a pass, as one of four warps each.
    fn instructions(&self, products: usize) -> usize {
        (products + self.requests + self.converted).max(4 * self.passes)
    }
}

/// The least from `line` on, in steps of what is copied, that spares threads conflicts in the banks of shared memory.
fn pitch_without_conflicts(
    line: usize,
    copy: usize,
    size: usize,
    passes: impl Fn(usize) -> usize,
) -> usize {
    let mut best: Option<(usize, usize)> = None;
    for pitch in (line.next_multiple_of(copy)..line + BANKS * BANK_BYTES / size).step_by(copy) {
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
        let products = rows * columns * outs * taps;
        if self.weight() {
            let steps = [columns * self.strides[1], columns];
            let neighbours = steps.map(|step| self.neighbours(&[step]));
            // Lanes that are a multiple of several banks apart keep the others waiting.
            let passes = steps.map(|step| match self.p.layout {
                Layout::ChannelsFirst => {
                    (gcd(step * self.size, 32 * BANK_BYTES) / BANK_BYTES).max(1)
                }
                Layout::ChannelsLast => 1,
            });
            return self.reads([rows, columns], outs, neighbours, passes).instructions(products);
        }
        let reads = self.span(0, rows) * self.span(1, columns) * READ * passes;
        self.summed() * (products + reads + taps * outs * READ)
    }

    /// What a thread of the weight's kernel reads for a plane of x, so many neighbours of x and of `dy` at a time.
    fn reads(
        &self,
        [rows, columns]: [usize; 2],
        outs: usize,
        neighbours: [usize; 2],
        passes: [usize; 2],
    ) -> Reads {
        let span = [self.span(0, rows), self.span(1, columns)];
        // Those of x begin anywhere.
        let x = span[0] * (span[1] + neighbours[0] - 1).div_ceil(neighbours[0]);
        let dy = match self.p.layout {
            Layout::ChannelsFirst => rows * outs * columns / neighbours[1],
            Layout::ChannelsLast => rows * columns,
        };
        // Vectors fill the banks several times.
        let full = neighbours.map(|neighbours| neighbours * self.size / BANK_BYTES);
        Reads {
            requests: x + dy,
            passes: x * passes[0].max(full[0]) + dy * passes[1].max(full[1]),
            converted: if self.size < BANK_BYTES {
                span[0] * span[1] + rows * columns * outs
            } else {
                0
            },
        }
    }

    /// Neighbours on a line of a tile that a thread of the weight's kernel reads at a time, if all of these lengths
    /// are multiples.
    fn neighbours(&self, lengths: &[usize]) -> usize {
        match self.p.layout {
            Layout::ChannelsFirst => vector(self.size, lengths, &[]),
            Layout::ChannelsLast => 1,
        }
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
    /// Neighbours of the result that are stored at a time (channels first); of `dy`, that are copied.
    store: usize,
    /// The pitch of the tile of `dy` (the gradient by the weight).
    dy_pitch: usize,
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
        // Sevenths of lines are for the weight: what other operations read of them is modelled to take longer.
        let across: &[usize] =
            if shape.weight() { &[1, 2, 4, 7, 8, 14, 16] } else { &[1, 2, 4, 8, 16] };
        for groups in [1, 2, 4, 8, 16, 32] {
            for down in [1, 2, 4, 8] {
                for &across in across {
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
                        dy_pitch: 0,
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
        let lengths = match shape.p.layout {
            Layout::ChannelsFirst => [shape.extents[2], self.threads[1] * self.positions[1]],
            Layout::ChannelsLast => [self.groups, shape.p.groups].map(|of| of * shape.outputs),
        };
        if shape.p.layout == Layout::ChannelsFirst || shape.weight() {
            self.store = vector(shape.size, &lengths, &[result]);
        }
        if shape.weight() {
            let passes = |dy_pitch| Tile { dy_pitch, ..self }.passes_of_dy(shape);
            self.dy_pitch =
                pitch_without_conflicts(self.dy_lines(shape)[1], self.store, shape.size, passes);
        }
        let passes = |pitch| Tile { pitch, ..self }.passes(shape);
        self.pitch = pitch_without_conflicts(self.lines(shape)[1], self.copy, shape.size, passes);
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
                // The gradient by the weight keeps those of `dy` that a row of x meets.
                let kept = if shape.weight() { rows.min(shape.taps[0]) } else { rows };
                let results = kept * columns * outs;
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

    /// The same of the tile of `dy`.
    fn dy_lines(&self, shape: &Shape) -> [usize; 2] {
        let [rows, columns] = [0, 1].map(|axis| self.threads[axis] * self.positions[axis]);
        let channels = self.groups * shape.outputs;
        match shape.p.layout {
            Layout::ChannelsFirst => [channels * rows, columns],
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
        let mut tile = self.lines(shape)[0] * self.pitch * shape.size;
        if shape.weight() {
            let dy = self.dy_lines(shape)[0] * self.dy_pitch * shape.size;
            tile = tile.next_multiple_of(FULL_COPY) + dy;
        }
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

    /// Passes of the banks that a read of a warp's takes, of the operand.
    fn passes(&self, shape: &Shape) -> usize {
        let rows = shape.span(0, self.threads[0] * self.positions[0]);
        let [channel, column] = match shape.p.layout {
            Layout::ChannelsFirst => [rows * self.pitch, 1],
            Layout::ChannelsLast => [1, self.groups * shape.channels],
        };
        self.bank_passes(shape, |unit, [row, its]| {
            let group = unit / (self.units(shape) / self.groups) * shape.channels;
            let of = group + if shape.summed() == 1 { unit % shape.channels } else { 0 };
            let [row, its] = [row * shape.strides[0], its * shape.strides[1]];
            of * channel + row * self.pitch + its * column
        })
    }

    /// The same of `dy`.
    fn passes_of_dy(&self, shape: &Shape) -> usize {
        let rows = self.threads[0] * self.positions[0];
        let [channel, column] = match shape.p.layout {
            Layout::ChannelsFirst => [rows * self.dy_pitch, 1],
            Layout::ChannelsLast => [1, self.groups * shape.outputs],
        };
        self.bank_passes(shape, |unit, [row, its]| {
            unit / shape.channels * self.outs * channel + row * self.dy_pitch + its * column
        })
    }

    /// Passes of a read of the element that a unit has at a thread's first position.
    fn bank_passes(&self, shape: &Shape, element: impl Fn(usize, [usize; 2]) -> usize) -> usize {
        let [down, across] = self.threads;
        let (places, units) = (down * across, self.units(shape));
        let words: [usize; BANKS] = std::array::from_fn(|thread| {
            let (unit, place) = match shape.p.layout {
                Layout::ChannelsFirst => (thread / places, thread % places),
                Layout::ChannelsLast => (thread % units, thread / units),
            };
            let position = [place / across * self.positions[0], place % across * self.positions[1]];
            element(unit, position) * shape.size / BANK_BYTES
        });
        bank_passes(words)
    }

    /// Neighbours of x and of `dy` that a thread of the weight's kernel reads at a time. Lines of x end with a copy.
    fn neighbours(&self, shape: &Shape) -> [usize; 2] {
        let columns = self.positions[1];
        let x = [columns * shape.strides[1], self.pitch, self.copy];
        [shape.neighbours(&x), shape.neighbours(&[columns, self.dy_pitch])]
    }

    fn reads(&self, shape: &Shape) -> Reads {
        let passes = [self.passes(shape), self.passes_of_dy(shape)];
        shape.reads(self.positions, self.outs, self.neighbours(shape), passes)
    }

    /// Instructions of all threads, about.
    fn cost(&self, shape: &Shape) -> f64 {
        let [lines, line] = self.lines(shape);
        let results = self.positions[0] * self.positions[1] * self.outs;
        let planes = shape.p.axes[0].taps();
        let plane = match shape.weight() {
            true => self.reads(shape).instructions(results * shape.taps[0] * shape.taps[1]),
            false => shape.plane(self.positions, self.outs, self.passes(shape)),
        };
        let stored = if shape.weight() { 0 } else { results * STORED };
        let thread = planes * plane + stored + THREAD;
        let copied = self.copied(shape);
        // Bytes from and to the L2 cache take as long as an instruction of a thread, about, at another place.
        let bytes = planes * lines * line * shape.size + self.stored(shape);
        let blocks = self.grid(shape).iter().product::<usize>() as f64;
        let tile = (self.block(shape) * thread + copied * COPIED + bytes) as f64;
        if !shape.weight() {
            return blocks * tile;
        }
        let chunks = self.chunks(shape);
        let finish = (self.sums(shape) * READ + self.part(shape)) as f64;
        let another = if chunks.together { 0.0 } else { SECOND_LAUNCH };
        let busy = (chunks.rounds() * MULTIPROCESSORS) as f64;
        busy * (chunks.length as f64 * tile + finish) + another
    }

    /// Instructions of threads that copy a tile of all planes, in all: lanes of a warp have a line each as far as it is
    /// short.
    fn copied(&self, shape: &Shape) -> usize {
        let copies = |[lines, line]: [usize; 2], copy: usize| {
            let slots = (line / copy).next_multiple_of(4);
            lines * slots.next_power_of_two().min(slots.next_multiple_of(32))
        };
        let dy = if shape.weight() { copies(self.dy_lines(shape), self.store) } else { 0 };
        shape.p.axes[0].taps() * copies(self.lines(shape), self.copy) + dy
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
            .define("DY_PITCH", self.dy_pitch)
            .define("NEIGHBOURS", self.neighbours(shape)[0])
            .define("DY_NEIGHBOURS", self.neighbours(shape)[1])
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
}
