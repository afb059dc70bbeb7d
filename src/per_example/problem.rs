//! What gradients of single examples are computed of, with every size checked.
//!
//! Both kinds of layers are one product: rows of a *plain* operand, as it lies, by patches of a *gathered*
//! one, summed over positions. A convolution's plain operand is dy and its gathered one x; for a transposed
//! convolution they change places, and so do the rows and the channels of the gradient's columns.

use std::ops::Range;

use crate::error::{Error, Result, checked_product};
use crate::geometry::{Axes, Conv, Geometry, Layout};
use crate::patches::Images;
use crate::patches::entries::Entries;
use crate::per_example::options::PerExampleOptions;

pub(super) const INPUT: &str = "input";
pub(super) const OUTPUT_GRADIENT: &str = "output gradient";

/// A layer and its batch, with every size known and consistent.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub batch: usize,
    pub groups: usize,
    pub layout: Layout,
    /// From positions of the plain operand to those of the gathered one.
    pub axes: Axes,
    /// Channels over all groups.
    pub gathered: usize,
    pub plain: usize,
    pub bias: bool,
    pub transposed: bool,
}

/// A piece of one example's gradient, or of a sum of several, in one group.
pub(crate) struct Part<'a, F> {
    pub group: usize,
    pub place: Place<'a>,
    /// Its elements, row by row.
    pub sums: &'a [F],
}

pub(crate) enum Place<'a> {
    /// Plain rows (of the group) by patch entries.
    Tile { rows: Range<usize>, entries: &'a Entries },
    /// The column of the bias, all rows.
    Bias,
}

impl Problem {
    /// For operands of these shapes.
    pub fn new<const D: usize>(
        conv: &Conv<D>,
        x: &[usize],
        dy: &[usize],
        options: PerExampleOptions,
    ) -> Result<Self> {
        let layout = conv.axis_order();
        let (batch, channels, size) = layout.split_activation::<D>(INPUT, x)?;
        let (dy_batch, outputs, dy_size) = layout.split_activation::<D>(OUTPUT_GRADIENT, dy)?;
        let PerExampleOptions { bias, transposed } = options;
        let geometry = match transposed {
            true => conv.transposed_geometry(OUTPUT_GRADIENT, size, dy_size, dy)?,
            false => conv.bind(size)?,
        };
        geometry.channels_per_group(INPUT, channels)?;
        geometry.channels_per_group(OUTPUT_GRADIENT, outputs)?;
        if !transposed && dy_size != geometry.output() {
            let expected = format!("spatial extents {:?}", geometry.output());
            return Err(Error::shape(OUTPUT_GRADIENT, expected, dy));
        }
        if dy_batch != batch {
            let expected = layout.activation_shape(batch, outputs, &dy_size);
            let expected = format!("{expected:?}, the batch of the input");
            return Err(Error::shape(OUTPUT_GRADIENT, expected, dy));
        }
        let [gathered, plain] = if transposed { [outputs, channels] } else { [channels, outputs] };
        Problem::of(&geometry, batch, [gathered, plain], options, bias)
    }

    fn of<const D: usize>(
        geometry: &Geometry<D>,
        batch: usize,
        [gathered, plain]: [usize; 2],
        PerExampleOptions { transposed, .. }: PerExampleOptions,
        bias: bool,
    ) -> Result<Self> {
        let groups = geometry.conv().group_count();
        checked_product("the operands", &[batch.max(1), gathered, geometry.input_positions()])?;
        checked_product("the operands", &[batch.max(1), plain, geometry.positions()])?;
        let p = Problem {
            batch,
            groups,
            layout: geometry.conv().axis_order(),
            axes: geometry.axes()?,
            gathered,
            plain,
            bias,
            transposed,
        };
        checked_product("the entries of a patch", &[gathered.max(plain) / groups, p.taps()])?;
        checked_product("a gradient", &[groups, p.rows(), p.columns()])?;
        Ok(p)
    }

    /// What patches are taken of.
    pub fn images(&self) -> Images {
        let (channels, groups) = (self.gathered, self.groups);
        Images { layout: self.layout, axes: self.axes.clone(), channels, groups }
    }

    pub fn taps(&self) -> usize {
        self.axes.taps()
    }

    /// Positions that are summed over.
    pub fn positions(&self) -> usize {
        self.axes.outputs()
    }

    pub fn gathered_per_group(&self) -> usize {
        self.gathered / self.groups
    }

    pub fn plain_per_group(&self) -> usize {
        self.plain / self.groups
    }

    /// Entries of a group's patch.
    pub fn entries(&self) -> usize {
        self.gathered_per_group() * self.taps()
    }

    /// Rows of a group's gradient: its output channels.
    pub fn rows(&self) -> usize {
        if self.transposed { self.gathered_per_group() } else { self.plain_per_group() }
    }

    /// Columns of a group's gradient, the bias's among them.
    pub fn columns(&self) -> usize {
        self.weights() + usize::from(self.bias)
    }

    /// Columns of a group's gradient but the bias's.
    pub fn weights(&self) -> usize {
        if self.transposed { self.plain_per_group() * self.taps() } else { self.entries() }
    }

    /// Elements of an example's gradient.
    pub fn gradient_len(&self) -> usize {
        self.groups * self.rows() * self.columns()
    }

    pub fn gradient_shape(&self) -> Vec<usize> {
        vec![self.groups, self.rows(), self.columns()]
    }

    /// Elements of an image of the gathered operand.
    pub fn gathered_len(&self) -> usize {
        self.gathered * self.axes.inputs()
    }

    /// Elements of an image of the plain operand.
    pub fn plain_len(&self) -> usize {
        self.plain * self.axes.outputs()
    }

    /// Floating-point operations of the sums over positions of one example.
    pub fn gradient_flop(&self) -> u64 {
        let per_position = (self.plain * self.entries()) as u64;
        2 * per_position * self.positions() as u64
            + if self.bias { self.dy_len() as u64 } else { 0 }
    }

    fn dy_len(&self) -> usize {
        if self.transposed { self.gathered_len() } else { self.plain_len() }
    }

    /// Bytes of both operands.
    pub fn operand_bytes(&self, element: usize) -> u64 {
        (self.batch * (self.gathered_len() + self.plain_len()) * element) as u64
    }

    /// Calls `visit(row, column, values)` for every run of a part's elements that lie side by side in its
    /// group's gradient.
    pub fn each_run<F>(&self, part: &Part<'_, F>, mut visit: impl FnMut(usize, usize, &[F])) {
        let (rows, entries) = match &part.place {
            Place::Bias => {
                let each = part.sums.chunks_exact(1).enumerate();
                return each.for_each(|(row, value)| visit(row, self.weights(), value));
            }
            Place::Tile { rows, entries } => (rows, entries),
        };
        let (taps, plain) = (self.taps(), self.plain_per_group());
        for (row, values) in rows.clone().zip(part.sums.chunks_exact(entries.len())) {
            match (self.transposed, self.layout) {
                (false, _) => visit(row, entries.range().start, values),
                (true, Layout::ChannelsFirst) => {
                    let of_channels = values.chunks_exact(entries.taps.len());
                    for (channel, values) in entries.channels.clone().zip(of_channels) {
                        visit(channel, row * taps + entries.taps.start, values);
                    }
                }
                (true, Layout::ChannelsLast) => {
                    let of_taps = values.chunks_exact(entries.channels.len());
                    for (tap, values) in entries.taps.clone().zip(of_taps) {
                        let values = values.chunks_exact(1);
                        for (channel, value) in entries.channels.clone().zip(values) {
                            visit(channel, tap * plain + row, value);
                        }
                    }
                }
            }
        }
    }
}
