//! Calling the CUDA driver for one stream.

use std::sync::Arc;

use cudarc::driver::sys::{CUstream, CUstreamCaptureStatus};
use cudarc::driver::{CudaStream, DriverError, result};

use super::libraries::reason;
use crate::error::{Error, Result};

/// A stream that work is queued on, and the name that errors call its device by.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    pub name: Arc<str>,
    pub stream: Arc<CudaStream>,
}

impl Queue {
    /// Calls the driver with the stream's context current: which one is, is a matter of each thread.
    ///
    /// cudarc's own way to do so also fails with errors kept from earlier calls, among them those of other
    /// parts of the program, so it is not used.
    pub(super) fn attempt<T>(
        &self,
        call: impl FnOnce(CUstream) -> Result<T, DriverError>,
    ) -> Result<T, DriverError> {
        let context = self.stream.context().cu_ctx();
        if result::ctx::get_current()? != Some(context) {
            // SAFETY: the stream keeps its context alive.
            unsafe { result::ctx::set_current(context)? };
        }
        call(self.stream.cu_stream())
    }

    /// The same, with errors that name the device and the call. Errors of work queued earlier also come
    /// out of later calls, and stay: `what` then is the call that found it.
    pub(super) fn call<T>(
        &self,
        what: &str,
        call: impl FnOnce(CUstream) -> Result<T, DriverError>,
    ) -> Result<T> {
        self.attempt(call).map_err(|error| self.error(what, reason(error)))
    }

    /// Whether a graph is being captured on the stream.
    pub(super) fn is_capturing(&self) -> Result<bool> {
        let asked = self.call("asking whether a graph is captured", |stream| {
            // SAFETY: the stream is alive.
            unsafe { result::stream::is_capturing(stream) }
        })?;
        Ok(asked != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// An error if a graph is being captured, for what the driver would take as the capture's end, or make a
    /// part of the graph whose memory nobody then owns.
    pub(super) fn outside_capture(&self, what: &str) -> Result<()> {
        match self.is_capturing()? {
            true => Err(self.error(what, "it is not possible while a graph is captured".into())),
            false => Ok(()),
        }
    }

    pub(super) fn error(&self, call: &str, reason: String) -> Error {
        Error::Device { device: self.name.to_string(), call: call.into(), reason }
    }
}
