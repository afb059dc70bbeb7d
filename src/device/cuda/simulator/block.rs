//! Runs one block of a kernel on the calling thread, and turns the signals of its mistakes into errors.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr;
use std::sync::{Once, OnceLock};

use super::memory::Place;
use crate::device::cuda::profile::record::{COUNTS, Record, Recording};

/// Mirrors `Launch` in `kernels/simulator/scheduler.h`.
#[repr(C)]
pub(super) struct Launch {
    arguments: *const c_void,
    seed: u64,
    workspace: *mut c_void,
    workspace_bytes: u64,
    fault: Option<unsafe extern "C" fn(*mut Launch, c_int, u64)>,
    fault_address: u64,
    grid: [u32; 3],
    block: [u32; 3],
    threads: u32,
    fault_signal: c_int,
    message: [c_char; 1024],
    records: *mut Record,
    record_count: u64,
    record_capacity: u64,
    spill: Option<unsafe extern "C" fn(*mut Launch)>,
    memory_start: u64,
    memory_end: u64,
    counts: [u64; COUNTS],
    shared_bytes: u64,
    recorder: *mut c_void,
    allocations: *const Place,
    allocation_count: u32,
    clock: u32,
    begun: u32,
    arrivals: *mut Arrival,
    arrival_count: u32,
    arrival_capacity: u32,
    most_shared_bytes: u32,
}

/// An entry made by `KERNEL` in `kernels/simulator/simulator.h`: whether the block ran to its end.
pub(super) type RunBlock = unsafe extern "C" fn(*mut Launch) -> u32;

pub(super) enum Outcome {
    Done,
    Failed(String),
    /// Why it failed, and the address that was accessed.
    BadAccess(String, u64),
}

impl Launch {
    pub(super) fn new(
        arguments: *const c_void,
        grid: [u32; 3],
        block: [u32; 3],
        threads: u32,
        most_shared_bytes: u32,
        seed: u64,
    ) -> Launch {
        Launch {
            arguments,
            seed,
            workspace: ptr::null_mut(),
            workspace_bytes: 0,
            fault: None,
            fault_address: 0,
            grid,
            block,
            threads,
            fault_signal: 0,
            message: [0; 1024],
            records: ptr::null_mut(),
            record_count: 0,
            record_capacity: 0,
            spill: None,
            memory_start: 0,
            memory_end: 0,
            counts: [0; COUNTS],
            shared_bytes: 0,
            recorder: ptr::null_mut(),
            allocations: ptr::null(),
            allocation_count: 0,
            clock: 0,
            begun: 0,
            arrivals: ptr::null_mut(),
            arrival_count: 0,
            arrival_capacity: 0,
            most_shared_bytes,
        }
    }
}

/// Records that are handed over at a time.
const TOGETHER: usize = 1 << 15;

/// Takes what a block has written down so far.
unsafe extern "C" fn spill(launch: *mut Launch) {
    // SAFETY: the launch is alive, and its recorder is the vector that run_recorded() gave it; the records
    // are as many as it says.
    unsafe {
        let records = &mut *(*launch).recorder.cast::<Vec<Record>>();
        let count = (*launch).record_count as usize;
        records.extend_from_slice(std::slice::from_raw_parts((*launch).records, count));
        (*launch).record_count = 0;
    }
}

/// [`run`] of a kernel that was compiled to write down what it does to device memory, which lies in this
/// range. Also gives the bytes of its shared arrays.
///
/// # Safety
/// As for [`run`].
pub(super) unsafe fn run_recorded(
    run: RunBlock,
    mut launch: Launch,
    memory: Range<u64>,
) -> (Outcome, Recording, u64) {
    let mut recording = Recording::default();
    let mut buffer = Vec::<Record>::with_capacity(TOGETHER);
    launch.records = buffer.as_mut_ptr();
    launch.record_capacity = TOGETHER as u64;
    launch.spill = Some(spill);
    (launch.memory_start, launch.memory_end) = (memory.start, memory.end);
    launch.recorder = (&raw mut recording.records).cast();
    // SAFETY: the caller's promise.
    let outcome = unsafe { run_launch(run, &mut launch) };
    // SAFETY: buffer and recorder are still alive.
    unsafe { spill(&raw mut launch) };
    recording.counts = launch.counts;
    (outcome, recording, launch.shared_bytes)
}

/// Scheduler state, shared arrays and the stacks of 1024 threads, each behind a guard: the addresses are
/// taken, but memory only for what is touched. scheduler.h checks that it is enough.
const WORKSPACE_BYTES: usize = 272 << 20;

struct Workspace(*mut c_void);

impl Workspace {
    fn new() -> Option<Workspace> {
        // SAFETY: a new mapping, placed by the system.
        let at = unsafe {
            libc::mmap(
                ptr::null_mut(),
                WORKSPACE_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        (at != libc::MAP_FAILED).then_some(Workspace(at))
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no block runs in this thread any more.
        unsafe { libc::munmap(self.0, WORKSPACE_BYTES) };
    }
}

thread_local! {
    static WORKSPACE: Option<Workspace> = Workspace::new();
    /// The launch whose block this thread is running.
    static RUNNING: Cell<*mut Launch> = const { Cell::new(ptr::null_mut()) };
}

/// # Safety
/// `run` is a kernel's entry and the launch has its arguments, as for [`super::Kernel::launch`].
pub(super) unsafe fn run(run: RunBlock, mut launch: Launch) -> Outcome {
    // SAFETY: the caller's promise.
    unsafe { run_launch(run, &mut launch) }
}

/// A block that has arrived at a counter. Mirrors `Arrival` in `kernels/simulator/profile.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    counter: u64,
    begun: u32,
    arrived: u32,
}

/// Arrivals of a block, at most.
const MOST_ARRIVALS: usize = 4;

/// Time as the sanitizer has it: it goes on at each barrier.
#[derive(Debug)]
pub(super) struct Clock {
    pub now: u32,
    /// When the launch began.
    pub begun: u32,
    /// Of its blocks so far.
    pub arrivals: Vec<Arrival>,
}

/// [`run`] of a kernel that was compiled for the sanitizer, alone on the device; the allocations are all there
/// are.
///
/// # Safety
/// As for [`run`].
pub(super) unsafe fn run_watched(
    run: RunBlock,
    mut launch: Launch,
    allocations: &[Place],
    clock: &mut Clock,
) -> Outcome {
    (launch.allocations, launch.allocation_count) =
        (allocations.as_ptr(), allocations.len() as u32);
    (launch.clock, launch.begun) = (clock.now, clock.begun);
    clock.arrivals.reserve(MOST_ARRIVALS);
    launch.arrivals = clock.arrivals.as_mut_ptr();
    launch.arrival_count = clock.arrivals.len() as u32;
    launch.arrival_capacity = launch.arrival_count + MOST_ARRIVALS as u32;
    // SAFETY: the caller's promise.
    let outcome = unsafe { run_launch(run, &mut launch) };
    // SAFETY: there was room for so many, and these were written.
    unsafe { clock.arrivals.set_len(launch.arrival_count as usize) };
    clock.now = launch.clock;
    outcome
}

/// # Safety
/// As for [`run`].
unsafe fn run_launch(run: RunBlock, launch: &mut Launch) -> Outcome {
    let Some(workspace) = WORKSPACE.with(|own| own.as_ref().map(|own| own.0)) else {
        return Outcome::Failed(format!("no address space for {WORKSPACE_BYTES} bytes of stacks"));
    };
    launch.workspace = workspace;
    launch.workspace_bytes = WORKSPACE_BYTES as u64;
    let at: *mut Launch = launch;
    RUNNING.set(at);
    // SAFETY: the caller's promise; the workspace belongs to this thread, which runs one block at a time.
    let done = unsafe { run(at) } != 0;
    RUNNING.set(ptr::null_mut());
    if done {
        return Outcome::Done;
    }
    // SAFETY: the message is ended by a zero: the scheduler writes it with snprintf.
    let reason = unsafe { CStr::from_ptr((&raw const (*at).message).cast()) };
    let reason = reason.to_string_lossy().into_owned();
    // SAFETY: the block has ended, and with it all other use of the launch.
    let (signal, address) = unsafe { ((*at).fault_signal, (*at).fault_address) };
    match signal {
        libc::SIGSEGV | libc::SIGBUS => Outcome::BadAccess(reason, address),
        _ => Outcome::Failed(reason),
    }
}

/// What kernels can raise by reading, writing, dividing, and by traps for undefined behaviour.
const SIGNALS: [c_int; 5] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP];

/// What was to happen before, by position in [`SIGNALS`].
static PREVIOUS: OnceLock<[libc::sigaction; SIGNALS.len()]> = OnceLock::new();

/// Makes the signals of a block an error of the block; all others go where they went before.
pub(super) fn catch_faults() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        PREVIOUS.get_or_init(|| {
            SIGNALS.map(|signal| {
                let mut previous = MaybeUninit::<libc::sigaction>::zeroed();
                // SAFETY: only asks; all zeros is a valid sigaction.
                unsafe {
                    libc::sigaction(signal, ptr::null(), previous.as_mut_ptr());
                    previous.assume_init()
                }
            })
        });
        for signal in SIGNALS {
            // SAFETY: all zeros is a valid sigaction, and on_signal has the signature that SA_SIGINFO
            // asks for. SA_NODEFER: a block is left without returning from the handler, and the signal
            // must not stay blocked.
            unsafe {
                let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
                let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_signal;
                action.sa_sigaction = handler as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
                libc::sigemptyset(&raw mut action.sa_mask);
                libc::sigaction(signal, &action, ptr::null_mut());
            }
        }
    });
}

extern "C" fn on_signal(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let launch = RUNNING.get();
    // SAFETY: while it is set, the launch is alive and read by this thread alone. `fault` is set while a
    // kernel thread runs; it goes on in run() above, and leaves behind this frame, which owns nothing.
    unsafe {
        if !launch.is_null()
            && let Some(fault) = ptr::read_volatile(&raw const (*launch).fault)
        {
            fault(launch, signal, (*info).si_addr() as u64);
        }
    }
    let previous = PREVIOUS.get().zip(SIGNALS.iter().position(|&known| known == signal));
    let Some((previous, at)) = previous else { return };
    let action = previous[at];
    // SAFETY: hands over as the system would have. The default action is put back and strikes when the
    // instruction is repeated.
    unsafe {
        match action.sa_sigaction {
            libc::SIG_DFL | libc::SIG_IGN => {
                libc::sigaction(signal, &action, ptr::null_mut());
            }
            handler if action.sa_flags & libc::SA_SIGINFO != 0 => {
                let handler = std::mem::transmute::<
                    usize,
                    extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void),
                >(handler);
                handler(signal, info, context);
            }
            handler => {
                std::mem::transmute::<usize, extern "C" fn(c_int)>(handler)(signal);
            }
        }
    }
}
