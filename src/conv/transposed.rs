//! Transposed convolution: the adjoint of a convolution, as a layer of its own.

use std::sync::Arc;

#[cfg(gpu)]
use super::cuda;
use super::problem::Problem;
use super::with_weight::run_with_weight;
use super::{check_weight, cpu};
use crate::device::Device;
#[cfg(gpu)]
use crate::device::cuda::Draft;
use crate::element::Element;
use crate::error::{Error, Result, checked_product};
use crate::geometry::{Conv, Geometry, PaddingMode};
use crate::plan::{Algorithm, BIAS, Plan, PlanOptions, Steps, Workspace, plan_type};
use crate::tensor::view::common_device;
use crate::tensor::{OptionalView, Tensor, TensorView, TensorViewMut};

plan_type! {
    /// A plan of [`Conv::transposed`], made by [`Conv::plan_transposed`].
    TransposedPlan, cpu::BackwardInput
}

impl<const D: usize> Conv<D> {
    /// The transposed convolution: the adjoint of this convolution applied to `x`, plus `bias` on
    /// every position. PyTorch's `F.conv_transpose1d`, `2d`, `3d`.
    ///
    /// Channels first: `x [N, I, spatial…]`, `weight [I, O/groups, kernel…]`, `bias [O]`, result
    /// `[N, O, output…]` with the extents of [`Conv::bind_transposed`]. Channels last:
    /// `x [N, spatial…, I]`, `weight [kernel…, O/groups, I]`. The weight is the one with which
    /// [`Conv::forward`] maps the result's shape to that of `x`. Unlike PyTorch's, the padding mode may
    /// be any: it is that of the convolution this is the adjoint of.
    ///
    /// # Errors
    /// As [`Conv::forward`] and [`Conv::bind_transposed`].
    ///
    /// ```
    /// use convmat::{Conv, Device, Tensor};
    /// let conv = Conv::new([2]).stride([2]);
    /// let x = Tensor::from_vec(&Device::Cpu, &[1, 1, 2], vec![1f32, 2.])?;
    /// let weight = Tensor::from_vec(&Device::Cpu, &[1, 1, 2], vec![10f32, 1.])?;
    /// assert_eq!(conv.transposed(&x, &weight, None, [1])?.into_vec()?, [10., 1., 20., 2., 0.]);
    /// # Ok::<(), convmat::Error>(())
    /// ```
    pub fn transposed<'x, 'w, 'b, T: Element>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        weight: impl Into<TensorView<'w, T>>,
        bias: impl Into<OptionalView<'b, T>>,
        output_padding: [usize; D],
    ) -> Result<Tensor<T>> {
        let (x, weight, bias) = (x.into(), weight.into(), bias.into().0);
        let device = common_device(&[("input", x.device()), ("weight", weight.device())])?;
        let bias_address = bias.as_ref().map_or(0, TensorView::address);
        let options = PlanOptions::for_addresses(&[x.address(), weight.address(), bias_address]);
        let (shape, weights) = (x.shape(), weight.shape());
        let plan =
            self.plan_transposed(&device, shape, weights, bias.is_some(), output_padding, options)?;
        let mut y = Tensor::for_result(&device, plan.result_shape())?;
        plan.run(x, weight, OptionalView(bias), &mut y, &mut plan.make_workspace()?)?;
        Ok(y)
    }

    /// [`Conv::transposed`] into a caller's tensor, all of which is overwritten and whose extents give
    /// the output padding, by a chosen algorithm.
    ///
    /// # Errors
    /// As [`Conv::transposed`]; [`Error::Shape`] also when no output padding gives the shape of `y`.
    pub fn transposed_into<'x, 'w, 'b, 'y, T: Element>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        weight: impl Into<TensorView<'w, T>>,
        bias: impl Into<OptionalView<'b, T>>,
        y: impl Into<TensorViewMut<'y, T>>,
        algorithm: Algorithm,
    ) -> Result<()> {
        let (x, weight, bias, y) = (x.into(), weight.into(), bias.into().0, y.into());
        let layout = self.axis_order();
        let (.., size) = layout.split_activation::<D>("input", x.shape())?;
        let (.., wanted) = layout.split_activation::<D>("output", y.shape())?;
        let geometry = self.transposed_geometry("output", size, wanted, y.shape())?;
        let device = common_device(&[("input", x.device()), ("weight", weight.device())])?;
        let bias_address = bias.as_ref().map_or(0, TensorView::address);
        let addresses = [x.address(), weight.address(), bias_address, y.address()];
        let options = PlanOptions::for_addresses(&addresses).algorithm(algorithm);
        let adjoint = Adjoint::layer(&geometry, bias.is_some());
        let plan = plan_adjoint::<T, D>(adjoint, &device, [x.shape(), weight.shape()], options)?;
        run_with_weight(&plan, x, weight, bias, y, &mut plan.make_workspace()?)
    }

    /// A plan of [`Conv::transposed`] for operands of these shapes, with a bias or without.
    ///
    /// # Errors
    /// As [`Conv::transposed_into`];
    /// [`Error::Invalid`] also when the workspace would be larger than `options` allow; [`Error::Compile`]
    /// or [`Error::Device`] when the device fails.
    pub fn plan_transposed<T: Element>(
        &self,
        device: &Device,
        x: &[usize],
        weight: &[usize],
        bias: bool,
        output_padding: [usize; D],
        options: PlanOptions,
    ) -> Result<TransposedPlan<T>> {
        let (.., size) = self.axis_order().split_activation::<D>("input", x)?;
        let geometry = self.bind_transposed(size, output_padding)?;
        let adjoint = Adjoint::layer(&geometry, bias);
        plan_adjoint::<T, D>(adjoint, device, [x, weight], options).map(TransposedPlan::of)
    }

    /// The geometry whose transposed convolution makes extents `wanted` of `size`; `argument`, of this
    /// shape, is what has them.
    pub(crate) fn transposed_geometry(
        &self,
        argument: &str,
        size: [usize; D],
        wanted: [usize; D],
        shape: &[usize],
    ) -> Result<Geometry<D>> {
        // The extents without any padding, and how much of those the padding takes away. Neither
        // depends on the mode, whose limits apply to the wanted extents only.
        let plain = self.padding_mode(PaddingMode::Zeros);
        let full = plain.padding([0; D]).bind_transposed(size, [0; D])?.input();
        let sides = plain.bind(full)?.padding();
        let mut padding = [0; D];
        for axis in 0..D {
            let (low, high) = sides[axis];
            let padded = wanted[axis].saturating_add(low).saturating_add(high);
            padding[axis] = padded.checked_sub(full[axis]).ok_or_else(|| {
                let least: [usize; D] =
                    std::array::from_fn(|a| full[a].saturating_sub(sides[a].0 + sides[a].1));
                Error::shape(argument, format!("spatial extents of at least {least:?}"), shape)
            })?;
        }
        self.bind_transposed(size, padding)
    }
}

impl<T: Element> TransposedPlan<T> {
    /// Writes the transposed convolution to `y`, all of it.
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

/// The adjoint map as a gradient or as a layer: what it and its operands are called.
#[derive(Clone, Copy)]
pub(super) struct Adjoint<'g, const D: usize> {
    pub operation: &'static str,
    pub geometry: &'g Geometry<D>,
    /// What is read besides the weight, and the result.
    pub names: [&'static str; 2],
    pub bias: bool,
}

impl<'g, const D: usize> Adjoint<'g, D> {
    fn layer(geometry: &'g Geometry<D>, bias: bool) -> Self {
        Adjoint { operation: "transposed", geometry, names: ["input", "output"], bias }
    }
}

/// Plans the adjoint of a convolution for operands of these shapes: what it reads, whose spatial extents
/// fit the geometry, and the weight.
pub(super) fn plan_adjoint<T: Element, const D: usize>(
    adjoint: Adjoint<'_, D>,
    device: &Device,
    shapes: [&[usize]; 2],
    options: PlanOptions,
) -> Result<Arc<Plan<cpu::BackwardInput>>> {
    options.within_limit(|options| adjoint_plan::<T, D>(adjoint, device, shapes, options))
}

fn adjoint_plan<T: Element, const D: usize>(
    adjoint: Adjoint<'_, D>,
    device: &Device,
    [dy, weight]: [&[usize]; 2],
    options: PlanOptions,
) -> Result<Arc<Plan<cpu::BackwardInput>>> {
    let Adjoint { operation, geometry, names: [argument, result], bias } = adjoint;
    let conv = geometry.conv();
    let layout = conv.axis_order();
    let (batch, outputs, _) = layout.split_activation::<D>(argument, dy)?;
    geometry.channels_per_group(argument, outputs)?;
    let (weight_outputs, per_group) = check_weight(conv, weight)?;
    if weight_outputs != outputs {
        let expected = layout.weight_shape(outputs, per_group, &conv.kernel_size());
        let expected = format!("{expected:?}, as the {argument} has {outputs} channels");
        return Err(Error::shape("weight", expected, weight));
    }
    let channels = checked_product("the number of channels", &[per_group, conv.group_count()])?;
    let problem = Problem::new(geometry, batch, channels, outputs)?;
    let dx = layout.activation_shape(batch, channels, &geometry.input());
    let mut operands = vec![(argument, dy.to_vec()), ("weight", weight.to_vec())];
    if bias {
        operands.push((BIAS, vec![channels]));
    }
    operands.push((result, dx));
    let mut explanation = problem.describe::<T>(operation, conv, &operands);
    let steps = match device {
        Device::Cpu => {
            let made = cpu::BackwardInput::new::<T>(&problem, bias, &options, &mut explanation)?;
            Steps::on_cpu(made)
        }
        #[cfg(gpu)]
        Device::Cuda(cuda) => {
            let mut draft = Draft::new(cuda, options.alignment_for(size_of::<T>())?);
            draft.allow_tf32(options.tf32);
            let regions = cuda::BackwardInputOperands {
                dy: draft.operand::<T>(problem.output_len()),
                weight: draft.operand(problem.weight_len()),
                bias: bias.then(|| draft.operand(channels)),
                dx: draft.operand(problem.input_len()),
            };
            cuda::backward_input(&mut draft, &problem, regions, &options, &mut explanation)?;
            Steps::Cuda(draft.prepare()?)
        }
    };
    Plan::new(device, &options, explanation, operands, steps)
}
