//! K-FAC and EKFAC for the whole network: a state for every layer.

use convmat::{Device, KfacMethod, KfacOptions, KfacState, Result};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;

use crate::loss::Predictions;
use crate::network::{Gradient, Layer, Network, flat};
use crate::passes::{Passes, Tape};

/// Data is taken in at every one of the first steps, in which the network changes most, and then at every so many.
const FIRST_STEPS: u64 = 4;
const UPDATE_EVERY: u64 = 2;
/// Share of a factor that stays at an update.
const DECAY: f64 = 0.95;
/// The most that a step may change the predictions, as δᵀFδ, twice the divergence by the quadratic model.
const MOST_CHANGE: f64 = 0.01;

pub struct Curvature {
    method: KfacMethod,
    states: Vec<KfacState<f32, 2>>,
    random: Xoshiro256PlusPlus,
    steps: u64,
}

impl Curvature {
    pub fn new(
        device: &Device,
        network: &Network,
        method: KfacMethod,
        damping: f64,
        seed: u64,
    ) -> Result<Self> {
        let options = KfacOptions::new().method(method).damping(damping).decay(DECAY);
        let state = |layer: &Layer| KfacState::new(device, layer.for_kfac(), options);
        Ok(Curvature {
            method,
            states: network.layers.iter().map(state).collect::<Result<_>>()?,
            random: Xoshiro256PlusPlus::seed_from_u64(seed),
            steps: 0,
        })
    }

    /// Takes a batch into every layer's state, where the schedule wants one.
    ///
    /// The gradients are not those of the true labels, but of labels that are drawn from the predictions: the
    /// second moments of these are the Fisher matrix, the curvature of the predictions, while those of the true
    /// labels (the "empirical Fisher matrix") are no curvature, and are large where the network is wrong.
    pub fn observe(
        &mut self,
        network: &Network,
        passes: &mut Passes,
        tape: &Tape,
        predictions: &Predictions,
    ) -> Result<()> {
        let step = self.steps;
        self.steps += 1;
        if step >= FIRST_STEPS && !step.is_multiple_of(UPDATE_EVERY) {
            return Ok(());
        }
        let labels = predictions.sample(&mut self.random);
        let by_logits = predictions.gradient(&labels, tape.logits())?;
        let by_outputs = passes.backward(network, tape, by_logits)?;
        for (state, (x, dy)) in self.states.iter_mut().zip(tape.inputs.iter().zip(&by_outputs)) {
            state.accumulate(x, dy)?;
            state.refresh()?;
            if self.method == KfacMethod::Ekfac {
                state.accumulate_second_moments(x, dy)?;
            }
        }
        Ok(())
    }

    /// All layers' gradients, preconditioned, in a row, and made smaller where a step of them at this rate would
    /// change the predictions too much.
    pub fn precondition(&self, gradients: &[Gradient], rate: f64) -> Result<Vec<f32>> {
        let preconditioned = |(state, gradient): (&KfacState<f32, 2>, &Gradient)| {
            let (weight, bias) = state.precondition_weight(&gradient.weight, &gradient.bias)?;
            Ok(Gradient { weight, bias })
        };
        let layers: Result<Vec<Gradient>> =
            self.states.iter().zip(gradients).map(preconditioned).collect();
        let (mut direction, gradient) = (flat(&layers?)?, flat(gradients)?);
        // With δ = rate·F⁻¹g, δᵀFδ is rate²·gᵀF⁻¹g.
        let product: f64 =
            direction.iter().zip(&gradient).map(|(&d, &g)| f64::from(d) * f64::from(g)).sum();
        let scale = (MOST_CHANGE / (rate * rate * product)).sqrt().min(1.0) as f32;
        direction.iter_mut().for_each(|value| *value *= scale);
        Ok(direction)
    }
}
