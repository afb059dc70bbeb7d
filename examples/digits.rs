//! The main job on real data: a small CNN that PyTorch trained on hand-written digits, run through this
//! crate's own convolutions, and each of its layers taken apart as linear algebra.
//!
//!     cargo run --release --example digits
//!
//! For every convolution layer it prints how well the lowerings agree with each other and with the
//! answers PyTorch recorded in f64. The exit status is 1 if any of them does not.

use std::error::Error;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use convmat::io::{NpzReader, SafetensorsReader};
use convmat::{Conv, Device, PaddingMode, Tensor};

/// Anything worse than this against PyTorch's f64 answers is a failure.
const TOLERANCE: f64 = 1e-12;

struct Layer {
    name: &'static str,
    conv: Conv<2>,
    weight: Tensor<f32>,
    bias: Option<Tensor<f32>>,
    size: [usize; 2],
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let device = Device::best();
    let style = Style::new();
    println!("{} on {device}: {}\n", style.bold("convmat digits"), device.description());

    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    let mut golden = NpzReader::open(data.join("digits_golden.npz"))?;
    let (layers, head) = load_network(&data.join("digits_cnn.safetensors"))?;
    let digits = Digits::load(&device, &data.join("digits.npz"))?;

    let classified = classify(&layers, &head, &digits, &style)?;
    let expected = golden.read("test_correct")?.to_integers()?[0] as usize;
    println!();
    let mut all_good = style.verdict(
        classified == expected,
        &format!("{classified} of {} test digits right; PyTorch: {expected}", digits.labels.len()),
    );
    println!();
    for layer in &layers {
        all_good &= take_apart(layer, &mut golden, &style)?;
        println!();
    }
    all_good &= style.verdict(all_good, "every figure agrees with PyTorch");
    Ok(if all_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The three convolutions and the weight [10, 64] and bias [10] of the linear layer behind them.
fn load_network(path: &Path) -> convmat::Result<(Vec<Layer>, [Vec<f32>; 2])> {
    let mut file = SafetensorsReader::open(path)?;
    let base = Conv::new([3, 3]);
    let convs = [
        ("conv1", base.padding([1, 1]).padding_mode(PaddingMode::Reflect), [8, 8]),
        ("conv2", base.stride([2, 2]).padding([1, 1]).groups(4), [8, 8]),
        ("conv3", base.padding([2, 2]).dilation([2, 2]), [4, 4]),
    ];
    let mut layers = Vec::new();
    for (name, conv, size) in convs {
        let weight = file.read(&format!("{name}.weight"))?.into_tensor()?;
        let bias = format!("{name}.bias");
        let bias = match file.names().contains(&bias) {
            true => Some(file.read(&bias)?.into_tensor()?),
            false => None,
        };
        layers.push(Layer { name, conv, weight, bias, size });
    }
    let mut vector = |name: &str| file.read(name)?.into_tensor()?.into_vec();
    Ok((layers, [vector("fc.weight")?, vector("fc.bias")?]))
}

/// The test part of the data set.
struct Digits {
    images: Tensor<f32>,
    labels: Vec<usize>,
}

impl Digits {
    fn load(device: &Device, path: &Path) -> convmat::Result<Self> {
        let mut file = NpzReader::open(path)?;
        let train = file.read("train")?.to_integers()?[0] as usize;
        let images: Tensor<f32> = file.read("images")?.convert()?;
        let labels = file.read("labels")?.to_integers()?;
        let count = labels.len() - train;
        let pixels = images.into_vec()?[train * 64..].iter().map(|p| p / 16.0).collect();
        Ok(Digits {
            images: Tensor::from_vec(device, &[count, 1, 8, 8], pixels)?,
            labels: labels[train..].iter().map(|&label| label as usize).collect(),
        })
    }
}

/// Runs the network on all digits; prints some and the time taken; returns how many are right.
fn classify(
    layers: &[Layer],
    [weight, bias]: &[Vec<f32>; 2],
    digits: &Digits,
    style: &Style,
) -> convmat::Result<usize> {
    let start = Instant::now();
    let mut x = digits.images.clone();
    for layer in layers {
        let y = layer.conv.forward(&x, &layer.weight, &layer.bias)?;
        let shape = y.shape().to_vec();
        let rectified = y.into_vec()?.into_iter().map(|v| v.max(0.0)).collect();
        x = Tensor::from_vec(&x.device(), &shape, rectified)?;
    }
    let (channels, positions) = (x.shape()[1], x.shape()[2] * x.shape()[3]);
    let features = x.into_vec()?;
    let predictions: Vec<usize> = features
        .chunks(channels * positions)
        .map(|image| {
            let means: Vec<f32> =
                image.chunks(positions).map(|c| c.iter().sum::<f32>() / positions as f32).collect();
            let logit = |class: usize| {
                let row = &weight[class * channels..][..channels];
                bias[class] + row.iter().zip(&means).map(|(w, m)| w * m).sum::<f32>()
            };
            (0..10).max_by(|&a, &b| logit(a).total_cmp(&logit(b))).unwrap_or(0)
        })
        .collect();
    let elapsed = start.elapsed();

    show_digits(digits, &predictions, style)?;
    println!("\n  {} digits classified in {}", predictions.len(), milliseconds(elapsed));
    Ok(predictions.iter().zip(&digits.labels).filter(|(p, l)| p == l).count())
}

/// Draws the first digits, two pixels to a character, with what the network says they are.
fn show_digits(digits: &Digits, predictions: &[usize], style: &Style) -> convmat::Result<()> {
    const SHOWN: usize = 8;
    let pixels = digits.images.clone().into_vec()?;
    let shades: Vec<char> = " ·:░▒▓█".chars().collect();
    for row in 0..8 {
        let line = (0..SHOWN).map(|image| {
            let pixels = &pixels[image * 64 + row * 8..][..8];
            let cell = |&p: &f32| shades[(p * (shades.len() - 1) as f32).round() as usize];
            pixels.iter().flat_map(|p| [cell(p); 2]).collect::<String>()
        });
        println!("  {}", line.collect::<Vec<_>>().join("  "));
    }
    let verdicts = (0..SHOWN).map(|image| {
        let right = predictions[image] == digits.labels[image];
        style.paint(if right { "32" } else { "31" }, &format!("{:^16}", predictions[image]))
    });
    println!("  {}", verdicts.collect::<Vec<_>>().join("  "));
    Ok(())
}

/// Lowers one layer in every way and compares the results with each other and with PyTorch's.
fn take_apart(layer: &Layer, golden: &mut NpzReader, style: &Style) -> convmat::Result<bool> {
    let Layer { name, conv, size, .. } = layer;
    let mut recorded = |key: &str| golden.read(key)?.convert::<f64>();
    let weight: Tensor<f64> = layer.weight.cast()?;
    let bias: Option<Tensor<f64>> = layer.bias.as_ref().map(Tensor::cast).transpose()?;
    let bias_view = bias.as_ref().map(Tensor::view);
    let geometry = conv.bind(*size)?;
    println!("{}", style.bold(&format!("{name}  {}", describe(layer, geometry.output()))));

    let x = recorded(&format!("{name}.input"))?;
    let y = conv.forward(&x, &weight, bias_view.clone())?;
    let channels = x.shape()[1];

    // Patches: as PyTorch's, as what convolving with the gathering filter gives, and W·A = y − bias.
    let patches = conv.unfold(&x)?;
    let filter = conv.gathering_filter::<f64>(channels)?;
    let gathered = conv.forward(&x, &filter, None)?.reshape(patches.shape())?;
    let product = patch_product(&weight, &patches, conv.group_count())?;
    let linear = conv.forward(&x, &weight, None)?.reshape(product.shape())?;
    // PyTorch's patches were recorded in f32.
    let rounded = patches.cast::<f32>()?.cast()?;
    let rows = [
        ("patches, gathering filter", distance(&gathered, &patches)),
        ("patches, PyTorch", distance(&rounded, &recorded(&format!("{name}.patches"))?)),
        ("W·patches, forward", distance(&product, &linear)),
    ];
    let mut good = rows.map(|(what, error)| style.figure(what, error)).iter().all(|&ok| ok);

    // The matrix: M·[x; 1] = y for every image.
    let start = Instant::now();
    let matrix = conv.matrix(&weight, bias_view, *size)?;
    let elapsed = start.elapsed();
    let columns = columns_of_images(&x, bias.is_some())?;
    let produced = matrix.mul_matrix(&columns)?;
    let wanted = columns_of_images(&y, false)?;
    good &= style.figure("‖M·x − y‖ / ‖y‖", distance(&produced, &wanted));
    let linear_entries = matrix.nnz() - if bias.is_some() { matrix.rows() } else { 0 };
    let expected = recorded(&format!("{name}.nnz"))?.into_vec()?[0] as usize;
    good &= style.verdict(
        linear_entries == expected,
        &format!(
            "M is {} × {} with {} entries ({linear_entries} without bias; PyTorch: {expected}), assembled in {}",
            matrix.rows(),
            matrix.columns(),
            matrix.nnz(),
            milliseconds(elapsed)
        ),
    );

    // Forward and backward against PyTorch.
    let dy = recorded(&format!("{name}.grad_output"))?;
    let dx = conv.backward_input(&dy, &weight, *size)?;
    let dw = conv.backward_weight(&x, &dy)?;
    let mut rows = vec![
        ("output, PyTorch", distance(&y, &recorded(&format!("{name}.output"))?)),
        ("grad input, PyTorch", distance(&dx, &recorded(&format!("{name}.grad_input"))?)),
        ("grad weight, PyTorch", distance(&dw, &recorded(&format!("grad.{name}.weight"))?)),
    ];
    if bias.is_some() {
        let db = conv.backward_bias(&dy)?;
        let recorded = recorded(&format!("grad.{name}.bias"))?;
        rows.push(("grad bias, PyTorch", distance(&db, &recorded)));
    }
    for (what, error) in rows {
        good &= style.figure(what, error);
    }
    Ok(good)
}

fn describe(layer: &Layer, output: [usize; 2]) -> String {
    let shape = layer.weight.shape();
    let groups = layer.conv.group_count();
    let (channels, [h, w], [ho, wo]) = (shape[1] * groups, layer.size, output);
    let text = layer.conv.to_string();
    format!("{channels} × {h}×{w} → {} × {ho}×{wo}  {text}", shape[0])
}

/// The product of weight `[O, C/g, kh, kw]` and patches `[N, C·K, L]`, group by group: `[N, O, L]`.
/// Plain loops, so that the check shares nothing with the crate.
fn patch_product(
    weight: &Tensor<f64>,
    patches: &Tensor<f64>,
    groups: usize,
) -> convmat::Result<Tensor<f64>> {
    let (outputs, row) = (weight.shape()[0], weight.shape()[1..].iter().product::<usize>());
    let &[batch, _, positions] = patches.shape() else { unreachable!("patches have rank 3") };
    let (w, a) = (weight.clone().into_vec()?, patches.clone().into_vec()?);
    let mut y = vec![0.0; batch * outputs * positions];
    for (index, y) in y.chunks_mut(positions).enumerate() {
        let (n, co) = (index / outputs, index % outputs);
        let group = co / (outputs / groups);
        for k in 0..row {
            let a = &a[((n * groups + group) * row + k) * positions..][..positions];
            y.iter_mut().zip(a).for_each(|(y, a)| *y += w[co * row + k] * a);
        }
    }
    Tensor::from_vec(&Device::Cpu, &[batch, outputs, positions], y)
}

/// Images `[N, …]` as the columns of a matrix, with a row of ones below if `with_one`.
fn columns_of_images(images: &Tensor<f64>, with_one: bool) -> convmat::Result<Tensor<f64>> {
    let (count, len) = (images.shape()[0], images.shape()[1..].iter().product::<usize>());
    let data = images.clone().into_vec()?;
    let mut columns: Vec<f64> =
        (0..len * count).map(|e| data[e % count * len + e / count]).collect();
    let ones = if with_one { count } else { 0 };
    columns.extend(std::iter::repeat_n(1.0, ones));
    Tensor::from_vec(&images.device(), &[len + usize::from(with_one), count], columns)
}

/// ‖a − b‖ / ‖b‖.
fn distance(a: &Tensor<f64>, b: &Tensor<f64>) -> f64 {
    assert_eq!(a.len(), b.len());
    let (a, b) = (a.as_slice().unwrap_or_default(), b.as_slice().unwrap_or_default());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

fn milliseconds(elapsed: Duration) -> String {
    format!("{:.2} ms", elapsed.as_secs_f64() * 1e3)
}

/// Colours, where they are welcome.
struct Style {
    colours: bool,
}

impl Style {
    fn new() -> Self {
        let welcome = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Style { colours: welcome && std::io::stdout().is_terminal() }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
    }

    fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    /// Prints a line with a mark; returns whether it was good.
    fn verdict(&self, good: bool, text: &str) -> bool {
        let mark = if good { self.paint("32", "✓") } else { self.paint("31", "✗") };
        println!("  {mark} {text}");
        good
    }

    /// Prints a relative error and judges it.
    fn figure(&self, what: &str, error: f64) -> bool {
        let figure = if error == 0.0 { "exact".into() } else { format!("{error:.1e}") };
        self.verdict(error <= TOLERANCE, &format!("{what:<28} {figure:>8}"))
    }
}
