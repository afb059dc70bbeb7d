//! The layer a state is of, and its gradients as matrices.

use std::fmt;

use crate::device::Device;
use crate::element::{Accumulator, Element};
use crate::error::{Error, Result, checked_product};
use crate::geometry::{Conv, Layout, PaddingMode};
use crate::memory::try_zeroed;
use crate::tensor::view::{common_device, expect_shape};
use crate::tensor::{Tensor, TensorView};

/// A convolution, or a transposed convolution, with all sizes but the batch.
///
/// Its gradient as a matrix is `[g, O/g, d]` with g the number of groups, O that of output channels and
/// d = C/g·K (+ 1 with a bias): the weight's gradient with columns in the order of a group's rows of
/// [`Conv::unfold`], and the bias's as the last column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KfacLayer<const D: usize> {
    conv: Conv<D>,
    channels: usize,
    outputs: usize,
    input_size: [usize; D],
    bias: bool,
    transposed: Option<[usize; D]>,
}

/// A layer's sizes, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub groups: usize,
    /// Rows d of the input factor: the entries of a group's patch, and 1 with a bias.
    pub rows: usize,
    /// Output channels of a group.
    pub outputs: usize,
    /// Input channels of a group.
    pub channels: usize,
    /// Taps of the kernel.
    pub taps: usize,
    /// Output positions.
    pub positions: usize,
}

impl Sizes {
    pub fn input_factor(&self) -> [usize; 3] {
        [self.groups, self.rows, self.rows]
    }

    pub fn output_factor(&self) -> [usize; 3] {
        [self.groups, self.outputs, self.outputs]
    }

    pub fn gradient(&self) -> [usize; 3] {
        [self.groups, self.outputs, self.rows]
    }
}

impl<const D: usize> KfacLayer<D> {
    /// A convolution without a bias of inputs with so many channels and these spatial extents, to `outputs`
    /// channels.
    pub fn new(conv: Conv<D>, channels: usize, outputs: usize, input_size: [usize; D]) -> Self {
        KfacLayer { conv, channels, outputs, input_size, bias: false, transposed: None }
    }

    /// Whether the layer has a bias, which is a weight of the patch's appended 1.
    pub fn bias(self, bias: bool) -> Self {
        KfacLayer { bias, ..self }
    }

    /// The transposed convolution, [`Conv::transposed`] with this output padding, instead.
    pub fn transposed(self, output_padding: [usize; D]) -> Self {
        KfacLayer { transposed: Some(output_padding), ..self }
    }

    pub(super) fn conv(&self) -> &Conv<D> {
        &self.conv
    }

    pub(super) fn has_bias(&self) -> bool {
        self.bias
    }

    pub(super) fn output_padding(&self) -> Option<[usize; D]> {
        self.transposed
    }

    /// The sizes, and the spatial extents of the output.
    fn bind(&self) -> Result<(Sizes, [usize; D])> {
        let (geometry, output) = match self.transposed {
            None => {
                let geometry = self.conv.bind(self.input_size)?;
                (geometry, geometry.output())
            }
            Some(extra) => {
                if self.conv.mode() != PaddingMode::Zeros {
                    let reason = "factors of a transposed convolution exist for zeros only";
                    return Err(Error::invalid("padding mode", self.conv.mode(), reason));
                }
                let geometry = self.conv.bind_transposed(self.input_size, extra)?;
                (geometry, geometry.input())
            }
        };
        let groups = self.conv.group_count();
        let channels = geometry.channels_per_group("input", self.channels)?;
        let outputs = geometry.channels_per_group("output", self.outputs)?;
        let taps = geometry.taps();
        let rows =
            checked_product("the entries of a patch", &[channels, taps])? + usize::from(self.bias);
        let positions = checked_product("the output positions", &output)?;
        checked_product("the input factor", &[groups, rows, rows])?;
        checked_product("the output factor", &[groups, outputs, outputs])?;
        checked_product("the gradient", &[groups, outputs, rows])?;
        Ok((Sizes { groups, rows, outputs, channels, taps, positions }, output))
    }

    pub(super) fn sizes(&self) -> Result<Sizes> {
        self.bind().map(|(sizes, _)| sizes)
    }

    /// The number of examples of operands that fit.
    pub(super) fn check_operands<T: Element>(
        &self,
        device: &Device,
        x: &TensorView<'_, T>,
        dy: &TensorView<'_, T>,
    ) -> Result<usize> {
        let layout = self.conv.axis_order();
        let (batch, ..) = layout.split_activation::<D>("input", x.shape())?;
        let (_, output) = self.bind()?;
        let expected = layout.activation_shape(batch, self.channels, &self.input_size);
        expect_shape("input", &expected, x.shape())?;
        let expected = layout.activation_shape(batch, self.outputs, &output);
        expect_shape("output gradient", &expected, dy.shape())?;
        common_device(&[
            ("the factors", device.clone()),
            ("input", x.device()),
            ("output gradient", dy.device()),
        ])?;
        if batch == 0 {
            return Err(Error::invalid("examples", 0, "there must be at least one"));
        }
        Ok(batch)
    }

    /// The shape of the layer's weight.
    pub(super) fn weight_shape(&self, sizes: &Sizes) -> Vec<usize> {
        let (layout, kernel) = (self.conv.axis_order(), self.conv.kernel_size());
        match self.transposed {
            None => layout.weight_shape(self.outputs, sizes.channels, &kernel),
            Some(_) => layout.weight_shape(self.channels, sizes.outputs, &kernel),
        }
    }

    /// The number of output channels, over all groups.
    pub(super) fn output_channels(&self) -> usize {
        self.outputs
    }

    /// Where the weight holds what multiplies an entry of a group's patch for an output.
    fn weight_index(&self, sizes: &Sizes, group: usize, output: usize, entry: usize) -> usize {
        let &Sizes { outputs, channels, taps, .. } = sizes;
        let layout = self.conv.axis_order();
        let (channel, tap) = match layout {
            Layout::ChannelsFirst => (entry / taps, entry % taps),
            Layout::ChannelsLast => (entry % channels, entry / channels),
        };
        match (layout, self.transposed.is_some()) {
            (Layout::ChannelsFirst, false) => {
                ((group * outputs + output) * channels + channel) * taps + tap
            }
            (Layout::ChannelsFirst, true) => {
                ((group * channels + channel) * outputs + output) * taps + tap
            }
            (Layout::ChannelsLast, false) => {
                (tap * channels + channel) * self.outputs + group * outputs + output
            }
            (Layout::ChannelsLast, true) => {
                (tap * outputs + output) * self.channels + group * channels + channel
            }
        }
    }

    /// The gradients of weight and bias as matrices `[g, O/g, d]`.
    pub(super) fn matrices_of<F: Accumulator>(
        &self,
        sizes: &Sizes,
        weight: &[F],
        bias: Option<&[F]>,
    ) -> Vec<F> {
        let mut matrices = Vec::with_capacity(sizes.gradient().iter().product());
        for group in 0..sizes.groups {
            for output in 0..sizes.outputs {
                let entries = 0..sizes.channels * sizes.taps;
                let at = |entry| weight[self.weight_index(sizes, group, output, entry)];
                matrices.extend(entries.map(at));
                matrices.extend(bias.map(|bias| bias[group * sizes.outputs + output]));
            }
        }
        matrices
    }

    /// The inverse of [`KfacLayer::matrices_of`].
    pub(super) fn split_matrices<F: Accumulator>(
        &self,
        sizes: &Sizes,
        matrices: &[F],
    ) -> (Vec<F>, Option<Vec<F>>) {
        let entries = sizes.channels * sizes.taps;
        let mut weight = vec![F::ZERO; sizes.groups * sizes.outputs * entries];
        let mut bias = Vec::new();
        for (row, values) in matrices.chunks_exact(sizes.rows).enumerate() {
            let (group, output) = (row / sizes.outputs, row % sizes.outputs);
            for (entry, &value) in values[..entries].iter().enumerate() {
                weight[self.weight_index(sizes, group, output, entry)] = value;
            }
            bias.extend(values.get(entries));
        }
        (weight, self.bias.then_some(bias))
    }

    /// `x` with zeros at the high ends up to these extents: where an output padding is a stride or more, the
    /// convolution has outputs there that are no inputs of this layer.
    fn widened<F: Accumulator>(
        &self,
        x: TensorView<'_, F>,
        wanted: [usize; D],
    ) -> Result<Tensor<F>> {
        let layout = self.conv.axis_order();
        let (batch, channels, size) = layout.split_activation::<D>("input", x.shape())?;
        let (outer, inner) = match layout {
            Layout::ChannelsFirst => (batch * channels, 1),
            Layout::ChannelsLast => (batch, channels),
        };
        let (narrow, wide) = (size.iter().product::<usize>(), wanted.iter().product::<usize>());
        let len = checked_product("the input and its padding", &[outer, wide, inner])?;
        let mut data = try_zeroed("the input and its padding", len)?;
        for (at, run) in x.to_vec()?.chunks_exact(inner).enumerate() {
            let (mut rest, mut index, mut step) = (at % narrow, 0, 1);
            for axis in (0..D).rev() {
                index += rest % size[axis] * step;
                rest /= size[axis];
                step *= wanted[axis];
            }
            data[(at / narrow * wide + index) * inner..][..inner].copy_from_slice(run);
        }
        let shape = layout.activation_shape(batch, channels, &wanted);
        Tensor::from_vec(&x.device(), &shape, data)
    }

    /// The gradient summed over the examples, as matrices `[g, O/g, d]` on the host.
    pub(super) fn gradient<F: Accumulator>(
        &self,
        sizes: &Sizes,
        x: TensorView<'_, F>,
        dy: TensorView<'_, F>,
    ) -> Result<Vec<F>> {
        let bias = match self.bias {
            true => Some(self.conv.backward_bias(dy.clone())?.into_vec()?),
            false => None,
        };
        let weight = match self.transposed {
            None => self.conv.backward_weight(x, dy)?,
            // The convolution that this is the adjoint of maps outputs to inputs.
            Some(_) => {
                let (_, output) = self.bind()?;
                let wanted = self.conv.bind(output)?.output();
                match wanted == self.input_size {
                    true => self.conv.backward_weight(dy, x)?,
                    false => self.conv.backward_weight(dy, &self.widened(x, wanted)?)?,
                }
            }
        };
        Ok(self.matrices_of(sizes, &weight.into_vec()?, bias.as_deref()))
    }
}

/// For example `3×3, padding 1×1 of inputs [4, 8, 8] to 6 outputs, with bias`.
impl<const D: usize> fmt::Display for KfacLayer<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let input = [&[self.channels][..], &self.input_size].concat();
        write!(f, "{} of inputs {input:?} to {} outputs", self.conv, self.outputs)?;
        if self.bias {
            f.write_str(", with bias")?;
        }
        if let Some(extra) = self.transposed {
            write!(f, ", transposed with output padding {extra:?}")?;
        }
        Ok(())
    }
}
