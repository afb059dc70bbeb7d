//! Memory of a device.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use bytemuck::Pod;

use super::CudaDevice;
use crate::error::{Error, Result};
use crate::memory::try_zeroed;

/// Owned elements on a device.
pub(crate) struct DeviceBuffer<T> {
    device: CudaDevice,
    /// 0 when there are no elements.
    address: u64,
    len: usize,
    elements: PhantomData<T>,
}

impl<T: Pod> DeviceBuffer<T> {
    /// Elements of any value.
    ///
    /// # Errors
    /// [`Error::Allocation`], which says how much memory is free.
    pub(crate) fn new(device: &CudaDevice, what: &str, len: usize) -> Result<Self> {
        let mut buffer =
            DeviceBuffer { device: device.clone(), address: 0, len: 0, elements: PhantomData };
        if len > 0 {
            let bytes = len.checked_mul(size_of::<T>()).ok_or_else(|| Error::TooLarge {
                what: what.into(),
                value: format!("{len} x {}", size_of::<T>()),
                limit: u64::MAX,
            })?;
            let found = device.driver().allocate(bytes)?;
            let Some(address) = found else { return Err(exhausted(device, what, bytes)) };
            (buffer.address, buffer.len) = (address, len);
        }
        Ok(buffer)
    }

    /// Elements whose bytes are zero.
    pub(crate) fn zeros(device: &CudaDevice, what: &str, len: usize) -> Result<Self> {
        let buffer = Self::new(device, what, len)?;
        if len > 0 {
            // SAFETY: the range is the buffer just made.
            unsafe { device.driver().clear(buffer.address, buffer.bytes())? };
        }
        Ok(buffer)
    }

    /// A copy of the host's elements.
    pub(crate) fn from_slice(device: &CudaDevice, what: &str, data: &[T]) -> Result<Self> {
        let mut buffer = Self::new(device, what, data.len())?;
        buffer.view_mut().write(data)?;
        Ok(buffer)
    }

    /// A copy on the same device.
    pub(crate) fn try_clone(&self) -> Result<Self> {
        self.view().to_buffer("a copy of a tensor")
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    pub(crate) fn device(&self) -> &CudaDevice {
        &self.device
    }

    pub(crate) fn view(&self) -> DeviceSlice<'_, T> {
        DeviceSlice {
            device: self.device.clone(),
            address: self.address,
            len: self.len,
            lease: None,
            elements: PhantomData,
        }
    }

    pub(crate) fn view_mut(&mut self) -> DeviceSliceMut<'_, T> {
        DeviceSliceMut { whole: self.view(), elements: PhantomData }
    }

    /// Copies the elements to the host.
    pub(crate) fn to_vec(&self) -> Result<Vec<T>> {
        self.view().to_vec()
    }

    /// Gives the memory away: whoever takes the address frees it.
    pub(crate) fn into_address(self) -> (u64, usize) {
        let buffer = std::mem::ManuallyDrop::new(self);
        // SAFETY: the buffer is not dropped, so its handle is moved out once.
        drop(unsafe { std::ptr::read(&buffer.device) });
        (buffer.address, buffer.len)
    }
}

fn exhausted(device: &CudaDevice, what: &str, bytes: usize) -> Error {
    let what = match device.driver().memory() {
        Ok((free, total)) => format!("{what} on {device} ({free} of {total} bytes are free)"),
        Err(_) => format!("{what} on {device}"),
    };
    Error::Allocation { what, bytes: bytes as u64 }
}

impl<T> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the buffer owns this allocation, and nothing borrows it any more.
            unsafe { self.device.driver().free(self.address, self.len * size_of::<T>()) }
        }
    }
}

impl<T> fmt::Debug for DeviceBuffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} elements on {} at {:#x}", self.len, self.device, self.address)
    }
}

/// What has to live as long as memory of a caller's is borrowed.
pub(crate) trait Lease: Send + Sync {}

/// Borrowed elements on a device.
pub(crate) struct DeviceSlice<'a, T> {
    device: CudaDevice,
    address: u64,
    len: usize,
    lease: Option<Arc<dyn Lease + 'a>>,
    elements: PhantomData<&'a [T]>,
}

impl<T> Clone for DeviceSlice<'_, T> {
    fn clone(&self) -> Self {
        DeviceSlice { device: self.device.clone(), lease: self.lease.clone(), ..*self }
    }
}

impl<'a, T: Pod> DeviceSlice<'a, T> {
    /// Memory that the crate did not allocate.
    ///
    /// # Safety
    /// `address` is memory of this device for `len` elements, for as long as the lease lives.
    #[cfg(feature = "cuda")]
    pub(crate) unsafe fn from_raw(
        device: &CudaDevice,
        address: u64,
        len: usize,
        lease: Arc<dyn Lease + 'a>,
    ) -> Self {
        let (device, lease) = (device.clone(), Some(lease));
        DeviceSlice { device, address, len, lease, elements: PhantomData }
    }

    pub(crate) fn device(&self) -> &CudaDevice {
        &self.device
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Some of the elements.
    pub(crate) fn slice(&self, range: std::ops::Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len);
        let address = self.address + (range.start * size_of::<T>()) as u64;
        DeviceSlice { address, len: range.len(), ..self.clone() }
    }

    /// Copies the elements to the host, after the work queued so far.
    pub(crate) fn to_vec(&self) -> Result<Vec<T>> {
        let mut data: Vec<T> = try_zeroed("a tensor's elements on the host", self.len)?;
        self.read(&mut data)?;
        Ok(data)
    }

    /// Copies the elements to the host; `target` has as many.
    pub(crate) fn read(&self, target: &mut [T]) -> Result<()> {
        assert_eq!(self.len, target.len());
        if self.len == 0 {
            return Ok(());
        }
        // SAFETY: the range is borrowed from its owner.
        unsafe { self.device.driver().download(self.address, bytemuck::cast_slice_mut(target)) }
    }

    /// Copies the elements on the device.
    pub(crate) fn to_buffer(&self, what: &str) -> Result<DeviceBuffer<T>> {
        let mut buffer = DeviceBuffer::new(&self.device, what, self.len)?;
        buffer.view_mut().copy_from(self)?;
        Ok(buffer)
    }
}

impl<T> fmt::Debug for DeviceSlice<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} elements on {} at {:#x}", self.len, self.device, self.address)
    }
}

/// Elements on a device, borrowed for writing.
pub(crate) struct DeviceSliceMut<'a, T> {
    whole: DeviceSlice<'a, T>,
    elements: PhantomData<&'a mut [T]>,
}

impl<'a, T: Pod> DeviceSliceMut<'a, T> {
    /// Memory that the crate did not allocate.
    ///
    /// # Safety
    /// As [`DeviceSlice::from_raw`], and nobody else uses the memory meanwhile.
    #[cfg(feature = "cuda")]
    pub(crate) unsafe fn from_raw(
        device: &CudaDevice,
        address: u64,
        len: usize,
        lease: Arc<dyn Lease + 'a>,
    ) -> Self {
        // SAFETY: passed on to the caller.
        let whole = unsafe { DeviceSlice::from_raw(device, address, len, lease) };
        DeviceSliceMut { whole, elements: PhantomData }
    }

    pub(crate) fn device(&self) -> &CudaDevice {
        &self.whole.device
    }

    pub(crate) fn address(&self) -> u64 {
        self.whole.address
    }

    pub(crate) fn len(&self) -> usize {
        self.whole.len
    }

    /// Some of the elements.
    pub(crate) fn slice(self, range: std::ops::Range<usize>) -> Self {
        DeviceSliceMut { whole: self.whole.slice(range), elements: PhantomData }
    }

    /// The elements before this one, to be read, and those from it on.
    pub(crate) fn split(self, at: usize) -> (DeviceSlice<'a, T>, Self) {
        let (head, tail) = (self.whole.slice(0..at), self.whole.slice(at..self.whole.len));
        (head, DeviceSliceMut { whole: tail, elements: PhantomData })
    }

    /// Sets the bytes of all elements to zero.
    pub(crate) fn clear(&mut self) -> Result<()> {
        if self.len() == 0 {
            return Ok(());
        }
        let bytes = self.len() * size_of::<T>();
        // SAFETY: the range is borrowed from its owner for writing.
        unsafe { self.device().driver().clear(self.address(), bytes) }
    }

    /// The same elements, borrowed from this slice.
    pub(crate) fn reborrow(&mut self) -> DeviceSliceMut<'_, T> {
        DeviceSliceMut { whole: self.whole.clone(), elements: PhantomData }
    }

    /// The same elements, to be read.
    pub(crate) fn as_slice(&self) -> DeviceSlice<'_, T> {
        self.whole.clone()
    }

    /// Overwrites all elements with others of the same device; `source` has as many.
    pub(crate) fn copy_from(&mut self, source: &DeviceSlice<'_, T>) -> Result<()> {
        assert_eq!(self.len(), source.len);
        if self.len() == 0 {
            return Ok(());
        }
        let bytes = self.len() * size_of::<T>();
        // SAFETY: both ranges are borrowed from their owners, this one for writing.
        unsafe { self.device().driver().copy(source.address, self.address(), bytes) }
    }

    /// Overwrites all elements with the host's; `source` has as many.
    pub(crate) fn write(&mut self, source: &[T]) -> Result<()> {
        assert_eq!(self.len(), source.len());
        if self.len() == 0 {
            return Ok(());
        }
        // SAFETY: the range is borrowed from its owner for writing.
        unsafe { self.device().driver().upload(bytemuck::cast_slice(source), self.address()) }
    }

    /// The same memory as bytes.
    pub(crate) fn into_bytes(self) -> DeviceSliceMut<'a, u8> {
        let DeviceSlice { device, address, len, lease, .. } = self.whole;
        let len = len * size_of::<T>();
        let whole = DeviceSlice { device, address, len, lease, elements: PhantomData };
        DeviceSliceMut { whole, elements: PhantomData }
    }
}

impl<T> fmt::Debug for DeviceSliceMut<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.whole.fmt(f)
    }
}
