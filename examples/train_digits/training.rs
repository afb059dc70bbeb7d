//! Training, and what is recorded of it.

use std::time::{Duration, Instant};

use convmat::{Device, Result, Tensor};

use crate::data::{Batches, Digits};
use crate::loss::{Predictions, Score};
use crate::network::Network;
use crate::optimiser::{Optimiser, Recipe};
use crate::passes::Passes;

/// Examples of a batch.
pub const BATCH: usize = 128;

/// How good the network was after so many steps, and so many seconds of them.
#[derive(Clone, Copy)]
pub struct Row {
    pub step: u64,
    pub seconds: f64,
    pub train: Score,
    pub test: Score,
}

/// What to train on, and where.
pub struct Setting<'a> {
    pub device: &'a Device,
    pub train: &'a Digits,
    pub test: &'a Digits,
    /// Of the weights, the batches and the labels drawn.
    pub seed: u64,
}

/// All of some digits on the device, and the plans to classify them.
struct Exam<'a> {
    images: Tensor<f32>,
    labels: &'a [usize],
    passes: Passes,
}

impl<'a> Exam<'a> {
    fn new(device: &Device, network: &Network, digits: &'a Digits) -> Result<Self> {
        let passes = Passes::new(device, network, digits.len())?;
        Ok(Exam { images: digits.tensor(device)?, labels: &digits.labels, passes })
    }

    fn score(&mut self, network: &Network) -> Result<Score> {
        let tape = self.passes.forward(network, self.images.view().to_tensor()?)?;
        Ok(Predictions::new(tape.logits())?.score(self.labels))
    }
}

/// A run of one optimiser from random weights. Only its steps count as seconds, not the looking on.
pub fn train(
    setting: &Setting<'_>,
    recipe: Recipe,
    steps: u64,
    look_every: u64,
    mut tell: impl FnMut(&Row),
) -> Result<Vec<Row>> {
    let Setting { device, train, test, seed } = *setting;
    let mut network = Network::new(device, seed)?;
    let mut passes = Passes::new(device, &network, BATCH)?;
    let mut optimiser = Optimiser::new(device, &network, recipe, seed)?;
    let mut batches = Batches::new(train, BATCH, seed);
    let mut exams = [Exam::new(device, &network, train)?, Exam::new(device, &network, test)?];

    let (mut rows, mut elapsed) = (Vec::new(), Duration::ZERO);
    for step in 0..=steps {
        if step > 0 {
            let batch = batches.draw();
            let start = Instant::now();
            optimiser.step(&mut network, &mut passes, batch.tensor(device)?, &batch.labels)?;
            device.synchronize()?;
            elapsed += start.elapsed();
        }
        if step % look_every == 0 || step == steps {
            let [train, test] = &mut exams;
            let (train, test) = (train.score(&network)?, test.score(&network)?);
            let row = Row { step, seconds: elapsed.as_secs_f64(), train, test };
            tell(&row);
            rows.push(row);
        }
    }
    Ok(rows)
}
