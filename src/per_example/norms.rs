//! The norms of examples' gradients, which are not stored.

use super::problem::{INPUT, OUTPUT_GRADIENT, Problem};
use super::{INPUT_NUMBER, OUTPUT_GRADIENT_NUMBER, Of, PerExampleOptions, cpu};
use crate::device::Device;
use crate::element::{Accumulator, Element};
use crate::error::{Result, check_accumulator};
use crate::geometry::Conv;
use crate::plan::{Plan, PlanOptions, Steps, Workspace, plan_type};
use crate::tensor::view::common_device;
use crate::tensor::{Tensor, TensorView, TensorViewMut};

plan_type! {
    /// A plan of [`Conv::gradient_norms`], made by [`Conv::plan_gradient_norms`].
    GradientNormsPlan<T, F>, cpu::Norms, problem: Problem
}

pub(super) const NORMS: &str = "norms";

impl<const D: usize> Conv<D> {
    /// The Euclidean norm of each example's gradient by weight and bias, over all groups, `[N]`: that of
    /// what [`Conv::per_example_gradients`] gives, without storing it. "Ghost norms", for differentially
    /// private training.
    ///
    /// Of T positions, O output channels and patches of d entries, either the gradient is computed piece by
    /// piece, 2·T·d·O FLOP, or Gram matrices of positions, `Σ_t Σ_t' (a_t·a_t')·(g_t·g_t')`
    /// (Goodfellow 2015, "Efficient per-example gradient computations"), about T²·(d + O) FLOP, and less
    /// where products of patches are looked up among those of inputs: whichever is less for the layer, see
    /// the plan's [`GradientNormsPlan::explanation`] (the choice of Bu et al. 2022, "Scalable and efficient
    /// training of large convolutional neural networks with differential privacy"). Squares are summed in
    /// `f64`. On CUDA devices it is always the former. A norm by Gram matrices is as precise as sums of the *absolute* products are: where an
    /// example's positions cancel, less precise than the norm is small.
    ///
    /// # Errors
    /// As [`Conv::per_example_gradients`].
    ///
    /// ```
    /// use convmat::{Conv, Device, PerExampleOptions, Tensor};
    /// let x = Tensor::from_vec(&Device::Cpu, &[2, 1, 2], vec![3f32, 4., 0., 0.])?;
    /// let dy = Tensor::from_vec(&Device::Cpu, &[2, 1, 1], vec![2f32, 1.])?;
    /// let norms = Conv::new([2]).gradient_norms::<f32, f32>(&x, &dy, PerExampleOptions::new())?;
    /// assert_eq!(norms.into_vec()?, [10., 0.]);
    /// # Ok::<(), convmat::Error>(())
    /// ```
    pub fn gradient_norms<'x, 'y, T: Element, F: Accumulator>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        dy: impl Into<TensorView<'y, T>>,
        options: PerExampleOptions,
    ) -> Result<Tensor<F>> {
        let (x, dy) = (x.into(), dy.into());
        let device = common_device(&[(INPUT, x.device()), (OUTPUT_GRADIENT, dy.device())])?;
        let plan = PlanOptions::for_addresses(&[x.address(), dy.address()]);
        let plan =
            self.plan_gradient_norms::<T, F>(&device, x.shape(), dy.shape(), options, plan)?;
        let mut norms = Tensor::for_result(&device, plan.result_shape())?;
        plan.run(x, dy, &mut norms, &mut plan.make_workspace()?)?;
        Ok(norms)
    }

    /// A plan of [`Conv::gradient_norms`] for operands of these shapes.
    ///
    /// # Errors
    /// As [`Conv::gradient_norms`]; [`crate::Error::Invalid`] also when the workspace would be larger than `plan`
    /// allows.
    pub fn plan_gradient_norms<T: Element, F: Accumulator>(
        &self,
        device: &Device,
        x: &[usize],
        dy: &[usize],
        options: PerExampleOptions,
        plan: PlanOptions,
    ) -> Result<GradientNormsPlan<T, F>> {
        check_accumulator::<T, F>(NORMS)?;
        let p = Problem::new(self, x, dy, options)?;
        let of = Of { operation: "gradient_norms", conv: self, problem: &p, shapes: [x, dy] };
        let squares = 2 * (p.batch * p.gradient_len()) as u64;
        let mut explanation = of.describe::<T, F>(squares, p.batch);
        let mut operands = of.operands();
        operands.push((NORMS, vec![p.batch]));
        let steps = match device {
            Device::Cpu => Steps::on_cpu(cpu::Norms::new::<T, F>(&p, &mut explanation)?),
            #[cfg(gpu)]
            Device::Cuda(cuda) => {
                Steps::Cuda(of.program::<T>(cuda, &plan, &mut explanation, |draft, examples| {
                    let norms = draft.operand::<F>(p.batch);
                    examples.norms(draft, norms)
                })?)
            }
        };
        let plan = Plan::new(device, &plan, explanation, operands, steps)?;
        Ok(GradientNormsPlan::of(plan, p))
    }
}

impl<T: Element, F: Accumulator> GradientNormsPlan<T, F> {
    /// Writes the norms of all examples, all of `norms`.
    ///
    /// # Errors
    /// [`crate::Error::Shape`], [`crate::Error::DeviceMismatch`] or [`crate::Error::Invalid`] when operands or workspace are not
    /// those that were planned for; [`crate::Error::Device`] when the device fails.
    pub fn run<'x, 'y, 'n>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        dy: impl Into<TensorView<'y, T>>,
        norms: impl Into<TensorViewMut<'n, F>>,
        workspace: &mut Workspace<'_>,
    ) -> Result<()> {
        let (x, dy, norms) = (x.into(), dy.into(), norms.into());
        self.plan.check(&[
            (INPUT_NUMBER, x.shape(), &x.device()),
            (OUTPUT_GRADIENT_NUMBER, dy.shape(), &dy.device()),
            (self.plan.last(), norms.shape(), &norms.device()),
        ])?;
        match self.plan.steps() {
            Steps::Cpu { plan, workers } => {
                let memory = workspace.host(workers.workspace())?;
                let operands = self.problem.operands(&x, &dy);
                plan.run(workers, operands, norms.host(), memory)
            }
            #[cfg(gpu)]
            Steps::Cuda(program) => {
                let addresses = [x.address(), dy.address(), norms.address()];
                // SAFETY: the operands were checked, and are borrowed.
                unsafe { self.plan.queue(program, &addresses, workspace) }
            }
        }
    }
}
