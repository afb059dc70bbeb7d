//! Graphs of what is queued on a device.

use std::fmt;

use super::CudaDevice;
use super::driver::Graph;
use crate::error::Result;

/// Work on a device that was captured into a graph, to be launched again and again: see
/// [`CudaDevice::capture`]. It keeps the device, and with that the kernels and tables that the graph's launches
/// refer to.
pub struct CudaGraph {
    /// Before the device, which it is a part of.
    graph: Box<dyn Graph>,
    device: CudaDevice,
}

impl CudaGraph {
    /// Queues the work on the device's stream once more.
    ///
    /// # Errors
    /// [`crate::Error::Device`].
    ///
    /// # Safety
    /// All that the captured work reads and writes is still there: its tensors and memory borrowed from
    /// cudarc, its plans and their workspaces.
    pub unsafe fn launch(&mut self) -> Result<()> {
        // SAFETY: passed on to the caller.
        unsafe { self.graph.launch() }
    }

    /// The device whose work it is.
    pub fn device(&self) -> &CudaDevice {
        &self.device
    }
}

impl fmt::Debug for CudaGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaGraph({})", self.device)
    }
}

/// What `work` queues on the device, as a graph.
///
/// # Errors
/// As [`CudaDevice::capture`].
pub(super) fn capture(device: &CudaDevice, work: impl FnOnce() -> Result<()>) -> Result<CudaGraph> {
    let driver = device.driver();
    driver.begin_capture()?;
    // A panic ends the capture, too.
    struct Ended<'a>(Option<&'a CudaDevice>);
    impl Drop for Ended<'_> {
        fn drop(&mut self) {
            if let Some(device) = self.0 {
                drop(device.driver().end_capture());
            }
        }
    }
    let mut ended = Ended(Some(device));
    let done = work();
    ended.0 = None;
    let graph = driver.end_capture();
    done?;
    Ok(CudaGraph { graph: graph?, device: device.clone() })
}
