//! What `auto` takes is as good as the best that there is, by the profiler's model of an H100.

use half::f16;

use crate::device::Device;
use crate::device::cuda::{LOADS_AT_A_TIME, Work};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::geometry::{Conv, Layout};
use crate::plan::{Algorithm, Explanation, PlanOptions, Workspace};
use crate::tensor::Tensor;
use crate::{LaunchProfile, Limiter, Profiling, Simulation, Target};

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

    /// What the plan is, and the launches of a run if there is to be one; `None` for what does not exist.
    fn plan<T: Element>(
        &self,
        device: &Device,
        algorithm: Algorithm,
        run: bool,
    ) -> Result<Option<(Explanation, Vec<LaunchProfile>)>> {
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
        Ok(Some((explanation, device.take_profile())))
    }
}

/// A run of an algorithm.
struct Tried {
    name: String,
    /// Seconds, and what binds the longest launch.
    modelled: f64,
    limiter: Limiter,
    expected: f64,
}

impl Layer {
    /// What a run is modelled to take at least: the profiler's formula for what the algorithm cannot do without.
    fn least<T: Element>(&self, target: &Target, algorithm: Algorithm) -> f64 {
        let Layer { conv, size, batch, channels, outputs, operation } = *self;
        let axes = conv.bind(size).unwrap().axes().unwrap();
        let per_group = channels / conv.group_count();
        let results = match operation {
            Operation::Forward => batch * outputs * axes.outputs(),
            Operation::BackwardInput => batch * channels * axes.inputs(),
            Operation::BackwardWeight => outputs * per_group * axes.taps(),
        };
        let moving = |elements: usize| {
            let memory = (elements * size_of::<T>()) as f64;
            Work { blocks: 1.0, resident: 1.0, memory, ..Work::default() }.seconds(target).0
        };
        match algorithm {
            // The products that padding leaves, each of two loads. A block waits for the thread that has the most,
            // which are no fewer than they are on average; a multiprocessor holds at most 8 blocks of 256.
            Algorithm::Naive => {
                let met = axes.each_ref().map(|axis| axis.overlap().iter().sum::<usize>() as f64);
                let products = (batch * outputs * per_group) as f64 * met.iter().product::<f64>();
                let work = Work {
                    blocks: results.div_ceil(256) as f64,
                    resident: 8.0,
                    instructions: 3.0 * products / 32.0,
                    waits: 2.0 * products / results as f64 / LOADS_AT_A_TIME,
                    ..Work::default()
                };
                work.seconds(target).0
            }
            // A product for each tap.
            Algorithm::Shifted => axes.taps() as f64 * moving(0),
            // Patches are written, or read, besides the product.
            Algorithm::Im2col if !axes.is_identity() => {
                moving(results) + moving(batch * channels * axes.taps() * axes.outputs())
            }
            _ => moving(results),
        }
    }
}

/// By how much what `auto` takes is slower than the best, and a line about it. What cannot be the best is not run.
fn try_layer<T: Element>(device: &Device, layer: &Layer) -> (f64, String) {
    let target: Target = TARGET.parse().unwrap();
    let (auto, _) = layer.plan::<T>(device, Algorithm::Auto, false).unwrap().unwrap();
    let mut algorithms = [
        Algorithm::Direct,
        Algorithm::Implicit,
        Algorithm::Im2col,
        Algorithm::Naive,
        Algorithm::Shifted,
    ];
    // The one that is compared comes first, so that it is always run. (Direct has another name where it is depthwise.)
    algorithms.sort_by_key(|algorithm| match algorithm {
        Algorithm::Direct => !["direct", "depthwise"].contains(&&*auto.algorithm),
        _ => algorithm.to_string() != auto.algorithm,
    });
    let (mut all, mut best) = (Vec::new(), f64::INFINITY);
    for algorithm in algorithms {
        if layer.least::<T>(&target, algorithm) >= best {
            continue;
        }
        let Some((explanation, launches)) = layer.plan::<T>(device, algorithm, true).unwrap()
        else {
            continue;
        };
        let models = launches.iter().map(|launch| launch.model);
        let modelled = models.clone().map(|model| model.seconds).sum();
        let longest = models.max_by(|a, b| a.seconds.total_cmp(&b.seconds)).unwrap();
        best = best.min(modelled);
        all.push(Tried {
            name: explanation.algorithm,
            modelled,
            limiter: longest.limiter,
            expected: explanation.expected_seconds.unwrap(),
        });
    }
    let chosen = all.iter().find(|tried| tried.name == auto.algorithm);
    let ratio = chosen.map_or(f64::NAN, |chosen| chosen.modelled / best);
    let mut line = format!("{ratio:.3} of {}", auto.algorithm);
    for Tried { name, modelled, limiter, expected } in &all {
        let [modelled, expected] = [modelled, expected].map(|seconds| 1e6 * seconds);
        line += &format!(", {name} {modelled:.1} us by {limiter} (expected {expected:.1})");
    }
    (ratio, format!("{line}: {}", auto.subject))
}

const TARGET: &str = "h100";

/// All of the suite's few layers, and most of any. `CONVMAT_LAYERS` and `CONVMAT_SEED` try more, and others.
#[test]
fn auto_is_as_good_as_the_best() {
    let profiling = Some(Profiling { target: TARGET.parse().unwrap(), blocks: Some(8) });
    let simulation = Simulation { profiling, specialise: true, ..Simulation::default() };
    let number = |name: &str, default| {
        std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
    };
    let count = number("CONVMAT_LAYERS", 6);
    let mut draw = Draw(number("CONVMAT_SEED", 1) as u64);
    let layers: Vec<Layer> = (0..count).map(|_| Layer::draw(&mut draw)).collect();
    // Compilers take most of the time. Each device has layers of its own, for which it draws the same blocks each time.
    const DEVICES: usize = 2;
    let of_device = |first: usize| -> Vec<f64> {
        let device = Device::simulator_with(simulation).unwrap();
        let its = layers.iter().enumerate().skip(first).step_by(DEVICES);
        its.map(|(number, layer)| {
            let (ratio, line) = match number % 3 {
                2 => try_layer::<f16>(&device, layer),
                _ => try_layer::<f32>(&device, layer),
            };
            println!("{line}");
            ratio
        })
        .collect()
    };
    let of_device = &of_device;
    let ratios: Vec<f64> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..DEVICES).map(|first| scope.spawn(move || of_device(first))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let within = ratios.iter().filter(|&&ratio| ratio <= 1.05).count();
    let worst = ratios.iter().copied().fold(1.0, f64::max);
    println!("{within} of {count} layers are within 5% of the best, the worst is {worst:.2} times");
    assert!(20 * within >= 19 * count, "{within} of {count}");
}
