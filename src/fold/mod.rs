//! Fold (col2im): the adjoint of unfold, which adds overlapping patches up.

mod cpu;
#[cfg(gpu)]
pub(crate) mod cuda;

use crate::device::Device;
#[cfg(gpu)]
use crate::device::cuda::Draft;
use crate::element::Element;
use crate::error::{Error, Result, checked_product};
use crate::geometry::{Conv, Geometry, Layout};
use crate::plan::{Explanation, Plan, PlanOptions, Steps, Workspace, plan_type};
use crate::tensor::{Tensor, TensorView, TensorViewMut};
use crate::unfold::Call;

plan_type! {
    /// A plan of [`Conv::fold`] or [`Conv::fold_average`], made by [`Conv::plan_fold`] or
    /// [`Conv::plan_fold_average`].
    FoldPlan, cpu::Fold
}

/// The operands' numbers.
const PATCHES: usize = 0;
const OUTPUT: usize = 1;

impl<const D: usize> Conv<D> {
    /// The sum of overlapping patches: `x[n, c, i] = Σ A[n, c·K + k, o]` over all (o, k) that read i;
    /// the adjoint of [`Conv::unfold`], whose shapes it has with input and result exchanged.
    /// `input_size` are the spatial extents of the result. PyTorch's counterpart is
    /// `torch.nn.functional.fold`.
    ///
    /// Half types are summed in `f32` and rounded once; the order of summation depends on the geometry
    /// alone.
    ///
    /// # Errors
    /// When the shape does not fit the convolution on an input of that size (see [`Conv::bind`]), or
    /// the result does not fit in memory.
    pub fn fold<'a, T: Element>(
        &self,
        patches: impl Into<TensorView<'a, T>>,
        input_size: [usize; D],
    ) -> Result<Tensor<T>> {
        self.fold_fresh(patches.into(), input_size, false)
    }

    /// [`Conv::fold`] into a buffer of the caller's, all of which is overwritten; its shape tells the
    /// input size.
    ///
    /// # Errors
    /// As [`Conv::fold`]; also when the operands are on different devices.
    pub fn fold_into<'a, 'b, T: Element>(
        &self,
        patches: impl Into<TensorView<'a, T>>,
        output: impl Into<TensorViewMut<'b, T>>,
    ) -> Result<()> {
        self.fold_given(patches.into(), output.into(), false)
    }

    /// As [`Conv::fold`], but averages overlapping entries: a left inverse of [`Conv::unfold`] wherever
    /// some patch covers the input, and 0 elsewhere.
    ///
    /// # Errors
    /// As [`Conv::fold`].
    pub fn fold_average<'a, T: Element>(
        &self,
        patches: impl Into<TensorView<'a, T>>,
        input_size: [usize; D],
    ) -> Result<Tensor<T>> {
        self.fold_fresh(patches.into(), input_size, true)
    }

    /// [`Conv::fold_average`] into a buffer of the caller's, all of which is overwritten.
    ///
    /// # Errors
    /// As [`Conv::fold_into`].
    pub fn fold_average_into<'a, 'b, T: Element>(
        &self,
        patches: impl Into<TensorView<'a, T>>,
        output: impl Into<TensorViewMut<'b, T>>,
    ) -> Result<()> {
        self.fold_given(patches.into(), output.into(), true)
    }

    /// A plan of [`Conv::fold`] for patches of this shape and results of these spatial extents.
    ///
    /// # Errors
    /// As [`Conv::fold`]; [`Error::Compile`] or [`Error::Device`] when the device fails.
    ///
    /// ```
    /// use convmat::{Conv, Device, PlanOptions, Tensor};
    /// let plan = Conv::new([2]).plan_fold::<f32>(&Device::Cpu, &[1, 2, 2], [3], PlanOptions::new())?;
    /// let mut workspace = plan.make_workspace()?;
    /// let patches = Tensor::from_vec(&Device::Cpu, &[1, 2, 2], vec![1f32, 2., 2., 3.])?;
    /// let mut x = Tensor::zeros(&Device::Cpu, &[1, 1, 3])?;
    /// plan.run(&patches, &mut x, &mut workspace)?;
    /// assert_eq!(x.as_slice().unwrap(), [1., 4., 3.]);
    /// # Ok::<(), convmat::Error>(())
    /// ```
    pub fn plan_fold<T: Element>(
        &self,
        device: &Device,
        patches: &[usize],
        input_size: [usize; D],
        options: PlanOptions,
    ) -> Result<FoldPlan<T>> {
        self.plan_fold_as(device, patches, input_size, options, false)
    }

    /// A plan of [`Conv::fold_average`] for patches of this shape and results of these spatial extents.
    ///
    /// # Errors
    /// As [`Conv::plan_fold`].
    pub fn plan_fold_average<T: Element>(
        &self,
        device: &Device,
        patches: &[usize],
        input_size: [usize; D],
        options: PlanOptions,
    ) -> Result<FoldPlan<T>> {
        self.plan_fold_as(device, patches, input_size, options, true)
    }

    fn plan_fold_as<T: Element>(
        &self,
        device: &Device,
        patches: &[usize],
        input_size: [usize; D],
        options: PlanOptions,
        average: bool,
    ) -> Result<FoldPlan<T>> {
        let layout = self.axis_order();
        let geometry = self.bind(input_size)?;
        let (batch, channels) = split_patches(&geometry, patches)?;
        let output = layout.activation_shape(batch, channels, &input_size);
        let patches_len = checked_product("the patches", patches)?;
        let len = checked_product("the output", &output)?;
        let call =
            Call { layout, axes: geometry.axes()?, batch, channels, groups: self.group_count() };
        let divisions = if average { len } else { 0 };
        let mut explanation = Explanation {
            operation: if average { "fold_average" } else { "fold" },
            subject: format!("{patches:?} {} to {output:?} by {self}", T::DTYPE),
            flop: (patches_len + divisions) as u64,
            bytes: ((patches_len + len) * size_of::<T>()) as u64,
            ..Explanation::default()
        };
        let steps = match device {
            Device::Cpu => {
                let (plan, workers) = cpu::Fold::new::<T>(&call, average, &mut explanation)?;
                Steps::Cpu { plan, workers }
            }
            #[cfg(gpu)]
            Device::Cuda(cuda) => {
                let mut draft = Draft::new(cuda, options.alignment_for(size_of::<T>())?);
                let (patches, output) = (draft.operand::<T>(patches_len), draft.operand(len));
                cuda::fold(&mut draft, &call, patches, output, average)?;
                cuda::explain::<T>(&call, cuda.options().specialise, &mut explanation);
                Steps::Cuda(draft.prepare()?)
            }
        };
        let operands = vec![("patches", patches.to_vec()), ("output", output)];
        Ok(FoldPlan::of(Plan::new(device, &options, explanation, operands, steps)?))
    }

    fn fold_fresh<T: Element>(
        &self,
        patches: TensorView<T>,
        input_size: [usize; D],
        average: bool,
    ) -> Result<Tensor<T>> {
        let device = patches.device();
        let options = PlanOptions::for_addresses(&[patches.address()]);
        let plan =
            self.plan_fold_as::<T>(&device, patches.shape(), input_size, options, average)?;
        let mut output = Tensor::for_result(&device, plan.plan.shape(OUTPUT))?;
        plan.run(patches, &mut output, &mut plan.make_workspace()?)?;
        Ok(output)
    }

    fn fold_given<T: Element>(
        &self,
        patches: TensorView<T>,
        output: TensorViewMut<T>,
        average: bool,
    ) -> Result<()> {
        let (_, _, input) = self.axis_order().split_activation("output", output.shape())?;
        let options = PlanOptions::for_addresses(&[patches.address(), output.address()]);
        let plan =
            self.plan_fold_as(&patches.device(), patches.shape(), input, options, average)?;
        plan.run(patches, output, &mut plan.make_workspace()?)
    }
}

impl<T: Element> FoldPlan<T> {
    /// Adds `patches` up, or averages them, and writes all of `output`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DeviceMismatch`] or [`Error::Invalid`] when operands or workspace are not
    /// those that were planned for; [`Error::Device`] when the device fails.
    pub fn run<'a, 'b>(
        &self,
        patches: impl Into<TensorView<'a, T>>,
        output: impl Into<TensorViewMut<'b, T>>,
        workspace: &mut Workspace<'_>,
    ) -> Result<()> {
        let (patches, output) = (patches.into(), output.into());
        self.plan.check(&[
            (PATCHES, patches.shape(), &patches.device()),
            (OUTPUT, output.shape(), &output.device()),
        ])?;
        match self.plan.steps() {
            Steps::Cpu { plan, workers } => {
                let memory = workspace.host(workers.workspace())?;
                plan.run(workers, patches.host(), output.host(), memory)
            }
            #[cfg(gpu)]
            Steps::Cuda(program) => {
                let addresses = [patches.address(), output.address()];
                // SAFETY: the operands were checked, and are borrowed.
                unsafe { self.plan.queue(program, &addresses, workspace) }
            }
        }
    }
}

/// (batch, channels) of patches that fit the geometry.
fn split_patches<const D: usize>(
    geometry: &Geometry<D>,
    shape: &[usize],
) -> Result<(usize, usize)> {
    let layout = geometry.conv().axis_order();
    let (taps, positions) = (geometry.taps(), geometry.positions());
    let (batch, rows, length) = match (layout, shape) {
        (Layout::ChannelsFirst, &[batch, rows, length]) => (batch, rows, length),
        (Layout::ChannelsLast, &[batch, length, rows]) => (batch, rows, length),
        _ => return Err(Error::shape("patches", "rank 3", shape)),
    };
    if length != positions || !rows.is_multiple_of(taps) {
        let expected = match layout {
            Layout::ChannelsFirst => format!("[N, a multiple of {taps}, {positions}]"),
            Layout::ChannelsLast => format!("[N, {positions}, a multiple of {taps}]"),
        };
        return Err(Error::shape("patches", expected, shape));
    }
    let channels = rows / taps;
    geometry.channels_per_group("patches", channels)?;
    Ok((batch, channels))
}
