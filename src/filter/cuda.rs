//! The dense gathering filter on CUDA: launches `kernels/filter.cu`.

use bytemuck::{Pod, Zeroable};

use crate::device::cuda::{DeviceSliceMut, Divisor, Spec, THREADS, blocks, vector};
use crate::element::Element;
use crate::error::Result;
use crate::geometry::Layout;

/// `FilterArgs` in the kernel.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    filter: u64,
    count: i64,
    width: Divisor,
    block: Divisor,
}

/// Writes all of `filter`, `[rows, block]` or, with channels last, its transpose.
pub(super) fn fill<T: Element>(
    layout: Layout,
    [rows, block]: [usize; 2],
    filter: DeviceSliceMut<'_, T>,
) -> Result<()> {
    let device = filter.device();
    let width = match layout {
        Layout::ChannelsFirst => block,
        Layout::ChannelsLast => rows,
    };
    let vector = vector(size_of::<T>(), &[width], &[filter.address()]);
    let count = filter.len() / vector;
    let spec = Spec::new("filter.cu", "filter")
        .element(T::DTYPE)
        .layout(layout)
        .define("VECTOR", vector)
        .index(&[filter.len()], device.options().wide);
    let arguments = Arguments {
        filter: filter.address(),
        count: count as i64,
        width: Divisor::new(width / vector),
        block: Divisor::new(block),
    };
    // SAFETY: the kernel writes the `rows * block` elements of `filter` and nothing else.
    unsafe { device.launch(spec, blocks(count, THREADS)?, THREADS, &arguments) }
}
