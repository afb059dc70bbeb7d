//! Assembly: the matrix of a convolution, or of its adjoint.
//!
//! `call` says what is assembled, `places` where every row goes, in closed form from the axes' tables;
//! `template` holds the contents of rows that look alike; `cpu` copies them to their places, in parallel
//! and past the caches. The transposed convolution is the same with the axes' adjoint tables.

mod call;
mod cpu;
#[cfg(gpu)]
mod cuda;
mod places;
mod template;

use call::{Call, Direction};
use places::Places;

use super::csr::Csr;
use super::index::{Index, IndexWidth};
use super::size::MatrixSize;
use super::storage::{Host, Pattern, Storage, with_pattern};
use super::target::{CsrBuffers, CsrTarget, Target};
use crate::device::Device;
#[cfg(gpu)]
use crate::device::cuda::Draft;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::geometry::Conv;
#[cfg(gpu)]
use crate::matrix::cuda::CsrRegions;
use crate::plan::{BIAS, Explanation, Plan, PlanOptions, Steps, Workspace, plan_type};
use crate::tensor::view::expect_shape;
use crate::tensor::{OptionalView, TensorView};

plan_type! {
    /// A plan of [`Conv::matrix`] or [`Conv::transposed_matrix`], made by [`Conv::plan_matrix`] or
    /// [`Conv::plan_transposed_matrix`].
    MatrixPlan, cpu::Assembly, facts: Facts
}

/// What a run has to know of the matrix.
#[derive(Clone, Copy, Debug)]
struct Facts {
    size: MatrixSize,
    width: IndexWidth,
}

/// The operands' numbers; without a bias, the numbers behind it are less by one. The last operand, the
/// values, stands for the matrix.
const WEIGHT: usize = 0;
const BIAS_NUMBER: usize = 1;

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

    /// [`Conv::matrix`] into a caller's [`CsrBuffers`], with 32-bit indices (where the matrix allows
    /// them) or 64-bit ones, or into a `&mut` [`Csr`], on any device, which this matrix replaces.
    ///
    /// # Errors
    /// As [`Conv::matrix`]; [`Error::Shape`] when a buffer has not exactly the size that
    /// [`Conv::matrix_size`] tells; [`Error::TooLarge`] when 32-bit indices do not suffice;
    /// [`Error::DeviceMismatch`] when the target is elsewhere than the weight.
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
    /// As [`Conv::matrix`], except that the matrix need not fit in memory; [`Error::TooLarge`] when
    /// `options` ask for an index width that does not suffice; [`Error::Compile`] or [`Error::Device`] when
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
fn plan<T: Element>(
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
    let plan = plan(call, &weight, bias.as_ref(), width)?;
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
    let plan = plan(call, &weight, bias.as_ref(), target.0.width())?;
    plan.run(weight, OptionalView(bias), target, &mut plan.make_workspace()?)
}

impl<T: Element> MatrixPlan<T> {
    fn new(call: Call, device: &Device, options: PlanOptions) -> Result<Self> {
        let size = call.size;
        let width = options.index_width.unwrap_or(size.index_width());
        let extent = call.extent(width)?;
        let (weight_shape, bias_shape) = (call.weight.clone(), vec![call.row_channels()]);
        let (facts, has_bias) = (Facts { size, width }, call.channels.bias);
        let operation = match call.direction {
            Direction::Forward => "matrix",
            Direction::Adjoint => "transposed_matrix",
        };
        let weights: usize = weight_shape.iter().product();
        let biases = if has_bias { bias_shape[0] } else { 0 };
        let with_bias = if has_bias { " with bias" } else { "" };
        let mut explanation = Explanation {
            operation,
            subject: format!("{weight_shape:?} {}{with_bias} {}", T::DTYPE, call.about),
            flop: call.additions(),
            bytes: extent.bytes(size_of::<T>()) + ((weights + biases) * size_of::<T>()) as u64,
            ..Explanation::default()
        };
        let steps = match device {
            Device::Cpu => {
                let places = Places::new(call)?;
                let (plan, workers) = cpu::Assembly::new::<T>(places, &extent, &mut explanation);
                Steps::Cpu { plan, workers }
            }
            #[cfg(gpu)]
            Device::Cuda(cuda) => {
                let mut draft = Draft::new(cuda, options.alignment_for(size_of::<T>())?);
                let weight = draft.operand::<T>(weights);
                let bias = has_bias.then(|| draft.operand::<T>(biases));
                let matrix = CsrRegions::operands(&mut draft, &extent);
                let places = Places::new(call)?;
                cuda::assemble(
                    &mut draft,
                    &places,
                    &extent,
                    weight,
                    bias,
                    matrix,
                    &mut explanation,
                )?;
                Steps::Cuda(draft.prepare()?)
            }
        };
        let mut operands = vec![("weight", weight_shape)];
        if has_bias {
            operands.push((BIAS, bias_shape));
        }
        operands.push(("indptr", vec![extent.rows + 1]));
        operands.push(("indices", vec![extent.nnz]));
        operands.push(("the matrix", vec![extent.rows, extent.columns]));
        let plan = Plan::new(device, &options, explanation, operands, steps)?;
        Ok(MatrixPlan::of(plan, facts))
    }

    /// The size of the matrix.
    pub fn size(&self) -> MatrixSize {
        self.facts.size
    }

    /// How wide its row pointers and columns are.
    pub fn index_width(&self) -> IndexWidth {
        self.facts.width
    }

    /// Writes all of the matrix. The target is [`CsrBuffers`], or a `&mut` [`Csr`] of the same shape, number
    /// of entries and index width, whose entries may be any; a run that fails while it writes leaves an empty
    /// matrix there.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::ElementType`] (for indices of another width), [`Error::DeviceMismatch`] or
    /// [`Error::Invalid`] when operands or workspace are not those that were planned for; [`Error::Device`]
    /// when the device fails.
    pub fn run<'a, 'b, 'c>(
        &self,
        weight: impl Into<TensorView<'a, T>>,
        bias: impl Into<OptionalView<'b, T>>,
        target: impl Into<CsrTarget<'c, T>>,
        workspace: &mut Workspace<'_>,
    ) -> Result<()> {
        let (weight, bias, target) = (weight.into(), bias.into().0, target.into().0);
        self.check(&weight, bias.as_ref(), &target)?;
        match target {
            Target::I32(buffers) => self.write_buffers(&weight, bias, buffers, workspace),
            Target::I64(buffers) => self.write_buffers(&weight, bias, buffers, workspace),
            Target::Matrix(matrix) => {
                let written = match matrix.storage_mut() {
                    Storage::Cpu(Host { structure, data }) => with_pattern!(structure, p => {
                        let Pattern { indptr, indices } = p;
                        let buffers = CsrBuffers { indptr, indices, data };
                        self.write_buffers(&weight, bias, buffers, workspace)
                    }),
                    #[cfg(gpu)]
                    Storage::Cuda(parts) => {
                        let Steps::Cuda(program) = self.plan.steps() else {
                            unreachable!("the devices were compared")
                        };
                        let [indptr, indices, data] = parts.addresses();
                        let (plan, weight) = (&self.plan, weight.address());
                        // SAFETY: the operands were checked, and are borrowed.
                        unsafe {
                            match bias.as_ref().map(TensorView::address) {
                                None => {
                                    plan.queue(program, &[weight, indptr, indices, data], workspace)
                                }
                                Some(bias) => {
                                    let all = [weight, bias, indptr, indices, data];
                                    plan.queue(program, &all, workspace)
                                }
                            }
                        }
                    }
                };
                if written.is_err() {
                    // What was written in part need not be a matrix: an empty one takes its place.
                    let pattern = Pattern { indptr: vec![0i32], indices: Vec::new() };
                    *matrix = Csr::trusted([0, 0], pattern, Vec::new());
                }
                written
            }
        }
    }

    fn check(
        &self,
        weight: &TensorView<'_, T>,
        bias: Option<&TensorView<'_, T>>,
        target: &Target<'_, T>,
    ) -> Result<()> {
        let (plan, width, device) = (&self.plan, self.facts.width, target.device());
        let matrix = plan.last();
        let (indptr, indices) = (matrix - 2, matrix - 1);
        plan.check(&[(WEIGHT, weight.shape(), &weight.device())])?;
        plan.check_bias(bias, BIAS_NUMBER)?;
        if target.width() != width {
            return Err(Error::ElementType {
                argument: "the matrix's indices".into(),
                expected: format!("{width}, as planned"),
                found: target.width().to_string(),
            });
        }
        let lengths = match target {
            Target::I32(CsrBuffers { indptr, indices, data }) => {
                [indptr.len(), indices.len(), data.len()]
            }
            Target::I64(CsrBuffers { indptr, indices, data }) => {
                [indptr.len(), indices.len(), data.len()]
            }
            Target::Matrix(found) => {
                let (shape, nnz) = (found.shape(), [found.nnz()]);
                return plan.check(&[(matrix, &shape, &device), (indices, &nnz, &device)]);
            }
        };
        plan.check(&[
            (indptr, &lengths[..1], &device),
            (indices, &lengths[1..2], &device),
            (matrix, plan.shape(matrix), &device),
        ])?;
        expect_shape("data", plan.shape(indices), &lengths[2..])
    }

    fn write_buffers<I: Index>(
        &self,
        weight: &TensorView<'_, T>,
        bias: Option<TensorView<'_, T>>,
        target: CsrBuffers<'_, T, I>,
        workspace: &mut Workspace<'_>,
    ) -> Result<()> {
        match self.plan.steps() {
            Steps::Cpu { plan, workers } => {
                let memory = workspace.host(workers.workspace())?;
                let bias = bias.as_ref().map(TensorView::host);
                plan.run(workers, weight.host(), bias, target, memory)
            }
            #[cfg(gpu)]
            Steps::Cuda(_) => unreachable!("the devices were compared"),
        }
    }
}
