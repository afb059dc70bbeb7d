//! What a covariance is computed of, with every size checked.

use super::options::{CovarianceOptions, SymmetricStorage, WeightSharing};
use crate::error::{Result, checked_product};
use crate::geometry::{Axes, Geometry, Layout};

/// The patches of one group of outputs: of a convolution all of them, of a transposed convolution those of
/// one phase of its stride, which read through some of the taps only and are those of a convolution.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// From outputs to inputs.
    pub axes: Axes,
    /// The layer's tap behind each tap of `axes`. Every tap of the layer is in one part at most.
    pub taps: Vec<usize>,
}

/// A covariance with every size known and consistent.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub batch: usize,
    /// Channels over all groups.
    pub channels: usize,
    pub groups: usize,
    pub layout: Layout,
    pub parts: Vec<Part>,
    /// Taps of the layer.
    pub taps: usize,
    /// Output positions of the layer, over all parts and those outputs that nothing reaches.
    pub positions: usize,
    pub bias: bool,
    pub sharing: WeightSharing,
    pub storage: SymmetricStorage,
}

impl Problem {
    /// Of the patches of a convolution.
    pub fn new<const D: usize>(
        geometry: &Geometry<D>,
        batch: usize,
        channels: usize,
        options: CovarianceOptions,
    ) -> Result<Self> {
        let taps = geometry.taps();
        let part = Part { axes: geometry.axes()?, taps: (0..taps).collect() };
        Problem::of(geometry, batch, channels, vec![part], geometry.positions(), options)
    }

    /// Of what the adjoint of a zero-padded convolution reads, phase by phase of its stride.
    pub fn transposed<const D: usize>(
        geometry: &Geometry<D>,
        batch: usize,
        channels: usize,
        options: CovarianceOptions,
    ) -> Result<Self> {
        let axes = geometry.axes()?;
        let [_, h, w] = axes.tap_extents();
        let part = |phases: [&crate::geometry::AdjointPhase; 3]| {
            let [d_taps, h_taps, w_taps] = phases.map(|phase| &phase.taps);
            let taps = d_taps.iter().flat_map(|d| {
                h_taps.iter().flat_map(move |y| w_taps.iter().map(move |x| (d * h + y) * w + x))
            });
            Part { axes: Axes::new(phases.map(|phase| phase.map.clone())), taps: taps.collect() }
        };
        let parts = axes.adjoint_phases()?.each().map(part).collect();
        Problem::of(geometry, batch, channels, parts, geometry.input_positions(), options)
    }

    fn of<const D: usize>(
        geometry: &Geometry<D>,
        batch: usize,
        channels: usize,
        parts: Vec<Part>,
        positions: usize,
        options: CovarianceOptions,
    ) -> Result<Self> {
        let conv = geometry.conv();
        let (groups, taps) = (conv.group_count(), geometry.taps());
        let CovarianceOptions { bias, sharing, storage } = options;
        checked_product("the outputs of all examples", &[batch.max(1), positions])?;
        let d = checked_product("the entries of a patch", &[channels / groups, taps])?
            + usize::from(bias);
        checked_product("the covariance", &[groups, d, d])?;
        let layout = conv.axis_order();
        Ok(Problem {
            batch,
            channels,
            groups,
            layout,
            parts,
            taps,
            positions,
            bias,
            sharing,
            storage,
        })
    }

    pub fn channels_per_group(&self) -> usize {
        self.channels / self.groups
    }

    /// Rows of a group's matrix: the entries of a patch, and 1 with a bias.
    pub fn rows(&self) -> usize {
        self.entries() + usize::from(self.bias)
    }

    /// Entries of a group's patch.
    pub fn entries(&self) -> usize {
        self.channels_per_group() * self.taps
    }

    /// The row of a channel of the group through a tap of the layer.
    pub fn row_of(&self, channel: usize, tap: usize) -> usize {
        match self.layout {
            Layout::ChannelsFirst => channel * self.taps + tap,
            Layout::ChannelsLast => tap * self.channels_per_group() + channel,
        }
    }

    /// Channel and tap of a row that is not the bias's.
    pub fn entry(&self, row: usize) -> (usize, usize) {
        match self.layout {
            Layout::ChannelsFirst => (row / self.taps, row % self.taps),
            Layout::ChannelsLast => {
                (row % self.channels_per_group(), row / self.channels_per_group())
            }
        }
    }

    /// Elements of a group's matrix as it is stored.
    pub fn stored(&self) -> usize {
        self.storage.len(self.rows())
    }

    /// The shape of the result.
    pub fn result_shape(&self) -> Vec<usize> {
        let d = self.rows();
        match self.storage {
            SymmetricStorage::Full => vec![self.groups, d, d],
            SymmetricStorage::Packed => vec![self.groups, self.stored()],
        }
    }

    /// Floating-point operations of the definition, of the lower triangles alone.
    pub fn flop(&self) -> u64 {
        let (d, outputs) = (self.rows() as u64, (self.batch * self.positions) as u64);
        let groups = self.groups as u64;
        match self.sharing {
            WeightSharing::Expand => groups * outputs * d * (d + 1),
            WeightSharing::Reduce => groups * (outputs * d + self.batch as u64 * d * (d + 1)),
        }
    }

    /// Input positions of an image.
    pub fn input_positions(&self) -> usize {
        self.parts.first().map_or(0, |part| part.axes.inputs())
    }

    /// Elements of the input.
    pub fn input_len(&self) -> usize {
        self.batch * self.channels * self.input_positions()
    }
}
