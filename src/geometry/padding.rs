//! Padding: how much, and what a position outside the input means.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// What a padded position outside the input reads. Names and limits are those of PyTorch's
/// `padding_mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PaddingMode {
    /// Nothing: the tap is dropped (equivalently, the value is 0).
    #[default]
    Zeros,
    /// The mirror image without repeating the border; padding must be smaller than the extent.
    Reflect,
    /// The nearest border position.
    Replicate,
    /// The opposite side, as on a torus; padding must not exceed the extent.
    Circular,
}

impl PaddingMode {
    /// Every mode, in the order of the documentation.
    pub const ALL: [PaddingMode; 4] =
        [PaddingMode::Zeros, PaddingMode::Reflect, PaddingMode::Replicate, PaddingMode::Circular];

    /// The input position that the (possibly outside) position `i` reads on an axis of `size`
    /// elements; `None` when the tap is dropped.
    pub(super) fn source(self, i: i64, size: i64) -> Option<usize> {
        let inside = match self {
            _ if (0..size).contains(&i) => i,
            PaddingMode::Zeros => return None,
            PaddingMode::Reflect if i < 0 => -i,
            PaddingMode::Reflect => 2 * (size - 1) - i,
            PaddingMode::Replicate => i.clamp(0, size - 1),
            PaddingMode::Circular => i.rem_euclid(size),
        };
        Some(inside as usize)
    }
}

impl fmt::Display for PaddingMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PaddingMode::Zeros => "zeros",
            PaddingMode::Reflect => "reflect",
            PaddingMode::Replicate => "replicate",
            PaddingMode::Circular => "circular",
        })
    }
}

impl FromStr for PaddingMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        PaddingMode::ALL.into_iter().find(|mode| mode.to_string() == text).ok_or_else(|| {
            Error::invalid(
                "padding mode",
                format!("{text:?}"),
                "expected zeros, reflect, replicate or circular",
            )
        })
    }
}

/// How many positions are added on each side of each axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Padding<const D: usize> {
    /// So many positions before (`low`) and after (`high`) the input on each axis.
    Explicit {
        /// Positions before the first.
        low: [usize; D],
        /// Positions after the last.
        high: [usize; D],
    },
    /// As much as makes the output as large as the input; stride 1 only. When the total is odd, the
    /// extra position is on the high side, as in PyTorch.
    Same,
    /// None.
    Valid,
}

impl<const D: usize> Default for Padding<D> {
    fn default() -> Self {
        [0; D].into()
    }
}

/// The same number of positions on both sides of each axis.
impl<const D: usize> From<[usize; D]> for Padding<D> {
    fn from(both: [usize; D]) -> Self {
        Padding::Explicit { low: both, high: both }
    }
}

/// (low, high) for each axis.
impl<const D: usize> From<[(usize, usize); D]> for Padding<D> {
    fn from(sides: [(usize, usize); D]) -> Self {
        Padding::Explicit { low: sides.map(|s| s.0), high: sides.map(|s| s.1) }
    }
}
