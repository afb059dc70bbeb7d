//! Compressed sparse rows.

use rayon::prelude::*;

use super::canonical::{AxisNames, check_structure};
use super::coo::Coo;
use super::csc::Csc;
#[cfg(gpu)]
use super::cuda::CudaCsr;
use super::index::{Index, IndexView, Indices};
#[cfg(gpu)]
use super::product::cuda::to_dense;
use super::storage::{Extent, Host, Pattern, Storage, Structure, with_pattern};
use crate::device::Device;
use crate::element::Element;
use crate::element::IndexWidth;
use crate::error::{Error, Result};
use crate::memory::{try_with_capacity, try_zeroed};
use crate::tensor::Tensor;

/// A sparse matrix in compressed sparse row form, always canonical: the columns of a row ascend and
/// none occurs twice. Entries may be explicit zeros.
///
/// Row `r` has the entries `indptr[r]..indptr[r + 1]` of `indices` (their columns) and `data` (their
/// values). Row pointers and column indices have the same width, `i32` or `i64`. The fields are those
/// of `scipy.sparse.csr_matrix`.
///
/// A matrix lives on the device it was assembled on, see [`Csr::device`] and [`Csr::to_device`]. What
/// borrows its parts (`indptr`, `indices`, `data`, `row`, …) gives `None` unless it is on the host. On a
/// GPU it multiplies, transposes ([`Csr::to_csc`] is that), and becomes dense; triplets, files and the
/// elimination of zeros need it on the host, and are [`Error::DeviceMismatch`] otherwise. Comparing copies a
/// matrix of a GPU to the host, as with [`Tensor`]s.
///
/// `clone` allocates the copy where the matrix is. It panics when there is no memory for that on a GPU, or
/// when the GPU fails; on the host it then aborts the process, as cloning a vector does. [`Csr::try_clone`]
/// returns an error in either case.
///
/// ```
/// use convmat::{Csr, TensorView};
/// // [[1, 0, 2], [0, 0, 3]]
/// let matrix = Csr::new([2, 3], vec![0, 2, 3], vec![0, 2, 2], vec![1.0f32, 2.0, 3.0])?;
/// let ones = TensorView::from_slice(&[3], &[1.0; 3])?;
/// assert_eq!(matrix.mul_vector(ones)?.as_slice().unwrap(), [3.0, 3.0]);
/// let unsorted = Csr::new([2, 3], vec![0, 2, 3], vec![2, 0, 2], vec![1.0f32, 2.0, 3.0]);
/// assert!(unsorted.is_err());
/// # Ok::<(), convmat::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Csr<T: Element> {
    shape: [usize; 2],
    storage: Storage<T>,
}

/// One row of a sparse matrix, or one column of a [`Csc`].
#[derive(Clone, Copy, Debug)]
pub struct Row<'a, T> {
    indices: IndexView<'a>,
    values: &'a [T],
}

impl<'a, T: Element> Row<'a, T> {
    /// Where the entries are, ascending.
    pub fn indices(&self) -> IndexView<'a> {
        self.indices
    }

    /// The entries' values.
    pub fn values(&self) -> &'a [T] {
        self.values
    }

    /// (index, value) of each entry, indices ascending.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (usize, T)> + 'a {
        self.indices.iter().zip(self.values.iter().copied())
    }
}

const CSR_NAMES: AxisNames = AxisNames { major: "row", minor: "column" };

impl<T: Element> Csr<T> {
    /// The matrix with these row pointers, column indices and values, taken over without copying.
    ///
    /// # Errors
    /// [`Error::ElementType`] when row pointers and indices differ in width; [`Error::Shape`] when
    /// there are not `shape[0] + 1` row pointers, or not as many values as indices;
    /// [`Error::TooLarge`] when the width cannot count the shape; [`Error::Invalid`] when the row
    /// pointers do not start at 0, decrease or do not end at the number of entries, or when a row's
    /// columns do not ascend strictly or lie outside the matrix: it names the place.
    pub fn new(
        shape: [usize; 2],
        indptr: impl Into<Indices>,
        indices: impl Into<Indices>,
        data: Vec<T>,
    ) -> Result<Self> {
        Self::checked(shape, indptr.into(), indices.into(), data, &CSR_NAMES)
    }

    pub(super) fn checked(
        shape: [usize; 2],
        indptr: Indices,
        indices: Indices,
        data: Vec<T>,
        names: &AxisNames,
    ) -> Result<Self> {
        let structure = match (indptr, indices) {
            (Indices::I32(indptr), Indices::I32(indices)) => {
                Structure::I32(Pattern { indptr, indices })
            }
            (Indices::I64(indptr), Indices::I64(indices)) => {
                Structure::I64(Pattern { indptr, indices })
            }
            (indptr, indices) => {
                return Err(Error::ElementType {
                    argument: "indices".into(),
                    expected: format!("{}, as indptr has", indptr.width()),
                    found: indices.width().to_string(),
                });
            }
        };
        with_pattern!(&structure, p => check_structure(shape, &p.indptr, &p.indices, data.len(), names))?;
        Ok(Csr::trusted(shape, structure, data))
    }

    /// The matrix of parts that are known to be canonical.
    pub(super) fn trusted(
        shape: [usize; 2],
        structure: impl Into<Structure>,
        data: Vec<T>,
    ) -> Self {
        Csr { shape, storage: Storage::Cpu(Host { structure: structure.into(), data }) }
    }

    /// The matrix of parts on a device that are known to be canonical.
    #[cfg(gpu)]
    pub(crate) fn on_cuda(shape: [usize; 2], parts: CudaCsr<T>) -> Self {
        Csr { shape, storage: Storage::Cuda(parts) }
    }

    /// A matrix to be, with any contents.
    pub(super) fn for_result(device: &Device, extent: &Extent) -> Result<Self> {
        fn host<T: Element, I: Index>(extent: &Extent) -> Result<Storage<T>>
        where
            Pattern<I>: Into<Structure>,
        {
            let indptr: Vec<I> = try_zeroed("the row pointers of the matrix", extent.rows + 1)?;
            let indices: Vec<I> = try_zeroed("the columns of the matrix", extent.nnz)?;
            let data = try_zeroed("the values of the matrix", extent.nnz)?;
            Ok(Storage::Cpu(Host { structure: Pattern { indptr, indices }.into(), data }))
        }
        let storage = match (device, extent.width) {
            (Device::Cpu, IndexWidth::I32) => host::<T, i32>(extent)?,
            (Device::Cpu, IndexWidth::I64) => host::<T, i64>(extent)?,
            #[cfg(gpu)]
            (Device::Cuda(device), _) => Storage::Cuda(CudaCsr::new(device, extent)?),
        };
        Ok(Csr { shape: [extent.rows, extent.columns], storage })
    }

    /// A copy of the matrix, where it is.
    ///
    /// # Errors
    /// [`Error::Allocation`] when there is no memory for it; [`Error::Device`] when the device fails.
    pub fn try_clone(&self) -> Result<Self> {
        Ok(Csr { shape: self.shape, storage: self.storage.try_clone()? })
    }

    /// Numbers of rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// How large it is.
    pub(super) fn extent(&self) -> Extent {
        let [rows, columns] = self.shape;
        Extent { rows, columns, nnz: self.nnz(), width: self.index_width() }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.shape[0]
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.shape[1]
    }

    /// Number of stored entries, explicit zeros included.
    pub fn nnz(&self) -> usize {
        self.storage.nnz()
    }

    /// Where the matrix is.
    pub fn device(&self) -> Device {
        self.storage.device()
    }

    /// The same matrix on `device`. One that is there already is handed over, not copied.
    ///
    /// # Errors
    /// [`Error::Allocation`] when there is no room for it, [`Error::Device`] when copying fails.
    pub fn to_device(self, device: &Device) -> Result<Self> {
        if self.device() == *device {
            return Ok(self);
        }
        let shape = self.shape;
        let host = self.into_host()?;
        let storage = match device {
            Device::Cpu => Storage::Cpu(host),
            #[cfg(gpu)]
            Device::Cuda(device) => Storage::Cuda(CudaCsr::from_host(device, &host)?),
        };
        Ok(Csr { shape, storage })
    }

    fn into_host(self) -> Result<Host<T>> {
        match self.storage {
            Storage::Cpu(host) => Ok(host),
            #[cfg(gpu)]
            Storage::Cuda(parts) => parts.to_host(),
        }
    }

    /// How wide row pointers and column indices are.
    pub fn index_width(&self) -> IndexWidth {
        match &self.storage {
            Storage::Cpu(host) => host.structure.width(),
            #[cfg(gpu)]
            Storage::Cuda(parts) => parts.width(),
        }
    }

    /// The row pointers, if the matrix is on the host: where each row's entries start, and the number of
    /// entries last.
    pub fn indptr(&self) -> Option<IndexView<'_>> {
        self.host().map(|host| host.structure.indptr())
    }

    /// The column of each entry, if the matrix is on the host.
    pub fn indices(&self) -> Option<IndexView<'_>> {
        self.host().map(|host| host.structure.indices())
    }

    /// The value of each entry, if the matrix is on the host.
    pub fn data(&self) -> Option<&[T]> {
        self.host().map(|host| &host.data[..])
    }

    /// The values, to be changed in place, if the matrix is on the host; the structure stays as it is.
    pub fn data_mut(&mut self) -> Option<&mut [T]> {
        match &mut self.storage {
            Storage::Cpu(host) => Some(&mut host.data),
            #[cfg(gpu)]
            Storage::Cuda(_) => None,
        }
    }

    /// Row pointers, column indices and values: handed over without copying if the matrix is on the host,
    /// copied there if it is not.
    ///
    /// # Errors
    /// As [`Csr::to_device`]; none for a matrix on the host.
    pub fn into_parts(self) -> Result<(Indices, Indices, Vec<T>)> {
        let Host { structure, data } = self.into_host()?;
        Ok(match structure {
            Structure::I32(p) => (p.indptr.into(), p.indices.into(), data),
            Structure::I64(p) => (p.indptr.into(), p.indices.into(), data),
        })
    }

    pub(super) fn storage(&self) -> &Storage<T> {
        &self.storage
    }

    pub(super) fn storage_mut(&mut self) -> &mut Storage<T> {
        &mut self.storage
    }

    /// The parts, if they are on the host.
    fn host(&self) -> Option<&Host<T>> {
        match &self.storage {
            Storage::Cpu(host) => Some(host),
            #[cfg(gpu)]
            Storage::Cuda(_) => None,
        }
    }

    /// The parts for what runs on the host only.
    pub(super) fn need_host(&self, what: &str) -> Result<&Host<T>> {
        self.host().ok_or_else(|| Error::DeviceMismatch {
            left: "the matrix".into(),
            left_device: self.device().to_string(),
            right: what.into(),
            right_device: Device::Cpu.to_string(),
        })
    }

    /// One row; `None` past the last, and when the matrix is not on the host.
    pub fn row(&self, row: usize) -> Option<Row<'_, T>> {
        self.host().filter(|_| row < self.rows()).map(|host| host.row(row))
    }

    /// All rows, in order, if the matrix is on the host.
    pub fn iter_rows(&self) -> Option<impl ExactSizeIterator<Item = Row<'_, T>>> {
        self.host().map(|host| (0..self.rows()).map(|row| host.row(row)))
    }

    /// The matrix as a tensor `[rows, columns]`, absent entries 0.
    ///
    /// # Errors
    /// [`Error::TooLarge`] or [`Error::Allocation`] when it does not fit in memory.
    pub fn to_dense(&self) -> Result<Tensor<T>> {
        let mut dense = Tensor::zeros(&self.device(), &self.shape)?;
        if self.nnz() == 0 {
            return Ok(dense);
        }
        let target = dense.view_mut();
        match &self.storage {
            Storage::Cpu(host) => {
                let rows = target.host().par_chunks_exact_mut(self.columns());
                rows.enumerate().for_each(|(r, target)| {
                    for (column, value) in host.row(r).iter() {
                        target[column] = value;
                    }
                });
            }
            #[cfg(gpu)]
            Storage::Cuda(parts) => to_dense(&self.extent(), parts, target.cuda())?,
        }
        Ok(dense)
    }

    /// The matrix as (row, column, value) triplets in the same order.
    ///
    /// # Errors
    /// [`Error::Allocation`] when it does not fit in memory; [`Error::DeviceMismatch`] unless the matrix
    /// is on the host.
    pub fn to_coo(&self) -> Result<Coo<T>> {
        let host = self.need_host("the triplets")?;
        let mut data = try_with_capacity("the triplets' values", self.nnz())?;
        data.extend_from_slice(&host.data);
        let structure = with_pattern!(&host.structure, p => triplets(p)?);
        Ok(Coo::trusted(self.shape, structure.0, structure.1, data))
    }

    /// The matrix in compressed sparse column form, on the same device.
    ///
    /// # Errors
    /// As [`Csr::transpose`].
    pub fn to_csc(&self) -> Result<Csc<T>> {
        Ok(Csc::of_transposed(self.transpose()?))
    }

    /// The transposed matrix in compressed sparse column form: the same data under another name.
    pub fn into_transposed_csc(self) -> Csc<T> {
        Csc::of_transposed(self)
    }

    /// Drops the entries whose value is zero (of either sign). Convolution matrices otherwise keep
    /// them, so that their structure depends on the geometry alone.
    ///
    /// # Errors
    /// [`Error::DeviceMismatch`] unless the matrix is on the host.
    pub fn eliminate_zeros(mut self) -> Result<Self> {
        self.need_host("the elimination of zeros")?;
        match &mut self.storage {
            Storage::Cpu(Host { structure, data }) => {
                with_pattern!(structure, p => compact(p, data));
            }
            #[cfg(gpu)]
            Storage::Cuda(_) => unreachable!("it is on the host"),
        }
        Ok(self)
    }
}

impl<T: Element> Host<T> {
    fn row(&self, row: usize) -> Row<'_, T> {
        let range = with_pattern!(&self.structure, p => p.range(row));
        let indices = self.structure.indices().slice(range.clone());
        Row { indices, values: &self.data[range] }
    }
}

fn triplets<I: Index>(p: &Pattern<I>) -> Result<(Indices, Indices)>
where
    Vec<I>: Into<Indices>,
{
    let what = "the triplets' indices";
    let mut rows: Vec<I> = try_with_capacity(what, p.indices.len())?;
    for row in 0..p.indptr.len() - 1 {
        rows.resize(p.indptr[row + 1].to_usize(), I::from_usize(row));
    }
    let mut columns: Vec<I> = try_with_capacity(what, p.indices.len())?;
    columns.extend_from_slice(&p.indices);
    Ok((rows.into(), columns.into()))
}

/// Moves the entries that are not zero to the front.
fn compact<T: Element, I: Index>(p: &mut Pattern<I>, data: &mut Vec<T>) {
    let (mut kept, mut read) = (0, 0);
    for row in 0..p.indptr.len() - 1 {
        let end = p.indptr[row + 1].to_usize();
        while read < end {
            if data[read] != T::default() {
                data[kept] = data[read];
                p.indices[kept] = p.indices[read];
                kept += 1;
            }
            read += 1;
        }
        p.indptr[row + 1] = I::from_usize(kept);
    }
    data.truncate(kept);
    data.shrink_to_fit();
    p.indices.truncate(kept);
    p.indices.shrink_to_fit();
}
