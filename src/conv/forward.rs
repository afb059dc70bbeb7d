//! The convolution itself.

#[cfg(gpu)]
use super::cuda;
use super::problem::Problem;
use super::with_weight::run_with_weight;
use super::{check_weight, cpu};
use crate::device::Device;
#[cfg(gpu)]
use crate::device::cuda::Draft;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::geometry::Conv;
use crate::plan::{Algorithm, BIAS, Plan, PlanOptions, Steps, Workspace, plan_type};
use crate::tensor::view::common_device;
use crate::tensor::{OptionalView, Tensor, TensorView, TensorViewMut};

plan_type! {
    /// A plan of [`Conv::forward`], made by [`Conv::plan_forward`].
    ForwardPlan, cpu::Forward
}

impl<const D: usize> Conv<D> {
    /// The convolution of `x` with `weight`, plus `bias` on every position: PyTorch's
    /// `F.conv1d`, `conv2d`, `conv3d`.
    ///
    /// Channels first: `x [N, C, spatial…]`, `weight [O, C/groups, kernel…]`, `bias [O]`, result
    /// `[N, O, output…]`. Channels last: `x [N, spatial…, C]`, `weight [kernel…, C/groups, O]`, result
    /// `[N, output…, O]`. An empty batch gives an empty result.
    ///
    /// # Errors
    /// [`Error::Shape`] for an operand of the wrong rank or shape, [`Error::Invalid`] for channels that
    /// `groups` does not divide and for what [`Conv::bind`] rejects, [`Error::DeviceMismatch`], and
    /// [`Error::TooLarge`] or [`Error::Allocation`] for sizes that do not fit.
    ///
    /// ```
    /// use convmat::{Conv, Device, Tensor};
    /// let conv = Conv::new([2]).stride([2]);
    /// let x = Tensor::from_vec(&Device::Cpu, &[1, 1, 4], vec![1f32, 2., 3., 4.])?;
    /// let weight = Tensor::from_vec(&Device::Cpu, &[1, 1, 2], vec![10f32, 1.])?;
    /// assert_eq!(conv.forward(&x, &weight, None)?.into_vec()?, [12., 34.]);
    /// # Ok::<(), convmat::Error>(())
    /// ```
    pub fn forward<'x, 'w, 'b, T: Element>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        weight: impl Into<TensorView<'w, T>>,
        bias: impl Into<OptionalView<'b, T>>,
    ) -> Result<Tensor<T>> {
        self.forward_by(x, weight, bias, Algorithm::Auto)
    }

    /// [`Conv::forward`] by a chosen algorithm.
    ///
    /// # Errors
    /// As [`Conv::forward`]; [`Error::Invalid`] also for an algorithm that does not exist for this layer.
    pub fn forward_by<'x, 'w, 'b, T: Element>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        weight: impl Into<TensorView<'w, T>>,
        bias: impl Into<OptionalView<'b, T>>,
        algorithm: Algorithm,
    ) -> Result<Tensor<T>> {
        let (x, weight, bias) = (x.into(), weight.into(), bias.into().0);
        let plan = self.forward_plan_of(&x, &weight, bias.as_ref(), None, algorithm)?;
        let mut y = Tensor::for_result(&x.device(), plan.result_shape())?;
        plan.run(x, weight, OptionalView(bias), &mut y, &mut plan.make_workspace()?)?;
        Ok(y)
    }

    /// [`Conv::forward`] into a caller's tensor, all of which is overwritten, by a chosen algorithm.
    ///
    /// # Errors
    /// As [`Conv::forward_by`]; [`Error::Shape`] also when `y` does not have the result's shape.
    pub fn forward_into<'x, 'w, 'b, 'y, T: Element>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        weight: impl Into<TensorView<'w, T>>,
        bias: impl Into<OptionalView<'b, T>>,
        y: impl Into<TensorViewMut<'y, T>>,
        algorithm: Algorithm,
    ) -> Result<()> {
        let (x, weight, bias, y) = (x.into(), weight.into(), bias.into().0, y.into());
        let plan = self.forward_plan_of(&x, &weight, bias.as_ref(), Some(&y), algorithm)?;
        plan.run(x, weight, OptionalView(bias), y, &mut plan.make_workspace()?)
    }

    /// A plan of [`Conv::forward`] for operands of these shapes, with a bias or without.
    ///
    /// # Errors
    /// As [`Conv::forward_by`]; [`Error::Invalid`] also when the workspace would be larger than `options`
    /// allow; [`Error::Compile`] or [`Error::Device`] when the device fails.
    ///
    /// ```
    /// use convmat::{Conv, Device, PlanOptions, Tensor};
    /// let (device, options) = (Device::Cpu, PlanOptions::new());
    /// let plan = Conv::new([2]).plan_forward::<f32>(&device, &[1, 1, 3], &[1, 1, 2], false, options)?;
    /// println!("{plan}");
    /// let mut workspace = plan.make_workspace()?;
    /// let weight = Tensor::from_vec(&device, &[1, 1, 2], vec![10f32, 1.])?;
    /// let mut y = Tensor::zeros(&device, &[1, 1, 2])?;
    /// for step in 0..3 {
    ///     let x = Tensor::from_vec(&device, &[1, 1, 3], vec![step as f32, 2., 3.])?;
    ///     plan.run(&x, &weight, None, &mut y, &mut workspace)?;
    ///     assert_eq!(y.as_slice().unwrap(), [10. * step as f32 + 2., 23.]);
    /// }
    /// # Ok::<(), convmat::Error>(())
    /// ```
    pub fn plan_forward<T: Element>(
        &self,
        device: &Device,
        x: &[usize],
        weight: &[usize],
        bias: bool,
        options: PlanOptions,
    ) -> Result<ForwardPlan<T>> {
        options.within_limit(|options| self.forward_plan(device, x, weight, bias, options))
    }

    fn forward_plan<T: Element>(
        &self,
        device: &Device,
        x: &[usize],
        weight: &[usize],
        bias: bool,
        options: PlanOptions,
    ) -> Result<ForwardPlan<T>> {
        let layout = self.axis_order();
        let (batch, channels, size) = layout.split_activation::<D>("input", x)?;
        let geometry = self.bind(size)?;
        let per_group = geometry.channels_per_group("input", channels)?;
        let (outputs, inputs) = check_weight(self, weight)?;
        if inputs != per_group {
            let expected = layout.weight_shape(outputs, per_group, &self.kernel_size());
            let expected = format!("{expected:?}, as the input has {channels} channels");
            return Err(Error::shape("weight", expected, weight));
        }
        let problem = Problem::new(&geometry, batch, channels, outputs)?;
        let y = layout.activation_shape(batch, outputs, &geometry.output());
        let mut operands = vec![("input", x.to_vec()), ("weight", weight.to_vec())];
        if bias {
            operands.push((BIAS, vec![outputs]));
        }
        operands.push(("output", y));
        let mut explanation = problem.describe::<T>("forward", self, &operands);
        let steps = match device {
            Device::Cpu => {
                Steps::on_cpu(cpu::Forward::new::<T>(&problem, bias, &options, &mut explanation)?)
            }
            #[cfg(gpu)]
            Device::Cuda(cuda) => {
                let mut draft = Draft::new(cuda, options.alignment_for(size_of::<T>())?);
                draft.allow_tf32(options.tf32);
                let regions = cuda::ForwardOperands {
                    x: draft.operand::<T>(problem.input_len()),
                    weight: draft.operand(problem.weight_len()),
                    bias: bias.then(|| draft.operand(outputs)),
                    y: draft.operand(problem.output_len()),
                };
                cuda::forward(&mut draft, &problem, regions, &options, &mut explanation)?;
                Steps::Cuda(draft.prepare()?)
            }
        };
        Ok(ForwardPlan::of(Plan::new(device, &options, explanation, operands, steps)?))
    }

    /// The plan for these operands, wherever they lie.
    fn forward_plan_of<T: Element>(
        &self,
        x: &TensorView<'_, T>,
        weight: &TensorView<'_, T>,
        bias: Option<&TensorView<'_, T>>,
        y: Option<&TensorViewMut<'_, T>>,
        algorithm: Algorithm,
    ) -> Result<ForwardPlan<T>> {
        let device = common_device(&[("input", x.device()), ("weight", weight.device())])?;
        let addresses = [
            x.address(),
            weight.address(),
            bias.map_or(0, TensorView::address),
            y.map_or(0, TensorViewMut::address),
        ];
        let options = PlanOptions::for_addresses(&addresses).algorithm(algorithm);
        self.plan_forward(&device, x.shape(), weight.shape(), bias.is_some(), options)
    }
}

impl<T: Element> ForwardPlan<T> {
    /// Writes the convolution to `y`, all of it.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DeviceMismatch`] or [`Error::Invalid`] when operands or workspace are not
    /// those that were planned for; [`Error::Device`] when the device fails.
    pub fn run<'x, 'w, 'b, 'y>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        weight: impl Into<TensorView<'w, T>>,
        bias: impl Into<OptionalView<'b, T>>,
        y: impl Into<TensorViewMut<'y, T>>,
        workspace: &mut Workspace<'_>,
    ) -> Result<()> {
        run_with_weight(&self.plan, x.into(), weight.into(), bias.into().0, y.into(), workspace)
    }
}
