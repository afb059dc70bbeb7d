//! What is printed.

use crate::optimiser::Recipe;
use crate::recipes::ADAM;
use crate::training::Row;

/// The training loss, in nats, that the optimisers race to.
pub const TARGET: f64 = 0.02;

/// The runs of one optimiser, one from each seed, with a row for each of the same steps.
pub struct Race {
    pub recipe: Recipe,
    pub runs: Vec<Vec<Row>>,
}

impl Race {
    /// The means over the seeds, row by row.
    pub fn mean(&self) -> Vec<Row> {
        let count = self.runs.len() as f64;
        let mean = |at: usize| {
            let mean = |of: &dyn Fn(&Row) -> f64| {
                self.runs.iter().map(|run| of(&run[at])).sum::<f64>() / count
            };
            let mut row = self.runs[0][at];
            row.seconds = mean(&|row| row.seconds);
            row.train.loss = mean(&|row| row.train.loss);
            row.train.accuracy = mean(&|row| row.train.accuracy);
            row.test.loss = mean(&|row| row.test.loss);
            row.test.accuracy = mean(&|row| row.test.accuracy);
            row
        };
        (0..self.runs[0].len()).map(mean).collect()
    }

    /// For each seed, where the target was first seen to be reached.
    fn arrivals(&self) -> Vec<Option<&Row>> {
        self.runs.iter().map(|run| run.iter().find(|row| row.train.loss <= TARGET)).collect()
    }

    /// Mean steps and seconds to the target, if all seeds came there.
    fn to_target(&self) -> Option<(f64, f64)> {
        let arrived: Vec<&Row> = self.arrivals().into_iter().collect::<Option<_>>()?;
        let count = arrived.len() as f64;
        let steps = arrived.iter().map(|row| row.step as f64).sum::<f64>() / count;
        Some((steps, arrived.iter().map(|row| row.seconds).sum::<f64>() / count))
    }

    /// Means over the seeds, about a dozen rows.
    pub fn print_table(&self) {
        let rows = self.mean();
        println!("{}", self.recipe);
        println!("                      training            test");
        println!("   step   seconds     loss  accuracy      loss  accuracy");
        let every = (rows.len() / 12).max(1);
        for (at, Row { step, seconds, train, test }) in rows.iter().enumerate() {
            if at % every == 0 || at + 1 == rows.len() {
                let accuracy = [train, test].map(|score| 100.0 * score.accuracy);
                println!(
                    "  {step:>5}  {seconds:>8.2}  {:>7.4}  {:>7.2}%   {:>7.4}  {:>7.2}%",
                    train.loss, accuracy[0], test.loss, accuracy[1]
                );
            }
        }
        println!();
    }
}

/// Steps and seconds to the target, and both in parts of Adam's.
pub fn print_summary(races: &[Race]) {
    let adam = races.iter().find(|race| race.recipe.method == ADAM).and_then(Race::to_target);
    println!("To a training loss of {TARGET}, mean over the seeds; in brackets, parts of Adam's:");
    for race in races {
        let method = race.recipe.method;
        let steps = race.arrivals().into_iter().map(|row| match row {
            Some(row) => row.step.to_string(),
            None => "–".into(),
        });
        let steps = steps.collect::<Vec<_>>().join(", ");
        let Some((mean, seconds)) = race.to_target() else {
            println!("  {method:<18} not reached by every seed (steps: {steps})");
            continue;
        };
        let part = |value: f64, adam: f64| format!("({:.2})", value / adam);
        let [of_steps, of_seconds] = match adam {
            Some((steps, time)) => [part(mean, steps), part(seconds, time)],
            None => ["".into(), "".into()],
        };
        println!(
            "  {method:<18} {mean:>6.1} steps {of_steps:<7} {seconds:>6.2} s {of_seconds:<7} by seed: {steps}"
        );
    }
}

/// Prints how far the losses of two devices are apart; an error if that is more than rounding.
pub fn compare(recipe: Recipe, here: &[f64], there: &[f64]) -> Result<(), String> {
    /// Of f32 sums in another order, through an inverse or a decomposition and two steps.
    const ROUNDING: f64 = 1e-3;
    let apart = here.iter().zip(there).map(|(here, there)| (here - there).abs() / here);
    // In this order a value that is not a number is above all others.
    let most = apart.max_by(f64::total_cmp).unwrap_or(f64::NAN);
    println!("  {:<18} losses {here:.6?} differ by at most {most:.1e}", recipe.method);
    if most <= ROUNDING {
        return Ok(());
    }
    Err(format!("{}: the losses there, {there:?}, are others", recipe.method))
}
