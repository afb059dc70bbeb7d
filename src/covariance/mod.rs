//! Covariances of patches and of output gradients: the Kronecker factors of a layer's Fisher matrix. The
//! patches themselves are never stored.
//!
//! | file | holds |
//! |---|---|
//! | `options.rs` | which covariance, and what becomes of old values |
//! | `problem.rs` | sizes, checked, and a layer's patches as those of convolutions |
//! | `cpu/`, `cuda/` | how it is computed on the CPU and on CUDA |

mod cpu;
#[cfg(gpu)]
mod cuda;
mod options;
mod problem;

pub use options::{CovarianceOptions, SymmetricStorage, Update, WeightSharing};
use problem::Problem;

use crate::device::Device;
#[cfg(gpu)]
use crate::device::cuda::Draft;
use crate::element::{Accumulator, Element};
use crate::error::{Error, Result, check_accumulator};
use crate::geometry::{Conv, PaddingMode};
use crate::plan::{Explanation, Plan, PlanOptions, Steps, Workspace, plan_type};
use crate::tensor::{Tensor, TensorView, TensorViewMut};

plan_type! {
    /// A plan of [`Conv::covariance`], [`Conv::transposed_covariance`] or [`Conv::gradient_covariance`] for
    /// elements `T`, summed in and stored as `F`.
    CovariancePlan<T, F>, cpu::Covariance
}

/// The operands' numbers.
const INPUT: usize = 0;
const COVARIANCE: usize = 1;

impl<const D: usize> Conv<D> {
    /// The covariance of the patches of `x`, group by group: with `a` a patch as in [`Conv::unfold`] (a 1
    /// appended with a bias), `Σ_n Σ_t a·aᵀ`, or `Σ_n (Σ_t a)·(Σ_t a)ᵀ` with
    /// [`WeightSharing::Reduce`]. No mean is taken: see [`Conv::covariance_into`] for scales. The
    /// factor A of K-FAC for convolutions (Grosse & Martens 2016).
    ///
    /// The result is `[g, d, d]` with g the number of groups, d = C/g·K (+ 1), rows in the order of the
    /// group's rows of [`Conv::unfold`], the bias last; or `[g, d·(d + 1)/2]`, see [`SymmetricStorage`].
    /// It is exactly symmetric, and exact where sums of products of the elements are exact in `F`: in any
    /// order they give the same. `F` is `f32` for `f16`, `bf16` and `f32`, or `f64` for any element type,
    /// which is then what everything is summed in. An empty batch gives zeros.
    ///
    /// # Errors
    /// When the shape does not fit the convolution (see [`Conv::bind`]), groups do not divide the
    /// channels, `F` holds less than sums over `T`, or the result does not fit in memory.
    ///
    /// ```
    /// use convmat::{Conv, CovarianceOptions, Device, Tensor};
    /// let x = Tensor::from_vec(&Device::Cpu, &[1, 1, 3], vec![1f32, 2., 3.])?;
    /// let a = Conv::new([2]).covariance::<f32, f32>(&x, CovarianceOptions::new().bias(true))?;
    /// // Patches (1, 2, 1) and (2, 3, 1).
    /// assert_eq!(a.into_vec()?, [5., 8., 3., 8., 13., 5., 3., 5., 2.]);
    /// # Ok::<(), convmat::Error>(())
    /// ```
    pub fn covariance<'x, T: Element, F: Accumulator>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        options: CovarianceOptions,
    ) -> Result<Tensor<F>> {
        let x = x.into();
        let plan = PlanOptions::for_addresses(&[x.address()]);
        self.plan_covariance::<T, F>(&x.device(), x.shape(), options, plan)?.run_once(x)
    }

    /// [`Conv::covariance`] added to a caller's matrix: `target = decay·target + scale·new`. Of a target
    /// stored in full the lower triangle is read and all is written.
    ///
    /// # Errors
    /// As [`Conv::covariance`]; also when `target` has another shape or is on another device, or `update`
    /// is not finite. The target is unchanged after an error, unless a device failed.
    pub fn covariance_into<'x, 't, T: Element, F: Accumulator>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        options: CovarianceOptions,
        update: Update,
        target: impl Into<TensorViewMut<'t, F>>,
    ) -> Result<()> {
        let (x, target) = (x.into(), target.into());
        let plan = PlanOptions::for_addresses(&[x.address(), target.address()]);
        let plan = self.plan_covariance::<T, F>(&x.device(), x.shape(), options, plan)?;
        plan.run(x, update, target, &mut plan.make_workspace()?)
    }

    /// A plan of [`Conv::covariance`] for inputs of this shape.
    ///
    /// # Errors
    /// As [`Conv::covariance`]; [`Error::Compile`] or [`Error::Device`] when the device fails.
    pub fn plan_covariance<T: Element, F: Accumulator>(
        &self,
        device: &Device,
        x: &[usize],
        options: CovarianceOptions,
        plan: PlanOptions,
    ) -> Result<CovariancePlan<T, F>> {
        let (batch, channels, size) = self.axis_order().split_activation("input", x)?;
        let geometry = self.bind(size)?;
        geometry.channels_per_group("input", channels)?;
        let problem = Problem::new(&geometry, batch, channels, options)?;
        let of = Of { operation: "covariance", argument: "input", shape: x };
        plan.within_limit(|plan| of.plan(self, device, &problem, plan))
    }

    /// The covariance of what [`Conv::transposed`] reads of `x` at each of its output positions: the
    /// patches of `x` with stride − 1 zeros between its elements, in the order of the entries of the
    /// convolution's patches: channels of `x`, taps of the kernel. Otherwise as [`Conv::covariance`], for
    /// zero padding.
    ///
    /// # Errors
    /// As [`Conv::covariance`] and [`Conv::bind_transposed`]; [`Error::Invalid`] for another padding mode.
    pub fn transposed_covariance<'x, T: Element, F: Accumulator>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        output_padding: [usize; D],
        options: CovarianceOptions,
    ) -> Result<Tensor<F>> {
        let x = x.into();
        let plan = PlanOptions::for_addresses(&[x.address()]);
        let (device, shape) = (x.device(), x.shape());
        self.plan_transposed_covariance::<T, F>(&device, shape, output_padding, options, plan)?
            .run_once(x)
    }

    /// A plan of [`Conv::transposed_covariance`] for inputs of this shape.
    ///
    /// # Errors
    /// As [`Conv::transposed_covariance`]; [`Error::Compile`] or [`Error::Device`] when the device fails.
    pub fn plan_transposed_covariance<T: Element, F: Accumulator>(
        &self,
        device: &Device,
        x: &[usize],
        output_padding: [usize; D],
        options: CovarianceOptions,
        plan: PlanOptions,
    ) -> Result<CovariancePlan<T, F>> {
        let (batch, channels, size) = self.axis_order().split_activation("input", x)?;
        if self.mode() != PaddingMode::Zeros {
            let reason = "the covariance of a transposed convolution exists for zeros only";
            return Err(Error::invalid("padding mode", self.mode(), reason));
        }
        let geometry = self.bind_transposed(size, output_padding)?;
        geometry.channels_per_group("input", channels)?;
        let problem = Problem::transposed(&geometry, batch, channels, options)?;
        let of = Of { operation: "transposed_covariance", argument: "input", shape: x };
        plan.within_limit(|plan| of.plan(self, device, &problem, plan))
    }

    /// The covariance of output gradients, group by group: `Σ_n Σ_t g·gᵀ`, or `Σ_n (Σ_t g)·(Σ_t g)ᵀ` with
    /// [`WeightSharing::Reduce`], `[groups, O/g, O/g]`. `dy` is shaped like the result of
    /// [`Conv::forward`], or of [`Conv::transposed`]. The factor G of K-FAC. `options` with a bias are
    /// refused.
    ///
    /// # Errors
    /// As [`Conv::covariance`].
    pub fn gradient_covariance<'y, T: Element, F: Accumulator>(
        &self,
        dy: impl Into<TensorView<'y, T>>,
        options: CovarianceOptions,
    ) -> Result<Tensor<F>> {
        let dy = dy.into();
        let plan = PlanOptions::for_addresses(&[dy.address()]);
        self.plan_gradient_covariance::<T, F>(&dy.device(), dy.shape(), options, plan)?.run_once(dy)
    }

    /// A plan of [`Conv::gradient_covariance`] for gradients of this shape.
    ///
    /// # Errors
    /// As [`Conv::gradient_covariance`]; [`Error::Compile`] or [`Error::Device`] when the device fails.
    pub fn plan_gradient_covariance<T: Element, F: Accumulator>(
        &self,
        device: &Device,
        dy: &[usize],
        options: CovarianceOptions,
        plan: PlanOptions,
    ) -> Result<CovariancePlan<T, F>> {
        if options.bias {
            return Err(Error::invalid("bias", true, "gradients of outputs have no 1 appended"));
        }
        let argument = "output gradient";
        let (batch, channels, size) = self.axis_order().split_activation::<D>(argument, dy)?;
        let pointwise = Conv::new([1; D]).groups(self.group_count()).layout(self.axis_order());
        let geometry = pointwise.bind(size)?;
        geometry.channels_per_group(argument, channels)?;
        let problem = Problem::new(&geometry, batch, channels, options)?;
        let of = Of { operation: "gradient_covariance", argument, shape: dy };
        plan.within_limit(|plan| of.plan(&pointwise, device, &problem, plan))
    }
}

/// What a covariance is called and taken of.
#[derive(Clone, Copy)]
struct Of<'a> {
    operation: &'static str,
    argument: &'static str,
    shape: &'a [usize],
}

impl Of<'_> {
    fn plan<T: Element, F: Accumulator, const D: usize>(
        self,
        conv: &Conv<D>,
        device: &Device,
        problem: &Problem,
        options: PlanOptions,
    ) -> Result<CovariancePlan<T, F>> {
        check_accumulator::<T, F>("covariance")?;
        let Of { operation, argument, shape } = self;
        let result = problem.result_shape();
        let operands = vec![(argument, shape.to_vec()), ("covariance", result.clone())];
        let mut explanation = Explanation {
            operation,
            subject: format!(
                "{argument} {shape:?} {} to {result:?} {}, {}{}, {conv}",
                T::DTYPE,
                F::DTYPE,
                problem.sharing,
                if problem.bias { ", bias" } else { "" },
            ),
            flop: problem.flop(),
            bytes: (problem.input_len() * size_of::<T>()
                + problem.groups * problem.stored() * size_of::<F>()) as u64,
            ..Explanation::default()
        };
        let steps = match device {
            Device::Cpu => {
                let explanation = &mut explanation;
                Steps::on_cpu(cpu::Covariance::new::<T, F>(problem, &options, explanation)?)
            }
            #[cfg(gpu)]
            Device::Cuda(cuda) => {
                let mut draft = Draft::new(cuda, options.alignment_for(size_of::<T>())?);
                cuda::covariance::<T, F>(&mut draft, problem, &options, &mut explanation)?;
                Steps::Cuda(draft.prepare()?)
            }
        };
        Ok(CovariancePlan::of(Plan::new(device, &options, explanation, operands, steps)?))
    }
}

impl<T: Element, F: Accumulator> CovariancePlan<T, F> {
    /// Computes the covariance of `x`, and `target = decay·target + scale·new`. A CUDA graph that is captured
    /// of it keeps the update that it was captured with.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DeviceMismatch`] or [`Error::Invalid`] when operands or workspace are not
    /// those that were planned for, or `update` is not finite; [`Error::Device`] when the device fails.
    pub fn run<'x, 't>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        update: Update,
        target: impl Into<TensorViewMut<'t, F>>,
        workspace: &mut Workspace<'_>,
    ) -> Result<()> {
        let (x, target) = (x.into(), target.into());
        self.plan.check(&[
            (INPUT, x.shape(), &x.device()),
            (COVARIANCE, target.shape(), &target.device()),
        ])?;
        update.check()?;
        match self.plan.steps() {
            Steps::Cpu { plan, workers } => {
                let memory = workspace.host(workers.workspace())?;
                plan.run(workers, x.host(), update, target.host(), memory)
            }
            #[cfg(gpu)]
            Steps::Cuda(program) => {
                let addresses = [x.address(), target.address()];
                let numbers = [update.decay, update.scale];
                // SAFETY: the operands were checked, and are borrowed.
                unsafe { self.plan.queue_with(program, &addresses, &numbers, workspace) }
            }
        }
    }

    /// The covariance alone.
    fn run_once(&self, x: TensorView<'_, T>) -> Result<Tensor<F>> {
        let mut target = Tensor::for_result(self.device(), self.result_shape())?;
        self.run(x, Update::replace(1.0), &mut target, &mut self.make_workspace()?)?;
        Ok(target)
    }
}
