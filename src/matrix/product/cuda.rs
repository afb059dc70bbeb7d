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

/// Entries that a block sorts: `TILE` in the kernels.
const TILE: usize = 4096;

/// Writes the transpose of a matrix of this extent. The entries are sorted in the workspace.
pub(super) fn transpose<T: Element>(
    draft: &mut Draft,
    extent: &Extent,
    matrix: CsrRegions<T>,
    transposed: CsrRegions<T>,
) -> Result<()> {
    let Extent { rows, columns, nnz: count, width } = *extent;
    let tiles = count.div_ceil(TILE);
    let held = draft.held();
    let mut workspace = |count: usize| -> Result<Pointer> {
        let bytes = count.saturating_mul(width.size());
        Ok(draft.workspace::<u8>("the sorted entries of a transpose", bytes)?.pointer())
    };
    // Two pairs of columns and entries, between which the passes go back and forth.
    let (keys_a, entries_a) = (workspace(count)?, workspace(count)?);
    let (keys_b, entries_b) = (workspace(count)?, workspace(count)?);
    let digits = workspace(tiles.saturating_mul(256))?;
    let mut arguments = TransposeArgs {
        indptr: matrix.indptr.pointer(),
        indices: matrix.indices.pointer(),
        data: matrix.data.pointer(),
        transposed_indptr: transposed.indptr.pointer(),
        transposed_indices: transposed.indices.pointer(),
        transposed_data: transposed.data.pointer(),
        keys: matrix.indices.pointer(),
        entries: Pointer::NULL,
        sorted_keys: keys_a,
        sorted_entries: entries_a,
        digits,
        rows: rows as i64,
        columns: columns as i64,
        count: count as i64,
        tiles: tiles as i64,
        shift: 0,
    };
    // Bits that tell columns apart; one pass at least, which makes the numbers of the entries.
    let bits = (usize::BITS - columns.saturating_sub(1).leading_zeros()).max(1);
    for shift in (0..bits).step_by(8) {
        arguments.shift = i64::from(shift);
        launch::<T>(draft, width, "count_digits", blocks(tiles, 1)?, THREADS, &arguments);
        launch::<T>(draft, width, "scan", [1, 1, 1], 1024, &arguments);
        launch::<T>(draft, width, "place_digits", blocks(tiles, 1)?, THREADS, &arguments);
        (arguments.keys, arguments.entries) = (arguments.sorted_keys, arguments.sorted_entries);
        (arguments.sorted_keys, arguments.sorted_entries) =
            if arguments.keys == keys_a { (keys_b, entries_b) } else { (keys_a, entries_a) };
    }
    launch::<T>(draft, width, "gather_entries", blocks(count, THREADS)?, THREADS, &arguments);
    launch::<T>(draft, width, "find_pointers", blocks(columns + 1, THREADS)?, THREADS, &arguments);
    draft.release(held);
    Ok(())
}

/// Launches one of the kernels that transpose a matrix.
fn launch<T: Element>(
    draft: &mut Draft,
    width: IndexWidth,
    entry: &'static str,
    grid: [u32; 3],
    threads: u32,
    arguments: &TransposeArgs,
) {
    // Only the gathering moves values.
    let dtype = if entry == "gather_entries" { same_size::<T>() } else { DType::F32 };
    let spec = Spec::new("transpose.cu", entry)
        .element(dtype)
        .columns(width)
        .index(&[], draft.device().options().wide);
    // SAFETY: `transpose` makes the arguments: memory for as many elements as the matrix has entries, which
    // is canonical, and 256 counters for each tile.
    unsafe { draft.launch(spec, grid, threads, arguments) }
}
