//! How much is added to factors, and how that adapts.

use crate::error::{Error, Result};

/// Fails unless λ may be added.
pub(super) fn check(damping: f64) -> Result<()> {
    if damping > 0.0 && damping.is_finite() {
        return Ok(());
    }
    Err(Error::invalid("damping", damping, "it must be positive and finite"))
}

/// π of factors with these means of eigenvalues, or 1 where there is none.
pub(super) fn pi(input_mean: f64, output_mean: f64) -> f64 {
    let pi = (input_mean / output_mean).sqrt();
    if pi > 0.0 && pi.is_finite() { pi } else { 1.0 }
}

/// A damping λ that adapts as Levenberg and Marquardt's: the rule of Martens & Grosse 2015, section 6.5.
///
/// After every T₁ steps the caller compares what a step did with what the quadratic model M had promised, by
/// the reduction ratio ρ = (h(θ + δ) − h(θ)) / (M(δ) − M(0)), h being the objective:
///
/// ```
/// let mut damping = convmat::LevenbergMarquardt::new(1.0)?;
/// damping.update(0.9)?; // a good model: λ·ω^T₁
/// assert!((damping.damping() - 0.95f64.powi(5)).abs() < 1e-15);
/// damping.update(0.5)?; // neither good nor bad: as it was
/// damping.update(-1.0)?; // a bad one: λ·ω^−T₁
/// assert!((damping.damping() - 1.0).abs() < 1e-15);
/// # Ok::<(), convmat::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LevenbergMarquardt {
    damping: f64,
    omega: f64,
    interval: u32,
    bounds: [f64; 2],
}

impl LevenbergMarquardt {
    /// Starts at λ, with ω = 19/20 and T₁ = 5.
    ///
    /// # Errors
    /// [`Error::Invalid`] unless λ is positive and finite.
    pub fn new(damping: f64) -> Result<Self> {
        check(damping)?;
        let bounds = [f64::MIN_POSITIVE, f64::MAX];
        Ok(LevenbergMarquardt { damping, omega: 19.0 / 20.0, interval: 5, bounds })
    }

    /// Another ω, by which λ shrinks at each step where the model is good.
    ///
    /// # Errors
    /// [`Error::Invalid`] unless 0 < ω < 1.
    pub fn omega(self, omega: f64) -> Result<Self> {
        if omega > 0.0 && omega < 1.0 {
            return Ok(LevenbergMarquardt { omega, ..self });
        }
        Err(Error::invalid("omega", omega, "it must be between 0 and 1"))
    }

    /// Another T₁, the number of steps from one update to the next.
    ///
    /// # Errors
    /// [`Error::Invalid`] for 0.
    pub fn interval(self, steps: u32) -> Result<Self> {
        if steps == 0 {
            return Err(Error::invalid("steps between updates", 0, "it must be at least 1"));
        }
        Ok(LevenbergMarquardt { interval: steps, ..self })
    }

    /// The least λ, and the greatest.
    ///
    /// # Errors
    /// [`Error::Invalid`] unless 0 < least ≤ greatest, both finite.
    pub fn bounds(self, least: f64, greatest: f64) -> Result<Self> {
        check(least)?;
        check(greatest)?;
        if least > greatest {
            let reason = format!("it must not exceed the greatest, {greatest}");
            return Err(Error::invalid("the least damping", least, reason));
        }
        let damping = self.damping.clamp(least, greatest);
        Ok(LevenbergMarquardt { damping, bounds: [least, greatest], ..self })
    }

    /// λ.
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// λ·ω^T₁ where ρ > 3/4, λ·ω^(−T₁) where ρ < 1/4, within the bounds; returns λ.
    ///
    /// # Errors
    /// [`Error::Invalid`] where ρ is not a number; λ stays.
    pub fn update(&mut self, rho: f64) -> Result<f64> {
        if rho.is_nan() {
            return Err(Error::invalid("reduction ratio", rho, "it must be a number"));
        }
        let factor = self.omega.powf(f64::from(self.interval));
        let damping = match rho {
            _ if rho > 0.75 => self.damping * factor,
            _ if rho < 0.25 => self.damping / factor,
            _ => self.damping,
        };
        self.damping = damping.clamp(self.bounds[0], self.bounds[1]);
        Ok(self.damping)
    }
}
