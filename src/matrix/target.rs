//! Where a matrix is assembled that is not a new one.

use super::csr::Csr;
use super::index::Index;
use crate::device::Device;
use crate::element::Element;
use crate::element::IndexWidth;

/// Where [`crate::Conv::matrix_into`] writes: slices of exactly the matrix's size.
#[derive(Debug)]
pub struct CsrBuffers<'a, T, I> {
    /// Row pointers: one more than rows.
    pub indptr: &'a mut [I],
    /// Columns: as many as entries.
    pub indices: &'a mut [I],
    /// Values: as many as entries.
    pub data: &'a mut [T],
}

/// What [`crate::Conv::matrix_into`] overwrites: [`CsrBuffers`], or a `&mut` [`Csr`] of the new matrix's
/// shape and number of entries, on any device. A call that fails while it writes leaves the latter empty.
#[derive(Debug)]
pub struct CsrTarget<'a, T: Element>(pub(super) Target<'a, T>);

#[derive(Debug)]
pub(super) enum Target<'a, T: Element> {
    I32(CsrBuffers<'a, T, i32>),
    I64(CsrBuffers<'a, T, i64>),
    Matrix(&'a mut Csr<T>),
}

impl<T: Element> Target<'_, T> {
    pub(super) fn device(&self) -> Device {
        match self {
            Target::I32(_) | Target::I64(_) => Device::Cpu,
            Target::Matrix(matrix) => matrix.device(),
        }
    }

    pub(super) fn width(&self) -> IndexWidth {
        match self {
            Target::I32(_) => IndexWidth::I32,
            Target::I64(_) => IndexWidth::I64,
            Target::Matrix(matrix) => matrix.index_width(),
        }
    }
}

impl<'a, T: Element, I: Index> From<CsrBuffers<'a, T, I>> for CsrTarget<'a, T> {
    fn from(buffers: CsrBuffers<'a, T, I>) -> Self {
        let CsrBuffers { indptr, indices, data } = buffers;
        // Casts of a type to itself.
        CsrTarget(match I::WIDTH {
            IndexWidth::I32 => Target::I32(CsrBuffers {
                indptr: bytemuck::cast_slice_mut(indptr),
                indices: bytemuck::cast_slice_mut(indices),
                data,
            }),
            IndexWidth::I64 => Target::I64(CsrBuffers {
                indptr: bytemuck::cast_slice_mut(indptr),
                indices: bytemuck::cast_slice_mut(indices),
                data,
            }),
        })
    }
}

impl<'a, T: Element> From<&'a mut Csr<T>> for CsrTarget<'a, T> {
    fn from(matrix: &'a mut Csr<T>) -> Self {
        CsrTarget(Target::Matrix(matrix))
    }
}
