//! What repeating a computation costs the host: runs of a plan beside one-call forms. On the rehearsal of
//! a GPU nothing is computed, so what is left is this crate's own share of a launch; on the CPU a small layer
//! shows what making a plan takes. Needs NVRTC for the first part, no GPU.

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use convmat::{Algorithm, Conv, Device, KernelOptions, PlanOptions, Tensor};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

const CAPABILITY: u32 = 90;

/// Seconds that each figure is measured for, at least, and figures of which the median is taken.
const SECONDS: f64 = 0.05;
const ROUNDS: usize = 7;

fn main() -> Result<()> {
    println!("{:<12}{:<34}{:>10}{:>14}{:>14}", "device", "layer", "launches", "run", "one call");
    match Device::compile_only(CAPABILITY, KernelOptions::default()) {
        Ok(device) => rows(&device, "sm_90")?,
        Err(reason) => println!("no launches to time: {reason}"),
    }
    rows(&Device::Cpu, "cpu")
}

fn rows(device: &Device, name: &str) -> Result<()> {
    let layers = [
        ("1x8x8x8 by 8x8x3x3", [1, 8, 8, 8], [8, 8, 3, 3], 1),
        ("1x16x14x14 by 16x1x3x3, groups 16", [1, 16, 14, 14], [16, 1, 3, 3], 16),
        ("8x64x14x14 by 64x64x3x3", [8, 64, 14, 14], [64, 64, 3, 3], 1),
    ];
    for (layer, x, weight, groups) in layers {
        let conv = Conv::new([3, 3]).padding([1, 1]).groups(groups);
        let plan = conv.plan_forward::<f32>(device, &x, &weight, false, PlanOptions::new())?;
        let (x, weight) = (Tensor::zeros(device, &x)?, Tensor::zeros(device, &weight)?);
        let mut y = Tensor::zeros(device, plan.result_shape())?;
        let mut workspace = plan.make_workspace()?;
        let run = median(|| plan.run(black_box(&x), &weight, None, &mut y, &mut workspace))?;
        let call =
            median(|| conv.forward_into(black_box(&x), &weight, None, &mut y, Algorithm::Auto))?;
        let launches = plan.explanation().passes.iter().filter(|pass| pass.grid.is_some()).count();
        let micro = |seconds: f64| format!("{:.2} µs", seconds * 1e6);
        println!("{name:<12}{layer:<34}{launches:>10}{:>14}{:>14}", micro(run), micro(call));
    }
    Ok(())
}

/// Seconds of a call, the median of some rounds.
fn median(mut call: impl FnMut() -> convmat::Result<()>) -> Result<f64> {
    call()?;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let (start, mut calls) = (Instant::now(), 0u32);
        while start.elapsed().as_secs_f64() < SECONDS {
            for _ in 0..16 {
                call()?;
            }
            calls += 16;
        }
        rounds.push(start.elapsed().as_secs_f64() / f64::from(calls));
    }
    rounds.sort_by(f64::total_cmp);
    Ok(rounds[ROUNDS / 2])
}
