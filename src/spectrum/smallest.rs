//! The smallest singular value and the condition number: exact where all values are known, else bracketed.

use std::ops::ControlFlow;

use super::dense;
use super::norm::{NormOptions, empty};
use super::options::{Method, Progress, SpectrumOptions, Top};
use super::random_start::{End, Goal, bracket};
use crate::element::Accumulator;
use crate::error::{Error, Result};
use crate::operator::Operator;

/// Bytes of the vectors that an iteration keeps, at most.
const BYTES: usize = 512 << 20;

/// Steps of an iteration, at most.
const STEPS: usize = 2048;

/// A bracket of the smallest of an operator's min(m, n) singular values.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SmallestValue {
    /// No singular value is below it; for [`Method::Lanczos`] but for a share of random starts, which
    /// `failure_probability` says. 0 where nothing more is known.
    pub lower: f64,
    /// Some singular value is no larger.
    pub upper: f64,
    /// The largest over the smallest is between these two; the second may be infinite.
    pub condition_number: [f64; 2],
    /// See `lower`; none for exact methods.
    pub failure_probability: Option<f64>,
    /// [`Method::Circular`] or [`Method::Dense`], both exact up to rounding, or [`Method::Lanczos`].
    pub method: Method,
    /// Vectors that the operator or its adjoint was applied to; 0 for exact methods.
    pub applications: u64,
    /// Whether the caller ended it.
    pub interrupted: bool,
}

impl<T: Accumulator> Operator<T> {
    /// The smallest of the min(m, n) singular values, and the condition number: exactly where the layer is
    /// circulant or the operator small ([`Method::Auto`]); else bracketed by Lanczos' method from a random
    /// start, without shifts or inverses. What it finds bounds the value from above. From below the
    /// polynomials bound it that [`Operator::norm`] bounds the largest with: a start that hides a smaller
    /// one from them is improbable. They grow slowly next to 0: about 17 steps take a condition number of 1
    /// further. The options' gap is that of the two bounds; where it is not reached in the steps that there
    /// is room for (2048, and 512 MiB of vectors), the bracket is wider.
    ///
    /// # Errors
    /// [`Error::Invalid`] for options out of range, an empty operator, elements that are not finite, and
    /// where it is neither proved that the value is above 0 nor that rounding does not tell it from 0; what
    /// applying fails with.
    pub fn smallest_singular_value(
        &self,
        options: &NormOptions,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<SmallestValue> {
        options.check()?;
        let [m, n] = self.shape();
        if m.min(n) == 0 {
            return Err(empty([m, n]));
        }
        let exact = SpectrumOptions::new().top(Top::Count(1)).vectors(false);
        match self.method(&exact)? {
            method @ (Method::Circular | Method::Dense) => {
                let all = self.spectrum(&exact.top(Top::All).method(method), progress)?;
                let value = all.smallest(1).and_then(|values| values.first().copied());
                let condition = all.condition_number().unwrap_or(f64::INFINITY);
                Ok(SmallestValue {
                    lower: value.unwrap_or(0.0),
                    upper: value.unwrap_or(0.0),
                    condition_number: [condition; 2],
                    failure_probability: None,
                    method,
                    applications: 0,
                    interrupted: false,
                })
            }
            _ => self.bracketed_smallest(options, progress),
        }
    }

    fn bracketed_smallest(
        &self,
        options: &NormOptions,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<SmallestValue> {
        let short = self.shape()[0].min(self.shape()[1]);
        let goal = Goal {
            end: End::Smallest,
            gap: options.gap,
            // Either end may fail half as often.
            failure_probability: options.failure_probability / 2.0,
            steps: (BYTES / size_of::<T>() / short).clamp(64, STEPS),
        };
        let mut interrupted = false;
        let found = bracket(self, &goal, options.seed, &mut |state| {
            let flow = progress(state);
            interrupted = flow.is_break();
            flow
        })?;
        // Coefficients are known to the rounding of the largest.
        let rounding = 32.0 * T::DTYPE.unit_roundoff();
        let noise = rounding * found.scale;
        let (lower, upper) = (found.other.unwrap_or(0.0) - noise, found.found + noise);
        if lower <= 0.0 && upper > 4.0 * noise && !interrupted {
            let reason = format!(
                "it is not proved to be above 0 after {} steps of an iteration that finds condition numbers \
                 up to about {:.0} in as many; a layer with circular padding, or one of at most {} \
                 elements as a dense matrix, has it exactly",
                found.steps,
                found.steps as f64 / 17.0,
                dense::LARGEST,
            );
            return Err(Error::invalid(
                "smallest singular value",
                format!("≤ {upper:.3e}"),
                reason,
            ));
        }
        let lower = lower.max(0.0);
        let [least, most] = [found.largest.found, found.largest.other.unwrap_or(f64::INFINITY)];
        let most = most * (1.0 + rounding);
        Ok(SmallestValue {
            lower,
            upper,
            condition_number: [
                (least * (1.0 - rounding) / upper).max(1.0),
                if lower > 0.0 { most / lower } else { f64::INFINITY },
            ],
            failure_probability: Some(options.failure_probability),
            method: Method::Lanczos,
            applications: found.applications,
            interrupted,
        })
    }
}
