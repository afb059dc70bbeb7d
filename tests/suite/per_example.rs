//! Gradients of single examples, against the oracle's loops, one image at a time.

use convmat::{
    Accumulator, Conv, Device, Element, Error, Layout, PaddingMode, PerExampleOptions, PlanOptions,
    Tensor, Update, with_axes,
};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::catalogue::{accelerators, cases, conv, integers, layers, on, randoms, tensor, values};
use crate::oracle::Case;

/// A case as a layer: the convolution, or the transposed one from its outputs to its inputs.
#[derive(Clone, Debug)]
struct Layer {
    case: Case,
    bias: bool,
    transposed: bool,
}

impl Layer {
    /// Both kinds of layers, with a bias and without.
    fn all(case: &Case) -> Vec<Layer> {
        let mut found = Vec::new();
        for bias in [false, true] {
            found.push(Layer { case: case.clone(), bias, transposed: false });
            if is_transposed(case) {
                found.push(Layer { case: case.clone(), bias, transposed: true });
            }
        }
        found
    }

    fn options(&self) -> PerExampleOptions {
        PerExampleOptions::new().bias(self.bias).transposed(self.transposed)
    }

    fn x_shape(&self) -> Vec<usize> {
        if self.transposed { self.case.output_shape() } else { self.case.input_shape() }
    }

    fn dy_shape(&self) -> Vec<usize> {
        if self.transposed { self.case.input_shape() } else { self.case.output_shape() }
    }

    /// Channels of x and of dy in a group.
    fn per_group(&self) -> [usize; 2] {
        let c = &self.case;
        let [inputs, outputs] = [c.channels / c.groups, c.outputs / c.groups];
        if self.transposed { [outputs, inputs] } else { [inputs, outputs] }
    }

    fn rows(&self) -> usize {
        self.per_group()[1]
    }

    fn columns(&self) -> usize {
        self.per_group()[0] * self.case.taps() + usize::from(self.bias)
    }

    fn shape(&self) -> [usize; 3] {
        [self.case.groups, self.rows(), self.columns()]
    }

    fn len(&self) -> usize {
        self.shape().iter().product()
    }

    /// Where the gradient by a weight of the *case* is.
    fn place(&self, output: usize, input: usize, tap: usize) -> usize {
        let c = &self.case;
        let per_output = c.outputs / c.groups;
        let (group, output) = (output / per_output, output % per_output);
        let [row, channel] = if self.transposed { [input, output] } else { [output, input] };
        let column = match c.layout {
            Layout::ChannelsFirst => channel * c.taps() + tap,
            Layout::ChannelsLast => tap * self.per_group()[0] + channel,
        };
        (group * self.rows() + row) * self.columns() + column
    }

    /// The gradients of all examples.
    fn gradients(&self, x: &[f64], dy: &[f64]) -> Vec<f64> {
        let c = &self.case;
        let (inputs, outputs) = if self.transposed { (dy, x) } else { (x, dy) };
        let positions = if self.transposed { c.input.iter().product() } else { c.positions() };
        let mut found = vec![0.0; c.batch * self.len()];
        for (n, found) in found.chunks_exact_mut(self.len()).enumerate() {
            c.each_tap(|o, tap, i| {
                let Some(i) = i else { return };
                for co in 0..c.outputs {
                    let per_group = c.channels / c.groups;
                    for ci in 0..per_group {
                        let channel = co / (c.outputs / c.groups) * per_group + ci;
                        found[self.place(co, ci, tap)] += outputs[c.output_index(n, co, o)]
                            * inputs[c.input_index(n, channel, i)];
                    }
                }
            });
            if !self.bias {
                continue;
            }
            for (row, found) in found.chunks_exact_mut(self.columns()).enumerate() {
                for at in 0..positions {
                    found[self.columns() - 1] += match self.transposed {
                        true => dy[c.input_index(n, row, at)],
                        false => dy[c.output_index(n, row, at)],
                    };
                }
            }
        }
        found
    }

    /// Factors of an orthogonal matrix for each group, `[g, n, n]`: a reflection.
    fn orthogonal(&self, n: usize, seed: u64) -> Vec<f64> {
        let mut found = Vec::new();
        for group in 0..self.case.groups {
            let v = randoms(n, seed + group as u64);
            let square: f64 = v.iter().map(|v| v * v).sum();
            let at = |i: usize, j: usize| {
                f64::from(u8::from(i == j)) - 2.0 * v[i] * v[j] / square.max(1e-300)
            };
            found.extend((0..n * n).map(|at_| at(at_ / n, at_ % n)));
        }
        found
    }

    /// The squares of rotated gradients, summed.
    fn moment(&self, gradients: &[f64], q_a: Option<&[f64]>, q_g: Option<&[f64]>) -> Vec<f64> {
        let [groups, rows, columns] = self.shape();
        let mut sums = vec![0.0; self.len()];
        for gradient in gradients.chunks_exact(self.len()) {
            for group in 0..groups {
                let part = &gradient[group * rows * columns..][..rows * columns];
                let mut right = part.to_vec();
                if let Some(q) = q_a {
                    let q = &q[group * columns * columns..];
                    for (row, part) in part.chunks_exact(columns).enumerate() {
                        for j in 0..columns {
                            right[row * columns + j] =
                                (0..columns).map(|i| part[i] * q[i * columns + j]).sum();
                        }
                    }
                }
                for i in 0..rows {
                    for j in 0..columns {
                        let value = match q_g {
                            None => right[i * columns + j],
                            Some(q) => (0..rows)
                                .map(|k| q[(group * rows + k) * rows + i] * right[k * columns + j])
                                .sum(),
                        };
                        sums[(group * rows + i) * columns + j] += value * value;
                    }
                }
            }
        }
        sums
    }
}

/// Whether the case's adjoint is a transposed convolution with an output padding.
fn is_transposed(case: &Case) -> bool {
    (0..3).all(|a| {
        let span = case.dilation[a] * (case.kernel[a] - 1) + 1;
        let least = (case.output()[a] - 1) * case.stride[a] + span;
        let extra = case.input[a] + case.low[a] + case.high[a] - least;
        extra < case.stride[a].max(case.dilation[a])
    })
}

/// Runs one of the calls on a case, whatever its number of axes.
macro_rules! call {
    ($case:expr, |$conv:ident| $call:expr) => {
        with_axes!($case.spatial, D => { let $conv = conv::<D>(&$case); $call })
    };
}

fn operands<T: Element>(layer: &Layer, device: &Device, [x, dy]: [&[f64]; 2]) -> [Tensor<T>; 2] {
    [(layer.x_shape(), x), (layer.dy_shape(), dy)]
        .map(|(shape, data)| on(device, &tensor::<T>(&shape, data)))
}

/// Small integers agree exactly, in any order of the sums.
fn check_integers<T: Element, F: Accumulator>(layer: &Layer, device: &Device) {
    let (case, options) = (&layer.case, layer.options());
    let [x, dy] = [(layer.x_shape(), 5), (layer.dy_shape(), 6)]
        .map(|(shape, seed)| integers(shape.iter().product(), seed, 2));
    let [tx, tdy] = operands::<T>(layer, device, [&x, &dy]);
    let expected = layer.gradients(&x, &dy);
    let found = call!(case, |conv| conv.per_example_gradients::<T, F>(&tx, &tdy, options)).unwrap();
    let mut shape = vec![case.batch];
    shape.extend(layer.shape());
    assert_eq!(found.shape(), shape);
    assert_eq!(values(&found), expected, "{layer:?} on {device}");

    let squares: Vec<f64> = expected
        .chunks_exact(layer.len())
        .map(|gradient| gradient.iter().map(|value| value * value).sum())
        .collect();
    let norms = call!(case, |conv| conv.gradient_norms::<T, F>(&tx, &tdy, options)).unwrap();
    let rounded = |squares: &[f64]| -> Vec<f64> {
        squares.iter().map(|square| F::from_f64(square.sqrt()).to_f64()).collect()
    };
    assert_eq!(values(&norms), rounded(&squares), "{layer:?} on {device}");

    let limit = 1e6;
    let clipped =
        call!(case, |conv| conv.clipped_gradient::<T, F>(&tx, &tdy, limit, options)).unwrap();
    let mut sum = vec![0.0; layer.len()];
    for gradient in expected.chunks_exact(layer.len()) {
        sum.iter_mut().zip(gradient).for_each(|(sum, value)| *sum += value);
    }
    assert_eq!(clipped.gradient.shape(), layer.shape());
    assert_eq!(values(&clipped.gradient), sum, "{layer:?} on {device}");
    assert_eq!(values(&clipped.norms), rounded(&squares), "{layer:?} on {device}");

    let diagonal = layer.moment(&expected, None, None);
    if diagonal.iter().all(|&square| square < 1e6) {
        let three = tensor::<F>(&layer.shape(), &vec![3.0; layer.len()]);
        for (update, old, scale) in
            [(Update::replace(1.0), 0.0, 1.0), (Update::new(0.5, -2.0), 1.5, -2.0)]
        {
            let mut target = on(device, &three);
            call!(case, |conv| conv.rotated_second_moment_into::<T, F>(
                &tx,
                &tdy,
                None,
                None,
                options,
                update,
                &mut target
            ))
            .unwrap();
            let expected: Vec<f64> = diagonal.iter().map(|sum| old + scale * sum).collect();
            assert_eq!(values(&target), expected, "{layer:?} on {device}");
        }
    }
}

/// Full mantissas: close to f64 loops over the rounded values, and the same bytes twice.
fn check_randoms<T: Element, F: Accumulator>(layer: &Layer, device: &Device) {
    let (case, options) = (&layer.case, layer.options());
    let hosts = [(layer.x_shape(), 7), (layer.dy_shape(), 8)]
        .map(|(shape, seed)| tensor::<T>(&shape, &randoms(shape.iter().product(), seed)));
    let [x, dy] = hosts.each_ref().map(values);
    let [tx, tdy] = operands::<T>(layer, device, [&x, &dy]);
    let gradients = layer.gradients(&x, &dy);
    // What sums of absolute values would be, in place of what cancels.
    let sizes = [&x, &dy].map(|of| of.iter().map(|v| v.abs()).collect::<Vec<f64>>());
    let sizes = layer.gradients(&sizes[0], &sizes[1]);
    let norm = |of: &[f64]| of.iter().map(|v| v * v).sum::<f64>().sqrt();
    let terms = (case.positions() + layer.len()) as f64;
    let limit = 8.0 * F::DTYPE.unit_roundoff() * (4.0 + terms.sqrt());

    let norms = call!(case, |conv| conv.gradient_norms::<T, F>(&tx, &tdy, options)).unwrap();
    let again = call!(case, |conv| conv.gradient_norms::<T, F>(&tx, &tdy, options)).unwrap();
    assert_eq!(norms, again);
    let norms = values(&norms);
    let each = |of: &[f64]| of.chunks_exact(layer.len()).map(norm).collect::<Vec<_>>();
    let (exact, largest) = (each(&gradients), each(&sizes));
    for ((found, exact), largest) in norms.iter().zip(&exact).zip(&largest) {
        // Squares, as that is what Gram matrices' sums are precise to.
        let apart = (found * found - exact * exact).abs();
        assert!(apart <= limit * largest * largest, "{found} for {exact}: {layer:?} on {device}");
    }

    let bound = exact.iter().copied().fold(0.0, f64::max) * 0.6;
    if bound > 0.0 {
        let clipped =
            call!(case, |conv| conv.clipped_gradient::<T, F>(&tx, &tdy, bound, options)).unwrap();
        let mut sum = vec![(0.0, 0.0); layer.len()];
        for (n, norm) in exact.iter().enumerate() {
            let factor = if *norm > bound { bound / norm } else { 1.0 };
            // A norm that cancels is only as precise as its square.
            let slack = 1.0 + (largest[n] / norm.max(bound)).powi(2);
            for (at, sum) in sum.iter_mut().enumerate() {
                sum.0 += factor * gradients[n * layer.len() + at];
                sum.1 += slack * sizes[n * layer.len() + at];
            }
        }
        for (found, (sum, size)) in values(&clipped.gradient).iter().zip(sum) {
            assert!((found - sum).abs() <= limit * size, "{found} {sum}: {layer:?} on {device}");
        }
    }

    let [q_a, q_g] = [layer.orthogonal(layer.columns(), 9), layer.orthogonal(layer.rows(), 10)];
    let q = [(layer.columns(), &q_a), (layer.rows(), &q_g)]
        .map(|(n, q)| on(device, &tensor::<F>(&[case.groups, n, n], q)));
    let [q_a, q_g] = q.each_ref().map(values);
    for [with_a, with_g] in [[true, true], [true, false], [false, true]] {
        let (a, g) = (with_a.then_some(&q[0]), with_g.then_some(&q[1]));
        let run = || {
            let (a, g) = (a.map(Tensor::view), g.map(Tensor::view));
            call!(case, |conv| conv.rotated_second_moment::<T, F>(
                &tx,
                &tdy,
                a.clone(),
                g.clone(),
                options
            ))
            .unwrap()
        };
        let found = run();
        assert_eq!(found, run());
        let dense =
            |of: &[f64]| layer.moment(of, with_a.then_some(&q_a[..]), with_g.then_some(&q_g[..]));
        let expected = dense(&gradients);
        let scale: f64 = largest.iter().map(|largest| largest * largest).sum();
        for (found, expected) in values(&found).iter().zip(&expected) {
            assert!(
                (found - expected).abs() <= 4.0 * limit * scale,
                "{found} for {expected}: {with_a} {with_g} {layer:?} on {device}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn integers_are_exact(case in cases()) {
        for layer in Layer::all(&case) {
            check_integers::<f32, f32>(&layer, &Device::Cpu);
            check_integers::<f32, f64>(&layer, &Device::Cpu);
            check_integers::<f64, f64>(&layer, &Device::Cpu);
            check_integers::<f16, f32>(&layer, &Device::Cpu);
            check_integers::<bf16, f64>(&layer, &Device::Cpu);
        }
    }

    #[test]
    fn randoms_are_close(case in cases()) {
        for layer in Layer::all(&case) {
            check_randoms::<f32, f32>(&layer, &Device::Cpu);
            check_randoms::<f32, f64>(&layer, &Device::Cpu);
            check_randoms::<f64, f64>(&layer, &Device::Cpu);
            check_randoms::<bf16, f32>(&layer, &Device::Cpu);
        }
    }
}

proptest! {
    // Every case is several kernels to compile.
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn devices_agree(case in cases()) {
        for device in accelerators() {
            for layer in Layer::all(&case) {
                check_integers::<f32, f32>(&layer, device);
                check_integers::<bf16, f32>(&layer, device);
                check_randoms::<f32, f64>(&layer, device);
            }
        }
    }
}

/// A norm that is not finite is noticed by the call, which reads the norms.
#[test]
fn devices_find_what_is_not_finite() {
    let conv = Conv::new([2]);
    let x = tensor::<f32>(&[2, 1, 3], &[1.0, 2.0, 3.0, f64::INFINITY, 1.0, 1.0]);
    let dy = tensor::<f32>(&[2, 1, 2], &[1.0; 4]);
    for device in accelerators() {
        let (x, dy) = (on(device, &x), on(device, &dy));
        let options = PerExampleOptions::new();
        let error = conv.clipped_gradient::<f32, f32>(&x, &dy, 1.0, options).unwrap_err();
        assert!(error.to_string().contains("norm of example 1"), "{error}");
        let on_host = tensor::<f32>(&[2, 1, 2], &[1.0; 4]);
        let error = conv.gradient_norms::<f32, f32>(&x, &on_host, options).unwrap_err();
        assert!(matches!(error, Error::DeviceMismatch { .. }), "{error}");
    }
}

/// Layers of usual sizes.
#[test]
fn layers_of_usual_kinds() {
    for case in layers() {
        for layer in Layer::all(&case) {
            check_integers::<f32, f32>(&layer, &Device::Cpu);
            check_randoms::<f64, f64>(&layer, &Device::Cpu);
        }
    }
}

/// The sums of all examples are the gradients by weight and bias.
#[test]
fn gradients_add_up_to_those_of_the_batch() {
    let conv = Conv::new([3, 2]).padding([1, 1]).stride([2, 1]).groups(2);
    let shapes = [[3, 4, 7, 6], [3, 6, 4, 7]];
    let [x, dy] =
        shapes.map(|shape| tensor::<f64>(&shape, &integers(shape.iter().product(), 1, 3)));
    let options = PerExampleOptions::new().bias(true);
    let found = conv.per_example_gradients::<f64, f64>(&x, &dy, options).unwrap();
    assert_eq!(found.shape(), [3, 2, 3, 13]);
    let found = values(&found);
    let weight = values(&conv.backward_weight(&x, &dy).unwrap());
    let bias = values(&conv.backward_bias(&dy).unwrap());
    for row in 0..6 {
        for column in 0..13 {
            let sum: f64 = (0..3).map(|n| found[(n * 6 + row) * 13 + column]).sum();
            let expected = if column == 12 { bias[row] } else { weight[row * 12 + column] };
            assert_eq!(sum, expected);
        }
    }
}

/// Shapes that are cut into many tiles and chunks, as bytes.
fn large<const D: usize>(conv: Conv<D>, x: &[usize], dy: &[usize]) -> Vec<Vec<u32>> {
    let [x, dy] = [(x, 1), (dy, 2)]
        .map(|(shape, seed)| tensor::<f32>(shape, &randoms(shape.iter().product(), seed)));
    let options = PerExampleOptions::new().bias(true);
    let gradients = conv.per_example_gradients::<f32, f32>(&x, &dy, options).unwrap();
    let [groups, rows, columns] = gradients.shape()[1..] else { panic!("four axes") };
    let q = [columns, rows].map(|n| tensor::<f32>(&[groups, n, n], &randoms(groups * n * n, 3)));
    let norms = conv.gradient_norms::<f32, f32>(&x, &dy, options).unwrap();
    let clipped = conv.clipped_gradient::<f32, f32>(&x, &dy, 1.0, options).unwrap();
    let moment = conv.rotated_second_moment::<f32, f32>(&x, &dy, &q[0], &q[1], options).unwrap();
    let all = [gradients, norms, clipped.gradient, moment];
    all.map(|of| of.into_vec().unwrap().iter().map(|value| value.to_bits()).collect()).to_vec()
}

#[test]
fn the_number_of_threads_does_not_show() {
    let on_threads = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let square = Conv::new([3, 3]).padding([1, 1]);
            [
                large(square, &[5, 20, 24, 24], &[5, 30, 24, 24]),
                large(square, &[9, 40, 4, 4], &[9, 50, 4, 4]),
                large(square.groups(32), &[5, 32, 14, 14], &[5, 32, 14, 14]),
                large(
                    square.groups(2).layout(Layout::ChannelsLast),
                    &[3, 12, 12, 16],
                    &[3, 12, 12, 12],
                ),
            ]
        })
    };
    let one = on_threads(1);
    assert!(one == on_threads(3));
    assert!(one == on_threads(7));
}

/// Less workspace gives fewer workers, and the same.
#[test]
fn plans_are_run_again_within_their_workspace() {
    let conv = Conv::new([3]).padding([1]);
    let (x, dy) = ([4, 3, 20], [4, 5, 20]);
    let tensors =
        [x, dy].map(|shape| tensor::<f16>(&shape, &integers(shape.iter().product(), 2, 2)));
    let options = PerExampleOptions::new();
    let plan = PlanOptions::new();
    let cpu = &Device::Cpu;
    let moment = conv
        .plan_rotated_second_moment::<f16, f32>(cpu, &x, &dy, [false; 2], options, plan)
        .unwrap();
    assert!(moment.to_string().contains("rotate gradients"), "{moment}");
    let mut target = tensor::<f32>(&[1, 5, 9], &[0.0; 45]);
    let mut workspace = moment.make_workspace().unwrap();
    for _ in 0..2 {
        let [x, dy] = &tensors;
        moment.run(x, dy, None, None, Update::add(1.0), &mut target, &mut workspace).unwrap();
    }
    let [x_, dy_] = &tensors;
    let once = conv.rotated_second_moment::<f16, f32>(x_, dy_, None, None, options).unwrap();
    let twice: Vec<f64> = values(&once).iter().map(|v| 2.0 * v).collect();
    assert_eq!(values(&target), twice);
    let least = plan.workspace_limit(16);
    let error = conv.plan_gradient_norms::<f16, f32>(cpu, &x, &dy, options, least).unwrap_err();
    assert!(error.to_string().contains("workspace limit is 16"), "{error}");
}

#[test]
fn an_empty_batch_gives_nothing_or_zeros() {
    let conv = Conv::new([2]).groups(2);
    let (x, dy) = (tensor::<f32>(&[0, 2, 5], &[]), tensor::<f32>(&[0, 4, 4], &[]));
    let options = PerExampleOptions::new().bias(true);
    let gradients = conv.per_example_gradients::<f32, f32>(&x, &dy, options).unwrap();
    assert_eq!(gradients.shape(), [0, 2, 2, 3]);
    assert!(conv.gradient_norms::<f32, f32>(&x, &dy, options).unwrap().is_empty());
    let clipped = conv.clipped_gradient::<f32, f32>(&x, &dy, 1.0, options).unwrap();
    assert_eq!(values(&clipped.gradient), [0.0; 12]);
    let moment = conv.rotated_second_moment::<f32, f32>(&x, &dy, None, None, options).unwrap();
    assert_eq!(values(&moment), [0.0; 12]);
}

#[test]
fn a_gradient_of_zero_is_not_scaled() {
    let conv = Conv::new([2]);
    let x = tensor::<f32>(&[2, 1, 2], &[0.0, 0.0, 3.0, 4.0]);
    let dy = tensor::<f32>(&[2, 1, 1], &[1.0, 1.0]);
    let clipped =
        conv.clipped_gradient::<f32, f32>(&x, &dy, 2.5, PerExampleOptions::new()).unwrap();
    assert_eq!(values(&clipped.gradient), [1.5, 2.0]);
    assert_eq!(values(&clipped.norms), [0.0, 5.0]);
}

#[test]
fn wrong_operands_are_errors() {
    let conv = Conv::new([3]).groups(2);
    let options = PerExampleOptions::new();
    let x = tensor::<f64>(&[2, 4, 5], &[1.0; 40]);
    let dy = tensor::<f64>(&[2, 2, 3], &[1.0; 12]);
    let message = |found: Result<Tensor<f64>, Error>| found.unwrap_err().to_string();
    let gradients = |conv: Conv<1>, x: &Tensor<f64>, dy: &Tensor<f64>| {
        message(conv.per_example_gradients::<f64, f64>(x, dy, options))
    };
    let short = tensor::<f64>(&[1, 2, 3], &[0.0; 6]);
    assert!(gradients(conv, &x, &short).contains("the batch of the input"));
    let narrow = tensor::<f64>(&[2, 2, 2], &[0.0; 8]);
    assert!(gradients(conv, &x, &narrow).contains("spatial extents [3]"));
    let odd = tensor::<f64>(&[2, 3, 3], &[0.0; 18]);
    assert!(gradients(conv, &x, &odd).contains("output gradient channels is 3"));
    assert!(gradients(conv.groups(3), &x, &dy).contains("input channels is 4"));
    let transposed =
        conv.gradient_norms::<f64, f64>(&x, &dy, options.transposed(true)).unwrap_err().to_string();
    assert!(transposed.contains("output gradient has shape [2, 2, 3]"), "{transposed}");
    let error = conv.gradient_norms::<f64, f32>(&x, &dy, options).unwrap_err().to_string();
    assert!(error.contains("norms has element type f32"), "{error}");

    for limit in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let found = conv.clipped_gradient::<f64, f64>(&x, &dy, limit, options);
        let error = found.unwrap_err().to_string();
        assert!(error.contains("limit is"), "{error}");
    }
    let mut infinite = vec![1.0; 40];
    infinite[30] = f64::INFINITY;
    let infinite = tensor::<f64>(&[2, 4, 5], &infinite);
    let error = conv.clipped_gradient::<f64, f64>(&infinite, &dy, 1.0, options).unwrap_err();
    assert!(error.to_string().contains("norm of example 1"), "{error}");

    let mut target = tensor::<f64>(&[2, 1, 6], &[1.0; 12]);
    let before = target.clone();
    let wrong = tensor::<f64>(&[2, 5, 5], &[0.0; 50]);
    let update = Update::add(1.0);
    let found = conv.rotated_second_moment_into::<f64, f64>(
        &x,
        &dy,
        &wrong,
        None,
        options,
        update,
        &mut target,
    );
    let error = found.unwrap_err().to_string();
    assert!(error.contains("q_a has shape [2, 5, 5], expected [2, 6, 6]"), "{error}");
    let found = conv.rotated_second_moment_into::<f64, f64>(
        &x,
        &dy,
        None,
        &wrong,
        options,
        update,
        &mut target,
    );
    let error = found.unwrap_err().to_string();
    assert!(error.contains("q_g has shape [2, 5, 5], expected [2, 1, 1]"), "{error}");
    let update = Update::new(1.0, f64::NAN);
    let found = conv.rotated_second_moment_into::<f64, f64>(
        &x,
        &dy,
        None,
        None,
        options,
        update,
        &mut target,
    );
    assert!(found.unwrap_err().to_string().contains("scale is NaN"));
    assert_eq!(target, before);
}

/// Modes other than zeros exist for transposed convolutions as well.
#[test]
fn every_mode_has_an_adjoint() {
    let conv = Conv::new([3]).padding([1]).padding_mode(PaddingMode::Replicate);
    let (x, dy) = ([2, 2, 4], [2, 3, 4]);
    let [x, dy] =
        [x, dy].map(|shape| tensor::<f64>(&shape, &integers(shape.iter().product(), 4, 3)));
    let options = PerExampleOptions::new().transposed(true);
    let found = conv.per_example_gradients::<f64, f64>(&x, &dy, options).unwrap();
    let found = values(&found);
    let weight = values(&conv.backward_weight(&dy, &x).unwrap());
    for i in 0..2 {
        for o in 0..3 {
            for tap in 0..3 {
                let sum: f64 = (0..2).map(|n| found[(n * 3 + o) * 6 + i * 3 + tap]).sum();
                assert_eq!(sum, weight[(i * 3 + o) * 3 + tap]);
            }
        }
    }
}
