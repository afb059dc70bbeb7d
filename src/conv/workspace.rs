//! How much memory the calls take besides their operands.

use super::Algorithm;
use crate::device::Device;
use crate::element::Element;
use crate::error::Result;
use crate::geometry::Conv;
use crate::tensor::Tensor;

impl<const D: usize> Conv<D> {
    /// Bytes of the device's memory that [`Conv::forward_into`] takes while it runs, for operands of these
    /// shapes: what patches, partial sums and wider sums of half types need. cuBLAS, where it is used,
    /// has a workspace of its own, of one size, which is not counted.
    ///
    /// 0 on the CPU, where each thread keeps a few MiB whatever the shape. Nothing is computed.
    ///
    /// # Errors
    /// As [`Conv::forward`].
    pub fn forward_workspace<T: Element>(
        &self,
        device: &Device,
        x: &[usize],
        weight: &[usize],
        bias: bool,
        algorithm: Algorithm,
    ) -> Result<u64> {
        let operands = |device: &Device| {
            let zeros = |shape: &[usize]| Tensor::<T>::zeros(device, shape);
            let (x, weight) = (zeros(x)?, zeros(weight)?);
            let (problem, shape) = self.forward_problem(&x.view(), &weight.view(), None)?;
            let bias = if bias { Some(zeros(&[problem.outputs])?) } else { None };
            Ok((x, weight, bias, zeros(&shape)?))
        };
        device.workspace(operands, |(x, weight, bias, y)| {
            self.forward_into(&*x, &*weight, bias.as_ref().map(Tensor::view), y, algorithm)
        })
    }

    /// The same of [`Conv::backward_input_into`], and of [`Conv::transposed_into`] without a bias.
    ///
    /// # Errors
    /// As [`Conv::backward_input`].
    pub fn backward_input_workspace<T: Element>(
        &self,
        device: &Device,
        dy: &[usize],
        weight: &[usize],
        input_size: [usize; D],
        algorithm: Algorithm,
    ) -> Result<u64> {
        let operands = |device: &Device| {
            let zeros = |shape: &[usize]| Tensor::<T>::zeros(device, shape);
            let (dy, weight) = (zeros(dy)?, zeros(weight)?);
            let (_, shape) = self.backward_input_problem(&dy.view(), &weight.view(), input_size)?;
            Ok((dy, weight, zeros(&shape)?))
        };
        device.workspace(operands, |(dy, weight, dx)| {
            self.backward_input_into(&*dy, &*weight, dx, algorithm)
        })
    }

    /// The same of [`Conv::backward_weight_into`].
    ///
    /// # Errors
    /// As [`Conv::backward_weight`].
    pub fn backward_weight_workspace<T: Element>(
        &self,
        device: &Device,
        x: &[usize],
        dy: &[usize],
        algorithm: Algorithm,
    ) -> Result<u64> {
        let operands = |device: &Device| {
            let zeros = |shape: &[usize]| Tensor::<T>::zeros(device, shape);
            let (x, dy) = (zeros(x)?, zeros(dy)?);
            let (_, shape) = self.backward_weight_problem(&x.view(), &dy.view())?;
            Ok((x, dy, zeros(&shape)?))
        };
        device
            .workspace(operands, |(x, dy, dw)| self.backward_weight_into(&*x, &*dy, dw, algorithm))
    }
}
