//! The matrix of a convolution, and sparse matrices to hold it.
//!
//! `plan` says where every row goes, in closed form from the axes' tables; `template` holds the
//! contents of rows that look alike; `cpu` copies them to their places, in parallel and past the
//! caches. The transposed convolution is the same with the axes' adjoint tables. [`Csr`] is the result;
//! it converts to [`Csc`], [`Coo`], a dense tensor, a file that SciPy reads and, with the feature
//! `sprs`, that crate's matrices.

mod coo;
mod cpu;
mod csc;
mod csr;
#[cfg(gpu)]
pub(crate) mod cuda;
mod index;
#[cfg(feature = "io")]
mod npz;
mod plan;
mod product;
mod size;
#[cfg(feature = "sprs")]
mod sprs;
mod storage;
mod target;
mod template;
mod transpose;

pub use coo::Coo;
pub use csc::Csc;
pub use csr::{Csr, Row};
pub use index::{Index, IndexView, IndexWidth, Indices};
pub use size::MatrixSize;
pub use target::{CsrBuffers, CsrTarget};

use crate::device::Device;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::geometry::{Conv, Geometry};
use crate::memory::try_zeroed;
use crate::tensor::TensorView;
use crate::tensor::view::{common_device, expect_shape};
#[cfg(gpu)]
use cuda::CudaCsr;
use plan::{Channels, Direction, Plan};
use storage::{Host, Pattern, Storage, Structure, with_pattern};
use target::Target;

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
    /// [`Error::Shape`] or [`Error::Invalid`] when weight, bias or geometry do not fit each other;
    /// [`Error::TooLarge`] or [`Error::Allocation`] when the matrix does not fit in memory:
    /// [`Conv::matrix_size`] tells beforehand.
    ///
    /// ```
    /// use convmat::{Conv, Device, Tensor};
    /// let weight = Tensor::from_vec(&Device::Cpu, &[1, 1, 2], vec![1.0f32, -1.0])?;
    /// let matrix = Conv::new([2]).matrix(&weight, None, [3])?;
    /// assert_eq!(matrix.to_dense()?.as_slice().unwrap(), [1.0, -1.0, 0.0, 0.0, 1.0, -1.0]);
    /// # Ok::<(), convmat::Error>(())
    /// ```
    pub fn matrix<'a, T: Element>(
        &self,
        weight: impl Into<TensorView<'a, T>>,
        bias: Option<TensorView<'_, T>>,
        input_size: [usize; D],
    ) -> Result<Csr<T>> {
        let weight = weight.into();
        let shape = MatrixShape::forward(self, weight.shape(), bias.is_some(), input_size)?;
        Assembly::new(shape, weight, bias)?.fresh()
    }

    /// [`Conv::matrix`] into a caller's [`CsrBuffers`], with 32-bit indices (where the matrix allows
    /// them) or 64-bit ones, or into a `&mut` [`Csr`], on any device, which this matrix replaces.
    ///
    /// # Errors
    /// As [`Conv::matrix`]; [`Error::Shape`] when a buffer has not exactly the size that
    /// [`Conv::matrix_size`] tells; [`Error::TooLarge`] when 32-bit indices do not suffice;
    /// [`Error::DeviceMismatch`] when the target is elsewhere than the weight.
    pub fn matrix_into<'a, 'b, T: Element>(
        &self,
        weight: impl Into<TensorView<'a, T>>,
        bias: Option<TensorView<'_, T>>,
        input_size: [usize; D],
        target: impl Into<CsrTarget<'b, T>>,
    ) -> Result<()> {
        let weight = weight.into();
        let shape = MatrixShape::forward(self, weight.shape(), bias.is_some(), input_size)?;
        Assembly::new(shape, weight, bias)?.write_target(target.into().0)
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
        MatrixShape::forward(self, weight_shape, bias, input_size)?.size()
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
    pub fn transposed_matrix<'a, T: Element>(
        &self,
        weight: impl Into<TensorView<'a, T>>,
        bias: Option<TensorView<'_, T>>,
        input_size: [usize; D],
        output_padding: [usize; D],
    ) -> Result<Csr<T>> {
        let weight = weight.into();
        let bound = (input_size, output_padding);
        let shape = MatrixShape::transposed(self, weight.shape(), bias.is_some(), bound)?;
        Assembly::new(shape, weight, bias)?.fresh()
    }

    /// [`Conv::transposed_matrix`] into a caller's buffers or matrix, as [`Conv::matrix_into`].
    ///
    /// # Errors
    /// As [`Conv::transposed_matrix`] and [`Conv::matrix_into`].
    pub fn transposed_matrix_into<'a, 'b, T: Element>(
        &self,
        weight: impl Into<TensorView<'a, T>>,
        bias: Option<TensorView<'_, T>>,
        input_size: [usize; D],
        output_padding: [usize; D],
        target: impl Into<CsrTarget<'b, T>>,
    ) -> Result<()> {
        let weight = weight.into();
        let bound = (input_size, output_padding);
        let shape = MatrixShape::transposed(self, weight.shape(), bias.is_some(), bound)?;
        Assembly::new(shape, weight, bias)?.write_target(target.into().0)
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
        MatrixShape::transposed(self, weight_shape, bias, (input_size, output_padding))?.size()
    }
}

/// A matrix to be, checked but not yet tabulated.
struct MatrixShape<const D: usize> {
    geometry: Geometry<D>,
    direction: Direction,
    channels: Channels,
}

impl<const D: usize> MatrixShape<D> {
    fn forward(
        conv: &Conv<D>,
        weight_shape: &[usize],
        bias: bool,
        input_size: [usize; D],
    ) -> Result<Self> {
        let geometry = conv.bind(input_size)?;
        let (rows, columns) = group_channels(&geometry, weight_shape)?;
        let channels = Channels { groups: conv.group_count(), rows, columns, bias };
        Ok(MatrixShape { geometry, direction: Direction::Forward, channels })
    }

    fn transposed(
        conv: &Conv<D>,
        weight_shape: &[usize],
        bias: bool,
        (input_size, output_padding): ([usize; D], [usize; D]),
    ) -> Result<Self> {
        let geometry = conv.bind_transposed(input_size, output_padding)?;
        let (columns, rows) = group_channels(&geometry, weight_shape)?;
        let channels = Channels { groups: conv.group_count(), rows, columns, bias };
        Ok(MatrixShape { geometry, direction: Direction::Adjoint, channels })
    }

    fn size(&self) -> Result<MatrixSize> {
        plan::size(&plan::axis_rows(&self.geometry, self.direction)?, &self.channels)
    }
}

/// Output and input channels per group of a weight of this shape.
fn group_channels<const D: usize>(
    geometry: &Geometry<D>,
    weight_shape: &[usize],
) -> Result<(usize, usize)> {
    let conv = geometry.conv();
    let (outputs, inputs, kernel) = conv.axis_order().split_weight::<D>("weight", weight_shape)?;
    if kernel != conv.kernel_size() {
        let expected = conv.axis_order().weight_shape(outputs, inputs, &conv.kernel_size());
        return expect_shape("weight", &expected, weight_shape).map(|()| (0, 0));
    }
    if inputs == 0 {
        return Err(Error::invalid("weight channels", 0, "there must be at least 1 per group"));
    }
    Ok((geometry.channels_per_group("output", outputs)?, inputs))
}

/// A matrix ready to be written.
struct Assembly<'a, T> {
    plan: Plan,
    size: MatrixSize,
    device: Device,
    weight: TensorView<'a, T>,
    bias: Option<TensorView<'a, T>>,
}

impl<'a, T: Element> Assembly<'a, T> {
    fn new<'b: 'a, 'c: 'a, const D: usize>(
        shape: MatrixShape<D>,
        weight: TensorView<'b, T>,
        bias: Option<TensorView<'c, T>>,
    ) -> Result<Self> {
        let MatrixShape { geometry, direction, channels } = shape;
        let mut device = weight.device();
        if let Some(bias) = &bias {
            expect_shape("bias", &[channels.groups * channels.rows], bias.shape())?;
            device = common_device(&[("weight", device), ("bias", bias.device())])?;
        }
        let axes = plan::axis_rows(&geometry, direction)?;
        let size = plan::size(&axes, &channels)?;
        let plan = Plan::new(&geometry, direction, axes, channels)?;
        Ok(Assembly { plan, size, device, weight, bias })
    }

    fn fresh(&self) -> Result<Csr<T>> {
        #[cfg(gpu)]
        if let Device::Cuda(device) = &self.device {
            let [rows, columns, nnz] = self.extents();
            let mut parts = CudaCsr::new(device, self.size.index_width(), rows, nnz)?;
            self.write_cuda(&mut parts)?;
            return Ok(Csr::on_cuda([rows, columns], parts));
        }
        match self.size.index_width() {
            IndexWidth::I32 => self.fresh_of_width::<i32>(),
            IndexWidth::I64 => self.fresh_of_width::<i64>(),
        }
    }

    /// Rows, columns and entries: `MatrixSize` bounds these by i64::MAX.
    fn extents(&self) -> [usize; 3] {
        [self.size.rows(), self.size.columns(), self.size.nnz()].map(|n| n as usize)
    }

    fn fresh_of_width<I: Index>(&self) -> Result<Csr<T>>
    where
        Pattern<I>: Into<Structure>,
    {
        let [rows, columns, nnz] = self.extents();
        let mut indptr: Vec<I> = try_zeroed("the row pointers of the matrix", rows + 1)?;
        let mut indices: Vec<I> = try_zeroed("the columns of the matrix", nnz)?;
        let mut data: Vec<T> = try_zeroed("the values of the matrix", nnz)?;
        self.write(&mut indptr, &mut indices, &mut data)?;
        Ok(Csr::trusted([rows, columns], Pattern { indptr, indices }, data))
    }

    fn write_target(&self, target: Target<'_, T>) -> Result<()> {
        common_device(&[("weight", self.device.clone()), ("the matrix", target.device())])?;
        let width = target.width();
        if self.size.index_width().limit() > width.limit() {
            let largest = self.size.rows().max(self.size.columns()).max(self.size.nnz());
            return Err(Error::TooLarge {
                what: format!("a row, column or entry number of a matrix with {width} indices"),
                value: largest.to_string(),
                limit: width.limit(),
            });
        }
        match target {
            Target::I32(buffers) => self.write_buffers(buffers),
            Target::I64(buffers) => self.write_buffers(buffers),
            Target::Matrix(matrix) => self.write_matrix(matrix),
        }
    }

    fn write_buffers<I: Index>(&self, buffers: CsrBuffers<'_, T, I>) -> Result<()> {
        let CsrBuffers { indptr, indices, data } = buffers;
        let [rows, _, nnz] = self.extents();
        expect_shape("indptr", &[rows + 1], &[indptr.len()])?;
        expect_shape("indices", &[nnz], &[indices.len()])?;
        expect_shape("data", &[nnz], &[data.len()])?;
        self.write(indptr, indices, data)
    }

    fn write_matrix(&self, matrix: &mut Csr<T>) -> Result<()> {
        let [rows, columns, nnz] = self.extents();
        expect_shape("the matrix", &[rows, columns], &matrix.shape())?;
        expect_shape("the matrix's data", &[nnz], &[matrix.nnz()])?;
        let written = match matrix.storage_mut() {
            Storage::Cpu(Host { structure, data }) => {
                with_pattern!(structure, p => self.write(&mut p.indptr, &mut p.indices, data))
            }
            #[cfg(gpu)]
            Storage::Cuda(parts) => self.write_cuda(parts),
        };
        if written.is_err() {
            // Half a matrix is none.
            let pattern = Pattern { indptr: vec![0i32], indices: Vec::new() };
            *matrix = Csr::trusted([0, 0], pattern, Vec::new());
        }
        written
    }

    fn write<I: Index>(&self, indptr: &mut [I], indices: &mut [I], data: &mut [T]) -> Result<()> {
        let bias = self.bias.as_ref().map(TensorView::host);
        cpu::assemble(&self.plan, self.weight.host(), bias, indptr, indices, data)
    }

    #[cfg(gpu)]
    fn write_cuda(&self, parts: &mut CudaCsr<T>) -> Result<()> {
        let bias = self.bias.as_ref().map(TensorView::cuda);
        cuda::assemble(&self.plan, &self.weight.cuda(), bias.as_ref(), parts)
    }
}
