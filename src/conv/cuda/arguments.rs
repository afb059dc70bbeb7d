//! A [`Problem`] as kernels read it: `kernels/conv/convolution.cuh`.

use crate::conv::problem::{self, Problem};
use crate::device::cuda::structs::{Convolution, Strides, WeightStrides};
use crate::device::cuda::{AxesArguments, CudaDevice, Divisor, Spec, axis_bound};
use crate::element::Element;
use crate::geometry::{self, Layout};
use crate::patches::cuda::Distances;

impl From<geometry::Strides> for Strides {
    fn from(strides: geometry::Strides) -> Self {
        let geometry::Strides { image, channel, position } = strides;
        Strides { image: image as i64, channel: channel as i64, position: position as i64 }
    }
}

impl From<geometry::Strides> for Distances {
    fn from(strides: geometry::Strides) -> Self {
        let geometry::Strides { image, channel, position } = strides;
        Distances { image, channel, position }
    }
}

impl From<problem::WeightStrides> for WeightStrides {
    fn from(strides: problem::WeightStrides) -> Self {
        let problem::WeightStrides { output, input, tap } = strides;
        WeightStrides { output: output as i64, input: input as i64, tap: tap as i64 }
    }
}

impl Convolution {
    pub(super) fn new(p: &Problem) -> Self {
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
