//! What a caller wishes of a state.

use std::fmt;
use std::str::FromStr;

use super::convention::Convention;
use super::damping;
use crate::covariance::WeightSharing;
use crate::error::{Error, Result};

/// How a layer's Fisher matrix F, or what takes its place, is approximated. All are of one layer, group by
/// group; dW is a group's gradient `[O/g, d]` and ∇W_n that of an example.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KfacMethod {
    /// F ≈ A ⊗ G (Martens & Grosse 2015, Grosse & Martens 2016):
    /// `(G + √λ/π·I)⁻¹·dW·(A + π√λ·I)⁻¹`.
    #[default]
    Kfac,
    /// The eigenvectors of A and G with second moments Λ of their own (George et al. 2018):
    /// `Q_G·[(Q_Gᵀ·dW·Q_A) ⊘ (Λ + λ)]·Q_Aᵀ`.
    Ekfac,
    /// The diagonal of F, the mean of ∇W_n∘²: `dW ⊘ (diag F + λ)`.
    Diagonal,
    /// Shampoo (Gupta, Koren & Singer 2018), of the mean gradients dW of batches: L = Σ dW·dWᵀ and
    /// R = Σ dWᵀ·dW, `(L + λI)^(−1/4)·dW·(R + λI)^(−1/4)`. L takes the place of G and R that of A.
    Shampoo,
}

impl KfacMethod {
    /// Every method.
    pub const ALL: [KfacMethod; 4] =
        [KfacMethod::Kfac, KfacMethod::Ekfac, KfacMethod::Diagonal, KfacMethod::Shampoo];
}

impl fmt::Display for KfacMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KfacMethod::Kfac => "kfac",
            KfacMethod::Ekfac => "ekfac",
            KfacMethod::Diagonal => "diagonal",
            KfacMethod::Shampoo => "shampoo",
        })
    }
}

/// Reads the names that `Display` writes.
impl FromStr for KfacMethod {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        KfacMethod::ALL.into_iter().find(|method| method.to_string() == text).ok_or_else(|| {
            let reason = "expected kfac, ekfac, diagonal or shampoo";
            Error::invalid("method", format!("{text:?}"), reason)
        })
    }
}

/// How a state is kept: by default K-FAC, every position an example, plain averages over all examples,
/// λ = 10⁻³ with the π correction, all updated at every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KfacOptions {
    pub(super) method: KfacMethod,
    pub(super) sharing: WeightSharing,
    pub(super) convention: Convention,
    pub(super) damping: f64,
    pub(super) pi_correction: bool,
    pub(super) decay: Option<f64>,
    pub(super) update_every: u64,
    pub(super) refresh_every: u64,
    pub(super) rank: Option<usize>,
}

impl Default for KfacOptions {
    fn default() -> Self {
        KfacOptions {
            method: KfacMethod::Kfac,
            sharing: WeightSharing::Expand,
            convention: Convention::Canonical,
            damping: KfacOptions::DEFAULT_DAMPING,
            pi_correction: true,
            decay: None,
            update_every: 1,
            refresh_every: 1,
            rank: None,
        }
    }
}

impl KfacOptions {
    /// The damping λ where none is given.
    pub const DEFAULT_DAMPING: f64 = 1e-3;

    /// The defaults.
    pub fn new() -> Self {
        KfacOptions::default()
    }

    /// What is approximated, and how.
    pub fn method(self, method: KfacMethod) -> Self {
        KfacOptions { method, ..self }
    }

    /// How an example's positions are counted in A and G.
    pub fn sharing(self, sharing: WeightSharing) -> Self {
        KfacOptions { sharing, ..self }
    }

    /// The scalings in which [`KfacMethod::Kfac`] damps its factors. With the π correction that changes
    /// nothing among conventions whose products agree. Factors are kept and returned in
    /// [`Convention::Canonical`] all the same: see [`super::KfacState::factors_in`].
    pub fn convention(self, convention: Convention) -> Self {
        KfacOptions { convention, ..self }
    }

    /// The damping λ, positive and finite.
    pub fn damping(self, damping: f64) -> Self {
        KfacOptions { damping, ..self }
    }

    /// Whether [`KfacMethod::Kfac`] shares λ between its factors by their mean eigenvalues,
    /// π = √((tr A / dim A) / (tr G / dim G)) (Martens & Grosse 2015, section 6.3), as by default; otherwise,
    /// and where a trace is 0, π = 1.
    pub fn pi_correction(self, pi_correction: bool) -> Self {
        KfacOptions { pi_correction, ..self }
    }

    /// Running averages: the first batch is taken as it is, and each later one gives
    /// `decay·old + (1 − decay)·new`, whatever its number of examples; 0 ≤ decay < 1. Without a decay,
    /// averages are over all examples so far, each counting the same; [`KfacMethod::Shampoo`]'s are sums.
    pub fn decay(self, decay: f64) -> Self {
        KfacOptions { decay: Some(decay), ..self }
    }

    /// [`super::KfacState::step`] takes data in at its first call and every so many calls.
    pub fn update_every(self, steps: u64) -> Self {
        KfacOptions { update_every: steps, ..self }
    }

    /// [`super::KfacState::step`] refreshes at its first call and every so many calls.
    pub fn refresh_every(self, steps: u64) -> Self {
        KfacOptions { refresh_every: steps, ..self }
    }

    /// [`KfacMethod::Kfac`]'s factors of more rows than that are inverted by their largest so many
    /// eigenvalues alone, the others replaced by their mean: see [`super::LowRankBound`].
    pub fn rank(self, rank: usize) -> Self {
        KfacOptions { rank: Some(rank), ..self }
    }

    pub(super) fn check(&self) -> Result<()> {
        damping::check(self.damping)?;
        if let Some(decay) = self.decay
            && !(0.0..1.0).contains(&decay)
        {
            return Err(Error::invalid("decay", decay, "it must be at least 0 and less than 1"));
        }
        for (name, every) in [
            ("steps between updates", self.update_every),
            ("steps between refreshes", self.refresh_every),
        ] {
            if every == 0 {
                return Err(Error::invalid(name, 0, "it must be at least 1"));
            }
        }
        if self.rank == Some(0) {
            return Err(Error::invalid("rank", 0, "it must be at least 1"));
        }
        let kfac = self.method == KfacMethod::Kfac;
        if let (false, Some(rank)) = (kfac, self.rank) {
            let reason = format!("only kfac knows low ranks, and the method is {}", self.method);
            return Err(Error::invalid("rank", rank, reason));
        }
        if self.convention != Convention::Canonical {
            if !kfac {
                let reason = format!("only kfac damps factors, and the method is {}", self.method);
                return Err(Error::invalid("convention", self.convention, reason));
            }
            self.convention.check(self.sharing)?;
        }
        Ok(())
    }
}

/// All but the damping, which may change from step to step.
impl fmt::Display for KfacOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.method, self.sharing)?;
        if self.method == KfacMethod::Kfac {
            write!(f, ", damped as {}", self.convention)?;
            f.write_str(if self.pi_correction { " with pi" } else { " without pi" })?;
        }
        match self.decay {
            Some(decay) => write!(f, ", decay {decay}")?,
            None => f.write_str(", plain averages")?,
        }
        write!(f, ", updates every {}, refreshes every {}", self.update_every, self.refresh_every)?;
        self.rank.map_or(Ok(()), |rank| write!(f, ", rank {rank}"))
    }
}
