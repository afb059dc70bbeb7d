//! npz: a ZIP archive of npy files, one per array, as NumPy and `scipy.sparse` read and write.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::PathBuf;

use zip::result::ZipError;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use crate::element::Element;
use crate::error::{Error, Result};
use crate::io::array::{Array, ArrayType};
use crate::io::atomic::{AtomicFile, write_chunks};
use crate::io::source::{Origin, choose};
use crate::io::{host_bytes, npy, open};
use crate::tensor::TensorView;

/// The best that the Deflate method can do: 258 bytes in 2 bits.
const MAX_DEFLATE_RATIO: u64 = 1032;

/// Members from this size on get 64-bit sizes. It is below 4 GiB because data that cannot be compressed
/// become a little larger.
const LARGE: u64 = 0xF000_0000;

fn zip_error(origin: Origin<'_>, error: ZipError) -> Error {
    match error {
        ZipError::Io(error) => origin.io(error),
        other => origin.format(other),
    }
}

/// As [`zip_error`], but for writing, where damaged content cannot be the reason.
fn zip_write_error(origin: Origin<'_>, error: ZipError) -> Error {
    match error {
        ZipError::Io(source) => Error::Io { path: origin.path.to_path_buf(), source },
        other => origin.format(other),
    }
}

/// An open npz archive.
#[derive(Debug)]
pub struct NpzReader {
    path: PathBuf,
    len: u64,
    zip: ZipArchive<BufReader<File>>,
    names: Vec<String>,
    /// Index in the archive of each name.
    members: Vec<usize>,
}

impl NpzReader {
    /// Opens an archive and reads its directory.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read, [`Error::Format`] when it is no ZIP archive.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let (file, len) = open(&path)?;
        let origin = Origin { path: &path, key: None };
        let zip = ZipArchive::new(file).map_err(|e| zip_error(origin, e))?;
        let (mut names, mut members) = (Vec::new(), Vec::new());
        for (index, name) in zip.file_names().enumerate() {
            let name = name.map_err(|e| zip_error(origin, e))?;
            if let Some(key) = name.strip_suffix(".npy") {
                names.push(key.to_owned());
                members.push(index);
            }
        }
        Ok(NpzReader { path, len, zip, names, members })
    }

    /// Names of the arrays, without `.npy`, in the archive's order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Reads the array of that name.
    ///
    /// # Errors
    /// As [`read`](crate::io::read).
    pub fn read(&mut self, name: &str) -> Result<Array> {
        let index = choose(&self.path, Some(name), &self.names)?;
        self.read_index(index)
    }

    pub(super) fn read_index(&mut self, index: usize) -> Result<Array> {
        let origin = Origin { path: &self.path, key: Some(&self.names[index]) };
        let mut member =
            self.zip.by_index(self.members[index]).map_err(|e| zip_error(origin, e))?;
        let (packed, len) = (member.compressed_size(), member.size());
        // No honest member is larger than this. One that claims to be is refused before memory is allocated.
        let limit = match member.compression() {
            CompressionMethod::Stored => packed,
            _ => packed.saturating_mul(MAX_DEFLATE_RATIO),
        };
        if packed > self.len || len > limit {
            return Err(origin.format(format!("{len} bytes cannot be packed in {packed}")));
        }
        let array = npy::read(origin, &mut member, len)?;
        // The archive's checksum is only compared when a member is read to its end.
        match member.read(&mut [0]).map_err(|e| origin.io(e))? {
            0 => Ok(array),
            _ => Err(origin.format("more data than the archive's directory says")),
        }
    }
}

/// Writes an npz archive, array by array. The file appears when [`NpzWriter::finish`] succeeds;
/// dropped before that, nothing is left behind.
///
/// Members are stored as they are, with 64-bit sizes where needed, unless compression is asked for.
/// The same arrays give the same bytes: members carry no time stamp.
pub struct NpzWriter<'p> {
    path: PathBuf,
    zip: ZipWriter<AtomicFile>,
    method: CompressionMethod,
    progress: Box<dyn FnMut(u64) + 'p>,
}

impl<'p> NpzWriter<'p> {
    /// Starts an archive.
    ///
    /// # Errors
    /// [`Error::Io`] when no file can be made there.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        Ok(NpzWriter {
            zip: ZipWriter::new(AtomicFile::create(&path)?),
            path,
            method: CompressionMethod::Stored,
            progress: Box::new(|_| ()),
        })
    }

    /// Whether the arrays added from now on are compressed (as `numpy.savez_compressed`).
    pub fn compressed(mut self, compressed: bool) -> Self {
        self.method =
            if compressed { CompressionMethod::Deflated } else { CompressionMethod::Stored };
        self
    }

    /// Tells `progress` the number of bytes of elements taken since it was last told, about every MiB.
    pub fn on_progress(mut self, progress: impl FnMut(u64) + 'p) -> Self {
        self.progress = Box::new(progress);
        self
    }

    /// Adds a tensor.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be written, [`Error::Format`] when the name is taken.
    pub fn add<'a, T: Element>(
        &mut self,
        name: &str,
        tensor: impl Into<TensorView<'a, T>>,
    ) -> Result<()> {
        let tensor = tensor.into();
        let bytes = host_bytes(name, &tensor)?;
        self.add_array(name, ArrayType::Float(T::DTYPE), tensor.shape(), bytes)
    }

    /// Adds integers as an array of one axis.
    ///
    /// # Errors
    /// As [`NpzWriter::add`].
    pub fn add_i32(&mut self, name: &str, values: &[i32]) -> Result<()> {
        self.add_array(name, ArrayType::I32, &[values.len()], bytemuck::cast_slice(values))
    }

    /// Adds integers as an array of one axis.
    ///
    /// # Errors
    /// As [`NpzWriter::add`].
    pub fn add_i64(&mut self, name: &str, values: &[i64]) -> Result<()> {
        self.add_array(name, ArrayType::I64, &[values.len()], bytemuck::cast_slice(values))
    }

    /// Adds a byte string as a scalar, as `scipy.sparse.save_npz` does for `format`.
    ///
    /// # Errors
    /// As [`NpzWriter::add`].
    pub fn add_bytes_string(&mut self, name: &str, value: &[u8]) -> Result<()> {
        self.add_array(name, ArrayType::Bytes(value.len()), &[], value)
    }

    fn add_array(
        &mut self,
        name: &str,
        dtype: ArrayType,
        shape: &[usize],
        bytes: &[u8],
    ) -> Result<()> {
        let header = npy::header(dtype, shape)?;
        let origin = Origin { path: &self.path, key: Some(name) };
        let options = SimpleFileOptions::default()
            .compression_method(self.method)
            .large_file((header.len() + bytes.len()) as u64 >= LARGE);
        self.zip
            .start_file(format!("{name}.npy"), options)
            .map_err(|e| zip_write_error(origin, e))?;
        write_chunks(&mut self.zip, &header, &mut |_| ())
            .and_then(|()| write_chunks(&mut self.zip, bytes, &mut self.progress))
            .map_err(|source| Error::Io { path: self.path.clone(), source })
    }

    /// Completes the archive and gives the file its name.
    ///
    /// # Errors
    /// [`Error::Io`] when that, or a write before, failed.
    pub fn finish(self) -> Result<()> {
        let origin = Origin { path: &self.path, key: None };
        self.zip.finish().map_err(|e| zip_write_error(origin, e))?.commit()
    }
}
