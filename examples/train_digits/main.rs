mod curvature;
mod data;
mod loss;
mod network;
mod optimiser;
mod passes;
mod training;

use std::path::Path;
use convmat::{Device, KfacMethod};
use optimiser::{Method, Recipe};
use training::Setting;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/digits.npz");
    let [train, test] = data::load(&path)?;
    let args: Vec<String> = std::env::args().collect();
    let steps: u64 = args[2].parse()?;
    let target: f64 = 0.05;
    let k = Method::Preconditioned(KfacMethod::Kfac);
    let e = Method::Preconditioned(KfacMethod::Ekfac);
    let method = match args[1].as_str() { "sgd" => Method::Momentum, "adam" => Method::Adam, "kfac" => k, _ => e };
    for rate in args[3].split(',') { for damping in args[4].split(',') { for seed in args[5].split(',') {
        let recipe = Recipe { method, rate: rate.parse()?, damping: damping.parse()? };
        let setting = Setting { device: &Device::Cpu, train: &train, test: &test, seed: seed.parse()? };
        let rows = training::train(&setting, recipe, steps, 2, |_| ())?;
        let at = |n: f64| rows.iter().find(|r| r.train.loss <= n).map(|r| (r.step, (r.seconds*100.0).round()/100.0));
        let last = rows[rows.len()-1];
        println!("{recipe} seed {seed}: {:.5} {:.4} test {:.4} {:.4} in {:.2} s; 0.2:{:?} 0.1:{:?} 0.05:{:?} 0.02:{:?} 0.01:{:?} best acc {:.4}", last.train.loss, last.train.accuracy, last.test.loss, last.test.accuracy, last.seconds, at(0.2), at(0.1), at(target), at(0.02), at(0.01), rows.iter().map(|r| r.test.accuracy).fold(0.0, f64::max));
    }}}
    Ok(())
}
