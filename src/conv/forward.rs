//! The convolution itself.

#[cfg(gpu)]
use super::cuda;
use super::problem::Problem;
use super::{Algorithm, check_weight, cpu};
use crate::device::Device;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::geometry::Conv;
use crate::tensor::view::{common_device, expect_shape};
use crate::tensor::{Tensor, TensorView, TensorViewMut};

impl<const D: usize> Conv<D> {
    /// The convolution of `x` with `weight`, plus `bias` on every position: PyTorch's
    /// `F.conv1d`, `conv2d`, `conv3d`.
    ///
    /// Channels first: `x [N, C, spatial…]`, `weight [O, C/groups, kernel…]`, `bias [O]`, result
    /// `[N, O, output…]`. Channels last: `x [N, spatial…, C]`, `weight [kernel…, C/groups, O]`, result
    /// `[N, output…, O]`. An empty batch gives an empty result.
    ///
    /// # Errors
    /// [`Error::Shape`] for an operand of the wrong rank or shape, [`Error::Invalid`] for channels that
    /// `groups` does not divide and for what [`Conv::bind`] rejects, [`Error::DeviceMismatch`], and
    /// [`Error::TooLarge`] or [`Error::Allocation`] for sizes that do not fit.
    ///
    /// ```
    /// use convmat::{Conv, Device, Tensor};
    /// let conv = Conv::new([2]).stride([2]);
    /// let x = Tensor::from_vec(&Device::Cpu, &[1, 1, 4], vec![1f32, 2., 3., 4.])?;
    /// let weight = Tensor::from_vec(&Device::Cpu, &[1, 1, 2], vec![10f32, 1.])?;
    /// assert_eq!(conv.forward(&x, &weight, None)?.into_vec()?, [12., 34.]);
    /// # Ok::<(), convmat::Error>(())
    /// ```
    pub fn forward<'x, 'w, T: Element>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        weight: impl Into<TensorView<'w, T>>,
        bias: Option<TensorView<'_, T>>,
    ) -> Result<Tensor<T>> {
        let (x, weight) = (x.into(), weight.into());
        let (_, shape) = self.forward_problem(&x, &weight, bias.as_ref())?;
        let mut y = Tensor::for_result(&x.device(), &shape)?;
        self.forward_into(x, weight, bias, &mut y, Algorithm::Auto)?;
        Ok(y)
    }

    /// [`Conv::forward`] into a caller's tensor, all of which is overwritten, by a chosen algorithm.
    ///
    /// # Errors
    /// As [`Conv::forward`]; [`Error::Shape`] also when `y` does not have the result's shape.
    pub fn forward_into<'x, 'w, 'y, T: Element>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        weight: impl Into<TensorView<'w, T>>,
        bias: Option<TensorView<'_, T>>,
        y: impl Into<TensorViewMut<'y, T>>,
        algorithm: Algorithm,
    ) -> Result<()> {
        let (x, weight, y) = (x.into(), weight.into(), y.into());
        let (problem, shape) = self.forward_problem(&x, &weight, bias.as_ref())?;
        expect_shape("output", &shape, y.shape())?;
        match common_device(&[("input", x.device()), ("output", y.device())])? {
            Device::Cpu => {
                let bias = bias.as_ref().map(TensorView::host);
                cpu::forward(&problem, x.host(), weight.host(), bias, y.host(), algorithm)
            }
            #[cfg(gpu)]
            Device::Cuda(_) => {
                let bias = bias.as_ref().map(TensorView::cuda);
                cuda::forward(&problem, x.cuda(), weight.cuda(), bias, y.cuda(), algorithm)
            }
        }
    }

    /// Checks the operands; returns what to compute and the shape of the result.
    pub(super) fn forward_problem<T: Element>(
        &self,
        x: &TensorView<'_, T>,
        weight: &TensorView<'_, T>,
        bias: Option<&TensorView<'_, T>>,
    ) -> Result<(Problem, Vec<usize>)> {
        let layout = self.axis_order();
        let (batch, channels, size) = layout.split_activation::<D>("input", x.shape())?;
        let geometry = self.bind(size)?;
        let per_group = geometry.channels_per_group("input", channels)?;
        let (outputs, inputs) = check_weight(self, weight.shape())?;
        if inputs != per_group {
            let expected = layout.weight_shape(outputs, per_group, &self.kernel_size());
            let expected = format!("{expected:?}, as the input has {channels} channels");
            return Err(Error::shape("weight", expected, weight.shape()));
        }
        common_device(&[("input", x.device()), ("weight", weight.device())])?;
        if let Some(bias) = bias {
            expect_shape("bias", &[outputs], bias.shape())?;
            common_device(&[("input", x.device()), ("bias", bias.device())])?;
        }
        let problem = Problem::new(&geometry, batch, channels, outputs)?;
        Ok((problem, layout.activation_shape(batch, outputs, &geometry.output())))
    }
}
