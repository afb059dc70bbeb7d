//! The type: stored entries of a convolution's weight, row by row.

use std::sync::Arc;

use crate::device::Device;
use crate::element::{Element, IndexWidth};
use crate::error::{Error, Result, checked_product};
use crate::geometry::{Conv, Layout};
use crate::matrix::{Csr, Indices};
use crate::memory::try_with_capacity;
use crate::tensor::view::expect_shape;
use crate::tensor::{Tensor, TensorView, TensorViewMut};

pub(super) const WHAT: &str = "the sparse weight";

/// A convolution's weight of which only some entries are stored; all others are zero.
///
/// It is a matrix in compressed sparse row form: a row for each output channel, a column for each entry of
/// its group's patch, of which there are (C/g)·K, C/g being the input channels of a group and K the taps.
/// Columns are the dense weight's other axes flattened in their order, as in
/// [`Conv::gathering_filter_coo`]:
///
/// | layout | dense shape | column of (channel of the group, tap) |
/// |---|---|---|
/// | channels-first | `[O, C/g, kernel…]` | channel·K + tap |
/// | channels-last | `[kernel…, C/g, O]` | tap·(C/g) + channel |
///
/// Taps are row-major. The columns of a row ascend and none occurs twice; a row may be empty, and a stored
/// value may be zero: it is an entry all the same, and has a gradient.
///
/// The pattern (which entries are stored) never changes, is on the host, and is shared by clones; the
/// values are a tensor of `[entries]`, in the order of rows and columns, on any device.
///
/// ```
/// use convmat::{Conv, Device, Pruning, SparseWeight, Tensor};
/// let conv = Conv::new([3]).padding([1]);
/// let dense = Tensor::from_vec(&Device::Cpu, &[2, 1, 3], vec![0.1f32, 2., -0.2, 3., 0., -4.])?;
/// let weight = SparseWeight::from_dense(&conv, &dense, Pruning::Threshold(0.5))?;
/// assert_eq!((weight.shape(), weight.entries()), ([2, 3], 3));
/// assert_eq!(weight.to_dense()?.as_slice().unwrap(), [0., 2., 0., 3., 0., -4.]);
///
/// let x = Tensor::from_vec(&Device::Cpu, &[1, 1, 3], vec![1f32, 2., 3.])?;
/// let y = conv.sparse_forward(&x, &weight, None)?;
/// assert_eq!(y.as_slice().unwrap(), [2., 4., 6., -8., -9., 6.]);
/// # Ok::<(), convmat::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct SparseWeight<T: Element> {
    pattern: Arc<Pattern>,
    values: Tensor<T>,
}

/// Which entries of a weight are stored, and what the weight's dense shape is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    pub layout: Layout,
    /// Output channels, over all groups.
    pub outputs: usize,
    /// Input channels of a group.
    pub inputs: usize,
    pub kernel: Vec<usize>,
    /// Where each row's entries start, and their number last.
    pub starts: Vec<usize>,
    /// The column of each entry.
    pub columns: Vec<i32>,
}

impl Pattern {
    pub fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    /// Columns: entries of a group's patch.
    pub fn patch(&self) -> usize {
        self.inputs * self.taps()
    }

    /// Stored entries.
    pub fn len(&self) -> usize {
        self.columns.len()
    }

    /// The numbers of a row's entries.
    pub fn row(&self, row: usize) -> std::ops::Range<usize> {
        self.starts[row]..self.starts[row + 1]
    }

    /// Channel of the group and tap of the entry with this number.
    pub fn place(&self, entry: usize) -> (usize, usize) {
        let column = self.columns[entry] as usize;
        match self.layout {
            Layout::ChannelsFirst => (column / self.taps(), column % self.taps()),
            Layout::ChannelsLast => (column % self.inputs, column / self.inputs),
        }
    }

    /// The column of a channel of the group and a tap.
    pub fn column(&self, channel: usize, tap: usize) -> usize {
        match self.layout {
            Layout::ChannelsFirst => channel * self.taps() + tap,
            Layout::ChannelsLast => tap * self.inputs + channel,
        }
    }

    /// The dense weight's shape.
    pub fn dense_shape(&self) -> Vec<usize> {
        self.layout.weight_shape(self.outputs, self.inputs, &self.kernel)
    }

    /// Where the entry of this row and column is in the dense weight.
    pub fn dense_index(&self, row: usize, column: usize) -> usize {
        match self.layout {
            Layout::ChannelsFirst => row * self.patch() + column,
            Layout::ChannelsLast => column * self.outputs + row,
        }
    }

    /// The pattern without entries of weights for this convolution.
    ///
    /// # Errors
    /// [`Error::Invalid`] or [`Error::Shape`] when such a weight cannot be, [`Error::TooLarge`] when 32 bits
    /// do not suffice for its rows and columns.
    pub fn empty<const D: usize>(conv: &Conv<D>, outputs: usize, inputs: usize) -> Result<Pattern> {
        let (layout, kernel) = (conv.axis_order(), conv.kernel_size().to_vec());
        let groups = conv.group_count();
        if let Some(axis) = kernel.iter().position(|&extent| extent == 0) {
            let argument = format!("kernel on axis {axis}");
            return Err(Error::invalid(argument, 0, "it must be at least 1"));
        }
        if groups == 0 || outputs == 0 || !outputs.is_multiple_of(groups) {
            let reason = format!("they must be a positive multiple of groups = {groups}");
            return Err(Error::invalid("weight output channels", outputs, reason));
        }
        if inputs == 0 {
            return Err(Error::invalid("weight channels", 0, "there must be at least 1 per group"));
        }
        let patch = checked_product(WHAT, &[&[inputs][..], &kernel].concat())?;
        checked_product(WHAT, &[outputs, patch])?;
        for (what, extent) in [("rows", outputs), ("columns", patch)] {
            check_count(what, extent)?;
        }
        Ok(Pattern { layout, outputs, inputs, kernel, starts: vec![0], columns: Vec::new() })
    }

    /// [`Pattern::empty`] for a matrix of this shape.
    ///
    /// # Errors
    /// As there; [`Error::Shape`] when the kernel's taps do not divide the columns.
    pub fn of_matrix<const D: usize>(conv: &Conv<D>, shape: [usize; 2]) -> Result<Pattern> {
        let taps = checked_product(WHAT, &conv.kernel_size())?;
        if taps > 0 && (shape[1] == 0 || !shape[1].is_multiple_of(taps)) {
            let expected =
                format!("[output channels, channels of a group x the kernel's {taps} taps]");
            return Err(Error::shape("weight", expected, &shape));
        }
        Pattern::empty(conv, shape[0], shape[1] / taps.max(1))
    }

    /// Ends the last row.
    pub fn end_row(&mut self) -> Result<()> {
        check_count("entries", self.columns.len())?;
        self.starts.push(self.columns.len());
        Ok(())
    }
}

/// Fails unless 32-bit indices can count so many.
fn check_count(what: &str, count: usize) -> Result<()> {
    let limit = IndexWidth::I32.limit();
    if count as u64 > limit {
        let (what, value) = (format!("the number of {what} of a sparse weight"), count.to_string());
        return Err(Error::TooLarge { what, value, limit });
    }
    Ok(())
}

impl<T: Element> SparseWeight<T> {
    /// The weight of a pattern with as many values.
    pub(super) fn assemble(pattern: Pattern, values: Vec<T>) -> Result<Self> {
        let values = Tensor::from_vec(&Device::Cpu, &[pattern.len()], values)?;
        Ok(SparseWeight { pattern: Arc::new(pattern), values })
    }

    pub(super) fn pattern(&self) -> &Arc<Pattern> {
        &self.pattern
    }

    /// Numbers of rows (output channels) and columns (entries of a group's patch).
    pub fn shape(&self) -> [usize; 2] {
        [self.pattern.outputs, self.pattern.patch()]
    }

    /// The shape of the dense weight: see [`Layout::weight_shape`].
    pub fn dense_shape(&self) -> Vec<usize> {
        self.pattern.dense_shape()
    }

    /// The layout whose order the columns have.
    pub fn layout(&self) -> Layout {
        self.pattern.layout
    }

    /// Number of stored entries, zeros among them included.
    pub fn entries(&self) -> usize {
        self.pattern.len()
    }

    /// The part of the dense weight's elements that is not stored, between 0 and 1.
    pub fn sparsity(&self) -> f64 {
        let [rows, columns] = self.shape();
        1.0 - self.entries() as f64 / (rows as f64 * columns as f64)
    }

    /// Where the values are.
    pub fn device(&self) -> Device {
        self.values.device()
    }

    /// The same weight with its values on `device`.
    ///
    /// # Errors
    /// As [`Tensor::to_device`].
    pub fn to_device(self, device: &Device) -> Result<Self> {
        Ok(SparseWeight { values: self.values.to_device(device)?, ..self })
    }

    /// Where each row's entries start, and the number of entries last.
    pub fn indptr(&self) -> &[usize] {
        &self.pattern.starts
    }

    /// The column of each entry.
    pub fn indices(&self) -> &[i32] {
        &self.pattern.columns
    }

    /// The stored values, `[entries]`.
    pub fn values(&self) -> TensorView<'_, T> {
        self.values.view()
    }

    /// The stored values, to be changed in place.
    pub fn values_mut(&mut self) -> TensorViewMut<'_, T> {
        self.values.view_mut()
    }

    /// A weight of the same pattern with other values, `[entries]`, wherever these are.
    ///
    /// # Errors
    /// [`Error::Shape`] when there are not as many.
    pub fn with_values<U: Element>(&self, values: Tensor<U>) -> Result<SparseWeight<U>> {
        expect_shape("values", &[self.entries()], values.shape())?;
        Ok(SparseWeight { pattern: self.pattern.clone(), values })
    }

    /// The weight as a matrix on the host, entry by entry.
    ///
    /// # Errors
    /// [`Error::Allocation`] when it does not fit in memory; [`Error::Device`] when values cannot be read.
    pub fn to_csr(&self) -> Result<Csr<T>> {
        let width = IndexWidth::I32;
        let indptr = Indices::collect(WHAT, width, self.pattern.starts.iter().copied())?;
        let mut indices = try_with_capacity(WHAT, self.entries())?;
        indices.extend_from_slice(&self.pattern.columns);
        Csr::new(self.shape(), indptr, indices, self.values.view().to_vec()?)
    }

    /// The dense weight, of [`SparseWeight::dense_shape`], on the host; 0 where nothing is stored.
    ///
    /// # Errors
    /// As [`SparseWeight::to_csr`].
    pub fn to_dense(&self) -> Result<Tensor<T>> {
        let pattern = &*self.pattern;
        let mut dense = Tensor::zeros(&Device::Cpu, &pattern.dense_shape())?;
        let (values, target) = (self.values.view().to_vec()?, dense.view_mut().host());
        for row in 0..pattern.outputs {
            for entry in pattern.row(row) {
                let column = pattern.columns[entry] as usize;
                target[pattern.dense_index(row, column)] = values[entry];
            }
        }
        Ok(dense)
    }
}
