//! The convolution with a sparse weight.

use std::sync::Arc;

use super::cpu;
#[cfg(gpu)]
use super::cuda;
use super::problem::{INPUT, OUTPUT, Problem, VALUES, check_channels};
use super::run::run_with_values;
use super::weight::{Pattern, SparseWeight};
use crate::device::Device;
#[cfg(gpu)]
use crate::device::cuda::Draft;
use crate::element::Element;
use crate::error::Result;
use crate::geometry::Conv;
use crate::plan::{BIAS, Plan, PlanOptions, Steps, Workspace, plan_type};
use crate::tensor::view::common_device;
use crate::tensor::{OptionalView, Tensor, TensorView, TensorViewMut};

plan_type! {
    /// A plan of [`Conv::sparse_forward`], made by [`Conv::plan_sparse_forward`].
    SparseForwardPlan, cpu::Forward, pattern: Arc<Pattern>
}

impl<const D: usize> Conv<D> {
    /// The convolution of `x` with a sparse weight, plus `bias` on every position: what [`Conv::forward`]
    /// makes of the dense weight, with the products of stored entries only. Shapes are as there.
    ///
    /// On the CPU no patches are made: each entry multiplies a contiguous run of the input (Park et al.,
    /// "Faster CNNs with Direct Sparse Convolutions and Guided Pruning", 2017). Where no row has two entries,
    /// outputs whose value is 1 are copies of inputs, bit by bit: with [`Conv::gathering_filter_coo`] this is
    /// [`Conv::unfold`].
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] or [`crate::Error::Shape`] when the weight is none of this convolution or has
    /// another layout, or an operand another shape; [`crate::Error::Invalid`] for what [`Conv::bind`] rejects;
    /// [`crate::Error::DeviceMismatch`]; [`crate::Error::TooLarge`] or [`crate::Error::Allocation`] for sizes
    /// that do not fit.
    ///
    /// ```
    /// use convmat::{Conv, Device, SparseWeight, Tensor};
    /// let conv = Conv::new([3, 3]).padding([1, 1]);
    /// let filter = SparseWeight::from_coo(&conv, &conv.gathering_filter_coo(1)?)?;
    /// let x = Tensor::from_vec(&Device::Cpu, &[1, 1, 2, 2], vec![1f32, -0., f32::NAN, 4.])?;
    /// let bits = |tensor: Tensor<f32>| tensor.as_slice().unwrap().iter().map(|v| v.to_bits()).collect();
    /// let (patches, y): (Vec<u32>, Vec<u32>) =
    ///     (bits(conv.unfold(&x)?), bits(conv.sparse_forward(&x, &filter, None)?));
    /// assert_eq!(patches, y);
    /// # Ok::<(), convmat::Error>(())
    /// ```
    pub fn sparse_forward<'x, 'b, T: Element>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        weight: &SparseWeight<T>,
        bias: impl Into<OptionalView<'b, T>>,
    ) -> Result<Tensor<T>> {
        let (x, bias) = (x.into(), bias.into().0);
        let plan = self.sparse_forward_plan_of(&x, weight, bias.as_ref(), None)?;
        let mut y = Tensor::for_result(&x.device(), plan.result_shape())?;
        plan.run(x, weight, OptionalView(bias), &mut y, &mut plan.make_workspace()?)?;
        Ok(y)
    }

    /// [`Conv::sparse_forward`] into a caller's tensor, all of which is overwritten.
    ///
    /// # Errors
    /// As [`Conv::sparse_forward`]; [`crate::Error::Shape`] also when `y` does not have the result's shape.
    pub fn sparse_forward_into<'x, 'b, 'y, T: Element>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        weight: &SparseWeight<T>,
        bias: impl Into<OptionalView<'b, T>>,
        y: impl Into<TensorViewMut<'y, T>>,
    ) -> Result<()> {
        let (x, bias, y) = (x.into(), bias.into().0, y.into());
        let plan = self.sparse_forward_plan_of(&x, weight, bias.as_ref(), Some(&y))?;
        plan.run(x, weight, OptionalView(bias), y, &mut plan.make_workspace()?)
    }

    /// A plan of [`Conv::sparse_forward`] for inputs of this shape and for weights of the pattern of this one,
    /// wherever its values are, with a bias or without.
    ///
    /// # Errors
    /// As [`Conv::sparse_forward`]; [`crate::Error::Invalid`] also when the workspace would be larger than
    /// `options` allow; [`crate::Error::Compile`] or [`crate::Error::Device`] when the device fails.
    pub fn plan_sparse_forward<T: Element>(
        &self,
        device: &Device,
        x: &[usize],
        weight: &SparseWeight<T>,
        bias: bool,
        options: PlanOptions,
    ) -> Result<SparseForwardPlan<T>> {
        let layout = self.axis_order();
        let (batch, channels, size) = layout.split_activation::<D>(INPUT, x)?;
        let geometry = self.bind(size)?;
        geometry.channels_per_group(INPUT, channels)?;
        let pattern = weight.pattern();
        let problem = Problem::new(&geometry, batch, pattern)?;
        check_channels(INPUT, channels, problem.channels, x)?;
        let y = layout.activation_shape(batch, problem.outputs, &geometry.output());
        let mut operands = vec![(INPUT, x.to_vec()), (VALUES, vec![pattern.len()])];
        if bias {
            operands.push((BIAS, vec![problem.outputs]));
        }
        operands.push((OUTPUT, y));
        let mut explanation = problem.describe::<T>("sparse_forward", self, &operands);
        let steps = match device {
            Device::Cpu => Steps::on_cpu(cpu::Forward::new::<T>(&problem, &mut explanation)?),
            #[cfg(gpu)]
            Device::Cuda(cuda) => {
                let mut draft = Draft::new(cuda, options.alignment_for(size_of::<T>())?);
                let operands = cuda::ForwardOperands {
                    x: draft.operand::<T>(problem.input_len()),
                    values: draft.operand(pattern.len()),
                    bias: bias.then(|| draft.operand(problem.outputs)),
                    y: draft.operand(problem.output_len()),
                };
                cuda::forward(&mut draft, &problem, operands)?;
                (explanation.algorithm, explanation.reason) =
                    ("direct".into(), cuda::REASON.into());
                Steps::Cuda(draft.prepare()?)
            }
        };
        let plan = Plan::new(device, &options, explanation, operands, steps)?;
        Ok(SparseForwardPlan::of(plan, pattern.clone()))
    }

    /// The plan for these operands, wherever they lie.
    fn sparse_forward_plan_of<T: Element>(
        &self,
        x: &TensorView<'_, T>,
        weight: &SparseWeight<T>,
        bias: Option<&TensorView<'_, T>>,
        y: Option<&TensorViewMut<'_, T>>,
    ) -> Result<SparseForwardPlan<T>> {
        let device = common_device(&[(INPUT, x.device()), ("weight", weight.device())])?;
        let addresses = [
            x.address(),
            weight.values().address(),
            bias.map_or(0, TensorView::address),
            y.map_or(0, TensorViewMut::address),
        ];
        let options = PlanOptions::for_addresses(&addresses);
        self.plan_sparse_forward(&device, x.shape(), weight, bias.is_some(), options)
    }
}

impl<T: Element> SparseForwardPlan<T> {
    /// Writes the convolution to `y`, all of it. The weight may have other values than the one that was
    /// planned for, but has its pattern.
    ///
    /// # Errors
    /// [`crate::Error::Shape`], [`crate::Error::DeviceMismatch`] or [`crate::Error::Invalid`] when operands or
    /// workspace are not those that were planned for; [`crate::Error::Device`] when the device fails.
    pub fn run<'x, 'b, 'y>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        weight: &SparseWeight<T>,
        bias: impl Into<OptionalView<'b, T>>,
        y: impl Into<TensorViewMut<'y, T>>,
        workspace: &mut Workspace<'_>,
    ) -> Result<()> {
        let (x, bias, y) = (x.into(), bias.into().0, y.into());
        run_with_values(&self.plan, &self.pattern, x, weight, bias, y, workspace)
    }
}
