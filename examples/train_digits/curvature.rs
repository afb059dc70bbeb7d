//! K-FAC and EKFAC for the whole network: a state for every layer.

use convmat::{Device, KfacMethod, KfacOptions, KfacState, Result};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;

use crate::loss::Predictions;
use crate::network::{Gradient, Network, flat};
use crate::passes::{Passes, Tape};

/// The first steps all take data in and refresh, as curvature changes fastest there; later ones every so many.
const EVERY_STEP_UNTIL: u64 = 10;
const UPDATE_EVERY: u64 = 2;
/// Of the updates, how many come to one refresh.
const REFRESH_EVERY: u64 = 4;
/// Of running averages over the batches.
const DECAY: f64 = 0.9;
/// The most that a step may change the predictions, as a divergence in nats by the quadratic model.
const MOST_DIVERGENCE: f64 = 1e-2;

pub struct Curvature {
    states: Vec<KfacState<f32, 2>>,
    random: Xoshiro256PlusPlus,
    steps: u64,
    method: KfacMethod,
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
        let state = |layer: &crate::network::Layer| KfacState::new(device, layer.for_kfac(), options);
        Ok(Curvature {
            states: network.layers.iter().map(state).collect::<Result<_>>()?,
            random: Xoshiro256PlusPlus::seed_from_u64(seed),
            steps: 0,
            method,
        })
    }

    /// Takes a batch into the factors of every layer, where the schedule wants one.
    ///
    /// The gradients are those of labels that the network itself would give: drawn so, their second moments are
    /// the Fisher matrix, which is the curvature of the predictions and positive semidefinite. Those of the true
    /// labels (the "empirical Fisher matrix") vanish as the network learns them, and with them the damping's
    /// scale.
    pub fn observe(
        &mut self,
        network: &Network,
        passes: &mut Passes,
        tape: &Tape,
        predictions: &Predictions,
    ) -> Result<()> {
        let early = self.steps < EVERY_STEP_UNTIL;
        let update = early || self.steps.is_multiple_of(UPDATE_EVERY);
        let refresh = early || self.steps.is_multiple_of(UPDATE_EVERY * REFRESH_EVERY);
        self.steps += 1;
        if !update {
            return Ok(());
        }
        let labels = predictions.sample(&mut self.random);
        let by_logits = predictions.gradient(&labels, tape.logits())?;
        let by_outputs = passes.backward(network, tape, by_logits)?;
        for (state, (x, dy)) in self.states.iter_mut().zip(tape.inputs.iter().zip(&by_outputs)) {
            state.accumulate(x, dy)?;
            if refresh {
                state.refresh()?;
            }
            if self.method == KfacMethod::Ekfac {
                state.accumulate_second_moments(x, dy)?;
            }
        }
        Ok(())
    }

    /// All layers' gradients, preconditioned, in a row.
    pub fn precondition(&self, gradients: &[Gradient], rate: f64) -> Result<Vec<f32>> {
        let preconditioned = |(state, gradient): (&KfacState<f32, 2>, &Gradient)| {
            let (weight, bias) = state.precondition_weight(&gradient.weight, &gradient.bias)?;
            Ok(Gradient { weight, bias })
        };
        let all: Vec<Gradient> =
            self.states.iter().zip(gradients).map(preconditioned).collect::<Result<_>>()?;
        let (mut step, gradient) = (flat(&all)?, flat(gradients)?);
        // δᵀFδ of the step δ = rate·F⁻¹g is rate²·gᵀF⁻¹g.
        let product: f64 = step.iter().zip(&gradient).map(|(s, g)| f64::from(s * g)).sum();
        let scale = (MOST_DIVERGENCE / (rate * rate * product)).sqrt().min(1.0);
        step.iter_mut().for_each(|value| *value *= scale as f32);
        Ok(step)
    }
}
