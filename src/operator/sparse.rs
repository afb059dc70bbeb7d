//! Sparse matrices as operators.

use std::sync::Arc;

use super::{Apply, Direction, Expression, Given, Operator};
use crate::device::{Device, common_alignment};
use crate::element::Accumulator;
use crate::error::Result;
use crate::matrix::{Csr, Product};
use crate::plan::PlanOptions;
use crate::tensor::{TensorView, TensorViewMut};

impl<T: Accumulator> Operator<T> {
    /// A sparse matrix, on its device. (Of the `sprs` crate: see `Csr::from_sprs`.)
    ///
    /// # Errors
    /// On a CUDA device, what keeping its transpose beside it fails with.
    pub fn from_csr(matrix: Csr<T>) -> Result<Self> {
        let (shape, device) = (matrix.shape(), matrix.device());
        let matrix = Arc::new(matrix);
        let apply = apply(&matrix)?;
        Ok(Operator::new(shape, &device, Expression::Given(Given::Sparse(matrix), apply)))
    }
}

/// What applies a matrix.
pub(super) fn apply<T: Accumulator>(matrix: &Arc<Csr<T>>) -> Result<Box<dyn Apply<T>>> {
    // There a product with the adjoint transposes the matrix each time.
    let transposed = match matrix.device() {
        Device::Cpu => None,
        #[cfg(gpu)]
        Device::Cuda(_) => Some(matrix.transpose()?),
    };
    Ok(Box::new(Sparse { matrix: matrix.clone(), transposed }))
}

struct Sparse<T: Accumulator> {
    matrix: Arc<Csr<T>>,
    transposed: Option<Csr<T>>,
}

impl<T: Accumulator> Apply<T> for Sparse<T> {
    fn apply(
        &self,
        direction: Direction,
        x: TensorView<'_, T>,
        mut y: TensorViewMut<'_, T>,
    ) -> Result<()> {
        let (matrix, product) = match (direction, &self.transposed) {
            (Direction::Forward, _) => (&*self.matrix, Product::vector()),
            (Direction::Adjoint, None) => (&*self.matrix, Product::vector().adjoint()),
            (Direction::Adjoint, Some(transposed)) => (transposed, Product::vector()),
        };
        let (from, to) = (x.shape()[1], y.shape()[1]);
        let rows = [
            x.address(),
            y.address(),
            (from * size_of::<T>()) as u64,
            (to * size_of::<T>()) as u64,
        ];
        let options = PlanOptions::new().alignment(common_alignment(&rows));
        let plan = matrix.plan_product(product, options)?;
        let mut workspace = plan.make_workspace()?;
        for row in 0..x.shape()[0] {
            let x = x.slice_rows(row..row + 1).with_shape(&[from]);
            let y = y.reborrow().slice_rows(row..row + 1).with_shape(&[to]);
            plan.run(matrix, x, y, &mut workspace)?;
        }
        Ok(())
    }
}
