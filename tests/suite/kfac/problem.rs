//! Layers with data, and what is defined of them, written out.

use convmat::{
    Device, Element, KfacLayer, KfacOptions, KfacState, Layout, PaddingMode, Tensor, WeightSharing,
};
use nalgebra::DMatrix;

use crate::catalogue::{conv, last, randoms, tensor, values};
use crate::oracle::Case;

/// A layer with data: a case's convolution, or the transposed one from its outputs to its inputs.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub(super) case: Case,
    pub(super) transposed: bool,
    pub(super) bias: bool,
    pub(super) x: Vec<f64>,
    pub(super) dy: Vec<f64>,
}

/// Of one group: for each example and position, the patch and the gradient.
pub(super) struct Group {
    pub(super) patches: Vec<Vec<Vec<f64>>>,
    pub(super) gradients: Vec<Vec<Vec<f64>>>,
}

impl Problem {
    pub(super) fn new(case: &Case, bias: bool) -> Self {
        let (x, dy) = (randoms(case.input_len(), 11), randoms(case.output_len(), 12));
        Problem { case: case.clone(), transposed: false, bias, x, dy }
    }

    pub(super) fn transposed(case: &Case, bias: bool) -> Self {
        let (x, dy) = (randoms(case.output_len(), 13), randoms(case.input_len(), 14));
        Problem { case: case.clone(), transposed: true, bias, x, dy }
    }

    pub(super) fn layer<const D: usize>(&self) -> KfacLayer<D> {
        let c = &self.case;
        let layer = match self.transposed {
            false => KfacLayer::new(conv::<D>(c), c.channels, c.outputs, last(c.input)),
            true => {
                let extra = last(std::array::from_fn(|a| {
                    let span = c.dilation[a] * (c.kernel[a] - 1) + 1;
                    let least = (c.output()[a] - 1) * c.stride[a] + span;
                    c.input[a] + c.low[a] + c.high[a] - least
                }));
                let layer = KfacLayer::new(conv::<D>(c), c.outputs, c.channels, last(c.output()));
                layer.transposed(extra)
            }
        };
        layer.bias(self.bias)
    }

    pub(super) fn state<const D: usize>(&self, options: KfacOptions) -> KfacState<f64, D> {
        KfacState::new(&Device::Cpu, self.layer::<D>(), options).unwrap()
    }

    pub(super) fn shapes(&self) -> [Vec<usize>; 2] {
        let shapes = [self.case.input_shape(), self.case.output_shape()];
        let [input, output] = shapes;
        if self.transposed { [output, input] } else { [input, output] }
    }

    pub(super) fn operands<T: Element>(&self) -> (Tensor<T>, Tensor<T>) {
        let [x, dy] = self.shapes();
        (tensor(&x, &self.x), tensor(&dy, &self.dy))
    }

    /// Some of the examples.
    pub(super) fn examples(&self, from: usize, count: usize) -> Problem {
        let part = |data: &[f64]| {
            let len = data.len() / self.case.batch;
            data[from * len..(from + count) * len].to_vec()
        };
        let case = Case { batch: count, ..self.case.clone() };
        Problem { case, x: part(&self.x), dy: part(&self.dy), ..self.clone() }
    }

    pub(super) fn positions(&self) -> usize {
        match self.transposed {
            false => self.case.positions(),
            true => self.case.input.iter().product(),
        }
    }

    /// (channels of the input, of the output) per group.
    pub(super) fn channels(&self) -> (usize, usize) {
        let (c, groups) = (&self.case, self.case.groups);
        let (channels, outputs) = (c.channels / groups, c.outputs / groups);
        if self.transposed { (outputs, channels) } else { (channels, outputs) }
    }

    pub(super) fn group(&self, group: usize) -> Group {
        let c = &self.case;
        let ((channels, outputs), taps) = (self.channels(), c.taps());
        let unfolded = if self.transposed { Vec::new() } else { c.unfold(&self.x) };
        let mut sources = vec![vec![None; taps]; c.input.iter().product()];
        c.each_tap(|o, tap, i| {
            if let Some(i) = i {
                sources[i][tap] = Some(o);
            }
        });
        let patch = |n: usize, at: usize| {
            let entries = (0..channels * taps).map(|row| {
                let (channel, tap) = match c.layout {
                    Layout::ChannelsFirst => (row / taps, row % taps),
                    Layout::ChannelsLast => (row % channels, row / channels),
                };
                let channel = group * channels + channel;
                match self.transposed {
                    false => unfolded[c.patch_index(n, channel, tap, at)],
                    true => sources[at][tap].map_or(0.0, |o| self.x[c.output_index(n, channel, o)]),
                }
            });
            entries.chain(self.bias.then_some(1.0)).collect()
        };
        let gradient = |n: usize, at: usize| {
            let channels = (group * outputs..(group + 1) * outputs).map(|channel| {
                let index = match self.transposed {
                    false => c.output_index(n, channel, at),
                    true => c.input_index(n, channel, at),
                };
                self.dy[index]
            });
            channels.collect()
        };
        let each = |of: &dyn Fn(usize, usize) -> Vec<f64>| -> Vec<Vec<Vec<f64>>> {
            let example = |n| (0..self.positions()).map(|at| of(n, at)).collect();
            (0..c.batch).map(example).collect()
        };
        Group { patches: each(&patch), gradients: each(&gradient) }
    }

    pub(super) fn groups(&self) -> Vec<Group> {
        (0..self.case.groups).map(|group| self.group(group)).collect()
    }
}

pub(super) fn outer(left: &[f64], right: &[f64]) -> DMatrix<f64> {
    DMatrix::from_fn(left.len(), right.len(), |i, j| left[i] * right[j])
}

pub(super) fn total(vectors: &[Vec<f64>]) -> Vec<f64> {
    let sum = |at: usize| vectors.iter().map(|vector| vector[at]).sum();
    (0..vectors[0].len()).map(sum).collect()
}

/// The mean of outer squares, as the sharing has it, without the powers of T.
pub(super) fn covariance(examples: &[Vec<Vec<f64>>], sharing: WeightSharing) -> DMatrix<f64> {
    let mut sum = DMatrix::zeros(examples[0][0].len(), examples[0][0].len());
    for positions in examples {
        match sharing {
            WeightSharing::Expand => positions.iter().for_each(|v| sum += outer(v, v)),
            WeightSharing::Reduce => sum += outer(&total(positions), &total(positions)),
        }
    }
    sum / examples.len() as f64
}

impl Group {
    /// A and G.
    pub(super) fn factors(&self, sharing: WeightSharing) -> (DMatrix<f64>, DMatrix<f64>) {
        let t = self.patches[0].len() as f64;
        let power = if sharing == WeightSharing::Expand { t } else { t * t };
        (covariance(&self.patches, sharing) / power, covariance(&self.gradients, sharing))
    }

    /// Each example's gradient, [O/g, d].
    pub(super) fn examples(&self) -> Vec<DMatrix<f64>> {
        let example = |(patches, gradients): (&Vec<Vec<f64>>, &Vec<Vec<f64>>)| {
            let products = gradients.iter().zip(patches).map(|(g, a)| outer(g, a));
            products.reduce(|sum, next| sum + next).unwrap()
        };
        self.patches.iter().zip(&self.gradients).map(example).collect()
    }

    /// The mean of the examples' gradients.
    pub(super) fn mean(&self) -> DMatrix<f64> {
        let examples = self.examples();
        let count = examples.len() as f64;
        examples.into_iter().reduce(|sum, next| sum + next).unwrap() / count
    }

    /// The empirical Fisher matrix of the weights row by row.
    pub(super) fn fisher(&self) -> DMatrix<f64> {
        let examples = self.examples();
        let count = examples.len() as f64;
        let squares = examples.iter().map(|m| {
            let vector = row_major(m);
            outer(&vector, &vector)
        });
        squares.reduce(|sum, next| sum + next).unwrap() / count
    }
}

pub(super) fn row_major(matrix: &DMatrix<f64>) -> Vec<f64> {
    matrix.transpose().as_slice().to_vec()
}

/// One group's matrix of a tensor `[g, rows, columns]`.
pub(super) fn block(stack: &Tensor<f64>, group: usize) -> DMatrix<f64> {
    let (rows, columns) = (stack.shape()[1], stack.shape()[2]);
    let len = rows * columns;
    DMatrix::from_row_slice(rows, columns, &values(stack)[group * len..][..len])
}

pub(super) fn assert_close(
    found: &DMatrix<f64>,
    expected: &DMatrix<f64>,
    relative: f64,
    what: &str,
) {
    assert_eq!(found.shape(), expected.shape(), "{what}");
    let (error, scale) = ((found - expected).amax(), expected.amax());
    assert!(error <= relative * scale + 1e-300, "{what}: off by {error:e} of {scale:e}");
}

/// Those of the catalogue's kinds that other packages get wrong or refuse, by name.
pub(super) fn named() -> Vec<(&'static str, Case)> {
    let plain = Case {
        batch: 4,
        channels: 2,
        outputs: 3,
        groups: 1,
        spatial: 2,
        input: [1, 5, 4],
        kernel: [1, 3, 2],
        stride: [1, 1, 1],
        dilation: [1, 1, 1],
        low: [0, 1, 1],
        high: [0, 1, 0],
        mode: PaddingMode::Zeros,
        layout: Layout::ChannelsFirst,
    };
    let padded = |mode| Case { mode, low: [0, 2, 1], high: [0, 1, 2], ..plain.clone() };
    vec![
        ("reflect padding", padded(PaddingMode::Reflect)),
        ("replicate padding", padded(PaddingMode::Replicate)),
        ("circular padding", padded(PaddingMode::Circular)),
        ("zero padding on one side", Case { low: [0, 2, 0], high: [0, 0, 3], ..plain.clone() }),
        ("dilation", Case { dilation: [1, 2, 3], ..plain.clone() }),
        ("stride", Case { stride: [1, 2, 3], ..plain.clone() }),
        ("groups", Case { channels: 4, outputs: 6, groups: 2, ..plain.clone() }),
        ("a group for each channel", Case { channels: 3, outputs: 3, groups: 3, ..plain.clone() }),
        (
            "groups, channels last",
            Case {
                channels: 4,
                outputs: 6,
                groups: 2,
                layout: Layout::ChannelsLast,
                ..plain.clone()
            },
        ),
        (
            "one axis",
            Case {
                spatial: 1,
                input: [1, 1, 7],
                kernel: [1, 1, 3],
                low: [0, 0, 1],
                high: [0, 0, 2],
                ..plain.clone()
            },
        ),
        ("three axes", Case { spatial: 3, input: [3, 3, 2], kernel: [2, 2, 1], ..plain.clone() }),
        ("plain", plain),
    ]
}

/// Every named case, and the transposed convolutions among them, with a bias and without.
pub(super) fn problems() -> Vec<(String, Problem)> {
    let mut found = Vec::new();
    for (name, case) in named() {
        for bias in [false, true] {
            let name = if bias { format!("{name}, with a bias") } else { name.to_string() };
            if case.mode == PaddingMode::Zeros {
                found.push((format!("{name}, transposed"), Problem::transposed(&case, bias)));
            }
            found.push((name, Problem::new(&case, bias)));
        }
    }
    found
}
