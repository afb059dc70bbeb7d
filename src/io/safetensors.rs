//! safetensors: a JSON header, then the tensors, little-endian and row-major.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use crate::element::{DType, Element};
use crate::error::{Error, Result};
use crate::io::array::{Array, ArrayType};
use crate::io::atomic::{AtomicFile, write_chunks};
use crate::io::source::{Origin, choose};
use crate::io::{host_bytes, open};
use crate::tensor::TensorView;

/// Size in bytes of the number at the start of the file, which is the header's size. The header is
/// padded to a multiple of it.
const WORD: usize = 8;

/// The limit of the `safetensors` crate for the size of the header.
const MAX_HEADER: u64 = 100_000_000;

/// An open safetensors file. Only its header is held in memory.
#[derive(Debug)]
pub struct SafetensorsReader {
    path: PathBuf,
    file: BufReader<File>,
    /// Where the tensors start, in bytes.
    start: u64,
    metadata: Metadata,
    names: Vec<String>,
}

impl SafetensorsReader {
    /// Opens a file, reads its header and has the `safetensors` crate validate it: tensors that
    /// follow each other without gaps, sizes that match their shapes, and nothing after the last.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read, [`Error::Format`] when it is damaged.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let (mut file, len) = open(&path)?;
        let origin = Origin { path: &path, key: None };
        let mut word = [0; WORD];
        file.read_exact(&mut word).map_err(|e| origin.io(e))?;
        let header_len = u64::from_le_bytes(word);
        if header_len > MAX_HEADER.min(len.saturating_sub(WORD as u64)) {
            let reason = format!("a header of {header_len} bytes in a file of {len}");
            return Err(origin.format(reason));
        }
        let mut header = vec![0; header_len as usize];
        file.read_exact(&mut header).map_err(|e| origin.io(e))?;
        // The reader of the `safetensors` crate needs the whole file in memory; its type for headers does not.
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|e| origin.format(format!("invalid header: {e}")))?;
        let start = WORD as u64 + header_len;
        let (declared, found) = (metadata.data_len() as u64, len - start);
        if declared != found {
            let reason = format!("{found} bytes of tensors, where the header says {declared}");
            return Err(origin.format(reason));
        }
        let mut names = metadata.offset_keys();
        names.sort();
        Ok(SafetensorsReader { path, file, start, metadata, names })
    }

    /// Names of the tensors, in alphabetical order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The text that the file's metadata holds under this key.
    pub(crate) fn note(&self, key: &str) -> Option<&str> {
        self.metadata.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// Reads the tensor of that name.
    ///
    /// # Errors
    /// As [`read`](crate::io::read).
    pub fn read(&mut self, name: &str) -> Result<Array> {
        let index = choose(&self.path, Some(name), &self.names)?;
        self.read_index(index)
    }

    pub(super) fn read_index(&mut self, index: usize) -> Result<Array> {
        let name = &self.names[index];
        let origin = Origin { path: &self.path, key: Some(name) };
        let info = self.metadata.info(name).ok_or_else(|| origin.format("not in the header"))?;
        let dtype = array_type(info.dtype).ok_or_else(|| Error::ElementType {
            argument: origin.to_string(),
            expected: "a float of 16 to 64 bits, an integer or a boolean".into(),
            found: info.dtype.to_string(),
        })?;
        let position = self.start + info.data_offsets.0 as u64;
        self.file.seek(SeekFrom::Start(position)).map_err(|e| origin.io(e))?;
        Array::read_elements(origin, &mut self.file, dtype, info.shape.clone())
    }
}

fn array_type(dtype: Dtype) -> Option<ArrayType> {
    Some(match dtype {
        Dtype::BOOL => ArrayType::Bool,
        Dtype::U8 => ArrayType::U8,
        Dtype::U16 => ArrayType::U16,
        Dtype::U32 => ArrayType::U32,
        Dtype::U64 => ArrayType::U64,
        Dtype::I8 => ArrayType::I8,
        Dtype::I16 => ArrayType::I16,
        Dtype::I32 => ArrayType::I32,
        Dtype::I64 => ArrayType::I64,
        Dtype::F16 => ArrayType::Float(DType::F16),
        Dtype::BF16 => ArrayType::Float(DType::BF16),
        Dtype::F32 => ArrayType::Float(DType::F32),
        Dtype::F64 => ArrayType::Float(DType::F64),
        _ => return None,
    })
}

/// A borrowed host tensor of any of the crate's element types.
#[derive(Clone, Debug)]
pub struct AnyView<'a> {
    dtype: DType,
    shape: Vec<usize>,
    bytes: &'a [u8],
}

impl<'a> AnyView<'a> {
    /// A tensor's elements, borrowed.
    ///
    /// # Errors
    /// [`Error::DeviceMismatch`] when they are not on the host.
    pub fn new<T: Element>(tensor: impl Into<TensorView<'a, T>>) -> Result<Self> {
        let tensor = tensor.into();
        let bytes = host_bytes("tensor", &tensor)?;
        Ok(AnyView { dtype: T::DTYPE, shape: tensor.shape().to_vec(), bytes })
    }
}

/// Writes named tensors as one safetensors file, laid out as the `safetensors` crate lays them out:
/// wider types first, so that all are aligned, then by name.
///
/// # Errors
/// [`Error::Io`] when the file cannot be written; then a file that was there before stays as it was.
/// [`Error::Invalid`] when two tensors share a name.
pub fn write_safetensors(path: impl AsRef<Path>, tensors: &[(&str, AnyView<'_>)]) -> Result<()> {
    write_with_note(path.as_ref(), tensors, None)
}

/// [`write_safetensors`] with one key and its text in the file's metadata: with more, their order, and so the
/// file's bytes, would be left to chance.
pub(crate) fn write_with_note(
    path: &Path,
    tensors: &[(&str, AnyView<'_>)],
    note: Option<(&str, &str)>,
) -> Result<()> {
    let mut tensors: Vec<_> = tensors.iter().collect();
    tensors.sort_by(|(a, x), (b, y)| y.dtype.size().cmp(&x.dtype.size()).then(a.cmp(b)));
    let header = header(path, &tensors, note)?;
    let mut file = AtomicFile::create(path)?;
    let write = |file: &mut AtomicFile| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        tensors.iter().try_for_each(|(_, t)| write_chunks(file, t.bytes, &mut |_| ()))
    };
    write(&mut file).map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
    file.commit()
}

fn header(
    path: &Path,
    tensors: &[&(&str, AnyView<'_>)],
    note: Option<(&str, &str)>,
) -> Result<Vec<u8>> {
    let mut end = 0;
    let mut infos = Vec::with_capacity(tensors.len());
    // The format uses this name for other things than tensors.
    let mut taken = HashSet::from(["__metadata__"]);
    for (name, tensor) in tensors {
        if !taken.insert(name) {
            return Err(Error::invalid("name", name, "taken already"));
        }
        let dtype = match tensor.dtype {
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            DType::F32 => Dtype::F32,
            DType::F64 => Dtype::F64,
        };
        let start = end;
        end += tensor.bytes.len();
        let shape = tensor.shape.clone();
        infos.push((name.to_string(), TensorInfo { dtype, shape, data_offsets: (start, end) }));
    }
    let origin = Origin { path, key: None };
    let note = note.map(|(key, text)| HashMap::from([(key.to_string(), text.to_string())]));
    let metadata = Metadata::new(note, infos).map_err(|e| origin.format(e))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|e| origin.format(e))?;
    header.resize(header.len().next_multiple_of(WORD), b' ');
    Ok(header)
}
