//! What K-FAC adds to a training step, layer by layer, as a Markdown table: the factors, inverses and
//! preconditioning of K-FAC, and the eigenvectors, second moments and preconditioning of EKFAC, beside the
//! layer's convolution forward and backward (input and weight) on the same data.
//!
//! `cargo bench --bench kfac_step -- digits resnet50` runs the named networks, by default both;
//! `--shape "8x64x56x56 64x64x3x3 p1"` (see `benches/README.md`) layers without a bias instead. `RAYON_NUM_THREADS`
//! says on how many threads. Run as a test, it makes one pass over the layers of the digits.

mod shapes;

use std::error::Error;
use std::time::Instant;

use convmat::{
    Algorithm, Device, KfacLayer, KfacMethod, KfacOptions, KfacState, Layout, PaddingMode, Tensor,
    with_axes,
};
use shapes::description::Given;
use shapes::{RESNET50, Shape, eighths};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Examples of ResNet-50's layers.
const BATCH: usize = 8;
/// Rounds in which what a step does takes turns, after one that does not count.
const ROUNDS: usize = 3;
/// How often ResNet-50 has each of its layers.
const TIMES: [usize; 23] = [1, 1, 3, 4, 2, 1, 1, 1, 4, 3, 3, 1, 1, 1, 6, 5, 5, 1, 1, 1, 3, 2, 2];

/// Seconds that are measured, of each part.
const PARTS: usize = 7;
type Seconds = [f64; PARTS];

const HEADS: [&str; PARTS] = [
    "forward, backward",
    "A and G",
    "inverses",
    "K-FAC's gradient",
    "eigenvectors",
    "Λ",
    "EKFAC's gradient",
];
const STEP: usize = 0;
const FACTORS: usize = 1;
const INVERSES: usize = 2;
const GRADIENT: usize = 3;
const EIGEN: usize = 4;
const MOMENTS: usize = 5;
const EIGEN_GRADIENT: usize = 6;

/// A layer of a network that has it so many times.
struct Layer {
    shape: Shape,
    bias: bool,
    times: usize,
}

fn main() -> Result<()> {
    let Given { shapes, others } = Given::from_command_line("kfac_step");
    let given = |word: &str| others.iter().any(|other| other == word);
    let test = given("--test") || !given("--bench");
    let networks = ["digits", "resnet50"];
    if let Some(word) = others.iter().find(|o| !o.starts_with('-') && !networks.contains(&&o[..])) {
        return Err(format!("no network {word:?}; there are {}", networks.join(", ")).into());
    }
    let all = !networks.iter().any(|network| given(network));
    if !shapes.is_empty() {
        let layers = shapes.into_iter().map(|shape| Layer { shape, bias: false, times: 1 });
        return table("layers", &layers.collect::<Vec<_>>(), test);
    }
    if all || given("digits") || test {
        table("digits", &digits(if test { 4 } else { 64 })?, test)?;
    }
    if (all || given("resnet50")) && !test {
        let layers = RESNET50.iter().zip(TIMES).map(|(shape, times)| {
            let shape = Shape { batch: BATCH, ..*shape };
            Layer { shape, bias: false, times }
        });
        table("ResNet-50", &layers.collect::<Vec<_>>(), test)?;
    }
    Ok(())
}

/// The convolutions of `data/digits_cnn.safetensors`.
fn digits(batch: usize) -> Result<Vec<Layer>> {
    let layers = [
        ("1x8x8 16x1x3x3 p1 m:reflect", true),
        ("16x8x8 32x4x3x3 s2 p1 g4", true),
        ("32x4x4 64x32x3x3 p2 d2", false),
    ];
    let layers = layers.map(|(layer, bias)| {
        Ok(Layer { shape: format!("{batch}x{layer}").parse()?, bias, times: 1 })
    });
    layers.into_iter().collect()
}

fn table(network: &str, layers: &[Layer], test: bool) -> Result<()> {
    let batch = layers.first().map_or(0, |layer| layer.shape.batch);
    let threads = rayon::current_num_threads();
    println!("{network}, {batch} examples, f32, {threads} threads, ms:\n");
    println!("| layer | times | {} |", HEADS.join(" | "));
    println!("|---|{}", "--:|".repeat(PARTS + 1));
    let mut totals = [0.0; PARTS];
    for layer in layers {
        let seconds = with_axes!(layer.shape.spatial, D => measure::<D>(layer, test))?;
        for (total, seconds) in totals.iter_mut().zip(seconds) {
            *total += layer.times as f64 * seconds;
        }
        row(&name(layer), layer.times, &seconds);
    }
    row("all", layers.iter().map(|layer| layer.times).sum(), &totals);
    let relative = totals.map(|total| format!("{:.2}×", total / totals[STEP]));
    println!("| of forward, backward | | {} |\n", relative.join(" | "));
    let add = |often: f64, refreshed: usize, updated: &[usize], each: usize| {
        let updates: f64 = updated.iter().map(|&part| totals[part]).sum();
        (updates / often + totals[refreshed] / (10.0 * often) + totals[each]) / totals[STEP]
    };
    for (often, every, seldom) in [(1.0, "step", "10th"), (10.0, "10th step", "100th")] {
        println!(
            "- Factors and Λ at every {every}, inverses or eigenvectors at every {seldom}: K-FAC adds {:.2}×, EKFAC \
             {:.2}× forward and backward.",
            add(often, INVERSES, &[FACTORS], GRADIENT),
            add(often, EIGEN, &[FACTORS, MOMENTS], EIGEN_GRADIENT),
        );
    }
    println!();
    Ok(())
}

/// For example `64→64 3×3, stride 2, of 56×56, 4 groups`.
fn name(layer: &Layer) -> String {
    let shape = &layer.shape;
    let list = |extents: [usize; 3]| {
        let words: Vec<String> = extents.iter().map(usize::to_string).collect();
        words[3 - shape.spatial..].join("×")
    };
    let mut text = format!("{}→{} {}", shape.channels, shape.outputs, list(shape.kernel));
    if shape.stride != [1; 3] {
        text += &format!(", stride {}", shape.stride[2]);
    }
    if shape.dilation != [1; 3] {
        text += &format!(", dilation {}", shape.dilation[2]);
    }
    if shape.groups > 1 {
        text += &format!(", {} groups", shape.groups);
    }
    if shape.mode != PaddingMode::Zeros {
        text += &format!(", {}", shape.mode);
    }
    if shape.layout == Layout::ChannelsLast {
        text += ", channels last";
    }
    text + &format!(", of {}", list(shape.input))
}

fn row(name: &str, times: usize, seconds: &Seconds) {
    let cells = seconds.map(|seconds| {
        let ms = seconds * 1e3;
        let digits = if ms < 10.0 { 2 } else { usize::from(ms < 100.0) };
        format!("{ms:.digits$}")
    });
    println!("| {name} | {times} | {} |", cells.join(" | "));
}

fn tensor(shape: &[usize], seed: u64) -> Result<Tensor<f32>> {
    let values = eighths(shape.iter().product(), seed);
    Ok(Tensor::from_vec(&Device::Cpu, shape, values)?)
}

/// Seconds of each part on one layer. Refreshes, which take the longest and are rare, are made once.
fn measure<const D: usize>(layer: &Layer, test: bool) -> Result<Seconds> {
    let Layer { shape, bias, .. } = layer;
    let (conv, size) = (shape.conv::<D>(), shape.input_size());
    let [x, dy, w] = [shape.input_shape(), shape.output_shape(), shape.weight_shape()];
    let (x, dy, w) = (tensor(&x, 1)?, tensor(&dy, 2)?, tensor(&w, 3)?);
    let zeros = |shape: &[usize]| Tensor::<f32>::zeros(&Device::Cpu, shape);
    let (mut y, mut dx, mut dw) = (zeros(dy.shape())?, zeros(x.shape())?, zeros(w.shape())?);
    let of = KfacLayer::new(conv, shape.channels, shape.outputs, size).bias(*bias);
    let state = |method| {
        KfacState::<f32, D>::new(&Device::Cpu, of, KfacOptions::new().method(method).decay(0.95))
    };
    let (mut kfac, mut ekfac) = (state(KfacMethod::Kfac)?, state(KfacMethod::Ekfac)?);
    let mut rounds: [Vec<f64>; PARTS] = Default::default();
    let mut timed = |part: usize, run: &mut dyn FnMut() -> convmat::Result<()>| -> Result<()> {
        let start = Instant::now();
        run()?;
        rounds[part].push(start.elapsed().as_secs_f64());
        Ok(())
    };
    kfac.accumulate(&x, &dy)?;
    ekfac.accumulate(&x, &dy)?;
    timed(INVERSES, &mut || kfac.refresh())?;
    timed(EIGEN, &mut || ekfac.refresh())?;
    let gradient = kfac.mean_gradient(&x, &dy)?;
    let auto = Algorithm::Auto;
    for _ in 0..if test { 1 } else { 1 + ROUNDS } {
        timed(STEP, &mut || {
            conv.forward_into(&x, &w, None, &mut y, auto)?;
            conv.backward_input_into(&dy, &w, &mut dx, auto)?;
            conv.backward_weight_into(&x, &dy, &mut dw, auto)
        })?;
        timed(FACTORS, &mut || kfac.accumulate(&x, &dy))?;
        timed(GRADIENT, &mut || kfac.precondition(&gradient).map(drop))?;
        timed(MOMENTS, &mut || ekfac.accumulate_second_moments(&x, &dy))?;
        timed(EIGEN_GRADIENT, &mut || ekfac.precondition(&gradient).map(drop))?;
    }
    Ok(rounds.map(|mut times| {
        if times.len() > 1 {
            times.remove(0);
        }
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }))
}
