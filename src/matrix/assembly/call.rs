//! What is assembled: a convolution's matrix or its adjoint's, with every size checked.

use crate::element::IndexWidth;
use crate::error::{Error, Result};
use crate::geometry::{AxisMap, AxisRows, Conv, Geometry, Layout};
use crate::matrix::size::MatrixSize;
use crate::matrix::storage::Extent;
use crate::tensor::view::expect_shape;

/// Which of the two matrices of a convolution is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Rows are outputs, columns inputs.
    Forward,
    /// Rows are inputs, columns outputs: the transposed convolution.
    Adjoint,
}

/// The channels of a matrix's rows and columns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Channels {
    pub(super) groups: usize,
    /// Row channels in each group.
    pub(super) rows: usize,
    /// Column channels in each group.
    pub(super) columns: usize,
    /// Whether there is a bias column.
    pub(super) bias: bool,
}

/// Strides of the weight tensor as the matrix reads it.
#[derive(Clone, Copy, Debug)]
pub(super) struct WeightOrder {
    pub(super) group: usize,
    /// From one row channel of a group to the next.
    pub(super) row: usize,
    /// From one column channel of a group to the next.
    pub(super) column: usize,
    pub(super) tap: usize,
}

/// A matrix to be, with every size checked.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) direction: Direction,
    pub(super) channels: Channels,
    pub(super) order: WeightOrder,
    /// The rows of each axis, and its taps.
    pub(super) axes: [AxisRows; 3],
    pub(super) taps: [usize; 3],
    pub(super) size: MatrixSize,
    /// The weight's shape.
    pub(super) weight: Vec<usize>,
    /// For people: on what, and by which convolution.
    pub(super) about: String,
}

impl Call {
    /// Of the convolution of inputs of this size.
    pub(super) fn forward<const D: usize>(
        conv: &Conv<D>,
        weight: &[usize],
        bias: bool,
        input_size: [usize; D],
    ) -> Result<Self> {
        let geometry = conv.bind(input_size)?;
        let WeightChannels { outputs, inputs } = WeightChannels::new(&geometry, weight)?;
        let groups = conv.group_count();
        let channels = Channels { groups, rows: outputs, columns: inputs, bias };
        let about = format!("on {input_size:?} by {conv}");
        Call::new(&geometry, Direction::Forward, channels, weight, about)
    }

    /// Of the transposed convolution of inputs of this size.
    pub(super) fn transposed<const D: usize>(
        conv: &Conv<D>,
        weight: &[usize],
        bias: bool,
        input_size: [usize; D],
        output_padding: [usize; D],
    ) -> Result<Self> {
        let geometry = conv.bind_transposed(input_size, output_padding)?;
        let WeightChannels { outputs, inputs } = WeightChannels::new(&geometry, weight)?;
        let groups = conv.group_count();
        let channels = Channels { groups, rows: inputs, columns: outputs, bias };
        let about = format!(
            "on {input_size:?}, output padding {output_padding:?}, by the adjoint of {conv}"
        );
        Call::new(&geometry, Direction::Adjoint, channels, weight, about)
    }

    fn new<const D: usize>(
        geometry: &Geometry<D>,
        direction: Direction,
        channels: Channels,
        weight: &[usize],
        about: String,
    ) -> Result<Self> {
        let axes = geometry.axes()?;
        let taps = axes.tap_extents();
        let [d, h, w] = &*axes;
        let rows = |map: &AxisMap| match direction {
            Direction::Forward => map.rows(),
            Direction::Adjoint => map.adjoint_rows(),
        };
        let axes = [rows(d)?, rows(h)?, rows(w)?];
        let size = size(&axes, &channels)?;
        let layout = geometry.conv().axis_order();
        let order = WeightOrder::new(layout, direction, &channels, taps.iter().product());
        Ok(Call { direction, channels, order, axes, taps, size, weight: weight.into(), about })
    }

    /// Row channels over all groups.
    pub(super) fn row_channels(&self) -> usize {
        self.channels.groups * self.channels.rows
    }

    /// The matrix's extent with indices of this width.
    ///
    /// # Errors
    /// [`Error::TooLarge`] when the width does not suffice.
    pub(super) fn extent(&self, width: IndexWidth) -> Result<Extent> {
        let size = &self.size;
        if size.index_width().limit() > width.limit() {
            return Err(Error::TooLarge {
                what: format!("a row, column or entry number of a matrix with {width} indices"),
                value: size.rows().max(size.columns()).max(size.nnz()).to_string(),
                limit: width.limit(),
            });
        }
        // `MatrixSize` bounds these by i64::MAX.
        let [rows, columns, nnz] = [size.rows(), size.columns(), size.nnz()].map(|n| n as usize);
        Ok(Extent { rows, columns, nnz, width })
    }

    /// Additions of weights whose taps fall on the same column.
    pub(super) fn additions(&self) -> u64 {
        let taps_of = |rows: &AxisRows| -> u128 {
            let rows = (0..rows.rows()).flat_map(|row| rows.row(row));
            rows.map(|(_, taps)| taps.len() as u128).sum()
        };
        let pairs = self.row_channels() as u128 * self.channels.columns as u128;
        let product = |counts: [u128; 3]| counts.into_iter().fold(pairs, u128::saturating_mul);
        let all = product(self.axes.each_ref().map(taps_of));
        let entries = product(self.axes.each_ref().map(|axis| axis.total() as u128));
        u64::try_from(all - entries).unwrap_or(u64::MAX)
    }
}

/// Channels per group of a weight.
struct WeightChannels {
    outputs: usize,
    inputs: usize,
}

impl WeightChannels {
    /// Those of a weight of this shape, which fits the geometry.
    fn new<const D: usize>(geometry: &Geometry<D>, weight: &[usize]) -> Result<Self> {
        let conv = geometry.conv();
        let layout = conv.axis_order();
        let (outputs, inputs, kernel) = layout.split_weight::<D>("weight", weight)?;
        let expected = layout.weight_shape(outputs, inputs, &conv.kernel_size());
        expect_shape("weight", &expected, weight)?;
        debug_assert_eq!(kernel, conv.kernel_size());
        if inputs == 0 {
            return Err(Error::invalid("weight channels", 0, "there must be at least 1 per group"));
        }
        Ok(WeightChannels { outputs: geometry.channels_per_group("output", outputs)?, inputs })
    }
}

/// The size of a matrix with these axes and channels.
fn size(axes: &[AxisRows; 3], channels: &Channels) -> Result<MatrixSize> {
    let all = |of: fn(&AxisRows) -> usize| axes.each_ref().map(|axis| of(axis) as u128);
    let row_channels = channels.groups as u128 * channels.rows as u128;
    let column_channels = channels.groups as u128 * channels.columns as u128;
    let beta = u128::from(channels.bias);
    MatrixSize::checked(
        &[&[row_channels], &all(AxisRows::rows)[..]].concat(),
        (&[&[column_channels], &all(AxisRows::columns)[..]].concat(), beta),
        &[&[row_channels, channels.columns as u128], &all(AxisRows::total)[..]].concat(),
    )
}

impl WeightOrder {
    fn new(layout: Layout, direction: Direction, channels: &Channels, taps: usize) -> Self {
        // Output and input channels per group of the convolution whose weight this is.
        let (outputs, inputs) = match direction {
            Direction::Forward => (channels.rows, channels.columns),
            Direction::Adjoint => (channels.columns, channels.rows),
        };
        let all_outputs = channels.groups * outputs;
        let (group, output, input, tap) = match layout {
            Layout::ChannelsFirst => (outputs * inputs * taps, inputs * taps, taps, 1),
            Layout::ChannelsLast => (outputs, 1, all_outputs, inputs * all_outputs),
        };
        match direction {
            Direction::Forward => WeightOrder { group, row: output, column: input, tap },
            Direction::Adjoint => WeightOrder { group, row: input, column: output, tap },
        }
    }
}
