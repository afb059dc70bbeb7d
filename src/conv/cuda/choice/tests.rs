//! What `auto` takes is as good as the best that there is, by the profiler's model of an H100.

use half::f16;

use crate::device::Device;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::geometry::{Conv, Layout};
use crate::plan::{Algorithm, Explanation, PlanOptions, Workspace};
use crate::tensor::Tensor;
use crate::{Profiling, Simulation, Target};

/// Numbers that look random, the same each time.
struct Draw(u64);

impl Draw {
    fn next(&mut self, below: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }

    fn of<T: Copy>(&mut self, some: &[T]) -> T {
        some[self.next(some.len())]
    }
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    Forward,
    BackwardInput,
    BackwardWeight,
}

#[derive(Clone, Copy, Debug)]
struct Layer {
    conv: Conv<2>,
    size: [usize; 2],
    batch: usize,
    channels: usize,
    outputs: usize,
    operation: Operation,
}

impl Layer {
    /// A layer that is neither tiny nor too large to be tried.
    fn draw(draw: &mut Draw) -> Layer {
        loop {
            let taps = [draw.of(&[1, 1, 2, 3, 3, 3, 5, 7]), draw.of(&[1, 3, 3, 3, 4, 5])];
            let stride = draw.of(&[1, 1, 1, 2, 3]);
            let groups = draw.of(&[1, 1, 1, 2, 4, 32, 64]);
            let of_group = |draw: &mut Draw| match draw.next(3) {
                0 => 1 + draw.next(9),
                1 => 8 << draw.next(4),
                _ => 1 + draw.next(200),
            };
            let (inputs, outputs) = (of_group(draw), of_group(draw));
            let size = [1, 1].map(|_| draw.of(&[1, 5, 7, 14, 20, 28, 33, 56, 112]));
            let layer = Layer {
                conv: Conv::new(taps)
                    .stride([stride, stride])
                    .dilation([1, draw.of(&[1, 1, 1, 2])])
                    .padding([taps[0] / 2, taps[1] / 2])
                    .groups(groups)
                    .layout(draw.of(&[Layout::ChannelsFirst, Layout::ChannelsLast])),
                size,
                batch: draw.of(&[1, 2, 8, 16, 32]),
                channels: groups * inputs,
                outputs: groups * outputs,
                operation: draw.of(&[
                    Operation::Forward,
                    Operation::BackwardInput,
                    Operation::BackwardWeight,
                ]),
            };
            let Ok(output) = layer.conv.bind(size).map(|geometry| geometry.output()) else {
                continue;
            };
            let positions = size[0] * size[1] + output[0] * output[1];
            let elements = positions * layer.batch * layer.channels.max(layer.outputs);
            let weights = layer.channels * outputs * taps[0] * taps[1];
            let flop = 2 * weights * output[0] * output[1] * layer.batch;
            if elements < 8_000_000 && weights < 4_000_000 && flop < 20_000_000_000 {
                return layer;
            }
        }
    }

    /// What the plan is, and modelled seconds of a run if there is to be one; `None` for what does not exist.
    fn plan<T: Element>(
        &self,
        device: &Device,
        algorithm: Algorithm,
        run: bool,
    ) -> Result<Option<(Explanation, f64)>> {
        let Layer { conv, size, batch, channels, outputs, operation } = *self;
        let order = conv.axis_order();
        let output = conv.bind(size)?.output();
        let x = order.activation_shape(batch, channels, &size);
        let y = order.activation_shape(batch, outputs, &output);
        let w = order.weight_shape(outputs, channels / conv.group_count(), &conv.kernel_size());
        let zeros = |shape: &[usize]| Tensor::<T>::zeros(device, shape);
        let options = PlanOptions::default().algorithm(algorithm);
        macro_rules! planned {
            ($plan:expr, |$plan_name:ident, $workspace:ident| $run:expr) => {{
                let $plan_name = match $plan {
                    Err(Error::Invalid { .. }) => return Ok(None),
                    plan => plan?,
                };
                let _ = device.take_profile();
                if run {
                    let mut $workspace = Workspace::new(device, $plan_name.workspace())?;
                    $run?;
                }
                $plan_name.explanation().clone()
            }};
        }
        let explanation = match operation {
            Operation::Forward => {
                planned!(conv.plan_forward::<T>(device, &x, &w, false, options), |plan, space| {
                    plan.run(&zeros(&x)?, &zeros(&w)?, None, &mut zeros(&y)?, &mut space)
                })
            }
            Operation::BackwardInput => {
                planned!(
                    conv.plan_backward_input::<T>(device, &y, &w, size, options),
                    |plan, space| plan.run(&zeros(&y)?, &zeros(&w)?, &mut zeros(&x)?, &mut space)
                )
            }
            Operation::BackwardWeight => {
                planned!(conv.plan_backward_weight::<T>(device, &x, &y, options), |plan, space| {
                    plan.run(&zeros(&x)?, &zeros(&y)?, &mut zeros(&w)?, &mut space)
                })
            }
        };
        let seconds = device.take_profile().iter().map(|launch| launch.model.seconds).sum();
        Ok(Some((explanation, seconds)))
    }
}

/// Prints a line for a layer; gives by how much what `auto` takes is slower than the best, of which each is sampled
/// once.
fn try_layer<T: Element>(device: &Device, layer: &Layer) -> f64 {
    let (auto, _) = layer.plan::<T>(device, Algorithm::Auto, false).unwrap().unwrap();
    let (mut chosen, mut best, mut line) = (f64::NAN, f64::INFINITY, String::new());
    for algorithm in [
        Algorithm::Direct,
        Algorithm::Depthwise,
        Algorithm::Implicit,
        Algorithm::Im2col,
        Algorithm::Naive,
    ] {
        let Some((explanation, seconds)) = layer.plan::<T>(device, algorithm, true).unwrap() else {
            continue;
        };
        if explanation.algorithm == auto.algorithm {
            chosen = seconds;
        }
        best = best.min(seconds);
        let expected = explanation.expected_seconds.unwrap();
        line += &format!(", {algorithm} {:.1} (expected {:.1})", 1e6 * seconds, 1e6 * expected);
    }
    println!("{:.2} of {} us{line}: {}", chosen / best, auto.algorithm, auto.subject);
    chosen / best
}

/// `CONVMAT_LAYERS` and `CONVMAT_SEED` try more, and others.
#[test]
fn auto_is_as_good_as_the_best() {
    let target: Target = "h100".parse().unwrap();
    let profiling = Some(Profiling { target, blocks: Some(8) });
    let simulation = Simulation { profiling, specialise: true, ..Simulation::default() };
    let device = Device::simulator_with(simulation).unwrap();
    let number = |name: &str, default| {
        std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
    };
    let layers = number("CONVMAT_LAYERS", 6);
    let mut draw = Draw(number("CONVMAT_SEED", 1) as u64);
    let ratios: Vec<f64> = (0..layers)
        .map(|number| {
            let layer = Layer::draw(&mut draw);
            match number % 3 {
                2 => try_layer::<f16>(&device, &layer),
                _ => try_layer::<f32>(&device, &layer),
            }
        })
        .collect();
    let worse = ratios.iter().filter(|&&ratio| ratio.is_nan() || ratio > 1.05).count();
    println!("{worse} of {layers} layers are more than 5% from the best");
    assert!(worse <= layers / 20, "{worse} of {layers}");
}
