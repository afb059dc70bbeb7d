//! What is tuned of every optimiser: the grids, and what was chosen from them.
//!
//! `train_digits --tune` searches: every entry of a grid is trained from each of [`SEEDS`] until it has reached the
//! training loss that the example is about, or for [`STEPS`] steps, which then count. Of the entries whose mean is
//! within one standard error of the least, the most damped is taken. [`chosen`] is what it found.

use convmat::KfacMethod;

use crate::optimiser::{Method, Recipe};

/// Steps of a trial, at most, the same for all optimisers.
pub const STEPS: u64 = 100;
/// Seeds of trials, none of which is that of a default run.
pub const SEEDS: [u64; 4] = [101, 102, 103, 104];

pub const SGD: Method = Method::Momentum;
pub const ADAM: Method = Method::Adam;
pub const KFAC: Method = Method::Preconditioned(KfacMethod::Kfac);
pub const EKFAC: Method = Method::Preconditioned(KfacMethod::Ekfac);

/// The best of each grid, in the order in which they run.
pub fn chosen() -> [Recipe; 4] {
    [
        Recipe { method: SGD, rate: 0.2, decay: 1.0, damping: 0.0 },
        Recipe { method: ADAM, rate: 0.05, decay: 1.0, damping: 0.0 },
        Recipe { method: KFAC, rate: 0.1, decay: 0.95, damping: 0.0003 },
        Recipe { method: EKFAC, rate: 0.1, decay: 0.95, damping: 0.003 },
    ]
}

/// All entries of an optimiser's grid.
pub fn grid(method: Method) -> Vec<Recipe> {
    let (rates, dampings): (&[f64], &[f64]) = match method {
        Method::Momentum => (&[0.03, 0.1, 0.2, 0.3], &[0.0]),
        Method::Adam => (&[0.01, 0.03, 0.05, 0.1], &[0.0]),
        Method::Preconditioned(_) => (&[0.1, 0.3], &[0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01]),
    };
    let decays: &[f64] = match method {
        Method::Momentum | Method::Adam => &[1.0, 0.98, 0.95],
        // Without one they never settle.
        Method::Preconditioned(_) => &[0.98, 0.95],
    };
    let entry =
        |rate, decay| dampings.iter().map(move |&damping| Recipe { method, rate, decay, damping });
    let entries = |&rate| decays.iter().flat_map(move |&decay| entry(rate, decay));
    rates.iter().flat_map(entries).collect()
}
