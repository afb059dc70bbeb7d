//! What a sparse matrix consists of, on the host or on a device.

#[cfg(gpu)]
use super::cuda::CudaCsr;
use super::index::{Index, IndexView};
use crate::device::Device;
use crate::element::Element;
use crate::element::IndexWidth;
use crate::error::Result;
use crate::memory::try_with_capacity;

/// Evaluates an expression with `$pattern` bound to the pattern of whichever width there is.
macro_rules! with_pattern {
    ($structure:expr, $pattern:ident => $body:expr) => {
        match $structure {
            $crate::matrix::storage::Structure::I32($pattern) => $body,
            $crate::matrix::storage::Structure::I64($pattern) => $body,
        }
    };
}
pub(super) use with_pattern;

/// How large a matrix is, without its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) nnz: usize,
    pub(crate) width: IndexWidth,
}

impl Extent {
    /// Of the transposed matrix.
    #[cfg(gpu)]
    pub(super) fn transposed(self) -> Self {
        Extent { rows: self.columns, columns: self.rows, ..self }
    }

    /// Bytes of row pointers, columns and values of so many bytes.
    pub(super) fn bytes(&self, value: usize) -> u64 {
        let index = self.width.size() as u64;
        (self.rows as u64 + 1) * index + self.nnz as u64 * (index + value as u64)
    }
}

/// The parts of a matrix, wherever they are.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Storage<T: Element> {
    Cpu(Host<T>),
    #[cfg(gpu)]
    Cuda(CudaCsr<T>),
}

/// The parts of a matrix on the host.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Host<T> {
    pub(super) structure: Structure,
    pub(super) data: Vec<T>,
}

impl<T: Element> Storage<T> {
    pub(super) fn nnz(&self) -> usize {
        match self {
            Storage::Cpu(host) => host.data.len(),
            #[cfg(gpu)]
            Storage::Cuda(parts) => parts.nnz(),
        }
    }

    pub(super) fn device(&self) -> Device {
        match self {
            Storage::Cpu(_) => Device::Cpu,
            #[cfg(gpu)]
            Storage::Cuda(parts) => Device::Cuda(parts.device().clone()),
        }
    }

    /// A copy in the same place.
    pub(super) fn try_clone(&self) -> Result<Self> {
        Ok(match self {
            Storage::Cpu(host) => Storage::Cpu(host.try_clone()?),
            #[cfg(gpu)]
            Storage::Cuda(parts) => Storage::Cuda(parts.try_clone()?),
        })
    }
}

impl<T: Element> Host<T> {
    fn try_clone(&self) -> Result<Self> {
        fn pattern<I: Index>(pattern: &Pattern<I>) -> Result<Structure>
        where
            Pattern<I>: Into<Structure>,
        {
            let (indptr, indices) = (copy(&pattern.indptr)?, copy(&pattern.indices)?);
            Ok(Pattern { indptr, indices }.into())
        }
        let structure = with_pattern!(&self.structure, p => pattern(p)?);
        Ok(Host { structure, data: copy(&self.data)? })
    }
}

fn copy<X: Copy>(source: &[X]) -> Result<Vec<X>> {
    let mut target = try_with_capacity("a copy of a matrix", source.len())?;
    target.extend_from_slice(source);
    Ok(target)
}

/// Where the entries are, in either index width.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Structure {
    I32(Pattern<i32>),
    I64(Pattern<i64>),
}

/// Where the entries are.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pattern<I> {
    pub(super) indptr: Vec<I>,
    pub(super) indices: Vec<I>,
}

impl From<Pattern<i32>> for Structure {
    fn from(pattern: Pattern<i32>) -> Self {
        Structure::I32(pattern)
    }
}

impl From<Pattern<i64>> for Structure {
    fn from(pattern: Pattern<i64>) -> Self {
        Structure::I64(pattern)
    }
}

impl Structure {
    pub(super) fn width(&self) -> IndexWidth {
        self.indptr().width()
    }

    pub(super) fn indptr(&self) -> IndexView<'_> {
        with_pattern!(self, p => IndexView::from(&p.indptr[..]))
    }

    pub(super) fn indices(&self) -> IndexView<'_> {
        with_pattern!(self, p => IndexView::from(&p.indices[..]))
    }
}

impl<I: Index> Pattern<I> {
    /// The entries of `row`.
    #[inline(always)]
    pub(super) fn range(&self, row: usize) -> std::ops::Range<usize> {
        self.indptr[row].to_usize()..self.indptr[row + 1].to_usize()
    }
}
