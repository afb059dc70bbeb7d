//! Memory that runs use besides their operands.

use crate::device::Device;
#[cfg(gpu)]
use crate::device::cuda::{DeviceBuffer, DeviceSliceMut};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::memory::Buffer;
use crate::tensor::TensorViewMut;
use crate::workers::ALIGNMENT;

/// Memory that runs of plans use besides their operands: made once, or a caller's own. One workspace serves
/// any number of plans, one run at a time, if it is as large as the largest of them needs. What it holds
/// between runs means nothing.
#[derive(Debug)]
pub struct Workspace<'a> {
    memory: Memory<'a>,
}

#[derive(Debug)]
enum Memory<'a> {
    /// As 64-byte lines.
    Host(Buffer<[u64; 8]>),
    HostBorrowed(&'a mut [u8]),
    #[cfg(gpu)]
    Cuda(Device, DeviceBuffer<u8>),
    #[cfg(gpu)]
    CudaBorrowed(Device, DeviceSliceMut<'a, u8>),
}

impl Workspace<'static> {
    /// So many bytes on a device.
    ///
    /// # Errors
    /// [`Error::Allocation`] when there is no room for them.
    pub fn new(device: &Device, bytes: u64) -> Result<Self> {
        let len = usize::try_from(bytes)
            .map_err(|_| Error::Allocation { what: "a workspace".into(), bytes })?;
        let memory = match device {
            // A line more, as it may begin in the middle of one.
            Device::Cpu => Memory::Host(Buffer::for_result(len.div_ceil(64) + 1)?),
            #[cfg(gpu)]
            Device::Cuda(cuda) => {
                Memory::Cuda(device.clone(), DeviceBuffer::new(cuda, "a workspace", len)?)
            }
        };
        Ok(Workspace { memory })
    }

    /// None at all, on the CPU or any other device: for plans whose workspace is of 0 bytes.
    pub fn none() -> Self {
        Workspace { memory: Memory::HostBorrowed(&mut []) }
    }
}

impl<'a> Workspace<'a> {
    /// A caller's memory, whatever its elements, on any device. On the CPU up to 63 bytes are lost to
    /// alignment; on CUDA it has to begin at a multiple of 256 bytes.
    ///
    /// # Errors
    /// [`Error::Invalid`] for memory of a CUDA device that begins elsewhere.
    pub fn from_view<T: Element>(view: impl Into<TensorViewMut<'a, T>>) -> Result<Self> {
        let view = view.into();
        let memory = match view.device() {
            Device::Cpu => Memory::HostBorrowed(bytemuck::cast_slice_mut(view.host())),
            #[cfg(gpu)]
            device @ Device::Cuda(_) => {
                let bytes = view.cuda().into_bytes();
                if !bytes.address().is_multiple_of(256) {
                    let address = format!("{:#x}", bytes.address());
                    let reason = "it must begin at a multiple of 256 bytes";
                    return Err(Error::invalid("workspace", address, reason));
                }
                Memory::CudaBorrowed(device, bytes)
            }
        };
        Ok(Workspace { memory })
    }

    /// Its bytes on the host, at least `needed`.
    pub(crate) fn host(&mut self, needed: usize) -> Result<&mut [u8]> {
        let memory: &mut [u8] = match &mut self.memory {
            Memory::Host(buffer) => bytemuck::cast_slice_mut(buffer),
            Memory::HostBorrowed(bytes) => bytes,
            #[cfg(gpu)]
            Memory::Cuda(device, _) | Memory::CudaBorrowed(device, _) => {
                return Err(elsewhere(device, &Device::Cpu));
            }
        };
        if needed == 0 {
            return Ok(&mut []);
        }
        let start = memory.as_ptr().align_offset(ALIGNMENT).min(memory.len());
        let memory = &mut memory[start..];
        if memory.len() < needed { Err(too_small(memory.len(), needed)) } else { Ok(memory) }
    }

    /// Its address on a device, where it has at least `needed` bytes.
    #[cfg(gpu)]
    pub(crate) fn cuda(&mut self, device: &Device, needed: usize) -> Result<u64> {
        if needed == 0 {
            return Ok(0);
        }
        let (own, address, len) = match &mut self.memory {
            Memory::Cuda(own, buffer) => (&*own, buffer.view().address(), buffer.len()),
            Memory::CudaBorrowed(own, slice) => (&*own, slice.address(), slice.len()),
            Memory::HostBorrowed([]) => return Err(too_small(0, needed)),
            Memory::Host(_) | Memory::HostBorrowed(_) => {
                return Err(elsewhere(&Device::Cpu, device));
            }
        };
        if own != device {
            return Err(elsewhere(own, device));
        }
        if len < needed { Err(too_small(len, needed)) } else { Ok(address) }
    }
}

fn too_small(bytes: usize, needed: usize) -> Error {
    Error::invalid("workspace", format!("{bytes} bytes"), format!("the plan needs {needed}"))
}

#[cfg(gpu)]
fn elsewhere(workspace: &Device, plan: &Device) -> Error {
    Error::DeviceMismatch {
        left: "the workspace".into(),
        left_device: workspace.to_string(),
        right: "the plan".into(),
        right_device: plan.to_string(),
    }
}
