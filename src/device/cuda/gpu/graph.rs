//! CUDA graphs of what is queued on a device.

use std::fmt;

use cudarc::driver::result;
use cudarc::driver::sys::{CUgraph, CUgraphExec, CUgraphInstantiate_flags, CUstreamCaptureMode};

use super::queue::Queue;
use crate::device::cuda::CudaDevice;
use crate::error::{Error, Result};

/// Work on a device that was captured into a CUDA graph, to be launched again and again. It keeps the device,
/// and with that the kernels and tables that the graph's launches refer to.
pub struct CudaGraph {
    queue: Queue,
    executable: CUgraphExec,
    device: CudaDevice,
}

// SAFETY: graphs belong to a context, not to a thread, and `launch` takes the graph for itself.
unsafe impl Send for CudaGraph {}
// SAFETY: as above.
unsafe impl Sync for CudaGraph {}

impl CudaGraph {
    /// Queues the work on the device's stream once more.
    ///
    /// # Errors
    /// [`Error::Device`].
    ///
    /// # Safety
    /// All that the captured work reads and writes is still there: its tensors and memory borrowed from
    /// cudarc, its plans and their workspaces.
    pub unsafe fn launch(&mut self) -> Result<()> {
        self.queue.call("launching a graph", |stream| {
            // SAFETY: graph and stream are alive; the caller answers for what the graph uses.
            unsafe { result::graph::launch(self.executable, stream) }
        })
    }

    /// The device whose work it is.
    pub fn device(&self) -> &CudaDevice {
        &self.device
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        // SAFETY: the graph is used by no later call. An error leaves nothing to be done.
        let _ = self.queue.attempt(|_| unsafe { result::graph::exec_destroy(self.executable) });
    }
}

impl fmt::Debug for CudaGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaGraph({})", self.device)
    }
}

/// A capture under way, which a panic ends, too.
struct Capture<'a> {
    queue: &'a Queue,
    ended: bool,
}

impl Capture<'_> {
    fn end(&mut self) -> Result<Captured> {
        self.ended = true;
        self.queue.call("ending the capture of a graph", |stream| {
            // SAFETY: the stream is alive.
            unsafe { result::stream::end_capture(stream) }.map(Captured)
        })
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.end();
        }
    }
}

/// A graph that is not instantiated; null when the driver gave none.
struct Captured(CUgraph);

impl Drop for Captured {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the graph is used by no later call. An error leaves nothing to be done.
            let _ = unsafe { result::graph::destroy(self.0) };
        }
    }
}

/// What `work` queues on the device, as a graph.
///
/// # Errors
/// As [`CudaDevice::capture`].
pub(in crate::device::cuda) fn capture(
    device: &CudaDevice,
    work: impl FnOnce() -> Result<()>,
) -> Result<CudaGraph> {
    let Some(runtime) = device.runtime() else {
        return Err(Error::invalid("device", device, "graphs are of CUDA devices"));
    };
    // The null stream has this number, too.
    const LEGACY: usize = 1;
    if runtime.stream().cu_stream() as usize <= LEGACY {
        return Err(Error::invalid(
            "device",
            device,
            "its stream is the legacy default stream, which cannot be captured: open the device by \
             Device::cuda_on_new_stream or Device::on_stream",
        ));
    }
    let queue = runtime.queue();
    let what = "capturing a graph";
    queue.outside_capture(what)?;
    queue.call(what, |stream| {
        // Other threads may go on calling the driver as they like.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive.
        unsafe { result::stream::begin_capture(stream, mode) }
    })?;
    let mut capture = Capture { queue, ended: false };
    let done = work();
    let graph = capture.end();
    done?;
    let graph = graph?;
    if graph.0.is_null() {
        return Err(queue.error(what, "the driver gave no graph".into()));
    }
    let executable = queue.call("making a graph ready", |_| {
        // SAFETY: the graph is alive.
        unsafe { result::graph::instantiate(graph.0, CUgraphInstantiate_flags(0)) }
    })?;
    Ok(CudaGraph { queue: queue.clone(), executable, device: device.clone() })
}
