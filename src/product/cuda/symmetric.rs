//! How the lower triangle of a symmetric product (`kernels/lib/symmetric.cuh`) is cut into blocks.

use super::tiles::{Engine, LEAST_STEPS, MOST_BYTES};
use crate::device::cuda::structs::Triangle;
use crate::device::cuda::{Arguments, CudaDevice, Divisor, Draft, Pointer, Spec, blocks};
use crate::error::{Result, checked_product};

/// Sides of tiles, and how close to the fastest a block with one comes: the smaller the tile, the more
/// often is a factor read.
const SIDES: [(usize, f64); 2] = [(128, 1.0), (64, 0.6)];

/// The products `A·Aᵀ` of a batch, with A `[rows, depth]`: their lower triangles, cut into tiles.
#[derive(Clone, Debug)]
pub(crate) struct SymmetricProduct {
    engine: Engine,
    /// Neighbours of A that are moved at a time.
    vector: usize,
    rows: usize,
    depth: usize,
    /// Rows and columns of a tile.
    side: usize,
    /// Tiles along a side of the triangle.
    lines: usize,
    /// Tiles of the whole batch, and how many of them the workspace holds at a time.
    tiles: usize,
    run: usize,
    /// Parts into which the terms of a sum are cut for as many blocks, and terms of a part.
    parts: usize,
    span: usize,
}

/// The sums of a run of tiles, for the kernel that takes them out of the workspace.
pub(crate) struct Tiles {
    pub sums: Pointer,
    pub triangle: Triangle,
    /// Rows and columns of a tile.
    pub side: usize,
    /// How many there are.
    pub count: usize,
}

impl SymmetricProduct {
    /// Sums take `limit` bytes of the workspace at most, if that holds one tile.
    ///
    /// # Errors
    /// [`crate::Error::TooLarge`] when the tiles cannot be counted.
    pub(crate) fn new(
        device: &CudaDevice,
        engine: Engine,
        batch: usize,
        [rows, depth]: [usize; 2],
        vector: usize,
        limit: Option<usize>,
    ) -> Result<Self> {
        let processors = device.driver().multiprocessors() as usize;
        let steps = depth.div_ceil(engine.step());
        let most = limit.unwrap_or(MOST_BYTES).min(MOST_BYTES);
        let plan = |side: usize, speed: f64| {
            let lines = rows.div_ceil(side);
            let tiles =
                checked_product("the tiles of a covariance", &[batch, lines, lines + 1])? / 2;
            let tile = side * side * engine.sum_size();
            let run = tiles.min(most / tile).max(1);
            // Two blocks are on a multiprocessor at a time.
            let wanted = (2 * processors / run).min(steps / LEAST_STEPS);
            let parts = wanted.min(most / (run * tile)).max(1);
            let part_steps = steps.div_ceil(parts).max(1);
            let parts = steps.div_ceil(part_steps).max(1);
            let rounds = (run * parts).div_ceil(processors) * tiles.div_ceil(run);
            let cost = (rounds * part_steps * side * side) as f64 / speed;
            let span = part_steps * engine.step();
            let plan = SymmetricProduct {
                engine,
                vector,
                rows,
                depth,
                side,
                lines,
                tiles,
                run,
                parts,
                span,
            };
            Ok((cost, plan))
        };
        let takes = |side: usize| engine.takes([side; 2], [vector, vector, 1 + vector]);
        let mut best: Option<(f64, SymmetricProduct)> = None;
        for (side, speed) in SIDES.into_iter().filter(|(side, _)| takes(*side)) {
            let next = plan(side, speed)?;
            if best.as_ref().is_none_or(|best| next.0 < best.0) {
                best = Some(next);
            }
        }
        let (_, plan) = best.expect("the smallest tile is always taken");
        Ok(plan)
    }

    /// Queues the kernel for each run of tiles, and after it what `then` does with their sums. `counts`
    /// bound the indices into the operands; `arguments` are made for the sums.
    ///
    /// # Safety
    /// As [`Draft::launch`]; the sums are as large as the kernel takes them to be.
    pub(crate) unsafe fn launch<A: Arguments>(
        &self,
        draft: &mut Draft,
        kernel: Spec,
        counts: &[usize],
        arguments: impl Fn(Pointer, Triangle) -> A,
        mut then: impl FnMut(&mut Draft, Tiles) -> Result<()>,
    ) -> Result<()> {
        let side = self.side;
        // Rows and terms are counted up to the end of their last tile and step.
        let ends = [self.lines * side, self.depth + self.span, self.tiles, self.run * self.parts];
        let counts = [counts, &ends].concat();
        let kernel = self.engine.compile(kernel).index(&counts, draft.device().options().wide);
        let kernel = kernel.define("TILE_ROWS", side).define("TILE_COLUMNS", side);
        let kernel = kernel.define("A_VECTOR", self.vector);
        let held = draft.held();
        let bytes = self.run * self.parts * side * side * self.engine.sum_size();
        let sums = draft.workspace::<u8>("the sums of tiles", bytes)?.pointer();
        for first in (0..self.tiles).step_by(self.run) {
            let count = self.run.min(self.tiles - first);
            let triangle = Triangle {
                rows: self.rows as i64,
                depth: self.depth as i64,
                span: self.span as i64,
                parts: self.parts as i64,
                first: first as i64,
                count: Divisor::new(count),
                tiles: Divisor::new(self.lines * (self.lines + 1) / 2),
                line: Divisor::new(self.lines + 1),
            };
            let grid = blocks(count * self.parts, 1)?;
            let threads = self.engine.threads([side; 2], self.vector > 1);
            // SAFETY: passed on to the caller; the sums are as large as they were counted to be.
            unsafe { draft.launch(kernel.clone(), grid, threads, &arguments(sums, triangle)) };
            then(draft, Tiles { sums, triangle, side, count })?;
        }
        draft.release(held);
        Ok(())
    }
}
