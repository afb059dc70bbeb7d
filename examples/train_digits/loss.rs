//! Softmax and its cross-entropy.

use convmat::{Result, Tensor};
use rand_distr::{Distribution, StandardUniform};
use rand_xoshiro::Xoshiro256PlusPlus;

use crate::network::{CLASSES, host};

/// What the network thinks of a batch: for every example, the probability of each class.
pub struct Predictions(Vec<[f64; CLASSES]>);

/// How good predictions are: the mean cross-entropy in nats, and the share that is right.
#[derive(Clone, Copy, Debug, Default)]
pub struct Score {
    pub loss: f64,
    pub accuracy: f64,
}

impl Predictions {
    pub fn new(logits: &Tensor<f32>) -> Result<Self> {
        let softmax = |logits: &[f32]| {
            let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let powers: [f64; CLASSES] = std::array::from_fn(|c| f64::from(logits[c] - most).exp());
            let sum: f64 = powers.iter().sum();
            powers.map(|power| power / sum)
        };
        Ok(Predictions(host(logits)?.chunks_exact(CLASSES).map(softmax).collect()))
    }

    pub fn score(&self, labels: &[usize]) -> Score {
        let mut score = Score::default();
        for (probabilities, &label) in self.0.iter().zip(labels) {
            // The least normal number stands for what has vanished.
            score.loss -= probabilities[label].max(f64::MIN_POSITIVE).ln();
            let best = (0..CLASSES).max_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b]));
            score.accuracy += f64::from(best == Some(label));
        }
        let count = self.0.len() as f64;
        Score { loss: score.loss / count, accuracy: score.accuracy / count }
    }

    /// The gradients of the examples' own losses by the logits, `[N, 10, 1, 1]`: not divided by N.
    pub fn gradient(&self, labels: &[usize], like: &Tensor<f32>) -> Result<Tensor<f32>> {
        let rows = self.0.iter().zip(labels).flat_map(|(probabilities, &label)| {
            let entry = move |c| (probabilities[c] - f64::from(c == label)) as f32;
            (0..CLASSES).map(entry)
        });
        Tensor::from_vec(&like.device(), like.shape(), rows.collect())
    }

    /// A label for every example, drawn by the probabilities.
    pub fn sample(&self, random: &mut Xoshiro256PlusPlus) -> Vec<usize> {
        let draw = |probabilities: &[f64; CLASSES]| {
            let mut left: f64 = StandardUniform.sample(random);
            let below = |probability: &f64| {
                left -= probability;
                left < 0.0
            };
            probabilities.iter().position(below).unwrap_or(CLASSES - 1)
        };
        self.0.iter().map(draw).collect()
    }
}
