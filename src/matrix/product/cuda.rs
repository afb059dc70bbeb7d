//! Products, the dense matrix and the transpose on CUDA: the launches of `kernels/matrix/sparse.cu` and
//! `kernels/matrix/transpose.cu`.

use crate::device::cuda::structs::{SparseArgs, TransposeArgs};
use crate::device::cuda::{
    DeviceSliceMut, Divisor, Draft, Pointer, Region, Spec, THREADS, blocks, vector,
};
use crate::element::IndexWidth;
use crate::element::{DType, Element};
use crate::error::Result;
use crate::matrix::cuda::{CsrRegions, CudaCsr};
use crate::matrix::storage::Extent;

/// The element type that stands for all of one size where values are only moved: fewer kernels.
fn same_size<T: Element>() -> DType {
    match T::DTYPE {
        DType::BF16 => DType::F16,
        other => other,
    }
}

/// Entries that a thread reads at once: the same in the kernels.
const AT_ONCE: usize = 4;

/// M·X for `x` of shape `[columns, vectors]`; writes all of `y`.
pub(super) fn mul<T: Element>(
    draft: &mut Draft,
    extent: &Extent,
    matrix: CsrRegions<T>,
    x: Region<T>,
    vectors: usize,
    y: Region<T>,
) -> Result<()> {
    let Extent { rows, columns, nnz, width } = *extent;
    if rows == 0 || vectors == 0 {
        return Ok(());
    }
    let pack = vector(size_of::<T>(), &[vectors], &[x.alignment(), y.alignment()]);
    // As many threads to a row as have several entries of it each, on average.
    let lanes = (nnz / rows / AT_ONCE).clamp(1, 32).ilog2();
    let (entry, threads_of_row) =
        if vectors == 1 { ("mul_vector", 1 << lanes) } else { ("mul_matrix", vectors / pack) };
    let threads = rows.saturating_mul(threads_of_row);
    let spec = Spec::new("sparse.cu", entry)
        .element(T::DTYPE)
        .columns(width)
        .define("VECTOR", pack)
        .index(&[threads, columns, x.len(), y.len()], draft.device().options().wide);
    let arguments = SparseArgs {
        indptr: matrix.indptr.pointer(),
        indices: matrix.indices.pointer(),
        data: matrix.data.pointer(),
        x: x.pointer(),
        y: y.pointer(),
        rows: rows as i64,
        vectors: vectors as i64,
        lanes: i64::from(lanes),
        packs: Divisor::new(vectors / pack),
    };
    // SAFETY: the matrix is canonical, and `x` and `y` have as many rows as it has columns and rows.
    unsafe { draft.launch(spec, blocks(threads, THREADS)?, THREADS, &arguments) };
    Ok(())
}

/// Writes the entries to `dense`, of shape `[rows, columns]`, which is zero.
pub(in crate::matrix) fn to_dense<T: Element>(
    extent: &Extent,
    matrix: &CudaCsr<T>,
    dense: DeviceSliceMut<'_, T>,
) -> Result<()> {
    let [indptr, indices, data] = matrix.addresses();
    let addresses = [indptr, indices, data, dense.address()];
    let mut draft = Draft::for_addresses(matrix.device(), &addresses);
    let CsrRegions { indptr, indices, data } = CsrRegions::<T>::operands(&mut draft, extent);
    let target = draft.operand::<T>(dense.len());
    let spec = Spec::new("sparse.cu", "to_dense")
        .element(same_size::<T>())
        .columns(extent.width)
        .define("VECTOR", 1)
        .index(&[], draft.device().options().wide);
    let arguments = SparseArgs {
        indptr: indptr.pointer(),
        indices: indices.pointer(),
        data: data.pointer(),
        x: Pointer::NULL,
        y: target.pointer(),
        rows: extent.rows as i64,
        vectors: extent.columns as i64,
        lanes: 0,
        packs: Divisor::new(1),
    };
    let grid = blocks(extent.rows.saturating_mul(32), THREADS)?;
    // SAFETY: the matrix is canonical and has this extent, as `dense` has, which is borrowed.
    unsafe {
        draft.launch(spec, grid, THREADS, &arguments);
        draft.run_once(&addresses)
    }
}

/// The transpose of a matrix of this extent, as a new matrix.
pub(in crate::matrix) fn transposed<T: Element>(
    extent: &Extent,
    matrix: &CudaCsr<T>,
) -> Result<CudaCsr<T>> {
    let turned = extent.transposed();
    let target = CudaCsr::new(matrix.device(), &turned)?;
    let ([a, b, c], [d, e, f]) = (matrix.addresses(), target.addresses());
    let addresses = [a, b, c, d, e, f];
    let mut draft = Draft::for_addresses(matrix.device(), &addresses);
    let from = CsrRegions::operands(&mut draft, extent);
    let to = CsrRegions::operands(&mut draft, &turned);
    transpose::<T>(&mut draft, extent, from, to)?;
    // SAFETY: the operands are the parts of matrices of these extents.
    unsafe { draft.run_once(&addresses)? };
    Ok(target)
}

/// Of the kernels: bits of a digit at most, entries that a thread of a sorting block has, threads of that
/// block, and of one whose columns or values take 8 bytes, and counters that a block scans.
const BITS: u32 = 9;
const EACH: usize = 8;
const SORTERS: u32 = 512;
const SORTERS_OF_WIDE: u32 = 256;
const CHUNK: usize = 4096;
const SCANNERS: u32 = 1024;

/// Writes the transpose of a matrix of this extent. The entries are sorted in the workspace.
pub(super) fn transpose<T: Element>(
    draft: &mut Draft,
    extent: &Extent,
    matrix: CsrRegions<T>,
    transposed: CsrRegions<T>,
) -> Result<()> {
    let Extent { rows, columns, nnz: count, width } = *extent;
    let wide = width.size() > 4 || size_of::<T>() > 4;
    let sorters = if wide { SORTERS_OF_WIDE } else { SORTERS };
    let tiles = count.div_ceil(EACH * sorters as usize);
    // Bits that tell columns apart, in as few passes as they take; one pass at least.
    let bits = (usize::BITS - columns.saturating_sub(1).leading_zeros()).max(1);
    let passes = bits.div_ceil(BITS);
    let digit = bits.div_ceil(passes);
    let counters = tiles.saturating_mul(1 << digit);
    let chunks = counters.div_ceil(CHUNK);

    let held = draft.held();
    let mut workspace = |bytes: usize, count: usize| -> Result<Pointer> {
        let bytes = count.saturating_mul(bytes);
        Ok(draft.workspace::<u8>("the sorted entries of a transpose", bytes)?.pointer())
    };
    let mut indices = |count| workspace(width.size(), count);
    let (counted, sums) = (indices(counters)?, indices(chunks)?);
    // Passes go back and forth between two sets of columns, rows and values; the last writes the transpose.
    let sorted_columns = [indices(count)?, indices(if passes > 1 { count } else { 0 })?];
    let kept = |set: u32| if passes > 1 + set { count } else { 0 };
    let sorted_rows = [indices(kept(0))?, indices(kept(1))?];
    let sorted_values = [workspace(size_of::<T>(), kept(0))?, workspace(size_of::<T>(), kept(1))?];
    let mut arguments = TransposeArgs {
        indptr: matrix.indptr.pointer(),
        transposed_indptr: transposed.indptr.pointer(),
        columns: matrix.indices.pointer(),
        rows: Pointer::NULL,
        values: matrix.data.pointer(),
        sorted_columns: Pointer::NULL,
        sorted_rows: Pointer::NULL,
        sorted_values: Pointer::NULL,
        counters: counted,
        sums,
        row_count: rows as i64,
        column_count: columns as i64,
        count: count as i64,
        tiles: tiles as i64,
        counter_count: counters as i64,
        chunks: chunks as i64,
        shift: 0,
        bits: i64::from(digit),
        mask: (1 << digit) - 1,
    };
    let mut launch = |entry, blocks, threads, arguments: &TransposeArgs| {
        launch::<T>(draft, width, (entry, sorters), blocks, threads, arguments);
    };
    for pass in 0..passes {
        let set = (pass % 2) as usize;
        arguments.shift = i64::from(pass * digit);
        arguments.sorted_columns = sorted_columns[set];
        (arguments.sorted_rows, arguments.sorted_values) = match pass + 1 == passes {
            true => (transposed.indices.pointer(), transposed.data.pointer()),
            false => (sorted_rows[set], sorted_values[set]),
        };
        launch("count_digits", blocks(tiles, 1)?, sorters, &arguments);
        launch("sum_chunks", blocks(chunks, 1)?, SCANNERS, &arguments);
        launch("scan_sums", [1, 1, 1], SCANNERS, &arguments);
        launch("scan_chunks", blocks(chunks, 1)?, SCANNERS, &arguments);
        launch("place_digits", blocks(tiles, 1)?, sorters, &arguments);
        arguments.columns = arguments.sorted_columns;
        (arguments.rows, arguments.values) = (arguments.sorted_rows, arguments.sorted_values);
    }
    launch("find_pointers", blocks(columns + 1, THREADS)?, THREADS, &arguments);
    draft.release(held);
    Ok(())
}

/// Launches one of the kernels that transpose a matrix, compiled for sorting blocks of so many threads.
fn launch<T: Element>(
    draft: &mut Draft,
    width: IndexWidth,
    (entry, sorters): (&'static str, u32),
    grid: [u32; 3],
    threads: u32,
    arguments: &TransposeArgs,
) {
    let spec = Spec::new("transpose.cu", entry)
        .element(same_size::<T>())
        .columns(width)
        .define("THREADS", sorters)
        .index(&[], draft.device().options().wide);
    // SAFETY: `transpose` makes the arguments: memory for as many elements as the matrix has entries, which
    // is canonical, and for a counter of each digit and tile.
    unsafe { draft.launch(spec, grid, threads, arguments) }
}
