//! Convolution forward and backward.

use convmat::{Algorithm, Conv, Device, Element, Explanation, PlanOptions, Tensor};

use super::job::{Answer, Buffer, Buffers, Job, Operands, Result};

/// The algorithm that `auto` is by these options, as far as callers have to name it.
fn algorithm(explanation: &Explanation) -> Algorithm {
    let winograd = explanation.algorithm == Algorithm::Winograd.to_string();
    if winograd { Algorithm::Winograd } else { Algorithm::Auto }
}

pub struct Forward<T: Element, const D: usize> {
    conv: Conv<D>,
    x: Tensor<T>,
    w: Tensor<T>,
    b: Tensor<T>,
    y: [Buffer<T>; 1],
    algorithm: Algorithm,
    explanation: Explanation,
}

impl<T: Element, const D: usize> Forward<T, D> {
    pub fn new(operands: &Operands, options: PlanOptions) -> Result<Self> {
        let shape = operands.shape;
        let conv = shape.conv::<D>();
        let (x, w) = (shape.input_shape(), shape.weight_shape());
        let plan = conv.plan_forward::<T>(&Device::Cpu, &x, &w, true, options)?;
        Ok(Forward {
            algorithm: algorithm(plan.explanation()),
            explanation: plan.explanation().clone(),
            conv,
            x: operands.read("x", &shape.input_shape())?,
            w: operands.read("w", &shape.weight_shape())?,
            b: operands.read("b", &[shape.outputs])?,
            y: [Buffer::new("y", shape.output_shape())],
        })
    }
}

impl<T: Element, const D: usize> Job for Forward<T, D> {
    fn fresh(&self) -> Result<Box<dyn Answer>> {
        let bias = Some(self.b.view());
        Ok(Box::new([("y", self.conv.forward_by(&self.x, &self.w, bias, self.algorithm)?)]))
    }

    fn into(&mut self) -> Result<()> {
        let (bias, y) = (Some(self.b.view()), self.y[0].view()?);
        Ok(self.conv.forward_into(&self.x, &self.w, bias, y, self.algorithm)?)
    }

    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.y
    }

    fn explanation(&self) -> Option<&Explanation> {
        Some(&self.explanation)
    }
}

/// The gradients of input, weight and bias.
pub struct Backward<T: Element, const D: usize> {
    conv: Conv<D>,
    size: [usize; D],
    x: Tensor<T>,
    w: Tensor<T>,
    dy: Tensor<T>,
    gradients: [Buffer<T>; 3],
    /// Of the gradients by the input and by the weight.
    algorithms: [Algorithm; 2],
}

impl<T: Element, const D: usize> Backward<T, D> {
    pub fn new(operands: &Operands, options: PlanOptions) -> Result<Self> {
        let shape = operands.shape;
        let (conv, size, device) = (shape.conv::<D>(), shape.input_size(), Device::Cpu);
        let [x, w, y] = [shape.input_shape(), shape.weight_shape(), shape.output_shape()];
        let dx = conv.plan_backward_input::<T>(&device, &y, &w, size, options)?;
        let dw = conv.plan_backward_weight::<T>(&device, &x, &y, options)?;
        Ok(Backward {
            algorithms: [dx.explanation(), dw.explanation()].map(algorithm),
            conv,
            size: shape.input_size(),
            x: operands.read("x", &shape.input_shape())?,
            w: operands.read("w", &shape.weight_shape())?,
            dy: operands.read("dy", &shape.output_shape())?,
            gradients: [
                Buffer::new("dx", shape.input_shape()),
                Buffer::new("dw", shape.weight_shape()),
                Buffer::new("db", vec![shape.outputs]),
            ],
        })
    }
}

impl<T: Element, const D: usize> Job for Backward<T, D> {
    fn fresh(&self) -> Result<Box<dyn Answer>> {
        let (dx, dw);
        if self.algorithms == [Algorithm::Auto; 2] {
            dx = self.conv.backward_input(&self.dy, &self.w, self.size)?;
            dw = self.conv.backward_weight(&self.x, &self.dy)?;
        } else {
            let zeros = |like: &Tensor<T>| Tensor::zeros(&Device::Cpu, like.shape());
            let [mut of_x, mut of_w] = [zeros(&self.x)?, zeros(&self.w)?];
            let [by_input, by_weight] = self.algorithms;
            self.conv.backward_input_into(&self.dy, &self.w, &mut of_x, by_input)?;
            self.conv.backward_weight_into(&self.x, &self.dy, &mut of_w, by_weight)?;
            (dx, dw) = (of_x, of_w);
        }
        Ok(Box::new([("dx", dx), ("dw", dw), ("db", self.conv.backward_bias(&self.dy)?)]))
    }

    fn into(&mut self) -> Result<()> {
        let [dx, dw, db] = &mut self.gradients;
        let [by_input, by_weight] = self.algorithms;
        self.conv.backward_input_into(&self.dy, &self.w, dx.view()?, by_input)?;
        self.conv.backward_weight_into(&self.x, &self.dy, dw.view()?, by_weight)?;
        Ok(self.conv.backward_bias_into(&self.dy, db.view()?)?)
    }

    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.gradients
    }
}
