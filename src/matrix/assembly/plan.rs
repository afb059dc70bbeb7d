//! Plans of assembly: what a run is checked for, and its two sides.

use super::call::{Call, Direction};
use super::cpu;
#[cfg(gpu)]
use super::cuda;
use super::places::Places;
use crate::device::Device;
#[cfg(gpu)]
use crate::device::cuda::Draft;
use crate::element::Element;
use crate::element::IndexWidth;
use crate::error::{Error, Result};
use crate::matrix::Csr;
#[cfg(gpu)]
use crate::matrix::cuda::CsrRegions;
use crate::matrix::index::Index;
use crate::matrix::size::MatrixSize;
use crate::matrix::storage::{Extent, Host, Pattern, Storage, with_pattern};
use crate::matrix::target::{CsrBuffers, CsrTarget, Target};
use crate::plan::{BIAS, Explanation, Plan, PlanOptions, Steps, Workspace, plan_type};
use crate::tensor::view::expect_shape;
use crate::tensor::{OptionalView, TensorView};

plan_type! {
    /// A plan of [`crate::Conv::matrix`] or [`crate::Conv::transposed_matrix`], made by [`crate::Conv::plan_matrix`] or
    /// [`crate::Conv::plan_transposed_matrix`].
    MatrixPlan, cpu::Assembly, facts: Facts
}

/// What a run has to know of the matrix.
#[derive(Clone, Copy, Debug)]
struct Facts {
    size: MatrixSize,
    extent: Extent,
}

/// The weight's number among the operands; the last operand, the values, stands for the matrix.
const WEIGHT: usize = 0;

impl<T: Element> MatrixPlan<T> {
    pub(super) fn new(call: Call, device: &Device, options: PlanOptions) -> Result<Self> {
        let size = call.size;
        let width = options.index_width.unwrap_or(size.index_width());
        let extent = call.extent(width)?;
        let (weight_shape, bias_shape) = (call.weight.clone(), vec![call.row_channels()]);
        let (facts, has_bias) = (Facts { size, extent }, call.channels.bias);
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
        self.facts.extent.width
    }

    /// A new matrix, where the plan computes.
    ///
    /// # Errors
    /// As [`MatrixPlan::run`]; [`Error::Allocation`] when there is no room for the matrix.
    pub fn assemble<'a, 'b>(
        &self,
        weight: impl Into<TensorView<'a, T>>,
        bias: impl Into<OptionalView<'b, T>>,
        workspace: &mut Workspace<'_>,
    ) -> Result<Csr<T>> {
        let mut matrix = Csr::for_result(self.device(), &self.facts.extent)?;
        self.run(weight, bias, &mut matrix, workspace)?;
        Ok(matrix)
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
        let (plan, width, device) = (&self.plan, self.facts.extent.width, target.device());
        let matrix = plan.last();
        let (indptr, indices) = (matrix - 2, matrix - 1);
        plan.check(&[(WEIGHT, weight.shape(), &weight.device())])?;
        plan.check_optional(BIAS, bias)?;
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
