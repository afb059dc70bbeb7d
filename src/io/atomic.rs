//! A file that appears under its name whole, or not at all.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::TempPath;

use crate::error::{Error, Result};

/// Bytes between reports of progress, and the size of the buffer for whatever is smaller.
const CHUNK: usize = 1 << 20;

/// A temporary file beside its target: [`AtomicFile::commit`] renames it, dropping it removes it.
///
/// After a failed write it swallows whatever else comes, keeping only positions: `ZipWriter` closes
/// its archive even when dropped, and would complain on standard error a second time.
pub(super) struct AtomicFile {
    target: PathBuf,
    temporary: TempPath,
    file: BufWriter<File>,
    failed: bool,
    position: u64,
    end: u64,
}

impl AtomicFile {
    pub fn create(path: &Path) -> Result<Self> {
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
        let mut builder = tempfile::Builder::new();
        builder.prefix(".convmat-");
        // As any new file: readable by whom the umask allows, not by the owner alone.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder
            .tempfile_in(folder)
            .map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
        let (file, temporary) = file.into_parts();
        let file = BufWriter::with_capacity(CHUNK, file);
        Ok(AtomicFile { target, temporary, file, failed: false, position: 0, end: 0 })
    }

    /// Gives the file its name.
    pub fn commit(self) -> Result<()> {
        let AtomicFile { target, temporary, file, failed, .. } = self;
        let result = if failed {
            Err(io::Error::other("an earlier write failed"))
        } else {
            file.into_inner()
                .map_err(|e| e.into_error())
                .and_then(|_| temporary.persist(&target).map_err(|e| e.error))
        };
        result.map_err(|source| Error::Io { path: target, source })
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

/// Writes it all, telling `progress` the number of bytes written since it was last told.
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
