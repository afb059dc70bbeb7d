//! Sparse weights in npz archives, as SciPy writes them, and with the names that PyTorch gives the parts.

use std::path::Path;

use super::weight::SparseWeight;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::geometry::Conv;
use crate::io::{Array, NpzReader};
use crate::matrix::npz::{indices, malformed};
use crate::matrix::{Coo, Indices};
use crate::tensor::Tensor;

/// Rows that triplets may leave empty. A weight takes memory for each row, of which triplets, unlike row
/// pointers, need not say anything: a file of some bytes could ask for all there is.
const EMPTY_ROWS: usize = 1 << 18;

/// Arrays of an archive that make a matrix: what they are called.
struct Parts {
    shape: &'static str,
    values: &'static str,
    form: Form,
}

enum Form {
    /// Row pointers and columns.
    Rows([&'static str; 2]),
    /// The row and column of each value.
    Triplets([&'static str; 2]),
    /// Both as the rows of one array.
    Pairs(&'static str),
}

impl<T: Element> SparseWeight<T> {
    /// Reads a weight of `conv` from an npz archive, a matrix as [`SparseWeight::from_parts`] and
    /// [`SparseWeight::from_coo`] take it:
    ///
    /// | arrays | written by |
    /// |---|---|
    /// | `format` = csr, `indptr`, `indices`, `data`, `shape` | `scipy.sparse.save_npz`, [`crate::Csr::save_npz`] |
    /// | `format` = coo, `row`, `col`, `data`, `shape` | `scipy.sparse.save_npz` |
    /// | `crow_indices`, `col_indices`, `values`, `size` | `numpy.savez` of the parts of a PyTorch CSR tensor, under their names |
    /// | `indices` `[2, entries]`, `values`, `size` | the same of a COO tensor |
    ///
    /// [`SparseWeight::to_csr`] and [`crate::Csr::save_npz`] write one.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read; [`Error::Format`] when it is damaged or holds none of these,
    /// or a matrix that is malformed, or triplets that leave more than 2¹⁸ rows empty; [`Error::ElementType`] when
    /// its values are not of type `T`; for the rest as [`SparseWeight::from_csr`].
    pub fn load_npz<const D: usize>(conv: &Conv<D>, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut archive = NpzReader::open(path)?;
        let parts = parts(path, &mut archive)?;
        let extents = archive.read(parts.shape)?.to_integers()?;
        let extent = |axis: usize| extents.get(axis).and_then(|&n| usize::try_from(n).ok());
        let (Some(rows), Some(columns), 2) = (extent(0), extent(1), extents.len()) else {
            return Err(malformed(path, format!("the matrix has shape {extents:?}")));
        };
        let shape = [rows, columns];
        let data = archive.read(parts.values)?.into_tensor().and_then(Tensor::into_vec)?;
        let empty = rows.saturating_sub(data.len());
        if !matches!(parts.form, Form::Rows(_)) && empty > EMPTY_ROWS {
            let reason = format!(
                "the matrix has {rows} rows for {} entries, of which at most {EMPTY_ROWS} may be empty",
                data.len()
            );
            return Err(malformed(path, reason));
        }
        let weight = match parts.form {
            Form::Rows([indptr, columns]) => {
                let indptr = indices(archive.read(indptr)?)?;
                let columns = indices(archive.read(columns)?)?;
                SparseWeight::from_parts(conv, shape, indptr, columns, data)
            }
            Form::Triplets([rows, columns]) => {
                let rows = indices(archive.read(rows)?)?;
                let columns = indices(archive.read(columns)?)?;
                Coo::new(shape, rows, columns, data)
                    .and_then(|coo| SparseWeight::from_coo(conv, &coo))
            }
            Form::Pairs(pairs) => {
                let [rows, columns] = halves(path, archive.read(pairs)?)?;
                Coo::new(shape, rows, columns, data)
                    .and_then(|coo| SparseWeight::from_coo(conv, &coo))
            }
        };
        weight.map_err(|error| match error {
            // Of the arrays, whose names the message has.
            Error::Invalid { ref argument, .. } | Error::Shape { ref argument, .. }
                if !argument.starts_with("weight") && !argument.starts_with("kernel") =>
            {
                malformed(path, error.to_string())
            }
            error => error,
        })
    }

    /// Whether an npz archive with arrays of these names is one that [`SparseWeight::load_npz`] reads, by its
    /// names.
    pub fn is_in_npz(names: &[String]) -> bool {
        let has = |name: &str| names.iter().any(|own| own == name);
        (has("format") && has("shape")) || (has("values") && has("size"))
    }
}

/// How the archive holds a matrix.
fn parts(path: &Path, archive: &mut NpzReader) -> Result<Parts> {
    let has = |name: &str| archive.names().iter().any(|own| own == name);
    if !has("format") && has("values") {
        let form = match has("crow_indices") {
            true => Form::Rows(["crow_indices", "col_indices"]),
            false => Form::Pairs("indices"),
        };
        return Ok(Parts { shape: "size", values: "values", form });
    }
    let format = archive.read("format")?;
    // NumPy writes a str or, as SciPy does, a bytes scalar; zero bytes only pad.
    let name: Vec<u8> = format.bytes().iter().copied().filter(|&b| b != 0).collect();
    let form = match &name[..] {
        b"csr" => Form::Rows(["indptr", "indices"]),
        b"coo" => Form::Triplets(["row", "col"]),
        other => {
            let found = String::from_utf8_lossy(other);
            let reason = format!("the sparse format is {found:?}, expected \"csr\" or \"coo\"");
            return Err(malformed(path, reason));
        }
    };
    Ok(Parts { shape: "shape", values: "data", form })
}

/// The two rows of an array of indices.
fn halves(path: &Path, array: Array) -> Result<[Indices; 2]> {
    let [2, count] = *array.shape() else {
        let reason = format!("indices have shape {:?}, expected [2, entries]", array.shape());
        return Err(malformed(path, reason));
    };
    let mut rows = array.to_integers()?;
    let columns = rows.split_off(count);
    Ok([rows.into(), columns.into()])
}
