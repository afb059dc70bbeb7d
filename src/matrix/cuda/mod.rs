//! Sparse matrices on CUDA.

mod assembly;
mod sparse;

use bytemuck::{Pod, Zeroable};

use super::index::{Index, IndexWidth};
use super::storage::{Host, Pattern, Structure, with_pattern};
use crate::device::cuda::{CudaDevice, DeviceBuffer, Spec};
use crate::element::Element;
use crate::error::Result;
use crate::memory::try_zeroed;

pub(super) use assembly::assemble;
pub(crate) use assembly::gathering_filter;
pub(super) use sparse::{mul, to_dense, transpose};

/// The parts of a matrix on a device. What type row pointers and columns have is only known at run time:
/// the kernels are compiled for it.
#[derive(Debug)]
pub(crate) struct CudaCsr<T> {
    width: IndexWidth,
    indptr: DeviceBuffer<u8>,
    indices: DeviceBuffer<u8>,
    data: DeviceBuffer<T>,
}

/// Addresses of row pointers, columns and values, as argument structs have them.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Addresses {
    indptr: u64,
    indices: u64,
    data: u64,
}

impl<T: Element> CudaCsr<T> {
    /// A matrix to be, with any contents.
    pub(super) fn new(
        device: &CudaDevice,
        width: IndexWidth,
        rows: usize,
        nnz: usize,
    ) -> Result<Self> {
        let indices = |what, count: usize| {
            DeviceBuffer::new(device, what, count.saturating_mul(width.size()))
        };
        Ok(CudaCsr {
            width,
            indptr: indices("the row pointers of the matrix", rows + 1)?,
            indices: indices("the columns of the matrix", nnz)?,
            data: DeviceBuffer::new(device, "the values of the matrix", nnz)?,
        })
    }

    pub(super) fn from_host(device: &CudaDevice, host: &Host<T>) -> Result<Self> {
        fn bytes<I: Index>(
            device: &CudaDevice,
            what: &str,
            values: &[I],
        ) -> Result<DeviceBuffer<u8>> {
            DeviceBuffer::from_slice(device, what, bytemuck::cast_slice(values))
        }
        with_pattern!(&host.structure, p => Ok(CudaCsr {
            width: host.structure.width(),
            indptr: bytes(device, "the row pointers of the matrix", &p.indptr)?,
            indices: bytes(device, "the columns of the matrix", &p.indices)?,
            data: DeviceBuffer::from_slice(device, "the values of the matrix", &host.data)?,
        }))
    }

    pub(super) fn to_host(&self) -> Result<Host<T>> {
        fn read<I: Index>(bytes: &DeviceBuffer<u8>) -> Result<Vec<I>> {
            let mut values = try_zeroed("the matrix on the host", bytes.len() / size_of::<I>())?;
            bytes.view().read(bytemuck::cast_slice_mut(&mut values))?;
            Ok(values)
        }
        fn pattern<I: Index, T>(parts: &CudaCsr<T>) -> Result<Structure>
        where
            Pattern<I>: Into<Structure>,
        {
            let (indptr, indices) = (read::<I>(&parts.indptr)?, read::<I>(&parts.indices)?);
            Ok(Pattern { indptr, indices }.into())
        }
        let structure = match self.width {
            IndexWidth::I32 => pattern::<i32, T>(self)?,
            IndexWidth::I64 => pattern::<i64, T>(self)?,
        };
        Ok(Host { structure, data: self.data.to_vec()? })
    }

    pub(super) fn nnz(&self) -> usize {
        self.data.len()
    }

    pub(super) fn device(&self) -> &CudaDevice {
        self.indptr.device()
    }

    pub(super) fn width(&self) -> IndexWidth {
        self.width
    }

    fn addresses(&self) -> Addresses {
        Addresses {
            indptr: self.indptr.view().address(),
            indices: self.indices.view().address(),
            data: self.data.view().address(),
        }
    }
}

/// As with tensors: a clone that there is no memory for panics.
impl<T: Element> Clone for CudaCsr<T> {
    fn clone(&self) -> Self {
        fn copy<X: Pod>(buffer: &DeviceBuffer<X>) -> DeviceBuffer<X> {
            buffer.try_clone().unwrap_or_else(|error| panic!("{error}"))
        }
        let (indptr, indices) = (copy(&self.indptr), copy(&self.indices));
        CudaCsr { width: self.width, indptr, indices, data: copy(&self.data) }
    }
}

/// As with tensors: what is on different devices differs, and what cannot be read equals nothing.
impl<T: Element> PartialEq for CudaCsr<T> {
    fn eq(&self, other: &Self) -> bool {
        self.device() == other.device()
            && matches!((self.to_host(), other.to_host()), (Ok(left), Ok(right)) if left == right)
    }
}

impl Spec {
    /// The type of a matrix's row pointers and columns.
    fn columns(self, width: IndexWidth) -> Self {
        self.define("COLUMN", width)
    }
}
