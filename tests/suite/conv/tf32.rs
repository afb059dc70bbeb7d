//! Products whose operands are rounded to TF32, on devices that do.

use convmat::{Algorithm, Conv, Device, Element, Layout, PlanOptions, Tensor};

use crate::catalogue::{accelerators, integers, on, randoms, tensor, values};

/// The operands of a layer of 8 to 24 channels in groups: input, weight and output.
struct Layer {
    conv: Conv<2>,
    shapes: [Vec<usize>; 3],
}

impl Layer {
    fn new(layout: Layout, [channels, outputs]: [usize; 2], groups: usize) -> Self {
        let conv = Conv::new([3, 3]).padding([1, 1]).stride([1, 2]).groups(groups).layout(layout);
        let shapes = [
            layout.activation_shape(2, channels, &[9, 12]),
            layout.weight_shape(outputs, channels / groups, &[3, 3]),
            layout.activation_shape(2, outputs, &[9, 6]),
        ];
        Layer { conv, shapes }
    }

    fn each() -> impl Iterator<Item = Layer> {
        let sizes = [([8, 24], 1), ([40, 8], 1), ([5, 7], 1), ([32, 48], 2)];
        [Layout::ChannelsFirst, Layout::ChannelsLast].into_iter().flat_map(move |layout| {
            sizes.into_iter().map(move |(sizes, groups)| Layer::new(layout, sizes, groups))
        })
    }

    fn operands(&self, make: fn(usize, u64) -> Vec<f64>) -> [Vec<f64>; 3] {
        [0, 1, 2].map(|at| make(self.shapes[at].iter().product(), 7 + at as u64))
    }

    /// Output, gradient by the input and gradient by the weight, and the explanations of their plans.
    fn results<T: Element>(
        &self,
        device: &Device,
        operands: &[Vec<f64>; 3],
        options: PlanOptions,
    ) -> ([Vec<f64>; 3], [String; 3]) {
        let [x, w, y] =
            [0, 1, 2].map(|at| on(device, &tensor::<T>(&self.shapes[at], &operands[at])));
        let (conv, zeros) = (self.conv, |like: &Tensor<T>| Tensor::zeros(device, like.shape()));
        let [mut to_y, mut to_x, mut to_w] = [&y, &x, &w].map(|like| zeros(like).unwrap());
        let forward = conv.plan_forward::<T>(device, x.shape(), w.shape(), false, options).unwrap();
        let mut space = forward.make_workspace().unwrap();
        forward.run(&x, &w, None, &mut to_y, &mut space).unwrap();
        let size = [9, 12];
        let adjoint = conv.plan_backward_input::<T>(device, y.shape(), w.shape(), size, options);
        let adjoint = adjoint.unwrap();
        let mut space = adjoint.make_workspace().unwrap();
        adjoint.run(&y, &w, &mut to_x, &mut space).unwrap();
        let gradient = conv.plan_backward_weight::<T>(device, x.shape(), y.shape(), options);
        let gradient = gradient.unwrap();
        let mut space = gradient.make_workspace().unwrap();
        gradient.run(&x, &y, &mut to_w, &mut space).unwrap();
        let explained = [forward.explanation(), adjoint.explanation(), gradient.explanation()];
        let rounded = explained.map(|explanation| explanation.tf32);
        assert_eq!(rounded, explained.map(|found| found.to_string().contains("rounded to TF32")));
        ([to_y, to_x, to_w].map(|found| values(&found)), explained.map(ToString::to_string))
    }
}

fn allowed(algorithm: Algorithm) -> PlanOptions {
    PlanOptions::new().algorithm(algorithm).allow_tf32(true)
}

const ALGORITHMS: [Algorithm; 3] = [Algorithm::Implicit, Algorithm::Im2col, Algorithm::Shifted];

/// Ten bits of fraction hold them.
#[test]
fn small_integers_are_multiplied_exactly() {
    let small = |len, seed| integers(len, seed, 3);
    for layer in Layer::each() {
        let operands = layer.operands(small);
        let (expected, _) = layer.results::<f64>(&Device::Cpu, &operands, PlanOptions::new());
        for device in accelerators() {
            for algorithm in ALGORITHMS {
                let (found, plans) = layer.results::<f32>(device, &operands, allowed(algorithm));
                assert_eq!(found, expected, "{plans:?}");
                assert!(plans.iter().all(|plan| plan.contains("rounded to TF32")), "{plans:?}");
            }
        }
    }
}

/// Each operand is off by 2⁻¹¹ of itself, and rounded: f32 would be nearer by far.
#[test]
fn errors_are_within_what_is_documented() {
    for layer in Layer::each() {
        let operands = layer.operands(randoms);
        let sizes = operands.clone().map(|values| values.into_iter().map(f64::abs).collect());
        let (expected, _) = layer.results::<f64>(&Device::Cpu, &operands, PlanOptions::new());
        let (bounds, _) = layer.results::<f64>(&Device::Cpu, &sizes, PlanOptions::new());
        let worst = |found: &[Vec<f64>; 3]| {
            let each = found.iter().flatten().zip(expected.iter().flatten());
            let errors = each.zip(bounds.iter().flatten());
            errors
                .map(|((found, expected), bound)| (found - expected).abs() / bound)
                .fold(0., f64::max)
        };
        for device in accelerators() {
            for algorithm in ALGORITHMS {
                let (found, plans) = layer.results::<f32>(device, &operands, allowed(algorithm));
                // Sums of f32, of 360 products at most, add 2⁻²⁴ each.
                let bound = (-10f64).exp2() + (-22f64).exp2() + 400. * (-24f64).exp2();
                assert!(worst(&found) < bound, "{} of {bound}, {plans:?}", worst(&found));
                assert!(worst(&found) > (-16f64).exp2(), "{} is no TF32, {plans:?}", worst(&found));
            }
            let strict = layer.results::<f32>(device, &operands, PlanOptions::new());
            assert!(worst(&strict.0) < 400. * (-24f64).exp2(), "{:?}", strict.1);
            assert!(strict.1.iter().all(|plan| !plan.contains("rounded to TF32")));
        }
    }
}

/// Neither the CPU nor other types know it, and so are as they would be without.
#[test]
fn what_has_no_tf32_ignores_it() {
    let layer = Layer::new(Layout::ChannelsLast, [8, 24], 1);
    let operands = layer.operands(randoms);
    let cpu = |options| layer.results::<f32>(&Device::Cpu, &operands, options);
    assert_eq!(cpu(allowed(Algorithm::Auto)), cpu(PlanOptions::new()));
    for device in accelerators() {
        let on = |options| layer.results::<f64>(device, &operands, options);
        assert_eq!(on(allowed(Algorithm::Auto)), on(PlanOptions::new()));
        let naive = PlanOptions::new().algorithm(Algorithm::Naive);
        let by_threads = |options| layer.results::<f32>(device, &operands, options);
        assert_eq!(by_threads(naive.allow_tf32(true)), by_threads(naive));
    }
}
