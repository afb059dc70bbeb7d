//! What norms of layers are computed for: how far a layer is from an isometry, layers of a norm that is
//! certainly at most 1, and a bound for a network of them.

use super::circular::solver::Accuracy;
use super::circular::{CircularSpectrum, circulant};
use super::norm::{Norm, NormOptions, empty};
use super::{layer_of, silent};
use crate::element::Accumulator;
use crate::error::{Error, Result};
use crate::operator::{Expression, Operator};

/// What rounding may have taken from an exact σ², in parts of the largest and of 1.
const ROUNDING: f64 = 4e-12;

impl<T: Accumulator> Operator<T> {
    /// ‖AᵀA − I‖₂, the largest |σ² − 1|, bracketed: 0 for an isometry, whose ‖A·x‖ is ‖x‖ for every x
    /// (with Parseval networks, Cissé et al. 2017, as the penalty on it).
    ///
    /// - A circulant layer ([`Operator::circular`]), its adjoint and multiples have it from all of their
    ///   values: `upper` is above `lower` by rounding alone.
    /// - Others have the lower and the probabilistic upper bound of [`Operator::norm`], with its defaults,
    ///   of I − AᵀA or I − AAᵀ, whichever is smaller. Rounding of A·x in `f32` is taken off the lower: nearer
    ///   to an isometry than about 10⁻⁵ it is 0. What is certain is that the eigenvalues of AᵀA − I lie
    ///   between −1 and b² − 1, b being [`Operator::norm_bound`]: an upper bound of max(1, b² − 1), which
    ///   does not tell an isometry from any other contraction.
    ///
    /// A wide operator (m < n) maps some vectors to 0, so that it is at least 1: for m < n ask the adjoint,
    /// `a.adjoint().orthogonality_defect()`, for ‖AAᵀ − I‖₂.
    ///
    /// # Errors
    /// As [`Operator::norm`] and [`Operator::circular`] for layers that are circulant.
    pub fn orthogonality_defect(&self) -> Result<Norm> {
        let [m, n] = self.shape();
        if m == 0 || n == 0 {
            return Err(empty([m, n]));
        }
        // Of the null space of a wide operator.
        let least = if m < n { 1.0 } else { 0.0 };
        if let Some(values) = exact_values(self)? {
            let defects = values.iter().map(|value| (value * value - 1.0).abs());
            let defect = defects.fold(least, f64::max);
            let largest = values.iter().copied().fold(0.0, f64::max);
            let rounding = ROUNDING * (1.0 + largest * largest);
            return Ok(Norm {
                lower: (defect - rounding).max(least),
                upper: Some(defect + rounding),
                bound: Some("exact, from all singular values".into()),
                probabilistic_upper: None,
                failure_probability: None,
                applications: 0,
            });
        }
        let adjoint = self.adjoint();
        let gram = if n <= m { adjoint.compose(self)? } else { self.compose(&adjoint)? };
        let found = gram.complement()?.norm(&NormOptions::new(), &mut silent)?;
        // A·x rounds in parts of ‖A‖², which is at most one more than the defect, and not of the defect.
        let rounding = 32.0 * T::DTYPE.unit_roundoff() * (2.0 + found.lower);
        let bound = self.norm_bound()?;
        let certain = |norm: f64| {
            let above = (norm * norm - 1.0) * (1.0 + 4.0 * f64::EPSILON);
            // Not the maximum: what is not a number is to stay that.
            if above < 1.0 { 1.0 } else { above }
        };
        Ok(Norm {
            lower: (found.lower - rounding).max(least),
            upper: bound.as_ref().map(|bound| certain(bound.value)),
            bound: bound.map(|bound| {
                format!("1, or less 1 the square of a bound of the norm: {}", bound.bound)
            }),
            probabilistic_upper: found
                .probabilistic_upper
                .map(|upper| (upper + rounding).max(least)),
            // Each application is of the operator and of its adjoint.
            applications: 2 * found.applications,
            ..found
        })
    }

    /// The operator divided by its certain upper bound ([`Operator::norm_bound`]), so that its norm is at
    /// most 1 for certain and not only at the end of a power iteration (Miyato et al. 2018 normalise by
    /// one); and the factor, with which a layer's weights are to be multiplied. Weights that are then
    /// rounded to their type may exceed it by that rounding.
    ///
    /// # Errors
    /// [`Error::Invalid`] where no bound is known, as of closures, and for a bound of 0 or one that is not
    /// finite; as [`Operator::norm_bound`].
    pub fn spectrally_normalised(&self) -> Result<(Operator<T>, f64)> {
        let Some(bound) = self.norm_bound()? else {
            let reason = "no certain bound of its norm is known, as a closure is part of it";
            return Err(Error::invalid("operator", self, reason));
        };
        // Its own rounding, and that of products with it.
        let factor = bound.value.recip() * (1.0 - 4.0 * f64::EPSILON);
        if !(factor > 0.0 && factor.is_finite()) {
            let reason = format!("the bound of its norm is {}, which does not divide", bound.value);
            return Err(Error::invalid("operator", self, reason));
        }
        Ok((self.scale(factor), factor))
    }
}

/// A Lipschitz bound of a network: the product of the certain upper bounds of its linear layers, for
/// activations and pooling of Lipschitz constant 1 between them (Szegedy et al. 2014). `None` where a layer
/// has none; 1 without layers.
///
/// There is no such bound from below: singular vectors of one layer need not meet those of the next, and
/// activations may be constant. The product of the layers' lower bounds is none, and is not returned.
pub fn product_bound<'a>(layers: impl IntoIterator<Item = &'a Norm>) -> Option<f64> {
    let mut product = 1.0f64;
    let mut nothing = false;
    for layer in layers {
        let upper = layer.upper?;
        nothing |= upper == 0.0;
        // Up, by more than the product rounds.
        product *= upper * (1.0 + 2.0 * f64::EPSILON);
    }
    // A layer that gives nothing decides, whatever has overflowed before.
    Some(if nothing { 0.0 } else { product })
}

/// The values, all or one of each, of an operator that is, but for a factor, a circulant layer or the identity.
fn exact_values<T: Accumulator>(operator: &Operator<T>) -> Result<Option<Vec<f64>>> {
    match operator.expression() {
        Expression::Identity => Ok(Some(vec![1.0])),
        Expression::Sum(terms) => match &terms[..] {
            [(factor, term)] if factor.is_finite() => {
                let values = exact_values(term)?;
                Ok(values.map(|values| values.iter().map(|value| factor.abs() * value).collect()))
            }
            _ => Ok(None),
        },
        Expression::Adjoint(inner) if layer_of(inner).is_none() => exact_values(inner),
        _ => match layer_of(operator).filter(|layer| circulant(layer).is_ok()) {
            // Layers keep their weights in `f64`, whatever T is.
            Some(layer) => {
                let found = CircularSpectrum::new(&layer, Accuracy::Double)?;
                Ok(Some(found.values().to_vec()))
            }
            None => Ok(None),
        },
    }
}
