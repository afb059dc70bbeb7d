//! How the crate's own matrix product (`kernels/lib/product.cuh`) is cut into blocks.

use crate::device::cuda::structs::Tiling;
use crate::device::cuda::{
    Arguments, CudaDevice, Divisor, Draft, LOADS_AT_A_TIME, Pointer, Spec, THREADS, Work, blocks,
};
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

    /// Rows and columns of a tile that a warp computes; `whole`: both factors are moved by chunks. See
    /// `WARP_ROWS` and `THREAD_ROWS` in kernels/lib/product.cuh.
    fn warp(self, tile: [usize; 2], whole: bool) -> [usize; 2] {
        let (smallest, wide) = (tile == [64, 64], self.sums == DType::F64);
        match self.instruction {
            Some(_) => {
                let narrow = wide || !whole;
                let rows = if smallest && narrow { 32 } else { 64 };
                [rows, if smallest || narrow { 32 } else { 64 }]
            }
            None => [32, if wide { 32 } else { 64 }],
        }
    }

    /// Threads of a block.
    pub(super) fn threads(self, tile: [usize; 2], whole: bool) -> u32 {
        let [rows, columns] = self.warp(tile, whole);
        (tile[0] / rows * (tile[1] / columns) * 32) as u32
    }

    /// Bytes of a sum.
    pub(super) fn sum_size(self) -> usize {
        self.sums.size()
    }

    /// Blocks that a multiprocessor holds at a time, about: what the registers of their threads leave room for.
    fn resident(self, tile: [usize; 2], whole: bool) -> u32 {
        let few = self.instruction.is_none() && self.sums == DType::F32;
        let threads = if few { 384 } else { 256 };
        (threads / self.threads(tile, whole)).max(1)
    }

    /// What a block does in a step, but for what it reads from memory.
    fn step_work(self, tile: [usize; 2], operands: &Operands) -> Work {
        let [rows, columns] = tile.map(|length| length as f64);
        let whole = operands.is_whole();
        let (depth, warps) = (self.step() as f64, f64::from(self.threads(tile, whole)) / 32.0);
        let size = self.dtype.size() as f64;
        let flop = 2.0 * rows * columns * depth;
        let wide = self.sums == DType::F64;
        let mut work = Work::default();
        if self.instruction.is_some() {
            // What tensor cores take is read from shared memory, by each warp what it needs.
            let in_tile = if self.multiplies_halves() { 2.0 } else { self.sums.size() as f64 };
            let [down, across] = self.warp(tile, whole).map(|length| length as f64);
            let bytes = warps * (down + across) * depth * in_tile;
            let terms = if self.multiplies_halves() { 16.0 } else { 8.0 };
            work.l1 = bytes / 128.0;
            work.instructions = flop / (2.0 * 16.0 * 8.0 * terms) + bytes / 512.0 + 40.0 * warps;
            let flops = match (self.multiplies_halves(), wide) {
                (true, _) => &mut work.half_tensor_flop,
                (_, true) => &mut work.f64_tensor_flop,
                _ => &mut work.tf32_tensor_flop,
            };
            *flops = flop;
        } else {
            // Vectors of 16 bytes, of which shared memory serves half of a warp's lanes at a time.
            let reads = warps * depth * if wide { 4.0 + 2.0 } else { 2.0 + 2.0 };
            work.l1 = 2.0 * reads;
            work.instructions = 1.05 * flop / 64.0 + reads + 40.0 * warps;
            *if wide { &mut work.f64_flop } else { &mut work.f32_flop } = flop;
        }
        let mut loads = 0.0;
        for ((length, vector), along) in
            [rows, columns].into_iter().zip(operands.vectors).zip(operands.along_k)
        {
            let elements = length * depth;
            let (passes, instructions) = self.moves(vector > 1, along);
            work.l1 += elements * passes;
            work.instructions += elements * instructions;
            if !self.copies_in_background(vector > 1) {
                loads += elements / (32.0 * warps * vector as f64);
            }
        }
        work.waits = if loads > 0.0 { (loads / LOADS_AT_A_TIME).max(1.0) } else { 0.0 };
        work.l2 = (rows + columns) * depth * size;
        work
    }

    /// Whether a step need not wait for what it reads: see `IN_BACKGROUND` in kernels/lib/product.cuh.
    fn copies_in_background(self, whole: bool) -> bool {
        let as_it_is = self.multiplies_halves() || self.dtype == self.sums;
        self.instruction.is_some() && as_it_is && (whole || self.dtype.size() >= 4)
    }

    /// Passes of the L1 cache and shared memory, and instructions of warps, for an element that is moved to shared
    /// memory: by chunks or alone, with the neighbours in memory along the terms or along the rows.
    fn moves(self, whole: bool, along: bool) -> (f64, f64) {
        let bytes = self.dtype.size() as f64;
        match (self.copies_in_background(whole), whole, along) {
            // 16 bytes a lane, around the L1 cache.
            (true, true, _) => (bytes / 128.0, 5.0 * bytes / 512.0),
            // Through it, and lanes read elements that are a chunk apart.
            (true, false, true) => (5.0 / 32.0, 6.0 / 32.0),
            (true, false, false) => (2.1 / 32.0, 6.0 / 32.0),
            (false, true, _) => (2.0 * bytes / 128.0, 2.0 * bytes / 128.0),
            (false, false, true) => (20.0 / 128.0, 9.0 / 32.0),
            (false, false, false) => (2.1 / 32.0, 7.0 / 32.0),
        }
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

/// The operands of a product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operands {
    /// Neighbours of both factors and of C that are moved at a time.
    pub vectors: [usize; 3],
    /// Whether the factors' neighbours in memory are terms.
    pub along_k: [bool; 2],
    /// Bytes of all three, each counted once.
    pub bytes: usize,
}

impl Operands {
    /// Whether both factors are moved by chunks.
    fn is_whole(&self) -> bool {
        self.vectors[0] > 1 && self.vectors[1] > 1
    }
}

/// A batch of products `C[rows, columns] = A[rows, depth]·B[depth, columns]`, cut into blocks.
#[derive(Clone, Debug)]
pub(crate) struct Product {
    engine: Engine,
    operands: Operands,
    /// Rows and columns of C that a block computes.
    tile: [usize; 2],
    /// Parts into which the terms of a sum are cut for as many blocks.
    parts: usize,
    blocks: usize,
    /// Elements of C in the whole batch.
    count: usize,
    tiling: Tiling,
    /// What the product, and adding up the parts, are expected to do.
    work: [Option<Work>; 2],
}

/// A way to cut a product.
struct Cut {
    seconds: f64,
    tile: [usize; 2],
    tiles: [usize; 2],
    parts: usize,
    part_steps: usize,
    work: [Option<Work>; 2],
}

const TILES: [[usize; 2]; 4] = [[128, 128], [128, 64], [64, 128], [64, 64]];

/// Steps that a part has at least: shorter ones take as long to start and to add up.
pub(super) const LEAST_STEPS: usize = 8;

/// Bytes of all parts of all sums, at most.
pub(super) const MOST_BYTES: usize = 64 << 20;

impl Product {
    /// The tile and the number of parts are those that are expected to take the shortest time.
    ///
    /// # Errors
    /// [`crate::Error::TooLarge`] when the elements of C cannot be counted.
    pub(crate) fn new(
        device: &CudaDevice,
        engine: Engine,
        batch: usize,
        [rows, columns, depth]: [usize; 3],
        operands: Operands,
    ) -> Result<Self> {
        // Where few kernels are to be compiled, all or none are wide.
        let every =
            device.options().specialise || operands.vectors.iter().all(|&vector| vector > 1);
        let vectors = if every { operands.vectors } else { [1; 3] };
        let operands = Operands { vectors, ..operands };
        let count = checked_product("the elements of a matrix product", &[batch, rows, columns])?;
        let target = device.target();
        let processors = target.multiprocessors as usize;
        let step = engine.step();
        let steps = depth.div_ceil(step);
        // The bytes of the parts of all sums.
        let bytes = count.saturating_mul(engine.sum_size()).max(1);
        let most = (steps / LEAST_STEPS).min(MOST_BYTES / bytes).max(1);
        let mut best: Option<Cut> = None;
        for tile in TILES.into_iter().filter(|tile| engine.takes(*tile, vectors)) {
            let of_step = engine.step_work(tile, &operands);
            let tiles = [rows.div_ceil(tile[0]), columns.div_ceil(tile[1])];
            let blocks = tiles[0] * tiles[1] * batch;
            // Whole sums, or parts of them for one block, two and more on every multiprocessor.
            let wanted =
                [0, 1, 2, 4].map(|each| (each * processors / blocks.max(1)).clamp(1, most));
            for wanted in wanted {
                let part_steps = steps.div_ceil(wanted).max(1);
                let parts = steps.div_ceil(part_steps).max(1);
                let mut main = of_step.times((blocks * parts * part_steps) as f64);
                main.blocks = (blocks * parts) as f64;
                main.resident = f64::from(engine.resident(tile, operands.is_whole()));
                // Even where the next steps are read in the background, the first has to be there.
                main.waits = (of_step.waits * part_steps as f64).max(1.0);
                let written = if parts > 1 { parts * bytes } else { 0 };
                main.memory += (operands.bytes + written) as f64;
                let sum = Work::moving(count.div_ceil(THREADS as usize), (written + bytes) as f64);
                let work = [Some(main), (parts > 1).then_some(sum)];
                let seconds = work.iter().flatten().map(|work| work.seconds(target).0).sum();
                if best.as_ref().is_none_or(|best| seconds < best.seconds) {
                    best = Some(Cut { seconds, tile, tiles, parts, part_steps, work });
                }
            }
        }
        let Cut { tile, tiles, parts, part_steps, work, .. } = best.expect("there are tiles");
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
        Ok(Product { engine, operands, tile, parts, blocks, count, tiling, work })
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
        let product = sized(self.engine.compile(kernel.clone()), self.tile, self.operands.vectors);
        let grid = blocks(self.blocks, 1)?;
        let threads = self.engine.threads(self.tile, self.operands.is_whole());
        self.work.into_iter().flatten().for_each(|work| draft.expect(work));
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
