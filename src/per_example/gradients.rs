//! The gradients of all examples, stored.

use super::problem::{INPUT, OUTPUT_GRADIENT, Problem};
use super::{INPUT_NUMBER, OUTPUT_GRADIENT_NUMBER, Of, PerExampleOptions, cpu};
use crate::device::Device;
use crate::element::{Accumulator, Element};
use crate::error::{Result, check_accumulator, checked_product};
use crate::geometry::Conv;
use crate::plan::{Plan, PlanOptions, Steps, Workspace, plan_type};
use crate::tensor::view::common_device;
use crate::tensor::{Tensor, TensorView, TensorViewMut};

plan_type! {
    /// A plan of [`Conv::per_example_gradients`], made by [`Conv::plan_per_example_gradients`].
    PerExampleGradientsPlan<T, F>, cpu::Gradients, problem: Problem
}

const GRADIENTS: &str = "gradients";

impl<const D: usize> Conv<D> {
    /// The gradient of every example by the layer's weight, `[N, g, O/g, d]`: with a the patches of `x` as
    /// in [`Conv::unfold`] and g those positions of `dy`, the sum of `g·aᵀ` over an example's positions,
    /// group by group. d is C/g·K, in the order of the group's rows of [`Conv::unfold`]: (channel, tap)
    /// with channels first, (tap, channel) with channels last; with a bias there is one more column, the
    /// gradient by that. `x` and `dy` are shaped as in [`Conv::forward`].
    ///
    /// Of a transposed convolution ([`PerExampleOptions::transposed`]) `x` is what it reads, O and `dy` are
    /// of what it writes, and the columns are the channels of `x` and the kernel's taps, in the same order.
    ///
    /// Sums are accumulated and stored in `F`: `f32` for `f16`, `bf16` and `f32`, or `f64` for any element
    /// type. An empty batch gives an empty tensor. Where the gradients themselves are not needed,
    /// [`Conv::gradient_norms`], [`Conv::clipped_gradient`] and [`Conv::rotated_second_moment`] do without
    /// storing them.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] when `dy` has another batch than `x`, or extents other than the layer's output;
    /// [`crate::Error::Invalid`] when groups do not divide the channels or the geometry is none;
    /// [`crate::Error::ElementType`] when `F` holds less than sums over `T`; [`crate::Error::DeviceMismatch`]; [`crate::Error::Compile`] or
    /// [`crate::Error::Device`] when the device fails.
    ///
    /// ```
    /// use convmat::{Conv, Device, PerExampleOptions, Tensor};
    /// let x = Tensor::from_vec(&Device::Cpu, &[2, 1, 3], vec![1f32, 2., 3., 4., 5., 6.])?;
    /// let dy = Tensor::from_vec(&Device::Cpu, &[2, 1, 2], vec![1f32, 0., 1., 1.])?;
    /// let options = PerExampleOptions::new().bias(true);
    /// let gradients = Conv::new([2]).per_example_gradients::<f32, f32>(&x, &dy, options)?;
    /// assert_eq!(gradients.into_vec()?, [1., 2., 1., 9., 11., 2.]);
    /// # Ok::<(), convmat::Error>(())
    /// ```
    pub fn per_example_gradients<'x, 'y, T: Element, F: Accumulator>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        dy: impl Into<TensorView<'y, T>>,
        options: PerExampleOptions,
    ) -> Result<Tensor<F>> {
        let (x, dy) = (x.into(), dy.into());
        let device = common_device(&[(INPUT, x.device()), (OUTPUT_GRADIENT, dy.device())])?;
        let plan = PlanOptions::for_addresses(&[x.address(), dy.address()]);
        let plan =
            self.plan_per_example_gradients::<T, F>(&device, x.shape(), dy.shape(), options, plan)?;
        let mut gradients = Tensor::for_result(&device, plan.result_shape())?;
        plan.run(x, dy, &mut gradients, &mut plan.make_workspace()?)?;
        Ok(gradients)
    }

    /// [`Conv::per_example_gradients`] into a caller's tensor, all of which is overwritten.
    ///
    /// # Errors
    /// As [`Conv::per_example_gradients`]; [`crate::Error::Shape`] also when `gradients` does not have the result's
    /// shape. It is unchanged after an error.
    pub fn per_example_gradients_into<'x, 'y, 'g, T: Element, F: Accumulator>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        dy: impl Into<TensorView<'y, T>>,
        options: PerExampleOptions,
        gradients: impl Into<TensorViewMut<'g, F>>,
    ) -> Result<()> {
        let (x, dy, gradients) = (x.into(), dy.into(), gradients.into());
        let device = common_device(&[(INPUT, x.device()), (OUTPUT_GRADIENT, dy.device())])?;
        let plan = PlanOptions::for_addresses(&[x.address(), dy.address(), gradients.address()]);
        let plan =
            self.plan_per_example_gradients::<T, F>(&device, x.shape(), dy.shape(), options, plan)?;
        plan.run(x, dy, gradients, &mut plan.make_workspace()?)
    }

    /// A plan of [`Conv::per_example_gradients`] for operands of these shapes.
    ///
    /// # Errors
    /// As [`Conv::per_example_gradients`]; [`crate::Error::Invalid`] also when the workspace would be larger than
    /// `plan` allows.
    pub fn plan_per_example_gradients<T: Element, F: Accumulator>(
        &self,
        device: &Device,
        x: &[usize],
        dy: &[usize],
        options: PerExampleOptions,
        plan: PlanOptions,
    ) -> Result<PerExampleGradientsPlan<T, F>> {
        check_accumulator::<T, F>(GRADIENTS)?;
        let p = Problem::new(self, x, dy, options)?;
        let mut shape = vec![p.batch];
        shape.extend(p.gradient_shape());
        let results = checked_product("the gradients", &shape)?;
        let operation = "per_example_gradients";
        let of = Of { operation, conv: self, problem: &p, shapes: [x, dy] };
        let mut explanation = of.describe::<T, F>(0, results);
        let mut operands = of.operands();
        operands.push((GRADIENTS, shape));
        let steps = match device {
            Device::Cpu => Steps::on_cpu(cpu::Gradients::new::<T, F>(&p, &mut explanation)),
            #[cfg(gpu)]
            Device::Cuda(cuda) => {
                Steps::Cuda(of.program::<T>(cuda, &plan, &mut explanation, |draft, examples| {
                    let target = draft.operand::<F>(results);
                    examples.gradients(draft, target)
                })?)
            }
        };
        let plan = Plan::new(device, &plan, explanation, operands, steps)?;
        Ok(PerExampleGradientsPlan::of(plan, p))
    }
}

impl<T: Element, F: Accumulator> PerExampleGradientsPlan<T, F> {
    /// Writes the gradients of all examples, all of `gradients`.
    ///
    /// # Errors
    /// [`crate::Error::Shape`], [`crate::Error::DeviceMismatch`] or [`crate::Error::Invalid`] when operands or workspace are not
    /// those that were planned for; [`crate::Error::Device`] when the device fails.
    pub fn run<'x, 'y, 'g>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        dy: impl Into<TensorView<'y, T>>,
        gradients: impl Into<TensorViewMut<'g, F>>,
        workspace: &mut Workspace<'_>,
    ) -> Result<()> {
        let (x, dy, gradients) = (x.into(), dy.into(), gradients.into());
        self.plan.check(&[
            (INPUT_NUMBER, x.shape(), &x.device()),
            (OUTPUT_GRADIENT_NUMBER, dy.shape(), &dy.device()),
            (self.plan.last(), gradients.shape(), &gradients.device()),
        ])?;
        match self.plan.steps() {
            Steps::Cpu { plan, workers } => {
                let memory = workspace.host(workers.workspace())?;
                let operands = self.problem.operands(&x, &dy);
                plan.run(workers, operands, gradients.host(), memory)
            }
            #[cfg(gpu)]
            Steps::Cuda(program) => {
                let addresses = [x.address(), dy.address(), gradients.address()];
                // SAFETY: the operands were checked, and are borrowed.
                unsafe { self.plan.queue(program, &addresses, workspace) }
            }
        }
    }
}
