//! Training, and what is recorded of it.

use std::time::{Duration, Instant};

use convmat::{Device, Result, Tensor};

use crate::data::{Batches, Digits};
use crate::loss::{Predictions, Score};
use crate::network::Network;
use crate::optimiser::{Optimiser, Recipe};
use crate::passes::Passes;

/// Examples of a batch.
pub const BATCH: usize = 256;
/// Steps from one look at all digits to the next.
pub const LOOK_EVERY: u64 = 2;

/// How good the network is after so many steps, and so many seconds of them.
#[derive(Clone, Copy, Default)]
pub struct Row {
    pub step: u64,
    pub seconds: f64,
    pub train: Score,
    pub test: Score,
}

/// All of some digits on a device, and the plans to classify them.
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

/// Trains from random weights; `each_step` is called after every step. The seed is that of the weights, of the
/// batches and of the labels drawn for K-FAC. Only steps count as seconds, not the looks. Ends at the first look that
/// finds a training loss of at most `until`.
pub fn train(
    device: &Device,
    [train, test]: &[Digits; 2],
    recipe: Recipe,
    seed: u64,
    steps: u64,
    until: Option<f64>,
    mut each_step: impl FnMut(),
) -> Result<Vec<Row>> {
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
            each_step();
        }
        if step.is_multiple_of(LOOK_EVERY) || step == steps {
            let [train, test] = &mut exams;
            let (train, test) = (train.score(&network)?, test.score(&network)?);
            rows.push(Row { step, seconds: elapsed.as_secs_f64(), train, test });
            if until.is_some_and(|loss| train.loss <= loss) {
                break;
            }
        }
    }
    Ok(rows)
}

/// The training loss of `steps` steps' batches, each before its step, and of the last one after it, with little
/// batches: to compare devices by.
pub fn losses(
    device: &Device,
    train: &Digits,
    recipe: Recipe,
    seed: u64,
    steps: usize,
) -> Result<Vec<f64>> {
    const FEW: usize = 16;
    let mut network = Network::new(device, seed)?;
    let mut passes = Passes::new(device, &network, FEW)?;
    let mut optimiser = Optimiser::new(device, &network, recipe, seed)?;
    let mut batches = Batches::new(train, FEW, seed);
    let (mut losses, mut last) = (Vec::new(), batches.draw());
    for step in 0..steps {
        if step > 0 {
            last = batches.draw();
        }
        let images = last.tensor(device)?;
        losses.push(optimiser.step(&mut network, &mut passes, images, &last.labels)?.loss);
    }
    let tape = passes.forward(&network, last.tensor(device)?)?;
    losses.push(Predictions::new(tape.logits())?.score(&last.labels).loss);
    Ok(losses)
}
