//! K-FAC, EKFAC and their relatives: against the definitions written out with dense matrices of another
//! library, and against what the papers say of them.

use convmat::{
    Conv, Device, Element, KfacLayer, KfacMethod, KfacOptions, KfacState, Layout, PaddingMode,
    Tensor, WeightSharing,
};
use nalgebra::DMatrix;
use proptest::prelude::*;

use crate::catalogue::{cases, conv, last, randoms, tensor, values};
use crate::oracle::Case;

mod errors;
mod files;
mod laws;
mod schedules;

const SHARINGS: [WeightSharing; 2] = [WeightSharing::Expand, WeightSharing::Reduce];

/// A layer with data: a case's convolution, or the transposed one from its outputs to its inputs.
#[derive(Clone, Debug)]
struct Problem {
    case: Case,
    transposed: bool,
    bias: bool,
    x: Vec<f64>,
    dy: Vec<f64>,
}

/// Of one group: for each example and position, the patch and the gradient.
struct Group {
    patches: Vec<Vec<Vec<f64>>>,
    gradients: Vec<Vec<Vec<f64>>>,
}

impl Problem {
    fn new(case: &Case, bias: bool) -> Self {
        let (x, dy) = (randoms(case.input_len(), 11), randoms(case.output_len(), 12));
        Problem { case: case.clone(), transposed: false, bias, x, dy }
    }

    fn transposed(case: &Case, bias: bool) -> Self {
        let (x, dy) = (randoms(case.output_len(), 13), randoms(case.input_len(), 14));
        Problem { case: case.clone(), transposed: true, bias, x, dy }
    }

    fn layer<const D: usize>(&self) -> KfacLayer<D> {
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

    fn state<const D: usize>(&self, options: KfacOptions) -> KfacState<f64, D> {
        KfacState::new(&Device::Cpu, self.layer::<D>(), options).unwrap()
    }

    fn shapes(&self) -> [Vec<usize>; 2] {
        let shapes = [self.case.input_shape(), self.case.output_shape()];
        let [input, output] = shapes;
        if self.transposed { [output, input] } else { [input, output] }
    }

    fn operands<T: Element>(&self) -> (Tensor<T>, Tensor<T>) {
        let [x, dy] = self.shapes();
        (tensor(&x, &self.x), tensor(&dy, &self.dy))
    }

    /// Some of the examples.
    fn examples(&self, from: usize, count: usize) -> Problem {
        let part = |data: &[f64]| {
            let len = data.len() / self.case.batch;
            data[from * len..(from + count) * len].to_vec()
        };
        let case = Case { batch: count, ..self.case.clone() };
        Problem { case, x: part(&self.x), dy: part(&self.dy), ..self.clone() }
    }

    fn positions(&self) -> usize {
        match self.transposed {
            false => self.case.positions(),
            true => self.case.input.iter().product(),
        }
    }

    /// (channels of the input, of the output) per group.
    fn channels(&self) -> (usize, usize) {
        let (c, groups) = (&self.case, self.case.groups);
        let (channels, outputs) = (c.channels / groups, c.outputs / groups);
        if self.transposed { (outputs, channels) } else { (channels, outputs) }
    }

    fn group(&self, group: usize) -> Group {
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

    fn groups(&self) -> Vec<Group> {
        (0..self.case.groups).map(|group| self.group(group)).collect()
    }
}

fn outer(left: &[f64], right: &[f64]) -> DMatrix<f64> {
    DMatrix::from_fn(left.len(), right.len(), |i, j| left[i] * right[j])
}

fn total(vectors: &[Vec<f64>]) -> Vec<f64> {
    let sum = |at: usize| vectors.iter().map(|vector| vector[at]).sum();
    (0..vectors[0].len()).map(sum).collect()
}

/// The mean of outer squares, as the sharing has it, without the powers of T.
fn covariance(examples: &[Vec<Vec<f64>>], sharing: WeightSharing) -> DMatrix<f64> {
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
    fn factors(&self, sharing: WeightSharing) -> (DMatrix<f64>, DMatrix<f64>) {
        let t = self.patches[0].len() as f64;
        let power = if sharing == WeightSharing::Expand { t } else { t * t };
        (covariance(&self.patches, sharing) / power, covariance(&self.gradients, sharing))
    }

    /// Each example's gradient, [O/g, d].
    fn examples(&self) -> Vec<DMatrix<f64>> {
        let example = |(patches, gradients): (&Vec<Vec<f64>>, &Vec<Vec<f64>>)| {
            let products = gradients.iter().zip(patches).map(|(g, a)| outer(g, a));
            products.reduce(|sum, next| sum + next).unwrap()
        };
        self.patches.iter().zip(&self.gradients).map(example).collect()
    }

    /// The mean of the examples' gradients.
    fn mean(&self) -> DMatrix<f64> {
        let examples = self.examples();
        let count = examples.len() as f64;
        examples.into_iter().reduce(|sum, next| sum + next).unwrap() / count
    }

    /// The empirical Fisher matrix of the weights row by row.
    fn fisher(&self) -> DMatrix<f64> {
        let examples = self.examples();
        let count = examples.len() as f64;
        let squares = examples.iter().map(|m| {
            let vector = row_major(m);
            outer(&vector, &vector)
        });
        squares.reduce(|sum, next| sum + next).unwrap() / count
    }
}

fn row_major(matrix: &DMatrix<f64>) -> Vec<f64> {
    matrix.transpose().as_slice().to_vec()
}

/// One group's matrix of a tensor `[g, rows, columns]`.
fn block(stack: &Tensor<f64>, group: usize) -> DMatrix<f64> {
    let (rows, columns) = (stack.shape()[1], stack.shape()[2]);
    let len = rows * columns;
    DMatrix::from_row_slice(rows, columns, &values(stack)[group * len..][..len])
}

fn assert_close(found: &DMatrix<f64>, expected: &DMatrix<f64>, relative: f64, what: &str) {
    assert_eq!(found.shape(), expected.shape(), "{what}");
    let (error, scale) = ((found - expected).amax(), expected.amax());
    assert!(error <= relative * scale + 1e-300, "{what}: off by {error:e} of {scale:e}");
}

/// Those of the catalogue's kinds that other packages get wrong or refuse, by name.
fn named() -> Vec<(&'static str, Case)> {
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
                ..plain.clone()
            },
        ),
        ("three axes", Case { spatial: 3, input: [3, 3, 2], kernel: [2, 2, 1], ..plain.clone() }),
        ("plain", plain),
    ]
}

/// Every named case, and the transposed convolutions among them, with a bias and without.
fn problems() -> Vec<(String, Problem)> {
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

/// Calls a generic function with the problem's number of axes.
macro_rules! over {
    ($problem:expr, $D:ident => $body:expr) => {
        convmat::with_axes!($problem.case.spatial, $D => {
            $body;
            Ok::<(), convmat::Error>(())
        })
        .unwrap()
    };
}
use over;

fn check_factors<const D: usize>(problem: &Problem, what: &str) {
    let (x, dy) = problem.operands::<f64>();
    for sharing in SHARINGS {
        let mut state = problem.state::<D>(KfacOptions::new().sharing(sharing));
        state.accumulate(&x, &dy).unwrap();
        assert_eq!(state.examples(), problem.case.batch as u64);
        let gradient = state.mean_gradient(&x, &dy).unwrap();
        for (number, group) in problem.groups().iter().enumerate() {
            let what = format!("{what}, {sharing}, group {number}");
            let (a, g) = group.factors(sharing);
            assert_close(&block(state.input_factor().unwrap(), number), &a, 1e-13, &what);
            assert_close(&block(state.output_factor().unwrap(), number), &g, 1e-13, &what);
            assert_close(&block(&gradient, number), &group.mean(), 1e-13, &what);
        }
    }
}

#[test]
fn factors_are_what_is_defined() {
    for (name, problem) in problems() {
        over!(problem, D => check_factors::<D>(&problem, &name));
    }
}

/// The dense matrix that a method's preconditioning inverts, in the order of the weights row by row.
fn curvature(group: &Group, method: KfacMethod, damping: f64, pi: bool) -> DMatrix<f64> {
    let (a, g) = group.factors(WeightSharing::Expand);
    let (d, o) = (a.nrows(), g.nrows());
    match method {
        KfacMethod::Kfac => {
            let mean = |m: &DMatrix<f64>| m.trace() / m.nrows() as f64;
            let pi = if pi { (mean(&a) / mean(&g)).sqrt() } else { 1.0 };
            let damped = |m: DMatrix<f64>, by: f64| {
                let n = m.nrows();
                m + DMatrix::identity(n, n) * by
            };
            damped(g, damping.sqrt() / pi).kronecker(&damped(a, damping.sqrt() * pi))
        }
        KfacMethod::Ekfac => {
            // The second moments do not depend on which eigenvectors, where eigenvalues are distinct.
            let basis =
                g.symmetric_eigen().eigenvectors.kronecker(&a.symmetric_eigen().eigenvectors);
            let rotated = basis.transpose() * group.fisher() * &basis;
            let diagonal = DMatrix::from_diagonal(&rotated.diagonal());
            &basis * diagonal * basis.transpose() + DMatrix::identity(d * o, d * o) * damping
        }
        KfacMethod::Diagonal => {
            let fisher = group.fisher();
            DMatrix::from_diagonal(&fisher.diagonal().add_scalar(damping))
        }
        _ => {
            let dw = group.mean();
            let root = |m: DMatrix<f64>| {
                let n = m.nrows();
                let eigen = (m + DMatrix::identity(n, n) * damping).symmetric_eigen();
                let roots = eigen.eigenvalues.map(|value| value.powf(0.25));
                &eigen.eigenvectors
                    * DMatrix::from_diagonal(&roots)
                    * eigen.eigenvectors.transpose()
            };
            root(&dw * dw.transpose()).kronecker(&root(dw.transpose() * &dw))
        }
    }
}

fn prepared<const D: usize>(problem: &Problem, options: KfacOptions) -> KfacState<f64, D> {
    let (x, dy) = problem.operands::<f64>();
    let mut state = problem.state::<D>(options);
    state.step(&x, &dy).unwrap();
    state
}

fn check_preconditioning<const D: usize>(problem: &Problem, what: &str) {
    let groups = problem.groups();
    for (method, pi) in
        KfacMethod::ALL.map(|m| (m, true)).into_iter().chain([(KfacMethod::Kfac, false)])
    {
        let options = KfacOptions::new().method(method).damping(0.03).pi_correction(pi);
        let state = prepared::<D>(problem, options);
        let (channels, outputs) = problem.channels();
        let rows = channels * problem.case.taps() + usize::from(problem.bias);
        let shape = [groups.len(), outputs, rows];
        let data = randoms(shape.iter().product(), 15);
        let found = state.precondition(&tensor(&shape, &data)).unwrap();
        let flat = [groups.len() * outputs, rows];
        assert_eq!(values(&state.precondition(&tensor(&flat, &data)).unwrap()), values(&found));
        for (number, group) in groups.iter().enumerate() {
            let what = format!("{what}, {method}, group {number}");
            let curvature = curvature(group, method, 0.03, pi);
            let len = outputs * rows;
            let right = DMatrix::from_column_slice(len, 1, &data[number * len..][..len]);
            let expected = curvature.lu().solve(&right).unwrap();
            let found = DMatrix::from_column_slice(len, 1, &values(&found)[number * len..][..len]);
            // Reduced and small problems have eigenvalues of no distance, and eigenvectors of no use.
            assert_close(&found, &expected, 1e-9, &what);
        }
    }
}

#[test]
fn preconditioning_is_a_dense_solve() {
    for (name, problem) in problems() {
        // Enough data that factors have full rank and, for EKFAC, one set of eigenvectors.
        let case = Case { batch: 9, ..problem.case.clone() };
        let problem = match problem.transposed {
            false => Problem::new(&case, problem.bias),
            true => Problem::transposed(&case, problem.bias),
        };
        over!(problem, D => check_preconditioning::<D>(&problem, &name));
    }
}

/// The diagonal method divides element by element: so the layout of the weight shows.
fn check_weights<const D: usize>(problem: &Problem, what: &str) {
    let state =
        prepared::<D>(problem, KfacOptions::new().method(KfacMethod::Diagonal).damping(0.5));
    let conv = conv::<D>(&problem.case);
    let gradients = |problem: &Problem| {
        let (x, dy) = problem.operands::<f64>();
        let weight = match problem.transposed {
            false => conv.backward_weight(&x, &dy),
            true => conv.backward_weight(&dy, &x),
        };
        (weight.unwrap(), conv.backward_bias(&dy).unwrap())
    };
    let (weight, bias) = gradients(problem);
    let mut squares = [vec![0.0; weight.len()], vec![0.0; bias.len()]];
    for n in 0..problem.case.batch {
        let (weight, bias) = gradients(&problem.examples(n, 1));
        for (squares, values) in squares.iter_mut().zip([values(&weight), values(&bias)]) {
            squares.iter_mut().zip(values).for_each(|(sum, value)| *sum += value * value);
        }
    }
    let given = problem.bias.then(|| bias.view());
    let (new_weight, new_bias) = state.precondition_weight(&weight, given).unwrap();
    assert_eq!(new_weight.shape(), weight.shape(), "{what}");
    assert_eq!(new_bias.is_some(), problem.bias, "{what}");
    let pairs = [(Some(new_weight), weight, &squares[0]), (new_bias, bias, &squares[1])];
    for (found, old, squares) in pairs {
        let Some(found) = found else { continue };
        let batch = problem.case.batch as f64;
        for ((found, old), square) in values(&found).iter().zip(values(&old)).zip(squares) {
            let expected = old / (square / batch + 0.5);
            assert!((found - expected).abs() <= 1e-12 * (1.0 + expected.abs()), "{what}");
        }
    }
}

#[test]
fn gradients_come_back_in_the_weights_layout() {
    for (name, problem) in problems() {
        over!(problem, D => check_weights::<D>(&problem, &name));
        let case = Case { layout: Layout::ChannelsLast, ..problem.case.clone() };
        let last = match problem.transposed {
            false => Problem::new(&case, problem.bias),
            true => Problem::transposed(&case, problem.bias),
        };
        over!(last, D => check_weights::<D>(&last, &format!("{name}, channels last")));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_layer_has_factors_and_a_diagonal(case in cases(), bias in any::<bool>()) {
        let case = Case { batch: case.batch.max(1), ..case };
        let problem = Problem::new(&case, bias);
        over!(problem, D => {
            check_factors::<D>(&problem, "random");
            check_weights::<D>(&problem, "random");
        });
    }
}

/// Elements of other types are summed in the state's.
#[test]
fn elements_of_any_type() {
    let (_, case) = named().pop().unwrap();
    let problem = Problem::new(&case, true);
    fn run<T: Element>(problem: &Problem, method: KfacMethod) -> Vec<f64> {
        let (x, dy) = problem.operands::<T>();
        let options = KfacOptions::new().method(method).damping(0.1);
        let layer = problem.layer::<2>();
        let mut state = KfacState::<f32, 2>::new(&Device::Cpu, layer, options).unwrap();
        state.step(&x, &dy).unwrap();
        values(&state.precondition(&state.mean_gradient(&x, &dy).unwrap()).unwrap())
    }
    for method in KfacMethod::ALL {
        let wide = prepared::<2>(&problem, KfacOptions::new().method(method).damping(0.1));
        let (x, dy) = problem.operands::<f64>();
        let exact = wide.precondition(&wide.mean_gradient(&x, &dy).unwrap()).unwrap();
        let exact = values(&exact);
        let scale = exact.iter().fold(0.0f64, |most, value| most.max(value.abs()));
        for (found, relative) in [
            (run::<f32>(&problem, method), 1e-4),
            (run::<half::f16>(&problem, method), 0.03),
            (run::<half::bf16>(&problem, method), 0.2),
        ] {
            for (found, exact) in found.iter().zip(&exact) {
                assert!((found - exact).abs() <= relative * scale, "{method}: {found} for {exact}");
            }
        }
    }
}

/// A layer of one axis with few numbers, for tests of what surrounds the numbers.
fn small() -> (KfacLayer<1>, Tensor<f64>, Tensor<f64>) {
    let layer = KfacLayer::new(Conv::new([2]).groups(2), 4, 6, [4]).bias(true);
    let x = tensor(&[5, 4, 4], &randoms(80, 21));
    let dy = tensor(&[5, 6, 3], &randoms(90, 22));
    (layer, x, dy)
}
