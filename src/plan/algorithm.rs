//! How a convolution may be computed: what callers wish of a plan, by name.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// How a convolution is computed. All agree up to rounding, on finite data exactly where the sums
/// are exact; for the same operands each gives the same bytes whatever the number of threads.
///
/// [`Algorithm::Auto`] always exists. One that is named but does not exist for the operation, the shape
/// or the device is refused with [`Error::Invalid`], with one exception: `Implicit` is `Im2col` in the
/// input gradient with a padding mode other than zeros.
///
/// With `zeros` padding a dropped tap is a product left out by `Naive` and one with 0 elsewhere:
/// where a *weight* is infinite or NaN that product is NaN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// The fastest one for the shape.
    #[default]
    Auto,
    /// The loops of the definition, one output element at a time: slow, and easy to believe.
    Naive,
    /// One matrix product per tap, accumulated over shifted views of a padded copy of the input.
    Shifted,
    /// Patches gathered tile by tile into a workspace that stays in cache, and one matrix product
    /// per tile. The patch matrix as a whole is never stored.
    Im2col,
    /// A matrix product whose innermost loops read the patches where they lie in a padded copy of a
    /// piece of the input.
    Implicit,
    /// Each thread computes some rows of one group's result, without patches or products: for several
    /// groups of at most 16 channels, on CUDA only.
    Direct,
    /// The same for groups of one channel. On the CPU several lines of the result are computed at a
    /// time, where there are enough and their last axis is not strided.
    Depthwise,
    /// Several outputs at a time, in fewer products (Winograd 1980; Lavin & Gray 2016): for 1, 3 or 5 taps on
    /// each axis with strides and dilations of 1, on the CPU only. Rounding is coarser:
    /// [`crate::PlanOptions::allow_winograd`] says by how much.
    Winograd,
}

impl Algorithm {
    /// Those that exist for every layer and device, [`Algorithm::Auto`] first.
    pub const GENERAL: [Algorithm; 5] = [
        Algorithm::Auto,
        Algorithm::Naive,
        Algorithm::Shifted,
        Algorithm::Im2col,
        Algorithm::Implicit,
    ];

    /// Every algorithm, [`Algorithm::Auto`] first.
    pub const ALL: [Algorithm; 8] = [
        Algorithm::Auto,
        Algorithm::Naive,
        Algorithm::Shifted,
        Algorithm::Im2col,
        Algorithm::Implicit,
        Algorithm::Direct,
        Algorithm::Depthwise,
        Algorithm::Winograd,
    ];
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Algorithm::Auto => "auto",
            Algorithm::Naive => "naive",
            Algorithm::Shifted => "shifted",
            Algorithm::Im2col => "im2col",
            Algorithm::Implicit => "implicit",
            Algorithm::Direct => "direct",
            Algorithm::Depthwise => "depthwise",
            Algorithm::Winograd => "winograd",
        })
    }
}

/// Reads the names that `Display` writes.
impl FromStr for Algorithm {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Algorithm::ALL.into_iter().find(|a| a.to_string() == text).ok_or_else(|| {
            Error::invalid(
                "algorithm",
                format!("{text:?}"),
                "expected auto, naive, shifted, im2col, implicit, direct, depthwise or winograd",
            )
        })
    }
}
