//! Unfold on CUDA: fills in the arguments of `kernels/unfold.cu` and launches it.

use bytemuck::{Pod, Zeroable};

use crate::device::cuda::{
    Axes, DeviceSlice, DeviceSliceMut, Divisor, Spec, THREADS, axis_bound, blocks,
    position_divisors, vector,
};
use crate::element::Element;
use crate::error::Result;
use crate::geometry::{AxisMap, Layout};

/// `UnfoldArgs` in the kernel.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    input: u64,
    patches: u64,
    count: i64,
    channels: i64,
    per_group: i64,
    axes: Axes,
    chunks: Divisor,
    positions: Divisor,
    groups: Divisor,
    position: [Divisor; 2],
}

/// Writes all of `patches`, whose shape fits the input's; `counts` are batch, channels and groups.
pub(crate) fn unfold<T: Element>(
    layout: Layout,
    maps: &[AxisMap; 3],
    [batch, channels, groups]: [usize; 3],
    input: DeviceSlice<'_, T>,
    patches: DeviceSliceMut<'_, T>,
) -> Result<()> {
    let device = patches.device();
    let outputs = maps.each_ref().map(AxisMap::outputs);
    let positions: usize = outputs.iter().product();
    let per_group = channels / groups;
    let addresses = [input.address(), patches.address()];
    let (vector, chunks, count) = match layout {
        Layout::ChannelsFirst => {
            let vector = vector(size_of::<T>(), &[positions], &addresses[1..]);
            (vector, positions / vector, batch * channels * (positions / vector))
        }
        Layout::ChannelsLast => {
            let vector = vector(size_of::<T>(), &[per_group], &addresses);
            (vector, channels / vector, batch * positions * (channels / vector))
        }
    };
    let spec = Spec::new("unfold.cu", "unfold")
        .element(T::DTYPE)
        .layout(layout)
        .define("VECTOR", vector)
        .geometry(maps, device.options().specialise)
        .index(&[input.len(), patches.len(), count, axis_bound(maps)], device.options().wide);
    let arguments = Arguments {
        input: input.address(),
        patches: patches.address(),
        count: count as i64,
        channels: channels as i64,
        per_group: per_group as i64,
        axes: Axes::new(maps),
        chunks: Divisor::new(chunks),
        positions: Divisor::new(positions),
        groups: Divisor::new(per_group),
        position: position_divisors(outputs),
    };
    // SAFETY: the kernel reads `input` and writes `patches` inside the extents that the caller checked
    // against both, and nothing else.
    unsafe { device.launch(spec, blocks(count, THREADS)?, THREADS, &arguments) }
}
