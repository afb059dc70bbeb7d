//! The network and the digits: reading them, and running one on the other.

use std::path::Path;
use std::time::Instant;

use convmat::io::{NpzReader, SafetensorsReader};
use convmat::{Conv, Device, PaddingMode, Tensor};

use crate::style::{Style, milliseconds};

/// A convolution and the extents of its input.
pub struct Layer {
    pub name: &'static str,
    pub conv: Conv<2>,
    pub weight: Tensor<f32>,
    pub bias: Option<Tensor<f32>>,
    pub size: [usize; 2],
}

impl Layer {
    /// Its name, what it takes and gives, and its geometry.
    pub fn describe(&self) -> convmat::Result<String> {
        let shape = self.weight.shape();
        let channels = shape[1] * self.conv.group_count();
        let ([h, w], [ho, wo]) = (self.size, self.conv.bind(self.size)?.output());
        let maps = format!("{channels} × {h}×{w} → {} × {ho}×{wo}", shape[0]);
        Ok(format!("{}  {maps}  {}", self.name, self.conv))
    }
}

/// The three convolutions and the weight [10, 64] and bias [10] of the linear layer behind them.
pub fn load_network(path: &Path) -> convmat::Result<(Vec<Layer>, [Vec<f32>; 2])> {
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
pub struct Digits {
    pub images: Tensor<f32>,
    pub labels: Vec<usize>,
}

impl Digits {
    pub fn load(device: &Device, path: &Path) -> convmat::Result<Self> {
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
pub fn classify(
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
    const SHOWN: usize = 4;
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
