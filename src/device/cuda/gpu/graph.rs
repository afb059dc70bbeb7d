//! CUDA graphs of what is queued on a stream.

use cudarc::driver::result;
use cudarc::driver::sys::{CUgraph, CUgraphExec, CUgraphInstantiate_flags, CUstreamCaptureMode};

use super::queue::Queue;
use crate::device::cuda::driver::Graph;
use crate::error::{Error, Result};

/// A CUDA graph, ready to be launched.
struct Executable {
    queue: Queue,
    graph: CUgraphExec,
}

// SAFETY: graphs belong to a context, not to a thread, and `launch` takes the graph for itself.
unsafe impl Send for Executable {}
// SAFETY: as above.
unsafe impl Sync for Executable {}

impl Graph for Executable {
    unsafe fn launch(&mut self) -> Result<()> {
        self.queue.call("launching a graph", |stream| {
            // SAFETY: graph and stream are alive; the caller answers for what the graph uses.
            unsafe { result::graph::launch(self.graph, stream) }
        })
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        // SAFETY: the graph is used by no later call. An error leaves nothing to be done.
        let _ = self.queue.attempt(|_| unsafe { result::graph::exec_destroy(self.graph) });
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

const CAPTURING: &str = "capturing a graph";

/// Begins to capture the queue's stream; `device` is its name.
///
/// # Errors
/// [`Error::Invalid`] for the legacy default stream, [`Error::Device`].
pub(super) fn begin(queue: &Queue, device: String) -> Result<()> {
    // The null stream has this number, too.
    const LEGACY: usize = 1;
    if queue.stream.cu_stream() as usize <= LEGACY {
        return Err(Error::invalid(
            "device",
            device,
            "its stream is the legacy default stream, which cannot be captured: open the device by \
             Device::cuda_on_new_stream or Device::on_stream",
        ));
    }
    queue.outside_capture(CAPTURING)?;
    queue.call(CAPTURING, |stream| {
        // Other threads may go on calling the driver as they like.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive.
        unsafe { result::stream::begin_capture(stream, mode) }
    })
}

/// Ends the capture.
///
/// # Errors
/// [`Error::Device`].
pub(super) fn end(queue: &Queue) -> Result<Box<dyn Graph>> {
    let captured = queue.call("ending the capture of a graph", |stream| {
        // SAFETY: the stream is alive.
        unsafe { result::stream::end_capture(stream) }.map(Captured)
    })?;
    if captured.0.is_null() {
        return Err(queue.error(CAPTURING, "the driver gave no graph".into()));
    }
    let graph = queue.call("making a graph ready", |_| {
        // SAFETY: the graph is alive.
        unsafe { result::graph::instantiate(captured.0, CUgraphInstantiate_flags(0)) }
    })?;
    Ok(Box::new(Executable { queue: queue.clone(), graph }))
}
