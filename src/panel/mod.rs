//! Panels: a few long vectors, the rows of a tensor `[vectors, length]`, on any device.
//!
//! What iterations on a linear operator do with them: inner products of all pairs, and sums of them with
//! coefficients. Inner products are summed in `f64`, in an order that follows from the sizes alone;
//! coefficients are small matrices on the host. Vectors never leave their device.

mod cpu;
#[cfg(gpu)]
mod cuda;
mod orthonormal;
mod random;

use faer::{Mat, MatRef};

use crate::device::Device;
use crate::element::Accumulator;
use crate::error::Result;
use crate::tensor::{TensorView, TensorViewMut};

pub(crate) use orthonormal::{Random, norms, orthonormalise, project_out, roughly_orthonormalise};
use random::fill_normal;

/// The inner products of all rows of `a` with all rows of `b`: entry (i, j) is ⟨aᵢ, bⱼ⟩. Elements are
/// multiplied and added up in `T` over short pieces, and the pieces' sums in `f64`: enough to make vectors
/// orthogonal to others, which is done twice where once is not enough.
pub(crate) fn dots<T: Accumulator>(
    a: &TensorView<'_, T>,
    b: &TensorView<'_, T>,
) -> Result<Mat<f64>> {
    match a.device() {
        Device::Cpu => Ok(cpu::dots(a.host(), b.host(), rows(a.shape()))),
        #[cfg(gpu)]
        Device::Cuda(device) => cuda::dots(&device, a, b),
    }
}

/// In what the products of [`gram`] are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Products {
    /// The type of the elements: as [`dots`], which tells vectors that depend on one another from others.
    Native,
    /// `f64`: a basis by its factor is orthonormal.
    Wide,
}

/// The inner products of the rows of a panel with one another.
pub(crate) fn gram<T: Accumulator>(a: &TensorView<'_, T>, products: Products) -> Result<Mat<f64>> {
    match (a.device(), products) {
        (Device::Cpu, Products::Native) => Ok(cpu::gram::<T, T>(a.host(), rows(a.shape()))),
        (Device::Cpu, Products::Wide) => Ok(cpu::gram::<T, f64>(a.host(), rows(a.shape()))),
        #[cfg(gpu)]
        (Device::Cuda(device), _) => cuda::dots(&device, a, a),
    }
}

/// What becomes of a target's old values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// They are overwritten without being read.
    Replaced,
    /// The sum is added to them.
    Kept,
}

/// `y = C·x`, or `y += C·x`: row i of `y` gets the sum of the rows of `x` with the coefficients in row i.
pub(crate) fn combine<T: Accumulator>(
    coefficients: MatRef<'_, f64>,
    x: &TensorView<'_, T>,
    y: TensorViewMut<'_, T>,
    target: Target,
) -> Result<()> {
    let (rows, columns) = (coefficients.nrows(), coefficients.ncols());
    assert_eq!((rows, columns), (y.shape()[0], x.shape()[0]), "coefficients fit the panels");
    if rows == 0 || (columns == 0 && target == Target::Kept) {
        return Ok(());
    }
    if columns == 0 {
        return y.clear();
    }
    match x.device() {
        Device::Cpu => {
            cpu::combine(coefficients, x.host(), y.host(), target);
            Ok(())
        }
        #[cfg(gpu)]
        Device::Cuda(device) => cuda::combine(&device, coefficients, x, y, target),
    }
}

/// `y += factor·x`, element by element, for tensors of any one shape.
pub(crate) fn add_scaled<T: Accumulator>(
    factor: f64,
    x: &TensorView<'_, T>,
    y: TensorViewMut<'_, T>,
    target: Target,
) -> Result<()> {
    let len: usize = x.shape().iter().product();
    let (x, y) = (x.with_shape(&[1, len]), y.with_shape(&[1, len]));
    combine(Mat::from_fn(1, 1, |_, _| factor).as_ref(), &x, y, target)
}

/// The number of rows.
fn rows(shape: &[usize]) -> usize {
    shape[0]
}
