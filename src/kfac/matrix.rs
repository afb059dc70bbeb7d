//! Stacks of small dense matrices on the host, one per group: what factors become once they are decomposed.

use faer::{Accum, MatMut, MatRef};
use rayon::prelude::*;

use crate::device::Device;
use crate::element::Accumulator;
use crate::error::{Error, Result};
use crate::memory::try_zeroed;
use crate::tensor::{Tensor, TensorView};

/// Rows of a product that are computed together, whatever the number of threads.
const ROWS: usize = 64;

/// A tensor's elements on the host: an explicit transfer where they are elsewhere.
pub(super) fn to_host<T: Accumulator>(tensor: TensorView<'_, T>) -> Result<Tensor<T>> {
    Tensor::from_vec(&Device::Cpu, tensor.shape(), tensor.to_vec()?)
}

/// One group's matrix of a host tensor `[g, rows, columns]`.
pub(super) fn matrix<T: Accumulator>(stack: &Tensor<T>, group: usize) -> MatRef<'_, T> {
    let &[_, rows, columns] = stack.shape() else { unreachable!("stacks have three axes") };
    let len = rows * columns;
    let data = &stack.view().host()[group * len..][..len];
    MatRef::from_row_major_slice(data, rows, columns)
}

/// One group's row of a host tensor `[g, columns]`.
pub(super) fn row<T: Accumulator>(stack: &Tensor<T>, group: usize) -> &[T] {
    let columns = stack.shape()[1];
    &stack.view().host()[group * columns..][..columns]
}

/// A product of matrices, row-major.
pub(super) fn product<T: Accumulator>(left: MatRef<'_, T>, right: MatRef<'_, T>) -> Result<Vec<T>> {
    let (m, n) = (left.nrows(), right.ncols());
    let mut result = try_zeroed("a product of matrices", m * n)?;
    result.par_chunks_mut((ROWS * n).max(1)).enumerate().for_each(|(piece, rows)| {
        let count = rows.len() / n;
        let target = MatMut::from_row_major_slice_mut(rows, count, n);
        T::matmul(target, Accum::Replace, left.subrows(piece * ROWS, count), right);
    });
    Ok(result)
}

/// Row-major elements as a matrix.
pub(super) fn as_matrix<T>(data: &[T], rows: usize, columns: usize) -> MatRef<'_, T> {
    MatRef::from_row_major_slice(data, rows, columns)
}

/// The sum of the diagonal.
pub(super) fn trace<T: Accumulator>(matrix: MatRef<'_, T>) -> f64 {
    (0..matrix.nrows()).map(|i| matrix[(i, i)].to_f64()).sum()
}

/// Fails where an element is not finite; `tensor` is `[g, rows, columns]`, and is read to the host.
pub(super) fn check_finite<T: Accumulator>(
    name: &str,
    tensor: TensorView<'_, T>,
    hint: &str,
) -> Result<()> {
    let shape = tensor.shape().to_vec();
    let copy;
    let data = match tensor.as_slice() {
        Some(data) => data,
        None => {
            copy = tensor.to_vec()?;
            &copy
        }
    };
    let Some(at) = data.iter().position(|value| !value.to_f64().is_finite()) else {
        return Ok(());
    };
    let (columns, rows) = (shape[2], shape[1]);
    let (group, i, j) = (at / (rows * columns), at / columns % rows, at % columns);
    let argument = format!("{name} of group {group} at ({i}, {j})");
    Err(Error::invalid(argument, data[at], format!("it must be finite: {hint}")))
}
