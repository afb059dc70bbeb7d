//! What tests of several algorithms share.

use crate::conv::problem::Problem;
use crate::device::Device;
use crate::device::cuda::{CudaDevice, DeviceBuffer, Draft, Region, Simulation};
use crate::element::Element;
use crate::error::Result;
use crate::geometry::Conv;
use crate::plan::Algorithm;
use crate::tensor::Tensor;

pub(super) fn simulator(simulation: Simulation) -> CudaDevice {
    match Device::simulator_with(simulation).unwrap() {
        Device::Cuda(device) => device,
        Device::Cpu => unreachable!("the simulator is a CUDA device"),
    }
}

/// One that compiles kernels for each layer, as GPUs do; the catalogue's cases run as by default.
pub(super) fn specialising(simulation: Simulation) -> CudaDevice {
    simulator(Simulation { specialise: true, ..simulation })
}

/// Small integers, whose sums are exact.
fn integers<T: Element>(len: usize, seed: usize) -> Vec<T> {
    let value = |i: usize| ((i.wrapping_mul(2_654_435_761) >> 7) + seed * i) % 3;
    (0..len).map(|i| T::from_f64(value(i) as f64 - 1.)).collect()
}

/// Operands of a layer, and what the definition makes of them.
pub(super) struct Definition<T> {
    pub p: Problem,
    pub x: Vec<T>,
    pub w: Vec<T>,
    pub y: Vec<T>,
    pub bias_x: Vec<T>,
    pub bias_y: Vec<T>,
    pub expected_y: Vec<T>,
    pub expected_dx: Vec<T>,
    pub expected_dw: Vec<T>,
}

impl<T: Element> Definition<T> {
    pub fn new<const D: usize>(
        conv: Conv<D>,
        size: [usize; D],
        batch: usize,
        [channels, outputs]: [usize; 2],
    ) -> Self {
        let geometry = conv.bind(size).unwrap();
        let p = Problem::new(&geometry, batch, channels, outputs).unwrap();
        let x = integers::<T>(p.input_len(), 1);
        let w = integers::<T>(p.weight_len(), 2);
        let y = integers::<T>(p.output_len(), 3);
        let (bias_y, bias_x) = (integers::<T>(outputs, 4), integers::<T>(channels, 5));
        let order = conv.axis_order();
        let host = |shape: &[usize], data: &[T]| {
            Tensor::from_vec(&Device::Cpu, shape, data.to_vec()).unwrap()
        };
        let x_host = host(&order.activation_shape(batch, channels, &geometry.input()), &x);
        let y_host = host(&order.activation_shape(batch, outputs, &geometry.output()), &y);
        let weights = order.weight_shape(outputs, p.channels_per_group(), &conv.kernel_size());
        let w_host = host(&weights, &w);
        let [mut dx, mut dw] =
            [&x_host, &w_host].map(|like| Tensor::<T>::zeros(&Device::Cpu, like.shape()).unwrap());
        let naive = Algorithm::Naive;
        let (bias_y_host, bias_x_host) = (host(&[outputs], &bias_y), host(&[channels], &bias_x));
        let y_found = conv.forward_by(&x_host, &w_host, &bias_y_host, naive).unwrap();
        conv.transposed_into(&y_host, &w_host, &bias_x_host, &mut dx, naive).unwrap();
        conv.backward_weight_into(&x_host, &y_host, &mut dw, naive).unwrap();
        let [expected_y, expected_dx, expected_dw] =
            [y_found, dx, dw].map(|result| result.into_vec().unwrap());
        Definition { p, x, w, y, bias_x, bias_y, expected_y, expected_dx, expected_dw }
    }
}

/// Drafts on these operands, and runs at once.
pub(super) fn run_once<T: Element, const N: usize>(
    device: &CudaDevice,
    operands: [&DeviceBuffer<T>; N],
    write: impl FnOnce(&mut Draft, [Region<T>; N]) -> Result<()>,
) {
    let addresses = operands.map(|buffer| buffer.view().address());
    let mut draft = Draft::for_addresses(device, &addresses);
    let regions = operands.map(|buffer| draft.operand(buffer.len()));
    write(&mut draft, regions).unwrap();
    // SAFETY: the operands are as large as the regions; results are borrowed by this call alone.
    unsafe { draft.run_once(&addresses).unwrap() };
}
