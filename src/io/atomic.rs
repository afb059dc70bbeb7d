//! A file that appears under its name whole, or not at all.
//!
//! Where the system can do it (Linux, on most file systems) the file has no name while it is written:
//! when the process ends early, however that happens, the system takes it away. Elsewhere it has a
//! temporary name beside its target until it is complete. Those names are listed, so that a program
//! that is told to end can remove the files: see [`abandon_writes`].

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};

/// Bytes between reports of progress; also the size of the buffer that collects smaller writes.
const CHUNK: usize = 1 << 20;

/// Permissions of a new file before the umask takes some away: those of any program's new file.
#[cfg(unix)]
const PERMISSIONS: u32 = 0o666;

/// All writes of this process.
static WRITES: Writes = Writes(Mutex::new(State { abandoned: 0, named: Vec::new() }));

/// What several writes have to agree on. Its lock is held whenever one of them gives a file a name or
/// takes a name away, so that nobody who holds the lock ever sees a name that is not listed.
struct Writes(Mutex<State>);

struct State {
    /// How often the writes under way were abandoned. A write that began before the last time must
    /// not give its file a name.
    abandoned: u64,
    /// The temporary files that exist.
    named: Vec<PathBuf>,
}

impl Writes {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock leaves the state half changed, even if it panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn abandon(&'static self) -> AbandonedWrites {
        let mut state = self.lock();
        state.abandoned += 1;
        for path in state.named.drain(..) {
            // If the system refuses, there is nothing left to try.
            let _ = fs::remove_file(path);
        }
        AbandonedWrites { _state: state }
    }
}

/// Gives up all writes of this module that are under way in this process, for a program that is about
/// to end: their temporary files are removed, none of them appears under its name, and each ends with
/// [`Error::Io`]. Files that were there before stay as they are.
///
/// While the result exists, no other write begins or completes; a thread that tries waits. A program
/// therefore keeps the result until it has ended.
///
/// The library handles no signals itself. A program calls this from an ordinary thread that waits for
/// them, not inside a signal handler, where locks must not be taken:
///
/// ```no_run
/// # fn interrupted() {
/// let _writes = convmat::io::abandon_writes();
/// std::process::exit(130);
/// # }
/// ```
pub fn abandon_writes() -> AbandonedWrites {
    WRITES.abandon()
}

/// While this exists, no file is begun or completed: see [`abandon_writes`].
#[must_use = "writes go on as soon as this is dropped"]
pub struct AbandonedWrites {
    _state: MutexGuard<'static, State>,
}

/// Fails where no file can be written under this name, to find that out before long work. Nothing is
/// changed.
///
/// # Errors
/// [`Error::Io`] with the reason.
pub fn check_writable(path: impl AsRef<Path>) -> Result<()> {
    AtomicFile::create(path.as_ref()).map(drop)
}

/// Writes a file of any kind, whole or not at all, as the writers of tensors do.
///
/// # Errors
/// [`Error::Io`] when the file cannot be written; then a file that was there before stays as it was.
pub fn write_file(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
    file.commit()
}

/// A file that is being written: [`AtomicFile::commit`] gives it its name, dropping it removes it.
///
/// After a write has failed, it accepts and ignores all further ones, and only keeps count of the
/// position: `ZipWriter` writes the end of its archive even when it is dropped, and would otherwise print
/// a second complaint on standard error.
pub(super) struct AtomicFile {
    target: PathBuf,
    file: BufWriter<File>,
    name: Name,
    writes: &'static Writes,
    /// [`State::abandoned`] when this write began.
    begun: u64,
    failed: bool,
    position: u64,
    end: u64,
}

/// What an unfinished file is called.
enum Name {
    /// It has no name. The folder is that of its target.
    #[cfg(target_os = "linux")]
    None {
        folder: PathBuf,
    },
    Temporary(Temporary),
}

/// A temporary file with a name, which is removed when this is dropped.
struct Temporary {
    path: PathBuf,
    writes: &'static Writes,
}

impl AtomicFile {
    pub fn create(path: &Path) -> Result<Self> {
        AtomicFile::begin(path, &WRITES, true)
    }

    /// A file among these writes; without a name if `unnamed` and if that is possible.
    fn begin(path: &Path, writes: &'static Writes, unnamed: bool) -> Result<Self> {
        // A symbolic link stays one: the file it points to is replaced.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        if fs::metadata(&target).is_ok_and(|m| !m.is_file()) {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
            return Err(Error::Io { path: path.to_path_buf(), source });
        }
        let folder = match target.parent() {
            Some(folder) if folder != OsStr::new("") => folder,
            _ => Path::new("."),
        };
        fs::metadata(folder).map_err(|source| Error::Io { path: folder.to_path_buf(), source })?;
        let mut state = writes.lock();
        let (file, name) = match unnamed.then(|| without_name(folder)).flatten() {
            Some(found) => found,
            None => {
                let (file, path) = with_temporary_name(folder)
                    .map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
                state.named.push(path.clone());
                (file, Name::Temporary(Temporary { path, writes }))
            }
        };
        let begun = state.abandoned;
        drop(state);
        let file = BufWriter::with_capacity(CHUNK, file);
        Ok(AtomicFile { target, file, name, writes, begun, failed: false, position: 0, end: 0 })
    }

    /// Gives the file its name.
    pub fn commit(self) -> Result<()> {
        let AtomicFile { target, file, name, writes, begun, failed, .. } = self;
        let result = if failed {
            Err(io::Error::other("an earlier write failed"))
        } else {
            file.into_inner()
                .map_err(|e| e.into_error())
                .and_then(|file| name.replace(&target, file, writes, begun))
        };
        result.map_err(|source| Error::Io { path: target, source })
    }
}

impl Name {
    /// Replaces this name of a complete file by `target`.
    fn replace(
        self,
        target: &Path,
        file: File,
        writes: &'static Writes,
        begun: u64,
    ) -> io::Result<()> {
        let mut state = writes.lock();
        if state.abandoned != begun {
            // Dropping a temporary file takes the lock as well.
            drop(state);
            return Err(io::Error::new(io::ErrorKind::Interrupted, "the write was abandoned"));
        }
        match self {
            #[cfg(target_os = "linux")]
            Name::None { folder } => match link(&file, target) {
                // A link never replaces a file, but a rename does, in one step. Whoever wants to end
                // the process waits for the lock and thus for both steps.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    let linked = builder().make_in(folder, |path| link(&file, path))?;
                    linked.into_temp_path().persist(target).map_err(|e| e.error)
                }
                result => result,
            },
            Name::Temporary(temporary) => {
                // Windows renames no open file.
                drop(file);
                let renamed = fs::rename(&temporary.path, target);
                if renamed.is_ok() {
                    state.named.retain(|path| *path != temporary.path);
                }
                drop(state);
                renamed
            }
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let mut state = self.writes.lock();
        // Neither renamed nor abandoned: otherwise another file may have this name by now.
        if let Some(at) = state.named.iter().position(|path| *path == self.path) {
            state.named.swap_remove(at);
            // If the system refuses, there is nothing left to try.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Names that start with a dot, so that they are hidden, and end at random.
fn builder() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".convmat-");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(PERMISSIONS));
    builder
}

/// A new file with a temporary name, which nobody removes yet.
fn with_temporary_name(folder: &Path) -> io::Result<(File, PathBuf)> {
    builder().tempfile_in(folder)?.keep().map_err(|e| e.error)
}

/// A new file without a name, if this system and the folder's file system have such.
#[cfg(target_os = "linux")]
fn without_name(folder: &Path) -> Option<(File, Name)> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let file = File::options()
        .write(true)
        .mode(PERMISSIONS)
        .custom_flags(libc::O_TMPFILE)
        .open(folder)
        .ok()?;
    // Before version 6.0, Linux forgets the umask here on some file systems. If nothing was taken from
    // the permissions, a file with a name is sure to get the right ones.
    let permissions = file.metadata().ok()?.permissions().mode() & 0o777;
    // The path by which the file gets its name: missing where /proc is.
    let linkable = fs::symlink_metadata(path_of(&file)).is_ok();
    let usable = permissions != PERMISSIONS && linkable;
    usable.then(|| (file, Name::None { folder: folder.to_path_buf() }))
}

#[cfg(not(target_os = "linux"))]
fn without_name(_: &Path) -> Option<(File, Name)> {
    None
}

/// A path that leads to an open file even if that has no name.
#[cfg(target_os = "linux")]
fn path_of(file: &File) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Gives an open file a name, which must be free. (`fs::hard_link` does not follow the link in /proc.)
#[cfg(target_os = "linux")]
fn link(file: &File, path: &Path) -> io::Result<()> {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    let from = CString::new(path_of(file))?;
    let to = CString::new(path.as_os_str().as_bytes())?;
    let (here, follow) = (libc::AT_FDCWD, libc::AT_SYMLINK_FOLLOW);
    // SAFETY: both paths end in a zero byte and live until the call returns, and it keeps neither.
    match unsafe { libc::linkat(here, from.as_ptr(), here, to.as_ptr(), follow) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = if self.failed {
            bytes.len()
        } else {
            self.file.write(bytes).inspect_err(|_| self.failed = true)?
        };
        self.position += written as u64;
        self.end = self.end.max(self.position);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.failed {
            return Ok(());
        }
        self.file.flush().inspect_err(|_| self.failed = true)
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
            SeekFrom::End(offset) => self.end.checked_add_signed(offset),
        };
        let target = target.ok_or(io::ErrorKind::InvalidInput)?;
        if !self.failed && target != self.position {
            self.file.seek(SeekFrom::Start(target)).inspect_err(|_| self.failed = true)?;
        }
        self.position = target;
        Ok(target)
    }
}

/// Writes all bytes. `progress` is told how many were written since it was told last.
pub(super) fn write_chunks(
    writer: &mut impl Write,
    bytes: &[u8],
    progress: &mut dyn FnMut(u64),
) -> io::Result<()> {
    for chunk in bytes.chunks(CHUNK) {
        writer.write_all(chunk)?;
        progress(chunk.len() as u64);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::thread;
    use std::time::Duration;

    use tempfile::TempDir;

    /// Writes of a test of its own, which no other test abandons.
    fn writes() -> &'static Writes {
        Box::leak(Box::new(Writes(Mutex::new(State { abandoned: 0, named: Vec::new() }))))
    }

    fn names(folder: &TempDir) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn begin(folder: &TempDir, name: &str, writes: &'static Writes, unnamed: bool) -> AtomicFile {
        let mut file = AtomicFile::begin(&folder.path().join(name), writes, unnamed).unwrap();
        file.write_all(b"new").unwrap();
        file
    }

    #[test]
    fn a_file_appears_whole_with_or_without_a_temporary_name() {
        for unnamed in [false, true] {
            let (folder, writes) = (TempDir::new().unwrap(), writes());
            let target = folder.path().join("a");
            for old in [false, true] {
                if old {
                    fs::write(&target, "old").unwrap();
                }
                let before = names(&folder);
                drop(begin(&folder, "a", writes, unnamed));
                assert_eq!(names(&folder), before);
                let file = begin(&folder, "a", writes, unnamed);
                assert_eq!(target.exists(), old);
                file.commit().unwrap();
                assert_eq!(fs::read(&target).unwrap(), b"new");
                assert_eq!(names(&folder), ["a"]);
            }
            assert!(writes.lock().named.is_empty());
        }
    }

    #[test]
    fn a_temporary_name_is_listed_and_gets_the_usual_permissions() {
        let (folder, writes) = (TempDir::new().unwrap(), writes());
        let file = begin(&folder, "a", writes, false);
        let [name] = &names(&folder)[..] else { panic!("{:?}", names(&folder)) };
        assert!(name.starts_with(".convmat-"), "{name}");
        assert_eq!(writes.lock().named, [folder.path().join(name)]);
        file.commit().unwrap();
        fs::write(folder.path().join("usual"), "").unwrap();
        let permissions = |name| fs::metadata(folder.path().join(name)).unwrap().permissions();
        assert_eq!(permissions("a"), permissions("usual"));
    }

    #[test]
    fn a_target_that_cannot_be_replaced_leaves_nothing() {
        for unnamed in [false, true] {
            let (folder, writes) = (TempDir::new().unwrap(), writes());
            let file = begin(&folder, "a", writes, unnamed);
            // A folder that takes the name while the file is written.
            fs::create_dir(folder.path().join("a")).unwrap();
            assert!(file.commit().is_err());
            assert_eq!(names(&folder), ["a"]);
            assert!(writes.lock().named.is_empty());
        }
    }

    #[test]
    fn abandoned_writes_leave_nothing_and_others_wait() {
        for unnamed in [false, true] {
            let (folder, writes) = (TempDir::new().unwrap(), writes());
            fs::write(folder.path().join("old"), "old").unwrap();
            let files = ["new", "old"].map(|name| begin(&folder, name, writes, unnamed));
            let dropped = begin(&folder, "dropped", writes, unnamed);
            let abandoned = writes.abandon();
            assert_eq!(names(&folder), ["old"]);
            let (path, path_of_old) = (folder.path().join("later"), folder.path().join("old"));
            let later = thread::spawn(move || AtomicFile::begin(&path, writes, unnamed)?.commit());
            thread::sleep(Duration::from_millis(50));
            assert!(!later.is_finished());
            drop(abandoned);
            for file in files {
                let error = file.commit().unwrap_err().to_string();
                assert!(error.contains("abandoned"), "{error}");
            }
            drop(dropped);
            assert_eq!(fs::read(path_of_old).unwrap(), b"old");
            later.join().unwrap().unwrap();
            let mut left = names(&folder);
            left.sort();
            assert_eq!(left, ["later", "old"]);
            assert!(writes.lock().named.is_empty());
        }
    }
}
