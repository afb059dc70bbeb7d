//! Commands that are told to end while they write: the exit status, and no file that was not there
//! before.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use libc::{SIGCONT, SIGHUP, SIGINT, SIGKILL, SIGSTOP, SIGTERM, c_int};
use serde_json::Value;

use super::Folder;
use crate::catalogue::randoms;

/// Writes 8100 · 900 · 9 elements of 4 bytes: enough to be caught while it writes.
const COMMAND: [&str; 6] = ["filter", "--channels", "900", "--kernel", "3x3", "-o"];
const BYTES: u64 = 8100 * 900 * 9 * 4;

/// How a command is started.
struct Start {
    /// If this is 0, the unfinished file has a temporary name; otherwise it needs none (on Linux).
    // See `without_name` in src/io/atomic.rs for the reason.
    umask: libc::mode_t,
    /// What SIGHUP does.
    hangup: libc::sighandler_t,
}

const USUAL: Start = Start { umask: 0o022, hangup: libc::SIG_DFL };
const NAMED: Start = Start { umask: 0, ..USUAL };

fn spawn(folder: &Folder, output: &str, start: &Start) -> Child {
    let &Start { umask, hangup } = start;
    let mut command = folder.command(&[&COMMAND[..], &[output]].concat());
    let prepare = move || {
        // SAFETY: these calls change the new process alone, and take nothing but numbers.
        unsafe {
            libc::umask(umask);
            libc::signal(SIGHUP, hangup);
            // If the tests were started with these ignored, the command would ignore them as well.
            libc::signal(SIGINT, libc::SIG_DFL);
            libc::signal(SIGTERM, libc::SIG_DFL);
        }
        Ok(())
    };
    // SAFETY: `prepare` makes system calls only, which is all that may be done between fork and exec.
    unsafe { command.pre_exec(prepare) };
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn send(child: &Child, signal: c_int) {
    // SAFETY: the call takes two numbers. Nobody has waited for the child yet, so that no other process
    // can have its number.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
}

/// Bytes in the file that the process has open in this folder, with or without a name.
fn written(child: &Child, folder: &Folder) -> Option<u64> {
    let root = folder.path("").canonicalize().unwrap();
    let open = fs::read_dir(format!("/proc/{}/fd", child.id())).ok()?;
    let here = |path: &PathBuf| fs::read_link(path).is_ok_and(|target| target.starts_with(&root));
    let path = open.flatten().map(|entry| entry.path()).find(here)?;
    Some(fs::metadata(path).ok()?.len())
}

/// Halts the process; false if it had ended before.
fn halt(child: &Child) -> bool {
    send(child, SIGSTOP);
    loop {
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        match stat.rsplit_once(')').unwrap().1.trim_start().chars().next() {
            Some('T') => return true,
            Some('Z') => return false,
            _ => thread::yield_now(),
        }
    }
}

/// Starts the command, halts it while it writes, has `look` see what there is, and sends a signal.
fn interrupt(
    folder: &Folder,
    output: &str,
    start: &Start,
    signal: c_int,
    look: impl Fn(),
) -> ExitStatus {
    // Under load, a whole file may be written between two looks.
    for _ in 0..20 {
        let mut child = spawn(folder, output, start);
        while child.try_wait().unwrap().is_none() {
            if written(&child, folder).is_none_or(|bytes| bytes == 0) {
                thread::sleep(Duration::from_micros(200));
                continue;
            }
            if halt(&child) && written(&child, folder).is_some_and(|bytes| bytes < BYTES / 2) {
                look();
                send(&child, signal);
                send(&child, SIGCONT);
                return child.wait().unwrap();
            }
            send(&child, SIGKILL);
            child.wait().unwrap();
        }
        // Too late. The next attempt finds the folder as this one did.
        folder.names().iter().for_each(|name| fs::remove_file(folder.path(name)).unwrap());
        fs::write(folder.path("old.npy"), "old").unwrap();
    }
    panic!("the command was never caught while it wrote {output}");
}

/// A folder with one file.
fn folder() -> Folder {
    let folder = Folder::new();
    fs::write(folder.path("old.npy"), "old").unwrap();
    folder
}

#[test]
fn an_interrupted_command_leaves_nothing() {
    for (signal, status, output, start) in [
        (SIGINT, 130, "new.npy", USUAL),
        (SIGTERM, 143, "old.npy", USUAL),
        (SIGHUP, 129, "new.npz", USUAL),
        (SIGINT, 130, "old.npy", NAMED),
        (SIGTERM, 143, "new.npz", NAMED),
    ] {
        let folder = folder();
        let look = || {
            if start.umask == 0 {
                let names = folder.names();
                assert!(names.iter().any(|name| name.starts_with(".convmat-")), "{names:?}");
            }
        };
        let ended = interrupt(&folder, output, &start, signal, look);
        assert_eq!(ended.code(), Some(status), "{ended:?}, {output}");
        assert_eq!(folder.names(), ["old.npy"], "{output}");
        assert_eq!(fs::read(folder.path("old.npy")).unwrap(), b"old", "{output}");
    }
}

/// Without a name there is nothing to be removed: not even a signal that no program can handle leaves
/// a file.
#[test]
fn a_killed_command_leaves_nothing_where_files_need_no_name() {
    let folder = folder();
    let mut options = fs::File::options();
    if options.write(true).custom_flags(libc::O_TMPFILE).open(folder.path("")).is_err() {
        return eprintln!("skipped: every file in {} has a name", folder.path("").display());
    }
    let look = || assert_eq!(folder.names(), ["old.npy"]);
    let ended = interrupt(&folder, "old.npy", &USUAL, SIGKILL, look);
    assert_eq!(ended.signal(), Some(SIGKILL));
    assert_eq!(folder.names(), ["old.npy"]);
    assert_eq!(fs::read(folder.path("old.npy")).unwrap(), b"old");
}

/// As under `nohup`.
#[test]
fn ignored_signals_stay_ignored() {
    let folder = folder();
    let start = Start { hangup: libc::SIG_IGN, ..USUAL };
    let ended = interrupt(&folder, "old.npy", &start, SIGHUP, || ());
    assert!(ended.success(), "{ended:?}");
    assert_eq!(folder.names(), ["old.npy"]);
    assert_eq!(folder.read::<f32>("old.npy").shape(), [8100, 900, 3, 3]);
}

/// Starts an iteration that would go on for long, sends so many Ctrl-C after `delay`, and returns the exit
/// status with what is printed.
fn interrupt_iteration(folder: &Folder, delay: Duration, times: usize) -> (Option<i32>, String) {
    let command = "spectrum w.npy --input-size 40 --padding 1 --method lanczos --top 64 --json \
                   --tolerance 1e-300 --applications 1000000000 -o s.npz --plot s.svg --device cpu";
    let mut command = folder.command(&command.split_whitespace().collect::<Vec<_>>());
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let prepare = || {
        // SAFETY: the call changes the new process alone, and takes nothing but numbers.
        unsafe { libc::signal(SIGINT, libc::SIG_DFL) };
        Ok(())
    };
    // SAFETY: `prepare` makes a system call only, which is all that may be done between fork and exec.
    unsafe { command.pre_exec(prepare) };
    let child = command.spawn().unwrap();
    thread::sleep(delay);
    for _ in 0..times {
        send(&child, SIGINT);
        // Two that come at once are one.
        thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn an_interrupted_iteration_gives_what_has_converged() {
    let folder = Folder::new();
    folder.write::<f64>("w.npy", &[8, 8, 3, 3], &randoms(576, 1));
    // Before its first step, an iteration has nothing to give, and ends as other commands do.
    let delays = (0..12).map(|i| Duration::from_millis(100 << i));
    let object = delays
        .filter_map(|delay| {
            let (status, text) = interrupt_iteration(&folder, delay, 1);
            assert_eq!(status, Some(130), "{text}");
            assert_eq!(folder.names().contains(&"s.npz".into()), !text.is_empty());
            (!text.is_empty()).then(|| serde_json::from_str::<Value>(&text).unwrap())
        })
        .next()
        .expect("an iteration that is under way");
    assert_eq!((&object["converged"], &object["interrupted"]), (&false.into(), &true.into()));
    let values = object["values"].as_array().unwrap().len();
    assert!(values < 64 && object["residuals"].as_array().unwrap().len() == values, "{object}");
    assert!(object["norm"]["lower"].as_f64().unwrap() > 0.0, "{object}");
    assert_eq!(folder.names(), ["s.npz", "s.svg", "w.npy"]);
    assert_eq!(folder.read::<f64>("s.npz:u").shape(), [values, 8 * 1600]);
}
