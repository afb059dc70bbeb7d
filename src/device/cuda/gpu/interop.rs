//! Memory of cudarc's: borrowing a caller's, handing over ours.

use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut, DeviceSlice, SyncOnDrop};

use super::libraries::reason;
use super::queue::Queue;
use super::runtime::Runtime;
use crate::device::cuda::driver::Driver;
use crate::error::{Error, Result};

/// Elements of a caller's. Our stream waits for what other streams have done to them; when this is
/// dropped, other streams' work on them waits for what was queued on ours meanwhile.
pub(crate) struct Borrowed<'a> {
    pub address: u64,
    pub len: usize,
    guard: SyncOnDrop<'a>,
    queue: &'a Queue,
    /// Whether the caller's context orders streams by events. Ours may be another handle of the same
    /// context, which does not know.
    tracked: bool,
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        if let SyncOnDrop::Record(target) = &mut self.guard
            && let Some((event, stream)) = target.take()
            && self.tracked
            // What a capture records has not run: nobody could wait for the event.
            && !self.queue.is_capturing().unwrap_or(false)
        {
            stream.context().record_err(event.record(stream));
        }
    }
}

/// Borrows memory that will be read: a `CudaSlice` or a view of one.
///
/// # Errors
/// [`Error::DeviceMismatch`] when it is of another context, [`Error::Device`].
pub(crate) fn borrow<'a, T>(
    runtime: &'a Runtime,
    slice: &'a impl DevicePtr<T>,
) -> Result<Borrowed<'a>> {
    let tracked = check(runtime, slice)?;
    let (len, queue) = (slice.len(), runtime.queue());
    watching(runtime, || {
        let (address, guard) = slice.device_ptr(runtime.stream());
        Borrowed { address, len, guard, queue, tracked }
    })
}

/// Borrows memory that will be written.
///
/// # Errors
/// As [`borrow`].
pub(crate) fn borrow_mut<'a, T>(
    runtime: &'a Runtime,
    slice: &'a mut impl DevicePtrMut<T>,
) -> Result<Borrowed<'a>> {
    let tracked = check(runtime, slice)?;
    let (len, queue) = (slice.len(), runtime.queue());
    watching(runtime, || {
        let (address, guard) = slice.device_ptr_mut(runtime.stream());
        Borrowed { address, len, guard, queue, tracked }
    })
}

fn check<T>(runtime: &Runtime, slice: &impl DeviceSlice<T>) -> Result<bool> {
    let (theirs, ours) = (slice.stream().context(), runtime.stream().context());
    if theirs != ours {
        return Err(Error::DeviceMismatch {
            left: "the slice".into(),
            left_device: format!("cuda:{} in another context", theirs.ordinal()),
            right: "the device".into(),
            right_device: runtime.name(),
        });
    }
    let tracked = theirs.is_managing_stream_synchronization();
    if tracked && runtime.queue().is_capturing()? {
        let reason = "while a graph is captured, cudarc's events cannot be waited for: borrow memory before, \
                      or disable the context's event tracking";
        return Err(runtime.queue().error("borrowing memory", reason.into()));
    }
    Ok(tracked)
}

/// Does what cudarc has no error for. It keeps the error of a wait that failed for the context's next call,
/// and so does whatever else uses the context: what was kept before is put back.
fn watching<R>(runtime: &Runtime, work: impl FnOnce() -> R) -> Result<R> {
    let context = runtime.stream().context();
    let kept = context.check_err();
    let done = work();
    let failed = context.check_err();
    context.record_err(kept);
    match failed {
        Ok(()) => Ok(done),
        Err(error) => Err(runtime.queue().error("borrowing memory", reason(error))),
    }
}

/// Hands over memory of ours: the slice frees it, on our stream.
///
/// # Errors
/// [`Error::Device`]; the memory is still ours then.
///
/// # Safety
/// `address` is from `allocate` of this runtime (also when `len` is 0), has room for `len` elements, and
/// is neither used nor freed by anybody else.
pub(crate) unsafe fn hand_over<T>(
    runtime: &Runtime,
    address: u64,
    len: usize,
) -> Result<CudaSlice<T>> {
    let stream = runtime.stream();
    let context = stream.context();
    runtime.queue().outside_capture("handing over memory")?;
    // What others' calls left there would come out of the next two.
    let kept = context.check_err();
    // Making the slice's two events would panic where this fails.
    let made = runtime.queue().call("handing over memory", |_| {
        let _events = (context.new_event(None)?, context.new_event(None)?);
        Ok(())
    });
    // SAFETY: passed on to the caller; freeing on this stream is what `allocate` takes.
    let slice = made.map(|()| unsafe { stream.upgrade_device_ptr::<T>(address, len) });
    context.record_err(kept);
    let mut slice = slice?;
    // Other streams' work on the slice waits for ours, which wrote it.
    drop(borrow_mut(runtime, &mut slice)?);
    Ok(slice)
}
