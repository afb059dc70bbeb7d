//! What a convolution's algorithms are told: sizes, strides and index maps, checked beforehand.

use std::fmt;

use crate::element::Element;
use crate::error::{Result, checked_product};
use crate::geometry::{Axes, AxisRows, Geometry, Layout, Strides};
#[cfg(gpu)]
use crate::geometry::{AxisMap, PaddingMode};
use crate::patches::Images;
use crate::plan::Explanation;

/// A convolution with every size known and consistent, D promoted to 3 by leading axes of extent 1.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub batch: usize,
    /// Input channels C, over all groups.
    pub channels: usize,
    /// Output channels O, over all groups.
    pub outputs: usize,
    pub groups: usize,
    pub layout: Layout,
    pub axes: Axes,
}

/// The numbers that a problem is made from: what has the same is the same problem.
#[cfg(gpu)]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Numbers {
    sizes: [usize; 4],
    layout: Layout,
    axes: [([usize; 5], i64, PaddingMode); 3],
}

/// Distances between neighbours in a weight, in elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct WeightStrides {
    pub output: usize,
    /// From one input channel of the group to the next.
    pub input: usize,
    /// From one tap to the next in row-major order over all kernel axes.
    pub tap: usize,
}

impl Problem {
    /// Checks that activations and weight can be counted.
    pub fn new<const D: usize>(
        geometry: &Geometry<D>,
        batch: usize,
        channels: usize,
        outputs: usize,
    ) -> Result<Self> {
        let groups = geometry.conv().group_count();
        checked_product("the input", &[batch.max(1), channels, geometry.input_positions()])?;
        checked_product("the output", &[batch.max(1), outputs, geometry.positions()])?;
        checked_product("the weight", &[outputs, channels / groups, geometry.taps()])?;
        let layout = geometry.conv().axis_order();
        Ok(Problem { batch, channels, outputs, groups, layout, axes: geometry.axes()? })
    }

    #[cfg(gpu)]
    pub fn numbers(&self) -> Numbers {
        Numbers {
            sizes: [self.batch, self.channels, self.outputs, self.groups],
            layout: self.layout,
            axes: self.axes.each_ref().map(AxisMap::numbers),
        }
    }

    pub fn channels_per_group(&self) -> usize {
        self.channels / self.groups
    }

    pub fn outputs_per_group(&self) -> usize {
        self.outputs / self.groups
    }

    /// What patches are taken of.
    pub fn images(&self) -> Images {
        let (channels, groups) = (self.channels, self.groups);
        Images { layout: self.layout, axes: self.axes.clone(), channels, groups }
    }

    /// Elements of the weight.
    pub fn weight_len(&self) -> usize {
        self.outputs * self.channels_per_group() * self.taps()
    }

    /// Extents of the input's axes.
    pub fn input_extents(&self) -> [usize; 3] {
        self.axes.input_extents()
    }

    /// Extents of the output's axes.
    pub fn output_extents(&self) -> [usize; 3] {
        self.axes.output_extents()
    }

    /// Extents of the kernel's axes.
    pub fn tap_extents(&self) -> [usize; 3] {
        self.axes.tap_extents()
    }

    pub fn input_positions(&self) -> usize {
        self.axes.inputs()
    }

    pub fn output_positions(&self) -> usize {
        self.axes.outputs()
    }

    pub fn taps(&self) -> usize {
        self.axes.taps()
    }

    /// Elements of the input.
    #[cfg(gpu)]
    pub fn input_len(&self) -> usize {
        self.batch * self.channels * self.input_positions()
    }

    /// Elements of the output.
    #[cfg(gpu)]
    pub fn output_len(&self) -> usize {
        self.batch * self.outputs * self.output_positions()
    }

    /// FLOP of forward and of either gradient.
    pub fn flop(&self) -> u64 {
        let outputs = (self.batch * self.outputs * self.output_positions()) as u64;
        2 * outputs * (self.channels_per_group() * self.taps()) as u64
    }

    /// What a plan of an operation on this problem says of it, before anything is chosen.
    pub fn describe<T: Element>(
        &self,
        operation: &'static str,
        conv: &dyn fmt::Display,
        operands: &[(&'static str, Vec<usize>)],
    ) -> Explanation {
        let subject: Vec<_> =
            operands.iter().map(|(name, shape)| format!("{name} {shape:?}")).collect();
        let elements: usize = operands.iter().map(|(_, of)| of.iter().product::<usize>()).sum();
        Explanation {
            operation,
            subject: format!("{} {}, {conv}", subject.join(", "), T::DTYPE),
            flop: self.flop(),
            bytes: (elements * size_of::<T>()) as u64,
            ..Explanation::default()
        }
    }

    pub fn input_strides(&self) -> Strides {
        self.layout.strides(self.channels, self.input_positions())
    }

    pub fn output_strides(&self) -> Strides {
        self.layout.strides(self.outputs, self.output_positions())
    }

    pub fn weight_strides(&self) -> WeightStrides {
        let (inputs, taps) = (self.channels_per_group(), self.taps());
        match self.layout {
            Layout::ChannelsFirst => WeightStrides { output: inputs * taps, input: taps, tap: 1 },
            Layout::ChannelsLast => {
                WeightStrides { output: 1, input: self.outputs, tap: inputs * self.outputs }
            }
        }
    }

    /// For each axis, the outputs that read each input.
    pub fn adjoint_rows(&self) -> Result<[AxisRows; 3]> {
        self.axes.adjoint_rows()
    }
}

impl WeightStrides {
    /// Where element (output channel, input channel of its group, tap) lies.
    pub fn at(&self, output: usize, input: usize, tap: usize) -> usize {
        output * self.output + input * self.input + tap * self.tap
    }
}
