//! How the crate's own matrix product (`kernels/lib/product.cuh`) is cut into blocks.

use crate::device::cuda::structs::Tiling;
use crate::device::cuda::{Arguments, CudaDevice, Divisor, Draft, Pointer, Spec, THREADS, blocks};
use crate::element::DType;
use crate::error::{Result, checked_product};

/// What multiplies factors of a type on a device: the tensor cores, or each thread by itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Engine {
    dtype: DType,
    /// What sums are accumulated in.
    sums: DType,
    /// The tensor cores' instruction, as kernels/lib/platform.cuh names it.
    instruction: Option<&'static str>,
}

impl Engine {
    /// With `tf32`, which takes a device that has it, factors of f32 are rounded to that.
    pub(crate) fn new(device: &CudaDevice, dtype: DType, tf32: bool) -> Self {
        let sums = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let engine = Engine::with_sums(device, dtype, sums);
        match dtype {
            DType::F32 if tf32 => Engine { instruction: Some("mma_tf32"), ..engine },
            _ => engine,
        }
    }

    /// The engine whose sums are of this type, `f64` or the one that they have anyway.
    pub(crate) fn with_sums(device: &CudaDevice, dtype: DType, sums: DType) -> Self {
        let capability = device.driver().capability();
        let instruction = match (dtype, sums) {
            (DType::F16, DType::F32) => Some("mma_f16"),
            (DType::BF16, DType::F32) if capability >= 80 => Some("mma_bf16"),
            // Other GPUs have it, too, no faster than their threads multiply.
            (_, DType::F64) if [80, 90, 100].contains(&capability) => Some("mma_f64"),
            _ => None,
        };
        Engine { dtype, sums, instruction }
    }

    /// A kernel for this engine and its types.
    pub(super) fn compile(self, kernel: Spec) -> Spec {
        let kernel = kernel.element(self.dtype);
        let kernel = match self.sums {
            // What kernels take for granted.
            DType::F32 => kernel,
            _ if self.dtype == self.sums => kernel,
            sums => kernel.define("SUMS", sums),
        };
        match self.instruction {
            Some(instruction) => kernel.define("MMA", instruction),
            None => kernel,
        }
    }

    /// Whether tensor cores multiply elements of 16 bits, two of which are an operand of theirs: see
    /// `kernels/lib/fragments.cuh`.
    pub(crate) fn multiplies_halves(self) -> bool {
        self.instruction.is_some() && self.dtype.size() == 2 && self.sums == DType::F32
    }

    /// How many neighbours a kernel reads and writes at a time, where it can.
    fn chunk(self) -> usize {
        if self.multiplies_halves() { 8 } else { 16 / self.sums.size() }
    }

    /// How many neighbours of an operand in elements of `size` bytes are moved at a time, from the
    /// alignment and all distances between the rows of neighbours, their lengths among them: a chunk if
    /// all are multiples, else 1.
    pub(crate) fn vector(self, size: usize, alignment: u64, distances: &[usize]) -> usize {
        let chunk = self.chunk();
        let aligned = alignment.is_multiple_of((chunk * size).min(16) as u64);
        let whole = aligned && distances.iter().all(|distance| distance.is_multiple_of(chunk));
        if whole { chunk } else { 1 }
    }

    /// Threads of a block, by its tile: see `PRODUCT_THREADS` in kernels/lib/product.cuh.
    pub(super) fn threads(self, [rows, columns]: [usize; 2]) -> u32 {
        let (area, wide) = (rows * columns, self.sums == DType::F64);
        let sums = match self.instruction {
            Some(_) if area > 64 * 64 => 128,
            _ => 64,
        };
        (area / if wide { sums / 2 } else { sums }) as u32
    }

    /// Bytes of a sum.
    pub(super) fn sum_size(self) -> usize {
        self.sums.size()
    }

    /// Terms of a step.
    pub(super) fn step(self) -> usize {
        if self.multiplies_halves() { 32 } else { 64 / self.sums.size() }
    }

    /// Whether a thread's registers hold what a tile takes.
    pub(super) fn takes(self, tile: [usize; 2], [a, b, c]: [usize; 3]) -> bool {
        let elements = if self.instruction.is_some() { a == 1 && b == 1 } else { b == 1 && c == 1 };
        let crowded = self.sums == DType::F64 || elements;
        tile != [128, 128] || !crowded
    }
}

/// A batch of products `C[rows, columns] = A[rows, depth]·B[depth, columns]`, cut into blocks.
#[derive(Clone, Debug)]
pub(crate) struct Product {
    engine: Engine,
    /// Neighbours of both factors and of C that are moved at a time.
    vectors: [usize; 3],
    /// Rows and columns of C that a block computes.
    tile: [usize; 2],
    /// Parts into which the terms of a sum are cut for as many blocks.
    parts: usize,
    blocks: usize,
    /// Elements of C in the whole batch.
    count: usize,
    tiling: Tiling,
}

/// Tiles, and how close to the fastest a block with one comes: the smaller the tile, the more often is
/// a factor read.
const TILES: [([usize; 2], f64); 4] =
    [([128, 128], 1.0), ([128, 64], 0.8), ([64, 128], 0.8), ([64, 64], 0.6)];

/// Steps that a part has at least: shorter ones take as long to start and to add up.
pub(super) const LEAST_STEPS: usize = 8;

/// Bytes of all parts of all sums, at most.
pub(super) const MOST_BYTES: usize = 64 << 20;

impl Product {
    /// `vectors` are those of both factors and of C.
    ///
    /// # Errors
    /// [`crate::Error::TooLarge`] when the elements of C cannot be counted.
    pub(crate) fn new(
        device: &CudaDevice,
        engine: Engine,
        batch: usize,
        [rows, columns, depth]: [usize; 3],
        vectors: [usize; 3],
    ) -> Result<Self> {
        // Where few kernels are to be compiled, all or none are wide.
        let every = device.options().specialise || vectors.iter().all(|&vector| vector > 1);
        let vectors = if every { vectors } else { [1; 3] };
        let count = checked_product("the elements of a matrix product", &[batch, rows, columns])?;
        let processors = device.driver().multiprocessors() as usize;
        let wide = engine.sum_size();
        let step = engine.step();
        let steps = depth.div_ceil(step);
        let plan = |tile: [usize; 2], speed: f64| {
            let tiles = [rows.div_ceil(tile[0]), columns.div_ceil(tile[1])];
            let blocks = tiles[0] * tiles[1] * batch;
            // Two blocks are on a multiprocessor at a time.
            let wanted = (2 * processors / blocks.max(1)).min(steps / LEAST_STEPS);
            let parts = wanted.min(MOST_BYTES / (count.saturating_mul(wide)).max(1)).max(1);
            let part_steps = steps.div_ceil(parts).max(1);
            let parts = steps.div_ceil(part_steps).max(1);
            let rounds = (blocks * parts).div_ceil(processors);
            let cost = (rounds * part_steps * tile[0] * tile[1]) as f64 / speed;
            (cost, tile, tiles, parts, part_steps)
        };
        let tiles = TILES.iter().filter(|(tile, _)| engine.takes(*tile, vectors));
        let plans = tiles.map(|&(tile, speed)| plan(tile, speed));
        let best = plans.reduce(|best, next| if next.0 < best.0 { next } else { best });
        let (_, tile, tiles, parts, part_steps) = best.expect("there are tiles");
        // Blocks that run at the same time should share what they read.
        let columns_first = tiles[1] <= tiles[0];
        let [slow, fast] = if columns_first { tiles } else { [tiles[1], tiles[0]] };
        let tiling = Tiling {
            depth: depth as i64,
            span: (part_steps * step) as i64,
            columns_first: columns_first.into(),
            count: count as i64,
            rows: Divisor::new(rows),
            columns: Divisor::new(columns),
            fast: Divisor::new(fast),
            slow: Divisor::new(slow),
            parts: Divisor::new(parts),
        };
        let blocks = tiles[0] * tiles[1] * batch * parts;
        Ok(Product { engine, vectors, tile, parts, blocks, count, tiling })
    }

    pub(crate) fn tiling(&self) -> Tiling {
        self.tiling
    }

    /// Queues the kernel, and where parts have to be added up the kernel `sum` of the same file after
    /// it. `counts` bound the indices into the operands; `arguments` are made for the address of the
    /// parts.
    ///
    /// # Safety
    /// As [`CudaDevice::launch`]; the parts are as large as the kernel takes them to be.
    pub(crate) unsafe fn launch<A: Arguments>(
        &self,
        draft: &mut Draft,
        kernel: Spec,
        sum: &'static str,
        counts: &[usize],
        arguments: impl FnOnce(Pointer) -> A,
    ) -> Result<()> {
        // Rows and columns are counted up to the end of their last tile.
        let counts = [counts, &[self.count, self.blocks]].concat();
        let kernel = kernel.index(&counts, draft.device().options().wide);
        let sized = |kernel: Spec, [rows, columns]: [usize; 2], [a, b, c]: [usize; 3]| {
            let kernel = kernel.define("TILE_ROWS", rows).define("TILE_COLUMNS", columns);
            kernel.define("A_VECTOR", a).define("B_VECTOR", b).define("C_VECTOR", c)
        };
        let product = sized(self.engine.compile(kernel.clone()), self.tile, self.vectors);
        let (grid, threads) = (blocks(self.blocks, 1)?, self.engine.threads(self.tile));
        if self.parts == 1 {
            // SAFETY: passed on to the caller.
            unsafe { draft.launch(product, grid, threads, &arguments(Pointer::NULL)) };
            return Ok(());
        }
        // It has neither tiles nor vectors, so one serves all.
        let sum = kernel.entry_of(sum).element(self.engine.dtype).define("SUM", 1);
        let sum = sized(sum, [64, 64], [1; 3]);
        let bytes = self.parts * self.count * self.engine.sum_size();
        let held = draft.held();
        let parts = draft.workspace::<u8>("the parts of sums", bytes)?;
        let arguments = arguments(parts.pointer());
        let product = product.define("SPLIT", 1);
        // SAFETY: passed on to the caller; the parts are as large as they were counted to be.
        unsafe {
            draft.launch(product, grid, threads, &arguments);
            draft.launch(sum, blocks(self.count, THREADS)?, THREADS, &arguments);
        }
        draft.release(held);
        Ok(())
    }
}
