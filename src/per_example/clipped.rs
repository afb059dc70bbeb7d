//! The sum of examples' gradients, each scaled to a norm of at most a limit.

#[cfg(gpu)]
use super::cuda::Number;
use super::norms::NORMS;
use super::problem::{INPUT, OUTPUT_GRADIENT, Problem};
use super::{ClippedGradient, INPUT_NUMBER, OUTPUT_GRADIENT_NUMBER, Of, PerExampleOptions, cpu};
use crate::device::Device;
use crate::element::{Accumulator, Element};
use crate::error::{Error, Result, check_accumulator};
use crate::geometry::Conv;
use crate::plan::{Plan, PlanOptions, Steps, Workspace, plan_type};
use crate::tensor::view::common_device;
use crate::tensor::{Tensor, TensorView, TensorViewMut};

plan_type! {
    /// A plan of [`Conv::clipped_gradient`], made by [`Conv::plan_clipped_gradient`]. Its result is the
    /// gradient.
    ClippedGradientPlan<T, F>, cpu::Clipped, problem: Problem
}

const NORMS_NUMBER: usize = 2;
const CLIPPED: &str = "clipped gradient";

/// Fails, naming the example, where a norm is not finite.
pub(super) fn check_norms<F: Accumulator>(norms: &[F]) -> Result<()> {
    match norms.iter().position(|norm| !norm.to_f64().is_finite()) {
        None => Ok(()),
        Some(example) => {
            let argument = format!("the gradient's norm of example {example}");
            Err(Error::invalid(argument, norms[example], "it must be finite to be clipped"))
        }
    }
}

impl<const D: usize> Conv<D> {
    /// The sum over the batch of the examples' gradients, each scaled down to a norm of `limit` where it is
    /// longer, `Σ_n min(1, limit/‖∇W_n‖)·∇W_n`, `[g, O/g, d]`, and the norms `[N]` before that: what
    /// differentially private training adds noise to (Abadi et al. 2016, "Deep learning with differential
    /// privacy"). Gradients as in [`Conv::per_example_gradients`], and norms as in
    /// [`Conv::gradient_norms`]; the sum is that of one backward pass of scaled `dy`. An empty batch gives
    /// zeros.
    ///
    /// # Errors
    /// As [`Conv::per_example_gradients`]; [`Error::Invalid`] also when `limit` is not finite and above 0,
    /// or when the norm of an example, which the error names, is not finite.
    ///
    /// ```
    /// use convmat::{Conv, Device, PerExampleOptions, Tensor};
    /// let x = Tensor::from_vec(&Device::Cpu, &[2, 1, 2], vec![3f32, 4., 0., 1.])?;
    /// let dy = Tensor::from_vec(&Device::Cpu, &[2, 1, 1], vec![2f32, 1.])?;
    /// let options = PerExampleOptions::new();
    /// let clipped = Conv::new([2]).clipped_gradient::<f32, f32>(&x, &dy, 5.0, options)?;
    /// assert_eq!(clipped.gradient.into_vec()?, [3., 5.]);
    /// assert_eq!(clipped.norms.into_vec()?, [10., 1.]);
    /// # Ok::<(), convmat::Error>(())
    /// ```
    pub fn clipped_gradient<'x, 'y, T: Element, F: Accumulator>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        dy: impl Into<TensorView<'y, T>>,
        limit: f64,
        options: PerExampleOptions,
    ) -> Result<ClippedGradient<F>> {
        let (x, dy) = (x.into(), dy.into());
        let device = common_device(&[(INPUT, x.device()), (OUTPUT_GRADIENT, dy.device())])?;
        let plan = PlanOptions::for_addresses(&[x.address(), dy.address()]);
        let plan =
            self.plan_clipped_gradient::<T, F>(&device, x.shape(), dy.shape(), options, plan)?;
        let mut gradient = Tensor::for_result(&device, plan.result_shape())?;
        let mut norms = Tensor::for_result(&device, plan.plan.shape(NORMS_NUMBER))?;
        plan.run(x, dy, limit, &mut gradient, &mut norms, &mut plan.make_workspace()?)?;
        if device != Device::Cpu {
            check_norms(&norms.view().to_vec()?)?;
        }
        Ok(ClippedGradient { gradient, norms })
    }

    /// A plan of [`Conv::clipped_gradient`] for operands of these shapes.
    ///
    /// # Errors
    /// As [`Conv::clipped_gradient`]; [`Error::Invalid`] also when the workspace would be larger than `plan`
    /// allows.
    pub fn plan_clipped_gradient<T: Element, F: Accumulator>(
        &self,
        device: &Device,
        x: &[usize],
        dy: &[usize],
        options: PerExampleOptions,
        plan: PlanOptions,
    ) -> Result<ClippedGradientPlan<T, F>> {
        check_accumulator::<T, F>(CLIPPED)?;
        let p = Problem::new(self, x, dy, options)?;
        let of = Of { operation: "clipped_gradient", conv: self, problem: &p, shapes: [x, dy] };
        let squares = 2 * (p.batch * p.gradient_len()) as u64;
        let again = p.batch as u64 * p.gradient_flop();
        let results = p.batch + p.gradient_len();
        let mut explanation = of.describe::<T, F>(squares.saturating_add(again), results);
        let mut operands = of.operands();
        operands.extend([(NORMS, vec![p.batch]), (CLIPPED, p.gradient_shape())]);
        let steps = match device {
            Device::Cpu => Steps::on_cpu(cpu::Clipped::new::<T, F>(&p, &mut explanation)?),
            #[cfg(gpu)]
            Device::Cuda(cuda) => {
                Steps::Cuda(of.program::<T>(cuda, &plan, &mut explanation, |draft, examples| {
                    let norms = draft.operand::<F>(p.batch);
                    let target = draft.operand::<F>(p.gradient_len());
                    let limit = Number::of(draft);
                    examples.clipped(draft, norms, target, limit)
                })?)
            }
        };
        let plan = Plan::new(device, &plan, explanation, operands, steps)?;
        Ok(ClippedGradientPlan::of(plan, p))
    }
}

impl<T: Element, F: Accumulator> ClippedGradientPlan<T, F> {
    /// Writes the clipped gradient and the examples' norms, all of both.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DeviceMismatch`] or [`Error::Invalid`] when operands or workspace are not
    /// those that were planned for, `limit` is not finite and above 0, or a norm is not finite;
    /// [`Error::Device`] when the device fails. After a norm that is not finite the norms are written, but
    /// `gradient` is as it was. A CUDA device is not waited for, so that norms that are not finite are no
    /// error there: look at them before `gradient` is used.
    pub fn run<'x, 'y, 'g, 'n>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        dy: impl Into<TensorView<'y, T>>,
        limit: f64,
        gradient: impl Into<TensorViewMut<'g, F>>,
        norms: impl Into<TensorViewMut<'n, F>>,
        workspace: &mut Workspace<'_>,
    ) -> Result<()> {
        let (x, dy, gradient, norms) = (x.into(), dy.into(), gradient.into(), norms.into());
        self.plan.check(&[
            (INPUT_NUMBER, x.shape(), &x.device()),
            (OUTPUT_GRADIENT_NUMBER, dy.shape(), &dy.device()),
            (NORMS_NUMBER, norms.shape(), &norms.device()),
            (self.plan.last(), gradient.shape(), &gradient.device()),
        ])?;
        if !(limit > 0.0 && limit.is_finite()) {
            return Err(Error::invalid("limit", limit, "it must be finite and above 0"));
        }
        match self.plan.steps() {
            Steps::Cpu { plan, workers } => {
                let memory = workspace.host(workers.workspace())?;
                let operands = self.problem.operands(&x, &dy);
                plan.run(workers, operands, limit, [gradient.host(), norms.host()], memory)
            }
            #[cfg(gpu)]
            Steps::Cuda(program) => {
                let operands = [x.address(), dy.address(), norms.address(), gradient.address()];
                let [x, dy, norms, gradient] = operands;
                let addresses = [x, dy, norms, gradient, Number::word(limit)];
                // SAFETY: the operands were checked, and are borrowed; the last is none.
                unsafe { self.plan.queue(program, &addresses, workspace) }
            }
        }
    }
}
