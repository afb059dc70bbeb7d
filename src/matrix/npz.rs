//! Sparse matrices in files, as `scipy.sparse` keeps them.

use std::path::{Path, PathBuf};

use super::csr::Csr;
use super::index::{IndexView, Indices};
use super::storage::Host;
use crate::element::{DType, Element};
use crate::error::{Error, Result};
use crate::io::{Array, ArrayType, NpzReader, NpzWriter};
use crate::memory::try_with_capacity;
use crate::tensor::{Tensor, TensorView};

impl<T: Element> Csr<T> {
    /// Writes the matrix to an npz file that `scipy.sparse.load_npz` reads. The file appears whole or
    /// not at all. bfloat16, which NumPy does not have, is written as `f32`.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be written; [`Error::DeviceMismatch`] unless the matrix is on the
    /// host.
    pub fn save_npz(&self, path: impl Into<PathBuf>) -> Result<()> {
        self.write_npz(NpzWriter::create(path)?)
    }

    /// [`Csr::save_npz`] by a writer that compresses or reports its progress. Finishes the archive.
    ///
    /// # Errors
    /// As [`Csr::save_npz`].
    pub fn write_npz(&self, mut writer: NpzWriter<'_>) -> Result<()> {
        let Host { structure, data } = self.need_host("the file")?;
        for (name, indices) in [("indices", structure.indices()), ("indptr", structure.indptr())] {
            match indices {
                IndexView::I32(values) => writer.add_i32(name, values)?,
                IndexView::I64(values) => writer.add_i64(name, values)?,
            }
        }
        writer.add_bytes_string("format", b"csr")?;
        writer.add_i64("shape", &self.shape().map(|extent| extent as i64))?;
        let data = TensorView::from_slice(&[self.nnz()], data)?;
        match T::DTYPE {
            DType::BF16 => writer.add("data", &data.to_tensor()?.cast::<f32>()?)?,
            _ => writer.add("data", data)?,
        }
        writer.finish()
    }

    /// Reads a matrix in compressed sparse row form from a file that `scipy.sparse.save_npz` or
    /// [`Csr::save_npz`] wrote.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read; [`Error::Format`] when it is damaged, holds no
    /// matrix of this form or one that is not canonical (sort indices and sum duplicates in SciPy
    /// first); [`Error::ElementType`] when its values are not of type `T`.
    pub fn load_npz(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let mut archive = NpzReader::open(&path)?;
        let format = archive.read("format")?;
        // NumPy writes a str or, as SciPy does, a bytes scalar; zero bytes only pad.
        let name: Vec<u8> = format.bytes().iter().copied().filter(|&b| b != 0).collect();
        if name != b"csr" {
            let found = String::from_utf8_lossy(&name).into_owned();
            return Err(malformed(
                &path,
                format!("the sparse format is {found:?}, expected \"csr\""),
            ));
        }
        let shape = archive.read("shape")?.to_integers()?;
        let extent = |axis: usize| shape.get(axis).and_then(|&n| usize::try_from(n).ok());
        let (Some(rows), Some(columns), 2) = (extent(0), extent(1), shape.len()) else {
            return Err(malformed(&path, format!("the matrix has shape {shape:?}")));
        };
        let indptr = indices(archive.read("indptr")?)?;
        let indices = indices(archive.read("indices")?)?;
        let data = archive.read("data")?.into_tensor().and_then(Tensor::into_vec)?;
        Csr::new([rows, columns], indptr, indices, data).map_err(|error| match error {
            Error::Allocation { .. } => error,
            other => malformed(&path, other.to_string()),
        })
    }
}

/// A file that does not hold what it should.
pub(crate) fn malformed(path: &Path, reason: String) -> Error {
    Error::Format { path: path.to_path_buf(), reason }
}

/// 32-bit indices as they are, all other integers as 64-bit ones.
pub(crate) fn indices(array: Array) -> Result<Indices> {
    if array.dtype() != ArrayType::I32 {
        return Ok(Indices::I64(array.to_integers()?));
    }
    let mut indices: Vec<i32> = try_with_capacity(array.name(), array.bytes().len() / 4)?;
    indices.extend(array.bytes().chunks_exact(4).map(bytemuck::pod_read_unaligned::<i32>));
    Ok(Indices::I32(indices))
}
