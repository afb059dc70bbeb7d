//! The gathering filter on CUDA: the arguments of `kernels/filter/` and the launches.

use super::FilterSize;
use crate::device::cuda::structs::{FilterArgs, SparseFilterArgs};
use crate::device::cuda::{CudaDevice, Divisor, Draft, Region, Spec, THREADS, blocks, vector};
use crate::element::Element;
use crate::error::Result;
use crate::geometry::Layout;
use crate::matrix::Extent;
use crate::matrix::cuda::{CsrRegions, CudaCsr};

/// Writes all of `filter`, `[rows, block]` or, with channels last, its transpose.
pub(super) fn fill<T: Element>(
    draft: &mut Draft,
    layout: Layout,
    size: &FilterSize,
    filter: Region<T>,
) -> Result<()> {
    let width = match layout {
        Layout::ChannelsFirst => size.block,
        Layout::ChannelsLast => size.rows,
    };
    let vector = vector(size_of::<T>(), &[width], &[filter.alignment()]);
    let count = filter.len() / vector;
    let spec = Spec::new("filter.cu", "filter")
        .element(T::DTYPE)
        .layout(layout)
        .define("VECTOR", vector)
        .index(&[filter.len()], draft.device().options().wide);
    let arguments = FilterArgs {
        filter: filter.pointer(),
        count: count as i64,
        width: Divisor::new(width / vector),
        block: Divisor::new(size.block),
    };
    // SAFETY: the kernel writes the `rows * block` elements of `filter` and nothing else.
    unsafe { draft.launch(spec, blocks(count, THREADS)?, THREADS, &arguments) };
    Ok(())
}

/// The filter as a sparse matrix.
pub(super) fn sparse<T: Element>(device: &CudaDevice, size: &FilterSize) -> Result<CudaCsr<T>> {
    let (rows, width) = (size.rows, size.width());
    let extent = Extent { rows, columns: size.block, nnz: rows, width };
    let target = CudaCsr::new(device, &extent)?;
    let mut draft = Draft::for_addresses(device, &target.addresses());
    let CsrRegions { indptr, indices, data } = CsrRegions::<T>::operands(&mut draft, &extent);
    let spec = Spec::new("filter_sparse.cu", "filter_sparse")
        .element(T::DTYPE)
        .columns(width)
        .index(&[rows], device.options().wide);
    let arguments = SparseFilterArgs {
        indptr: indptr.pointer(),
        indices: indices.pointer(),
        data: data.pointer(),
        rows: rows as i64,
        block: Divisor::new(size.block),
    };
    // SAFETY: the target was made with `rows` rows and as many entries.
    unsafe {
        draft.launch(spec, blocks(rows + 1, THREADS)?, THREADS, &arguments);
        draft.run_once(&target.addresses())?;
    }
    Ok(target)
}
