//! The network: four convolutions, and what stands between them.

use std::borrow::Cow;

use convmat::{Conv, Device, KfacLayer, PaddingMode, Result, Tensor};
use rand_distr::{Distribution, StandardNormal};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;

pub const CLASSES: usize = 10;

/// What a layer's output passes through.
#[derive(Clone, Copy)]
pub enum Activation {
    Relu,
    /// ReLU, then the mean over all positions.
    ReluMean,
    Identity,
}

/// A convolution and its parameters.
pub struct Layer {
    pub conv: Conv<2>,
    /// Channels and spatial extents of the input.
    pub channels: usize,
    pub size: [usize; 2],
    pub weight: Tensor<f32>,
    pub bias: Option<Tensor<f32>>,
    pub activation: Activation,
}

pub struct Network {
    pub layers: Vec<Layer>,
}

impl Layer {
    /// He's random weights, whose outputs vary as much as their inputs, and a bias of zeros.
    fn new(
        device: &Device,
        random: &mut Xoshiro256PlusPlus,
        conv: Conv<2>,
        [channels, outputs]: [usize; 2],
        size: [usize; 2],
    ) -> Result<Self> {
        let [kh, kw] = conv.kernel_size();
        let shape = [outputs, channels / conv.group_count(), kh, kw];
        let deviation = (2.0 / shape[1..].iter().product::<usize>() as f32).sqrt();
        let mut normal = || deviation * Distribution::<f32>::sample(&StandardNormal, random);
        let weight = (0..shape.iter().product()).map(|_| normal()).collect();
        Ok(Layer {
            conv,
            channels,
            size,
            weight: Tensor::from_vec(device, &shape, weight)?,
            bias: Some(Tensor::zeros(device, &[outputs])?),
            activation: Activation::Relu,
        })
    }

    /// What the preconditioner of its gradients has to know.
    pub fn for_kfac(&self) -> KfacLayer<2> {
        KfacLayer::new(self.conv, self.channels, self.weight.shape()[0], self.size)
            .bias(self.bias.is_some())
    }
}

impl Network {
    /// The digits CNN with random weights. Its linear layer is a convolution of 1×1 over one position: the same
    /// product, and the same plans, states and code as for every other layer.
    pub fn new(device: &Device, seed: u64) -> Result<Self> {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let base = Conv::new([3, 3]);
        let reflecting = base.padding([1, 1]).padding_mode(PaddingMode::Reflect);
        let grouped = base.stride([2, 2]).padding([1, 1]).groups(4);
        let dilated = base.padding([2, 2]).dilation([2, 2]);
        let linear = Conv::new([1, 1]);
        let mut layer =
            |conv, channels, size| Layer::new(device, &mut random, conv, channels, size);
        let layers = vec![
            layer(reflecting, [1, 16], [8, 8])?,
            layer(grouped, [16, 32], [8, 8])?,
            Layer {
                bias: None,
                activation: Activation::ReluMean,
                ..layer(dilated, [32, 64], [4, 4])?
            },
            Layer { activation: Activation::Identity, ..layer(linear, [64, CLASSES], [1, 1])? },
        ];
        Ok(Network { layers })
    }

    /// Subtracts from every parameter, in the order of [`flat`].
    pub fn subtract(&mut self, step: &[f32]) -> Result<()> {
        let mut step = step.iter();
        for layer in &mut self.layers {
            for tensor in [Some(&mut layer.weight), layer.bias.as_mut()].into_iter().flatten() {
                let moved =
                    host(tensor)?.iter().zip(&mut step).map(|(value, step)| value - step).collect();
                *tensor = Tensor::from_vec(&tensor.device(), tensor.shape(), moved)?;
            }
        }
        Ok(())
    }
}

/// A layer's gradients, or what has become of them.
pub struct Gradient {
    pub weight: Tensor<f32>,
    pub bias: Option<Tensor<f32>>,
}

/// All layers' gradients in a row.
pub fn flat(gradients: &[Gradient]) -> Result<Vec<f32>> {
    let mut all = Vec::new();
    for Gradient { weight, bias } in gradients {
        all.extend_from_slice(&host(weight)?);
        bias.iter().try_for_each(|bias| host(bias).map(|bias| all.extend_from_slice(&bias)))?;
    }
    Ok(all)
}

/// A tensor's elements, copied only where they are not on the host.
pub fn host(tensor: &Tensor<f32>) -> Result<Cow<'_, [f32]>> {
    match tensor.as_slice() {
        Some(elements) => Ok(Cow::Borrowed(elements)),
        None => tensor.view().to_vec().map(Cow::Owned),
    }
}

impl Activation {
    /// Of `y` `[N, O, h, w]`: the next layer's input.
    pub fn forward(self, y: &Tensor<f32>) -> Result<Tensor<f32>> {
        let (positions, shape) = self.pooled(y.shape());
        let relu =
            |&value: &f32| if let Activation::Identity = self { value } else { value.max(0.0) };
        let mean = |chunk: &[f32]| chunk.iter().map(relu).sum::<f32>() / positions as f32;
        let values = host(y)?.chunks_exact(positions).map(mean).collect();
        Tensor::from_vec(&y.device(), &shape, values)
    }

    /// The gradient by `y`, from that by what it became.
    pub fn backward(self, y: &Tensor<f32>, gradient: &Tensor<f32>) -> Result<Tensor<f32>> {
        let (positions, _) = self.pooled(y.shape());
        let (y_values, gradient) = (host(y)?, host(gradient)?);
        let entries = y_values.iter().enumerate().map(|(at, &y)| match self {
            Activation::Relu | Activation::ReluMean if y <= 0.0 => 0.0,
            _ => gradient[at / positions] / positions as f32,
        });
        Tensor::from_vec(&y.device(), y.shape(), entries.collect())
    }

    /// How many positions become one, and the shape that gives.
    fn pooled(self, shape: &[usize]) -> (usize, Vec<usize>) {
        match self {
            Activation::ReluMean => (shape[2] * shape[3], vec![shape[0], shape[1], 1, 1]),
            _ => (1, shape.to_vec()),
        }
    }
}
