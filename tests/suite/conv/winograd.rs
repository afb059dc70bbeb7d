//! Winograd's algorithm: not exact, but as close as its documentation says, wherever it exists.

use convmat::{Algorithm, Conv, Device, Element, Error, PlanOptions, Tensor, with_axes};
use half::{bf16, f16};
use proptest::prelude::*;

use super::{Operands, expected, plain, run_case};
use crate::catalogue::{accelerators, cases, conv, integers, randoms, tensor, values};
use crate::oracle::Case;

/// What may be lost of Σ|w·x|, taken where it is largest: all inputs of a tile go into each of its outputs. In units
/// of the sums' roundoff.
const UNITS: f64 = 60.0;

/// The same cases, with kernels, strides and dilations that there are tiles for.
fn suitable() -> impl Strategy<Value = Case> {
    (cases(), prop::array::uniform3(prop::sample::select(vec![1usize, 3, 5])))
        .prop_map(|(case, kernel)| {
            let unit = |a: usize| a + case.spatial < 3;
            let kernel = std::array::from_fn(|a| if unit(a) { 1 } else { kernel[a] });
            Case { kernel, stride: [1; 3], dilation: [1; 3], ..case }
        })
        .prop_filter("the kernel has taps and fits", |case| {
            let fits = |a: usize| case.kernel[a] <= case.input[a] + case.low[a] + case.high[a];
            case.taps() > 1 && (0..3).all(fits)
        })
}

fn check<T: Element>(case: &Case, units: f64) -> Result<(), TestCaseError> {
    let at = Operands::<T>::new(case, randoms);
    let [x, w, b, dy] = [&at.x, &at.w, &at.b, &at.dy].map(values);
    let abs = |v: &[f64]| -> Vec<f64> { v.iter().map(|v| v.abs()).collect() };
    let exact = expected(case, [&x, &w, &b, &dy]);
    let scale = expected(case, [&abs(&x), &abs(&w), &abs(&b), &abs(&dy)]);
    let found = run_case(case, &at, Algorithm::Winograd);
    let (u_out, u_acc) = (T::DTYPE.unit_roundoff(), T::Acc::DTYPE.unit_roundoff());
    let subnormal = if T::DTYPE == f16::DTYPE { 2f64.powi(-25) } else { 0.0 };
    for (what, found) in found.iter().take(3).enumerate() {
        let largest = scale[what].iter().fold(0.0, |a: f64, &b| a.max(b));
        for (i, (found, &exact)) in values(found).into_iter().zip(&exact[what]).enumerate() {
            let allowed = units * u_acc * largest + u_out * exact.abs() + subnormal;
            let call = format!("{}, result {what}, element {i}: {found} for {exact}", T::DTYPE);
            prop_assert!((found - exact).abs() <= allowed, "{}", call);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn results_are_within_the_documented_error(case in suitable()) {
        check::<f64>(&case, UNITS)?;
        check::<f32>(&case, UNITS)?;
        check::<bf16>(&case, UNITS)?;
        check::<f16>(&case, UNITS)?;
    }

    /// Of ones nothing is lost that one could see: what is dropped, doubled or read twice shows at once.
    #[test]
    fn every_tap_counts_once(case in suitable()) {
        let ones = |len: usize, _| vec![1.0; len];
        let at = Operands::<f64>::new(&case, ones);
        let [x, w, b, dy] = [&at.x, &at.w, &at.b, &at.dy].map(values);
        let found = run_case(&case, &at, Algorithm::Winograd);
        for (found, exact) in found.iter().zip(expected(&case, [&x, &w, &b, &dy])) {
            let rounded: Vec<f64> = values(found).into_iter().map(f64::round).collect();
            prop_assert_eq!(rounded, exact);
        }
    }
}

/// Layers of several blocks, of channels, rows and tiles, in each way of sharing the factors.
fn large() -> Vec<Case> {
    let last = |case: Case| Case { layout: convmat::Layout::ChannelsLast, ..case };
    let volume = Case { spatial: 3, input: [6, 13, 18], kernel: [3; 3], ..plain(2, 20, 1, 40, 3) };
    let volume = Case { low: [1; 3], high: [1; 3], ..volume };
    let line = Case { spatial: 1, input: [1, 1, 900], kernel: [1, 1, 5], ..plain(3, 40, 1, 24, 5) };
    let line = Case { low: [0, 0, 2], high: [0, 0, 2], ..line };
    let images = [
        plain(2, 40, 33, 70, 3),
        Case { groups: 2, ..plain(1, 80, 14, 132, 3) },
        plain(1, 200, 7, 150, 3),
        plain(2, 24, 27, 17, 5),
        Case { kernel: [1, 5, 3], low: [0, 2, 1], high: [0, 2, 1], ..plain(1, 17, 30, 33, 3) },
        volume,
        line,
    ];
    images.iter().cloned().chain(images.iter().cloned().map(last)).collect()
}

#[test]
fn large_layers_are_within_the_documented_error() {
    for case in large() {
        check::<f32>(&case, UNITS).unwrap();
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for case in large() {
        let at = Operands::<f32>::new(&case, randoms);
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| run_case(&case, &at, Algorithm::Winograd))
        };
        let one = on(1);
        assert!((2..=4).all(|threads| on(threads) == one), "{case:?}");
    }
}

/// Two outputs of three taps need halves alone: small integers are exact.
#[test]
fn small_tiles_are_exact_on_integers() {
    let case = plain(2, 3, 2, 4, 3);
    let at = Operands::<f32>::new(&case, |len, seed| integers(len, seed, 4));
    let [x, w, b, dy] = [&at.x, &at.w, &at.b, &at.dy].map(values);
    let found = run_case(&case, &at, Algorithm::Winograd);
    for (found, exact) in found.iter().zip(expected(&case, [&x, &w, &b, &dy])) {
        assert_eq!(values(found), exact);
    }
}

#[test]
fn what_it_is_not_for_is_refused() {
    let refused = |case: &Case, device: &Device| {
        let options = PlanOptions::new().algorithm(Algorithm::Winograd);
        let [x, w, y] = [case.input_shape(), case.weight_shape(), case.output_shape()];
        let errors: [Result<(), Error>; 3] = with_axes!(case.spatial, D => {
            let (conv, size) = (conv::<D>(case), crate::catalogue::last(case.input));
            Ok::<_, Error>([
                conv.plan_forward::<f32>(device, &x, &w, false, options).map(drop),
                conv.plan_backward_input::<f32>(device, &y, &w, size, options).map(drop),
                conv.plan_backward_weight::<f32>(device, &x, &y, options).map(drop),
            ])
        })
        .unwrap();
        for error in errors {
            let message = error.expect_err(&format!("{case:?}")).to_string();
            assert!(message.contains("winograd"), "{message}");
        }
    };
    let base = plain(1, 4, 12, 4, 3);
    for case in [
        Case { stride: [1, 2, 1], ..base.clone() },
        Case { dilation: [1, 1, 2], ..base.clone() },
        plain(1, 4, 12, 4, 7),
        plain(1, 4, 12, 4, 1),
        Case { high: [0; 3], ..plain(1, 4, 12, 4, 2) },
    ] {
        refused(&case, &Device::Cpu);
    }
    for device in accelerators() {
        refused(&base, device);
    }
}

/// `auto` is strict unless it is told that it need not be, and then takes it where that pays.
#[test]
fn auto_takes_it_where_it_is_allowed_and_pays() {
    let chosen = |conv: Conv<2>, channels: usize, allow: bool| {
        let options = PlanOptions::new().allow_winograd(allow);
        let [kernel, _] = conv.kernel_size();
        let (x, w) = ([1, channels, 56, 56], [64, channels, kernel, kernel]);
        let plan = conv.plan_forward::<f32>(&Device::Cpu, &x, &w, false, options).unwrap();
        let y = [1, 64, 56, 56];
        let dx = conv.plan_backward_input::<f32>(&Device::Cpu, &y, &w, [56, 56], options).unwrap();
        let dw = conv.plan_backward_weight::<f32>(&Device::Cpu, &x, &y, options).unwrap();
        [plan.explanation(), dx.explanation(), dw.explanation()].map(|e| e.algorithm.clone())
    };
    let three = Conv::new([3, 3]).padding([1, 1]);
    assert_eq!(chosen(three, 64, true), ["winograd"; 3]);
    assert!(chosen(three, 64, false).iter().all(|algorithm| algorithm != "winograd"));
    let seven = Conv::new([7, 7]).padding([3, 3]);
    assert!(chosen(seven, 64, true).iter().all(|algorithm| algorithm != "winograd"));
    assert!(chosen(three, 1, true).iter().all(|algorithm| algorithm != "winograd"));
}

/// Where its factors have no room, `auto` is what it is without.
#[test]
fn a_workspace_limit_is_kept() {
    let (conv, x, w) = (Conv::new([3, 3]).padding([1, 1]), [8, 512, 14, 14], [512, 512, 3, 3]);
    let plan = |options: PlanOptions| {
        let plan = conv.plan_forward::<f32>(&Device::Cpu, &x, &w, false, options).unwrap();
        (plan.explanation().algorithm.clone(), plan.workspace())
    };
    let options = PlanOptions::new().allow_winograd(true);
    let (algorithm, bytes) = plan(options);
    assert_eq!(algorithm, "winograd");
    let (algorithm, fewer) = plan(options.workspace_limit(bytes / 4));
    assert!(fewer <= bytes / 4 && !["winograd", "naive"].contains(&&*algorithm), "{algorithm}");
}

/// The figures of [`PlanOptions::allow_winograd`]: typical and largest errors, in parts of a typical result, beside
/// those of the direct algorithm.
#[test]
fn errors_are_those_of_the_documentation() {
    let error = |case: &Case, algorithm: Algorithm| {
        let at = Operands::<f32>::new(case, randoms);
        let wide = |of: &Tensor<f32>| tensor::<f64>(of.shape(), &values(of));
        let exact = with_axes!(case.spatial, D => {
            conv::<D>(case).forward(&wide(&at.x), &wide(&at.w), None)
        })
        .unwrap();
        let mut y = Tensor::zeros(&Device::Cpu, &case.output_shape()).unwrap();
        with_axes!(case.spatial, D => {
            conv::<D>(case).forward_into(&at.x, &at.w, None, &mut y, algorithm)
        })
        .unwrap();
        let square = |sum: f64, v: f64| sum + v * v;
        let exact = values(&exact);
        let typical = (exact.iter().copied().fold(0.0, square) / exact.len() as f64).sqrt();
        let errors: Vec<f64> =
            values(&y).iter().zip(&exact).map(|(y, exact)| (y - exact).abs() / typical).collect();
        let mean = (errors.iter().copied().fold(0.0, square) / errors.len() as f64).sqrt();
        [mean, errors.into_iter().fold(0.0, f64::max)]
    };
    let volume = Case { spatial: 3, input: [8, 14, 14], kernel: [3; 3], ..plain(1, 64, 1, 64, 3) };
    let volume = Case { low: [1; 3], high: [1; 3], ..volume };
    let layers = [
        ("3x3", plain(1, 256, 14, 256, 3), [6.0e-7, 4.0e-6]),
        ("5x5", plain(1, 96, 27, 96, 5), [1.3e-6, 8.0e-6]),
        ("3x3x3", volume, [2.3e-6, 2.5e-5]),
    ];
    for (name, case, most) in layers {
        let [found, direct] = [Algorithm::Winograd, Algorithm::Implicit].map(|a| error(&case, a));
        println!("{name}: typical and largest {found:?}; direct {direct:?}");
        assert!(found[0] <= most[0] && found[1] <= most[1], "{name}: {found:?}, {most:?}");
    }
}
