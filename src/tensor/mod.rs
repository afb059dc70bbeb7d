//! Tensors: contiguous, row-major data with a shape and a device.

mod ndarray;
pub(crate) mod view;

pub use view::{TensorView, TensorViewMut};

use crate::device::Device;
use crate::element::Element;
use crate::error::{Error, Result, checked_product};
use crate::memory::{Buffer, try_zeroed};

/// An owned tensor: contiguous, row-major, on one device.
///
/// The memory of a large result is kept for later results when its tensor is dropped, up to 512 MiB in
/// all; [`Device::release_memory`] gives it back.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<T: Element> {
    storage: Storage<T>,
    shape: Vec<usize>,
}

/// Where a tensor's elements are.
#[derive(Clone, Debug, PartialEq)]
enum Storage<T: Element> {
    Cpu(Buffer<T>),
}

impl<T: Element> Tensor<T> {
    /// A tensor of zeros.
    ///
    /// # Errors
    /// [`Error::TooLarge`] or [`Error::Allocation`] when it does not fit in memory.
    pub fn zeros(device: &Device, shape: &[usize]) -> Result<Self> {
        let len = checked_product("the tensor", shape)?;
        let storage = match device {
            Device::Cpu => Storage::Cpu(try_zeroed("a tensor", len)?.into()),
        };
        Ok(Tensor { storage, shape: shape.to_vec() })
    }

    /// A tensor for a result: its elements have any value, and all of them are to be overwritten.
    pub(crate) fn for_result(device: &Device, shape: &[usize]) -> Result<Self> {
        let len = checked_product("the tensor", shape)?;
        let storage = match device {
            Device::Cpu => Storage::Cpu(Buffer::for_result(len)?),
        };
        Ok(Tensor { storage, shape: shape.to_vec() })
    }

    /// A tensor of these elements in row-major order. On the CPU the vector is taken over, not copied.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `shape` does not have as many elements as `data`.
    pub fn from_vec(device: &Device, shape: &[usize], data: Vec<T>) -> Result<Self> {
        view::check_length(data.len(), shape)?;
        let storage = match device {
            Device::Cpu => Storage::Cpu(data.into()),
        };
        Ok(Tensor { storage, shape: shape.to_vec() })
    }

    /// Extents of the axes, slowest first, in elements.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the elements are.
    pub fn device(&self) -> Device {
        match self.storage {
            Storage::Cpu(_) => Device::Cpu,
        }
    }

    /// The whole tensor, borrowed.
    pub fn view(&self) -> TensorView<'_, T> {
        match &self.storage {
            Storage::Cpu(data) => TensorView::from_checked(data, self.shape.clone()),
        }
    }

    /// The whole tensor, borrowed for writing.
    pub fn view_mut(&mut self) -> TensorViewMut<'_, T> {
        match &mut self.storage {
            Storage::Cpu(data) => TensorViewMut::from_checked(data, self.shape.clone()),
        }
    }

    /// The elements in row-major order, copied to the host if they are elsewhere.
    pub fn into_vec(self) -> Result<Vec<T>> {
        match self.storage {
            Storage::Cpu(data) => Ok(data.into_vec()),
        }
    }

    /// The elements in row-major order, if they are on the host.
    pub fn as_slice(&self) -> Option<&[T]> {
        match &self.storage {
            Storage::Cpu(data) => Some(data),
        }
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    /// [`Error::Shape`] when the number of elements differs.
    pub fn reshape(self, shape: &[usize]) -> Result<Self> {
        if checked_product("the tensor", shape)? != self.len() {
            return Err(Error::shape("shape", format!("{} elements", self.len()), shape));
        }
        Ok(Tensor { shape: shape.to_vec(), ..self })
    }

    /// The elements converted to another type, rounding to nearest.
    pub fn cast<U: Element>(&self) -> Result<Tensor<U>> {
        match &self.storage {
            Storage::Cpu(data) => {
                let converted = data.iter().map(|v| U::from_f64(v.to_f64())).collect();
                Tensor::from_vec(&Device::Cpu, &self.shape, converted)
            }
        }
    }
}
