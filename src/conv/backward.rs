//! The gradients of a convolution by its input, weight and bias.

#[cfg(gpu)]
use super::cuda;
use super::problem::Problem;
use super::{Algorithm, check_weight, cpu};
use crate::device::Device;
use crate::element::Element;
use crate::error::{Error, Result, checked_product};
use crate::geometry::{Conv, Geometry};
use crate::tensor::view::{common_device, expect_shape};
use crate::tensor::{Tensor, TensorView, TensorViewMut};

impl<const D: usize> Conv<D> {
    /// The gradient by the input, of these spatial extents: `fold(Wᵀ·dy)`. PyTorch's
    /// `torch.nn.grad.conv{1,2,3}d_input`.
    ///
    /// Shapes as in [`Conv::forward`], with `dy` shaped like its result and the result like its `x`.
    ///
    /// # Errors
    /// As [`Conv::forward`]; [`Error::Shape`] also when the extents of `dy` are not those of the
    /// output for `input_size`.
    pub fn backward_input<'y, 'w, T: Element>(
        &self,
        dy: impl Into<TensorView<'y, T>>,
        weight: impl Into<TensorView<'w, T>>,
        input_size: [usize; D],
    ) -> Result<Tensor<T>> {
        let (dy, weight) = (dy.into(), weight.into());
        let (problem, shape) = self.backward_input_problem(&dy, &weight, input_size)?;
        let mut dx = Tensor::for_result(&dy.device(), &shape)?;
        run_backward_input(&problem, &dy, &weight, dx.view_mut(), Algorithm::Auto)?;
        Ok(dx)
    }

    /// [`Conv::backward_input`] into a caller's tensor, all of which is overwritten and whose shape
    /// gives the input's extents, by a chosen algorithm.
    ///
    /// # Errors
    /// As [`Conv::backward_input`]; [`Error::Shape`] also when `dx` does not have the result's shape.
    pub fn backward_input_into<'y, 'w, 'x, T: Element>(
        &self,
        dy: impl Into<TensorView<'y, T>>,
        weight: impl Into<TensorView<'w, T>>,
        dx: impl Into<TensorViewMut<'x, T>>,
        algorithm: Algorithm,
    ) -> Result<()> {
        let (dy, weight, dx) = (dy.into(), weight.into(), dx.into());
        let name = "input gradient";
        let (.., size) = self.axis_order().split_activation::<D>(name, dx.shape())?;
        let (problem, shape) = self.backward_input_problem(&dy, &weight, size)?;
        expect_shape(name, &shape, dx.shape())?;
        run_backward_input(&problem, &dy, &weight, dx, algorithm)
    }

    /// The gradient by the weight, `dy·Aᵀ` summed over the batch, A the patches of `x`. PyTorch's
    /// `torch.nn.grad.conv{1,2,3}d_weight`.
    ///
    /// Shapes as in [`Conv::forward`], with `dy` shaped like its result and the result like its
    /// `weight`. An empty batch gives zeros.
    ///
    /// # Errors
    /// As [`Conv::forward`]; [`Error::Shape`] also when `dy` does not fit the output for `x`.
    pub fn backward_weight<'x, 'y, T: Element>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        dy: impl Into<TensorView<'y, T>>,
    ) -> Result<Tensor<T>> {
        let (x, dy) = (x.into(), dy.into());
        let (_, shape) = self.backward_weight_problem(&x, &dy)?;
        let mut dw = Tensor::for_result(&x.device(), &shape)?;
        self.backward_weight_into(x, dy, &mut dw, Algorithm::Auto)?;
        Ok(dw)
    }

    /// [`Conv::backward_weight`] into a caller's tensor, all of which is overwritten, by a chosen
    /// algorithm.
    ///
    /// # Errors
    /// As [`Conv::backward_weight`]; [`Error::Shape`] also when `dw` does not have the result's shape.
    pub fn backward_weight_into<'x, 'y, 'w, T: Element>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        dy: impl Into<TensorView<'y, T>>,
        dw: impl Into<TensorViewMut<'w, T>>,
        algorithm: Algorithm,
    ) -> Result<()> {
        let (x, dy, dw) = (x.into(), dy.into(), dw.into());
        let (problem, shape) = self.backward_weight_problem(&x, &dy)?;
        expect_shape("weight gradient", &shape, dw.shape())?;
        match common_device(&[("input", x.device()), ("weight gradient", dw.device())])? {
            Device::Cpu => {
                cpu::backward_weight(&problem, x.host(), dy.host(), dw.host(), algorithm)
            }
            #[cfg(gpu)]
            Device::Cuda(_) => {
                cuda::backward_weight(&problem, x.cuda(), dy.cuda(), dw.cuda(), algorithm)
            }
        }
    }

    /// The gradient by the bias: `dy` (`[N, O, output…]`, or `[N, output…, O]` with channels last)
    /// summed over the batch and all positions, `[O]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when `dy` does not have D + 2 axes.
    pub fn backward_bias<'y, T: Element>(
        &self,
        dy: impl Into<TensorView<'y, T>>,
    ) -> Result<Tensor<T>> {
        let dy = dy.into();
        let (_, outputs, _) = self.split_output_gradient(&dy)?;
        let mut db = Tensor::for_result(&dy.device(), &[outputs])?;
        self.backward_bias_into(dy, &mut db)?;
        Ok(db)
    }

    /// [`Conv::backward_bias`] into a caller's tensor, all of which is overwritten.
    ///
    /// # Errors
    /// As [`Conv::backward_bias`]; [`Error::Shape`] also when `db` is not `[O]`.
    pub fn backward_bias_into<'y, 'b, T: Element>(
        &self,
        dy: impl Into<TensorView<'y, T>>,
        db: impl Into<TensorViewMut<'b, T>>,
    ) -> Result<()> {
        let (dy, db) = (dy.into(), db.into());
        let (batch, outputs, size) = self.split_output_gradient(&dy)?;
        expect_shape("bias gradient", &[outputs], db.shape())?;
        let positions = size.iter().product();
        match common_device(&[("output gradient", dy.device()), ("bias gradient", db.device())])? {
            Device::Cpu => {
                cpu::backward_bias(self.axis_order(), batch, positions, dy.host(), db.host())
            }
            #[cfg(gpu)]
            Device::Cuda(_) => {
                cuda::backward_bias(self.axis_order(), batch, positions, dy.cuda(), db.cuda())
            }
        }
    }

    fn split_output_gradient<T: Element>(
        &self,
        dy: &TensorView<'_, T>,
    ) -> Result<(usize, usize, [usize; D])> {
        self.axis_order().split_activation::<D>("output gradient", dy.shape())
    }

    /// Checks the operands; returns what to compute and the shape of the result.
    pub(super) fn backward_input_problem<T: Element>(
        &self,
        dy: &TensorView<'_, T>,
        weight: &TensorView<'_, T>,
        input_size: [usize; D],
    ) -> Result<(Problem, Vec<usize>)> {
        let geometry = self.bind(input_size)?;
        let (_, _, size) = self.split_output_gradient(dy)?;
        check_output_extents("output gradient", &geometry, size, dy.shape())?;
        adjoint_problem("output gradient", &geometry, dy, weight)
    }

    /// Checks the operands; returns what to compute and the shape of the result.
    pub(super) fn backward_weight_problem<T: Element>(
        &self,
        x: &TensorView<'_, T>,
        dy: &TensorView<'_, T>,
    ) -> Result<(Problem, Vec<usize>)> {
        let layout = self.axis_order();
        let (batch, channels, size) = layout.split_activation::<D>("input", x.shape())?;
        let geometry = self.bind(size)?;
        let per_group = geometry.channels_per_group("input", channels)?;
        let (dy_batch, outputs, dy_size) = self.split_output_gradient(dy)?;
        geometry.channels_per_group("output gradient", outputs)?;
        check_output_extents("output gradient", &geometry, dy_size, dy.shape())?;
        if dy_batch != batch {
            let expected = layout.activation_shape(batch, outputs, &geometry.output());
            let expected = format!("{expected:?}, the batch of the input");
            return Err(Error::shape("output gradient", expected, dy.shape()));
        }
        common_device(&[("input", x.device()), ("output gradient", dy.device())])?;
        let problem = Problem::new(&geometry, batch, channels, outputs)?;
        Ok((problem, layout.weight_shape(outputs, per_group, &self.kernel_size())))
    }
}

fn check_output_extents<const D: usize>(
    argument: &str,
    geometry: &Geometry<D>,
    size: [usize; D],
    shape: &[usize],
) -> Result<()> {
    if size == geometry.output() {
        return Ok(());
    }
    let expected = format!("spatial extents {:?}", geometry.output());
    Err(Error::shape(argument, expected, shape))
}

/// Checks the operands of the adjoint map, whose spatial extents `geometry` already fits: `dy`, named
/// `argument`, and the weight. Returns what to compute and the shape of the result.
pub(super) fn adjoint_problem<T: Element, const D: usize>(
    argument: &str,
    geometry: &Geometry<D>,
    dy: &TensorView<'_, T>,
    weight: &TensorView<'_, T>,
) -> Result<(Problem, Vec<usize>)> {
    let conv = geometry.conv();
    let layout = conv.axis_order();
    let (batch, outputs, _) = layout.split_activation::<D>(argument, dy.shape())?;
    geometry.channels_per_group(argument, outputs)?;
    let (weight_outputs, per_group) = check_weight(conv, weight.shape())?;
    if weight_outputs != outputs {
        let expected = layout.weight_shape(outputs, per_group, &conv.kernel_size());
        let expected = format!("{expected:?}, as the {argument} has {outputs} channels");
        return Err(Error::shape("weight", expected, weight.shape()));
    }
    common_device(&[(argument, dy.device()), ("weight", weight.device())])?;
    let channels = checked_product("the number of channels", &[per_group, conv.group_count()])?;
    let problem = Problem::new(geometry, batch, channels, outputs)?;
    Ok((problem, layout.activation_shape(batch, channels, &geometry.input())))
}

fn run_backward_input<T: Element>(
    problem: &Problem,
    dy: &TensorView<'_, T>,
    weight: &TensorView<'_, T>,
    dx: TensorViewMut<'_, T>,
    algorithm: Algorithm,
) -> Result<()> {
    match common_device(&[("output gradient", dy.device()), ("input gradient", dx.device())])? {
        Device::Cpu => {
            cpu::backward_input(problem, dy.host(), weight.host(), None, dx.host(), algorithm)
        }
        #[cfg(gpu)]
        Device::Cuda(_) => {
            cuda::backward_input(problem, dy.cuda(), weight.cuda(), None, dx.cuda(), algorithm)
        }
    }
}
