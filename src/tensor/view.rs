//! Borrowed tensors: what operations take.

use std::borrow::Cow;
use std::ops::Range;

use crate::device::Device;
#[cfg(gpu)]
use crate::device::cuda::{DeviceSlice, DeviceSliceMut};
use crate::element::Element;
use crate::error::{Error, Result, checked_product};
use crate::tensor::Tensor;

/// A borrowed tensor: contiguous, row-major.
#[derive(Clone, Debug)]
pub struct TensorView<'a, T> {
    data: Data<'a, T>,
    shape: Cow<'a, [usize]>,
}

/// A tensor borrowed for writing: contiguous, row-major.
#[derive(Debug)]
pub struct TensorViewMut<'a, T> {
    data: DataMut<'a, T>,
    shape: Cow<'a, [usize]>,
}

#[derive(Clone, Debug)]
enum Data<'a, T> {
    Cpu(&'a [T]),
    #[cfg(gpu)]
    Cuda(DeviceSlice<'a, T>),
}

#[derive(Debug)]
enum DataMut<'a, T> {
    Cpu(&'a mut [T]),
    #[cfg(gpu)]
    Cuda(DeviceSliceMut<'a, T>),
}

/// Which elements some entries of the first axis are, and their shape.
fn row_range(shape: &[usize], rows: &Range<usize>) -> (Range<usize>, Vec<usize>) {
    let len: usize = shape[1..].iter().product();
    let mut shape = shape.to_vec();
    shape[0] = rows.len();
    (rows.start * len..rows.end * len, shape)
}

pub(super) fn check_length(len: usize, shape: &[usize]) -> Result<()> {
    if checked_product("the tensor", shape)? != len {
        let reason = format!("it must have as many elements as the data, {len}");
        return Err(Error::invalid("shape", format!("{shape:?}"), reason));
    }
    Ok(())
}

impl<'a, T: Element> TensorView<'a, T> {
    /// Host elements in row-major order.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `shape` does not have as many elements as `data`.
    pub fn from_slice(shape: &[usize], data: &'a [T]) -> Result<Self> {
        check_length(data.len(), shape)?;
        Ok(TensorView::from_checked(data, Cow::Owned(shape.to_vec())))
    }

    pub(super) fn from_checked(data: &'a [T], shape: Cow<'a, [usize]>) -> Self {
        TensorView { data: Data::Cpu(data), shape }
    }

    /// Elements on a device, as many as the shape has.
    #[cfg(gpu)]
    pub(crate) fn from_device(data: DeviceSlice<'a, T>, shape: Cow<'a, [usize]>) -> Self {
        TensorView { data: Data::Cuda(data), shape }
    }

    /// Extents of the axes, slowest first, in elements.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Where the elements are.
    pub fn device(&self) -> Device {
        match &self.data {
            Data::Cpu(_) => Device::Cpu,
            #[cfg(gpu)]
            Data::Cuda(data) => Device::Cuda(data.device().clone()),
        }
    }

    /// The elements in row-major order, if they are on the host.
    pub fn as_slice(&self) -> Option<&'a [T]> {
        match self.data {
            Data::Cpu(data) => Some(data),
            #[cfg(gpu)]
            Data::Cuda(_) => None,
        }
    }

    /// The elements, for the CPU side of an operation that has found this to be a host tensor.
    pub(crate) fn host(&self) -> &'a [T] {
        match self.data {
            Data::Cpu(data) => data,
            #[cfg(gpu)]
            Data::Cuda(_) => unreachable!("the operation runs where its operands are"),
        }
    }

    /// Where the elements lie on a CUDA device; 0 on the CPU.
    pub(crate) fn address(&self) -> u64 {
        match &self.data {
            Data::Cpu(_) => 0,
            #[cfg(gpu)]
            Data::Cuda(data) => data.address(),
        }
    }

    /// The same elements under another shape of as many.
    pub(crate) fn with_shape(&self, shape: &[usize]) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), self.shape.iter().product::<usize>());
        TensorView { data: self.data.clone(), shape: Cow::Owned(shape.to_vec()) }
    }

    /// Some of the entries of the first axis.
    pub(crate) fn slice_rows(&self, rows: Range<usize>) -> Self {
        let (elements, shape) = row_range(&self.shape, &rows);
        let data = match &self.data {
            Data::Cpu(data) => Data::Cpu(&data[elements]),
            #[cfg(gpu)]
            Data::Cuda(data) => Data::Cuda(data.slice(elements)),
        };
        TensorView { data, shape: Cow::Owned(shape) }
    }

    /// The elements in row-major order, copied to the host if they are elsewhere.
    ///
    /// # Errors
    /// [`Error::Allocation`] when there is no room for them, [`Error::Device`] when copying fails.
    pub fn to_vec(&self) -> Result<Vec<T>> {
        match &self.data {
            Data::Cpu(data) => Ok(data.to_vec()),
            #[cfg(gpu)]
            Data::Cuda(data) => data.to_vec(),
        }
    }

    /// A tensor of its own with these elements, on the same device.
    pub fn to_tensor(&self) -> Result<Tensor<T>> {
        match &self.data {
            Data::Cpu(data) => Tensor::from_vec(&Device::Cpu, &self.shape, data.to_vec()),
            #[cfg(gpu)]
            Data::Cuda(data) => Ok(Tensor::from_buffer(data.to_buffer("a tensor")?, &self.shape)),
        }
    }
}

impl<'a, T: Element> TensorViewMut<'a, T> {
    /// Host elements in row-major order.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `shape` does not have as many elements as `data`.
    pub fn from_slice(shape: &[usize], data: &'a mut [T]) -> Result<Self> {
        check_length(data.len(), shape)?;
        Ok(TensorViewMut::from_checked(data, Cow::Owned(shape.to_vec())))
    }

    pub(super) fn from_checked(data: &'a mut [T], shape: Cow<'a, [usize]>) -> Self {
        TensorViewMut { data: DataMut::Cpu(data), shape }
    }

    /// Elements on a device, as many as the shape has.
    #[cfg(gpu)]
    pub(crate) fn from_device(data: DeviceSliceMut<'a, T>, shape: Cow<'a, [usize]>) -> Self {
        TensorViewMut { data: DataMut::Cuda(data), shape }
    }

    /// Extents of the axes, slowest first, in elements.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Where the elements are.
    pub fn device(&self) -> Device {
        match &self.data {
            DataMut::Cpu(_) => Device::Cpu,
            #[cfg(gpu)]
            DataMut::Cuda(data) => Device::Cuda(data.device().clone()),
        }
    }

    /// Overwrites the elements with those of a tensor of the same shape, on any device: for the inputs of plans
    /// and graphs that run again and again.
    ///
    /// # Errors
    /// [`Error::Shape`] when the shapes differ, [`Error::Device`] when copying fails, [`Error::Allocation`] when
    /// elements go from one GPU to another and the host has no room for them.
    pub fn copy_from<'b>(&mut self, source: impl Into<TensorView<'b, T>>) -> Result<()> {
        let source = source.into();
        if source.shape() != &*self.shape {
            return Err(Error::shape("source", format!("{:?}", self.shape), source.shape()));
        }
        match (&mut self.data, &source.data) {
            (DataMut::Cpu(target), Data::Cpu(source)) => target.copy_from_slice(source),
            #[cfg(gpu)]
            (DataMut::Cpu(target), Data::Cuda(source)) => source.read(target)?,
            #[cfg(gpu)]
            (DataMut::Cuda(target), Data::Cpu(source)) => target.write(source)?,
            #[cfg(gpu)]
            (DataMut::Cuda(target), Data::Cuda(source)) => match target.device() == source.device()
            {
                true => target.copy_from(source)?,
                false => target.write(&source.to_vec()?)?,
            },
        }
        Ok(())
    }

    /// The elements in row-major order, if they are on the host.
    pub fn as_mut_slice(&mut self) -> Option<&mut [T]> {
        match &mut self.data {
            DataMut::Cpu(data) => Some(data),
            #[cfg(gpu)]
            DataMut::Cuda(_) => None,
        }
    }

    /// The same elements under another shape of as many.
    pub(crate) fn with_shape(self, shape: &[usize]) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), self.shape.iter().product::<usize>());
        TensorViewMut { data: self.data, shape: Cow::Owned(shape.to_vec()) }
    }

    /// Some of the entries of the first axis.
    pub(crate) fn slice_rows(self, rows: Range<usize>) -> Self {
        let (elements, shape) = row_range(&self.shape, &rows);
        let data = match self.data {
            DataMut::Cpu(data) => DataMut::Cpu(&mut data[elements]),
            #[cfg(gpu)]
            DataMut::Cuda(data) => DataMut::Cuda(data.slice(elements)),
        };
        TensorViewMut { data, shape: Cow::Owned(shape) }
    }

    /// The entries of the first axis before these, to be read, and these.
    pub(crate) fn split_rows(self, rows: Range<usize>) -> (TensorView<'a, T>, Self) {
        let (before, head_shape) = row_range(&self.shape, &(0..rows.start));
        let (elements, shape) = row_range(&self.shape, &rows);
        let (head, tail) = match self.data {
            DataMut::Cpu(data) => {
                let (head, tail) = data.split_at_mut(before.end);
                (Data::Cpu(&*head), DataMut::Cpu(&mut tail[..elements.len()]))
            }
            #[cfg(gpu)]
            DataMut::Cuda(data) => {
                let (head, tail) = data.split(before.end);
                (Data::Cuda(head), DataMut::Cuda(tail.slice(0..elements.len())))
            }
        };
        let head = TensorView { data: head, shape: Cow::Owned(head_shape) };
        (head, TensorViewMut { data: tail, shape: Cow::Owned(shape) })
    }

    /// The same elements, borrowed from this view.
    pub(crate) fn reborrow(&mut self) -> TensorViewMut<'_, T> {
        let data = match &mut self.data {
            DataMut::Cpu(data) => DataMut::Cpu(data),
            #[cfg(gpu)]
            DataMut::Cuda(data) => DataMut::Cuda(data.reborrow()),
        };
        TensorViewMut { data, shape: self.shape.clone() }
    }

    /// The same elements, to be read.
    pub(crate) fn as_view(&self) -> TensorView<'_, T> {
        let data = match &self.data {
            DataMut::Cpu(data) => Data::Cpu(data),
            #[cfg(gpu)]
            DataMut::Cuda(data) => Data::Cuda(data.as_slice()),
        };
        TensorView { data, shape: self.shape.clone() }
    }

    /// Sets the bytes of all elements to zero.
    pub(crate) fn clear(self) -> Result<()> {
        match self.data {
            DataMut::Cpu(data) => {
                data.fill(T::zeroed());
                Ok(())
            }
            #[cfg(gpu)]
            DataMut::Cuda(mut data) => data.clear(),
        }
    }

    /// Overwrites all elements with the host's, in row-major order; `source` has as many.
    pub(crate) fn write(self, source: &[T]) -> Result<()> {
        match self.data {
            DataMut::Cpu(data) => {
                data.copy_from_slice(source);
                Ok(())
            }
            #[cfg(gpu)]
            DataMut::Cuda(mut data) => data.write(source),
        }
    }

    /// Where the elements lie on a CUDA device; 0 on the CPU.
    pub(crate) fn address(&self) -> u64 {
        match &self.data {
            DataMut::Cpu(_) => 0,
            #[cfg(gpu)]
            DataMut::Cuda(data) => data.address(),
        }
    }

    /// The elements, for the CPU side of an operation that has found this to be a host tensor.
    pub(crate) fn host(self) -> &'a mut [T] {
        match self.data {
            DataMut::Cpu(data) => data,
            #[cfg(gpu)]
            DataMut::Cuda(_) => unreachable!("the operation runs where its operands are"),
        }
    }

    /// The elements, for the CUDA side of an operation that has found them to be there.
    #[cfg(gpu)]
    pub(crate) fn cuda(self) -> DeviceSliceMut<'a, T> {
        match self.data {
            DataMut::Cpu(_) => unreachable!("the operation runs where its operands are"),
            DataMut::Cuda(data) => data,
        }
    }
}

/// An operand that may be left out, such as a bias: `None`, `&tensor`, `&option` of a tensor, a view or an
/// `Option` of one.
#[derive(Clone, Debug)]
pub struct OptionalView<'a, T>(pub Option<TensorView<'a, T>>);

impl<'a, T> From<Option<TensorView<'a, T>>> for OptionalView<'a, T> {
    fn from(view: Option<TensorView<'a, T>>) -> Self {
        OptionalView(view)
    }
}

impl<'a, T: Element> From<&'a Option<Tensor<T>>> for OptionalView<'a, T> {
    fn from(tensor: &'a Option<Tensor<T>>) -> Self {
        OptionalView(tensor.as_ref().map(Tensor::view))
    }
}

impl<'a, T: Element> From<&'a Tensor<T>> for OptionalView<'a, T> {
    fn from(tensor: &'a Tensor<T>) -> Self {
        OptionalView(Some(tensor.view()))
    }
}

impl<'a, T> From<TensorView<'a, T>> for OptionalView<'a, T> {
    fn from(view: TensorView<'a, T>) -> Self {
        OptionalView(Some(view))
    }
}

impl<'a, T: Element> From<&'a Tensor<T>> for TensorView<'a, T> {
    fn from(tensor: &'a Tensor<T>) -> Self {
        tensor.view()
    }
}

impl<'a, T: Element> From<&TensorView<'a, T>> for TensorView<'a, T> {
    fn from(view: &TensorView<'a, T>) -> Self {
        view.clone()
    }
}

impl<'a, T: Element> From<&'a mut Tensor<T>> for TensorViewMut<'a, T> {
    fn from(tensor: &'a mut Tensor<T>) -> Self {
        tensor.view_mut()
    }
}

/// Fails unless all operands are on the device of the first; otherwise returns that device.
pub(crate) fn common_device(operands: &[(&str, Device)]) -> Result<Device> {
    let (left, device) = &operands[0];
    match operands.iter().find(|(_, other)| other != device) {
        None => Ok(device.clone()),
        Some((right, other)) => Err(Error::DeviceMismatch {
            left: left.to_string(),
            left_device: device.to_string(),
            right: right.to_string(),
            right_device: other.to_string(),
        }),
    }
}

/// Fails unless `view` has exactly this shape.
pub(crate) fn expect_shape(argument: &str, expected: &[usize], found: &[usize]) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::shape(argument, format!("{expected:?}"), found))
}
