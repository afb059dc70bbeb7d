//! The state of one layer: what is averaged, and what is made of it.

use super::convention::Convention;
use super::damping;
use super::eigen::{self, FactorEigen};
use super::inverse::Inverse;
use super::layer::{KfacLayer, Sizes};
use super::lowrank::LowRankBound;
use super::matrix::{check_finite, matrix, row, to_host, trace};
use super::moment::rotated_second_moment_into;
use super::options::{KfacMethod, KfacOptions};
use crate::covariance::{CovarianceOptions, Update, WeightSharing};
use crate::device::Device;
use crate::element::{Accumulator, Element};
use crate::error::{Error, Result};
use crate::plan::PlanOptions;
use crate::tensor::{Tensor, TensorView};

/// The names of the factors in messages.
pub(super) const INPUT_FACTOR: &str = "the input factor";
pub(super) const OUTPUT_FACTOR: &str = "the output factor";

/// The curvature of one layer's loss, approximated: see [`KfacMethod`].
///
/// With N examples, T output positions, a patch `a` (a 1 appended with a bias) and the gradient `g` of an
/// example's loss at each, the factors are
///
/// | | [`WeightSharing::Expand`] | [`WeightSharing::Reduce`] |
/// |---|---|---|
/// | A `[g, d, d]` | 1/(NT)·Σ_n Σ_t a·aᵀ | 1/(NT²)·Σ_n (Σ_t a)·(Σ_t a)ᵀ |
/// | G `[g, O/g, O/g]` | 1/N·Σ_n Σ_t g·gᵀ | 1/N·Σ_n (Σ_t g)·(Σ_t g)ᵀ |
///
/// (Grosse & Martens 2016; Eschenhagen et al. 2023), one pair per group, averaged over batches as
/// [`KfacOptions::decay`] says. `dy` is always that of the examples' own losses: for a loss that is a mean
/// over the batch, N times its gradient.
///
/// [`KfacState::accumulate`] takes data in, [`KfacState::refresh`] computes inverses or eigenvectors of what
/// was taken in so far, and [`KfacState::precondition`] applies those; [`KfacState::step`] does the first two
/// by a schedule. After an error, the state is what it was before the call.
///
/// Factors lie on the state's device, and covariances are computed there. They are read to the host to be
/// checked, decomposed and inverted; inverses and eigenvectors stay there, and so gradients that are
/// preconditioned pass through the host. On [`Device::Cpu`] nothing is copied from one to the other.
#[derive(Debug)]
pub struct KfacState<F: Accumulator, const D: usize> {
    pub(super) device: Device,
    pub(super) layer: KfacLayer<D>,
    pub(super) sizes: Sizes,
    pub(super) options: KfacOptions,
    pub(super) damping: f64,
    pub(super) steps: u64,
    pub(super) factors: Option<Factors<F>>,
    pub(super) moments: Option<Moments<F>>,
    pub(super) prepared: Option<Prepared<F>>,
}

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

/// What a refresh computes, on the host.
#[derive(Debug)]
pub(super) enum Prepared<F: Accumulator> {
    Inverses {
        input: Inverse<F>,
        output: Inverse<F>,
        /// `[g, 1]`.
        pi: Tensor<f64>,
    },
    Basis {
        input: FactorEigen<F>,
        output: FactorEigen<F>,
    },
    /// Inverse fourth roots.
    Roots {
        input: Tensor<F>,
        output: Tensor<F>,
    },
    /// The diagonal of the Fisher matrix, `[g, O/g, d]`.
    Diagonal(Tensor<F>),
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
    /// A state without data, on a device.
    ///
    /// # Errors
    /// When the layer's parameters do not fit one another (see [`crate::Conv::bind`] and
    /// [`crate::Conv::bind_transposed`]; padding of a transposed convolution must be of zeros), or an option
    /// is out of its range.
    pub fn new(device: &Device, layer: KfacLayer<D>, options: KfacOptions) -> Result<Self> {
        let sizes = layer.sizes()?;
        options.check()?;
        Ok(KfacState {
            device: device.clone(),
            layer,
            sizes,
            options,
            damping: options.damping,
            steps: 0,
            factors: None,
            moments: None,
            prepared: None,
        })
    }

    /// Takes one batch into the averages of the factors ([`KfacMethod::Diagonal`]: of the diagonal): `x`
    /// shaped like the layer's input, `dy` like its output, both on the state's device. See
    /// [`KfacOptions::decay`] for what averages are. Inverses and eigenvectors are not touched.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::DeviceMismatch`] for operands that do not fit the layer or one another;
    /// [`Error::Invalid`] for a batch without examples and for sums that are not finite;
    /// [`Error::ElementType`] when `F` holds less than sums over `T`; what computing fails with.
    pub fn accumulate<'x, 'y, T: Element>(
        &mut self,
        x: impl Into<TensorView<'x, T>>,
        dy: impl Into<TensorView<'y, T>>,
    ) -> Result<()> {
        let (x, dy) = (x.into(), dy.into());
        let batch = self.layer.check_operands(&self.device, &x, &dy)?;
        match self.options.method {
            KfacMethod::Kfac | KfacMethod::Ekfac => {
                self.factors = Some(self.with_covariances(batch, &x, &dy)?)
            }
            KfacMethod::Diagonal => {
                self.moments =
                    Some(self.with_moments(batch, &x, &dy, None, self.moments.as_ref())?)
            }
            KfacMethod::Shampoo => self.factors = Some(self.with_gradient(batch, x, dy)?),
        }
        Ok(())
    }

    /// [`KfacMethod::Ekfac`]: takes one batch into the average of the second moments
    /// Λ = 1/N·Σ_n (Q_Gᵀ·∇W_n·Q_A)∘² in the eigenvectors of the last refresh. The first batch after a refresh
    /// replaces what Λ was, as it belonged to another basis or, right after the refresh, is what K-FAC says:
    /// the products of the eigenvalues.
    ///
    /// # Errors
    /// As [`KfacState::accumulate`]; [`Error::Invalid`] for another method and before the first refresh.
    pub fn accumulate_second_moments<'x, 'y, T: Element>(
        &mut self,
        x: impl Into<TensorView<'x, T>>,
        dy: impl Into<TensorView<'y, T>>,
    ) -> Result<()> {
        let (x, dy) = (x.into(), dy.into());
        let batch = self.layer.check_operands(&self.device, &x, &dy)?;
        if self.options.method != KfacMethod::Ekfac {
            let reason = "only ekfac has second moments in a basis of their own";
            return Err(Error::invalid("method", self.options.method, reason));
        }
        let Some(basis) = self.prepared.as_ref() else { return Err(not_refreshed()) };
        self.moments =
            Some(self.with_moments(batch, &x, &dy, Some(basis), self.moments.as_ref())?);
        Ok(())
    }

    /// Inverses or eigenvectors of the factors so far, with the damping of now.
    ///
    /// # Errors
    /// [`Error::Invalid`] before any data, and where a damped factor is not positive definite: it names the
    /// factor and its group.
    pub fn refresh(&mut self) -> Result<()> {
        let (prepared, moments) = self.refreshed(self.factors.as_ref(), self.moments.as_ref())?;
        self.prepared = Some(prepared);
        if moments.is_some() {
            self.moments = moments;
        }
        Ok(())
    }

    /// One step of the schedule: at every [`KfacOptions::update_every`]-th call, from the first,
    /// [`KfacState::accumulate`]; at every [`KfacOptions::refresh_every`]-th, [`KfacState::refresh`]; then,
    /// where the first was done and the method is [`KfacMethod::Ekfac`],
    /// [`KfacState::accumulate_second_moments`].
    ///
    /// # Errors
    /// As those; nothing of the step is done then.
    pub fn step<'x, 'y, T: Element>(
        &mut self,
        x: impl Into<TensorView<'x, T>>,
        dy: impl Into<TensorView<'y, T>>,
    ) -> Result<()> {
        let (x, dy) = (x.into(), dy.into());
        let batch = self.layer.check_operands(&self.device, &x, &dy)?;
        let update = self.steps.is_multiple_of(self.options.update_every);
        let refresh = self.steps.is_multiple_of(self.options.refresh_every);
        let method = self.options.method;
        let (mut factors, mut moments, mut prepared) = (None, None, None);
        if update {
            match method {
                KfacMethod::Kfac | KfacMethod::Ekfac => {
                    factors = Some(self.with_covariances(batch, &x, &dy)?)
                }
                KfacMethod::Diagonal => {
                    moments =
                        Some(self.with_moments(batch, &x, &dy, None, self.moments.as_ref())?)
                }
                KfacMethod::Shampoo => {
                    factors = Some(self.with_gradient(batch, x.clone(), dy.clone())?)
                }
            }
        }
        if refresh {
            let factors = factors.as_ref().or(self.factors.as_ref());
            let (new, restarted) =
                self.refreshed(factors, moments.as_ref().or(self.moments.as_ref()))?;
            prepared = Some(new);
            moments = restarted.or(moments);
        }
        if update && method == KfacMethod::Ekfac {
            let basis = prepared.as_ref().or(self.prepared.as_ref());
            let old = moments.as_ref().or(self.moments.as_ref());
            // The first step refreshes.
            if basis.is_some() {
                moments = Some(self.with_moments(batch, &x, &dy, basis, old)?);
            }
        }
        self.factors = factors.or(self.factors.take());
        self.moments = moments.or(self.moments.take());
        self.prepared = prepared.or(self.prepared.take());
        self.steps += 1;
        Ok(())
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
    fn with_moments<T: Element>(
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
        let (layer, sizes) = (&self.layer, &self.sizes);
        rotated_second_moment_into(layer, sizes, [x, dy], basis, update, &mut values)?;
        let hint = "are all elements of the input and of the output gradient?";
        check_finite("the second moments", values.view(), hint)?;
        Ok(Moments { values, examples: seen.saturating_add(batch as u64) })
    }

    /// Shampoo's R and L with the mean gradient of a batch taken in.
    fn with_gradient<T: Element>(
        &self,
        batch: usize,
        x: TensorView<'_, T>,
        dy: TensorView<'_, T>,
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
                    true => super::matrix::product(dw, dw.transpose())?,
                    false => super::matrix::product(dw.transpose(), dw)?,
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

    /// What a refresh computes; of second moments, those of the new basis.
    fn refreshed(
        &self,
        factors: Option<&Factors<F>>,
        moments: Option<&Moments<F>>,
    ) -> Result<(Prepared<F>, Option<Moments<F>>)> {
        let no_data = || Error::invalid("examples", 0, "a refresh needs data: accumulate first");
        if self.options.method == KfacMethod::Diagonal {
            let moments = moments.ok_or_else(no_data)?;
            return Ok((Prepared::Diagonal(to_host(moments.values.view())?), None));
        }
        let factors = factors.ok_or_else(no_data)?;
        let (input, output) = (to_host(factors.input.view())?, to_host(factors.output.view())?);
        match self.options.method {
            KfacMethod::Kfac => Ok((self.inverses(&input, &output)?, None)),
            KfacMethod::Ekfac => {
                let input = eigen::decompose(INPUT_FACTOR, &input)?;
                let output = eigen::decompose(OUTPUT_FACTOR, &output)?;
                let mut products = Vec::with_capacity(self.sizes.gradient().iter().product());
                for group in 0..self.sizes.groups {
                    let (rows, columns) = (row(&output.values, group), row(&input.values, group));
                    rows.iter().for_each(|&g| products.extend(columns.iter().map(|&a| g * a)));
                }
                let values = Tensor::from_vec(&self.device, &self.sizes.gradient(), products)?;
                let basis = Prepared::Basis { input, output };
                Ok((basis, Some(Moments { values, examples: 0 })))
            }
            _ => {
                let root = |name, factor| eigen::power(name, factor, self.damping, -0.25);
                let (input, output) = (root(INPUT_FACTOR, &input)?, root(OUTPUT_FACTOR, &output)?);
                Ok((Prepared::Roots { input, output }, None))
            }
        }
    }

    /// K-FAC's inverses, of factors on the host.
    fn inverses(&self, input: &Tensor<F>, output: &Tensor<F>) -> Result<Prepared<F>> {
        let sizes = &self.sizes;
        let scales = self.options.convention.scales(sizes.positions);
        let shared = (self.damping / scales.product).sqrt();
        let pi: Vec<f64> = (0..sizes.groups)
            .map(|group| {
                let mean = |factor: &Tensor<F>, scale: f64, rows: usize| {
                    scale * trace(matrix(factor, group)) / rows as f64
                };
                match self.options.pi_correction {
                    true => damping::pi(
                        mean(input, scales.input, sizes.rows),
                        mean(output, scales.output, sizes.outputs),
                    ),
                    false => 1.0,
                }
            })
            .collect();
        let shifts = |of: fn(f64, f64) -> f64| pi.iter().map(|&pi| of(shared, pi)).collect();
        let (to_input, to_output): (Vec<f64>, Vec<f64>) =
            (shifts(|shared, pi| shared * pi), shifts(|shared, pi| shared / pi));
        let rank = self.options.rank;
        Ok(Prepared::Inverses {
            input: Inverse::new(INPUT_FACTOR, input, scales.input, &to_input, rank)?,
            output: Inverse::new(OUTPUT_FACTOR, output, scales.output, &to_output, rank)?,
            pi: Tensor::from_vec(&Device::Cpu, &[sizes.groups, 1], pi)?,
        })
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

    /// Another damping λ, from the next refresh on ([`KfacMethod::Ekfac`] and [`KfacMethod::Diagonal`]: from
    /// the next gradient on).
    ///
    /// # Errors
    /// [`Error::Invalid`] unless it is positive and finite.
    pub fn set_damping(&mut self, damping: f64) -> Result<()> {
        damping::check(damping)?;
        self.damping = damping;
        Ok(())
    }

    /// The damping λ.
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// Where the factors are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The layer.
    pub fn layer(&self) -> &KfacLayer<D> {
        &self.layer
    }

    /// What the state was made with.
    pub fn options(&self) -> &KfacOptions {
        &self.options
    }

    /// Calls of [`KfacState::step`].
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Examples that the factors, or the diagonal, are averages over; with a decay, all that were taken in.
    pub fn examples(&self) -> u64 {
        match self.options.method {
            KfacMethod::Diagonal => self.moments.as_ref().map_or(0, |moments| moments.examples),
            _ => self.factors.as_ref().map_or(0, |factors| factors.examples),
        }
    }

    /// A, or Shampoo's R: `[g, d, d]` on the state's device; `None` before any data.
    pub fn input_factor(&self) -> Option<&Tensor<F>> {
        self.factors.as_ref().map(|factors| &factors.input)
    }

    /// G, or Shampoo's L: `[g, O/g, O/g]` on the state's device; `None` before any data.
    pub fn output_factor(&self) -> Option<&Tensor<F>> {
        self.factors.as_ref().map(|factors| &factors.output)
    }

    /// A and G in another convention's scalings; elements pass through the host.
    ///
    /// # Errors
    /// [`Error::Invalid`] before any data, for [`KfacMethod::Shampoo`], and for a convention of factors that
    /// are shared otherwise.
    pub fn factors_in(&self, convention: Convention) -> Result<(Tensor<F>, Tensor<F>)> {
        let method = self.options.method;
        if matches!(method, KfacMethod::Shampoo | KfacMethod::Diagonal) {
            return Err(Error::invalid("method", method, "it has no factors A and G"));
        }
        convention.check(self.options.sharing)?;
        let factors = self.some_factors()?;
        let scales = convention.scales(self.sizes.positions);
        let scaled = |factor: &Tensor<F>, scale: f64| {
            let mut data = factor.view().to_vec()?;
            let scale = F::from_f64(scale);
            data.iter_mut().for_each(|value| *value = scale * *value);
            Tensor::from_vec(&self.device, factor.shape(), data)
        };
        Ok((scaled(&factors.input, scales.input)?, scaled(&factors.output, scales.output)?))
    }

    /// The eigenvalues and eigenvectors of the input factor as it is now.
    ///
    /// # Errors
    /// [`Error::Invalid`] before any data.
    pub fn decompose_input_factor(&self) -> Result<FactorEigen<F>> {
        eigen::decompose(INPUT_FACTOR, &to_host(self.some_factors()?.input.view())?)
    }

    /// The eigenvalues and eigenvectors of the output factor as it is now.
    ///
    /// # Errors
    /// As [`KfacState::decompose_input_factor`].
    pub fn decompose_output_factor(&self) -> Result<FactorEigen<F>> {
        eigen::decompose(OUTPUT_FACTOR, &to_host(self.some_factors()?.output.view())?)
    }

    fn some_factors(&self) -> Result<&Factors<F>> {
        let reason = "there are no factors before accumulate";
        self.factors.as_ref().ok_or_else(|| Error::invalid("examples", 0, reason))
    }

    /// Those of the input and of the output factor that [`KfacMethod::Ekfac`] preconditions in: as they were
    /// at the last refresh.
    pub fn basis(&self) -> Option<(&FactorEigen<F>, &FactorEigen<F>)> {
        match &self.prepared {
            Some(Prepared::Basis { input, output }) => Some((input, output)),
            _ => None,
        }
    }

    /// Λ of [`KfacMethod::Ekfac`] in the basis of the last refresh, or the diagonal of
    /// [`KfacMethod::Diagonal`]: `[g, O/g, d]` on the state's device.
    pub fn second_moments(&self) -> Option<&Tensor<F>> {
        self.moments.as_ref().map(|moments| &moments.values)
    }

    /// π of each group at the last refresh of [`KfacMethod::Kfac`], as its convention has it.
    pub fn pi(&self) -> Option<&[f64]> {
        match &self.prepared {
            Some(Prepared::Inverses { pi, .. }) => pi.as_slice(),
            _ => None,
        }
    }

    /// How far the input and the output factor were, at the last refresh, from what was inverted in their
    /// place: a bound for each group, `None` for a factor that was inverted itself.
    pub fn low_rank_bounds(&self) -> [Option<Vec<LowRankBound>>; 2] {
        match &self.prepared {
            Some(Prepared::Inverses { input, output, .. }) => [input.bounds(), output.bounds()],
            _ => [None, None],
        }
    }
}

pub(super) fn not_refreshed() -> Error {
    Error::invalid("refreshes", 0, "there must have been one: see KfacState::refresh")
}
