//! One operation on one shape, ready to be run again and again on the same data.

use std::error::Error;
use std::path::Path;

use convmat::{Device, Element, Explanation, Tensor, TensorViewMut};

use crate::shapes::Shape;

pub type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// A result that can be handed over: named arrays as bytes.
pub trait Answer {
    fn parts(&self) -> Vec<(&'static str, &[u8])>;
}

/// Memory that results are written into.
pub trait Buffers: Answer {
    /// Fills it with what no operation computes.
    fn poison(&mut self);
}

/// An operation with its operands.
pub trait Job {
    /// Computes into memory of its own.
    fn fresh(&self) -> Result<Box<dyn Answer>>;
    /// Computes into the job's buffers.
    fn into(&mut self) -> Result<()>;
    /// The job's buffers.
    fn buffers(&mut self) -> &mut dyn Buffers;
    /// What its plan does, of jobs whose plan is made beforehand.
    fn explanation(&self) -> Option<&Explanation> {
        None
    }
}

/// The operands that the other side has left.
pub struct Operands<'a> {
    pub shape: &'a Shape,
    pub folder: &'a Path,
}

impl Operands<'_> {
    pub fn read<T: Element>(&self, name: &str, shape: &[usize]) -> Result<Tensor<T>> {
        Ok(Tensor::from_vec(&Device::Cpu, shape, self.numbers(name)?)?)
    }

    /// As many tensors of this shape as there are, one after the other.
    pub fn read_all(&self, name: &str, shape: &[usize]) -> Result<Vec<Tensor<f32>>> {
        let numbers = self.numbers(name)?;
        let each = numbers.chunks(shape.iter().product());
        each.map(|part| Ok(Tensor::from_vec(&Device::Cpu, shape, part.to_vec())?)).collect()
    }

    fn numbers<T: Element>(&self, name: &str) -> Result<Vec<T>> {
        let bytes = std::fs::read(self.folder.join(name).with_extension("in"))?;
        Ok(bytemuck::pod_collect_to_vec(&bytes))
    }
}

/// Memory for one tensor.
pub struct Buffer<T = f32> {
    name: &'static str,
    shape: Vec<usize>,
    data: Vec<T>,
}

impl<T: Element> Buffer<T> {
    pub fn new(name: &'static str, shape: Vec<usize>) -> Self {
        Buffer { name, data: vec![T::from_f64(f64::NAN); shape.iter().product()], shape }
    }

    pub fn view(&mut self) -> Result<TensorViewMut<'_, T>> {
        Ok(TensorViewMut::from_slice(&self.shape, &mut self.data)?)
    }
}

impl<T: Element, const N: usize> Buffers for [Buffer<T>; N] {
    fn poison(&mut self) {
        self.iter_mut().for_each(|buffer| buffer.data.fill(T::from_f64(f64::NAN)));
    }
}

impl<T: Element, const N: usize> Answer for [Buffer<T>; N] {
    fn parts(&self) -> Vec<(&'static str, &[u8])> {
        self.iter().map(|b| (b.name, bytemuck::cast_slice(&b.data))).collect()
    }
}

impl<T: Element, const N: usize> Answer for [(&'static str, Tensor<T>); N] {
    fn parts(&self) -> Vec<(&'static str, &[u8])> {
        let host = self.iter().filter_map(|(name, tensor)| Some((*name, tensor.as_slice()?)));
        host.map(|(name, values)| (name, bytemuck::cast_slice(values))).collect()
    }
}
