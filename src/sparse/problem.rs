//! What is computed with a sparse weight: sizes and index maps, checked beforehand.

use std::fmt;
use std::sync::Arc;

use super::weight::Pattern;
use crate::element::Element;
use crate::error::{Error, Result, checked_product};
use crate::geometry::{Axes, Conv, Geometry, Layout, Strides};
use crate::plan::Explanation;

/// What operands are called.
pub(super) const INPUT: &str = "input";
pub(super) const OUTPUT: &str = "output";
pub(super) const VALUES: &str = "weight values";
pub(super) const OUTPUT_GRADIENT: &str = "output gradient";
pub(super) const INPUT_GRADIENT: &str = "input gradient";
pub(super) const WEIGHT_GRADIENT: &str = "weight gradient";

/// A convolution with a sparse weight, every size known and consistent.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub batch: usize,
    /// Input channels, over all groups.
    pub channels: usize,
    /// Output channels, over all groups.
    pub outputs: usize,
    pub groups: usize,
    pub layout: Layout,
    pub axes: Axes,
    pub pattern: Arc<Pattern>,
}

impl Problem {
    /// For so many images of so many channels.
    ///
    /// # Errors
    /// [`Error::Invalid`] or [`Error::Shape`] when the weight is none of this convolution,
    /// [`Error::TooLarge`] when activations cannot be counted.
    pub fn new<const D: usize>(
        geometry: &Geometry<D>,
        batch: usize,
        pattern: &Arc<Pattern>,
    ) -> Result<Self> {
        let conv = geometry.conv();
        let (layout, groups) = (conv.axis_order(), conv.group_count());
        check_pattern(conv, pattern)?;
        let channels = checked_product("the number of channels", &[pattern.inputs, groups])?;
        let outputs = pattern.outputs;
        checked_product("the input", &[batch.max(1), channels, geometry.input_positions()])?;
        checked_product("the output", &[batch.max(1), outputs, geometry.positions()])?;
        let (axes, pattern) = (geometry.axes()?, pattern.clone());
        Ok(Problem { batch, channels, outputs, groups, layout, axes, pattern })
    }

    /// Output channels of a group.
    pub fn outputs_per_group(&self) -> usize {
        self.outputs / self.groups
    }

    /// Input channels of a group.
    pub fn channels_per_group(&self) -> usize {
        self.pattern.inputs
    }

    /// Elements of the input.
    #[cfg(gpu)]
    pub fn input_len(&self) -> usize {
        self.batch * self.channels * self.axes.inputs()
    }

    /// Elements of the output.
    #[cfg(gpu)]
    pub fn output_len(&self) -> usize {
        self.batch * self.outputs * self.axes.outputs()
    }

    pub fn input_strides(&self) -> Strides {
        self.layout.strides(self.channels, self.axes.inputs())
    }

    pub fn output_strides(&self) -> Strides {
        self.layout.strides(self.outputs, self.axes.outputs())
    }

    /// What a plan of an operation on this problem says of it, before anything is chosen. FLOP are those of
    /// stored entries.
    pub fn describe<T: Element>(
        &self,
        operation: &'static str,
        conv: &dyn fmt::Display,
        operands: &[(&'static str, Vec<usize>)],
    ) -> Explanation {
        let subject: Vec<_> =
            operands.iter().map(|(name, shape)| format!("{name} {shape:?}")).collect();
        let elements: usize = operands.iter().map(|(_, of)| of.iter().product::<usize>()).sum();
        let entries = self.pattern.len();
        let of = format!("{entries} of {} entries stored", self.outputs * self.pattern.patch());
        let positions = (self.batch * self.axes.outputs()) as u64;
        Explanation {
            operation,
            subject: format!("{} {}, {of}, {conv}", subject.join(", "), T::DTYPE),
            flop: 2 * positions * entries as u64,
            bytes: (elements * size_of::<T>()) as u64,
            ..Explanation::default()
        }
    }
}

/// Fails unless this is the pattern of weights of the convolution.
pub(super) fn check_pattern<const D: usize>(conv: &Conv<D>, pattern: &Pattern) -> Result<()> {
    if pattern.layout != conv.axis_order() {
        let reason = format!("the convolution is {}", conv.axis_order());
        return Err(Error::invalid("weight layout", pattern.layout, reason));
    }
    if pattern.kernel[..] != conv.kernel_size()[..] {
        let expected =
            conv.axis_order().weight_shape(pattern.outputs, pattern.inputs, &conv.kernel_size());
        let expected = format!("{expected:?}, the convolution's kernel");
        return Err(Error::shape("weight", expected, &pattern.dense_shape()));
    }
    let groups = conv.group_count();
    if groups == 0 || !pattern.outputs.is_multiple_of(groups) {
        let reason = format!("they must be a positive multiple of groups = {groups}");
        return Err(Error::invalid("weight output channels", pattern.outputs, reason));
    }
    Ok(())
}

/// Fails unless an activation has as many channels as the weight.
pub(super) fn check_channels(
    argument: &str,
    channels: usize,
    expected: usize,
    shape: &[usize],
) -> Result<()> {
    if channels == expected {
        return Ok(());
    }
    Err(Error::shape(argument, format!("{expected} channels, as the weight has"), shape))
}
