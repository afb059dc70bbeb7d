//! Tensors: contiguous, row-major data with a shape and a device.

#[cfg(feature = "cuda")]
mod cuda;
mod ndarray;
pub(crate) mod view;

pub use view::{OptionalView, TensorView, TensorViewMut};

use std::borrow::Cow;

use crate::device::Device;
#[cfg(gpu)]
use crate::device::cuda::DeviceBuffer;
use crate::element::Element;
use crate::error::{Error, Result, checked_product};
use crate::memory::{Buffer, try_zeroed};

/// An owned tensor: contiguous, row-major, on one device.
///
/// The memory of a large result is kept for later results when its tensor is dropped, up to 512 MiB in
/// all; [`Device::release_memory`] gives it back.
///
/// Comparing reads tensors that are not on the host back to it. Cloning panics when the device has no
/// memory left, as cloning a vector aborts: [`TensorView::to_tensor`] returns an error.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<T: Element> {
    storage: Storage<T>,
    shape: Vec<usize>,
}

/// Where a tensor's elements are.
#[derive(Debug)]
enum Storage<T: Element> {
    Cpu(Buffer<T>),
    #[cfg(gpu)]
    Cuda(DeviceBuffer<T>),
}

impl<T: Element> Clone for Storage<T> {
    fn clone(&self) -> Self {
        match self {
            Storage::Cpu(data) => Storage::Cpu(data.clone()),
            #[cfg(gpu)]
            Storage::Cuda(data) => match data.try_clone() {
                Ok(copy) => Storage::Cuda(copy),
                Err(error) => panic!("{error}"),
            },
        }
    }
}

impl<T: Element> PartialEq for Storage<T> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Storage::Cpu(left), Storage::Cpu(right)) => left == right,
            #[cfg(gpu)]
            (Storage::Cuda(left), Storage::Cuda(right)) => {
                left.device() == right.device()
                    && matches!((left.to_vec(), right.to_vec()), (Ok(l), Ok(r)) if l == r)
            }
            #[cfg(gpu)]
            _ => false,
        }
    }
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
            #[cfg(gpu)]
            Device::Cuda(device) => Storage::Cuda(DeviceBuffer::zeros(device, "a tensor", len)?),
        };
        Ok(Tensor { storage, shape: shape.to_vec() })
    }

    /// A tensor for a result: its elements have any value, and all of them are to be overwritten.
    pub(crate) fn for_result(device: &Device, shape: &[usize]) -> Result<Self> {
        let len = checked_product("the tensor", shape)?;
        let storage = match device {
            Device::Cpu => Storage::Cpu(Buffer::for_result(len)?),
            #[cfg(gpu)]
            Device::Cuda(device) => Storage::Cuda(DeviceBuffer::new(device, "a tensor", len)?),
        };
        Ok(Tensor { storage, shape: shape.to_vec() })
    }

    /// A tensor of these elements in row-major order. On the CPU the vector is taken over, not copied.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `shape` does not have as many elements as `data`; [`Error::Allocation`]
    /// when the device has no room for them.
    pub fn from_vec(device: &Device, shape: &[usize], data: Vec<T>) -> Result<Self> {
        view::check_length(data.len(), shape)?;
        let storage = match device {
            Device::Cpu => Storage::Cpu(data.into()),
            #[cfg(gpu)]
            Device::Cuda(device) => {
                Storage::Cuda(DeviceBuffer::from_slice(device, "a tensor", &data)?)
            }
        };
        Ok(Tensor { storage, shape: shape.to_vec() })
    }

    /// A tensor of elements on a device, as many as the shape has.
    #[cfg(gpu)]
    pub(crate) fn from_buffer(buffer: DeviceBuffer<T>, shape: &[usize]) -> Self {
        Tensor { storage: Storage::Cuda(buffer), shape: shape.to_vec() }
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
        match &self.storage {
            Storage::Cpu(_) => Device::Cpu,
            #[cfg(gpu)]
            Storage::Cuda(data) => Device::Cuda(data.device().clone()),
        }
    }

    /// The whole tensor, borrowed.
    pub fn view(&self) -> TensorView<'_, T> {
        match &self.storage {
            Storage::Cpu(data) => TensorView::from_checked(data, Cow::Borrowed(&self.shape)),
            #[cfg(gpu)]
            Storage::Cuda(data) => TensorView::from_device(data.view(), Cow::Borrowed(&self.shape)),
        }
    }

    /// The whole tensor, borrowed for writing.
    pub fn view_mut(&mut self) -> TensorViewMut<'_, T> {
        match &mut self.storage {
            Storage::Cpu(data) => TensorViewMut::from_checked(data, Cow::Borrowed(&self.shape)),
            #[cfg(gpu)]
            Storage::Cuda(data) => {
                TensorViewMut::from_device(data.view_mut(), Cow::Borrowed(&self.shape))
            }
        }
    }

    /// The elements in row-major order, copied to the host if they are elsewhere.
    pub fn into_vec(self) -> Result<Vec<T>> {
        match self.storage {
            Storage::Cpu(data) => Ok(data.into_vec()),
            #[cfg(gpu)]
            Storage::Cuda(data) => data.to_vec(),
        }
    }

    /// The elements in row-major order, if they are on the host.
    pub fn as_slice(&self) -> Option<&[T]> {
        match &self.storage {
            Storage::Cpu(data) => Some(data),
            #[cfg(gpu)]
            Storage::Cuda(_) => None,
        }
    }

    /// Overwrites the elements: see [`TensorViewMut::copy_from`].
    ///
    /// # Errors
    /// As [`TensorViewMut::copy_from`].
    pub fn copy_from<'a>(&mut self, source: impl Into<TensorView<'a, T>>) -> Result<()> {
        self.view_mut().copy_from(source)
    }

    /// The same elements on `device`. A tensor that is there already is handed over, not copied.
    ///
    /// # Errors
    /// [`Error::Allocation`] when there is no room for them, [`Error::Device`] when copying fails.
    pub fn to_device(self, device: &Device) -> Result<Self> {
        if self.device() == *device {
            return Ok(self);
        }
        let shape = self.shape.clone();
        Tensor::from_vec(device, &shape, self.into_vec()?)
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

    /// The elements converted to another type, rounding to nearest. Conversions run on the host: the
    /// elements of a tensor on another device are copied there and back.
    pub fn cast<U: Element>(&self) -> Result<Tensor<U>> {
        let convert = |data: &[T]| data.iter().map(|v| U::from_f64(v.to_f64())).collect();
        let converted = match &self.storage {
            Storage::Cpu(data) => convert(data),
            #[cfg(gpu)]
            Storage::Cuda(data) => convert(&data.to_vec()?),
        };
        Tensor::from_vec(&self.device(), &self.shape, converted)
    }
}
