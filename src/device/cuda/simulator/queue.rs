//! What streams have to do: done at once, or, where the sanitizer looks for what lives too short, no earlier
//! than somebody waits for it.

use std::collections::VecDeque;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::launch::{Launched, Loaded};
use super::{Shared, blas, failure};
use crate::device::cuda::driver::Graph;
use crate::device::cuda::gemm::Gemm;
use crate::device::cuda::profile::mix;
use crate::error::{Error, Result};

/// Work that waits on a stream is done when it has become so much.
const MOST_QUEUED: usize = 1 << 12;

/// A step of a stream.
#[derive(Clone, Debug)]
pub(super) enum Work {
    Launch(Arc<Loaded>, Arc<Launched>),
    Upload { from: Arc<[u8]>, to: u64 },
    Copy { from: u64, to: u64, bytes: usize },
    Clear { address: u64, bytes: usize },
    Gemm(Gemm),
    Free { address: u64, bytes: usize },
}

/// All streams of a simulated GPU.
#[derive(Debug, Default)]
pub(super) struct Queues {
    by_stream: Vec<VecDeque<Work>>,
    /// How often a stream was drawn.
    drawn: u64,
}

impl Queues {
    /// A stream that has work, if any has: which one is drawn from the seed.
    fn draw(&mut self, seed: u64) -> Option<usize> {
        let waiting: Vec<usize> =
            (0..self.by_stream.len()).filter(|&at| !self.by_stream[at].is_empty()).collect();
        self.drawn += 1;
        let drawn = mix(seed ^ mix(self.drawn)) % waiting.len().max(1) as u64;
        waiting.get(drawn as usize).copied()
    }
}

/// A stream of a simulated GPU.
#[derive(Debug)]
pub(super) struct Stream {
    pub shared: Arc<Shared>,
    at: usize,
    capture: Capture,
}

/// A capture of a stream into a graph: launches, copies and clearings are recorded; what waits, allocates,
/// compiles or reads cannot be.
#[derive(Debug, Default)]
struct Capture {
    active: AtomicBool,
    recorded: Mutex<Vec<Work>>,
    /// The first call that could not return an error of its own.
    refused: Mutex<Option<Error>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let mut queues = lock(&shared.queues);
        queues.by_stream.push(VecDeque::new());
        let at = queues.by_stream.len() - 1;
        drop(queues);
        Stream { shared, at, capture: Capture::default() }
    }

    /// # Errors
    /// While a graph is captured.
    pub(super) fn outside_capture(&self, call: &str) -> Result<()> {
        match self.capture.active.load(Ordering::Relaxed) {
            true => Err(failure(call, "it is not possible while a graph is captured")),
            false => Ok(()),
        }
    }

    /// Keeps an error of a call that returns none: [`Stream::end_capture`] does.
    pub(super) fn refuse(&self, error: Error) {
        lock(&self.capture.refused).get_or_insert(error);
    }

    /// Queues work, or records it.
    ///
    /// # Errors
    /// Of this work or of earlier work, if it was done.
    pub(super) fn queue(&self, work: Work) -> Result<()> {
        if self.capture.active.load(Ordering::Relaxed) {
            lock(&self.capture.recorded).push(work);
            return Ok(());
        }
        if !self.shared.sanitizes {
            return self.shared.perform(&work);
        }
        let mut queues = lock(&self.shared.queues);
        queues.by_stream[self.at].push_back(work);
        match queues.by_stream[self.at].len() > MOST_QUEUED {
            true => self.finish_locked(&mut queues),
            false => Ok(()),
        }
    }

    /// Does what was queued on this stream, and some of what was queued on others: in any order, but that of
    /// each stream.
    ///
    /// # Errors
    /// The first one. What was queued behind it is not done then, on any stream.
    pub(super) fn finish(&self) -> Result<()> {
        self.finish_locked(&mut lock(&self.shared.queues))
    }

    fn finish_locked(&self, queues: &mut Queues) -> Result<()> {
        while !queues.by_stream[self.at].is_empty() {
            let Some(next) = queues.draw(self.shared.seed) else { break };
            let Some(work) = queues.by_stream[next].pop_front() else { break };
            if let Err(error) = self.shared.perform(&work) {
                let left = queues.by_stream.iter_mut().flat_map(mem::take);
                for work in left.filter(|work| matches!(work, Work::Free { .. })) {
                    // An error has been found already.
                    let _ = self.shared.perform(&work);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    pub(super) fn begin_capture(&self) -> Result<()> {
        self.outside_capture("capturing a graph")?;
        self.capture.active.store(true, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn end_capture(self: &Arc<Self>) -> Result<Recorded> {
        self.capture.active.store(false, Ordering::Relaxed);
        let work = mem::take(&mut *lock(&self.capture.recorded));
        match lock(&self.capture.refused).take() {
            Some(error) => Err(error),
            None => Ok(Recorded { stream: self.clone(), work }),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            log::error!("{error}");
        }
    }
}

/// Work that was captured.
pub(super) struct Recorded {
    stream: Arc<Stream>,
    work: Vec<Work>,
}

impl Graph for Recorded {
    unsafe fn launch(&mut self) -> Result<()> {
        self.stream.outside_capture("launching a graph")?;
        self.work.iter().try_for_each(|work| self.stream.queue(work.clone()))
    }
}

impl Shared {
    /// Does work. Whoever queued it answers for its memory, which is checked all the same.
    fn perform(&self, work: &Work) -> Result<()> {
        let memory = &self.memory;
        match *work {
            Work::Launch(ref kernel, ref launch) => self.launch(kernel, launch),
            Work::Upload { ref from, to } => self.upload(from, to),
            Work::Copy { from, to, bytes } => {
                memory
                    .check(from, bytes)
                    .and_then(|()| memory.check(to, bytes))
                    .map_err(|reason| failure("copy", reason))?;
                // SAFETY: both are live memory of ours; they do not overlap, as was seen when this was
                // queued.
                unsafe {
                    std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes);
                }
                memory.copy_marks(from, to, bytes);
                Ok(())
            }
            Work::Clear { address, bytes } => {
                memory.check(address, bytes).map_err(|reason| failure("clear", reason))?;
                memory.clear(address, bytes);
                memory.mark_written(address, bytes);
                Ok(())
            }
            Work::Gemm(ref gemm) => {
                gemm.calls().try_for_each(|call| blas::multiply(memory, &call?))
            }
            Work::Free { address, bytes } => {
                memory.free(address, bytes).map_err(|reason| failure("free", reason))
            }
        }
    }

    /// Copies from the host.
    pub(super) fn upload(&self, from: &[u8], to: u64) -> Result<()> {
        self.memory.check(to, from.len()).map_err(|reason| failure("upload", reason))?;
        // SAFETY: the target is live memory of ours, and `from` is the host's.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        self.memory.mark_written(to, from.len());
        Ok(())
    }
}
