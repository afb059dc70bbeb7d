//! Fold on CUDA: fills in the arguments of `kernels/fold.cu` and launches it.

use bytemuck::{Pod, Zeroable};

use crate::device::cuda::{
    Adjoint, AxesArguments, DeviceSlice, DeviceSliceMut, Divisor, Spec, THREADS, axis_bound,
    blocks, is_specialised, position_divisors, vector,
};
use crate::element::Element;
use crate::error::Result;
use crate::geometry::{Axes, Layout};

/// `FoldArgs` in the kernel.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    patches: u64,
    output: u64,
    count: i64,
    channels: i64,
    per_group: i64,
    axes: AxesArguments,
    adjoint: [Adjoint; 3],
    chunks: Divisor,
    positions: Divisor,
    groups: Divisor,
    position: [Divisor; 2],
}

/// Writes all of `output`, whose shape fits the patches'; `counts` are batch, channels and groups.
pub(crate) fn fold<T: Element>(
    layout: Layout,
    maps: &Axes,
    [batch, channels, groups]: [usize; 3],
    patches: DeviceSlice<'_, T>,
    output: DeviceSliceMut<'_, T>,
    average: bool,
) -> Result<()> {
    let device = output.device();
    let per_group = channels / groups;
    let addresses = [output.address(), patches.address()];
    let inputs = maps.input_extents();
    let mut spec = Spec::new("fold.cu", "fold")
        .element(T::DTYPE)
        .layout(layout)
        .geometry(maps, device.options().specialise);

    // What the threads of an image and channel, or of an image and vector of channels, are for.
    let mut cells = inputs;
    let (mut vector, mut chunks) = (1, 1);
    let span = match layout {
        Layout::ChannelsFirst => span(maps, size_of::<T>(), device.options().specialise),
        Layout::ChannelsLast => {
            vector = self::vector(size_of::<T>(), &[per_group], &addresses);
            chunks = channels / vector;
            None
        }
    };
    if let Some(span) = span {
        vector = self::vector(size_of::<T>(), &[span, inputs[2]], &addresses[..1]);
        let [d, h, w] = maps.each_ref().map(|map| map.low() as usize % map.stride());
        spec =
            spec.define("CELL", 1).define("SPAN", span).define("PHASES", format!("{d}, {h}, {w}"));
        cells = [0, 1, 2]
            .map(|axis| inputs[axis].div_ceil(if axis == 2 { span } else { maps[axis].stride() }));
    }
    let positions: usize = cells.iter().product();
    let images = if layout == Layout::ChannelsFirst { batch * channels } else { batch };
    let count = images * positions * chunks;

    if average {
        spec = spec.define("AVERAGE", 1);
    }
    // Cells at the border look for outputs that are not there.
    let reach =
        maps.iter().map(|map| (map.padded_extent() + map.low() as usize) / map.stride() + 2);
    let reach = reach.fold(1, usize::saturating_mul).saturating_add(patches.len());
    let counts = [output.len(), count, reach, axis_bound(maps)];
    let spec = spec.define("VECTOR", vector).index(&counts, device.options().wide);
    let arguments = Arguments {
        patches: patches.address(),
        output: output.address(),
        count: count as i64,
        channels: channels as i64,
        per_group: per_group as i64,
        axes: AxesArguments::new(maps),
        adjoint: Adjoint::new(maps),
        chunks: Divisor::new(chunks),
        positions: Divisor::new(positions),
        groups: Divisor::new(per_group),
        position: position_divisors(cells),
    };
    // SAFETY: the kernel reads `patches` and writes `output` inside the extents that the caller checked
    // against both, and nothing else.
    unsafe { device.launch(spec, blocks(count, THREADS)?, THREADS, &arguments) }
}

/// Results of a thread's cell on the last axis, where threads have cells: see the kernel.
fn span(maps: &Axes, size: usize, specialise: bool) -> Option<usize> {
    let strides: usize = maps.iter().fold(1, |all, map| all.saturating_mul(map.stride()));
    let zeros = maps.is_zero_padded();
    if !zeros || strides > MOST_RESULTS || !is_specialised(maps, specialise) {
        return None;
    }
    // So many neighbours that a load of a warp's fills a cache line, or more until a thread has enough
    // loads under way to hide what memory takes.
    let taps: usize = maps.taps();
    let mut neighbours = (4 / size).max(1);
    while neighbours * taps * size < 24 && neighbours * size < 16 {
        neighbours *= 2;
    }
    while neighbours > 1 && neighbours * strides > MOST_RESULTS {
        neighbours /= 2;
    }
    Some(neighbours * maps[2].stride())
}

/// A cell's sums are in registers.
const MOST_RESULTS: usize = 16;
