//! Unfold on CUDA: fills in the arguments of `kernels/unfold.cu` and launches it.

use bytemuck::{Pod, Zeroable};

use crate::device::cuda::{
    AxesArguments, DeviceSlice, DeviceSliceMut, Divisor, Spec, THREADS, axis_bound, blocks,
    is_specialised, position_divisors, vector,
};
use crate::element::Element;
use crate::error::Result;
use crate::geometry::{Axes, AxisMap, Layout};

/// `UnfoldArgs` in the kernel.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    input: u64,
    patches: u64,
    count: i64,
    channels: i64,
    per_group: i64,
    axes: AxesArguments,
    chunks: Divisor,
    positions: Divisor,
    groups: Divisor,
    position: [Divisor; 2],
}

/// Writes all of `patches`, whose shape fits the input's; `counts` are batch, channels and groups.
pub(crate) fn unfold<T: Element>(
    layout: Layout,
    maps: &Axes,
    [batch, channels, groups]: [usize; 3],
    input: DeviceSlice<'_, T>,
    patches: DeviceSliceMut<'_, T>,
) -> Result<()> {
    let device = patches.device();
    let outputs = maps.output_extents();
    let positions: usize = outputs.iter().product();
    let per_group = channels / groups;
    let addresses = [input.address(), patches.address()];
    let mut window = None;
    let (vector, chunks, count) = match layout {
        Layout::ChannelsFirst => {
            let mut vector = vector(size_of::<T>(), &[positions], &addresses[1..]);
            // Neighbours in one line of outputs share what they read, which is worth narrower stores as
            // long as a warp's fill a cache line.
            let in_line = self::vector(size_of::<T>(), &[outputs[2]], &addresses[1..]);
            if in_line == vector || in_line * size_of::<T>() >= 4 {
                window = self::window(&maps[2], in_line)
                    .filter(|_| is_specialised(maps, device.options().specialise));
            }
            if window.is_some() {
                vector = in_line;
            }
            (vector, positions / vector, batch * channels * (positions / vector))
        }
        Layout::ChannelsLast => {
            let vector = vector(size_of::<T>(), &[per_group], &addresses);
            (vector, channels / vector, batch * positions * (channels / vector))
        }
    };
    let mut spec = Spec::new("unfold.cu", "unfold")
        .element(T::DTYPE)
        .layout(layout)
        .define("VECTOR", vector)
        .geometry(maps, device.options().specialise)
        .index(&[input.len(), patches.len(), count, axis_bound(maps)], device.options().wide);
    if let Some(window) = window {
        spec = spec.define("WINDOW", window);
    }
    let arguments = Arguments {
        input: input.address(),
        patches: patches.address(),
        count: count as i64,
        channels: channels as i64,
        per_group: per_group as i64,
        axes: AxesArguments::new(maps),
        chunks: Divisor::new(chunks),
        positions: Divisor::new(positions),
        groups: Divisor::new(per_group),
        position: position_divisors(outputs),
    };
    // SAFETY: the kernel reads `input` and writes `patches` inside the extents that the caller checked
    // against both, and nothing else.
    unsafe { device.launch(spec, blocks(count, THREADS)?, THREADS, &arguments) }
}

/// Neighbours on the last axis that so many outputs read, if they can be kept in registers.
fn window(map: &AxisMap, outputs: usize) -> Option<usize> {
    let span = (map.taps() - 1).checked_mul(map.dilation())?;
    let window = (outputs - 1).checked_mul(map.stride())?.checked_add(span)?.checked_add(1)?;
    (window <= MOST_IN_WINDOW).then_some(window)
}

const MOST_IN_WINDOW: usize = 48;
