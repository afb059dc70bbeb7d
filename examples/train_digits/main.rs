//! Training on real data: the digits CNN from random weights, by SGD with momentum, Adam, K-FAC and EKFAC side by
//! side, each as its own grid tuned it.
//!
//!     cargo run --release --features cli --example train_digits
//!
//! Model, weights at the start, batches and momentum are the same for all four. Convolutions go forward and back by
//! this crate's plans (`passes.rs`), the linear layer among them, and its K-FAC states precondition
//! (`curvature.rs`); ReLU, pooling and the loss are written out here.
//!
//! It prints a table for every optimiser and how many steps and seconds each took to the same loss, and draws the
//! curves. `--tune` searches the grids of `recipes.rs` again. `--device simulator` and `--device cuda` take two
//! steps by each optimiser and compare the losses with the CPU's; for the simulator that is all, as it is slow.

mod chart;
mod curvature;
mod data;
mod loss;
mod network;
mod optimiser;
mod passes;
mod recipes;
mod report;
mod training;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use convmat::Device;
use indicatif::{ProgressBar, ProgressStyle};

use data::Digits;
use optimiser::Recipe;
use report::{Race, TARGET};

/// Trains the digits CNN with four optimisers and compares them.
#[derive(Parser)]
struct Arguments {
    /// Where tensors are.
    #[arg(long, value_enum, default_value = "cpu")]
    device: Place,
    /// Steps of each optimiser.
    #[arg(long, default_value_t = 100, value_name = "N")]
    steps: u64,
    /// The first seed; a seed gives the weights, the batches and the labels drawn for K-FAC.
    #[arg(long, default_value_t = 1, value_name = "S")]
    seed: u64,
    /// How many seeds, one after the other, the figures are means over.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// The folder for the charts.
    #[arg(long, default_value = "target/train_digits", value_name = "FOLDER")]
    output: PathBuf,
    /// Search the grids instead of training.
    #[arg(long)]
    tune: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Place {
    Cpu,
    Simulator,
    Cuda,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/digits.npz");
    let digits = data::load(&path)?;
    let device = open(arguments.device)?;
    println!("training on {device}: {}\n", device.description());
    if arguments.device != Place::Cpu {
        compare_devices(&device, &digits[0], arguments.seed)?;
    }
    match arguments.device {
        Place::Simulator => Ok(()),
        _ if arguments.tune => tune(&device, &digits),
        _ => race(&device, &digits, arguments),
    }
}

fn open(place: Place) -> Result<Device, Box<dyn Error>> {
    Ok(match place {
        Place::Cpu => Device::Cpu,
        #[cfg(feature = "simulator")]
        Place::Simulator => Device::simulator()?,
        #[cfg(feature = "cuda")]
        Place::Cuda => Device::cuda(0)?,
        #[allow(unreachable_patterns, reason = "not with every feature")]
        _ => return Err("this was built without the feature of that device".into()),
    })
}

/// Two steps of each optimiser there and on the CPU.
fn compare_devices(device: &Device, train: &Digits, seed: u64) -> Result<(), Box<dyn Error>> {
    println!("two steps on {device} and on the CPU:");
    for recipe in recipes::chosen() {
        let here = training::losses(&Device::Cpu, train, recipe, seed, 2)?;
        let there = training::losses(device, train, recipe, seed, 2)?;
        report::compare(recipe, &here, &there)?;
    }
    Ok(())
}

/// All four optimisers from every seed.
fn race(
    device: &Device,
    digits: &[Digits; 2],
    arguments: &Arguments,
) -> Result<(), Box<dyn Error>> {
    let Arguments { steps, seed, seeds, .. } = *arguments;
    chart::check(&arguments.output)?;
    let (trials, trial_seeds) = (recipes::STEPS, recipes::SEEDS);
    println!(
        "rates, their decay and damping by --tune: of a grid, the most damped of those first to reach {TARGET} \
         from seeds {trial_seeds:?}, in {trials} steps at most"
    );
    println!("tables are means over {seeds} seeds from {seed}; batches of {}\n", training::BATCH);
    let mut races = Vec::new();
    for recipe in recipes::chosen() {
        let bar = progress(recipe, seeds * steps)?;
        let mut runs = Vec::new();
        for seed in (0..seeds).map(|number| seed.wrapping_add(number)) {
            runs.push(training::train(device, digits, recipe, seed, steps, None, || bar.inc(1))?);
        }
        bar.finish_and_clear();
        let race = Race { recipe, runs };
        race.print_table();
        races.push(race);
    }
    report::print_summary(&races);
    chart::write(&arguments.output, &races)
}

/// Tries every entry of every grid, and says which is best.
fn tune(device: &Device, digits: &[Digits; 2]) -> Result<(), Box<dyn Error>> {
    for chosen in recipes::chosen() {
        let grid = recipes::grid(chosen.method);
        let bar =
            progress(chosen, grid.len() as u64 * recipes::SEEDS.len() as u64 * recipes::STEPS)?;
        let mut found = Vec::new();
        for recipe in grid {
            let mut steps = Vec::new();
            for seed in recipes::SEEDS {
                let (most, until) = (recipes::STEPS, Some(TARGET));
                let rows =
                    training::train(device, digits, recipe, seed, most, until, || bar.inc(1));
                // Where K-FAC is given what is not finite, training has diverged.
                let last = rows.ok().and_then(|rows| rows.last().copied());
                let reached = last.filter(|row| row.train.loss <= TARGET).map(|row| row.step);
                steps.push(reached.unwrap_or(most));
            }
            let trial = Trial::new(recipe, &steps);
            bar.suspend(|| {
                println!("  {:>5.1} ± {:>4.1} steps, {steps:?}  {recipe}", trial.mean, trial.error)
            });
            found.push(trial);
        }
        bar.finish_and_clear();
        if let Some(best) = Trial::best(&found) {
            println!(
                "best: {}, in {:.1} steps; the example has {chosen}\n",
                best.recipe, best.mean
            );
        }
    }
    Ok(())
}

/// Steps to the loss with an entry of a grid, over the seeds.
struct Trial {
    recipe: Recipe,
    mean: f64,
    /// The mean's standard error.
    error: f64,
}

impl Trial {
    fn new(recipe: Recipe, steps: &[u64]) -> Self {
        let n = steps.len() as f64;
        let mean = steps.iter().map(|&steps| steps as f64).sum::<f64>() / n;
        let squares: f64 = steps.iter().map(|&steps| (steps as f64 - mean).powi(2)).sum();
        Trial { recipe, mean, error: (squares / (n - 1.0) / n).sqrt() }
    }

    /// Of those within one standard error of the fewest steps the most damped, and of these the first to be
    /// there: with so few seeds the very best was lucky, and damping makes luck matter less.
    fn best(all: &[Trial]) -> Option<&Trial> {
        let by_mean = |a: &&Trial, b: &&Trial| a.mean.total_cmp(&b.mean);
        let fewest = all.iter().min_by(by_mean)?;
        let close = all.iter().filter(|trial| trial.mean <= fewest.mean + fewest.error);
        close.min_by(|a, b| b.recipe.damping.total_cmp(&a.recipe.damping).then(by_mean(a, b)))
    }
}

/// A bar on the terminal, if standard error is one.
fn progress(recipe: Recipe, steps: u64) -> Result<ProgressBar, Box<dyn Error>> {
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {pos} of {len} steps {eta:.dim}")?;
    let bar = ProgressBar::new(steps).with_style(style.progress_chars("=> "));
    Ok(bar.with_message(recipe.method.to_string()))
}
