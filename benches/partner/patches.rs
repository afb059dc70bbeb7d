//! Unfold and fold.

use convmat::{Conv, Element, Tensor};

use super::job::{Answer, Buffer, Buffers, Job, Operands, Result};

pub struct Unfold<T: Element, const D: usize> {
    conv: Conv<D>,
    x: Tensor<T>,
    patches: [Buffer<T>; 1],
}

impl<T: Element, const D: usize> Unfold<T, D> {
    pub fn new(operands: &Operands) -> Result<Self> {
        let shape = operands.shape;
        Ok(Unfold {
            conv: shape.conv(),
            x: operands.read("x", &shape.input_shape())?,
            patches: [Buffer::new("patches", shape.patch_shape())],
        })
    }
}

impl<T: Element, const D: usize> Job for Unfold<T, D> {
    fn fresh(&self) -> Result<Box<dyn Answer>> {
        Ok(Box::new([("patches", self.conv.unfold(&self.x)?)]))
    }

    fn into(&mut self) -> Result<()> {
        Ok(self.conv.unfold_into(&self.x, self.patches[0].view()?)?)
    }

    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.patches
    }
}

pub struct Fold<T: Element, const D: usize> {
    conv: Conv<D>,
    size: [usize; D],
    patches: Tensor<T>,
    x: [Buffer<T>; 1],
}

impl<T: Element, const D: usize> Fold<T, D> {
    pub fn new(operands: &Operands) -> Result<Self> {
        let shape = operands.shape;
        Ok(Fold {
            conv: shape.conv(),
            size: shape.input_size(),
            patches: operands.read("patches", &shape.patch_shape())?,
            x: [Buffer::new("x", shape.input_shape())],
        })
    }
}

impl<T: Element, const D: usize> Job for Fold<T, D> {
    fn fresh(&self) -> Result<Box<dyn Answer>> {
        Ok(Box::new([("x", self.conv.fold(&self.patches, self.size)?)]))
    }

    fn into(&mut self) -> Result<()> {
        Ok(self.conv.fold_into(&self.patches, self.x[0].view()?)?)
    }

    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.x
    }
}
