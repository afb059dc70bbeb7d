//! The gradients of a convolution by its input, weight and bias.

use super::cpu;
#[cfg(gpu)]
use super::cuda;
use super::problem::Problem;
use super::transposed::{Adjoint, plan_adjoint};
use super::with_weight::run_with_weight;
use crate::device::Device;
#[cfg(gpu)]
use crate::device::cuda::Draft;
use crate::element::Element;
use crate::error::{Error, Result, checked_product};
use crate::geometry::{Conv, Geometry};
use crate::plan::{Algorithm, Explanation, Plan, PlanOptions, Steps, Workspace, plan_type};
use crate::tensor::view::common_device;
use crate::tensor::{Tensor, TensorView, TensorViewMut};

plan_type! {
    /// A plan of [`Conv::backward_input`], made by [`Conv::plan_backward_input`].
    BackwardInputPlan, cpu::BackwardInput
}

plan_type! {
    /// A plan of [`Conv::backward_weight`], made by [`Conv::plan_backward_weight`].
    BackwardWeightPlan, cpu::BackwardWeight
}

plan_type! {
    /// A plan of [`Conv::backward_bias`], made by [`Conv::plan_backward_bias`].
    BackwardBiasPlan, cpu::BackwardBias
}

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
        let addresses = [dy.address(), weight.address()];
        let options = PlanOptions::for_addresses(&addresses);
        let plan = self.backward_input_plan_of(&dy, &weight, input_size, options)?;
        let mut dx = Tensor::for_result(&dy.device(), plan.result_shape())?;
        plan.run(dy, weight, &mut dx, &mut plan.make_workspace()?)?;
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
        let (.., size) = self.axis_order().split_activation::<D>(INPUT_GRADIENT, dx.shape())?;
        let addresses = [dy.address(), weight.address(), dx.address()];
        let options = PlanOptions::for_addresses(&addresses).algorithm(algorithm);
        let plan = self.backward_input_plan_of(&dy, &weight, size, options)?;
        plan.run(dy, weight, dx, &mut plan.make_workspace()?)
    }

    /// A plan of [`Conv::backward_input`] for operands of these shapes.
    ///
    /// # Errors
    /// As [`Conv::backward_input_into`];
    /// [`Error::Invalid`] also when the workspace would be larger than `options` allow; [`Error::Compile`]
    /// or [`Error::Device`] when the device fails.
    pub fn plan_backward_input<T: Element>(
        &self,
        device: &Device,
        dy: &[usize],
        weight: &[usize],
        input_size: [usize; D],
        options: PlanOptions,
    ) -> Result<BackwardInputPlan<T>> {
        let geometry = self.bind(input_size)?;
        let (_, _, size) = self.axis_order().split_activation::<D>(OUTPUT_GRADIENT, dy)?;
        check_output_extents(&geometry, size, dy)?;
        let adjoint = Adjoint {
            operation: "backward_input",
            geometry: &geometry,
            names: [OUTPUT_GRADIENT, INPUT_GRADIENT],
            bias: false,
        };
        plan_adjoint::<T, D>(adjoint, device, [dy, weight], options).map(BackwardInputPlan::of)
    }

    fn backward_input_plan_of<T: Element>(
        &self,
        dy: &TensorView<'_, T>,
        weight: &TensorView<'_, T>,
        input_size: [usize; D],
        options: PlanOptions,
    ) -> Result<BackwardInputPlan<T>> {
        let operands = [(OUTPUT_GRADIENT, dy.device()), ("weight", weight.device())];
        let device = common_device(&operands)?;
        self.plan_backward_input(&device, dy.shape(), weight.shape(), input_size, options)
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
        let options = PlanOptions::for_addresses(&[x.address(), dy.address()]);
        let plan = self.backward_weight_plan_of(&x, &dy, options)?;
        let mut dw = Tensor::for_result(&x.device(), plan.result_shape())?;
        plan.run(x, dy, &mut dw, &mut plan.make_workspace()?)?;
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
        let addresses = [x.address(), dy.address(), dw.address()];
        let options = PlanOptions::for_addresses(&addresses).algorithm(algorithm);
        let plan = self.backward_weight_plan_of(&x, &dy, options)?;
        plan.run(x, dy, dw, &mut plan.make_workspace()?)
    }

    /// A plan of [`Conv::backward_weight`] for operands of these shapes.
    ///
    /// # Errors
    /// As [`Conv::backward_weight_into`];
    /// [`Error::Invalid`] also when the workspace would be larger than `options` allow; [`Error::Compile`]
    /// or [`Error::Device`] when the device fails.
    pub fn plan_backward_weight<T: Element>(
        &self,
        device: &Device,
        x: &[usize],
        dy: &[usize],
        options: PlanOptions,
    ) -> Result<BackwardWeightPlan<T>> {
        options.within_limit(|options| self.backward_weight_plan(device, x, dy, options))
    }

    fn backward_weight_plan<T: Element>(
        &self,
        device: &Device,
        x: &[usize],
        dy: &[usize],
        options: PlanOptions,
    ) -> Result<BackwardWeightPlan<T>> {
        let layout = self.axis_order();
        let (batch, channels, size) = layout.split_activation::<D>("input", x)?;
        let geometry = self.bind(size)?;
        let per_group = geometry.channels_per_group("input", channels)?;
        let (dy_batch, outputs, dy_size) = layout.split_activation::<D>(OUTPUT_GRADIENT, dy)?;
        geometry.channels_per_group(OUTPUT_GRADIENT, outputs)?;
        check_output_extents(&geometry, dy_size, dy)?;
        if dy_batch != batch {
            let expected = layout.activation_shape(batch, outputs, &geometry.output());
            let expected = format!("{expected:?}, the batch of the input");
            return Err(Error::shape(OUTPUT_GRADIENT, expected, dy));
        }
        let problem = Problem::new(&geometry, batch, channels, outputs)?;
        let dw = layout.weight_shape(outputs, per_group, &self.kernel_size());
        let operands =
            vec![("input", x.to_vec()), (OUTPUT_GRADIENT, dy.to_vec()), ("weight gradient", dw)];
        let mut explanation = problem.describe::<T>("backward_weight", self, &operands);
        let steps = match device {
            Device::Cpu => {
                Steps::on_cpu(cpu::BackwardWeight::new::<T>(&problem, &options, &mut explanation)?)
            }
            #[cfg(gpu)]
            Device::Cuda(cuda) => {
                let mut draft = Draft::new(cuda, options.alignment_for(size_of::<T>())?);
                draft.allow_tf32(options.tf32);
                let regions = cuda::BackwardWeightOperands {
                    x: draft.operand::<T>(problem.input_len()),
                    dy: draft.operand(problem.output_len()),
                    dw: draft.operand(problem.weight_len()),
                };
                cuda::backward_weight(&mut draft, &problem, regions, &options, &mut explanation)?;
                Steps::Cuda(draft.prepare()?)
            }
        };
        Ok(BackwardWeightPlan::of(Plan::new(device, &options, explanation, operands, steps)?))
    }

    fn backward_weight_plan_of<T: Element>(
        &self,
        x: &TensorView<'_, T>,
        dy: &TensorView<'_, T>,
        options: PlanOptions,
    ) -> Result<BackwardWeightPlan<T>> {
        let device = common_device(&[("input", x.device()), (OUTPUT_GRADIENT, dy.device())])?;
        self.plan_backward_weight(&device, x.shape(), dy.shape(), options)
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
        let options = PlanOptions::for_addresses(&[dy.address()]);
        let plan = self.plan_backward_bias(&dy.device(), dy.shape(), options)?;
        let mut db = Tensor::for_result(&dy.device(), plan.result_shape())?;
        plan.run(dy, &mut db, &mut plan.make_workspace()?)?;
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
        let options = PlanOptions::for_addresses(&[dy.address(), db.address()]);
        let plan = self.plan_backward_bias(&dy.device(), dy.shape(), options)?;
        plan.run(dy, db, &mut plan.make_workspace()?)
    }

    /// A plan of [`Conv::backward_bias`] for gradients of this shape.
    ///
    /// # Errors
    /// As [`Conv::backward_bias`];
    /// [`Error::Invalid`] also when the workspace would be larger than `options` allow; [`Error::Compile`]
    /// or [`Error::Device`] when the device fails.
    pub fn plan_backward_bias<T: Element>(
        &self,
        device: &Device,
        dy: &[usize],
        options: PlanOptions,
    ) -> Result<BackwardBiasPlan<T>> {
        let layout = self.axis_order();
        let (batch, outputs, size) = layout.split_activation::<D>(OUTPUT_GRADIENT, dy)?;
        let positions = checked_product("the output positions", &size)?;
        let len = checked_product("the output gradient", dy)?;
        let operands = vec![(OUTPUT_GRADIENT, dy.to_vec()), ("bias gradient", vec![outputs])];
        let mut explanation = Explanation {
            operation: "backward_bias",
            subject: format!("{OUTPUT_GRADIENT} {dy:?} {}, {layout}", T::DTYPE),
            flop: len as u64,
            bytes: ((len + outputs) * size_of::<T>()) as u64,
            ..Explanation::default()
        };
        let steps = match device {
            Device::Cpu => {
                let explanation = &mut explanation;
                let made =
                    cpu::BackwardBias::new::<T>(layout, batch, outputs, positions, explanation);
                Steps::on_cpu(made)
            }
            #[cfg(gpu)]
            Device::Cuda(cuda) => {
                let mut draft = Draft::new(cuda, options.alignment_for(size_of::<T>())?);
                let (dy, db) = (draft.operand::<T>(len), draft.operand(outputs));
                explanation.algorithm = "reduce".into();
                explanation.reason = "sums of pieces, then of the pieces' sums in order".into();
                cuda::backward_bias(&mut draft, layout, batch, positions, dy, db)?;
                Steps::Cuda(draft.prepare()?)
            }
        };
        Ok(BackwardBiasPlan::of(Plan::new(device, &options, explanation, operands, steps)?))
    }
}

pub(super) const OUTPUT_GRADIENT: &str = "output gradient";
const INPUT_GRADIENT: &str = "input gradient";

fn check_output_extents<const D: usize>(
    geometry: &Geometry<D>,
    size: [usize; D],
    shape: &[usize],
) -> Result<()> {
    if size == geometry.output() {
        return Ok(());
    }
    let expected = format!("spatial extents {:?}", geometry.output());
    Err(Error::shape(OUTPUT_GRADIENT, expected, shape))
}

impl<T: Element> BackwardInputPlan<T> {
    /// Writes the gradient by the input to `dx`, all of it.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DeviceMismatch`] or [`Error::Invalid`] when operands or workspace are not
    /// those that were planned for; [`Error::Device`] when the device fails.
    pub fn run<'y, 'w, 'x>(
        &self,
        dy: impl Into<TensorView<'y, T>>,
        weight: impl Into<TensorView<'w, T>>,
        dx: impl Into<TensorViewMut<'x, T>>,
        workspace: &mut Workspace<'_>,
    ) -> Result<()> {
        run_with_weight(&self.plan, dy.into(), weight.into(), None, dx.into(), workspace)
    }
}

impl<T: Element> BackwardWeightPlan<T> {
    /// Writes the gradient by the weight to `dw`, all of it.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DeviceMismatch`] or [`Error::Invalid`] when operands or workspace are not
    /// those that were planned for; [`Error::Device`] when the device fails.
    pub fn run<'x, 'y, 'w>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        dy: impl Into<TensorView<'y, T>>,
        dw: impl Into<TensorViewMut<'w, T>>,
        workspace: &mut Workspace<'_>,
    ) -> Result<()> {
        let (x, dy, dw) = (x.into(), dy.into(), dw.into());
        self.plan.check(&[
            (0, x.shape(), &x.device()),
            (1, dy.shape(), &dy.device()),
            (2, dw.shape(), &dw.device()),
        ])?;
        match self.plan.steps() {
            Steps::Cpu { plan, workers } => {
                let memory = workspace.host(workers.workspace())?;
                plan.run(workers, x.host(), dy.host(), dw.host(), memory)
            }
            #[cfg(gpu)]
            Steps::Cuda(program) => {
                let addresses = [x.address(), dy.address(), dw.address()];
                // SAFETY: the operands were checked, and are borrowed.
                unsafe { self.plan.queue(program, &addresses, workspace) }
            }
        }
    }
}

impl<T: Element> BackwardBiasPlan<T> {
    /// Writes the gradient by the bias to `db`, all of it.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DeviceMismatch`] or [`Error::Invalid`] when operands or workspace are not
    /// those that were planned for; [`Error::Device`] when the device fails.
    pub fn run<'y, 'b>(
        &self,
        dy: impl Into<TensorView<'y, T>>,
        db: impl Into<TensorViewMut<'b, T>>,
        workspace: &mut Workspace<'_>,
    ) -> Result<()> {
        let (dy, db) = (dy.into(), db.into());
        self.plan.check(&[(0, dy.shape(), &dy.device()), (1, db.shape(), &db.device())])?;
        match self.plan.steps() {
            Steps::Cpu { plan, workers } => {
                let memory = workspace.host(workers.workspace())?;
                plan.run(workers, dy.host(), db.host(), memory)
            }
            #[cfg(gpu)]
            Steps::Cuda(program) => {
                // SAFETY: the operands were checked, and are borrowed.
                unsafe { self.plan.queue(program, &[dy.address(), db.address()], workspace) }
            }
        }
    }
}
