//! Layers as operators: planned convolutions, nothing assembled.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::layer::Layer;
use super::{Apply, Direction, Expression, Given, Operator};
use crate::conv::{BackwardInputPlan, ForwardPlan};
use crate::device::Device;
use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::geometry::{Conv, Geometry, Layout};
use crate::plan::{PlanOptions, Workspace};
use crate::tensor::{Tensor, TensorView, TensorViewMut};

impl<const D: usize> Conv<D> {
    /// The convolution without a bias, as an operator on one example of these input extents: `[m, n]` with
    /// m = O·L and n = C·(input positions). Vectors are in the order (channel, position), as in
    /// [`Conv::matrix`], whatever the layout of the weight. It is on the weight's device; a channels-last
    /// weight and one of a half type are brought into order and promoted to `f32` through the host.
    ///
    /// # Errors
    /// As [`Conv::forward`]; [`crate::Error::Invalid`] also for a weight with an element that is not finite.
    pub fn operator<'w, T: Element>(
        &self,
        weight: impl Into<TensorView<'w, T>>,
        input_size: [usize; D],
    ) -> Result<Operator<T::Acc>> {
        let weight = weight.into();
        self.matrix_size(weight.shape(), false, input_size)?;
        let layer = Layer::new(&self.bind(input_size)?, &weight, false)?;
        self.layer_operator(layer, &weight.device(), input_size)
    }

    /// The transposed convolution without a bias, as an operator on one example of these extents, which
    /// become larger: the adjoint of a [`Conv::operator`]. Otherwise as that.
    ///
    /// # Errors
    /// As [`Conv::transposed`]; [`crate::Error::Invalid`] also for a weight with an element that is not
    /// finite.
    pub fn transposed_operator<'w, T: Element>(
        &self,
        weight: impl Into<TensorView<'w, T>>,
        input_size: [usize; D],
        output_padding: [usize; D],
    ) -> Result<Operator<T::Acc>> {
        let weight = weight.into();
        self.transposed_matrix_size(weight.shape(), false, input_size, output_padding)?;
        let geometry = self.bind_transposed(input_size, output_padding)?;
        let layer = Layer::new(&geometry, &weight, true)?;
        let size = geometry.input();
        if self.bind(size)?.output() == input_size {
            return self.layer_operator(layer, &weight.device(), size);
        }
        // More output padding than the stride: no convolution's input gradient has these extents.
        let conv = self.layout(Layout::ChannelsFirst);
        let weight = ordered::<T::Acc>(&layer, self.kernel_size(), &weight.device())?;
        let matrix = conv.transposed_matrix(&weight, None, input_size, output_padding)?;
        let operator = Operator::from_csr(matrix)?;
        let Expression::Given(Given::Sparse(matrix), _) = operator.expression() else {
            return Ok(operator);
        };
        let apply = super::sparse::apply(matrix)?;
        Ok(Operator::new(operator.shape(), operator.device(), Expression::Layer(layer, apply)))
    }

    fn layer_operator<A: Accumulator>(
        &self,
        layer: Layer,
        device: &Device,
        size: [usize; D],
    ) -> Result<Operator<A>> {
        let conv = self.layout(Layout::ChannelsFirst);
        let weight = ordered(&layer, self.kernel_size(), device)?;
        let convolution = Convolution {
            geometry: conv.bind(size)?,
            weight,
            channels: layer.channels,
            outputs: layer.outputs,
            transposed: layer.transposed,
            plans: Mutex::default(),
            workspaces: Mutex::default(),
        };
        let expression = Expression::Layer(layer.clone(), Box::new(convolution));
        Ok(Operator::new(layer.shape(), device, expression))
    }
}

/// The layer's weight, channels first.
fn ordered<A: Accumulator>(
    layer: &Layer,
    kernel: impl AsRef<[usize]>,
    device: &Device,
) -> Result<Tensor<A>> {
    let data = layer.weight.iter().map(|&value| A::from_f64(value)).collect();
    let per_group = layer.channels_per_group();
    let shape = Layout::ChannelsFirst.weight_shape(layer.outputs, per_group, kernel.as_ref());
    Tensor::from_vec(device, &shape, data)
}

/// A convolution that plans once for each number of vectors.
struct Convolution<A: Accumulator, const D: usize> {
    geometry: Geometry<D>,
    weight: Tensor<A>,
    channels: usize,
    outputs: usize,
    transposed: bool,
    plans: Mutex<HashMap<(usize, Direction, u64), Plan<A>>>,
    /// Those that no run uses now.
    workspaces: Mutex<Vec<(u64, Workspace<'static>)>>,
}

/// What applies the convolution, or its adjoint.
#[derive(Clone)]
enum Plan<A> {
    Forward(Arc<ForwardPlan<A>>),
    Adjoint(Arc<BackwardInputPlan<A>>),
}

impl<A: Accumulator, const D: usize> Convolution<A, D> {
    fn plan(&self, vectors: usize, direction: Direction, alignment: u64) -> Result<Plan<A>> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = plans.get(&(vectors, direction, alignment)) {
            return Ok(plan.clone());
        }
        let (conv, size) = (self.geometry.conv(), self.geometry.input());
        let options = PlanOptions::new().alignment(alignment);
        let (device, weight) = (self.weight.device(), self.weight.shape());
        let [x, y] = self.shapes(vectors);
        let plan = match direction {
            Direction::Forward => {
                let plan = conv.plan_forward(&device, &x, weight, false, options)?;
                Plan::Forward(Arc::new(plan))
            }
            Direction::Adjoint => {
                let plan = conv.plan_backward_input(&device, &y, weight, size, options)?;
                Plan::Adjoint(Arc::new(plan))
            }
        };
        plans.insert((vectors, direction, alignment), plan.clone());
        Ok(plan)
    }

    /// Shapes of a batch of inputs, and of outputs.
    fn shapes(&self, vectors: usize) -> [Vec<usize>; 2] {
        let first = Layout::ChannelsFirst;
        [
            first.activation_shape(vectors, self.channels, &self.geometry.input()),
            first.activation_shape(vectors, self.outputs, &self.geometry.output()),
        ]
    }

    /// Runs something with a workspace of so many bytes, which is kept for the next.
    fn with_workspace(
        &self,
        bytes: u64,
        run: impl FnOnce(&mut Workspace<'static>) -> Result<()>,
    ) -> Result<()> {
        let idle = || self.workspaces.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle().pop().filter(|(size, _)| *size >= bytes);
        let (size, mut workspace) = match kept {
            Some(kept) => kept,
            None => (bytes, Workspace::new(&self.weight.device(), bytes)?),
        };
        let done = run(&mut workspace);
        idle().push((size, workspace));
        done
    }
}

impl<A: Accumulator, const D: usize> Apply<A> for Convolution<A, D> {
    fn apply(
        &self,
        direction: Direction,
        x: TensorView<'_, A>,
        y: TensorViewMut<'_, A>,
    ) -> Result<()> {
        let direction = if self.transposed { direction.reversed() } else { direction };
        let vectors = x.shape()[0];
        // Rows of a panel begin at multiples of their length.
        let alignment = crate::device::common_alignment(&[x.address(), y.address()]);
        let plan = self.plan(vectors, direction, alignment)?;
        let [input, output] = self.shapes(vectors);
        match plan {
            Plan::Forward(plan) => self.with_workspace(plan.workspace(), |workspace| {
                let (x, y) = (x.with_shape(&input), y.with_shape(&output));
                plan.run(x, &self.weight, None, y, workspace)
            }),
            Plan::Adjoint(plan) => self.with_workspace(plan.workspace(), |workspace| {
                let (y, x) = (x.with_shape(&output), y.with_shape(&input));
                plan.run(y, &self.weight, x, workspace)
            }),
        }
    }
}
