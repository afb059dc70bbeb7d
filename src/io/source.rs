//! Names of tensors in files, and errors that contain such names.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, Result};

/// A file format. A file's extension says which one it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// `.npy`: one array.
    Npy,
    /// `.npz`: a ZIP archive of npy files.
    Npz,
    /// `.safetensors`: named tensors.
    Safetensors,
}

impl Format {
    const ALL: [Format; 3] = [Format::Npy, Format::Npz, Format::Safetensors];

    /// The format a path's extension names.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is none of `.npy`, `.npz` and `.safetensors`.
    pub fn of(path: &Path) -> Result<Self> {
        let extension = path.extension().and_then(|e| e.to_str());
        Format::ALL.into_iter().find(|f| extension == Some(f.extension())).ok_or_else(|| {
            Error::invalid("file", path.display(), "expected .npy, .npz or .safetensors at its end")
        })
    }

    fn extension(self) -> &'static str {
        match self {
            Format::Npy => "npy",
            Format::Npz => "npz",
            Format::Safetensors => "safetensors",
        }
    }
}

/// Where a tensor is: `file.npy`, `file.npz:key` or `file.safetensors:name`. The key may be left out
/// when the archive holds exactly one array.
///
/// As text, the key starts after the first `.npz:` or `.safetensors:`, so keys may contain colons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    path: PathBuf,
    format: Format,
    key: Option<String>,
}

impl Source {
    /// The array called `key` in a file whose extension tells its format.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the extension is unknown, the key is empty, or an npy file, which has
    /// no keys, is given one.
    pub fn new(path: impl Into<PathBuf>, key: Option<&str>) -> Result<Self> {
        let path = path.into();
        let format = Format::of(&path)?;
        let source = Source { path, format, key: key.map(str::to_owned) };
        match key {
            Some("") => Err(Error::invalid("tensor", source, "the key after the colon is empty")),
            Some(_) if format == Format::Npy => {
                Err(Error::invalid("tensor", source, "an npy file holds one array and has no keys"))
            }
            _ => Ok(source),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The array's name in its archive, if given.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let split = Format::ALL
            .into_iter()
            .filter_map(|f| {
                let marker = format!(".{}:", f.extension());
                text.find(&marker).map(|at| at + marker.len())
            })
            .min();
        match split {
            Some(key) => Source::new(&text[..key - 1], Some(&text[key..])),
            None if Format::of(Path::new(text)).is_ok() => Source::new(text, None),
            None => Err(Error::invalid(
                "tensor",
                text,
                "expected file.npy, file.npz:key or file.safetensors:name",
            )),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Origin { path: &self.path, key: self.key() }.fmt(f)
    }
}

/// What is being read or written, for messages.
#[derive(Clone, Copy)]
pub(super) struct Origin<'a> {
    pub path: &'a Path,
    pub key: Option<&'a str>,
}

impl fmt::Display for Origin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.key.map_or(Ok(()), |key| write!(f, ":{key}"))
    }
}

impl Origin<'_> {
    /// The file, or this array in it, is not what it should be.
    pub fn format(&self, reason: impl fmt::Display) -> Error {
        let reason = match self.key {
            Some(key) => format!("`{key}`: {reason}"),
            None => reason.to_string(),
        };
        Error::Format { path: self.path.to_path_buf(), reason }
    }

    /// An error of the operating system stays one. An error without a system's error code comes from a
    /// decoder: then the content is damaged.
    pub fn io(&self, error: io::Error) -> Error {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return self.format("the file is truncated");
        }
        if error.raw_os_error().is_none() {
            return self.format(error);
        }
        Error::Io { path: self.path.to_path_buf(), source: error }
    }
}

/// Index of the array called `key`, or of the only one.
pub(super) fn choose(path: &Path, key: Option<&str>, names: &[String]) -> Result<usize> {
    let found = match key {
        Some(key) => names.iter().position(|name| name == key),
        None => (names.len() == 1).then_some(0),
    };
    found.ok_or_else(|| {
        let keys = if names.is_empty() { "none".into() } else { names.join(", ") };
        let origin = Origin { path, key: None };
        match key {
            Some(key) => origin.format(format!("no array `{key}`; there are: {keys}")),
            None if names.is_empty() => origin.format("the archive holds no arrays"),
            None => origin.format(format!("which array? Name one as file:key; there are: {keys}")),
        }
    })
}
