//! What is averaged over batches: factors, second moments, and Shampoo's sums.

use super::matrix::{check_finite, matrix, product};
use super::moment::rotated_second_moment_into;
use super::options::KfacMethod;
use super::refresh::Prepared;
use super::state::{INPUT_FACTOR, KfacState, OUTPUT_FACTOR};
use crate::covariance::{CovarianceOptions, Update, WeightSharing};
use crate::device::Device;
use crate::element::{Accumulator, Element};
use crate::error::{Error, Result};
use crate::plan::PlanOptions;
use crate::tensor::{Tensor, TensorView};

/// Averages of the factors; of Shampoo, R and L.
#[derive(Debug)]
pub(super) struct Factors<F: Accumulator> {
    pub input: Tensor<F>,
    pub output: Tensor<F>,
    /// Examples so far.
    pub examples: u64,
}

/// Averages of squares of the examples' gradients, in the eigenvectors' basis or in none.
#[derive(Debug)]
pub(super) struct Moments<F: Accumulator> {
    pub values: Tensor<F>,
    /// Examples so far; 0 for eigenvalues' products, which the first batch replaces.
    pub examples: u64,
}

/// What a batch is taken into.
pub(super) enum Averaged<F: Accumulator> {
    Factors(Factors<F>),
    Moments(Moments<F>),
}

impl<F: Accumulator> Averaged<F> {
    pub fn split(self) -> (Option<Factors<F>>, Option<Moments<F>>) {
        match self {
            Averaged::Factors(factors) => (Some(factors), None),
            Averaged::Moments(moments) => (None, Some(moments)),
        }
    }
}

/// How a new average comes from the old one and a batch's sum: (old's weight, batch's).
fn weights(old: u64, new: usize, decay: Option<f64>) -> (f64, f64) {
    match decay {
        _ if old == 0 => (0.0, 1.0),
        Some(decay) => (decay, 1.0 - decay),
        None => {
            let (old, new) = (old as f64, new as f64);
            (old / (old + new), new / (old + new))
        }
    }
}

impl<F: Accumulator, const D: usize> KfacState<F, D> {
    /// What [`KfacState::accumulate`] makes of a batch: new factors, or a new diagonal.
    pub(super) fn averaged<T: Element>(
        &self,
        batch: usize,
        x: &TensorView<'_, T>,
        dy: &TensorView<'_, T>,
    ) -> Result<Averaged<F>> {
        Ok(match self.options.method {
            KfacMethod::Kfac | KfacMethod::Ekfac => {
                Averaged::Factors(self.with_covariances(batch, x, dy)?)
            }
            KfacMethod::Diagonal => {
                let old = self.moments.as_ref();
                Averaged::Moments(self.with_moments(batch, x, dy, None, old)?)
            }
            KfacMethod::Shampoo => {
                Averaged::Factors(self.with_gradient(x.clone(), dy.clone(), batch)?)
            }
        })
    }

    /// The factors with a batch taken in.
    fn with_covariances<T: Element>(
        &self,
        batch: usize,
        x: &TensorView<'_, T>,
        dy: &TensorView<'_, T>,
    ) -> Result<Factors<F>> {
        let (device, conv, old) = (&self.device, self.layer.conv(), self.factors.as_ref());
        let seen = old.map_or(0, |old| old.examples);
        let (decay, weight) = weights(seen, batch, self.options.decay);
        let (n, t) = (batch as f64, self.sizes.positions as f64);
        let terms = match self.options.sharing {
            WeightSharing::Expand => n * t,
            WeightSharing::Reduce => n * t * t,
        };
        let wanted = CovarianceOptions::new().sharing(self.options.sharing);
        let mut input = self.copy_of(old.map(|old| &old.input), &self.sizes.input_factor())?;
        let plan = PlanOptions::for_addresses(&[x.address(), input.view().address()]);
        let with_bias = wanted.bias(self.layer.has_bias());
        let plan = match self.layer.output_padding() {
            None => conv.plan_covariance::<T, F>(device, x.shape(), with_bias, plan)?,
            Some(extra) => {
                conv.plan_transposed_covariance::<T, F>(device, x.shape(), extra, with_bias, plan)?
            }
        };
        let update = Update::new(decay, weight / terms);
        plan.run(x, update, &mut input, &mut plan.make_workspace()?)?;
        check_finite(INPUT_FACTOR, input.view(), "are all elements of the input?")?;

        let mut output = self.copy_of(old.map(|old| &old.output), &self.sizes.output_factor())?;
        let plan = PlanOptions::for_addresses(&[dy.address(), output.view().address()]);
        let plan = conv.plan_gradient_covariance::<T, F>(device, dy.shape(), wanted, plan)?;
        let update = Update::new(decay, weight / n);
        plan.run(dy, update, &mut output, &mut plan.make_workspace()?)?;
        check_finite(OUTPUT_FACTOR, output.view(), "are all elements of the output gradient?")?;
        Ok(Factors { input, output, examples: seen.saturating_add(batch as u64) })
    }

    /// The second moments with a batch taken in.
    pub(super) fn with_moments<T: Element>(
        &self,
        batch: usize,
        x: &TensorView<'_, T>,
        dy: &TensorView<'_, T>,
        basis: Option<&Prepared<F>>,
        old: Option<&Moments<F>>,
    ) -> Result<Moments<F>> {
        let basis = match basis {
            Some(Prepared::Basis { input, output }) => Some([&input.vectors, &output.vectors]),
            _ => None,
        };
        let seen = old.map_or(0, |old| old.examples);
        let (decay, weight) = weights(seen, batch, self.options.decay);
        let mut values = self.copy_of(old.map(|old| &old.values), &self.sizes.gradient())?;
        let update = Update::new(decay, weight / batch as f64);
        rotated_second_moment_into(&self.layer, [x, dy], basis, update, &mut values)?;
        let hint = "are all elements of the input and of the output gradient?";
        check_finite("the second moments", values.view(), hint)?;
        Ok(Moments { values, examples: seen.saturating_add(batch as u64) })
    }

    /// Shampoo's R and L with the mean gradient of a batch taken in.
    fn with_gradient<T: Element>(
        &self,
        x: TensorView<'_, T>,
        dy: TensorView<'_, T>,
        batch: usize,
    ) -> Result<Factors<F>> {
        let old = self.factors.as_ref();
        let seen = old.map_or(0, |old| old.examples);
        let (decay, weight) = match self.options.decay {
            Some(_) => weights(seen, batch, self.options.decay),
            None => (1.0, 1.0),
        };
        let gradient = self.mean_gradient(x, dy)?.into_vec()?;
        let gradient = Tensor::from_vec(&Device::Cpu, &self.sizes.gradient(), gradient)?;
        let sum = |old: Option<&Tensor<F>>, shape: &[usize; 3], left: bool, name: &str| {
            let mut data = match old {
                Some(old) => old.view().to_vec()?,
                None => vec![F::ZERO; shape.iter().product()],
            };
            let len = shape[1] * shape[2];
            for group in 0..shape[0] {
                let dw = matrix(&gradient, group);
                let new = match left {
                    true => product(dw, dw.transpose())?,
                    false => product(dw.transpose(), dw)?,
                };
                let (decay, weight) = (F::from_f64(decay), F::from_f64(weight));
                for (data, new) in data[group * len..][..len].iter_mut().zip(new) {
                    *data = decay * *data + weight * new;
                }
            }
            let sum = Tensor::from_vec(&self.device, shape, data)?;
            let hint = "are all elements of the input and of the output gradient?";
            check_finite(name, sum.view(), hint)?;
            Ok::<_, Error>(sum)
        };
        Ok(Factors {
            input: sum(old.map(|o| &o.input), &self.sizes.input_factor(), false, INPUT_FACTOR)?,
            output: sum(old.map(|o| &o.output), &self.sizes.output_factor(), true, OUTPUT_FACTOR)?,
            examples: seen.saturating_add(batch as u64),
        })
    }

    /// A copy to be updated, or zeros.
    fn copy_of(&self, old: Option<&Tensor<F>>, shape: &[usize]) -> Result<Tensor<F>> {
        match old {
            Some(old) => old.view().to_tensor(),
            None => Tensor::zeros(&self.device, shape),
        }
    }

    /// The mean over the examples of their gradients, `[g, O/g, d]` on the state's device: the gradient that
    /// preconditioning is for. The convolutions run on the device; elements pass through the host to be
    /// put in order.
    ///
    /// # Errors
    /// As [`KfacState::accumulate`].
    pub fn mean_gradient<'x, 'y, T: Element>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        dy: impl Into<TensorView<'y, T>>,
    ) -> Result<Tensor<F>> {
        let (x, dy) = (x.into(), dy.into());
        let batch = self.layer.check_operands(&self.device, &x, &dy)?;
        let (x, dy) = (x.to_tensor()?.cast::<F>()?, dy.to_tensor()?.cast::<F>()?);
        let mut gradient = self.layer.gradient(&self.sizes, x.view(), dy.view())?;
        let batch = F::from_f64(batch as f64);
        gradient.iter_mut().for_each(|value| *value = *value / batch);
        Tensor::from_vec(&self.device, &self.sizes.gradient(), gradient)
    }
}
