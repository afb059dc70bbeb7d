//! Cases every capability is tested on: random geometries that always include the awkward ones, and
//! the glue that hands them to the crate whatever their number of spatial axes.

use std::sync::OnceLock;

use convmat::{Conv, Device, Element, Layout, PaddingMode, Tensor};
use proptest::prelude::*;

use crate::oracle::Case;

/// The crate's description of a case, for its D.
pub fn conv<const D: usize>(c: &Case) -> Conv<D> {
    let last = |v: [usize; 3]| -> [usize; D] { std::array::from_fn(|a| v[3 - D + a]) };
    let (low, high) = (last(c.low), last(c.high));
    Conv::new(last(c.kernel))
        .stride(last(c.stride))
        .dilation(last(c.dilation))
        .padding(std::array::from_fn::<_, D, _>(|a| (low[a], high[a])))
        .padding_mode(c.mode)
        .groups(c.groups)
        .layout(c.layout)
}

/// The last D of three extents.
pub fn last<const D: usize>(v: [usize; 3]) -> [usize; D] {
    std::array::from_fn(|a| v[3 - D + a])
}

impl Case {
    pub fn input_shape(&self) -> Vec<usize> {
        let spatial = &self.input[3 - self.spatial..];
        self.layout.activation_shape(self.batch, self.channels, spatial)
    }

    pub fn output_shape(&self) -> Vec<usize> {
        let spatial = &self.output()[3 - self.spatial..];
        self.layout.activation_shape(self.batch, self.outputs, spatial)
    }

    pub fn weight_shape(&self) -> Vec<usize> {
        let kernel = &self.kernel[3 - self.spatial..];
        self.layout.weight_shape(self.outputs, self.channels / self.groups, kernel)
    }

    pub fn patch_shape(&self) -> Vec<usize> {
        self.layout.patch_shape(self.batch, self.channels * self.taps(), self.positions())
    }
}

/// Small integers, exactly representable in every element type, with sums that stay exact in f16 for
/// the sizes used here when `limit` is small.
pub fn integers(len: usize, seed: u64, limit: i64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 33) as i64 % (2 * limit + 1) - limit) as f64
        })
        .collect()
}

/// Values in [−1, 1) with full mantissas.
pub fn randoms(len: usize, seed: u64) -> Vec<f64> {
    integers(len, seed, 1 << 30).into_iter().map(|v| v / (1u64 << 30) as f64).collect()
}

pub fn tensor<T: Element>(shape: &[usize], values: &[f64]) -> Tensor<T> {
    let data = values.iter().map(|&v| T::from_f64(v)).collect();
    Tensor::from_vec(&Device::Cpu, shape, data).unwrap()
}

pub fn values<T: Element>(tensor: &Tensor<T>) -> Vec<f64> {
    tensor.view().to_vec().unwrap().iter().map(|v| v.to_f64()).collect()
}

/// The same tensor on a device, to be read or, with another call's contents in it, to be overwritten.
pub fn on<T: Element>(device: &Device, tensor: &Tensor<T>) -> Tensor<T> {
    tensor.clone().to_device(device).unwrap()
}

/// Every device of this machine: the CPU, the simulator, which runs the CUDA kernels, and a GPU. What is
/// missing is said once; `CONVMAT_REQUIRE` makes that a failure (see device.rs).
pub fn devices() -> &'static [Device] {
    static FOUND: OnceLock<Vec<Device>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let mut found = vec![Device::Cpu];
        for device in [Device::simulator(), Device::cuda(0)] {
            match device {
                Ok(device) => found.push(device),
                Err(reason) => eprintln!("skipped: {reason}"),
            }
        }
        found
    })
}

/// Says why a test is skipped, or fails it when `CONVMAT_REQUIRE` names the part that is missing.
#[allow(dead_code, reason = "some builds have no part that may be missing")]
pub fn skipped(part: &str, reason: impl std::fmt::Display) {
    let required = std::env::var("CONVMAT_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name == part), "{part} is required, but: {reason}");
    eprintln!("skipped: {reason}");
}

/// The devices other than the CPU.
pub fn accelerators() -> &'static [Device] {
    &devices()[1..]
}

/// What launches see of an H100.
#[cfg(feature = "simulator")]
fn h100() -> convmat::Machine {
    convmat::Machine::of(&"h100".parse().unwrap())
}

/// [`accelerators`], and simulators for which kernels are compiled as on GPUs, for each layer, and with
/// 64-bit indices, and one of the size of an H100. Every case of theirs is compiled: keep them few.
pub fn variants() -> Vec<Device> {
    #[allow(unused_mut)]
    let mut found = accelerators().to_vec();
    #[cfg(feature = "simulator")]
    for (specialise, wide_indices) in [(true, false), (true, true), (false, true)] {
        let simulation = convmat::Simulation { specialise, wide_indices, ..Default::default() };
        found.extend(Device::simulator_with(simulation));
    }
    #[cfg(feature = "simulator")]
    found.extend(Device::simulator_with(convmat::Simulation {
        machine: h100(),
        ..Default::default()
    }));
    found
}

/// A simulator of the size of an H100 with the sanitizer, or without where the compiler has none.
#[cfg(all(feature = "simulator", unix))]
pub fn sanitized() -> Option<Device> {
    let simulation = convmat::Simulation { machine: h100(), sanitizer: true, ..Default::default() };
    let without = convmat::Simulation { sanitizer: false, ..simulation };
    let device = Device::simulator_with(simulation).or_else(|reason| {
        skipped("sanitizer", reason);
        Device::simulator_with(without)
    });
    device.map_err(|reason| skipped("simulator", reason)).ok()
}

/// Layers of usual and of unusual kinds, in both layouts, with extents that allow wide loads and stores.
pub fn layers() -> Vec<Case> {
    use PaddingMode::{Circular, Reflect, Replicate, Zeros};
    let layer = |input, kernel, stride, dilation, low, high, mode| Case {
        batch: 2,
        channels: 4,
        outputs: 4,
        groups: 1,
        spatial: 2,
        input,
        kernel,
        stride,
        dilation,
        low,
        high,
        mode,
        layout: Layout::ChannelsFirst,
    };
    let (one, two) = ([1, 1, 1], [1, 2, 2]);
    let (none, same) = ([0, 0, 0], [0, 1, 1]);
    let planes = [
        layer([1, 8, 16], [1, 3, 3], one, one, same, same, Zeros),
        layer([1, 9, 16], [1, 3, 3], two, one, same, same, Zeros),
        layer([1, 14, 14], [1, 7, 7], two, one, [0, 3, 3], [0, 3, 3], Zeros),
        layer([1, 7, 12], [1, 1, 1], two, one, none, none, Zeros),
        layer([1, 8, 16], [1, 4, 4], [1, 4, 4], one, none, none, Zeros),
        layer([1, 11, 13], [1, 2, 3], [1, 3, 4], one, [0, 2, 1], [0, 0, 5], Zeros),
        layer([1, 10, 16], [1, 3, 3], [1, 2, 3], [1, 3, 2], [0, 4, 3], [0, 1, 4], Zeros),
        layer([1, 23, 24], [1, 11, 11], [1, 4, 4], one, [0, 2, 2], [0, 2, 2], Zeros),
        layer([1, 8, 8], [1, 3, 3], one, one, same, same, Reflect),
        layer([1, 9, 16], [1, 5, 4], two, one, [0, 2, 3], [0, 5, 1], Replicate),
    ];
    let lines = layer([1, 1, 32], [1, 1, 3], one, one, [0, 0, 1], [0, 0, 1], Zeros);
    let boxes = [
        layer([4, 6, 8], [3, 3, 3], [2, 2, 2], one, one, one, Zeros),
        layer([3, 4, 8], [2, 3, 3], [1, 2, 1], [2, 1, 1], one, [2, 1, 1], Circular),
    ];
    let mut found = planes.to_vec();
    found.push(Case { spatial: 1, ..lines });
    found.extend(boxes.into_iter().map(|case| Case { spatial: 3, ..case }));
    let grouped = Case { channels: 16, outputs: 16, groups: 2, ..found[1].clone() };
    found.extend([Case { groups: 16, ..grouped.clone() }, grouped]);
    let last = |case: &Case| Case { layout: Layout::ChannelsLast, ..case.clone() };
    let both: Vec<Case> = found.iter().map(last).collect();
    found.extend(both);
    found
}

/// One axis: (input, kernel, stride, dilation, low, high) within the mode's limits.
fn axis(mode: PaddingMode) -> impl Strategy<Value = [usize; 6]> {
    (1usize..=9, 1usize..=4, 1usize..=4, 1usize..=3, 0usize..=4, 0usize..=4)
        .prop_map(move |(size, kernel, stride, dilation, low, high)| {
            let limit = match mode {
                PaddingMode::Reflect => size - 1,
                PaddingMode::Circular => size,
                _ => usize::MAX,
            };
            [size, kernel, stride, dilation, low.min(limit), high.min(limit)]
        })
        .prop_filter("kernel fits", |&[size, kernel, _, dilation, low, high]| {
            dilation * (kernel - 1) < size + low + high
        })
}

/// Random cases: 1-3 spatial axes, all modes, both layouts, groups 1/g/C, batch 0-3, extents from 1,
/// even and anisotropic kernels, stride above kernel, asymmetric padding.
pub fn cases() -> impl Strategy<Value = Case> {
    (
        1usize..=3,
        prop::sample::select(PaddingMode::ALL.to_vec()),
        prop::sample::select(vec![Layout::ChannelsFirst, Layout::ChannelsLast]),
    )
        .prop_flat_map(|(spatial, mode, layout)| {
            let axes = prop::collection::vec(axis(mode), spatial);
            let channels = (0usize..=3, 1usize..=4, 1usize..=3, 1usize..=4);
            (axes, channels).prop_map(move |(axes, (batch, groups, per_in, per_out))| {
                let pick = |field: usize, unit: usize| {
                    std::array::from_fn(|a| {
                        (a + spatial).checked_sub(3).map_or(unit, |i| axes[i][field])
                    })
                };
                Case {
                    batch,
                    channels: groups * per_in,
                    outputs: groups * per_out,
                    groups,
                    spatial,
                    input: pick(0, 1),
                    kernel: pick(1, 1),
                    stride: pick(2, 1),
                    dilation: pick(3, 1),
                    low: pick(4, 0),
                    high: pick(5, 0),
                    mode,
                    layout,
                }
            })
        })
}
