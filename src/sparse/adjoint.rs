//! The adjoint of the convolution with a sparse weight: the gradient by the input, and the layer.

use std::sync::Arc;

use super::cpu;
#[cfg(gpu)]
use super::cuda;
use super::problem::{
    INPUT, INPUT_GRADIENT, OUTPUT, OUTPUT_GRADIENT, Problem, VALUES, check_channels,
};
use super::run::run_with_values;
use super::weight::{Pattern, SparseWeight};
use crate::device::Device;
#[cfg(gpu)]
use crate::device::cuda::Draft;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::geometry::{Conv, Geometry};
use crate::plan::{BIAS, Plan, PlanOptions, Steps, Workspace, plan_type};
use crate::tensor::view::common_device;
use crate::tensor::{OptionalView, Tensor, TensorView, TensorViewMut};

plan_type! {
    /// A plan of [`Conv::sparse_backward_input`], made by [`Conv::plan_sparse_backward_input`].
    SparseBackwardInputPlan, cpu::BackwardInput, pattern: Arc<Pattern>
}

plan_type! {
    /// A plan of [`Conv::sparse_transposed`], made by [`Conv::plan_sparse_transposed`].
    SparseTransposedPlan, cpu::BackwardInput, pattern: Arc<Pattern>
}

impl<const D: usize> Conv<D> {
    /// The gradient by the input of [`Conv::sparse_forward`], of these spatial extents: what
    /// [`Conv::backward_input`] makes of the dense weight, with the products of stored entries only.
    ///
    /// Shapes as in [`Conv::forward`], with `dy` shaped like its result and the result like its `x`.
    ///
    /// # Errors
    /// As [`Conv::sparse_forward`]; [`Error::Shape`] also when the extents of `dy` are not those of the output
    /// for `input_size`.
    pub fn sparse_backward_input<'y, T: Element>(
        &self,
        dy: impl Into<TensorView<'y, T>>,
        weight: &SparseWeight<T>,
        input_size: [usize; D],
    ) -> Result<Tensor<T>> {
        let dy = dy.into();
        let device = common_device(&[(OUTPUT_GRADIENT, dy.device()), ("weight", weight.device())])?;
        let options = PlanOptions::for_addresses(&[dy.address(), weight.values().address()]);
        let shape = dy.shape();
        let plan = self.plan_sparse_backward_input(&device, shape, weight, input_size, options)?;
        let mut dx = Tensor::for_result(&device, plan.result_shape())?;
        plan.run(dy, weight, &mut dx, &mut plan.make_workspace()?)?;
        Ok(dx)
    }

    /// [`Conv::sparse_backward_input`] into a caller's tensor, all of which is overwritten and whose shape
    /// gives the input's extents.
    ///
    /// # Errors
    /// As [`Conv::sparse_backward_input`]; [`Error::Shape`] also when `dx` does not have the result's shape.
    pub fn sparse_backward_input_into<'y, 'x, T: Element>(
        &self,
        dy: impl Into<TensorView<'y, T>>,
        weight: &SparseWeight<T>,
        dx: impl Into<TensorViewMut<'x, T>>,
    ) -> Result<()> {
        let (dy, dx) = (dy.into(), dx.into());
        let (.., size) = self.axis_order().split_activation::<D>(INPUT_GRADIENT, dx.shape())?;
        let device = common_device(&[(OUTPUT_GRADIENT, dy.device()), ("weight", weight.device())])?;
        let addresses = [dy.address(), weight.values().address(), dx.address()];
        let options = PlanOptions::for_addresses(&addresses);
        let shape = dy.shape();
        let plan = self.plan_sparse_backward_input(&device, shape, weight, size, options)?;
        plan.run(dy, weight, dx, &mut plan.make_workspace()?)
    }

    /// A plan of [`Conv::sparse_backward_input`] for output gradients of this shape and weights of the pattern
    /// of this one.
    ///
    /// # Errors
    /// As [`Conv::sparse_backward_input`]; [`Error::Invalid`] also when the workspace would be larger than
    /// `options` allow; [`Error::Compile`] or [`Error::Device`] when the device fails.
    pub fn plan_sparse_backward_input<T: Element>(
        &self,
        device: &Device,
        dy: &[usize],
        weight: &SparseWeight<T>,
        input_size: [usize; D],
        options: PlanOptions,
    ) -> Result<SparseBackwardInputPlan<T>> {
        let geometry = self.bind(input_size)?;
        let (.., size) = self.axis_order().split_activation::<D>(OUTPUT_GRADIENT, dy)?;
        if size != geometry.output() {
            let expected =
                format!("spatial extents {:?}, as the input has {input_size:?}", geometry.output());
            return Err(Error::shape(OUTPUT_GRADIENT, expected, dy));
        }
        let adjoint = Adjoint {
            operation: "sparse_backward_input",
            geometry: &geometry,
            names: [OUTPUT_GRADIENT, INPUT_GRADIENT],
            bias: false,
        };
        let plan = adjoint.plan(device, dy, weight, options)?;
        Ok(SparseBackwardInputPlan::of(plan, weight.pattern().clone()))
    }

    /// The transposed convolution with a sparse weight, plus `bias` on every position: what
    /// [`Conv::transposed`] makes of the dense weight. The weight is the one with which
    /// [`Conv::sparse_forward`] maps the result's shape to that of `x`: its rows are input channels here.
    ///
    /// # Errors
    /// As [`Conv::sparse_forward`] and [`Conv::bind_transposed`].
    pub fn sparse_transposed<'x, 'b, T: Element>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        weight: &SparseWeight<T>,
        bias: impl Into<OptionalView<'b, T>>,
        output_padding: [usize; D],
    ) -> Result<Tensor<T>> {
        let (x, bias) = (x.into(), bias.into().0);
        let device = common_device(&[(INPUT, x.device()), ("weight", weight.device())])?;
        let bias_address = bias.as_ref().map_or(0, TensorView::address);
        let addresses = [x.address(), weight.values().address(), bias_address];
        let options = PlanOptions::for_addresses(&addresses);
        let (shape, with_bias) = (x.shape(), bias.is_some());
        let plan = self.plan_sparse_transposed(
            &device,
            shape,
            weight,
            with_bias,
            output_padding,
            options,
        )?;
        let mut y = Tensor::for_result(&device, plan.result_shape())?;
        plan.run(x, weight, OptionalView(bias), &mut y, &mut plan.make_workspace()?)?;
        Ok(y)
    }

    /// A plan of [`Conv::sparse_transposed`] for inputs of this shape and weights of the pattern of this one,
    /// with a bias or without.
    ///
    /// # Errors
    /// As [`Conv::sparse_transposed`] and [`Conv::plan_sparse_forward`].
    pub fn plan_sparse_transposed<T: Element>(
        &self,
        device: &Device,
        x: &[usize],
        weight: &SparseWeight<T>,
        bias: bool,
        output_padding: [usize; D],
        options: PlanOptions,
    ) -> Result<SparseTransposedPlan<T>> {
        let (.., size) = self.axis_order().split_activation::<D>(INPUT, x)?;
        let geometry = self.bind_transposed(size, output_padding)?;
        let adjoint = Adjoint {
            operation: "sparse_transposed",
            geometry: &geometry,
            names: [INPUT, OUTPUT],
            bias,
        };
        let plan = adjoint.plan(device, x, weight, options)?;
        Ok(SparseTransposedPlan::of(plan, weight.pattern().clone()))
    }
}

impl<T: Element> SparseBackwardInputPlan<T> {
    /// Writes the gradient to `dx`, all of it.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DeviceMismatch`] or [`Error::Invalid`] when operands or workspace are not
    /// those that were planned for; [`Error::Device`] when the device fails.
    pub fn run<'y, 'x>(
        &self,
        dy: impl Into<TensorView<'y, T>>,
        weight: &SparseWeight<T>,
        dx: impl Into<TensorViewMut<'x, T>>,
        workspace: &mut Workspace<'_>,
    ) -> Result<()> {
        run_with_values(&self.plan, &self.pattern, dy.into(), weight, None, dx.into(), workspace)
    }
}

impl<T: Element> SparseTransposedPlan<T> {
    /// Writes the transposed convolution to `y`, all of it.
    ///
    /// # Errors
    /// As [`SparseBackwardInputPlan::run`].
    pub fn run<'x, 'b, 'y>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        weight: &SparseWeight<T>,
        bias: impl Into<OptionalView<'b, T>>,
        y: impl Into<TensorViewMut<'y, T>>,
        workspace: &mut Workspace<'_>,
    ) -> Result<()> {
        let (x, bias, y) = (x.into(), bias.into().0, y.into());
        run_with_values(&self.plan, &self.pattern, x, weight, bias, y, workspace)
    }
}

/// The adjoint map as a gradient or as a layer: what it and its operands are called.
struct Adjoint<'g, const D: usize> {
    operation: &'static str,
    geometry: &'g Geometry<D>,
    /// What is read besides the weight, and the result.
    names: [&'static str; 2],
    bias: bool,
}

impl<const D: usize> Adjoint<'_, D> {
    /// For what is read of this shape, whose spatial extents fit the geometry.
    fn plan<T: Element>(
        &self,
        device: &Device,
        dy: &[usize],
        weight: &SparseWeight<T>,
        options: PlanOptions,
    ) -> Result<Arc<Plan<cpu::BackwardInput>>> {
        let [argument, result] = self.names;
        let conv = self.geometry.conv();
        let layout = conv.axis_order();
        let (batch, outputs, _) = layout.split_activation::<D>(argument, dy)?;
        self.geometry.channels_per_group(argument, outputs)?;
        let pattern = weight.pattern();
        let problem = Problem::new(self.geometry, batch, pattern)?;
        check_channels(argument, outputs, problem.outputs, dy)?;
        let dx = layout.activation_shape(batch, problem.channels, &self.geometry.input());
        let mut operands = vec![(argument, dy.to_vec()), (VALUES, vec![pattern.len()])];
        if self.bias {
            operands.push((BIAS, vec![problem.channels]));
        }
        operands.push((result, dx));
        let mut explanation = problem.describe::<T>(self.operation, conv, &operands);
        explanation.algorithm = "direct".into();
        let steps = match device {
            Device::Cpu => {
                explanation.reason = "sums by the transposed pattern, tap by tap".into();
                let passes = &mut explanation.passes;
                Steps::on_cpu(cpu::BackwardInput::new::<T>(&problem, passes)?)
            }
            #[cfg(gpu)]
            Device::Cuda(cuda) => {
                let mut draft = Draft::new(cuda, options.alignment_for(size_of::<T>())?);
                let operands = cuda::BackwardInputOperands {
                    dy: draft.operand::<T>(problem.output_len()),
                    values: draft.operand(pattern.len()),
                    bias: self.bias.then(|| draft.operand(problem.channels)),
                    dx: draft.operand(problem.input_len()),
                };
                cuda::backward_input(&mut draft, &problem, operands)?;
                explanation.reason = cuda::REASON.into();
                Steps::Cuda(draft.prepare()?)
            }
        };
        Plan::new(device, &options, explanation, operands, steps)
    }
}
