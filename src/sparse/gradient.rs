//! The gradient by a sparse weight: for its stored entries only.

use std::sync::Arc;

use super::cpu;
#[cfg(gpu)]
use super::cuda;
use super::problem::{INPUT, OUTPUT_GRADIENT, Problem, WEIGHT_GRADIENT, check_channels};
use super::run::check_planned;
use super::weight::{Pattern, SparseWeight};
use crate::device::Device;
#[cfg(gpu)]
use crate::device::cuda::Draft;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::geometry::Conv;
use crate::plan::{Plan, PlanOptions, Steps, Workspace, plan_type};
use crate::tensor::view::common_device;
use crate::tensor::{Tensor, TensorView, TensorViewMut};

plan_type! {
    /// A plan of [`Conv::sparse_backward_weight`], made by [`Conv::plan_sparse_backward_weight`].
    SparseBackwardWeightPlan, cpu::BackwardWeight, pattern: Arc<Pattern>
}

/// The operands' numbers.
const X: usize = 0;
const DY: usize = 1;
const DW: usize = 2;

impl<const D: usize> Conv<D> {
    /// The gradient of [`Conv::sparse_forward`] by the entries that `weight` stores, zeros among them too: a
    /// weight of the same pattern. All other elements of [`Conv::backward_weight`] are left out, and not
    /// computed. The values of `weight` play no part, nor where they are.
    ///
    /// Shapes as in [`Conv::forward`], with `dy` shaped like its result.
    ///
    /// # Errors
    /// As [`Conv::sparse_forward`]; [`Error::Shape`] also when the extents of `dy` are not those of the output.
    ///
    /// ```
    /// use convmat::{Conv, Device, Pruning, SparseWeight, Tensor};
    /// let conv = Conv::new([2]);
    /// let dense = Tensor::from_vec(&Device::Cpu, &[1, 1, 2], vec![0f32, 3.])?;
    /// let weight = SparseWeight::from_dense(&conv, &dense, Pruning::Threshold(0.))?;
    /// let x = Tensor::from_vec(&Device::Cpu, &[1, 1, 3], vec![1f32, 2., 3.])?;
    /// let dy = Tensor::from_vec(&Device::Cpu, &[1, 1, 2], vec![1f32, 10.])?;
    /// let dw = conv.sparse_backward_weight(&x, &dy, &weight)?;
    /// assert_eq!((dw.indices(), dw.values().as_slice().unwrap()), (&[1][..], &[32.][..]));
    /// # Ok::<(), convmat::Error>(())
    /// ```
    pub fn sparse_backward_weight<'x, 'y, T: Element>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        dy: impl Into<TensorView<'y, T>>,
        weight: &SparseWeight<T>,
    ) -> Result<SparseWeight<T>> {
        let (x, dy) = (x.into(), dy.into());
        let device = common_device(&[(INPUT, x.device()), (OUTPUT_GRADIENT, dy.device())])?;
        let options = PlanOptions::for_addresses(&[x.address(), dy.address()]);
        let (shape, gradient) = (x.shape(), dy.shape());
        let plan = self.plan_sparse_backward_weight(&device, shape, gradient, weight, options)?;
        let mut values = Tensor::for_result(&device, plan.result_shape())?;
        plan.run(x, dy, weight, &mut values, &mut plan.make_workspace()?)?;
        weight.with_values(values)
    }

    /// [`Conv::sparse_backward_weight`] into a caller's tensor of `[entries]`, all of which is overwritten.
    ///
    /// # Errors
    /// As [`Conv::sparse_backward_weight`]; [`Error::Shape`] also when `dw` has not as many elements as the
    /// weight has entries.
    pub fn sparse_backward_weight_into<'x, 'y, 'w, T: Element>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        dy: impl Into<TensorView<'y, T>>,
        weight: &SparseWeight<T>,
        dw: impl Into<TensorViewMut<'w, T>>,
    ) -> Result<()> {
        let (x, dy, dw) = (x.into(), dy.into(), dw.into());
        let device = common_device(&[(INPUT, x.device()), (OUTPUT_GRADIENT, dy.device())])?;
        let options = PlanOptions::for_addresses(&[x.address(), dy.address(), dw.address()]);
        let (shape, gradient) = (x.shape(), dy.shape());
        let plan = self.plan_sparse_backward_weight(&device, shape, gradient, weight, options)?;
        plan.run(x, dy, weight, dw, &mut plan.make_workspace()?)
    }

    /// A plan of [`Conv::sparse_backward_weight`] for operands of these shapes and weights of the pattern of
    /// this one.
    ///
    /// # Errors
    /// As [`Conv::sparse_backward_weight`]; [`Error::Invalid`] also when the workspace would be larger than
    /// `options` allow; [`Error::Compile`] or [`Error::Device`] when the device fails.
    pub fn plan_sparse_backward_weight<T: Element>(
        &self,
        device: &Device,
        x: &[usize],
        dy: &[usize],
        weight: &SparseWeight<T>,
        options: PlanOptions,
    ) -> Result<SparseBackwardWeightPlan<T>> {
        let layout = self.axis_order();
        let (batch, channels, size) = layout.split_activation::<D>(INPUT, x)?;
        let geometry = self.bind(size)?;
        geometry.channels_per_group(INPUT, channels)?;
        let pattern = weight.pattern();
        let problem = Problem::new(&geometry, batch, pattern)?;
        check_channels(INPUT, channels, problem.channels, x)?;
        let y = layout.activation_shape(batch, problem.outputs, &geometry.output());
        if dy != y {
            return Err(Error::shape(OUTPUT_GRADIENT, format!("{y:?}"), dy));
        }
        let operands =
            vec![(INPUT, x.to_vec()), (OUTPUT_GRADIENT, y), (WEIGHT_GRADIENT, vec![pattern.len()])];
        let mut explanation = problem.describe::<T>("sparse_backward_weight", self, &operands);
        explanation.algorithm = "direct".into();
        explanation.reason = "a dot product for every stored entry".into();
        let steps = match device {
            Device::Cpu => {
                let passes = &mut explanation.passes;
                Steps::on_cpu(cpu::BackwardWeight::new::<T>(&problem, passes)?)
            }
            #[cfg(gpu)]
            Device::Cuda(cuda) => {
                let mut draft = Draft::new(cuda, options.alignment_for(size_of::<T>())?);
                let x = draft.operand::<T>(problem.input_len());
                let dy = draft.operand(problem.output_len());
                let dw = draft.operand(pattern.len());
                cuda::backward_weight(&mut draft, &problem, x, dy, dw)?;
                Steps::Cuda(draft.prepare()?)
            }
        };
        let plan = Plan::new(device, &options, explanation, operands, steps)?;
        Ok(SparseBackwardWeightPlan::of(plan, pattern.clone()))
    }
}

impl<T: Element> SparseBackwardWeightPlan<T> {
    /// Writes the gradient of every stored entry to `dw`, in the order of the weight's values.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DeviceMismatch`] or [`Error::Invalid`] when operands or workspace are not
    /// those that were planned for; [`Error::Device`] when the device fails.
    pub fn run<'x, 'y, 'w>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        dy: impl Into<TensorView<'y, T>>,
        weight: &SparseWeight<T>,
        dw: impl Into<TensorViewMut<'w, T>>,
        workspace: &mut Workspace<'_>,
    ) -> Result<()> {
        let (x, dy, dw) = (x.into(), dy.into(), dw.into());
        check_planned(&self.pattern, weight)?;
        self.plan.check(&[
            (X, x.shape(), &x.device()),
            (DY, dy.shape(), &dy.device()),
            (DW, dw.shape(), &dw.device()),
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
