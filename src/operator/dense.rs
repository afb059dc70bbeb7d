//! Dense matrices as operators.

use rayon::prelude::*;

use super::{Apply, Direction, Expression, Given, Operator};
use crate::device::Device;
#[cfg(gpu)]
use crate::device::cuda::{self, CudaDevice, Draft, Gemm};
use crate::element::Accumulator;
use crate::error::{Error, Result};
use crate::product::cpu::{Dimensions, Matrix, MatrixMut, Old, gemm};
#[cfg(gpu)]
use crate::product::cuda::multiply;
use crate::tensor::{Tensor, TensorView, TensorViewMut};
use crate::workers::Shared;

impl<T: Accumulator> Operator<T> {
    /// A dense matrix `[m, n]`, on its device.
    ///
    /// # Errors
    /// [`Error::Shape`] for a tensor that has not two axes.
    pub fn from_dense(matrix: Tensor<T>) -> Result<Self> {
        let &[m, n] = matrix.shape() else {
            return Err(Error::shape("the matrix", "[m, n]", matrix.shape()));
        };
        let device = matrix.device();
        let given = Expression::Given(Given::Dense, Box::new(Dense { matrix }));
        Ok(Operator::new([m, n], &device, given))
    }
}

struct Dense<T: Accumulator> {
    matrix: Tensor<T>,
}

/// Results of a task, per vector.
const PIECE: usize = 256;

impl<T: Accumulator> Apply<T> for Dense<T> {
    fn apply(
        &self,
        direction: Direction,
        x: TensorView<'_, T>,
        y: TensorViewMut<'_, T>,
    ) -> Result<()> {
        let (vectors, from, to) = (x.shape()[0], x.shape()[1], y.shape()[1]);
        if vectors == 0 || to == 0 {
            return Ok(());
        }
        if from == 0 {
            return y.clear();
        }
        // Y = X·F with the factor F = Aᵀ, or A for the adjoint.
        match self.matrix.device() {
            Device::Cpu => {
                let matrix = self.matrix.view();
                let a = Matrix { data: matrix.host(), row: self.matrix.shape()[1], column: 1 };
                let factor = if direction == Direction::Forward { a.t() } else { a };
                let x = Matrix { data: x.host(), row: from, column: 1 };
                let y = Shared::new(y.host());
                (0..to.div_ceil(PIECE)).into_par_iter().for_each(|task| {
                    let start = task * PIECE;
                    let columns = PIECE.min(to - start);
                    let mut sums = vec![T::ZERO; vectors * columns];
                    let target = MatrixMut { data: &mut sums, row: columns, column: 1 };
                    let dimensions = Dimensions { rows: vectors, columns, terms: from };
                    gemm(dimensions, x, factor.from(0, start), target, Old::Replaced);
                    for (vector, sums) in sums.chunks_exact(columns).enumerate() {
                        // SAFETY: each task has columns of its own.
                        unsafe { y.run(vector * to + start, columns) }.copy_from_slice(sums);
                    }
                });
                Ok(())
            }
            #[cfg(gpu)]
            Device::Cuda(device) => self.on_cuda(&device, direction, x, y),
        }
    }
}

#[cfg(gpu)]
impl<T: Accumulator> Dense<T> {
    fn on_cuda(
        &self,
        device: &CudaDevice,
        direction: Direction,
        x: TensorView<'_, T>,
        y: TensorViewMut<'_, T>,
    ) -> Result<()> {
        let (m, k, n) = (x.shape()[0], x.shape()[1], y.shape()[1]);
        let addresses = [x.address(), self.matrix.view().address(), y.address()];
        let mut draft = Draft::for_addresses(device, &addresses);
        let matrix =
            |address, leading, transposed| cuda::Matrix { address, leading, stride: 0, transposed };
        let a = matrix(draft.operand::<T>(m * k).pointer(), k, false);
        let columns = self.matrix.shape()[1];
        let factor = draft.operand::<T>(k * n).pointer();
        let b = matrix(factor, columns, direction == Direction::Forward);
        let c = matrix(draft.operand::<T>(m * n).pointer(), n, false);
        let (dtype, output) = (T::DTYPE, T::DTYPE);
        let gemm =
            Gemm { dtype, output, m, n, k, batch: 1, a, b, c, alpha: 1.0, beta: 0.0, tf32: false };
        // SAFETY: the matrices have these sizes, and the result is another tensor than the factors.
        unsafe {
            multiply(&mut draft, &gemm)?;
            draft.run_once(&addresses)
        }
    }
}
