//! Every form of the norms, and every way to second moments, on layers of which the cheapest is only one.

use super::norms::Form;
use super::winograd::Winograd;
use super::{Moment, Norms, Rotations, moment::Way};
use crate::covariance::Update;
use crate::device::Device;
use crate::element::Accumulator;
use crate::geometry::{Conv, Layout, PaddingMode};
use crate::per_example::options::PerExampleOptions;
use crate::per_example::problem::Problem;
use crate::plan::{Explanation, Workspace};
use crate::tensor::Tensor;
use crate::workers::Workers;

/// Small integers, whose sums and squares are exact.
fn integers<F: Accumulator>(len: usize, seed: usize) -> Vec<F> {
    let value = |i: usize| ((i.wrapping_mul(2_654_435_761) >> 7) + seed * i) % 5;
    (0..len).map(|i| F::from_f64(value(i) as f64 - 2.0)).collect()
}

struct Layer {
    conv: Conv<2>,
    x: [usize; 4],
    dy: [usize; 4],
    options: PerExampleOptions,
}

/// Layers of several kinds, in both layouts.
fn layers() -> Vec<Layer> {
    let none = PerExampleOptions::new();
    let layer = |conv, x, dy, options| Layer { conv, x, dy, options };
    let square = Conv::new([3, 3]).padding([1, 1]);
    let strided = Conv::new([3, 2]).stride([2, 3]).padding([(1, 0), (0, 2)]).dilation([1, 2]);
    let up = Conv::new([3, 3]).stride([2, 2]).padding([1, 1]);
    let all = [
        layer(square, [3, 4, 5, 6], [3, 6, 5, 6], none.bias(true)),
        layer(square.padding_mode(PaddingMode::Circular), [2, 4, 9, 9], [2, 2, 9, 9], none),
        layer(square.groups(2), [2, 4, 3, 4], [2, 6, 3, 4], none.bias(true)),
        layer(square.groups(4), [2, 4, 8, 9], [2, 8, 8, 9], none),
        layer(strided.padding_mode(PaddingMode::Reflect), [2, 3, 9, 11], [2, 5, 4, 4], none),
        layer(up.groups(2), [2, 4, 3, 4], [2, 6, 6, 7], none.transposed(true).bias(true)),
        layer(Conv::new([1, 1]), [9, 70, 2, 2], [9, 5, 2, 2], none.bias(true)),
    ];
    let last = |[n, c, h, w]: [usize; 4]| [n, h, w, c];
    let layouts = [Layout::ChannelsFirst, Layout::ChannelsLast];
    let both = all.iter().flat_map(|of| {
        layouts.map(|layout| {
            let Layer { conv, x, dy, options } = *of;
            let [x, dy] =
                if layout == Layout::ChannelsLast { [last(x), last(dy)] } else { [x, dy] };
            Layer { conv: conv.layout(layout), x, dy, options }
        })
    });
    both.collect()
}

impl Layer {
    fn problem(&self) -> Problem {
        Problem::new(&self.conv, &self.x, &self.dy, self.options).unwrap()
    }

    fn operands<F: Accumulator>(&self) -> [Tensor<F>; 2] {
        [(&self.x, 1), (&self.dy, 2)].map(|(shape, seed)| {
            let data = integers(shape.iter().product(), seed);
            Tensor::from_vec(&Device::Cpu, shape, data).unwrap()
        })
    }

    /// The gradients of all examples, `[N, g, O/g, d]`.
    fn gradients<F: Accumulator>(&self) -> Vec<F> {
        let [x, dy] = self.operands::<F>();
        let found = self.conv.per_example_gradients::<F, F>(&x, &dy, self.options);
        found.unwrap().into_vec().unwrap()
    }
}

fn with_memory(workers: &Workers, run: impl FnOnce(&mut [u8])) {
    let mut memory = Workspace::new(&Device::Cpu, workers.workspace() as u64).unwrap();
    run(memory.host(workers.workspace()).unwrap());
}

fn check_norms<F: Accumulator>(form: Form) {
    for layer in layers() {
        let p = layer.problem();
        let (norms, needs) =
            Norms::by::<F, F>(&p, Some(form), &mut Explanation::default()).unwrap();
        let workers = Workers::new(needs.tasks, needs.room).with_common(needs.common);
        let [x, dy] = layer.operands::<F>();
        let mut found = vec![F::ZERO; p.batch];
        with_memory(&workers, |memory| {
            let operands = p.operands(&x.view(), &dy.view());
            norms.run(&workers, operands, &mut found, memory).unwrap();
        });
        let gradients = layer.gradients::<F>();
        for (found, gradient) in found.iter().zip(gradients.chunks_exact(p.gradient_len())) {
            let square: f64 = gradient.iter().map(|value| value.to_f64().powi(2)).sum();
            assert_eq!(*found, F::from_f64(square.sqrt()), "{form:?} of {p:?}");
        }
    }
}

#[test]
fn every_form_finds_the_norms() {
    for form in [Form::Direct, Form::GramOfPatches, Form::GramOfInputs] {
        check_norms::<f32>(form);
        check_norms::<f64>(form);
    }
}

/// Early layers have many positions, late ones few.
#[test]
fn positions_are_paired_where_they_are_few() {
    let form = |x: [usize; 4], dy: [usize; 4]| {
        let conv = Conv::new([3, 3]).padding([1, 1]);
        let p = Problem::new(&conv, &x, &dy, PerExampleOptions::new()).unwrap();
        let mut explanation = Explanation::default();
        Norms::new::<f32, f32>(&p, &mut explanation).unwrap();
        explanation.algorithm
    };
    assert_eq!(form([1, 64, 56, 56], [1, 64, 56, 56]), "direct");
    assert_eq!(form([1, 512, 7, 7], [1, 512, 7, 7]), "gram of inputs");
}

/// Middle layers rotate fewer patches than gradients' rows, and 3×3 ones by tiles.
#[test]
fn patches_are_rotated_by_tiles() {
    let way = |kernel: usize| {
        let conv = Conv::new([kernel; 2]).padding([kernel / 2; 2]);
        let shape = [8, 256, 14, 14];
        let p = Problem::new(&conv, &shape, &shape, PerExampleOptions::new()).unwrap();
        let mut explanation = Explanation::default();
        Moment::new::<f32, f32>(&p, [true; 2], None, &mut explanation);
        explanation.algorithm
    };
    assert_eq!(way(3), "rotate patches by tiles, and output gradients");
    assert_eq!(way(5), "rotate patches and output gradients");
}

fn check_moments<F: Accumulator>(way: Way, rotated: [bool; 2]) {
    for layer in layers() {
        let p = layer.problem();
        if layer.options.transposed && way != Way::Gradients {
            continue;
        }
        if way == Way::Winograd && Winograd::new(&p).is_none() {
            continue;
        }
        let [o, d] = [p.rows(), p.columns()];
        let [q_a, q_g] = [integers::<F>(p.groups * d * d, 3), integers(p.groups * o * o, 4)];
        let explanation = &mut Explanation::default();
        let (moment, workers) = Moment::new::<F, F>(&p, rotated, Some(way), explanation);
        let [x, dy] = layer.operands::<F>();
        let mut found = vec![F::ONE; p.gradient_len()];
        let rotations = Rotations {
            of_patches: rotated[0].then_some(&q_a[..]),
            of_gradients: rotated[1].then_some(&q_g[..]),
        };
        with_memory(&workers, |memory| {
            let operands = p.operands(&x.view(), &dy.view());
            let update = Update::new(0.5, 2.0);
            moment.run(&workers, operands, rotations, update, &mut found, memory).unwrap();
        });
        let gradients = layer.gradients::<F>();
        let matrix = |there: bool, q: &[F], n: usize, g: usize, i: usize, j: usize| match there {
            true => q[(g * n + i) * n + j].to_f64(),
            false => f64::from(u8::from(i == j)),
        };
        for (at, found) in found.iter().enumerate() {
            let [g, row, column] = [at / (o * d), at / d % o, at % d];
            let mut sum = 0.0;
            for gradient in gradients.chunks_exact(p.gradient_len()) {
                let mut value = 0.0;
                for i in 0..o {
                    let left = matrix(rotated[1], &q_g, o, g, i, row);
                    for j in 0..d {
                        let right = matrix(rotated[0], &q_a, d, g, j, column);
                        value += left * gradient[(g * o + i) * d + j].to_f64() * right;
                    }
                }
                sum += value * value;
            }
            let found = found.to_f64();
            // Sums of squares may be longer than f32.
            let limit = 8.0 * F::DTYPE.unit_roundoff() * (sum + 1.0);
            let expected = 0.5 + 2.0 * sum;
            assert!((found - expected).abs() <= 2.0 * limit, "{found} {expected} {way:?} {p:?}");
        }
    }
}

#[test]
fn every_way_finds_the_moments() {
    for rotated in [[true, true], [true, false]] {
        for way in [Way::Gradients, Way::Positions, Way::Winograd] {
            check_moments::<f32>(way, rotated);
            check_moments::<f64>(way, rotated);
        }
    }
    for rotated in [[true, true], [false, true]] {
        check_moments::<f32>(Way::Mixed, rotated);
    }
    check_moments::<f64>(Way::Gradients, [false, false]);
    check_moments::<f64>(Way::Gradients, [false, true]);
}
