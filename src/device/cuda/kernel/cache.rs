//! Compiled kernels on disk, for the next process.
//!
//! An entry is named by a hash of all that its image depends on and repeats it in full, with a checksum
//! of the image: a damaged or foreign file is not used. Entries are written to a temporary file and
//! renamed, so that readers see whole ones. The cache is an optimisation: where it cannot be read or
//! written, kernels are compiled.

use std::env;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::SystemTime;

const MAGIC: &[u8; 8] = b"convmat1";

/// The least recently used entries are removed when all together take more, in bytes.
const LIMIT: u64 = 256 << 20;

/// A folder of compiled kernels.
#[derive(Debug)]
pub(super) struct Cache {
    folder: Option<PathBuf>,
    limit: u64,
    unwritable: OnceLock<()>,
}

impl Cache {
    /// The folder `CONVMAT_CACHE_DIR`, else `convmat` in the user's cache directory. No cache when the
    /// variable is set to nothing, or when there is no such directory.
    pub(super) fn open() -> Self {
        let named = |name: &str| env::var_os(name).map(PathBuf::from);
        let user = || {
            let found = if cfg!(windows) {
                named("LOCALAPPDATA")
            } else if cfg!(target_os = "macos") {
                named("HOME").map(|home| home.join("Library/Caches"))
            } else {
                named("XDG_CACHE_HOME")
                    .filter(|path| path.is_absolute())
                    .or_else(|| named("HOME").map(|home| home.join(".cache")))
            };
            found.filter(|path| path.is_absolute()).map(|path| path.join("convmat"))
        };
        let folder = match named("CONVMAT_CACHE_DIR") {
            Some(path) => Some(path).filter(|path| !path.as_os_str().is_empty()),
            None => user(),
        };
        Cache::at(folder, LIMIT)
    }

    #[cfg(test)]
    pub(super) fn in_folder(folder: &Path) -> Self {
        Cache::at(Some(folder.into()), LIMIT)
    }

    /// One that keeps nothing.
    pub(super) fn none() -> Self {
        Cache::at(None, 0)
    }

    fn at(folder: Option<PathBuf>, limit: u64) -> Self {
        Cache { folder, limit, unwritable: OnceLock::new() }
    }

    /// The image stored for `key`, if there is an undamaged one.
    pub(super) fn read(&self, key: &str) -> Option<Vec<u8>> {
        let path = self.folder.as_ref()?.join(name(key));
        let entry = fs::read(&path).ok()?;
        let Some(image) = open_entry(&entry, key) else {
            log::warn!("{}: damaged, the kernel is compiled again", path.display());
            return None;
        };
        // The time of the last use, for `shrink`. Best effort.
        let _ =
            File::options().write(true).open(&path).and_then(|f| f.set_modified(SystemTime::now()));
        Some(image.to_vec())
    }

    /// Stores an image. Failure is logged once.
    pub(super) fn write(&self, key: &str, image: &[u8]) {
        let Some(folder) = &self.folder else { return };
        let written = fs::create_dir_all(folder).and_then(|()| {
            let mut file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(folder)?;
            file.write_all(&seal_entry(key, image))?;
            file.persist(folder.join(name(key))).map_err(|error| error.error)
        });
        match written {
            Ok(_) => shrink(folder, self.limit),
            Err(error) => {
                self.unwritable.get_or_init(|| {
                    log::warn!("{}: {error}; compiled kernels are not kept", folder.display());
                });
            }
        }
    }
}

const TEMPORARY: &str = "incomplete-";

fn name(key: &str) -> String {
    // Two 64-bit hashes: the full key inside decides, this has to differ where keys differ.
    format!("{:016x}{:016x}.kernel", hash(&(0u8, key)), hash(&(1u8, key)))
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn seal_entry(key: &str, image: &[u8]) -> Vec<u8> {
    let lengths = [key.len() as u64, image.len() as u64, hash(&image)].map(u64::to_le_bytes);
    [&MAGIC[..], &lengths.concat(), key.as_bytes(), image].concat()
}

/// The image in an entry for `key`; `None` unless every byte is as it was written.
fn open_entry<'a>(entry: &'a [u8], key: &str) -> Option<&'a [u8]> {
    let rest = entry.strip_prefix(MAGIC)?;
    let (lengths, rest) = rest.split_at_checked(24)?;
    let number =
        |at: usize| u64::from_le_bytes(lengths[8 * at..][..8].try_into().expect("8 bytes"));
    let (found, image) = rest.split_at_checked(usize::try_from(number(0)).ok()?)?;
    let whole = image.len() as u64 == number(1) && hash(&image) == number(2);
    (found == key.as_bytes() && whole).then_some(image)
}

/// Removes the least recently used entries until all take at most `limit` bytes.
fn shrink(folder: &Path, limit: u64) {
    let Ok(files) = fs::read_dir(folder) else { return };
    let mut entries: Vec<(SystemTime, u64, PathBuf)> = files
        .flatten()
        .filter(|file| file.path().extension().is_some_and(|extension| extension == "kernel"))
        .filter_map(|file| {
            let facts = file.metadata().ok()?;
            Some((facts.modified().ok()?, facts.len(), file.path()))
        })
        .collect();
    entries.sort();
    let mut total: u64 = entries.iter().map(|entry| entry.1).sum();
    for (_, size, path) in entries {
        if total <= limit {
            break;
        }
        // Another process may have removed it already.
        let _ = fs::remove_file(path);
        total -= size;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn what_was_written_is_read_and_nothing_else() {
        let folder = folder();
        let cache = Cache::at(Some(folder.path().join("deep/er")), LIMIT);
        assert_eq!(cache.read("a"), None);
        cache.write("a", b"image of a");
        cache.write("b", b"");
        assert_eq!(cache.read("a").unwrap(), b"image of a");
        assert_eq!(cache.read("b").unwrap(), b"");
        assert_eq!(cache.read("c"), None);
        let files: Vec<_> = fs::read_dir(folder.path().join("deep/er")).unwrap().collect();
        assert_eq!(files.len(), 2, "no temporary files are left: {files:?}");
    }

    #[test]
    fn every_kind_of_damage_is_noticed() {
        let folder = folder();
        let cache = Cache::at(Some(folder.path().into()), LIMIT);
        cache.write("key", b"0123456789");
        let path = folder.path().join(name("key"));
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(cache.read("key"), None, "cut to {length}");
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            fs::write(&path, &damaged).unwrap();
            assert_eq!(cache.read("key"), None, "byte {at} changed");
        }
        fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
        assert_eq!(cache.read("key"), None, "lengthened");
        cache.write("key", b"0123456789");
        assert_eq!(cache.read("key").unwrap(), b"0123456789");
        // An entry of another key under this name, as after a collision.
        fs::write(&path, seal_entry("other", b"0123456789")).unwrap();
        assert_eq!(cache.read("key"), None);
    }

    #[test]
    fn the_least_recently_used_entries_go_first() {
        let folder = folder();
        let cache = Cache::at(Some(folder.path().into()), 3000);
        for (age, key) in ["a", "b", "c"].into_iter().enumerate() {
            cache.write(key, &[7; 800]);
            let file = File::options().write(true).open(folder.path().join(name(key))).unwrap();
            let hours = std::time::Duration::from_secs(3600 * (10 - age as u64));
            file.set_modified(SystemTime::now() - hours).unwrap();
        }
        assert!(cache.read("a").is_some(), "which makes it the most recently used");
        cache.write("d", &[7; 800]);
        assert_eq!(
            ["a", "b", "c", "d"].map(|key| cache.read(key).is_some()),
            [true, false, true, true]
        );
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_error() {
        let folder = folder();
        let file = folder.path().join("file");
        fs::write(&file, b"in the way").unwrap();
        let cache = Cache::at(Some(file.join("cache")), LIMIT);
        cache.write("a", b"image");
        cache.write("b", b"image");
        assert_eq!(cache.read("a"), None);
        assert_eq!(fs::read(&file).unwrap(), b"in the way");
    }
}
