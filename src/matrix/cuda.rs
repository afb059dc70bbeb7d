//! Sparse matrices on CUDA.

use super::index::Index;
use super::storage::{Extent, Host, Pattern, Structure, with_pattern};
use crate::device::cuda::{CudaDevice, DeviceBuffer, Draft, Region, Spec};
use crate::element::Element;
use crate::element::IndexWidth;
use crate::error::Result;
use crate::memory::try_zeroed;

/// The parts of a matrix on a device. What type row pointers and columns have is only known at run time:
/// the kernels are compiled for it.
#[derive(Debug)]
pub(crate) struct CudaCsr<T> {
    width: IndexWidth,
    indptr: DeviceBuffer<u8>,
    indices: DeviceBuffer<u8>,
    data: DeviceBuffer<T>,
}

/// The parts of a matrix that a program reads or writes, wherever they will be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CsrRegions<T> {
    pub(crate) indptr: Region<u8>,
    pub(crate) indices: Region<u8>,
    pub(crate) data: Region<T>,
}

impl<T: Element> CsrRegions<T> {
    /// The next three operands: row pointers, columns and values.
    pub(crate) fn operands(draft: &mut Draft, extent: &Extent) -> Self {
        let index = extent.width.size();
        CsrRegions {
            indptr: draft.operand((extent.rows + 1).saturating_mul(index)),
            indices: draft.operand(extent.nnz.saturating_mul(index)),
            data: draft.operand(extent.nnz),
        }
    }

    /// A matrix in the workspace.
    pub(super) fn in_workspace(draft: &mut Draft, what: &str, extent: &Extent) -> Result<Self> {
        let index = extent.width.size();
        Ok(CsrRegions {
            indptr: draft.workspace(what, (extent.rows + 1).saturating_mul(index))?,
            indices: draft.workspace(what, extent.nnz.saturating_mul(index))?,
            data: draft.workspace(what, extent.nnz)?,
        })
    }
}

impl<T: Element> CudaCsr<T> {
    /// A matrix to be, with any contents.
    pub(crate) fn new(device: &CudaDevice, extent: &Extent) -> Result<Self> {
        let Extent { rows, nnz, width, .. } = *extent;
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

    /// A copy on the same device.
    pub(super) fn try_clone(&self) -> Result<Self> {
        Ok(CudaCsr {
            width: self.width,
            indptr: self.indptr.try_clone()?,
            indices: self.indices.try_clone()?,
            data: self.data.try_clone()?,
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

    /// The addresses of row pointers, columns and values: operands as [`CsrRegions::operands`] has them.
    pub(crate) fn addresses(&self) -> [u64; 3] {
        let (indptr, indices) = (self.indptr.view().address(), self.indices.view().address());
        [indptr, indices, self.data.view().address()]
    }
}

/// Panics when there is no memory for the copy, as with tensors: [`crate::Csr::try_clone`] does not.
impl<T: Element> Clone for CudaCsr<T> {
    fn clone(&self) -> Self {
        self.try_clone().unwrap_or_else(|error| panic!("{error}"))
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
    pub(crate) fn columns(self, width: IndexWidth) -> Self {
        self.define("COLUMN", width)
    }
}

#[cfg(all(test, feature = "simulator", unix))]
mod tests {
    use super::*;
    use crate::device::cuda::simulator;
    use crate::matrix::storage::Storage;
    use crate::{Conv, OptionalView, Tensor};

    /// More than 2³¹ entries, of which the first and the last blocks are run.
    #[test]
    fn entries_beyond_32_bits_are_assembled() {
        const CHANNELS: usize = 64;
        const SIDE: usize = 728;
        const LOOKED_AT: usize = 100;
        let Some(device) = simulator::of_ends(2) else { return };
        let weight: Vec<f32> = (1..=CHANNELS * CHANNELS).map(|v| v as f32).collect();
        let shape = [CHANNELS, CHANNELS, 1, 1];
        let weight = Tensor::from_vec(&device, &shape, weight).unwrap();
        let none = OptionalView::<f32>::from(&None);
        let matrix = Conv::new([1, 1]).matrix(&weight, none, [SIDE, SIDE]).unwrap();
        let nnz = CHANNELS * CHANNELS * SIDE * SIDE;
        assert!(nnz > 1 << 31);
        assert_eq!((matrix.nnz(), matrix.index_width()), (nnz, IndexWidth::I64));
        let Storage::Cuda(parts) = matrix.storage() else { panic!("it is on the device") };
        // A row has an entry for each channel, at its own position.
        let column = |at: usize| at % CHANNELS * SIDE * SIDE + at / CHANNELS % (SIDE * SIDE);
        let value =
            |at: usize| 1.0 + (at / (CHANNELS * SIDE * SIDE) * CHANNELS + at % CHANNELS) as f32;
        for range in [0..LOOKED_AT, nnz - LOOKED_AT..nnz] {
            let values = parts.data.view().slice(range.clone()).to_vec().unwrap();
            assert_eq!(values, range.clone().map(value).collect::<Vec<f32>>());
            let bytes =
                parts.indices.view().slice(8 * range.start..8 * range.end).to_vec().unwrap();
            let columns: Vec<i64> = bytemuck::pod_collect_to_vec(&bytes);
            assert_eq!(columns, range.map(|at| column(at) as i64).collect::<Vec<i64>>());
        }
        let bytes = parts.indptr.view().slice(8 * matrix.rows()..8 * (matrix.rows() + 1));
        let last: Vec<i64> = bytemuck::pod_collect_to_vec(&bytes.to_vec().unwrap());
        assert_eq!(last, [nnz as i64]);
    }
}
