//! Transposed convolution: the adjoint of a convolution, as a layer of its own.

use super::backward::adjoint_problem;
#[cfg(gpu)]
use super::cuda;
use super::problem::Problem;
use super::{Algorithm, cpu};
use crate::device::Device;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::geometry::{Conv, Geometry, PaddingMode};
use crate::tensor::view::{common_device, expect_shape};
use crate::tensor::{Tensor, TensorView, TensorViewMut};

impl<const D: usize> Conv<D> {
    /// The transposed convolution: the adjoint of this convolution applied to `x`, plus `bias` on
    /// every position. PyTorch's `F.conv_transpose1d`, `2d`, `3d`.
    ///
    /// Channels first: `x [N, I, spatial…]`, `weight [I, O/groups, kernel…]`, `bias [O]`, result
    /// `[N, O, output…]` with the extents of [`Conv::bind_transposed`]. Channels last:
    /// `x [N, spatial…, I]`, `weight [kernel…, O/groups, I]`. The weight is the one with which
    /// [`Conv::forward`] maps the result's shape to that of `x`. Unlike PyTorch's, the padding mode may
    /// be any: it is that of the convolution this is the adjoint of.
    ///
    /// # Errors
    /// As [`Conv::forward`] and [`Conv::bind_transposed`].
    ///
    /// ```
    /// use convmat::{Conv, Device, Tensor};
    /// let conv = Conv::new([2]).stride([2]);
    /// let x = Tensor::from_vec(&Device::Cpu, &[1, 1, 2], vec![1f32, 2.])?;
    /// let weight = Tensor::from_vec(&Device::Cpu, &[1, 1, 2], vec![10f32, 1.])?;
    /// assert_eq!(conv.transposed(&x, &weight, None, [1])?.into_vec()?, [10., 1., 20., 2., 0.]);
    /// # Ok::<(), convmat::Error>(())
    /// ```
    pub fn transposed<'x, 'w, T: Element>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        weight: impl Into<TensorView<'w, T>>,
        bias: Option<TensorView<'_, T>>,
        output_padding: [usize; D],
    ) -> Result<Tensor<T>> {
        let (x, weight) = (x.into(), weight.into());
        let (.., size) = self.axis_order().split_activation::<D>("input", x.shape())?;
        let geometry = self.bind_transposed(size, output_padding)?;
        let (problem, shape) = transposed_problem(&geometry, &x, &weight, bias.as_ref())?;
        let mut y = Tensor::for_result(&x.device(), &shape)?;
        run(&problem, &x, &weight, bias.as_ref(), y.view_mut(), Algorithm::Auto)?;
        Ok(y)
    }

    /// [`Conv::transposed`] into a caller's tensor, all of which is overwritten and whose extents give
    /// the output padding, by a chosen algorithm.
    ///
    /// # Errors
    /// As [`Conv::transposed`]; [`Error::Shape`] also when no output padding gives the shape of `y`.
    pub fn transposed_into<'x, 'w, 'y, T: Element>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        weight: impl Into<TensorView<'w, T>>,
        bias: Option<TensorView<'_, T>>,
        y: impl Into<TensorViewMut<'y, T>>,
        algorithm: Algorithm,
    ) -> Result<()> {
        let (x, weight, y) = (x.into(), weight.into(), y.into());
        let layout = self.axis_order();
        let (.., size) = layout.split_activation::<D>("input", x.shape())?;
        let (.., wanted) = layout.split_activation::<D>("output", y.shape())?;
        let geometry = self.transposed_geometry(size, wanted, y.shape())?;
        let (problem, shape) = transposed_problem(&geometry, &x, &weight, bias.as_ref())?;
        expect_shape("output", &shape, y.shape())?;
        run(&problem, &x, &weight, bias.as_ref(), y, algorithm)
    }

    /// The geometry whose transposed convolution makes extents `wanted` of `size`.
    fn transposed_geometry(
        &self,
        size: [usize; D],
        wanted: [usize; D],
        shape: &[usize],
    ) -> Result<Geometry<D>> {
        // The extents without any padding, and how much of those the padding takes away. Neither
        // depends on the mode, whose limits apply to the wanted extents only.
        let plain = self.padding_mode(PaddingMode::Zeros);
        let full = plain.padding([0; D]).bind_transposed(size, [0; D])?.input();
        let sides = plain.bind(full)?.padding();
        let mut padding = [0; D];
        for axis in 0..D {
            let (low, high) = sides[axis];
            let padded = wanted[axis].saturating_add(low).saturating_add(high);
            padding[axis] = padded.checked_sub(full[axis]).ok_or_else(|| {
                let least: [usize; D] =
                    std::array::from_fn(|a| full[a].saturating_sub(sides[a].0 + sides[a].1));
                Error::shape("output", format!("spatial extents of at least {least:?}"), shape)
            })?;
        }
        self.bind_transposed(size, padding)
    }
}

/// Checks the operands; returns what to compute and the shape of the result.
fn transposed_problem<T: Element, const D: usize>(
    geometry: &Geometry<D>,
    x: &TensorView<'_, T>,
    weight: &TensorView<'_, T>,
    bias: Option<&TensorView<'_, T>>,
) -> Result<(Problem, Vec<usize>)> {
    let (problem, shape) = adjoint_problem("input", geometry, x, weight)?;
    if let Some(bias) = bias {
        expect_shape("bias", &[problem.channels], bias.shape())?;
        common_device(&[("input", x.device()), ("bias", bias.device())])?;
    }
    Ok((problem, shape))
}

fn run<T: Element>(
    problem: &Problem,
    x: &TensorView<'_, T>,
    weight: &TensorView<'_, T>,
    bias: Option<&TensorView<'_, T>>,
    y: TensorViewMut<'_, T>,
    algorithm: Algorithm,
) -> Result<()> {
    match common_device(&[("input", x.device()), ("output", y.device())])? {
        Device::Cpu => {
            let bias = bias.map(TensorView::host);
            cpu::backward_input(problem, x.host(), weight.host(), bias, y.host(), algorithm)
        }
        #[cfg(gpu)]
        Device::Cuda(_) => {
            let bias = bias.map(TensorView::cuda);
            cuda::backward_input(problem, x.cuda(), weight.cuda(), bias, y.cuda(), algorithm)
        }
    }
}
