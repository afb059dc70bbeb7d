//! The scalings of A and G that are in use.

use std::fmt;

use crate::covariance::WeightSharing;
use crate::error::{Error, Result};

/// How A and G are scaled. With N examples, T output positions, patches a and gradients g of the examples'
/// losses:
///
/// | convention | A | G | times | product |
/// |---|---|---|---|---|
/// | `Canonical` | 1/(NT)·ΣΣ a·aᵀ | 1/N·ΣΣ g·gᵀ | 1 | |
/// | `Kfc` | 1/N·ΣΣ a·aᵀ | 1/(NT)·ΣΣ g·gᵀ | 1 | agrees |
/// | `KfacJax` | 1/(NT)·ΣΣ a·aᵀ | 1/(NT)·ΣΣ g·gᵀ | T | agrees |
/// | `KfacPytorchWang` | 1/(NT²)·ΣΣ a·aᵀ | T/N·ΣΣ g·gᵀ | 1 | agrees |
/// | `KfacPytorchPauloski` | 1/(NT³)·ΣΣ a·aᵀ | 1/(NT³)·ΣΣ g·gᵀ | 1 | T⁵ times smaller |
///
/// The product A ⊗ G, times the factor in the fourth column, is what approximates the Fisher matrix. All but
/// the first are for [`WeightSharing::Expand`] alone. As read in the packages' sources of 2019 to 2025; other
/// versions of them may differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Convention {
    /// That of this crate, of Eschenhagen et al. 2023, and of curvlinops for losses that are means over
    /// examples.
    #[default]
    Canonical,
    /// Grosse & Martens 2016, and nngeometry's `Conv2d`.
    Kfc,
    /// kfac-jax's block of 2-D convolutions: its factors, and its fixed scale T.
    KfacJax,
    /// alecwangcq/KFAC-Pytorch, whose `batch_averaged` undoes a loss's mean over examples.
    KfacPytorchWang,
    /// gpauloski/kfac-pytorch, where gradients are those of the examples' losses.
    KfacPytorchPauloski,
}

/// What a convention's factors are, in parts of the canonical ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FactorScales {
    /// A in parts of the canonical A.
    pub input: f64,
    /// G in parts of the canonical G.
    pub output: f64,
    /// What the product A ⊗ G is multiplied by to approximate the Fisher matrix.
    pub product: f64,
}

impl Convention {
    /// Every convention.
    pub const ALL: [Convention; 5] = [
        Convention::Canonical,
        Convention::Kfc,
        Convention::KfacJax,
        Convention::KfacPytorchWang,
        Convention::KfacPytorchPauloski,
    ];

    /// Its factors in parts of the canonical ones, for a layer of so many output positions.
    ///
    /// ```
    /// let scales = convmat::Convention::Kfc.scales(100);
    /// assert_eq!((scales.input, scales.output, scales.product), (100.0, 0.01, 1.0));
    /// ```
    pub fn scales(self, positions: usize) -> FactorScales {
        let t = positions as f64;
        let (input, output, product) = match self {
            Convention::Canonical => (1.0, 1.0, 1.0),
            Convention::Kfc => (t, 1.0 / t, 1.0),
            Convention::KfacJax => (1.0, 1.0 / t, t),
            Convention::KfacPytorchWang => (1.0 / t, t, 1.0),
            Convention::KfacPytorchPauloski => (t.powi(-2), t.powi(-3), 1.0),
        };
        FactorScales { input, output, product }
    }

    /// What turns factors of this convention into those of another: A times `input`, G times `output`, the
    /// product's factor times `product`.
    pub fn to(self, other: Convention, positions: usize) -> FactorScales {
        let (from, to) = (self.scales(positions), other.scales(positions));
        FactorScales {
            input: to.input / from.input,
            output: to.output / from.output,
            product: to.product / from.product,
        }
    }

    /// Whether its product is that of [`Convention::Canonical`].
    pub fn agrees(self) -> bool {
        self != Convention::KfacPytorchPauloski
    }

    /// Fails where it says nothing of factors that are shared so.
    pub(super) fn check(self, sharing: WeightSharing) -> Result<()> {
        if self == Convention::Canonical || sharing == WeightSharing::Expand {
            return Ok(());
        }
        let reason = format!("it is of factors that expand, and these {sharing}");
        Err(Error::invalid("convention", self, reason))
    }
}

impl fmt::Display for Convention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Convention::Canonical => "canonical",
            Convention::Kfc => "kfc",
            Convention::KfacJax => "kfac-jax",
            Convention::KfacPytorchWang => "alecwangcq/KFAC-Pytorch",
            Convention::KfacPytorchPauloski => "gpauloski/kfac-pytorch",
        })
    }
}
