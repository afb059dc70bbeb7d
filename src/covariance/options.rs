//! What a covariance is of, and where it goes.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// How the positions of an example, which share the layer's weights, enter its covariance (Eschenhagen et
/// al. 2023, "Kronecker-Factored Approximate Curvature for Modern Neural Network Architectures").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WeightSharing {
    /// Each position counts as an example: `Σ_n Σ_t a·aᵀ`. Grosse & Martens 2016.
    #[default]
    Expand,
    /// An example's positions are summed first: `Σ_n (Σ_t a)·(Σ_t a)ᵀ`.
    Reduce,
}

impl fmt::Display for WeightSharing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WeightSharing::Expand => "expand",
            WeightSharing::Reduce => "reduce",
        })
    }
}

/// Reads the names that `Display` writes.
impl FromStr for WeightSharing {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "expand" => Ok(WeightSharing::Expand),
            "reduce" => Ok(WeightSharing::Reduce),
            _ => Err(Error::invalid("mode", format!("{text:?}"), "expected expand or reduce")),
        }
    }
}

/// Which elements of a symmetric matrix of d rows are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SymmetricStorage {
    /// All of them, `[d, d]`.
    #[default]
    Full,
    /// The lower triangle row by row, `[d·(d + 1)/2]`: element (i, j ≤ i) at `i·(i + 1)/2 + j`, as LAPACK's
    /// packed storage of an upper triangle by columns.
    Packed,
}

impl SymmetricStorage {
    /// Elements of a matrix of d rows.
    pub(crate) fn len(self, d: usize) -> usize {
        match self {
            SymmetricStorage::Full => d * d,
            SymmetricStorage::Packed => d * (d + 1) / 2,
        }
    }

    /// Where row i of the lower triangle starts.
    pub(crate) fn row(self, d: usize, i: usize) -> usize {
        match self {
            SymmetricStorage::Full => i * d,
            SymmetricStorage::Packed => i * (i + 1) / 2,
        }
    }
}

/// Which covariance: by default of patches without a 1, every position an example, all elements stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CovarianceOptions {
    pub(crate) bias: bool,
    pub(crate) sharing: WeightSharing,
    pub(crate) storage: SymmetricStorage,
}

impl CovarianceOptions {
    /// Of patches without a 1, every position an example, all elements stored.
    pub fn new() -> Self {
        CovarianceOptions::default()
    }

    /// Whether a 1 is appended to every patch, whose products are the last row and column: the layer's
    /// bias is a weight of it.
    pub fn bias(self, bias: bool) -> Self {
        CovarianceOptions { bias, ..self }
    }

    /// How positions are counted.
    pub fn sharing(self, sharing: WeightSharing) -> Self {
        CovarianceOptions { sharing, ..self }
    }

    /// Which elements are stored.
    pub fn storage(self, storage: SymmetricStorage) -> Self {
        CovarianceOptions { storage, ..self }
    }
}

/// What becomes of a result's old values: `target = decay·target + scale·new`, element by element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    pub(crate) decay: f64,
    pub(crate) scale: f64,
}

impl Update {
    /// `decay·target + scale·new`. With a decay of 0 the target is not read.
    pub fn new(decay: f64, scale: f64) -> Self {
        Update { decay, scale }
    }

    /// `scale·new`; the target is not read.
    pub fn replace(scale: f64) -> Self {
        Update::new(0.0, scale)
    }

    /// `target + scale·new`.
    pub fn add(scale: f64) -> Self {
        Update::new(1.0, scale)
    }

    pub(crate) fn check(self) -> Result<()> {
        for (argument, value) in [("decay", self.decay), ("scale", self.scale)] {
            if !value.is_finite() {
                return Err(Error::invalid(argument, value, "it must be finite"));
            }
        }
        Ok(())
    }
}
