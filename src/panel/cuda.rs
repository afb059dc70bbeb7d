//! Panels on CUDA: inner products of many vectors, and sums with coefficients, by the product engine, of few by
//! `kernels/panel/dots.cu`.
//! Only small matrices go between host and device.

use faer::{Mat, MatRef};

use super::Target;
use crate::device::cuda::structs::DotsArgs;
use crate::device::cuda::{CudaDevice, DeviceBuffer, Draft, Gemm, Matrix, Spec, THREADS, blocks};
use crate::element::{Accumulator, DType};
use crate::error::{Error, Result};
use crate::product::cuda::{multiply, multiply_in_f64};
use crate::tensor::{TensorView, TensorViewMut};

/// Elements of a piece of the vectors, at least: it decides the order of the sums.
const PIECE: usize = 1 << 12;

/// Pieces at most; more elements make longer ones.
const PIECES: usize = 256;

/// Vectors of both panels from which on a tile of a product pays.
const LEAST_TILE: usize = 16;

pub(super) fn dots<T: Accumulator>(
    device: &CudaDevice,
    a: &TensorView<'_, T>,
    b: &TensorView<'_, T>,
) -> Result<Mat<f64>> {
    let (rows, columns, len) = (a.shape()[0], b.shape()[0], a.shape()[1]);
    if rows == 0 || columns == 0 || len == 0 {
        return Ok(Mat::zeros(rows, columns));
    }
    let piece = PIECE.max(len.div_ceil(PIECES));
    let pieces = len.div_ceil(piece);
    let total = DeviceBuffer::<f64>::new(device, "inner products", rows * columns)?;
    let addresses = [a.address(), b.address(), total.view().address()];
    let mut draft = Draft::for_addresses(device, &addresses);
    let (a, b) = (draft.operand::<T>(rows * len), draft.operand::<T>(columns * len));
    let target = draft.operand::<f64>(rows * columns);
    let read = || -> Result<Mat<f64>> {
        let found = total.to_vec()?;
        Ok(Mat::from_fn(rows, columns, |i, j| found[i * columns + j]))
    };
    if rows.min(columns) >= LEAST_TILE {
        let matrix = |address, transposed| Matrix { address, leading: len, stride: 0, transposed };
        let gemm = Gemm {
            dtype: T::DTYPE,
            output: DType::F64,
            m: rows,
            n: columns,
            k: len,
            batch: 1,
            a: matrix(a.pointer(), false),
            b: matrix(b.pointer(), true),
            c: Matrix { leading: columns, ..matrix(target.pointer(), false) },
            alpha: 1.0,
            beta: 0.0,
            tf32: false,
        };
        // SAFETY: the panels have these sizes, and the products are another buffer.
        unsafe {
            multiply_in_f64(&mut draft, &gemm)?;
            draft.run_once(&addresses)?;
        }
        return read();
    }
    let partial = draft.workspace::<f64>("parts of inner products", pieces * rows * columns)?;
    // Several rows share what is loaded of the other panel; one is all that there is in most iterations.
    let width = if columns == 1 { 1 } else { 4 };
    let spec = |entry| Spec::new("dots.cu", entry).element(T::DTYPE).define("COLUMNS", width);
    let arguments = DotsArgs {
        a: a.pointer(),
        b: b.pointer(),
        partial: partial.pointer(),
        total: target.pointer(),
        rows: rows as i64,
        columns: columns as i64,
        length: len as i64,
        piece: piece as i64,
        pieces: pieces as i64,
    };
    let across = columns.div_ceil(width);
    if across > u16::MAX as usize {
        let what = "the number of vectors".to_string();
        return Err(Error::TooLarge { what, value: columns.to_string(), limit: 4 * 65_535 });
    }
    let [down, ..] = blocks(rows, 8)?;
    // SAFETY: the kernels read both panels and write partial and total sums, as large as the sizes say.
    unsafe {
        let grid = [down, across as u32, pieces as u32];
        draft.launch(spec("partial_dots"), grid, THREADS, &arguments);
        draft.launch(spec("total_dots"), blocks(rows * columns, THREADS)?, THREADS, &arguments);
        draft.run_once(&addresses)?;
    }
    read()
}

pub(super) fn combine<T: Accumulator>(
    device: &CudaDevice,
    coefficients: MatRef<'_, f64>,
    x: &TensorView<'_, T>,
    y: TensorViewMut<'_, T>,
    target: Target,
) -> Result<()> {
    let (m, k, n) = (coefficients.nrows(), coefficients.ncols(), y.shape()[1]);
    if n == 0 {
        return Ok(());
    }
    let factors: Vec<T> =
        (0..m * k).map(|at| T::from_f64(coefficients[(at / k, at % k)])).collect();
    let factors = DeviceBuffer::from_slice(device, "coefficients", &factors)?;
    let addresses = [factors.view().address(), x.address(), y.address()];
    let mut draft = Draft::for_addresses(device, &addresses);
    let matrix = |address, leading| Matrix { address, leading, stride: 0, transposed: false };
    let a = matrix(draft.operand::<T>(m * k).pointer(), k);
    let b = matrix(draft.operand::<T>(k * n).pointer(), n);
    let c = matrix(draft.operand::<T>(m * n).pointer(), n);
    let (dtype, output) = (T::DTYPE, T::DTYPE);
    let beta = if target == Target::Kept { 1.0 } else { 0.0 };
    let gemm = Gemm { dtype, output, m, n, k, batch: 1, a, b, c, alpha: 1.0, beta, tf32: false };
    // SAFETY: the matrices have these sizes, and the result is another tensor than the factors.
    unsafe {
        multiply(&mut draft, &gemm)?;
        draft.run_once(&addresses)
    }
}
