//! The linear part of a layer, as plain numbers: what its spectrum is computed from.

use crate::element::Element;
use crate::error::{Error, Result, checked_product};
use crate::geometry::{Axes, Geometry, Layout};
use crate::tensor::TensorView;

/// A convolution without its bias, or the adjoint of one, on the host: D promoted to 3 by leading axes of
/// extent 1, the weight channels first and in `f64`, whatever layout and type the caller's has.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// The number D of spatial axes that the caller knows: the last of the three.
    pub spatial: usize,
    /// The index maps of the convolution, also where the layer is its adjoint.
    pub axes: Axes,
    /// Input channels C of the convolution, over all groups.
    pub channels: usize,
    /// Output channels O of the convolution, over all groups.
    pub outputs: usize,
    pub groups: usize,
    /// `[O, C/groups, taps]`, taps row-major.
    pub weight: Vec<f64>,
    /// Whether the layer is the adjoint: it then takes O channels and gives C.
    pub transposed: bool,
}

impl Layer {
    /// Of a weight that fits the geometry. The weight is read to the host.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a weight that is not finite; [`Error::TooLarge`] or [`Error::Allocation`].
    pub(crate) fn new<T: Element, const D: usize>(
        geometry: &Geometry<D>,
        weight: &TensorView<'_, T>,
        transposed: bool,
    ) -> Result<Self> {
        let conv = geometry.conv();
        let (outputs, per_group, kernel) =
            conv.axis_order().split_weight::<D>("weight", weight.shape())?;
        let taps: usize = kernel.iter().product();
        let data = weight.to_vec()?;
        let element = |output: usize, input: usize, tap: usize| match conv.axis_order() {
            Layout::ChannelsFirst => (output * per_group + input) * taps + tap,
            Layout::ChannelsLast => (tap * per_group + input) * outputs + output,
        };
        let mut ordered = Vec::with_capacity(data.len());
        for output in 0..outputs {
            for input in 0..per_group {
                ordered.extend((0..taps).map(|tap| data[element(output, input, tap)].to_f64()));
            }
        }
        if let Some(at) = ordered.iter().position(|value| !value.is_finite()) {
            let [output, input, tap] = [at / (per_group * taps), at / taps % per_group, at % taps];
            return Err(Error::invalid(
                format!("weight at output {output}, input {input}, tap {tap}"),
                ordered[at],
                "every element must be finite",
            ));
        }
        let groups = conv.group_count();
        let channels = checked_product("the input channels", &[per_group, groups])?;
        let axes = geometry.axes()?;
        let layer =
            Layer { spatial: D, axes, channels, outputs, groups, weight: ordered, transposed };
        checked_product("the layer's rows", &[layer.outputs, layer.axes.outputs()])?;
        checked_product("the layer's columns", &[layer.channels, layer.axes.inputs()])?;
        Ok(layer)
    }

    /// Rows and columns of the layer's matrix.
    pub(crate) fn shape(&self) -> [usize; 2] {
        let forward = [self.outputs * self.axes.outputs(), self.channels * self.axes.inputs()];
        if self.transposed { [forward[1], forward[0]] } else { forward }
    }

    /// Output channels of a group.
    pub(crate) fn outputs_per_group(&self) -> usize {
        self.outputs / self.groups
    }

    /// Input channels of a group.
    pub(crate) fn channels_per_group(&self) -> usize {
        self.channels / self.groups
    }
}
