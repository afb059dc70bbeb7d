//! The matrix of a convolution with a sparse weight.

use rayon::prelude::*;

use super::problem::Problem;
use super::weight::{SparseWeight, WHAT};
use crate::device::Device;
use crate::element::{Element, IndexWidth};
use crate::error::{Error, Result, checked_product};
use crate::geometry::{Conv, ravel, unravel};
use crate::matrix::{Csr, Indices};
use crate::memory::try_with_capacity;
use crate::tensor::view::expect_shape;
use crate::tensor::{OptionalView, TensorView};

/// The rows of one output channel.
struct Rows<T> {
    /// Entries of each.
    counts: Vec<usize>,
    columns: Vec<usize>,
    values: Vec<T>,
}

impl<const D: usize> Conv<D> {
    /// The convolution of one image with a sparse weight as a sparse matrix M: M·[x; 1] = y with a bias, else
    /// M·x = y. Rows and columns are those of [`Conv::matrix`], which of the dense weight has an entry for
    /// every tap; here only stored entries make any, be their value zero or not. Entries that read the same
    /// position share one, the sum of their values in the accumulator type, rounded once. It is made on the
    /// host.
    ///
    /// # Errors
    /// As [`Conv::sparse_forward`]; [`Error::Shape`] when the bias is not `[outputs]`;
    /// [`Error::DeviceMismatch`] unless weight and bias are on the host; [`Error::TooLarge`] or
    /// [`Error::Allocation`] when the matrix does not fit in memory.
    ///
    /// ```
    /// use convmat::{Conv, Device, Pruning, SparseWeight, Tensor};
    /// let conv = Conv::new([2]);
    /// let dense = Tensor::from_vec(&Device::Cpu, &[1, 1, 2], vec![0f32, -1.])?;
    /// let weight = SparseWeight::from_dense(&conv, &dense, Pruning::Threshold(0.))?;
    /// let matrix = conv.sparse_matrix(&weight, None, [3])?;
    /// assert_eq!((matrix.shape(), matrix.nnz()), ([2, 3], 2));
    /// assert_eq!(matrix.to_dense()?.as_slice().unwrap(), [0., -1., 0., 0., 0., -1.]);
    /// # Ok::<(), convmat::Error>(())
    /// ```
    pub fn sparse_matrix<'b, T: Element>(
        &self,
        weight: &SparseWeight<T>,
        bias: impl Into<OptionalView<'b, T>>,
        input_size: [usize; D],
    ) -> Result<Csr<T>> {
        let bias = bias.into().0;
        let geometry = self.bind(input_size)?;
        let problem = Problem::new(&geometry, 1, weight.pattern())?;
        let values = on_host(WHAT, &weight.values())?;
        if let Some(bias) = &bias {
            expect_shape("bias", &[problem.outputs], bias.shape())?;
        }
        let bias = bias.map(|bias| on_host("the bias", &bias)).transpose()?;
        let rows = checked_product("the matrix's rows", &[problem.outputs, geometry.positions()])?;
        let columns = [problem.channels, geometry.input_positions()];
        let columns = checked_product("the matrix's columns", &columns)?;
        let blocks: Vec<Rows<T>> = (0..problem.outputs)
            .into_par_iter()
            .map(|output| channel(&problem, output, values, bias, columns))
            .collect::<Result<_>>()?;
        assemble([rows, columns + usize::from(bias.is_some())], blocks)
    }
}

fn on_host<'a, T: Element>(what: &str, view: &TensorView<'a, T>) -> Result<&'a [T]> {
    view.as_slice().ok_or_else(|| Error::DeviceMismatch {
        left: what.into(),
        left_device: view.device().to_string(),
        right: "the matrix".into(),
        right_device: Device::Cpu.to_string(),
    })
}

/// The rows of an output channel: `last` is the column of the bias.
fn channel<T: Element>(
    p: &Problem,
    output: usize,
    values: &[T],
    bias: Option<&[T]>,
    last: usize,
) -> Result<Rows<T>> {
    let what = "the rows of a matrix";
    let first = output / p.outputs_per_group() * p.channels_per_group();
    let taps = p.axes.tap_extents();
    let entry = |entry: usize| {
        let (channel, tap) = p.pattern.place(entry);
        (first + channel, unravel(tap, taps), values[entry].to_acc())
    };
    let entries: Vec<_> = p.pattern.row(output).map(entry).collect();
    let most = checked_product(what, &[entries.len() + 1, p.axes.outputs()])?;
    let mut counts = try_with_capacity(what, p.axes.outputs())?;
    let mut columns = try_with_capacity(what, most)?;
    let mut all = try_with_capacity(what, most)?;
    let mut row: Vec<(usize, T::Acc)> = try_with_capacity(what, entries.len())?;
    let inputs = p.axes.input_extents();
    for o in 0..p.axes.outputs() {
        let at = unravel(o, p.axes.output_extents());
        row.clear();
        row.extend(entries.iter().filter_map(|&(channel, tap, value)| {
            let source = |axis: usize| p.axes[axis].source(at[axis], tap[axis]);
            let i = [source(0)?, source(1)?, source(2)?];
            Some((channel * p.axes.inputs() + ravel(i, inputs), value))
        }));
        // Stable: values at one place add up in the order of their taps.
        row.sort_by_key(|&(column, _)| column);
        let before = columns.len();
        for shared in row.chunk_by(|a, b| a.0 == b.0) {
            columns.push(shared[0].0);
            let mut sum = shared[0].1;
            shared[1..].iter().for_each(|&(_, value)| sum += value);
            all.push(T::from_acc(sum));
        }
        if let Some(bias) = bias {
            columns.push(last);
            all.push(bias[output]);
        }
        counts.push(columns.len() - before);
    }
    Ok(Rows { counts, columns, values: all })
}

/// The matrix of all channels' rows.
fn assemble<T: Element>(shape: [usize; 2], blocks: Vec<Rows<T>>) -> Result<Csr<T>> {
    let what = "the matrix";
    let entries: usize = blocks.iter().map(|block| block.values.len()).sum();
    let width = IndexWidth::for_matrix(shape.map(|extent| extent as u64), entries as u64);
    let ends = blocks.iter().flat_map(|block| &block.counts).scan(0, |end, count| {
        *end += count;
        Some(*end)
    });
    let mut indptr: Vec<usize> = try_with_capacity(what, shape[0] + 1)?;
    indptr.push(0);
    indptr.extend(ends);
    let indptr = Indices::collect(what, width, indptr.into_iter())?;
    let mut columns: Vec<usize> = try_with_capacity(what, entries)?;
    let mut values = try_with_capacity(what, entries)?;
    for block in blocks {
        columns.extend(block.columns);
        values.extend(block.values);
    }
    let indices = Indices::collect(what, width, columns.into_iter())?;
    Csr::new(shape, indptr, indices, values)
}
