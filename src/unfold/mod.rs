//! Unfold (im2col): patches of the input as the columns of a matrix.

mod cpu;
#[cfg(gpu)]
pub(crate) mod cuda;

use crate::device::Device;
#[cfg(gpu)]
use crate::device::cuda::Draft;
use crate::element::Element;
use crate::error::{Result, checked_product};
use crate::geometry::{Axes, Conv, Layout};
use crate::plan::{Explanation, Plan, PlanOptions, Steps, Workspace, plan_type};
use crate::tensor::{Tensor, TensorView, TensorViewMut};

plan_type! {
    /// A plan of [`Conv::unfold`], made by [`Conv::plan_unfold`].
    UnfoldPlan, cpu::Unfold
}

/// The operands' numbers.
const INPUT: usize = 0;
const PATCHES: usize = 1;

impl<const D: usize> Conv<D> {
    /// The patches of `input`: `A[n, c·K + k, o] = x[n, c, i(o, k)]`, 0 where a tap is dropped.
    /// Elements are copied bit by bit, NaNs included. PyTorch's counterpart is
    /// `torch.nn.functional.unfold`, which knows 2 spatial axes and zero padding only.
    ///
    /// | layout | `input` | result |
    /// |---|---|---|
    /// | channels-first | `[N, C, spatial…]` | `[N, C·K, L]`, rows ordered (channel, tap) |
    /// | channels-last | `[N, spatial…, C]` | `[N, L, C·K]`, columns ordered (group, tap, channel of the group) |
    ///
    /// K is the number of taps, L that of output positions, both row-major.
    ///
    /// # Errors
    /// When the shape does not fit the convolution (see [`Conv::bind`]), groups do not divide the
    /// channels, or the result does not fit in memory.
    pub fn unfold<'a, T: Element>(&self, input: impl Into<TensorView<'a, T>>) -> Result<Tensor<T>> {
        let input = input.into();
        let plan = self.plan_unfold_of(&input, None)?;
        let mut patches = Tensor::for_result(&input.device(), plan.result_shape())?;
        plan.run(input, &mut patches, &mut plan.make_workspace()?)?;
        Ok(patches)
    }

    /// [`Conv::unfold`] into a buffer of the caller's, all of which is overwritten.
    ///
    /// # Errors
    /// As [`Conv::unfold`]; also when `patches` has another shape or is on another device.
    pub fn unfold_into<'a, 'b, T: Element>(
        &self,
        input: impl Into<TensorView<'a, T>>,
        patches: impl Into<TensorViewMut<'b, T>>,
    ) -> Result<()> {
        let (input, patches) = (input.into(), patches.into());
        let plan = self.plan_unfold_of(&input, Some(&patches))?;
        plan.run(input, patches, &mut plan.make_workspace()?)
    }

    /// A plan of [`Conv::unfold`] for inputs of this shape.
    ///
    /// # Errors
    /// As [`Conv::unfold`]; [`crate::Error::Compile`] or [`crate::Error::Device`] when the device fails.
    ///
    /// ```
    /// use convmat::{Conv, Device, PlanOptions, Tensor};
    /// let plan = Conv::new([2]).plan_unfold::<f32>(&Device::Cpu, &[1, 1, 3], PlanOptions::new())?;
    /// let mut workspace = plan.make_workspace()?;
    /// let x = Tensor::from_vec(&Device::Cpu, &[1, 1, 3], vec![1f32, 2., 3.])?;
    /// let mut patches = Tensor::zeros(&Device::Cpu, &[1, 2, 2])?;
    /// plan.run(&x, &mut patches, &mut workspace)?;
    /// assert_eq!(patches.as_slice().unwrap(), [1., 2., 2., 3.]);
    /// # Ok::<(), convmat::Error>(())
    /// ```
    pub fn plan_unfold<T: Element>(
        &self,
        device: &Device,
        input: &[usize],
        options: PlanOptions,
    ) -> Result<UnfoldPlan<T>> {
        let layout = self.axis_order();
        let (batch, channels, spatial) = layout.split_activation("input", input)?;
        let geometry = self.bind(spatial)?;
        geometry.channels_per_group("input", channels)?;
        let rows = checked_product("the number of patch rows", &[channels, geometry.taps()])?;
        let patches = layout.patch_shape(batch, rows, geometry.positions());
        let len = checked_product("the patches", &patches)?;
        let input_len = checked_product("the input", input)?;
        let call =
            Call { layout, axes: geometry.axes()?, batch, channels, groups: self.group_count() };
        let mut explanation = Explanation {
            operation: "unfold",
            subject: format!("{input:?} {} by {self}", T::DTYPE),
            bytes: ((input_len + len) * size_of::<T>()) as u64,
            ..Explanation::default()
        };
        let steps = match device {
            Device::Cpu => {
                let (plan, workers) = cpu::Unfold::new::<T>(&call, &mut explanation);
                Steps::Cpu { plan, workers }
            }
            #[cfg(gpu)]
            Device::Cuda(cuda) => {
                let mut draft = Draft::new(cuda, options.alignment_for(size_of::<T>())?);
                let (input, patches) = (draft.operand::<T>(input_len), draft.operand(len));
                cuda::unfold(&mut draft, &call, input, patches)?;
                cuda::explain(&mut explanation);
                Steps::Cuda(draft.prepare()?)
            }
        };
        let operands = vec![("input", input.to_vec()), ("patches", patches)];
        Ok(UnfoldPlan::of(Plan::new(device, &options, explanation, operands, steps)?))
    }

    /// The plan for these operands, wherever they lie.
    fn plan_unfold_of<T: Element>(
        &self,
        input: &TensorView<'_, T>,
        patches: Option<&TensorViewMut<'_, T>>,
    ) -> Result<UnfoldPlan<T>> {
        let addresses = [input.address(), patches.map_or(0, TensorViewMut::address)];
        self.plan_unfold(&input.device(), input.shape(), PlanOptions::for_addresses(&addresses))
    }
}

impl<T: Element> UnfoldPlan<T> {
    /// Writes the patches of `input`, all of them.
    ///
    /// # Errors
    /// [`crate::Error::Shape`], [`crate::Error::DeviceMismatch`] or [`crate::Error::Invalid`] when operands
    /// or workspace are not those that were planned for; [`crate::Error::Device`] when the device fails.
    pub fn run<'a, 'b>(
        &self,
        input: impl Into<TensorView<'a, T>>,
        patches: impl Into<TensorViewMut<'b, T>>,
        workspace: &mut Workspace<'_>,
    ) -> Result<()> {
        let (input, patches) = (input.into(), patches.into());
        self.plan.check(&[
            (INPUT, input.shape(), &input.device()),
            (PATCHES, patches.shape(), &patches.device()),
        ])?;
        match self.plan.steps() {
            Steps::Cpu { plan, workers } => {
                let memory = workspace.host(workers.workspace())?;
                plan.run(workers, input.host(), patches.host(), memory)
            }
            #[cfg(gpu)]
            Steps::Cuda(program) => {
                let addresses = [input.address(), patches.address()];
                // SAFETY: the operands were checked, and are borrowed.
                unsafe { self.plan.queue(program, &addresses, workspace) }
            }
        }
    }
}

/// What is unfolded, with every size checked.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub layout: Layout,
    pub axes: Axes,
    pub batch: usize,
    /// Channels over all groups.
    pub channels: usize,
    pub groups: usize,
}
