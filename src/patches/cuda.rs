//! Patches that CUDA kernels read where they lie: what `kernels/lib/patches.cuh` takes.

use crate::device::cuda::structs::Patches;
use crate::device::cuda::{AxesArguments, Divisor, Pointer, Spec, position_divisors};
use crate::geometry::{Axes, AxisMap};

/// How far neighbours in the images are apart, in elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Distances {
    pub image: usize,
    pub channel: usize,
    pub position: usize,
}

/// The patches of `channels` channels a group of images with these distances.
pub(crate) fn arguments(
    source: Pointer,
    distances: Distances,
    batch: usize,
    channels: usize,
    axes: &Axes,
) -> Patches {
    let positions = axes.outputs();
    let [plane, line] = position_divisors(axes.output_extents());
    let [tap_plane, tap_line] = position_divisors(axes.tap_extents());
    Patches {
        source,
        image: distances.image as i64,
        channel: distances.channel as i64,
        position: distances.position as i64,
        group: (channels * distances.channel) as i64,
        count: (batch * positions) as i64,
        axes: AxesArguments::new(axes),
        positions: Divisor::new(positions),
        plane,
        line,
        taps: Divisor::new(axes.taps()),
        tap_plane,
        tap_line,
        channels: Divisor::new(channels),
    }
}

/// Taps of all axes together, for which kernels have a bit each.
const MOST_TAP_BITS: usize = 31;

/// With `specialise`, a kernel for the padding mode of these axes, and for fewer than three where the
/// first does not count.
pub(crate) fn of_axes(spec: Spec, axes: &Axes, specialise: bool) -> Spec {
    let spec = spec.mode(axes, specialise);
    // The steps of an axis with one output and one tap do not count.
    let [outputs, taps, inputs] =
        [AxisMap::outputs, AxisMap::taps, AxisMap::inputs].map(|of| of(&axes[0]));
    let planar = [outputs, taps, inputs] == [1; 3] && axes[0].low() == 0;
    let spec = if specialise && planar { spec.define("PLANAR", 1) } else { spec };
    let bits =
        axes.is_zero_padded() && axes.iter().map(AxisMap::taps).sum::<usize>() <= MOST_TAP_BITS;
    if specialise && bits { spec.define("TAP_BITS", 1) } else { spec }
}
