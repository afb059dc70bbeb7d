//! Signals that end the program, such as that of Ctrl-C: the program leaves no unfinished file, and its
//! exit status says which signal it was.

use std::io;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

/// From now on, a signal ends the program with the status that shells use for it: 128 plus the number
/// of the signal, which makes 130 for Ctrl-C.
pub fn handle() -> io::Result<()> {
    let signals = [SIGHUP, SIGINT, SIGTERM].into_iter().filter(|&signal| !is_ignored(signal));
    let mut signals = Signals::new(signals)?;
    let wait = move || {
        if let Some(signal) = signals.forever().next() {
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

/// Whether whoever started the program told it to ignore this signal, as `nohup` does for SIGHUP.
fn is_ignored(signal: i32) -> bool {
    // SAFETY: `sigaction` is plain data, and all zeros are a valid value of it. Without a new action
    // (null) the call changes nothing; it only writes the present action to `present`, which is ours.
    unsafe {
        let mut present: libc::sigaction = std::mem::zeroed();
        let known = libc::sigaction(signal, std::ptr::null(), &mut present) == 0;
        known && present.sa_sigaction == libc::SIG_IGN
    }
}
