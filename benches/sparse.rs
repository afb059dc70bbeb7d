//! Convolution with sparse weights beside the dense one, and with the sparse gathering filter beside unfold, as
//! a Markdown table: forward on the CPU, by plans that exist beforehand, into results that exist.
//!
//! `cargo bench --bench sparse -- conv2 vgg` runs the named layers of the catalogue, by default `conv2`, `conv4`
//! and `vgg`; `--shape "8x64x56x56 64x64x3x3 p1"` (see `benches/README.md`) others. `RAYON_NUM_THREADS` says on
//! how many threads. The weight's entries that are kept are random. Both sides take turns, after a result was
//! checked, bit for bit: operands are multiples of 1/8, whose sums are exact. Run as a test, it makes one round on
//! a small layer.

mod shapes;

use std::error::Error;
use std::time::Instant;

use convmat::{Conv, Device, Layout, PlanOptions, Pruning, SparseWeight, Tensor, with_axes};
use shapes::description::Given;
use shapes::{CATALOGUE, Shape, eighths};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Parts of the weight that are not stored.
const SPARSITIES: [f64; 3] = [0.5, 0.7, 0.9];
/// Rounds in which the sides take turns, and seconds of a side's turn, after one run that does not count.
const ROUNDS: usize = 15;
const TURN: f64 = 0.04;

fn main() -> Result<()> {
    let Given { mut shapes, others } = Given::from_command_line("sparse");
    let given = |word: &str| others.iter().any(|other| other == word);
    let test = given("--test") || !given("--bench");
    for name in others.iter().filter(|other| !other.starts_with('-')) {
        let known = Shape::find(name);
        shapes.push(known.ok_or_else(|| format!("no layer {name:?}"))?);
    }
    if shapes.is_empty() {
        let usual = ["conv2", "conv4", "vgg"];
        shapes.extend(CATALOGUE.into_iter().filter(|shape| usual.contains(&shape.name)));
    }
    if test {
        shapes =
            vec![Shape { batch: 1, channels: 8, outputs: 12, input: [1, 9, 14], ..CATALOGUE[1] }];
    }
    let threads = rayon::current_num_threads();
    println!("f32, {threads} threads, {ROUNDS} rounds: median (shortest) of all runs\n");
    println!("| layer | weight | dense or unfold, ms | sparse, ms | times as fast |");
    println!("|---|---|---:|---:|---:|");
    for shape in shapes {
        with_axes!(shape.spatial, D => Ok::<_, convmat::Error>(layer(&shape, shape.conv::<D>(), test)))??;
    }
    Ok(())
}

/// All rows of a layer.
fn layer<const D: usize>(shape: &Shape, conv: Conv<D>, test: bool) -> Result<()> {
    let (device, options) = (Device::Cpu, PlanOptions::new());
    let (x_shape, weight_shape) = (shape.input_shape(), shape.weight_shape());
    let numbers = |shape: &[usize], seed| -> Result<Tensor<f32>> {
        let len = shape.iter().product();
        Ok(Tensor::from_vec(&device, shape, eighths(len, seed))?)
    };
    let x = numbers(&x_shape, 1)?;
    let all = numbers(&weight_shape, 2)?;
    // An entry's rank decides whether it is kept; its value is another number, never zero.
    let ranks: Vec<f32> = (0..all.len() as u64).map(|at| rank(at) as f32).collect();
    let ranks = Tensor::from_vec(&device, &weight_shape, ranks)?;
    for sparsity in SPARSITIES {
        let kept = ((1.0 - sparsity) * all.len() as f64).round() as usize;
        let pattern = SparseWeight::from_dense(&conv, &ranks, Pruning::TopK(kept))?;
        let weight = pattern.with_values(numbers(&[kept], 3)?)?;
        let dense = weight.to_dense()?;
        let plan = conv.plan_sparse_forward::<f32>(&device, &x_shape, &weight, false, options)?;
        let other = conv.plan_forward::<f32>(&device, &x_shape, &weight_shape, false, options)?;
        let mut results = [0, 1].map(|_| Tensor::<f32>::zeros(&device, plan.result_shape()));
        let [Ok(y), Ok(expected)] = &mut results else { return Err("no memory".into()) };
        let (mut workspace, mut others) = (plan.make_workspace()?, other.make_workspace()?);
        let times = take_turns(
            test,
            || Ok(other.run(&x, &dense, None, &mut *expected, &mut others)?),
            || Ok(plan.run(&x, &weight, None, &mut *y, &mut workspace)?),
        )?;
        if y != expected {
            return Err(format!("{}: the sparse result is another one", shape.name).into());
        }
        let name = format!("{:.0}% random", 100.0 * sparsity);
        row(shape.name, &name, times);
    }
    let filter = SparseWeight::from_coo(&conv, &conv.gathering_filter_coo::<f32>(shape.channels)?)?;
    let plan = conv.plan_sparse_forward::<f32>(&device, &x_shape, &filter, false, options)?;
    let other = conv.plan_unfold::<f32>(&device, &x_shape, options)?;
    let mut y = Tensor::<f32>::zeros(&device, plan.result_shape())?;
    let mut patches = Tensor::<f32>::zeros(&device, other.result_shape())?;
    let (mut workspace, mut others) = (plan.make_workspace()?, other.make_workspace()?);
    let times = take_turns(
        test,
        || Ok(other.run(&x, &mut patches, &mut others)?),
        || Ok(plan.run(&x, &filter, None, &mut y, &mut workspace)?),
    )?;
    if y.as_slice() != patches.as_slice() && shape.layout == Layout::ChannelsFirst {
        return Err(format!("{}: the gathering filter does not unfold", shape.name).into());
    }
    row(shape.name, "gathering filter", times);
    Ok(())
}

/// A number for each entry, all different, in random order: a permutation of 24 bits.
fn rank(at: u64) -> u64 {
    let mixed = at.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    1 + ((mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 40)
}

/// Median and shortest seconds of a run, of either side.
fn take_turns(
    test: bool,
    mut first: impl FnMut() -> Result<()>,
    mut second: impl FnMut() -> Result<()>,
) -> Result<[[f64; 2]; 2]> {
    let mut times = [Vec::new(), Vec::new()];
    let rounds = if test { 1 } else { ROUNDS };
    for _ in 0..rounds {
        turn(test, &mut first, &mut times[0])?;
        turn(test, &mut second, &mut times[1])?;
    }
    Ok(times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        [times[times.len() / 2], times[0]]
    }))
}

fn turn(test: bool, run: &mut impl FnMut() -> Result<()>, times: &mut Vec<f64>) -> Result<()> {
    run()?;
    let start = Instant::now();
    loop {
        let begin = Instant::now();
        run()?;
        times.push(begin.elapsed().as_secs_f64());
        if test || start.elapsed().as_secs_f64() > TURN {
            return Ok(());
        }
    }
}

fn row(layer: &str, weight: &str, [dense, sparse]: [[f64; 2]; 2]) {
    let shown = |[median, shortest]: [f64; 2]| format!("{median:.2} ({shortest:.2})");
    let [dense_ms, sparse_ms] = [dense, sparse].map(|times| shown(times.map(|s| 1e3 * s)));
    let ratio = shown([dense[0] / sparse[0], dense[1] / sparse[1]]);
    println!("| {layer} | {weight} | {dense_ms} | {sparse_ms} | {ratio} |");
}
