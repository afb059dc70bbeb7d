//! What the tests of spectra share: random layers, and their matrices entry by entry.

use nalgebra::DMatrix;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use crate::operator::layer::Layer;
use crate::{Conv, Device, Tensor};

/// Random numbers, the same each time.
pub(in crate::spectrum) struct Random(Xoshiro256PlusPlus);

impl Random {
    pub(in crate::spectrum) fn new(seed: u64) -> Self {
        Random(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    /// From −1 to 1.
    pub(in crate::spectrum) fn number(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    pub(in crate::spectrum) fn below(&mut self, limit: usize) -> usize {
        (self.0.next_u64() % limit as u64) as usize
    }

    pub(in crate::spectrum) fn numbers(&mut self, len: usize) -> Vec<f64> {
        (0..len).map(|_| self.number()).collect()
    }
}

/// A layer of this convolution. `channels` are (output, input) channels of a group.
pub(in crate::spectrum) fn layer<const D: usize>(
    conv: Conv<D>,
    input: [usize; D],
    channels: [usize; 2],
    weight: Vec<f64>,
    transposed: bool,
) -> crate::Result<Layer> {
    let [outputs, per_group] = channels;
    let geometry = conv.bind(input)?;
    let shape = [&[outputs * conv.group_count(), per_group], &conv.kernel_size()[..]].concat();
    let weight = Tensor::from_vec(&Device::Cpu, &shape, weight)?;
    Layer::new(&geometry, &weight.view(), transposed)
}

/// The same with random weights.
pub(in crate::spectrum) fn random_layer<const D: usize>(
    random: &mut Random,
    conv: Conv<D>,
    input: [usize; D],
    channels: [usize; 2],
    transposed: bool,
) -> crate::Result<Layer> {
    let taps: usize = conv.kernel_size().iter().product();
    let weight = random.numbers(channels[0] * conv.group_count() * channels[1] * taps);
    layer(conv, input, channels, weight, transposed)
}

/// The layer's matrix, from its definition.
pub(in crate::spectrum) fn dense(layer: &Layer) -> DMatrix<f64> {
    let [d, h, w] = &*layer.axes;
    let [outputs, inputs] = [layer.axes.outputs(), layer.axes.inputs()];
    let (o_group, c_group) = (layer.outputs / layer.groups, layer.channels / layer.groups);
    let taps = layer.axes.taps();
    let mut matrix = DMatrix::zeros(layer.outputs * outputs, layer.channels * inputs);
    for co in 0..layer.outputs {
        for ci in 0..c_group {
            let channel = co / o_group * c_group + ci;
            for o in 0..outputs {
                let od = o / (h.outputs() * w.outputs());
                let (oh, ow) = (o / w.outputs() % h.outputs(), o % w.outputs());
                for k in 0..taps {
                    let kd = k / (h.taps() * w.taps());
                    let (kh, kw) = (k / w.taps() % h.taps(), k % w.taps());
                    let source = (d.source(od, kd), h.source(oh, kh), w.source(ow, kw));
                    if let (Some(id), Some(ih), Some(iw)) = source {
                        let i = (id * h.inputs() + ih) * w.inputs() + iw;
                        let weight = layer.weight[(co * c_group + ci) * taps + k];
                        matrix[(co * outputs + o, channel * inputs + i)] += weight;
                    }
                }
            }
        }
    }
    if layer.transposed { matrix.transpose() } else { matrix }
}

/// The singular values of a matrix, descending.
pub(in crate::spectrum) fn dense_values(matrix: &DMatrix<f64>) -> Vec<f64> {
    let mut values: Vec<f64> = matrix.singular_values().iter().copied().collect();
    values.sort_unstable_by(|a, b| b.total_cmp(a));
    values
}
