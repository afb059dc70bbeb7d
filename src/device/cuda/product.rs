//! How the crate's own matrix product (`kernels/product.cuh`) is cut into blocks.

use bytemuck::{Pod, Zeroable};

use super::{CudaDevice, DeviceBuffer, Divisor, Spec, THREADS, blocks};
use crate::element::DType;
use crate::error::{Result, checked_product};

/// `Tiling` in kernels/product.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Tiling {
    depth: i64,
    span: i64,
    columns_first: i64,
    count: i64,
    rows: Divisor,
    columns: Divisor,
    fast: Divisor,
    slow: Divisor,
    parts: Divisor,
}

/// What multiplies: the tensor cores, or each thread by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Engine {
    /// The instruction, as kernels/platform.cuh names it.
    Tensor(&'static str),
    Fma,
}

/// A batch of products `C[rows, columns] = A[rows, depth]·B[depth, columns]`, cut into blocks.
#[derive(Clone, Debug)]
pub(crate) struct Product {
    dtype: DType,
    engine: Engine,
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
const LEAST_STEPS: usize = 8;

/// Bytes of all parts of all sums, at most.
const MOST_BYTES: usize = 64 << 20;

impl Product {
    /// # Errors
    /// [`crate::Error::TooLarge`] when the elements of C cannot be counted.
    pub(crate) fn new(
        device: &CudaDevice,
        dtype: DType,
        batch: usize,
        [rows, columns, depth]: [usize; 3],
    ) -> Result<Self> {
        let count = checked_product("the elements of a matrix product", &[batch, rows, columns])?;
        let engine = match dtype {
            DType::F16 => Engine::Tensor("mma_f16"),
            DType::BF16 if device.driver().capability() >= 80 => Engine::Tensor("mma_bf16"),
            _ => Engine::Fma,
        };
        let processors = device.driver().multiprocessors() as usize;
        let wide = accumulator_size(dtype);
        let step = engine.step(dtype);
        let steps = depth.div_ceil(step);
        let plan = |tile: [usize; 2], speed: f64| {
            let tiles = [rows.div_ceil(tile[0]), columns.div_ceil(tile[1])];
            let blocks = tiles[0] * tiles[1] * batch;
            // Two blocks are on a multiprocessor at a time.
            let wanted = (2 * processors / blocks.max(1)).min(steps / LEAST_STEPS);
            let parts = wanted.min(MOST_BYTES / (count * wide).max(1)).max(1);
            let part_steps = steps.div_ceil(parts).max(1);
            let parts = steps.div_ceil(part_steps).max(1);
            let rounds = (blocks * parts).div_ceil(processors);
            let cost = (rounds * part_steps * tile[0] * tile[1]) as f64 / speed;
            (cost, tile, tiles, parts, part_steps)
        };
        // A tile of 128×128 sums of f64 would take all registers of a thread.
        let tiles = TILES.iter().filter(|(tile, _)| dtype != DType::F64 || *tile != [128, 128]);
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
        Ok(Product { dtype, engine, tile, parts, blocks, count, tiling })
    }

    pub(crate) fn tiling(&self) -> Tiling {
        self.tiling
    }

    /// How many neighbours a kernel reads and writes at a time, where it can.
    fn chunk(&self) -> usize {
        match self.engine {
            Engine::Tensor(_) => 8,
            Engine::Fma => 16 / accumulator_size(self.dtype),
        }
    }

    /// `VECTOR` of an operand in elements of `size` bytes, from the address and all distances between
    /// the rows of neighbours, their lengths among them: a chunk if all are multiples, else 1.
    pub(crate) fn vector(&self, size: usize, address: u64, distances: &[usize]) -> usize {
        let chunk = self.chunk();
        let aligned = address.is_multiple_of((chunk * size).min(16) as u64);
        let whole = aligned && distances.iter().all(|distance| distance.is_multiple_of(chunk));
        if whole { chunk } else { 1 }
    }

    /// Defines the vectors of both factors and of C; where few kernels are to be compiled, all or none
    /// are wide.
    pub(crate) fn vectors(&self, device: &CudaDevice, spec: Spec, vectors: [usize; 3]) -> Spec {
        let every = device.options().specialise || vectors.iter().all(|&vector| vector > 1);
        let [a, b, c] = if every { vectors } else { [1; 3] };
        spec.define("A_VECTOR", a).define("B_VECTOR", b).define("C_VECTOR", c)
    }

    /// Queues the kernel, and where parts have to be added up the kernel `sum` of the same file after
    /// it. `counts` bound the indices into the operands; `arguments` are made for the address of the
    /// parts.
    ///
    /// # Safety
    /// As [`CudaDevice::launch`]; the parts are as large as the kernel takes them to be.
    pub(crate) unsafe fn launch<A: Pod>(
        &self,
        device: &CudaDevice,
        kernel: Spec,
        sum: &'static str,
        counts: &[usize],
        arguments: impl FnOnce(u64) -> A,
    ) -> Result<()> {
        let [rows, columns] = self.tile;
        // Rows and columns are counted up to the end of their last tile.
        let counts = [counts, &[self.count, self.blocks]].concat();
        let kernel = kernel
            .element(self.dtype)
            .define("TILE_ROWS", rows)
            .define("TILE_COLUMNS", columns)
            .index(&counts, device.options().wide);
        let (sum, product) = (kernel.clone().entry_of(sum).define("SUM", 1), kernel);
        let product = match self.engine {
            Engine::Tensor(instruction) => product.define("MMA", instruction),
            Engine::Fma => product,
        };
        let grid = blocks(self.blocks, 1)?;
        if self.parts == 1 {
            // SAFETY: passed on to the caller.
            return unsafe { device.launch(product, grid, self.engine.threads(), &arguments(0)) };
        }
        let bytes = self.parts * self.count * accumulator_size(self.dtype);
        let parts = DeviceBuffer::<u8>::new(device, "the parts of sums", bytes)?;
        let arguments = arguments(parts.view().address());
        let product = product.define("SPLIT", 1);
        // SAFETY: passed on to the caller; the parts are freed after the work that uses them.
        unsafe {
            device.launch(product, grid, self.engine.threads(), &arguments)?;
            device.launch(sum, blocks(self.count, THREADS)?, THREADS, &arguments)
        }
    }
}

impl Engine {
    fn threads(self) -> u32 {
        match self {
            Engine::Tensor(_) => 128,
            Engine::Fma => 256,
        }
    }

    /// Terms of a step.
    fn step(self, dtype: DType) -> usize {
        match self {
            Engine::Tensor(_) => 32,
            Engine::Fma => 64 / accumulator_size(dtype),
        }
    }
}

fn accumulator_size(dtype: DType) -> usize {
    dtype.size().max(4)
}
