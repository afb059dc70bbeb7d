//! The state of one layer: what is averaged, and what is made of it.

use super::average::{Factors, Moments};
use super::convention::Convention;
use super::damping;
use super::eigen::{self, FactorEigen};
use super::layer::{KfacLayer, Sizes};
use super::lowrank::LowRankBound;
use super::matrix::to_host;
use super::options::{KfacMethod, KfacOptions};
use super::refresh::{Prepared, not_refreshed};
use crate::device::Device;
use crate::element::{Accumulator, Element};
use crate::error::{Error, Result};
use crate::tensor::{Tensor, TensorView};

/// The names of the factors in messages.
pub(super) const INPUT_FACTOR: &str = "the input factor";
pub(super) const OUTPUT_FACTOR: &str = "the output factor";

/// The curvature of one layer's loss, approximated: see [`KfacMethod`].
///
/// With N examples, T output positions, a patch `a` (a 1 appended with a bias) and the gradient `g` of an
/// example's loss at each, the factors are
///
/// | | [`crate::WeightSharing::Expand`] | [`crate::WeightSharing::Reduce`] |
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
        let (factors, moments) = self.averaged(batch, &x, &dy)?.split();
        self.factors = factors.or(self.factors.take());
        self.moments = moments.or(self.moments.take());
        Ok(())
    }

    /// [`KfacMethod::Ekfac`]: takes one batch into the average of the second moments
    /// Λ = 1/N·Σ_n (Q_Gᵀ·∇W_n·Q_A)∘² in the eigenvectors of the last refresh. The first batch replaces what
    /// Λ is until then and K-FAC's: the products of the eigenvalues. A later [`KfacState::refresh`] carries Λ
    /// over to the new eigenvectors, as U_G∘²·Λ·(U_A∘²)ᵀ with U = Qᵀ·Q_old, so that the average goes on.
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
        let (factors, mut moments) = match update {
            true => self.averaged(batch, &x, &dy)?.split(),
            false => (None, None),
        };
        let mut prepared = None;
        if refresh {
            let factors = factors.as_ref().or(self.factors.as_ref());
            let (new, carried) =
                self.refreshed(factors, moments.as_ref().or(self.moments.as_ref()))?;
            prepared = Some(new);
            moments = carried.or(moments);
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
        // A file may say any number.
        self.steps = self.steps.saturating_add(1);
        Ok(())
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
