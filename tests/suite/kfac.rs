//! K-FAC, EKFAC and their relatives: against the definitions written out with dense matrices of another
//! library, and against what the papers say of them.

use convmat::{
    Conv, Device, Element, KfacLayer, KfacMethod, KfacOptions, KfacState, Layout, PaddingMode,
    Tensor, WeightSharing,
};
use nalgebra::{DMatrix, DVector};
use proptest::prelude::*;

use crate::catalogue::{cases, conv, randoms, tensor, values};
use crate::oracle::Case;

mod errors;
mod files;
mod laws;
mod problem;
mod schedules;

use problem::{Group, Problem, assert_close, block, named, problems, row_major};

const SHARINGS: [WeightSharing; 2] = [WeightSharing::Expand, WeightSharing::Reduce];

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

/// An output padding of more than a stride, as dilation allows it: what no weight reaches counts for the
/// bias alone. The gradient by definition, a weight at a time, as the layer is linear in them.
#[test]
fn output_padding_of_more_than_a_stride() {
    for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
        let conv = Conv::new([2, 2]).dilation([3, 2]).padding([1, 0]).layout(layout);
        let extra = [2, 1];
        let x = tensor::<f64>(&layout.activation_shape(3, 2, &[3, 4]), &randoms(72, 71));
        let weights = layout.weight_shape(2, 2, &[2, 2]);
        let transposed = |weight: &[f64]| {
            conv.transposed(&x, &tensor::<f64>(&weights, weight), None, extra).unwrap()
        };
        let shape = transposed(&[0.0; 16]).shape().to_vec();
        let dy = tensor::<f64>(&shape, &randoms(shape.iter().product(), 72));
        let layer = KfacLayer::new(conv, 2, 2, [3, 4]).bias(true).transposed(extra);
        // With so much damping the diagonal does not show.
        let options = KfacOptions::new().method(KfacMethod::Diagonal).damping(1e12);
        let mut state = KfacState::<f64, 2>::new(&Device::Cpu, layer, options).unwrap();
        state.step(&x, &dy).unwrap();
        let gradient = state.mean_gradient(&x, &dy).unwrap();
        let mut expected = vec![0.0; 16];
        for (at, expected) in expected.iter_mut().enumerate() {
            let mut unit = vec![0.0; 16];
            unit[at] = 1.0;
            let products = values(&transposed(&unit)).into_iter().zip(values(&dy));
            *expected = products.map(|(y, dy)| y * dy).sum::<f64>() / 3.0;
        }
        let bias = conv.backward_bias(&dy).unwrap();
        let weight = tensor::<f64>(&weights, &expected);
        let (weight, _) = state.precondition_weight(&weight, &bias).unwrap();
        let mut found = values(&state.precondition(&gradient).unwrap());
        // The bias's are the last column, and the rest are the weights in another order.
        for row in found.chunks_exact_mut(9) {
            row[8] = f64::INFINITY;
        }
        let mut expected = values(&weight);
        found.sort_by(f64::total_cmp);
        expected.sort_by(f64::total_cmp);
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= 1e-24, "{layout}: {found} for {expected}");
        }
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
