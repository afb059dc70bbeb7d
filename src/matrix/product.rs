//! Products of a sparse matrix, or its adjoint, with one vector or many.
//!
//! Forward products are parallel over rows. Adjoint products are parallel over ranges of columns, of
//! which each task picks its own out of every row. In both, each element of the result is one sum in
//! a fixed order: the same bytes whatever the number of threads. Half types are summed in `f32`.

use std::ops::Range;

use rayon::prelude::*;

use super::csr::Csr;
#[cfg(gpu)]
use super::cuda;
use super::index::Index;
use super::storage::{Pattern, Storage, with_pattern};
use super::transpose::{ColumnWindow, column_ranges};
use crate::element::{Accumulator, Element};
use crate::error::{Error, Result};
use crate::memory::try_zeroed;
use crate::tensor::view::{common_device, expect_shape};
use crate::tensor::{Tensor, TensorView, TensorViewMut};

/// Rows a task takes at least.
const ROWS_PER_TASK: usize = 64;

impl<T: Element> Csr<T> {
    /// M·x for `x` of shape `[columns]`: shape `[rows]`.
    ///
    /// The matrix of a convolution with bias multiplies [x; 1], one image flattened in the order
    /// (channel, position) with a 1 appended.
    ///
    /// # Errors
    /// [`Error::Shape`] when `x` has another shape.
    pub fn mul_vector<'a>(&self, x: impl Into<TensorView<'a, T>>) -> Result<Tensor<T>> {
        let mut y = Tensor::for_result(&self.device(), &[self.rows()])?;
        self.mul_vector_into(x, &mut y)?;
        Ok(y)
    }

    /// [`Csr::mul_vector`] into `y` of shape `[rows]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when `x` or `y` has another shape.
    pub fn mul_vector_into<'a, 'b>(
        &self,
        x: impl Into<TensorView<'a, T>>,
        y: impl Into<TensorViewMut<'b, T>>,
    ) -> Result<()> {
        let (x, y) = (x.into(), y.into());
        expect_shape("x", &[self.columns()], x.shape())?;
        expect_shape("y", &[self.rows()], y.shape())?;
        self.check_devices(&x, &y)?;
        self.multiply(x, 1, y)
    }

    /// M·X for `x` of shape `[columns, vectors]`, one vector per column: shape `[rows, vectors]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when `x` has another shape; [`Error::Allocation`] when the result does not
    /// fit in memory.
    pub fn mul_matrix<'a>(&self, x: impl Into<TensorView<'a, T>>) -> Result<Tensor<T>> {
        let x = x.into();
        let vectors = vector_count("x", self.columns(), x.shape())?;
        let mut y = Tensor::for_result(&self.device(), &[self.rows(), vectors])?;
        self.mul_matrix_into(x, &mut y)?;
        Ok(y)
    }

    /// [`Csr::mul_matrix`] into `y` of shape `[rows, vectors]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when `x` or `y` has another shape.
    pub fn mul_matrix_into<'a, 'b>(
        &self,
        x: impl Into<TensorView<'a, T>>,
        y: impl Into<TensorViewMut<'b, T>>,
    ) -> Result<()> {
        let (x, y) = (x.into(), y.into());
        let vectors = vector_count("x", self.columns(), x.shape())?;
        expect_shape("y", &[self.rows(), vectors], y.shape())?;
        self.check_devices(&x, &y)?;
        self.multiply(x, vectors, y)
    }

    /// Mᵀ·y for `y` of shape `[rows]`: shape `[columns]`.
    ///
    /// On a GPU this transposes the matrix first: to multiply more often, keep [`Csr::transpose`].
    ///
    /// # Errors
    /// [`Error::Shape`] when `y` has another shape.
    pub fn adjoint_mul_vector<'a>(&self, y: impl Into<TensorView<'a, T>>) -> Result<Tensor<T>> {
        let mut x = Tensor::for_result(&self.device(), &[self.columns()])?;
        self.adjoint_mul_vector_into(y, &mut x)?;
        Ok(x)
    }

    /// [`Csr::adjoint_mul_vector`] into `x` of shape `[columns]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when `y` or `x` has another shape.
    pub fn adjoint_mul_vector_into<'a, 'b>(
        &self,
        y: impl Into<TensorView<'a, T>>,
        x: impl Into<TensorViewMut<'b, T>>,
    ) -> Result<()> {
        let (y, x) = (y.into(), x.into());
        expect_shape("y", &[self.rows()], y.shape())?;
        expect_shape("x", &[self.columns()], x.shape())?;
        self.check_devices(&y, &x)?;
        self.adjoint_multiply(y, 1, x)
    }

    /// Mᵀ·Y for `y` of shape `[rows, vectors]`, one vector per column: shape `[columns, vectors]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when `y` has another shape; [`Error::Allocation`] when the result does not
    /// fit in memory.
    pub fn adjoint_mul_matrix<'a>(&self, y: impl Into<TensorView<'a, T>>) -> Result<Tensor<T>> {
        let y = y.into();
        let vectors = vector_count("y", self.rows(), y.shape())?;
        let mut x = Tensor::for_result(&self.device(), &[self.columns(), vectors])?;
        self.adjoint_mul_matrix_into(y, &mut x)?;
        Ok(x)
    }

    /// [`Csr::adjoint_mul_matrix`] into `x` of shape `[columns, vectors]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when `y` or `x` has another shape.
    pub fn adjoint_mul_matrix_into<'a, 'b>(
        &self,
        y: impl Into<TensorView<'a, T>>,
        x: impl Into<TensorViewMut<'b, T>>,
    ) -> Result<()> {
        let (y, x) = (y.into(), x.into());
        let vectors = vector_count("y", self.rows(), y.shape())?;
        expect_shape("x", &[self.columns(), vectors], x.shape())?;
        self.check_devices(&y, &x)?;
        self.adjoint_multiply(y, vectors, x)
    }

    fn multiply(
        &self,
        x: TensorView<'_, T>,
        vectors: usize,
        y: TensorViewMut<'_, T>,
    ) -> Result<()> {
        match self.storage() {
            Storage::Cpu(host) => {
                let data = &host.data;
                with_pattern!(&host.structure, p => mul(p, data, x.host(), vectors, y.host()))
            }
            #[cfg(gpu)]
            Storage::Cuda(parts) => cuda::mul(parts, self.shape(), x.cuda(), vectors, y.cuda()),
        }
    }

    fn adjoint_multiply(
        &self,
        y: TensorView<'_, T>,
        vectors: usize,
        x: TensorViewMut<'_, T>,
    ) -> Result<()> {
        match self.storage() {
            Storage::Cpu(host) => {
                let data = &host.data;
                with_pattern!(&host.structure, p => {
                    adjoint_mul(p, data, y.host(), vectors, x.host())
                })
            }
            // Scattering would add up in no fixed order.
            #[cfg(gpu)]
            Storage::Cuda(_) => self.transpose()?.multiply(y, vectors, x),
        }
    }

    fn check_devices(
        &self,
        input: &TensorView<'_, T>,
        output: &TensorViewMut<'_, T>,
    ) -> Result<()> {
        common_device(&[
            ("the matrix", self.device()),
            ("the vectors", input.device()),
            ("the result", output.device()),
        ])
        .map(drop)
    }
}

/// The number of vectors in a tensor of shape `[extent, vectors]`.
fn vector_count(argument: &str, extent: usize, shape: &[usize]) -> Result<usize> {
    match *shape {
        [first, vectors] if first == extent => Ok(vectors),
        _ => Err(Error::shape(argument, format!("[{extent}, vectors]"), shape)),
    }
}

fn mul<T: Element, I: Index>(
    p: &Pattern<I>,
    data: &[T],
    x: &[T],
    vectors: usize,
    y: &mut [T],
) -> Result<()> {
    if vectors == 1 {
        y.par_iter_mut().with_min_len(ROWS_PER_TASK).enumerate().for_each(|(row, target)| {
            let range = p.range(row);
            *target = T::from_acc(dot(&p.indices[range.clone()], &data[range], x));
        });
    } else if vectors > 0 {
        y.par_chunks_exact_mut(vectors).with_min_len(ROWS_PER_TASK).enumerate().try_for_each_init(
            || None,
            |buffer, (row, target)| {
                accumulate(target, buffer, |sum| {
                    for entry in p.range(row) {
                        let column = p.indices[entry].to_usize();
                        add_scaled(sum, data[entry], &x[column * vectors..][..vectors]);
                    }
                })
            },
        )?;
    }
    Ok(())
}

/// Runs `add` on a zeroed accumulator slice and rounds the sums to `target`. The slice is `target`
/// itself where it can be, else `buffer`, which is kept for the next call.
fn accumulate<T: Element>(
    target: &mut [T],
    buffer: &mut Option<Vec<T::Acc>>,
    add: impl FnOnce(&mut [T::Acc]),
) -> Result<()> {
    if let Some(sum) = T::as_acc_mut(target) {
        sum.fill(T::Acc::ZERO);
        add(sum);
        return Ok(());
    }
    let sum = match buffer {
        Some(sum) if sum.len() == target.len() => {
            sum.fill(T::Acc::ZERO);
            sum
        }
        _ => buffer.insert(try_zeroed("the sums of a product", target.len())?),
    };
    add(sum);
    T::narrow(sum, target);
    Ok(())
}

/// Four interleaved partial sums, so that one addition need not wait for the one before.
fn dot<T: Element, I: Index>(indices: &[I], values: &[T], x: &[T]) -> T::Acc {
    let mut sums = [T::Acc::ZERO; 4];
    let (index_blocks, index_tail) = indices.as_chunks::<4>();
    let (value_blocks, value_tail) = values.as_chunks::<4>();
    for (index, value) in index_blocks.iter().zip(value_blocks) {
        for lane in 0..4 {
            sums[lane] += value[lane].to_acc() * x[index[lane].to_usize()].to_acc();
        }
    }
    for (lane, (index, value)) in index_tail.iter().zip(value_tail).enumerate() {
        sums[lane] += value.to_acc() * x[index.to_usize()].to_acc();
    }
    (sums[0] + sums[1]) + (sums[2] + sums[3])
}

#[inline]
fn add_scaled<T: Element>(sum: &mut [T::Acc], factor: T, x: &[T]) {
    let factor = factor.to_acc();
    for (sum, x) in sum.iter_mut().zip(x) {
        *sum += factor * x.to_acc();
    }
}

fn adjoint_mul<T: Element, I: Index>(
    p: &Pattern<I>,
    data: &[T],
    y: &[T],
    vectors: usize,
    x: &mut [T],
) -> Result<()> {
    if vectors == 0 || x.is_empty() {
        return Ok(());
    }
    let ranges = column_ranges(x.len() / vectors);
    let size = ranges[0].len() * vectors;
    x.par_chunks_mut(size).zip(&ranges).try_for_each(|(target, range)| {
        accumulate(target, &mut None, |sum| adjoint_add(p, data, y, vectors, range, sum))
    })
}

/// Adds the rows' entries in the columns of `range` to `sum`.
fn adjoint_add<T: Element, I: Index>(
    p: &Pattern<I>,
    data: &[T],
    y: &[T],
    vectors: usize,
    range: &Range<usize>,
    sum: &mut [T::Acc],
) {
    let mut window = ColumnWindow::new(range);
    for (row, y) in y.chunks_exact(vectors).enumerate() {
        let own = window.entries(p, row);
        let entries = p.indices[own.clone()].iter().zip(&data[own]);
        let entries = entries.map(|(i, &value)| (i.to_usize() - range.start, value));
        if vectors == 1 {
            let factor = y[0].to_acc();
            entries.for_each(|(column, value)| sum[column] += value.to_acc() * factor);
        } else {
            entries.for_each(|(c, value)| add_scaled(&mut sum[c * vectors..][..vectors], value, y));
        }
    }
}
