//! Products, the dense matrix and the transpose on CUDA: the launches of `kernels/sparse.cu` and
//! `kernels/transpose.cu`.

use bytemuck::{Pod, Zeroable};

use super::{Addresses, CudaCsr};
use crate::device::cuda::{
    CudaDevice, DeviceBuffer, DeviceSlice, DeviceSliceMut, Divisor, Spec, THREADS, blocks, vector,
};
use crate::element::{DType, Element};
use crate::error::Result;

/// `SparseArgs` in the kernels.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SparseArguments {
    matrix: Addresses,
    x: u64,
    y: u64,
    rows: i64,
    vectors: i64,
    lanes: i64,
    packs: Divisor,
}

/// `TransposeArgs` in the kernels.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct TransposeArguments {
    matrix: Addresses,
    transposed: Addresses,
    keys: u64,
    entries: u64,
    sorted_keys: u64,
    sorted_entries: u64,
    digits: u64,
    rows: i64,
    columns: i64,
    count: i64,
    tiles: i64,
    shift: i64,
}

/// The element type that stands for all of one size where values are only moved: fewer kernels.
fn same_size<T: Element>() -> DType {
    match T::DTYPE {
        DType::BF16 => DType::F16,
        other => other,
    }
}

/// M·X for `x` of shape `[columns, vectors]`; writes all of `y`.
pub(in crate::matrix) fn mul<T: Element>(
    matrix: &CudaCsr<T>,
    [rows, columns]: [usize; 2],
    x: DeviceSlice<'_, T>,
    vectors: usize,
    y: DeviceSliceMut<'_, T>,
) -> Result<()> {
    if rows == 0 || vectors == 0 {
        return Ok(());
    }
    let device = matrix.device();
    let pack = vector(size_of::<T>(), &[vectors], &[x.address(), y.address()]);
    // As many threads to a row as it has entries, on average.
    let lanes = (matrix.nnz() / rows).clamp(1, 32).ilog2();
    let (entry, threads_of_row) =
        if vectors == 1 { ("mul_vector", 1 << lanes) } else { ("mul_matrix", vectors / pack) };
    let threads = rows.saturating_mul(threads_of_row);
    let spec = Spec::new("sparse.cu", entry)
        .element(T::DTYPE)
        .columns(matrix.width)
        .define("VECTOR", pack)
        .index(&[threads, columns, x.len(), y.len()], device.options().wide);
    let arguments = SparseArguments {
        matrix: matrix.addresses(),
        x: x.address(),
        y: y.address(),
        rows: rows as i64,
        vectors: vectors as i64,
        lanes: i64::from(lanes),
        packs: Divisor::new(vectors / pack),
    };
    // SAFETY: the matrix is canonical, and `x` and `y` have as many rows as it has columns and rows.
    unsafe { device.launch(spec, blocks(threads, THREADS)?, THREADS, &arguments) }
}

/// Writes the entries to `dense`, of shape `[rows, columns]`, which is zero.
pub(in crate::matrix) fn to_dense<T: Element>(
    matrix: &CudaCsr<T>,
    [rows, columns]: [usize; 2],
    dense: DeviceSliceMut<'_, T>,
) -> Result<()> {
    let device = matrix.device();
    let spec = Spec::new("sparse.cu", "to_dense")
        .element(same_size::<T>())
        .columns(matrix.width)
        .define("VECTOR", 1)
        .index(&[], device.options().wide);
    let arguments = SparseArguments {
        matrix: matrix.addresses(),
        x: 0,
        y: dense.address(),
        rows: rows as i64,
        vectors: columns as i64,
        lanes: 0,
        packs: Divisor::new(1),
    };
    // SAFETY: the matrix is canonical and has this shape, as `dense` has.
    unsafe { device.launch(spec, blocks(rows.saturating_mul(32), THREADS)?, THREADS, &arguments) }
}

/// Entries that a block sorts: `TILE` in the kernels.
const TILE: usize = 4096;

/// The transpose of a matrix of this shape.
pub(in crate::matrix) fn transpose<T: Element>(
    matrix: &CudaCsr<T>,
    [rows, columns]: [usize; 2],
) -> Result<CudaCsr<T>> {
    let (device, count, width) = (matrix.device(), matrix.nnz(), matrix.width);
    let transposed = CudaCsr::new(device, width, columns, count)?;
    let tiles = count.div_ceil(TILE);
    let workspace = |count: usize| {
        let bytes = count.saturating_mul(width.size());
        DeviceBuffer::<u8>::new(device, "the sorted entries of a transpose", bytes)
    };
    // Two pairs of columns and entries, between which the passes go back and forth.
    let pairs = [workspace(count)?, workspace(count)?, workspace(count)?, workspace(count)?];
    let [keys_a, entries_a, keys_b, entries_b] = pairs.each_ref().map(|b| b.view().address());
    let digits = workspace(tiles.saturating_mul(256))?;
    let mut arguments = TransposeArguments {
        matrix: matrix.addresses(),
        transposed: transposed.addresses(),
        keys: matrix.addresses().indices,
        entries: 0,
        sorted_keys: keys_a,
        sorted_entries: entries_a,
        digits: digits.view().address(),
        rows: rows as i64,
        columns: columns as i64,
        count: count as i64,
        tiles: tiles as i64,
        shift: 0,
    };
    // Bits that tell columns apart; one pass at least, which makes the numbers of the entries.
    let bits = (usize::BITS - columns.saturating_sub(1).leading_zeros()).max(1);
    let run = Launcher { device, matrix };
    for shift in (0..bits).step_by(8) {
        arguments.shift = i64::from(shift);
        run.launch("count_digits", blocks(tiles, 1)?, THREADS, &arguments)?;
        run.launch("scan", [1, 1, 1], 1024, &arguments)?;
        run.launch("place_digits", blocks(tiles, 1)?, THREADS, &arguments)?;
        (arguments.keys, arguments.entries) = (arguments.sorted_keys, arguments.sorted_entries);
        (arguments.sorted_keys, arguments.sorted_entries) =
            if arguments.keys == keys_a { (keys_b, entries_b) } else { (keys_a, entries_a) };
    }
    run.launch("gather_entries", blocks(count, THREADS)?, THREADS, &arguments)?;
    run.launch("find_pointers", blocks(columns + 1, THREADS)?, THREADS, &arguments)?;
    Ok(transposed)
}

/// Launches the kernels that transpose a matrix.
struct Launcher<'a, T> {
    device: &'a CudaDevice,
    matrix: &'a CudaCsr<T>,
}

impl<T: Element> Launcher<'_, T> {
    fn launch(
        &self,
        entry: &'static str,
        grid: [u32; 3],
        threads: u32,
        arguments: &TransposeArguments,
    ) -> Result<()> {
        // Only the gathering moves values.
        let dtype = if entry == "gather_entries" { same_size::<T>() } else { DType::F32 };
        let spec = Spec::new("transpose.cu", entry)
            .element(dtype)
            .columns(self.matrix.width)
            .index(&[], self.device.options().wide);
        // SAFETY: `transpose` makes the arguments: buffers of as many elements as the matrix has entries,
        // which is canonical, and 256 counters for each tile.
        unsafe { self.device.launch(spec, grid, threads, arguments) }
    }
}
