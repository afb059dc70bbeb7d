//! Convolution forward and backward.

use convmat::{Algorithm, Conv, Tensor};

use super::job::{Answer, Buffer, Buffers, Job, Operands, Result};

pub struct Forward<const D: usize> {
    conv: Conv<D>,
    x: Tensor<f32>,
    w: Tensor<f32>,
    b: Tensor<f32>,
    y: [Buffer; 1],
}

impl<const D: usize> Forward<D> {
    pub fn new(operands: &Operands) -> Result<Self> {
        let shape = operands.shape;
        Ok(Forward {
            conv: shape.conv(),
            x: operands.read("x", &shape.input_shape())?,
            w: operands.read("w", &shape.weight_shape())?,
            b: operands.read("b", &[shape.outputs])?,
            y: [Buffer::new("y", shape.output_shape())],
        })
    }
}

impl<const D: usize> Job for Forward<D> {
    fn fresh(&self) -> Result<Box<dyn Answer>> {
        Ok(Box::new([("y", self.conv.forward(&self.x, &self.w, Some(self.b.view()))?)]))
    }

    fn into(&mut self) -> Result<()> {
        let (bias, y) = (Some(self.b.view()), self.y[0].view()?);
        Ok(self.conv.forward_into(&self.x, &self.w, bias, y, Algorithm::Auto)?)
    }

    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.y
    }
}

/// The gradients of input, weight and bias.
pub struct Backward<const D: usize> {
    conv: Conv<D>,
    size: [usize; D],
    x: Tensor<f32>,
    w: Tensor<f32>,
    dy: Tensor<f32>,
    gradients: [Buffer; 3],
}

impl<const D: usize> Backward<D> {
    pub fn new(operands: &Operands) -> Result<Self> {
        let shape = operands.shape;
        Ok(Backward {
            conv: shape.conv(),
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

impl<const D: usize> Job for Backward<D> {
    fn fresh(&self) -> Result<Box<dyn Answer>> {
        let dx = self.conv.backward_input(&self.dy, &self.w, self.size)?;
        let dw = self.conv.backward_weight(&self.x, &self.dy)?;
        Ok(Box::new([("dx", dx), ("dw", dw), ("db", self.conv.backward_bias(&self.dy)?)]))
    }

    fn into(&mut self) -> Result<()> {
        let [dx, dw, db] = &mut self.gradients;
        let auto = Algorithm::Auto;
        self.conv.backward_input_into(&self.dy, &self.w, dx.view()?, auto)?;
        self.conv.backward_weight_into(&self.x, &self.dy, dw.view()?, auto)?;
        Ok(self.conv.backward_bias_into(&self.dy, db.view()?)?)
    }

    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.gradients
    }
}
