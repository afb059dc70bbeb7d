//! The order of a tensor's axes.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// The order of the axes of activations and weights.
///
/// | | activations | weights | patches |
/// |---|---|---|---|
/// | `ChannelsFirst` | `[N, C, spatial…]` | `[O, C/g, kernel…]` (OIHW) | `[N, C·K, L]`, rows ordered (channel, tap) |
/// | `ChannelsLast` | `[N, spatial…, C]` | `[kernel…, C/g, O]` (HWIO) | `[N, L, C·K]`, columns ordered (group, tap, channel of the group) |
///
/// K is the number of taps and L the number of output positions, both row-major. In either layout a
/// group's patch is contiguous and in the order of that layout's weight, so a convolution is one
/// matrix product per group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Layout {
    /// NCL, NCHW, NCDHW: PyTorch's default.
    #[default]
    ChannelsFirst,
    /// NLC, NHWC, NDHWC: TensorFlow's and JAX's default.
    ChannelsLast,
}

/// Distances between neighbours in an activation, in elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strides {
    pub image: usize,
    pub channel: usize,
    /// From one position to the next in row-major order over all spatial axes.
    pub position: usize,
}

impl Strides {
    /// Where element (image, channel, position) lies.
    pub fn at(&self, image: usize, channel: usize, position: usize) -> usize {
        image * self.image + channel * self.channel + position * self.position
    }
}

impl Layout {
    /// Shape of activations.
    pub fn activation_shape(self, batch: usize, channels: usize, spatial: &[usize]) -> Vec<usize> {
        let mut shape = vec![batch];
        match self {
            Layout::ChannelsFirst => {
                shape.push(channels);
                shape.extend(spatial);
            }
            Layout::ChannelsLast => {
                shape.extend(spatial);
                shape.push(channels);
            }
        }
        shape
    }

    /// Where the elements of an activation lie.
    pub(crate) fn strides(self, channels: usize, positions: usize) -> Strides {
        let image = channels * positions;
        match self {
            Layout::ChannelsFirst => Strides { image, channel: positions, position: 1 },
            Layout::ChannelsLast => Strides { image, channel: 1, position: channels },
        }
    }

    /// Shape of weights with `inputs` = C/groups input channels.
    pub fn weight_shape(self, outputs: usize, inputs: usize, kernel: &[usize]) -> Vec<usize> {
        match self {
            Layout::ChannelsFirst => [&[outputs, inputs], kernel].concat(),
            Layout::ChannelsLast => [kernel, &[inputs, outputs]].concat(),
        }
    }

    /// Shape of patches: `rows` = C·K patch entries at `positions` = L places.
    pub fn patch_shape(self, batch: usize, rows: usize, positions: usize) -> Vec<usize> {
        match self {
            Layout::ChannelsFirst => vec![batch, rows, positions],
            Layout::ChannelsLast => vec![batch, positions, rows],
        }
    }

    /// (batch, channels, spatial extents) of activations of rank D + 2.
    pub fn split_activation<const D: usize>(
        self,
        argument: &str,
        shape: &[usize],
    ) -> Result<(usize, usize, [usize; D])> {
        let (channels, spatial) = match (self, shape.len() == D + 2) {
            (_, false) => {
                let expected = format!("rank {} ({self} with {D} spatial axes)", D + 2);
                return Err(Error::shape(argument, expected, shape));
            }
            (Layout::ChannelsFirst, true) => (shape[1], &shape[2..]),
            (Layout::ChannelsLast, true) => (shape[D + 1], &shape[1..=D]),
        };
        Ok((shape[0], channels, std::array::from_fn(|axis| spatial[axis])))
    }

    /// (output channels, input channels per group, kernel) of weights of rank D + 2.
    pub fn split_weight<const D: usize>(
        self,
        argument: &str,
        shape: &[usize],
    ) -> Result<(usize, usize, [usize; D])> {
        let (outputs, inputs, kernel) = match (self, shape.len() == D + 2) {
            (_, false) => {
                let expected = format!("rank {} ({self} with {D} spatial axes)", D + 2);
                return Err(Error::shape(argument, expected, shape));
            }
            (Layout::ChannelsFirst, true) => (shape[0], shape[1], &shape[2..]),
            (Layout::ChannelsLast, true) => (shape[D + 1], shape[D], &shape[..D]),
        };
        Ok((outputs, inputs, std::array::from_fn(|axis| kernel[axis])))
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layout::ChannelsFirst => "channels-first",
            Layout::ChannelsLast => "channels-last",
        })
    }
}

impl FromStr for Layout {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "channels-first" => Ok(Layout::ChannelsFirst),
            "channels-last" => Ok(Layout::ChannelsLast),
            _ => Err(Error::invalid(
                "layout",
                format!("{text:?}"),
                "expected channels-first or channels-last",
            )),
        }
    }
}
