//! Assembly: the matrix of a convolution, or of its adjoint.
//!
//! `call` says what is assembled, `plan` how; `places` is where every row goes, in closed form from the axes'
//! tables; `template` holds the contents of rows that look alike; `cpu` copies them to their places, in parallel
//! and past the caches. The transposed convolution is the same with the axes' adjoint tables.

mod call;
mod cpu;
#[cfg(gpu)]
mod cuda;
mod places;
mod plan;
mod template;

use call::Call;
pub use plan::MatrixPlan;

use super::csr::Csr;
use super::size::MatrixSize;
use super::target::CsrTarget;
use crate::device::Device;
use crate::element::Element;
use crate::element::IndexWidth;
use crate::error::Result;
use crate::geometry::Conv;
use crate::plan::PlanOptions;
use crate::tensor::{OptionalView, TensorView};

impl<const D: usize> Conv<D> {
    /// The convolution of one image as a sparse matrix M: M·[x; 1] = y with a bias, else M·x = y.
    ///
    /// Rows are (output channel, output position) and columns (input channel, input position), both
    /// row-major whatever the layout of `weight`; the bias, of shape `[outputs]`, is one last column.
    /// Other groups' channels take no entries. Every tap that reads a position inside the input, or
    /// one that the padding mode maps inside, is an entry, be its weight zero or not; taps that read
    /// the same position share one entry, the sum of their weights in the accumulator type, rounded
    /// once. See [`Csr::eliminate_zeros`].
    ///
    /// `weight` has the shape of [`crate::Layout::weight_shape`], `input_size` the input's spatial
    /// extents.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] or [`crate::Error::Invalid`] when weight, bias or geometry do not fit each other;
    /// [`crate::Error::TooLarge`] or [`crate::Error::Allocation`] when the matrix does not fit in memory:
    /// [`Conv::matrix_size`] tells beforehand.
    ///
    /// ```
    /// use convmat::{Conv, Device, Tensor};
    /// let weight = Tensor::from_vec(&Device::Cpu, &[1, 1, 2], vec![1.0f32, -1.0])?;
    /// let matrix = Conv::new([2]).matrix(&weight, None, [3])?;
    /// assert_eq!(matrix.to_dense()?.as_slice().unwrap(), [1.0, -1.0, 0.0, 0.0, 1.0, -1.0]);
    /// # Ok::<(), convmat::Error>(())
    /// ```
    pub fn matrix<'a, 'b, T: Element>(
        &self,
        weight: impl Into<TensorView<'a, T>>,
        bias: impl Into<OptionalView<'b, T>>,
        input_size: [usize; D],
    ) -> Result<Csr<T>> {
        let (weight, bias) = (weight.into(), bias.into().0);
        let call = Call::forward(self, weight.shape(), bias.is_some(), input_size)?;
        fresh(call, weight, bias)
    }

    /// [`Conv::matrix`] into a caller's [`crate::CsrBuffers`], with 32-bit indices (where the matrix allows
    /// them) or 64-bit ones, or into a `&mut` [`Csr`], on any device, which this matrix replaces.
    ///
    /// # Errors
    /// As [`Conv::matrix`]; [`crate::Error::Shape`] when a buffer has not exactly the size that
    /// [`Conv::matrix_size`] tells; [`crate::Error::TooLarge`] when 32-bit indices do not suffice;
    /// [`crate::Error::DeviceMismatch`] when the target is elsewhere than the weight.
    pub fn matrix_into<'a, 'b, 'c, T: Element>(
        &self,
        weight: impl Into<TensorView<'a, T>>,
        bias: impl Into<OptionalView<'b, T>>,
        input_size: [usize; D],
        target: impl Into<CsrTarget<'c, T>>,
    ) -> Result<()> {
        let (weight, bias) = (weight.into(), bias.into().0);
        let call = Call::forward(self, weight.shape(), bias.is_some(), input_size)?;
        write(call, weight, bias, target.into())
    }

    /// The size that [`Conv::matrix`] has for a weight of this shape. Takes no more memory than the
    /// index tables of the axes.
    ///
    /// # Errors
    /// As [`Conv::matrix`], except that a matrix need not fit in memory, only in 64-bit counts.
    ///
    /// ```
    /// use convmat::{Conv, DType, IndexWidth};
    /// let size = Conv::new([3, 3]).padding([1, 1]).matrix_size(&[64, 64, 3, 3], true, [56, 56])?;
    /// assert_eq!(size.nnz(), 113_070_080);
    /// assert_eq!((size.index_width(), size.bytes(DType::F32)), (IndexWidth::I32, 905_363_460));
    /// # Ok::<(), convmat::Error>(())
    /// ```
    pub fn matrix_size(
        &self,
        weight_shape: &[usize],
        bias: bool,
        input_size: [usize; D],
    ) -> Result<MatrixSize> {
        Ok(Call::forward(self, weight_shape, bias, input_size)?.size)
    }

    /// A plan of [`Conv::matrix`] for weights of this shape, with or without a bias.
    ///
    /// # Errors
    /// As [`Conv::matrix`], except that the matrix need not fit in memory; [`crate::Error::TooLarge`] when
    /// `options` ask for an index width that does not suffice; [`crate::Error::Compile`] or [`crate::Error::Device`] when
    /// the device fails.
    ///
    /// ```
    /// use convmat::{Conv, CsrBuffers, Device, PlanOptions, Tensor};
    /// let conv = Conv::new([2]);
    /// let plan =
    ///     conv.plan_matrix::<f32>(&Device::Cpu, &[1, 1, 2], false, [3], PlanOptions::new())?;
    /// let mut workspace = plan.make_workspace()?;
    /// let weight = Tensor::from_vec(&Device::Cpu, &[1, 1, 2], vec![1.0f32, -1.0])?;
    /// let (mut indptr, mut indices, mut data) = ([0i32; 3], [0i32; 4], [0f32; 4]);
    /// let target = CsrBuffers { indptr: &mut indptr, indices: &mut indices, data: &mut data };
    /// plan.run(&weight, None, target, &mut workspace)?;
    /// assert_eq!((indptr, indices, data), ([0, 2, 4], [0, 1, 1, 2], [1.0, -1.0, 1.0, -1.0]));
    /// # Ok::<(), convmat::Error>(())
    /// ```
    pub fn plan_matrix<T: Element>(
        &self,
        device: &Device,
        weight_shape: &[usize],
        bias: bool,
        input_size: [usize; D],
        options: PlanOptions,
    ) -> Result<MatrixPlan<T>> {
        MatrixPlan::new(Call::forward(self, weight_shape, bias, input_size)?, device, options)
    }

    /// The transposed convolution (PyTorch's `ConvTranspose`) of one image as a sparse matrix: the
    /// transpose of [`Conv::matrix`], with a bias of its own.
    ///
    /// `weight` is the weight of the convolution this is the adjoint of: `[inputs, outputs / groups,
    /// kernel…]` with channels first, as in PyTorch, and `[kernel…, outputs / groups, inputs]` with
    /// channels last. `input_size` are the spatial extents that the transposed convolution reads, and
    /// `output_padding` is added to those it makes, see [`Conv::bind_transposed`]. Rows are (output
    /// channel, output position), columns (input channel, input position), a last column the bias.
    ///
    /// # Errors
    /// As [`Conv::matrix`] and [`Conv::bind_transposed`].
    pub fn transposed_matrix<'a, 'b, T: Element>(
        &self,
        weight: impl Into<TensorView<'a, T>>,
        bias: impl Into<OptionalView<'b, T>>,
        input_size: [usize; D],
        output_padding: [usize; D],
    ) -> Result<Csr<T>> {
        let (weight, bias) = (weight.into(), bias.into().0);
        let bias_too = bias.is_some();
        let call = Call::transposed(self, weight.shape(), bias_too, input_size, output_padding)?;
        fresh(call, weight, bias)
    }

    /// [`Conv::transposed_matrix`] into a caller's buffers or matrix, as [`Conv::matrix_into`].
    ///
    /// # Errors
    /// As [`Conv::transposed_matrix`] and [`Conv::matrix_into`].
    pub fn transposed_matrix_into<'a, 'b, 'c, T: Element>(
        &self,
        weight: impl Into<TensorView<'a, T>>,
        bias: impl Into<OptionalView<'b, T>>,
        input_size: [usize; D],
        output_padding: [usize; D],
        target: impl Into<CsrTarget<'c, T>>,
    ) -> Result<()> {
        let (weight, bias) = (weight.into(), bias.into().0);
        let bias_too = bias.is_some();
        let call = Call::transposed(self, weight.shape(), bias_too, input_size, output_padding)?;
        write(call, weight, bias, target.into())
    }

    /// The size that [`Conv::transposed_matrix`] has for a weight of this shape.
    ///
    /// # Errors
    /// As [`Conv::transposed_matrix`], except that the matrix need not fit in memory.
    pub fn transposed_matrix_size(
        &self,
        weight_shape: &[usize],
        bias: bool,
        input_size: [usize; D],
        output_padding: [usize; D],
    ) -> Result<MatrixSize> {
        Ok(Call::transposed(self, weight_shape, bias, input_size, output_padding)?.size)
    }

    /// A plan of [`Conv::transposed_matrix`] for weights of this shape, with or without a bias.
    ///
    /// # Errors
    /// As [`Conv::transposed_matrix`] and [`Conv::plan_matrix`].
    pub fn plan_transposed_matrix<T: Element>(
        &self,
        device: &Device,
        weight_shape: &[usize],
        bias: bool,
        input_size: [usize; D],
        output_padding: [usize; D],
        options: PlanOptions,
    ) -> Result<MatrixPlan<T>> {
        let call = Call::transposed(self, weight_shape, bias, input_size, output_padding)?;
        MatrixPlan::new(call, device, options)
    }
}

/// The plan for a weight and a bias, wherever they lie.
fn plan_of<T: Element>(
    call: Call,
    weight: &TensorView<'_, T>,
    bias: Option<&TensorView<'_, T>>,
    width: IndexWidth,
) -> Result<MatrixPlan<T>> {
    let addresses = [weight.address(), bias.map_or(0, TensorView::address)];
    let options = PlanOptions::for_addresses(&addresses).index_width(width);
    MatrixPlan::new(call, &weight.device(), options)
}

/// A new matrix.
fn fresh<T: Element>(
    call: Call,
    weight: TensorView<'_, T>,
    bias: Option<TensorView<'_, T>>,
) -> Result<Csr<T>> {
    let width = call.size.index_width();
    // First of all, as the matrix is what memory may not suffice for.
    let mut matrix = Csr::for_result(&weight.device(), &call.extent(width)?)?;
    let plan = plan_of(call, &weight, bias.as_ref(), width)?;
    plan.run(weight, OptionalView(bias), &mut matrix, &mut plan.make_workspace()?)?;
    Ok(matrix)
}

/// A matrix in the place of another.
fn write<T: Element>(
    call: Call,
    weight: TensorView<'_, T>,
    bias: Option<TensorView<'_, T>>,
    target: CsrTarget<'_, T>,
) -> Result<()> {
    let plan = plan_of(call, &weight, bias.as_ref(), target.0.width())?;
    plan.run(weight, OptionalView(bias), target, &mut plan.make_workspace()?)
}
