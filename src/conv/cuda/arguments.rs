//! A [`Problem`] as kernels read it: `kernels/convolution.cuh`.

use bytemuck::{Pod, Zeroable};

use crate::conv::problem::{Problem, Strides, WeightStrides};
use crate::device::cuda::{AxesArguments, CudaDevice, Divisor, Spec, axis_bound};
use crate::element::Element;
use crate::geometry::Layout;

/// `Strides` and `WeightStrides` in the kernel.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Three([i64; 3]);

impl From<Strides> for Three {
    fn from(strides: Strides) -> Self {
        Three([strides.image, strides.channel, strides.position].map(|stride| stride as i64))
    }
}

impl From<WeightStrides> for Three {
    fn from(strides: WeightStrides) -> Self {
        Three([strides.output, strides.input, strides.tap].map(|stride| stride as i64))
    }
}

/// `Convolution` in the kernel.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Convolution {
    batch: i64,
    channels: i64,
    outputs: i64,
    x: Three,
    y: Three,
    weight: Three,
    axes: AxesArguments,
}

impl Convolution {
    pub fn new(p: &Problem) -> Self {
        Convolution {
            batch: p.batch as i64,
            channels: p.channels_per_group() as i64,
            outputs: p.outputs_per_group() as i64,
            x: p.input_strides().into(),
            y: p.output_strides().into(),
            weight: p.weight_strides().into(),
            axes: AxesArguments::new(&p.axes),
        }
    }
}

/// What every kernel of a convolution is compiled for; `count` is its largest number of its own.
pub(super) fn spec<T: Element>(
    device: &CudaDevice,
    p: &Problem,
    file: &'static str,
    entry: &'static str,
    count: usize,
) -> Spec {
    let inputs = p.batch * p.channels * p.input_positions();
    let outputs = p.batch * p.outputs * p.output_positions();
    let weights = p.outputs * p.channels_per_group() * p.taps();
    let counts = [inputs, outputs, weights, count, axis_bound(&p.axes)];
    Spec::new(file, entry).element(T::DTYPE).layout(p.layout).index(&counts, device.options().wide)
}

/// Divisors by the sizes of an activation's two inner axes together, and of the innermost.
pub(super) fn inner_axes(layout: Layout, channels: usize, positions: usize) -> [Divisor; 2] {
    let innermost = if layout == Layout::ChannelsFirst { positions } else { channels };
    [Divisor::new(channels * positions), Divisor::new(innermost)]
}
