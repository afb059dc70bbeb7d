//! The four optimisers: two rules for a step, and two preconditioners to put before the first of them.

use std::fmt;

use convmat::{Device, KfacMethod, Result, Tensor};

use crate::curvature::Curvature;
use crate::loss::{Predictions, Score};
use crate::network::{Network, flat};
use crate::passes::Passes;

/// Share of the last step that stays in the next: of momentum, and of Adam's mean.
const MOMENTUM: f64 = 0.9;
/// Decay of Adam's mean square, and what is added to its root.
const SQUARES: f64 = 0.999;
const EPSILON: f64 = 1e-8;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    Momentum,
    Adam,
    /// Momentum of gradients that were preconditioned.
    Preconditioned(KfacMethod),
}

/// An optimiser and what was tuned of it.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    pub method: Method,
    pub rate: f64,
    /// What the rate is multiplied by after every step.
    pub decay: f64,
    /// λ of what preconditions.
    pub damping: f64,
}

pub struct Optimiser {
    recipe: Recipe,
    curvature: Option<Curvature>,
    steps: i32,
    /// Running sums or means of gradients and, of Adam, of their squares.
    first: Vec<f32>,
    second: Vec<f32>,
}

impl Optimiser {
    pub fn new(device: &Device, network: &Network, recipe: Recipe, seed: u64) -> Result<Self> {
        let curvature = match recipe.method {
            Method::Preconditioned(method) => {
                Some(Curvature::new(device, network, method, recipe.damping, seed)?)
            }
            _ => None,
        };
        Ok(Optimiser { recipe, curvature, steps: 0, first: Vec::new(), second: Vec::new() })
    }

    /// One step on a batch; returns how good the network was on it before.
    pub fn step(
        &mut self,
        network: &mut Network,
        passes: &mut Passes,
        images: Tensor<f32>,
        labels: &[usize],
    ) -> Result<Score> {
        let tape = passes.forward(network, images)?;
        let predictions = Predictions::new(tape.logits())?;
        let by_logits = predictions.gradient(labels, tape.logits())?;
        let by_outputs = passes.backward(network, &tape, by_logits)?;
        let gradients = passes.gradients(network, &tape, &by_outputs)?;
        let direction = match &mut self.curvature {
            None => flat(&gradients)?,
            Some(curvature) => {
                curvature.observe(network, passes, &tape, &predictions)?;
                curvature.precondition(&gradients, self.recipe.rate)?
            }
        };
        let step = self.rule(&direction);
        network.subtract(&step)?;
        Ok(predictions.score(labels))
    }

    /// What to subtract from the parameters.
    fn rule(&mut self, direction: &[f32]) -> Vec<f32> {
        self.steps += 1;
        self.first.resize(direction.len(), 0.0);
        let rate = self.recipe.rate * self.recipe.decay.powi(self.steps - 1);
        let momentum = MOMENTUM as f32;
        if self.recipe.method != Method::Adam {
            let entries = self.first.iter_mut().zip(direction).map(|(velocity, d)| {
                *velocity = momentum * *velocity + d;
                rate as f32 * *velocity
            });
            return entries.collect();
        }
        self.second.resize(direction.len(), 0.0);
        // Both means start at 0, and are too small by these factors.
        let unbiased = [MOMENTUM, SQUARES].map(|decay| 1.0 - decay.powi(self.steps));
        let (scale, squares) = ((rate / unbiased[0]) as f32, SQUARES as f32);
        let moments = self.first.iter_mut().zip(&mut self.second).zip(direction);
        let entries = moments.map(|((mean, square), d)| {
            *mean = momentum * *mean + (1.0 - momentum) * d;
            *square = squares * *square + (1.0 - squares) * d * d;
            scale * *mean / ((*square / unbiased[1] as f32).sqrt() + EPSILON as f32)
        });
        entries.collect()
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Method::Momentum => "SGD with momentum",
            Method::Adam => "Adam",
            Method::Preconditioned(KfacMethod::Ekfac) => "EKFAC",
            Method::Preconditioned(_) => "K-FAC",
        })
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: rate {}", self.method, self.rate)?;
        if self.decay != 1.0 {
            write!(f, "·{}^step", self.decay)?;
        }
        match self.method {
            Method::Preconditioned(_) => write!(f, ", damping {}", self.damping),
            _ => Ok(()),
        }
    }
}
