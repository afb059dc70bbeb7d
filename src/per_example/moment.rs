//! Second moments of rotated gradients: EKFAC's diagonal.

#[cfg(gpu)]
use super::cuda::Number;
use super::problem::{INPUT, OUTPUT_GRADIENT, Problem};
use super::{INPUT_NUMBER, OUTPUT_GRADIENT_NUMBER, Of, PerExampleOptions, cpu};
use crate::covariance::Update;
use crate::device::Device;
use crate::element::{Accumulator, Element};
use crate::error::{Result, check_accumulator, checked_product};
use crate::geometry::Conv;
use crate::plan::{Plan, PlanOptions, Steps, Workspace, plan_type};
use crate::tensor::view::common_device;
use crate::tensor::{OptionalView, Tensor, TensorView, TensorViewMut};

plan_type! {
    /// A plan of [`Conv::rotated_second_moment_into`], made by [`Conv::plan_rotated_second_moment`].
    RotatedSecondMomentPlan<T, F>, cpu::Moment, problem: Problem
}

const OF_PATCHES: &str = "q_a";
const OF_GRADIENTS: &str = "q_g";
const MOMENT: &str = "second moment";

impl<const D: usize> Conv<D> {
    /// The second moment of the examples' gradients in the basis of eigenvectors,
    /// `Σ_n (Q_Gᵀ·∇W_n·Q_A)∘²`, `[g, O/g, d]`: gradients as in [`Conv::per_example_gradients`], squared
    /// element by element once their positions are summed. The Λ of EKFAC, but for 1/N (George et al. 2018,
    /// "Fast approximate natural gradient descent in a Kronecker-factored eigenbasis").
    ///
    /// `q_a` is `[g, d, d]` and `q_g` `[g, O/g, O/g]`; their columns are the eigenvectors, of the
    /// covariances of patches ([`Conv::covariance`], [`Conv::transposed_covariance`]) and of output
    /// gradients ([`Conv::gradient_covariance`]), though nothing depends on that. `None` is the identity;
    /// without both, this is the diagonal of the empirical Fisher matrix. Gradients are rotated example by
    /// example, or patches and output gradients position by position before they are multiplied, whichever
    /// takes fewer FLOP: see [`RotatedSecondMomentPlan::explanation`].
    ///
    /// # Errors
    /// As [`Conv::per_example_gradients`]; also when `q_a` or `q_g` has another shape or is on another
    /// device.
    ///
    /// ```
    /// use convmat::{Conv, Device, PerExampleOptions, Tensor};
    /// let x = Tensor::from_vec(&Device::Cpu, &[2, 2, 1], vec![1f32, 2., 3., 4.])?;
    /// let dy = Tensor::from_vec(&Device::Cpu, &[2, 1, 1], vec![2f32, 1.])?;
    /// let swap = Tensor::from_vec(&Device::Cpu, &[1, 2, 2], vec![0f32, 1., 1., 0.])?;
    /// let options = PerExampleOptions::new();
    /// let moment =
    ///     Conv::new([1]).rotated_second_moment::<f32, f32>(&x, &dy, &swap, None, options)?;
    /// // Gradients (2, 4) and (3, 4).
    /// assert_eq!(moment.into_vec()?, [32., 13.]);
    /// # Ok::<(), convmat::Error>(())
    /// ```
    pub fn rotated_second_moment<'x, 'y, 'a, 'g, T: Element, F: Accumulator>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        dy: impl Into<TensorView<'y, T>>,
        q_a: impl Into<OptionalView<'a, F>>,
        q_g: impl Into<OptionalView<'g, F>>,
        options: PerExampleOptions,
    ) -> Result<Tensor<F>> {
        let (x, dy, q_a, q_g) = (x.into(), dy.into(), q_a.into(), q_g.into());
        let plan = self.moment_plan_of::<T, F>(&x, &dy, [&q_a, &q_g], 0, options)?;
        let mut target = Tensor::for_result(&x.device(), plan.result_shape())?;
        let workspace = &mut plan.make_workspace()?;
        plan.run(x, dy, q_a, q_g, Update::replace(1.0), &mut target, workspace)?;
        Ok(target)
    }

    /// [`Conv::rotated_second_moment`] added to a caller's: `target = decay·target + scale·new`.
    ///
    /// # Errors
    /// As [`Conv::rotated_second_moment`]; also when `target` has another shape or is on another device, or
    /// `update` is not finite. The target is unchanged after an error, unless a device failed.
    #[allow(clippy::too_many_arguments)] // Each is one of the formula's.
    pub fn rotated_second_moment_into<'x, 'y, 'a, 'g, 't, T: Element, F: Accumulator>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        dy: impl Into<TensorView<'y, T>>,
        q_a: impl Into<OptionalView<'a, F>>,
        q_g: impl Into<OptionalView<'g, F>>,
        options: PerExampleOptions,
        update: Update,
        target: impl Into<TensorViewMut<'t, F>>,
    ) -> Result<()> {
        let (x, dy, q_a, q_g) = (x.into(), dy.into(), q_a.into(), q_g.into());
        let target = target.into();
        let address = target.address();
        let plan = self.moment_plan_of::<T, F>(&x, &dy, [&q_a, &q_g], address, options)?;
        plan.run(x, dy, q_a, q_g, update, target, &mut plan.make_workspace()?)
    }

    fn moment_plan_of<T: Element, F: Accumulator>(
        &self,
        x: &TensorView<'_, T>,
        dy: &TensorView<'_, T>,
        rotations: [&OptionalView<'_, F>; 2],
        target: u64,
        options: PerExampleOptions,
    ) -> Result<RotatedSecondMomentPlan<T, F>> {
        let device = common_device(&[(INPUT, x.device()), (OUTPUT_GRADIENT, dy.device())])?;
        let [a, g] = rotations.map(|of| of.0.as_ref().map_or(0, TensorView::address));
        let plan = PlanOptions::for_addresses(&[x.address(), dy.address(), a, g, target]);
        let rotated = rotations.map(|of| of.0.is_some());
        self.plan_rotated_second_moment(&device, x.shape(), dy.shape(), rotated, options, plan)
    }

    /// A plan of [`Conv::rotated_second_moment_into`] for operands of these shapes; `rotated` tells whether
    /// there will be a `q_a` and a `q_g`.
    ///
    /// # Errors
    /// As [`Conv::rotated_second_moment`]; [`crate::Error::Invalid`] also when the workspace would be larger than
    /// `plan` allows.
    pub fn plan_rotated_second_moment<T: Element, F: Accumulator>(
        &self,
        device: &Device,
        x: &[usize],
        dy: &[usize],
        rotated: [bool; 2],
        options: PerExampleOptions,
        plan: PlanOptions,
    ) -> Result<RotatedSecondMomentPlan<T, F>> {
        check_accumulator::<T, F>(MOMENT)?;
        let p = Problem::new(self, x, dy, options)?;
        let sides = [(OF_PATCHES, p.columns()), (OF_GRADIENTS, p.rows())];
        let rotations =
            sides.into_iter().zip(rotated).filter_map(|(side, there)| there.then_some(side));
        let operation = "rotated_second_moment";
        let of = Of { operation, conv: self, problem: &p, shapes: [x, dy] };
        let mut operands = of.operands();
        let (mut flop, mut results) = (2 * p.gradient_len() as u64, p.gradient_len());
        for (name, n) in rotations {
            results += checked_product(name, &[p.groups, n, n])?;
            flop = flop.saturating_add(2 * p.gradient_len() as u64 * n as u64);
            operands.push((name, vec![p.groups, n, n]));
        }
        operands.push((MOMENT, p.gradient_shape()));
        let mut explanation = of.describe::<T, F>(flop.saturating_mul(p.batch as u64), results);
        let steps = match device {
            Device::Cpu => {
                Steps::on_cpu(cpu::Moment::new::<T, F>(&p, rotated, None, &mut explanation))
            }
            #[cfg(gpu)]
            Device::Cuda(cuda) => {
                Steps::Cuda(of.program::<T>(cuda, &plan, &mut explanation, |draft, examples| {
                    let rotations = [(p.columns(), rotated[0]), (p.rows(), rotated[1])];
                    let rotations = rotations
                        .map(|(n, there)| there.then(|| draft.operand::<F>(p.groups * n * n)));
                    let target = draft.operand::<F>(p.gradient_len());
                    let numbers = [Number::of(draft), Number::of(draft)];
                    examples.moment(draft, rotations, target, numbers)
                })?)
            }
        };
        let plan = Plan::new(device, &plan, explanation, operands, steps)?;
        Ok(RotatedSecondMomentPlan::of(plan, p))
    }
}

impl<T: Element, F: Accumulator> RotatedSecondMomentPlan<T, F> {
    /// Computes the second moment, and `target = decay·target + scale·new`.
    ///
    /// # Errors
    /// [`crate::Error::Shape`], [`crate::Error::DeviceMismatch`] or [`crate::Error::Invalid`] when operands or workspace are not
    /// those that were planned for, or `update` is not finite; [`crate::Error::Device`] when the device fails.
    #[allow(clippy::too_many_arguments)] // Each is one of the formula's.
    pub fn run<'x, 'y, 'a, 'g, 't>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        dy: impl Into<TensorView<'y, T>>,
        q_a: impl Into<OptionalView<'a, F>>,
        q_g: impl Into<OptionalView<'g, F>>,
        update: Update,
        target: impl Into<TensorViewMut<'t, F>>,
        workspace: &mut Workspace<'_>,
    ) -> Result<()> {
        let (x, dy, target) = (x.into(), dy.into(), target.into());
        let rotations = [(OF_PATCHES, q_a.into().0), (OF_GRADIENTS, q_g.into().0)];
        self.plan.check(&[
            (INPUT_NUMBER, x.shape(), &x.device()),
            (OUTPUT_GRADIENT_NUMBER, dy.shape(), &dy.device()),
            (self.plan.last(), target.shape(), &target.device()),
        ])?;
        for (name, rotation) in &rotations {
            self.plan.check_optional(name, rotation.as_ref())?;
        }
        update.check()?;
        let [(_, q_a), (_, q_g)] = rotations;
        match self.plan.steps() {
            Steps::Cpu { plan, workers } => {
                let memory = workspace.host(workers.workspace())?;
                let operands = self.problem.operands(&x, &dy);
                let rotations = cpu::Rotations {
                    of_patches: q_a.as_ref().map(TensorView::host),
                    of_gradients: q_g.as_ref().map(TensorView::host),
                };
                plan.run(workers, operands, rotations, update, target.host(), memory)
            }
            #[cfg(gpu)]
            Steps::Cuda(program) => {
                let rotations = [q_a, q_g].map(|of| of.as_ref().map(TensorView::address));
                let numbers = [update.decay, update.scale].map(Number::word);
                let operands = [Some(x.address()), Some(dy.address())].into_iter();
                let operands = operands.chain(rotations).chain([Some(target.address())]);
                // On the stack: runs allocate nothing.
                let (mut addresses, mut count) = ([0; 7], 0);
                for address in operands.flatten().chain(numbers) {
                    addresses[count] = address;
                    count += 1;
                }
                // SAFETY: the operands were checked, and are borrowed; the last two are none.
                unsafe { self.plan.queue(program, &addresses[..count], workspace) }
            }
        }
    }
}
