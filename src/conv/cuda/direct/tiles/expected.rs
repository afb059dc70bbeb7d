//! What the kernels by tiles are expected to do: see [`Work`].

use super::weight::Chunks;
use super::{Shape, Tile};
use crate::conv::cuda::sectors::{WARP, sectors};
use crate::device::cuda::{LOADS_AT_A_TIME, Target, Work};
use crate::geometry::Layout;

/// Registers of a thread that hold addresses and the like, about.
const ADDRESSES: usize = 24;
/// Shared memory of a multiprocessor for all its blocks, and threads that have registers at a time, about.
const SHARED_BYTES: usize = 200 << 10;
const RESIDENT_THREADS: usize = 512;

impl Tile {
    /// What the kernel is expected to do for `y`, or for `dx`.
    pub(super) fn work(&self, shape: &Shape, target: &Target) -> Work {
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

    /// What the weight's kernel is expected to do.
    pub(super) fn weight_work(&self, shape: &Shape, chunks: &Chunks) -> Work {
        let p = shape.p;
        let (planes, warps) = (p.axes[0].taps(), self.block(shape) / 32);
        let blocks = chunks.groups * chunks.chunks;
        let tiles = (chunks.groups * chunks.count) as f64;
        let reads = self.reads(shape);
        let [[x, dy], [sums, part]] = [
            [self.lines(shape), self.dy_lines(shape)]
                .map(|[lines, line]| lines * line * shape.size),
            [self.sums(shape) / 32, self.part(shape)],
        ];
        let copied = planes * x + dy;
        let products = p.flop() as f64 / 64.0;
        let operands = (p.input_len() + p.output_len()) * shape.size;
        let requests = warps * planes * reads.requests + self.copied(shape) / 32;
        let passes = warps * planes * reads.passes + copied / 128;
        let [f32_flop, f64_flop] = match shape.words {
            1 => [p.flop() as f64, 0.0],
            _ => [0.0, p.flop() as f64],
        };
        let resident =
            (SHARED_BYTES / self.bytes(shape)).min(RESIDENT_THREADS / self.block(shape)).max(1);
        Work {
            blocks: blocks as f64,
            resident: resident as f64,
            memory: 1.03 * operands as f64 + (blocks * part) as f64 / 2.0,
            l2: tiles * copied as f64 + (blocks * part) as f64,
            l1: tiles * passes as f64 + (blocks * sums * shape.words) as f64,
            instructions: products + tiles * requests as f64 + (blocks * sums) as f64,
            f32_flop,
            f64_flop,
            waits: 2.0,
            ..Work::default()
        }
    }
}
