//! What a sparse matrix consists of, on the host or on a device.

#[cfg(gpu)]
use super::cuda::CudaCsr;
use super::index::{Index, IndexView, IndexWidth};
use crate::device::Device;
use crate::element::Element;

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
