//! cudarc in and out: a pipeline's own device memory as tensors, without copies.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};

use super::view::check_length;
use super::{Storage, Tensor, TensorView, TensorViewMut};
use crate::device::Device;
use crate::device::cuda::gpu::interop::{self, Borrowed};
use crate::device::cuda::{CudaDevice, DeviceBuffer, DeviceSlice, DeviceSliceMut, Lease, Runtime};
use crate::element::Element;
use crate::error::{Error, Result};

impl Lease for Borrowed<'_> {}

/// The CUDA runtime of a device, which a simulator has not.
fn runtime(device: &Device) -> Result<(&CudaDevice, &Runtime)> {
    match device {
        Device::Cuda(cuda) => match cuda.runtime() {
            Some(runtime) => Ok((cuda, runtime)),
            None => Err(not_cuda(device)),
        },
        Device::Cpu => Err(not_cuda(device)),
    }
}

fn not_cuda(device: &Device) -> Error {
    Error::invalid("device", device, "memory of cudarc's belongs to CUDA devices")
}

impl<'a, T: Element> TensorView<'a, T> {
    /// Elements of a cudarc slice or view, in row-major order, where they are. The device's stream waits
    /// for what other streams have queued on them; other streams' later work on them waits for what this
    /// crate queues while it is borrowed, wherever the slice's context orders streams by events.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `shape` has another number of elements or `device` is not CUDA,
    /// [`Error::DeviceMismatch`] when the slice is of another context, [`Error::Device`].
    pub fn from_cuda(
        device: &'a Device,
        shape: &[usize],
        slice: &'a impl DevicePtr<T>,
    ) -> Result<Self> {
        let (cuda, runtime) = runtime(device)?;
        let lease = interop::borrow(runtime, slice)?;
        check_length(lease.len, shape)?;
        let (address, len) = (lease.address, lease.len);
        // SAFETY: cudarc vouches for the range as long as it is borrowed, and so does the lease.
        let data = unsafe { DeviceSlice::from_raw(cuda, address, len, Arc::new(lease)) };
        Ok(TensorView::from_device(data, shape.to_vec().into()))
    }
}

impl<'a, T: Element> TensorViewMut<'a, T> {
    /// Elements of a cudarc slice or view, to be written where they are: see [`TensorView::from_cuda`].
    ///
    /// # Errors
    /// As [`TensorView::from_cuda`].
    pub fn from_cuda(
        device: &'a Device,
        shape: &[usize],
        slice: &'a mut impl DevicePtrMut<T>,
    ) -> Result<Self> {
        let (cuda, runtime) = runtime(device)?;
        let lease = interop::borrow_mut(runtime, slice)?;
        check_length(lease.len, shape)?;
        let (address, len) = (lease.address, lease.len);
        // SAFETY: as above, and the slice is borrowed for writing.
        let data = unsafe { DeviceSliceMut::from_raw(cuda, address, len, Arc::new(lease)) };
        Ok(TensorViewMut::from_device(data, shape.to_vec().into()))
    }
}

impl<T: Element> Tensor<T> {
    /// The tensor's memory as a slice of cudarc's, not copied; the shape is dropped. Work that this crate
    /// has queued on it comes before whatever cudarc queues on it.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the tensor is not on a CUDA device, [`Error::Device`].
    pub fn into_cuda(self) -> Result<CudaSlice<T>> {
        let device = self.device();
        let (cuda, runtime) = runtime(&device)?;
        let mut buffer = match self.storage {
            Storage::Cuda(buffer) => buffer,
            Storage::Cpu(_) => return Err(not_cuda(&device)),
        };
        let len = buffer.len();
        if len == 0 {
            // Nothing was allocated, but a slice owns an allocation.
            buffer = DeviceBuffer::new(cuda, "an empty slice", 1)?;
        }
        let (address, elements) = buffer.into_address();
        // SAFETY: the address was this buffer's, which gave it away.
        let slice = unsafe { interop::hand_over(runtime, address, len) };
        if slice.is_err() {
            // SAFETY: it is still ours then, and nobody uses it.
            unsafe { cuda.driver().free(address, elements * size_of::<T>()) };
        }
        slice
    }
}
