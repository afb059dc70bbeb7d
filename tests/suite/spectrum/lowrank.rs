//! The randomized method scatters as PyTorch's does.
//!
//! Both are random, so that only distributions can be compared. Of the number of values below a recorded
//! quantile the distribution is known exactly, whatever that of the values is: PyTorch's 10,000 and ours are
//! then exchangeable. Means are compared with their standard errors. Seeds are fixed, so the outcome is
//! the same each time; of all sets of seeds fewer than one in 10,000 would fail were both methods the same:
//! 252 quantiles at 10⁻⁷, 36 means at 6·10⁻⁷.

use convmat::{Device, Method, SpectrumOptions, Top};
use rayon::prelude::*;
use serde_json::Value;

use super::quiet;
use super::torch::{layer, numbers, recorded};

/// Seeds of ours for each pair of a sketch's size and a number of iterations.
const SEEDS: u64 = 500;

/// For each quantile, how often it may fail by chance.
const ALARM: f64 = 1e-7;

/// Standard errors that a mean may be off.
const ERRORS: f64 = 5.0;

/// The chance that at most, and that at least, `below` of `count` are below the `rank`-th smallest of
/// `recorded` others from the same distribution: a beta-binomial distribution.
fn tails(below: usize, count: usize, rank: usize, recorded: usize) -> [f64; 2] {
    let (a, b) = (rank as f64, (recorded + 1 - rank) as f64);
    let mut logarithms = vec![0.0f64];
    for j in 0..count {
        let (done, left) = (j as f64, (count - j) as f64);
        let ratio = left / (done + 1.0) * (a + done) / (b + left - 1.0);
        logarithms.push(logarithms[j] + ratio.ln());
    }
    let most = logarithms.iter().copied().fold(f64::MIN, f64::max);
    let weights: Vec<f64> = logarithms.iter().map(|l| (l - most).exp()).collect();
    let sum = |part: &[f64]| part.iter().sum::<f64>();
    [&weights[..=below], &weights[below..]].map(|part| sum(part) / sum(&weights))
}

#[test]
fn chances_are_those_of_small_cases() {
    // Two of ours among one other: all three places of the other are as likely.
    let [most, least] = tails(1, 2, 1, 1);
    assert!((most - 2.0 / 3.0).abs() < 1e-15 && (least - 2.0 / 3.0).abs() < 1e-15);
    // One of ours below the least of three others: it is the least of four.
    assert!((tails(1, 1, 1, 3)[1] - 0.25).abs() < 1e-15);
}

#[test]
fn values_scatter_as_those_of_pytorch() {
    let lowrank = recorded("lowrank.json");
    let layers = recorded("layers.json");
    let known = layers.as_array().unwrap().iter().find(|known| known["name"] == lowrank["layer"]);
    let operator = layer::<f64>(known.unwrap(), &Device::Cpu);
    let levels = numbers(&lowrank["levels"]);
    let runs = lowrank["runs"].as_array().unwrap();
    assert_eq!((runs.len(), levels.len()), (6, 7));
    for run in runs {
        let integer = |key: &str| run[key].as_u64().unwrap() as usize;
        let (vectors, iterations) = (integer("vectors"), integer("iterations"));
        let options = SpectrumOptions::new().top(Top::Count(vectors)).method(Method::Randomized);
        let options = options.iterations(iterations);
        let of_seed = |seed| {
            let options = options.clone().seed(seed);
            operator.spectrum(&options, &mut quiet).unwrap().values
        };
        let found: Vec<Vec<f64>> = (0..SEEDS).into_par_iter().map(of_seed).collect();
        check(run, &levels, integer("seeds"), &found, &format!("q {vectors}, niter {iterations}"));
    }
}

/// Values `[seed][value]` against the recorded quantiles and means.
fn check(run: &Value, levels: &[f64], recorded: usize, found: &[Vec<f64>], what: &str) {
    let count = found.len();
    let (means, deviations) = (numbers(&run["mean"]), numbers(&run["deviation"]));
    for (at, (mean, deviation)) in means.iter().zip(&deviations).enumerate() {
        let ours: Vec<f64> = found.iter().map(|values| values[at]).collect();
        let what = format!("{what}, value {at}");
        let error = deviation * (1.0 / count as f64 + 1.0 / recorded as f64).sqrt();
        let off = (ours.iter().sum::<f64>() / count as f64 - mean) / error;
        assert!(off.abs() <= ERRORS, "{what}: the mean is {off:.1} standard errors off");
        for (level, quantiles) in levels.iter().zip(run["quantiles"].as_array().unwrap()) {
            let quantile = quantiles[at].as_f64().unwrap();
            let below = ours.iter().filter(|&&value| value < quantile).count();
            // NumPy interpolates between the values of this rank and the next.
            let rank = (level * (recorded - 1) as f64) as usize + 1;
            let fewer = tails(below, count, rank, recorded)[0];
            let more = tails(below, count, rank + 1, recorded)[1];
            assert!(
                fewer.min(more) >= ALARM / 2.0,
                "{what}: {below} of {count} are below the quantile of {level}: {fewer:.1e} {more:.1e}"
            );
        }
    }
}
