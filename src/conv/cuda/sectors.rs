//! Sectors of memory that neighbouring threads ask for together, for what kernels are expected to do.

use crate::conv::problem::Problem;
use crate::device::cuda::SECTOR;
use crate::geometry::Layout;

/// Threads of a warp.
pub(super) const WARP: usize = 32;

/// Sectors of so many elements of `size` bytes, each `distance` elements from the last, which begin anywhere.
pub(super) fn sectors(size: usize, count: usize, distance: usize) -> f64 {
    let bytes = count.saturating_sub(1) * (size * distance).min(SECTOR);
    1.0 + bytes as f64 / SECTOR as f64
}

/// The weights of neighbouring channels.
pub(super) struct WeightsApart {
    pub size: usize,
    /// So many channels are `distance` elements apart, and the first of them from those before `group`.
    pub channels: usize,
    pub distance: usize,
    pub group: usize,
}

impl WeightsApart {
    /// Those that the channels of `y` multiply by.
    pub(super) fn of_outputs<T>(p: &Problem) -> Self {
        let distance = p.weight_strides().output;
        WeightsApart { size: size_of::<T>(), channels: p.outputs.max(1), distance, group: 0 }
    }

    /// Those of the channels of `dx`.
    pub(super) fn of_inputs<T>(p: &Problem) -> Self {
        let (weight, channels) = (p.weight_strides(), p.channels_per_group().max(1));
        let group = p.outputs_per_group() * weight.output;
        WeightsApart { size: size_of::<T>(), channels, distance: weight.input, group }
    }

    /// Sectors of so many neighbours, of which each takes `step` channels and the weight of one.
    pub(super) fn sectors(&self, neighbours: usize, step: usize) -> f64 {
        let WeightsApart { size, channels, distance, group } = *self;
        let its = neighbours.min(channels.div_ceil(step));
        let bytes = its * step * distance * size;
        // Neighbours in memory begin with a sector, where as many have whole ones.
        let aligned = distance == 1 && its > 1 && bytes.is_multiple_of(SECTOR);
        let of_group = match aligned {
            true => (bytes / SECTOR).min(its) as f64,
            false => sectors(size, its, step * distance),
        };
        of_group * sectors(size, neighbours.div_ceil(its.max(1)), group)
    }
}

/// Channels and positions of so many neighbours in an activation.
pub(super) fn neighbours(
    layout: Layout,
    count: usize,
    channels: usize,
    positions: usize,
) -> [usize; 2] {
    match layout {
        Layout::ChannelsFirst => [count.div_ceil(positions.max(1)), count.min(positions)],
        Layout::ChannelsLast => [count.min(channels), count.div_ceil(channels.max(1))],
    }
}
