//! What a caller wishes of a spectrum.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::error::{Error, Result};

/// How many singular values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Top {
    /// The largest so many.
    Count(usize),
    /// All min(m, n) of them: by [`Method::Circular`] or [`Method::Dense`].
    All,
}

/// How singular values are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Method {
    /// `circular` where the layer is circulant, `dense` where it is small, else `lanczos`.
    #[default]
    Auto,
    /// Golub–Kahan–Lanczos with thick restarts (Baglama & Reichel 2005), until residuals are small.
    Lanczos,
    /// Halko, Martinsson & Tropp 2011, as `torch.svd_lowrank`: a fixed number of iterations. Values are too
    /// small where the spectrum is flat, as those of convolutions are; residuals say by how much.
    Randomized,
    /// A decomposition for each frequency (Sedghi, Gupta & Long 2019): exact, for circulant layers.
    Circular,
    /// A decomposition of the dense matrix.
    Dense,
}

impl Method {
    /// Every method, [`Method::Auto`] first.
    pub const ALL: [Method; 5] =
        [Method::Auto, Method::Lanczos, Method::Randomized, Method::Circular, Method::Dense];
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Method::Auto => "auto",
            Method::Lanczos => "lanczos",
            Method::Randomized => "randomized",
            Method::Circular => "circular",
            Method::Dense => "dense",
        })
    }
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Method::ALL.into_iter().find(|method| method.to_string() == text).ok_or_else(|| {
            let reason = "expected auto, lanczos, randomized, circular or dense";
            Error::invalid("method", format!("{text:?}"), reason)
        })
    }
}

/// What a caller wishes of a spectrum. By default the six largest values with their vectors, by whatever
/// method suits the operator.
#[derive(Clone, Debug)]
pub struct SpectrumOptions {
    pub(crate) top: Top,
    pub(crate) method: Method,
    pub(crate) tolerance: Option<f64>,
    pub(crate) applications: Option<u64>,
    pub(crate) iterations: usize,
    pub(crate) seed: u64,
    pub(crate) vectors: bool,
    pub(crate) block: Option<usize>,
    pub(crate) basis: Option<usize>,
    pub(crate) deadline: Option<Duration>,
}

impl Default for SpectrumOptions {
    fn default() -> Self {
        SpectrumOptions {
            top: Top::Count(6),
            method: Method::Auto,
            tolerance: None,
            applications: None,
            iterations: 2,
            seed: 0,
            vectors: true,
            block: None,
            basis: None,
            deadline: None,
        }
    }
}

impl SpectrumOptions {
    /// The six largest values, with vectors.
    pub fn new() -> Self {
        SpectrumOptions::default()
    }

    /// How many values.
    pub fn top(self, top: Top) -> Self {
        SpectrumOptions { top, ..self }
    }

    /// By which method.
    pub fn method(self, method: Method) -> Self {
        SpectrumOptions { method, ..self }
    }

    /// Residuals, in parts of the largest singular value, from which on a triplet counts as converged:
    /// by default 10⁻⁶ for `f32` and 10⁻⁹ for `f64`.
    pub fn tolerance(self, tolerance: f64) -> Self {
        SpectrumOptions { tolerance: Some(tolerance), ..self }
    }

    /// The most vectors that the operator or its adjoint is applied to, about; without it, as many as it
    /// takes, up to a number that grows with the number of values.
    pub fn applications(self, most: u64) -> Self {
        SpectrumOptions { applications: Some(most), ..self }
    }

    /// Power iterations of [`Method::Randomized`]: `niter` of `torch.svd_lowrank`, by default 2.
    pub fn iterations(self, iterations: usize) -> Self {
        SpectrumOptions { iterations, ..self }
    }

    /// Where random vectors come from: the same seed gives the same bytes.
    pub fn seed(self, seed: u64) -> Self {
        SpectrumOptions { seed, ..self }
    }

    /// Whether singular vectors are wanted, by default. Without them the exact methods are several times
    /// faster and report no residuals.
    pub fn vectors(self, vectors: bool) -> Self {
        SpectrumOptions { vectors, ..self }
    }

    /// Vectors in a block of [`Method::Lanczos`]. By default 1 for few values and more for many; clusters
    /// and multiplicities take fewer applications with as many as they have members.
    pub fn block(self, vectors: usize) -> Self {
        SpectrumOptions { block: Some(vectors), ..self }
    }

    /// Vectors that [`Method::Lanczos`] keeps between restarts, on each side: memory against applications.
    pub fn basis(self, vectors: usize) -> Self {
        SpectrumOptions { basis: Some(vectors), ..self }
    }

    /// Ends the iteration after so long, with what has converged until then.
    pub fn deadline(self, after: Duration) -> Self {
        SpectrumOptions { deadline: Some(after), ..self }
    }

    pub(crate) fn relative_tolerance(&self, unit_roundoff: f64) -> Result<f64> {
        let default = if unit_roundoff > 1e-12 { 1e-6 } else { 1e-9 };
        let tolerance = self.tolerance.unwrap_or(default);
        if tolerance > 0.0 && tolerance.is_finite() {
            return Ok(tolerance);
        }
        Err(Error::invalid("tolerance", tolerance, "it must be positive and finite"))
    }
}

/// How far an iteration has come.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// Vectors that the operator or its adjoint has been applied to.
    pub applications: u64,
    /// Values wanted, and those whose residuals are small enough; of a spectral density its probes, and those
    /// that have all their steps.
    pub wanted: usize,
    /// See `wanted`.
    pub converged: usize,
    /// The largest residual of those wanted, in parts of the largest singular value; of a bracket the gap, in
    /// parts of its certain end. Infinite before there are as many, and for densities.
    pub residual: f64,
}
