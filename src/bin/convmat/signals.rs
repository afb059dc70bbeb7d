//! Signals that end the program, such as that of Ctrl-C: the program leaves no unfinished file, and its
//! exit status says which signal it was.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// The exit status after Ctrl-C.
pub const INTERRUPTED: u8 = 130;

/// Whether there is somebody who will look at [`ASKED`] soon.
static DEFERRED: AtomicBool = AtomicBool::new(false);

/// Whether Ctrl-C was pressed while that was so.
static ASKED: AtomicBool = AtomicBool::new(false);

/// While this exists, the first Ctrl-C ends nothing and is only noted: for an iteration that has something
/// to show for its time. The second one ends the program as always.
pub struct Deferred(());

impl Deferred {
    pub fn new() -> Self {
        DEFERRED.store(true, Ordering::SeqCst);
        Deferred(())
    }

    /// Whether Ctrl-C was pressed.
    pub fn is_asked(&self) -> bool {
        ASKED.load(Ordering::SeqCst)
    }
}

impl Drop for Deferred {
    fn drop(&mut self) {
        DEFERRED.store(false, Ordering::SeqCst);
    }
}

/// From now on, a signal ends the program with the status that shells use for it: 128 plus the number
/// of the signal, which makes 130 for Ctrl-C.
#[cfg(unix)]
pub fn handle() -> io::Result<()> {
    use std::thread;

    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;
    use signal_hook::low_level;

    let signals = [SIGHUP, SIGINT, SIGTERM].into_iter().filter(|&signal| !is_ignored(signal));
    let mut signals = Signals::new(signals)?;
    let wait = move || {
        for signal in signals.forever() {
            let deferred = signal == SIGINT && DEFERRED.load(Ordering::SeqCst);
            if deferred && !ASKED.swap(true, Ordering::SeqCst) {
                continue;
            }
            // Kept until the end: no other thread can begin or complete a file.
            let _writes = convmat::io::abandon_writes();
            // This ends the process at once. An orderly exit would first take away what other threads
            // need, which still compute.
            low_level::exit(128 + signal);
        }
    };
    thread::Builder::new().name("signals".into()).spawn(wait)?;
    Ok(())
}

/// Elsewhere the system does what is usual there.
#[cfg(not(unix))]
pub fn handle() -> io::Result<()> {
    Ok(())
}

/// Whether whoever started the program told it to ignore this signal, as `nohup` does for SIGHUP.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    // SAFETY: `sigaction` is plain data, and all zeros are a valid value of it. Without a new action
    // (null) the call changes nothing; it only writes the present action to `present`, which is ours.
    unsafe {
        let mut present: libc::sigaction = std::mem::zeroed();
        let known = libc::sigaction(signal, std::ptr::null(), &mut present) == 0;
        known && present.sa_sigaction == libc::SIG_IGN
    }
}
