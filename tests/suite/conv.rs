//! Convolution, its gradients and transposed convolution, by every algorithm.

mod accelerators;
mod direct;
mod errors;
mod tf32;
mod winograd;

use convmat::{
    Algorithm, Conv, DType, Device, Element, Error, Layout, PaddingMode, Tensor, with_axes,
};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::catalogue::{cases, conv, devices, integers, last, on, randoms, tensor, values};
use crate::oracle::Case;

/// Operands of a case, rounded to T, and their values.
struct Operands<T: Element> {
    x: Tensor<T>,
    w: Tensor<T>,
    b: Tensor<T>,
    dy: Tensor<T>,
}

impl<T: Element> Operands<T> {
    fn new(case: &Case, make: impl Fn(usize, u64) -> Vec<f64>) -> Self {
        Operands {
            x: tensor(&case.input_shape(), &make(case.input_len(), 1)),
            w: tensor(&case.weight_shape(), &make(case.weight_len(), 2)),
            b: tensor(&[case.outputs], &make(case.outputs, 3)),
            dy: tensor(&case.output_shape(), &make(case.output_len(), 4)),
        }
    }

    fn on(&self, device: &Device) -> Self {
        let [x, w, b, dy] = [&self.x, &self.w, &self.b, &self.dy].map(|tensor| on(device, tensor));
        Operands { x, w, b, dy }
    }
}

/// The result of every operation, `_into` a buffer full of garbage, where the operands are: y with bias,
/// dx, dw, db.
fn run<T: Element, const D: usize>(
    case: &Case,
    at: &Operands<T>,
    algorithm: Algorithm,
) -> [Tensor<T>; 4] {
    let conv = conv::<D>(case);
    let dirty = |shape: &[usize]| {
        let len = shape.iter().product();
        Tensor::from_vec(&at.x.device(), shape, vec![T::from_f64(f64::NAN); len]).unwrap()
    };
    let mut y = dirty(&case.output_shape());
    conv.forward_into(&at.x, &at.w, Some(at.b.view()), &mut y, algorithm).unwrap();
    let mut dx = dirty(&case.input_shape());
    conv.backward_input_into(&at.dy, &at.w, &mut dx, algorithm).unwrap();
    let mut dw = dirty(&case.weight_shape());
    conv.backward_weight_into(&at.x, &at.dy, &mut dw, algorithm).unwrap();
    let mut db = dirty(&[case.outputs]);
    conv.backward_bias_into(&at.dy, &mut db).unwrap();
    [y, dx, dw, db]
}

fn run_case<T: Element>(case: &Case, at: &Operands<T>, algorithm: Algorithm) -> [Tensor<T>; 4] {
    with_axes!(case.spatial, D => Ok::<_, Error>(run::<T, D>(case, at, algorithm))).unwrap()
}

/// The oracle's answers to the same questions.
fn expected(case: &Case, [x, w, b, dy]: [&[f64]; 4]) -> [Vec<f64>; 4] {
    [
        case.forward(x, w, Some(b)),
        case.backward_input(dy, w),
        case.backward_weight(x, dy),
        case.backward_bias(dy),
    ]
}

fn check_integers<T: Element>(
    case: &Case,
    device: &Device,
    algorithms: impl Iterator<Item = Algorithm>,
) -> Result<(), TestCaseError> {
    let at = Operands::<T>::new(case, |len, seed| integers(len, seed, 2));
    let [x, w, b, dy] = [&at.x, &at.w, &at.b, &at.dy].map(values);
    let expected = expected(case, [&x, &w, &b, &dy]);
    let at = at.on(device);
    for algorithm in algorithms {
        let results = run_case(case, &at, algorithm);
        for (what, (found, exact)) in results.iter().zip(&expected).enumerate() {
            // The sums are exact in the accumulator; one rounding remains for the half types.
            let rounded: Vec<f64> = exact.iter().map(|&v| T::from_f64(v).to_f64()).collect();
            let call = format!("{} {algorithm} on {device}, result {what}", T::DTYPE);
            prop_assert_eq!(values(found), rounded, "{}", call);
        }
    }
    Ok(())
}

fn check_randoms<T: Element>(
    case: &Case,
    device: &Device,
    algorithms: impl Iterator<Item = Algorithm>,
) -> Result<(), TestCaseError> {
    let at = Operands::<T>::new(case, randoms);
    let [x, w, b, dy] = [&at.x, &at.w, &at.b, &at.dy].map(values);
    let abs = |v: &[f64]| -> Vec<f64> { v.iter().map(|v| v.abs()).collect() };
    let exact = expected(case, [&x, &w, &b, &dy]);
    let scale = expected(case, [&abs(&x), &abs(&w), &abs(&b), &abs(&dy)]);
    let (per_in, per_out) = (case.channels / case.groups, case.outputs / case.groups);
    let terms = [
        per_in * case.taps() + 1,
        per_out * case.taps(),
        case.batch * case.positions(),
        case.batch * case.positions(),
    ];
    let u_out = T::DTYPE.unit_roundoff();
    let u_acc = if T::DTYPE == DType::F64 { u_out } else { DType::F32.unit_roundoff() };
    // Where f16 is subnormal, its spacing no longer shrinks with the value.
    let subnormal = if T::DTYPE == DType::F16 { 2f64.powi(-25) } else { 0.0 };
    let at = at.on(device);
    for algorithm in algorithms {
        let found = run_case(case, &at, algorithm);
        for what in 0..4 {
            let slack = 4.0 * (terms[what] as f64).sqrt() * u_acc;
            let found = values(&found[what]);
            prop_assert_eq!(found.len(), exact[what].len());
            for (i, &found) in found.iter().enumerate() {
                let (y, scale) = (exact[what][i], scale[what][i]);
                let allowed = slack * scale + u_out * y.abs() + subnormal;
                prop_assert!(
                    (found - y).abs() <= allowed,
                    "{} {algorithm} on {device}, result {what}, element {i}: {found} for {y}",
                    T::DTYPE
                );
            }
        }
    }
    Ok(())
}

/// <y, A·x> = <Aᵀ·y, x>, and the same by the weight.
fn check_adjoint<const D: usize>(case: &Case) -> Result<(), TestCaseError> {
    let at = Operands::<f64>::new(case, randoms);
    let dot = |a: &Tensor<f64>, b: &Tensor<f64>| -> (f64, f64) {
        let products = values(a).into_iter().zip(values(b)).map(|(a, b)| a * b);
        products.fold((0.0, 0.0), |(sum, scale), p| (sum + p, scale + p.abs()))
    };
    let conv = conv::<D>(case);
    for algorithm in Algorithm::GENERAL {
        let mut y = at.dy.clone();
        conv.forward_into(&at.x, &at.w, None, &mut y, algorithm).unwrap();
        let [_, dx, dw, _] = run::<f64, D>(case, &at, algorithm);
        let (forward, scale) = dot(&y, &at.dy);
        for (backward, _) in [dot(&dx, &at.x), dot(&dw, &at.w)] {
            prop_assert!((forward - backward).abs() <= 1e-12 * (1.0 + scale), "{algorithm}");
        }
    }
    Ok(())
}

/// The transposed convolution is the oracle's adjoint plus the bias, by either of its forms.
fn check_transposed<const D: usize>(case: &Case, device: &Device) -> Result<(), TestCaseError> {
    let conv = conv::<D>(case);
    let x: Tensor<f32> = tensor(&case.output_shape(), &integers(case.output_len(), 5, 3));
    let w: Tensor<f32> = tensor(&case.weight_shape(), &integers(case.weight_len(), 6, 3));
    let b: Tensor<f32> = tensor(&[case.channels], &integers(case.channels, 7, 3));
    let mut expected = case.backward_input(&values(&x), &values(&w));
    let plain = expected.clone();
    for n in 0..case.batch {
        for c in 0..case.channels {
            for i in 0..case.input.iter().product() {
                expected[case.input_index(n, c, i)] += values(&b)[c];
            }
        }
    }
    // What the division by the stride dropped: the output padding that gives the input back.
    let padding: [usize; 3] = std::array::from_fn(|a| {
        let span = case.dilation[a] * (case.kernel[a] - 1) + 1;
        (case.input[a] + case.low[a] + case.high[a] - span) % case.stride[a]
    });
    let [x, w, b] = [&x, &w, &b].map(|tensor| on(device, tensor));
    let y = conv.transposed(&x, &w, Some(b.view()), last(padding)).unwrap();
    prop_assert_eq!(y.shape(), case.input_shape());
    prop_assert_eq!(values(&y), expected.clone());
    for algorithm in Algorithm::GENERAL {
        let mut y = Tensor::zeros(device, &case.input_shape()).unwrap();
        conv.transposed_into(&x, &w, Some(b.view()), &mut y, algorithm).unwrap();
        prop_assert_eq!(values(&y), expected.clone(), "{} on {}", algorithm, device);
        conv.transposed_into(&x, &w, None, &mut y, algorithm).unwrap();
        prop_assert_eq!(values(&y), plain.clone(), "{} on {}", algorithm, device);
    }
    Ok(())
}

/// The fresh forms equal the `_into` forms with `Auto`.
fn check_fresh<const D: usize>(case: &Case) -> Result<(), TestCaseError> {
    let conv = conv::<D>(case);
    let at = Operands::<f32>::new(case, randoms);
    let [y, dx, dw, db] = run::<f32, D>(case, &at, Algorithm::Auto);
    prop_assert_eq!(conv.forward(&at.x, &at.w, Some(at.b.view())).unwrap(), y);
    prop_assert_eq!(conv.backward_input(&at.dy, &at.w, last(case.input)).unwrap(), dx);
    prop_assert_eq!(conv.backward_weight(&at.x, &at.dy).unwrap(), dw);
    prop_assert_eq!(conv.backward_bias(&at.dy).unwrap(), db);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn small_integers_are_exact(case in cases()) {
        check_integers_of_all_types(&case, &Device::Cpu)?;
    }

    #[test]
    fn random_floats_are_within_tolerance(case in cases()) {
        check_randoms_of_all_types(&case, &Device::Cpu)?;
    }

    #[test]
    fn gradients_are_adjoint_to_forward(case in cases()) {
        with_axes!(case.spatial, D => check_adjoint::<D>(&case))?;
    }

    #[test]
    fn weights_times_patches_are_the_outputs(case in cases()) {
        with_axes!(case.spatial, D => check_einsum::<D>(&case))?;
    }

    #[test]
    fn transposed_is_the_adjoint(case in cases()) {
        with_axes!(case.spatial, D => check_transposed::<D>(&case, &Device::Cpu))?;
    }

    #[test]
    fn fresh_forms_are_the_into_forms(case in cases()) {
        with_axes!(case.spatial, D => check_fresh::<D>(&case))?;
    }
}

fn check_integers_of_all_types(case: &Case, device: &Device) -> Result<(), TestCaseError> {
    check_integers::<f32>(case, device, every())?;
    check_integers::<f64>(case, device, every())?;
    check_integers::<f16>(case, device, every())?;
    check_integers::<bf16>(case, device, every())
}

fn check_randoms_of_all_types(case: &Case, device: &Device) -> Result<(), TestCaseError> {
    check_randoms::<f32>(case, device, every())?;
    check_randoms::<f64>(case, device, every())?;
    check_randoms::<f16>(case, device, every())?;
    check_randoms::<bf16>(case, device, every())
}

/// A 2-D case, channels first, on which further fields can be set.
fn plain(batch: usize, channels: usize, size: usize, outputs: usize, kernel: usize) -> Case {
    Case {
        batch,
        channels,
        outputs,
        groups: 1,
        spatial: 2,
        input: [1, size, size],
        kernel: [1, kernel, kernel],
        stride: [1; 3],
        dilation: [1; 3],
        low: [0, kernel / 2, kernel / 2],
        high: [0, kernel / 2, kernel / 2],
        mode: PaddingMode::Zeros,
        layout: Layout::ChannelsFirst,
    }
}

/// Shapes large enough to be cut into several tasks, tiles and channel blocks.
fn large() -> Vec<Case> {
    let base = plain(2, 12, 40, 10, 3);
    let strided = Case { stride: [1, 2, 2], ..plain(1, 3, 65, 20, 7) };
    vec![
        Case { layout: Layout::ChannelsLast, ..base.clone() },
        Case { groups: 2, mode: PaddingMode::Reflect, ..base.clone() },
        Case { layout: Layout::ChannelsLast, groups: 2, ..base.clone() },
        Case { layout: Layout::ChannelsLast, ..strided.clone() },
        strided,
        Case { groups: 16, mode: PaddingMode::Circular, ..plain(2, 16, 33, 16, 5) },
        Case { groups: 16, layout: Layout::ChannelsLast, ..plain(2, 16, 33, 16, 5) },
        plain(3, 300, 7, 40, 3),
        plain(2, 130, 20, 70, 1),
        Case { dilation: [1, 2, 3], high: [0, 5, 2], ..plain(1, 4, 60, 5, 4) },
        Case {
            spatial: 3,
            input: [5, 17, 19],
            kernel: [3; 3],
            stride: [2, 1, 1],
            low: [1; 3],
            high: [1; 3],
            mode: PaddingMode::Replicate,
            ..plain(1, 12, 1, 8, 1)
        },
        Case {
            spatial: 1,
            input: [1, 1, 5000],
            kernel: [1, 1, 3],
            stride: [1, 1, 2],
            low: [0; 3],
            high: [0; 3],
            ..plain(2, 8, 1, 12, 1)
        },
        Case {
            spatial: 3,
            input: [6, 11, 12],
            kernel: [2, 3, 3],
            low: [1; 3],
            high: [1; 3],
            layout: Layout::ChannelsLast,
            ..plain(2, 12, 1, 8, 1)
        },
        base,
    ]
}

/// Shapes at the limits of what is done at a time: kernels of more taps than a tile has patch entries,
/// more channels than that, images of more positions than are summed up at a time.
fn extreme() -> Vec<Case> {
    let layouts = [Layout::ChannelsFirst, Layout::ChannelsLast];
    let shapes = [
        plain(1, 2, 30, 2, 23),
        Case { high: [0; 3], ..plain(1, 600, 8, 4, 2) },
        plain(1, 8, 200, 3, 3),
        plain(2, 3, 5, 600, 3),
        Case {
            spatial: 1,
            input: [1, 1, 300_000],
            kernel: [1, 1, 3],
            low: [0, 0, 1],
            high: [0, 0, 2],
            mode: PaddingMode::Circular,
            ..plain(1, 1, 1, 2, 3)
        },
    ];
    let with = |layout| shapes.iter().map(move |case| Case { layout, ..case.clone() });
    layouts.into_iter().flat_map(with).collect()
}

fn every() -> impl Iterator<Item = Algorithm> {
    Algorithm::GENERAL.into_iter()
}

/// All algorithms but the slow one.
fn fast() -> impl Iterator<Item = Algorithm> {
    every().filter(|&a| a != Algorithm::Naive)
}

#[test]
fn large_shapes_are_exact() {
    for case in large().into_iter().chain(extreme()) {
        let at = Operands::<f32>::new(&case, |len, seed| integers(len, seed, 2));
        let [x, w, b, dy] = [&at.x, &at.w, &at.b, &at.dy].map(values);
        let expected = expected(&case, [&x, &w, &b, &dy]);
        for algorithm in fast() {
            for (what, found) in run_case(&case, &at, algorithm).iter().enumerate() {
                assert!(values(found) == expected[what], "{algorithm}, result {what}, {case:?}");
            }
        }
    }
}

#[test]
fn halves_of_large_shapes_are_rounded_once() {
    for case in large().into_iter().step_by(3) {
        check_randoms::<bf16>(&case, &Device::Cpu, fast()).unwrap();
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for case in large() {
        let at = Operands::<f32>::new(&case, randoms);
        for algorithm in fast() {
            let on = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| run_case(&case, &at, algorithm))
            };
            let one = on(1);
            assert!([2, 3, 64].iter().all(|&threads| on(threads) == one), "{algorithm}, {case:?}");
        }
    }
}

/// All threads of the global pool are kept busy; work in a pool of the caller's must still finish.
#[test]
fn the_callers_pool_is_honoured() {
    let gate = std::sync::Arc::new(std::sync::RwLock::new(()));
    let closed = gate.write().unwrap();
    let waiting = gate.clone();
    rayon::spawn_broadcast(move |_| drop(waiting.read()));
    let (done, finished) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let case = plain(2, 8, 20, 8, 3);
        let at = Operands::<f32>::new(&case, randoms);
        for algorithm in Algorithm::GENERAL {
            pool.install(|| run_case(&case, &at, algorithm));
        }
        done.send(()).unwrap();
    });
    let outcome = finished.recv_timeout(std::time::Duration::from_secs(60));
    drop(closed);
    assert!(outcome.is_ok(), "work was left to the global pool");
}

/// An Inf or NaN reaches the results that read it and no others.
#[test]
fn non_finite_values_stay_where_they_belong() {
    let same = |a: f64, b: f64| {
        if b.is_finite() { (a - b).abs() < 1e-9 } else { a == b || a.is_nan() && b.is_nan() }
    };
    for mut case in large() {
        case.batch = 1;
        let nonzero = |len, seed| randoms(len, seed).into_iter().map(|v| v + 1.5).collect();
        let mut at = Operands::<f64>::new(&case, nonzero);
        for target in [&mut at.x, &mut at.dy] {
            let shape = target.shape().to_vec();
            let mut data = values(target);
            let len = data.len();
            data[len / 2] = f64::NAN;
            data[len / 3] = f64::INFINITY;
            data[0] = f64::NEG_INFINITY;
            *target = tensor(&shape, &data);
        }
        let [x, w, b, dy] = [&at.x, &at.w, &at.b, &at.dy].map(values);
        let mut expected = expected(&case, [&x, &w, &b, &dy]);
        // A product over positions meets padding zeros times non-finite gradients: left to each.
        expected[2].clear();
        for algorithm in fast() {
            let found = run_case(&case, &at, algorithm);
            for (what, expected) in expected.iter().enumerate() {
                let ok = values(&found[what]).iter().zip(expected).all(|(&a, &b)| same(a, b));
                assert!(ok, "{algorithm}, result {what}, {case:?}");
            }
        }
    }
}

/// W·A = y: the notebook's `einsum` identity, in the oracle's indices.
fn check_einsum<const D: usize>(case: &Case) -> Result<(), TestCaseError> {
    let at = Operands::<f64>::new(case, |len, seed| integers(len, seed, 9));
    let patches = values(&conv::<D>(case).unfold(&at.x).unwrap());
    let w = values(&at.w);
    let y = values(&conv::<D>(case).forward(&at.x, &at.w, None).unwrap());
    let (per_in, per_out) = (case.channels / case.groups, case.outputs / case.groups);
    for n in 0..case.batch {
        for co in 0..case.outputs {
            for o in 0..case.positions() {
                let mut sum = 0.0;
                for ci in 0..per_in {
                    for tap in 0..case.taps() {
                        let entry = case.patch_index(n, co / per_out * per_in + ci, tap, o);
                        sum += w[case.weight_index(co, ci, tap)] * patches[entry];
                    }
                }
                prop_assert_eq!(y[case.output_index(n, co, o)], sum);
            }
        }
    }
    Ok(())
}

/// The notebook's four implementations on its own shapes, NHWC.
#[test]
fn the_notebooks_algorithms_agree() {
    let case = Case { layout: Layout::ChannelsLast, ..plain(10, 8, 32, 16, 3) };
    let case = Case { low: [0; 3], high: [0; 3], ..case };
    let at = Operands::<f64>::new(&case, randoms);
    let reference = run_case(&case, &at, Algorithm::Naive);
    for algorithm in Algorithm::GENERAL {
        for (found, reference) in run_case(&case, &at, algorithm).iter().zip(&reference) {
            for (a, b) in values(found).iter().zip(values(reference)) {
                assert!((a - b).abs() < 1e-11, "{algorithm}: {a} for {b}");
            }
        }
    }
}

/// PyTorch's answers, in f64, on a trained network's layers and real images.
#[cfg(feature = "io")]
#[test]
fn pytorchs_answers() {
    use convmat::io::{NpzReader, SafetensorsReader};
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/data");
    let mut golden = NpzReader::open(format!("{data}/digits_golden.npz")).unwrap();
    let mut network = SafetensorsReader::open(format!("{data}/digits_cnn.safetensors")).unwrap();
    let mut read = |name: &str| golden.read(name).unwrap().into_tensor::<f64>().unwrap();
    let layers = [
        ("conv1", Conv::new([3, 3]).padding([1, 1]).padding_mode(PaddingMode::Reflect)),
        ("conv2", Conv::new([3, 3]).padding([1, 1]).stride([2, 2]).groups(4)),
        ("conv3", Conv::new([3, 3]).padding([2, 2]).dilation([2, 2])),
    ];
    let close = |what: &str, found: &Tensor<f64>, expected: &Tensor<f64>| {
        assert_eq!(found.shape(), expected.shape(), "{what}");
        for (a, b) in values(found).into_iter().zip(values(expected)) {
            assert!((a - b).abs() <= 1e-12 * (1.0 + b.abs()), "{what}: {a} for {b}");
        }
    };
    for (name, conv) in layers {
        let bias = (name != "conv3").then(|| format!("{name}.bias"));
        let mut parameter = |key: &str| network.read(key).unwrap().convert::<f64>().unwrap();
        let (weight, bias) =
            (parameter(&format!("{name}.weight")), bias.as_deref().map(&mut parameter));
        let [x, y, dy, dx] = ["input", "output", "grad_output", "grad_input"]
            .map(|part| read(&format!("{name}.{part}")));
        let dw = read(&format!("grad.{name}.weight"));
        let db = bias.is_some().then(|| read(&format!("grad.{name}.bias")));
        for device in devices() {
            let [x, dy, weight] = [&x, &dy, &weight].map(|tensor| on(device, tensor));
            let bias = bias.as_ref().map(|bias| on(device, bias));
            let zeros = |like: &Tensor<f64>| Tensor::zeros(device, like.shape()).unwrap();
            for algorithm in Algorithm::GENERAL {
                let call = format!("{name}, {algorithm} on {device}");
                let mut found = zeros(&y);
                let bias = bias.as_ref().map(Tensor::view);
                conv.forward_into(&x, &weight, bias, &mut found, algorithm).unwrap();
                close(&format!("{call}, output"), &found, &y);
                let mut found = zeros(&dx);
                conv.backward_input_into(&dy, &weight, &mut found, algorithm).unwrap();
                close(&format!("{call}, input gradient"), &found, &dx);
                let mut found = zeros(&dw);
                conv.backward_weight_into(&x, &dy, &mut found, algorithm).unwrap();
                close(&format!("{call}, weight gradient"), &found, &dw);
            }
            if let Some(db) = &db {
                let call = format!("{name}, bias gradient on {device}");
                close(&call, &conv.backward_bias(&dy).unwrap(), db);
            }
        }
    }
}

/// Output padding may reach beyond the stride when the dilation is larger; nothing but the bias lands
/// on what no output reads.
#[test]
fn output_padding_beyond_the_stride() {
    let conv = Conv::new([2]).dilation([3]);
    let x: Tensor<f64> = tensor(&[1, 1, 4], &[1., 2., 3., 4.]);
    let w: Tensor<f64> = tensor(&[1, 1, 2], &[10., 1.]);
    let b: Tensor<f64> = tensor(&[1], &[0.5]);
    let exact = [10.5, 20.5, 30.5, 41.5, 2.5, 3.5, 4.5, 0.5, 0.5];
    for device in devices() {
        let [x, w, b] = [&x, &w, &b].map(|tensor| on(device, tensor));
        let y = conv.transposed(&x, &w, Some(b.view()), [2]).unwrap();
        assert_eq!(values(&y), exact, "{device}");
        for algorithm in Algorithm::GENERAL {
            let mut y = Tensor::zeros(device, &[1, 1, 9]).unwrap();
            conv.transposed_into(&x, &w, Some(b.view()), &mut y, algorithm).unwrap();
            assert_eq!(values(&y), exact, "{algorithm} on {device}");
        }
    }
    // Here all of the output is padding: without it there would be nothing.
    let conv = Conv::new([2]).stride([2]).padding([1]);
    let x: Tensor<f64> = tensor(&[1, 1, 1], &[1.]);
    let mut y = Tensor::zeros(&Device::Cpu, &[1, 1, 1]).unwrap();
    conv.transposed_into(&x, &w, None, &mut y, Algorithm::Auto).unwrap();
    assert_eq!(values(&y), [1.]);
    assert_eq!(values(&conv.transposed(&x, &w, None, [1]).unwrap()), [1.]);
}

#[test]
fn an_empty_batch_gives_empty_outputs_and_zero_gradients() {
    let case = plain(0, 4, 5, 6, 3);
    for device in devices() {
        let at = Operands::<f32>::new(&case, randoms).on(device);
        for algorithm in Algorithm::GENERAL {
            let [y, dx, dw, db] = run_case(&case, &at, algorithm);
            assert_eq!((y.len(), dx.len()), (0, 0));
            let zeros = values(&dw).iter().chain(&values(&db)).all(|&v| v == 0.0);
            assert!(zeros, "{algorithm} on {device}");
        }
    }
}

#[test]
fn algorithms_have_names() {
    for algorithm in Algorithm::GENERAL {
        assert_eq!(algorithm.to_string().parse::<Algorithm>().unwrap(), algorithm);
    }
    let message = "fft".parse::<Algorithm>().unwrap_err().to_string();
    assert!(message.contains("algorithm") && message.contains("fft"), "{message}");
}
