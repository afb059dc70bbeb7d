//! The singular values of linear operators, and what is certain about them.
//!
//! | file | computes |
//! |---|---|
//! | `lanczos` | the largest, by an iteration that stops at small residuals |
//! | `lowrank` | a randomized approximation, as `torch.svd_lowrank` |
//! | `circular` | all of a circulant layer, frequency by frequency |
//! | `dense` | all of a small operator |
//! | `density` | how many of all lie where, of an operator too large for that, with error bars |
//! | `norm` | a bracket of the largest |
//! | `smallest` | the smallest and the condition number, exactly or bracketed |
//! | `random_start` | bounds of the extreme values, on one side such as few random starts get wrong |
//! | `lipschitz` | what brackets are for: a distance from isometries, layers of norm 1, a network's bound |
//! | `symbol`, `bound` | upper bounds from a layer's symbol |
//! | `frobenius` | the root of the sum of their squares, from a layer's index tables |

mod bidiagonal;
mod bound;
mod circular;
mod dense;
mod density;
mod frobenius;
mod lanczos;
mod lipschitz;
mod lowrank;
mod norm;
mod options;
mod random_start;
mod result;
mod small;
mod smallest;
mod symbol;

use std::ops::ControlFlow;
use std::time::Instant;

pub use bound::NormBound;
pub use circular::{CircularSpectrum, CircularTriplets, TorusKernel};
pub use density::{DensityOptions, Estimate, SpectralDensity};
pub use lipschitz::product_bound;
pub use norm::{Norm, NormOptions};
pub use options::{Method, Progress, SpectrumOptions, Top};
pub use result::Spectrum;
pub use smallest::SmallestValue;

use crate::element::Accumulator;
use crate::error::{Error, Result};
use crate::operator::layer::Layer;
use crate::operator::{Expression, Operator};
use crate::tensor::Tensor;
use circular::solver::Accuracy;
use lanczos::{Found, Lanczos, Schedule};

/// A progress callback for who wants none.
fn silent(_: &Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

impl<T: Accumulator> Operator<T> {
    /// The `count` largest singular values with their vectors, until residuals are within 10⁻⁶ (`f32`) or
    /// 10⁻⁹ (`f64`) of the largest: [`Operator::spectrum`] with its defaults.
    ///
    /// ```
    /// use convmat::{Conv, Device, Tensor};
    /// let weight = Tensor::from_vec(&Device::Cpu, &[1, 1, 3], vec![1.0f64, -2.0, 1.0])?;
    /// let a = Conv::new([3]).padding([1]).operator(&weight, [100])?;
    /// let svd = a.svd(2)?;
    /// let expected = |k: f64| 4.0 * (k * std::f64::consts::PI / 202.0).sin().powi(2);
    /// assert!((svd.values[0] - expected(100.0)).abs() < 1e-9);
    /// assert!(svd.is_converged() && svd.residuals[1] < 4e-9);
    /// # Ok::<(), convmat::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Operator::spectrum`].
    pub fn svd(&self, count: usize) -> Result<Spectrum<T>> {
        self.spectrum(&SpectrumOptions::new().top(Top::Count(count)), &mut silent)
    }

    /// `count` approximate triplets after `iterations` power iterations: `torch.svd_lowrank(A, q, niter)`,
    /// with a residual for each. Where the spectrum is flat, as those of convolutions are, values come out
    /// percents too small.
    ///
    /// # Errors
    /// As [`Operator::spectrum`].
    pub fn svd_lowrank(&self, count: usize, iterations: usize) -> Result<Spectrum<T>> {
        let options = SpectrumOptions::new().top(Top::Count(count)).method(Method::Randomized);
        self.spectrum(&options.iterations(iterations), &mut silent)
    }

    /// The spectral norm, bracketed: [`Operator::norm`] with its defaults.
    ///
    /// # Errors
    /// As [`Operator::norm`].
    pub fn spectral_norm(&self) -> Result<Norm> {
        self.norm(&NormOptions::new(), &mut silent)
    }

    /// The exact spectrum of a circulant layer: one whose padding is circular (or that reads no padding),
    /// and whose stride divides its input, so that output times stride is input on every axis.
    ///
    /// # Errors
    /// [`Error::Invalid`], which says what is otherwise.
    pub fn circular(&self) -> Result<CircularSpectrum> {
        let Some(layer) = layer_of(self) else {
            let reason = "the circular method is for layers";
            return Err(Error::invalid("operator", self, reason));
        };
        let accuracy = if T::DTYPE.size() == 4 { Accuracy::Single } else { Accuracy::Double };
        CircularSpectrum::new(&layer, accuracy)
    }

    /// The largest singular values, or all of them, by the method that the options name. `progress` is
    /// called after each block of an iteration, and ends it with `ControlFlow::Break`: what has been found
    /// by then is returned, marked as it is.
    ///
    /// A value counts as converged when both residuals, computed from the vectors themselves, are within the
    /// tolerance. [`Method::Lanczos`] finds a multiple value as often as it occurs, where its cluster is not
    /// closer than the tolerance.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a count of 0 or above min(m, n), a tolerance that is not positive, a method
    /// that the operator does not allow, and elements that are not finite; what applying fails with.
    pub fn spectrum(
        &self,
        options: &SpectrumOptions,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Spectrum<T>> {
        let [m, n] = self.shape();
        let least = m.min(n);
        if least == 0 {
            return Err(norm::empty([m, n]));
        }
        let count = Spectrum::<T>::count([m, n], options.top);
        if count == 0 || count > least {
            let reason = format!("it must be at least 1 and at most min(m, n) = {least}");
            return Err(Error::invalid("number of singular values", count, reason));
        }
        let tolerance = options.relative_tolerance(T::DTYPE.unit_roundoff())?;
        match self.method(options)? {
            Method::Circular => {
                let found = self.circular()?;
                let (u, v) = match options.vectors {
                    true => {
                        let triplets = found.triplets(count)?;
                        (triplets.left, triplets.right)
                    }
                    false => (Vec::new(), Vec::new()),
                };
                let all = found.values().to_vec();
                self.exact(Method::Circular, dense::Dense { all, u, v }, count, options)
            }
            Method::Dense => {
                let found = dense::spectrum(self, count, options.vectors)?;
                self.exact(Method::Dense, found, count, options)
            }
            Method::Randomized => {
                let found = lowrank::low_rank(self, count, options.iterations, options.seed)?;
                self.approximate(Method::Randomized, found, tolerance)
            }
            Method::Auto | Method::Lanczos => {
                let schedule = Schedule::new(options, count, least, tolerance);
                let deadline = options.deadline.map(|after| Instant::now() + after);
                let run = |both, progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>| {
                    Lanczos::new(self, schedule, options.seed, both)?.run(deadline, progress)
                };
                let mut found = run(false, progress)?;
                // U is orthogonalised by the recurrence alone; where that was not enough, once more with
                // both sides.
                let limit = 1e4 * T::DTYPE.unit_roundoff();
                if found.orthogonality > limit && !found.interrupted {
                    let before = found.applications;
                    found = run(true, progress)?;
                    found.applications += before;
                }
                self.approximate(Method::Lanczos, found, tolerance)
            }
        }
    }

    /// The method that is meant.
    fn method(&self, options: &SpectrumOptions) -> Result<Method> {
        if options.method != Method::Auto {
            if options.top == Top::All
                && matches!(options.method, Method::Lanczos | Method::Randomized)
            {
                let reason = "all values take circular or dense";
                return Err(Error::invalid("method", options.method, reason));
            }
            return Ok(options.method);
        }
        if layer_of(self).is_some_and(|layer| circular::circulant(&layer).is_ok()) {
            return Ok(Method::Circular);
        }
        let small = dense::elements(self) <= dense::SMALL;
        Ok(if small || options.top == Top::All { Method::Dense } else { Method::Lanczos })
    }

    /// The answer of a method that gives all values up to rounding.
    fn exact(
        &self,
        method: Method,
        found: dense::Dense,
        count: usize,
        options: &SpectrumOptions,
    ) -> Result<Spectrum<T>> {
        let shape = self.shape();
        let dense::Dense { mut all, u, v } = found;
        without_noise::<T>(&mut all);
        let values = all[..count].to_vec();
        let (mut residuals, mut vectors, mut orthogonality) = (Vec::new(), None, 0.0);
        if options.vectors {
            let tensor = |data: Vec<f64>, len: usize| {
                let data = data.into_iter().map(T::from_f64).collect();
                Tensor::<T>::from_vec(self.device(), &[count, len], data)
            };
            let (u, v) = (tensor(u, shape[0])?, tensor(v, shape[1])?);
            residuals = self.residuals(&u, &v, &values)?;
            orthogonality = lanczos::defect(&u.view())?.max(lanczos::defect(&v.view())?);
            vectors = Some((u, v));
        }
        let (u, v) = vectors.unzip();
        Ok(Spectrum {
            method,
            shape,
            converged: vec![true; count],
            values,
            residuals,
            applications: 0,
            u,
            v,
            orthogonality,
            interrupted: false,
            all: Some(all),
            frobenius_norm: self.frobenius_norm()?,
        })
    }

    /// The larger of both residuals of each triplet.
    fn residuals(&self, u: &Tensor<T>, v: &Tensor<T>, values: &[f64]) -> Result<Vec<f64>> {
        use crate::operator::Direction::{Adjoint, Forward};
        let first = lanczos::residuals(self, Forward, v, u, values)?;
        let second = lanczos::residuals(self, Adjoint, u, v, values)?;
        Ok(first.into_iter().zip(second).map(|(f, s)| f.max(s)).collect())
    }

    /// The answer of an iteration.
    fn approximate(&self, method: Method, found: Found<T>, tolerance: f64) -> Result<Spectrum<T>> {
        let Found { mut values, residuals, u, v, applications, interrupted, orthogonality } = found;
        without_noise::<T>(&mut values);
        let largest = values.first().copied().unwrap_or(0.0);
        let residuals: Vec<f64> = residuals.into_iter().map(|[f, s]| f.max(s)).collect();
        let converged = residuals.iter().map(|&r| r <= tolerance * largest || largest == 0.0);
        Ok(Spectrum {
            method,
            shape: self.shape(),
            converged: converged.collect(),
            values,
            residuals,
            applications,
            u: Some(u),
            v: Some(v),
            orthogonality,
            interrupted,
            all: None,
            frobenius_norm: self.frobenius_norm()?,
        })
    }
}

/// The layer that an operator is, if it is one.
fn layer_of<T: Accumulator>(operator: &Operator<T>) -> Option<Layer> {
    match operator.expression() {
        Expression::Layer(layer, _) => Some(layer.clone()),
        Expression::Adjoint(inner) => {
            let layer = layer_of(inner)?;
            Some(Layer { transposed: !layer.transposed, ..layer })
        }
        _ => None,
    }
}

/// Makes those values 0 that rounding in `T` does not tell from it.
fn without_noise<T: Accumulator>(values: &mut [f64]) {
    let noise = 32.0 * T::DTYPE.unit_roundoff() * values.first().copied().unwrap_or(0.0);
    values.iter_mut().filter(|value| **value <= noise).for_each(|value| *value = 0.0);
}
