//! Products of a sparse matrix, or its adjoint, with one vector or many.

mod cpu;
#[cfg(gpu)]
pub(super) mod cuda;

use super::csr::Csr;
#[cfg(gpu)]
use super::cuda::CsrRegions;
use super::storage::{Extent, Storage, with_pattern};
use crate::device::Device;
#[cfg(gpu)]
use crate::device::cuda::Draft;
use crate::element::Element;
use crate::element::IndexWidth;
use crate::error::{Error, Result, checked_product};
use crate::plan::{Explanation, Plan, PlanOptions, Steps, Workspace, plan_type};
use crate::tensor::{Tensor, TensorView, TensorViewMut};

/// Which product of a sparse matrix M: M·x with one vector, as by default, M·X with many, or with the
/// adjoint Mᵀ in the place of M.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Product {
    adjoint: bool,
    vectors: Option<usize>,
}

impl Product {
    /// M·x: shapes `[columns]` and `[rows]`.
    pub fn vector() -> Self {
        Product::default()
    }

    /// M·X with so many vectors, one per column: shapes `[columns, vectors]` and `[rows, vectors]`.
    pub fn matrix(vectors: usize) -> Self {
        Product { vectors: Some(vectors), ..Product::default() }
    }

    /// The same with Mᵀ, from the shape with `rows` to that with `columns`.
    pub fn adjoint(self) -> Self {
        Product { adjoint: true, ..self }
    }
}

plan_type! {
    /// A plan of a product of a sparse matrix, made by [`Csr::plan_product`].
    ProductPlan, cpu::SparseProduct, width: IndexWidth
}

/// The operands' numbers. The row pointers stand for the matrix; its columns have number 1.
const MATRIX: usize = 0;
const DATA: usize = 2;
const INPUT: usize = 3;
const OUTPUT: usize = 4;

impl<T: Element> Csr<T> {
    /// M·x for `x` of shape `[columns]`: shape `[rows]`.
    ///
    /// The matrix of a convolution with bias multiplies [x; 1], one image flattened in the order
    /// (channel, position) with a 1 appended.
    ///
    /// # Errors
    /// [`Error::Shape`] when `x` has another shape.
    pub fn mul_vector<'a>(&self, x: impl Into<TensorView<'a, T>>) -> Result<Tensor<T>> {
        self.product(Product::vector(), x.into())
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
        self.product_into(Product::vector(), x.into(), y.into())
    }

    /// M·X for `x` of shape `[columns, vectors]`, one vector per column: shape `[rows, vectors]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when `x` has another shape; [`Error::Allocation`] when the result does not
    /// fit in memory.
    pub fn mul_matrix<'a>(&self, x: impl Into<TensorView<'a, T>>) -> Result<Tensor<T>> {
        let x = x.into();
        let vectors = vector_count("x", self.columns(), x.shape())?;
        self.product(Product::matrix(vectors), x)
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
        let x = x.into();
        let vectors = vector_count("x", self.columns(), x.shape())?;
        self.product_into(Product::matrix(vectors), x, y.into())
    }

    /// Mᵀ·y for `y` of shape `[rows]`: shape `[columns]`.
    ///
    /// On a GPU this transposes the matrix first, as scattering would add up in no fixed order: to multiply
    /// more often, keep [`Csr::transpose`].
    ///
    /// # Errors
    /// [`Error::Shape`] when `y` has another shape.
    pub fn adjoint_mul_vector<'a>(&self, y: impl Into<TensorView<'a, T>>) -> Result<Tensor<T>> {
        self.product(Product::vector().adjoint(), y.into())
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
        self.product_into(Product::vector().adjoint(), y.into(), x.into())
    }

    /// Mᵀ·Y for `y` of shape `[rows, vectors]`, one vector per column: shape `[columns, vectors]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when `y` has another shape; [`Error::Allocation`] when the result does not
    /// fit in memory.
    pub fn adjoint_mul_matrix<'a>(&self, y: impl Into<TensorView<'a, T>>) -> Result<Tensor<T>> {
        let y = y.into();
        let vectors = vector_count("y", self.rows(), y.shape())?;
        self.product(Product::matrix(vectors).adjoint(), y)
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
        let y = y.into();
        let vectors = vector_count("y", self.rows(), y.shape())?;
        self.product_into(Product::matrix(vectors).adjoint(), y, x.into())
    }

    /// A plan of a product with this matrix, or with any other of its size, number of entries and index
    /// width, on its device.
    ///
    /// # Errors
    /// [`Error::TooLarge`] or [`Error::Allocation`] when the operands cannot be counted; [`Error::Compile`]
    /// or [`Error::Device`] when the device fails.
    ///
    /// ```
    /// use convmat::{Csr, Device, PlanOptions, Product, Tensor};
    /// let matrix = Csr::new([1, 3], vec![0, 2], vec![0, 2], vec![2.0f32, 3.0])?;
    /// let plan = matrix.plan_product(Product::vector(), PlanOptions::new())?;
    /// let mut workspace = plan.make_workspace()?;
    /// let x = Tensor::from_vec(&Device::Cpu, &[3], vec![1.0f32, 10.0, 100.0])?;
    /// let mut y = Tensor::zeros(&Device::Cpu, &[1])?;
    /// plan.run(&matrix, &x, &mut y, &mut workspace)?;
    /// assert_eq!(y.as_slice().unwrap(), [302.0]);
    /// # Ok::<(), convmat::Error>(())
    /// ```
    pub fn plan_product(&self, product: Product, options: PlanOptions) -> Result<ProductPlan<T>> {
        let extent = self.extent();
        let Extent { rows, columns, nnz, width } = extent;
        let Product { adjoint, vectors } = product;
        let panel = |extent: usize| match vectors {
            None => vec![extent],
            Some(vectors) => vec![extent, vectors],
        };
        let count = vectors.unwrap_or(1);
        let (x, y) = (("x", panel(columns)), ("y", panel(rows)));
        let (input, output) = if adjoint { (y, x) } else { (x, y) };
        let input_len = checked_product("the vectors", &input.1)?;
        let output_len = checked_product("the products", &output.1)?;
        let vector_bytes = ((input_len + output_len) * size_of::<T>()) as u64;
        let mut explanation = Explanation {
            operation: if adjoint { "adjoint_product" } else { "product" },
            subject: format!(
                "a matrix [{rows}, {columns}] of {nnz} entries, {} with {width} indices, and {count} \
                 vectors",
                T::DTYPE
            ),
            flop: (2 * nnz as u64).saturating_mul(count as u64),
            bytes: extent.bytes(size_of::<T>()) + vector_bytes,
            ..Explanation::default()
        };
        let device = self.device();
        let steps = match &device {
            Device::Cpu => {
                let (plan, workers) =
                    cpu::SparseProduct::new::<T>(&extent, adjoint, count, &mut explanation);
                Steps::Cpu { plan, workers }
            }
            #[cfg(gpu)]
            Device::Cuda(cuda) => {
                let mut draft = Draft::new(cuda, options.alignment_for(size_of::<T>())?);
                let matrix = CsrRegions::operands(&mut draft, &extent);
                let (input, output) = (draft.operand::<T>(input_len), draft.operand(output_len));
                if adjoint {
                    let turned = extent.transposed();
                    let transposed =
                        CsrRegions::in_workspace(&mut draft, "the transposed matrix", &turned)?;
                    cuda::transpose(&mut draft, &extent, matrix, transposed)?;
                    cuda::mul(&mut draft, &turned, transposed, input, count, output)?;
                    explanation.algorithm = "transpose".into();
                    explanation.reason = "scattering would add up in no fixed order".into();
                } else {
                    cuda::mul(&mut draft, &extent, matrix, input, count, output)?;
                    explanation.algorithm = "gather".into();
                    explanation.reason = "rows are summed each on its own, in a fixed order".into();
                }
                Steps::Cuda(draft.prepare()?)
            }
        };
        let operands = vec![
            ("the matrix", vec![rows, columns]),
            ("the matrix's indices", vec![nnz]),
            ("the matrix's data", vec![nnz]),
            input,
            output,
        ];
        let plan = Plan::new(&device, &options, explanation, operands, steps)?;
        Ok(ProductPlan::of(plan, width))
    }

    /// A product, as a new tensor.
    fn product(&self, product: Product, input: TensorView<'_, T>) -> Result<Tensor<T>> {
        let options = PlanOptions::for_addresses(&[input.address()]);
        let plan = self.plan_product(product, options)?;
        let mut output = Tensor::for_result(&self.device(), plan.plan.shape(OUTPUT))?;
        plan.run(self, input, &mut output, &mut plan.make_workspace()?)?;
        Ok(output)
    }

    fn product_into(
        &self,
        product: Product,
        input: TensorView<'_, T>,
        output: TensorViewMut<'_, T>,
    ) -> Result<()> {
        let options = PlanOptions::for_addresses(&[input.address(), output.address()]);
        let plan = self.plan_product(product, options)?;
        plan.run(self, input, output, &mut plan.make_workspace()?)
    }
}

impl<T: Element> ProductPlan<T> {
    /// Multiplies `matrix` and writes all of `output`: from `x` to `y`, or from `y` to `x` with the adjoint.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::ElementType`] (for indices of another width), [`Error::DeviceMismatch`] or
    /// [`Error::Invalid`] when operands or workspace are not those that were planned for; [`Error::Device`]
    /// when the device fails.
    pub fn run<'a, 'b>(
        &self,
        matrix: &Csr<T>,
        input: impl Into<TensorView<'a, T>>,
        output: impl Into<TensorViewMut<'b, T>>,
        workspace: &mut Workspace<'_>,
    ) -> Result<()> {
        let (input, output) = (input.into(), output.into());
        let there = matrix.device();
        self.plan.check(&[
            (MATRIX, &matrix.shape(), &there),
            (DATA, &[matrix.nnz()], &there),
            (INPUT, input.shape(), &input.device()),
            (OUTPUT, output.shape(), &output.device()),
        ])?;
        if matrix.index_width() != self.width {
            return Err(Error::ElementType {
                argument: "the matrix's indices".into(),
                expected: format!("{}, as planned", self.width),
                found: matrix.index_width().to_string(),
            });
        }
        match (self.plan.steps(), matrix.storage()) {
            (Steps::Cpu { plan, workers }, Storage::Cpu(host)) => {
                let memory = workspace.host(workers.workspace())?;
                let (input, output) = (input.host(), output.host());
                with_pattern!(&host.structure, p => {
                    plan.run(workers, p, &host.data, input, output, memory)
                })
            }
            #[cfg(gpu)]
            (Steps::Cuda(program), Storage::Cuda(parts)) => {
                let [indptr, indices, data] = parts.addresses();
                let addresses = [indptr, indices, data, input.address(), output.address()];
                // SAFETY: the operands were checked, and are borrowed.
                unsafe { self.plan.queue(program, &addresses, workspace) }
            }
            #[cfg(gpu)]
            _ => unreachable!("the devices were compared"),
        }
    }
}

/// The number of vectors in a tensor of shape `[extent, vectors]`.
fn vector_count(argument: &str, extent: usize, shape: &[usize]) -> Result<usize> {
    match *shape {
        [first, vectors] if first == extent => Ok(vectors),
        _ => Err(Error::shape(argument, format!("[{extent}, vectors]"), shape)),
    }
}
