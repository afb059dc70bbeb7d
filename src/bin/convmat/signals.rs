//! Signals that end the program, such as Ctrl-C: it leaves no file, and says by its exit status which
//! signal it was.

use std::io;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

/// From now on, an interrupted program ends as shells expect it: with status 128 plus the number of the
/// signal, which is 130 for Ctrl-C.
pub fn handle() -> io::Result<()> {
    let signals = [SIGHUP, SIGINT, SIGTERM].into_iter().filter(|&signal| !is_ignored(signal));
    let mut signals = Signals::new(signals)?;
    let wait = move || {
        if let Some(signal) = signals.forever().next() {
            // Kept until the end: no other thread can begin or complete a file.
            let _writes = convmat::io::abandon_writes();
            // At once: other threads still compute, and need what an orderly exit would take away.
            low_level::exit(128 + signal);
        }
    };
    thread::Builder::new().name("signals".into()).spawn(wait)?;
    Ok(())
}

/// Whether whoever started the program told it to ignore this signal, as `nohup` does for SIGHUP.
fn is_ignored(signal: i32) -> bool {
    // SAFETY: sigaction is plain data, for which zeros are valid; the call only writes what the signal
    // does at present to it, and changes nothing when it is given no new action.
    unsafe {
        let mut present: libc::sigaction = std::mem::zeroed();
        let known = libc::sigaction(signal, std::ptr::null(), &mut present) == 0;
        known && present.sa_sigaction == libc::SIG_IGN
    }
}
