//! Geometry: which input position each output position reads through each tap. It knows nothing of
//! data, element types or devices.
//!
//! [`Conv`] describes a convolution, [`Geometry`] binds it to an input's spatial extents and
//! validates it once, and [`AxisMap`] tabulates the map of each axis. Every lowering of the crate
//! reads these tables; none does index arithmetic of its own.

mod axes;
mod axis;
mod layout;
mod padding;

pub(crate) use axes::{Axes, Box3, ravel, unravel, volume};
pub(crate) use axis::{AdjointPhase, gcd};
pub use axis::{AxisMap, AxisRows};
pub use layout::Layout;
pub(crate) use layout::Strides;
pub use padding::{Padding, PaddingMode};

use std::fmt;

use crate::error::{Error, Result, checked_product};

/// Padded extents must stay below this, so that positions fit an `i64` with room for arithmetic.
const EXTENT_LIMIT: usize = 1 << 60;

/// A convolution over D = 1, 2 or 3 spatial axes, not yet bound to an input. Parameters are those of
/// PyTorch's `torch.nn.Conv{1,2,3}d`; like those, it cross-correlates (the kernel is not flipped).
///
/// The description itself is never wrong: it is checked when it meets an input, in [`Conv::bind`] and
/// in every operation.
///
/// ```
/// use convmat::{Conv, PaddingMode};
/// let conv = Conv::new([3, 3]).stride([2, 2]).padding([1, 1]).padding_mode(PaddingMode::Reflect);
/// assert_eq!(conv.bind([7, 8])?.output(), [4, 4]);
/// # Ok::<(), convmat::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv<const D: usize> {
    kernel: [usize; D],
    stride: [usize; D],
    dilation: [usize; D],
    padding: Padding<D>,
    mode: PaddingMode,
    groups: usize,
    layout: Layout,
}

impl<const D: usize> Conv<D> {
    /// A convolution with this kernel, stride 1, dilation 1, no padding, one group, channels first.
    pub fn new(kernel: [usize; D]) -> Self {
        Conv {
            kernel,
            stride: [1; D],
            dilation: [1; D],
            padding: Padding::default(),
            mode: PaddingMode::Zeros,
            groups: 1,
            layout: Layout::ChannelsFirst,
        }
    }

    /// Sets the input positions from one output to the next, per axis.
    pub fn stride(self, stride: [usize; D]) -> Self {
        Conv { stride, ..self }
    }

    /// Sets the input positions from one tap to the next, per axis.
    pub fn dilation(self, dilation: [usize; D]) -> Self {
        Conv { dilation, ..self }
    }

    /// Sets the padding: `[1, 1]` for both sides of each axis, `[(low, high), …]` for each side, or a
    /// [`Padding`].
    pub fn padding(self, padding: impl Into<Padding<D>>) -> Self {
        Conv { padding: padding.into(), ..self }
    }

    /// Sets what padded positions read.
    pub fn padding_mode(self, mode: PaddingMode) -> Self {
        Conv { mode, ..self }
    }

    /// Sets the number of groups: channels are split into that many blocks which do not mix.
    pub fn groups(self, groups: usize) -> Self {
        Conv { groups, ..self }
    }

    /// Sets the order of the axes of activations and weights.
    pub fn layout(self, layout: Layout) -> Self {
        Conv { layout, ..self }
    }

    /// The kernel's extents.
    pub fn kernel_size(&self) -> [usize; D] {
        self.kernel
    }

    /// The number of groups.
    pub fn group_count(&self) -> usize {
        self.groups
    }

    /// The order of the axes.
    pub fn axis_order(&self) -> Layout {
        self.layout
    }

    /// What padded positions read.
    pub fn mode(&self) -> PaddingMode {
        self.mode
    }

    /// Binds the convolution to an input of these spatial extents, in elements.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the parameter that is out of range: a zero kernel, stride, dilation,
    /// group count or input extent; a kernel larger than the padded input; `same` padding with a
    /// stride; reflect padding not smaller than the input; circular padding larger than the input.
    /// [`Error::TooLarge`] when a product of sizes overflows.
    pub fn bind(&self, input: [usize; D]) -> Result<Geometry<D>> {
        self.check_parameters()?;
        let sides = self.padding_sides()?;
        let mut output = [0; D];
        for axis in 0..D {
            let (low, high) = sides[axis];
            let size = input[axis];
            self.check_padding(axis, size, low, high)?;
            let padded = size + low + high;
            let span = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
            if span > padded {
                return Err(Error::invalid(
                    format!("kernel extent on axis {axis}"),
                    span,
                    format!(
                        "it must not exceed the padded input extent {padded} = {low} + {size} + {high}"
                    ),
                ));
            }
            output[axis] = (padded - span) / self.stride[axis] + 1;
        }
        Geometry::new(*self, input, output, sides)
    }

    /// Binds the adjoint: the input extents that a transposed convolution (PyTorch's
    /// `ConvTranspose`) makes of these output extents,
    /// (output − 1)·stride − low − high + dilation·(kernel − 1) + 1 + `output_padding`.
    ///
    /// # Errors
    /// As [`Conv::bind`]; also when `output_padding` is not smaller than the larger of stride and
    /// dilation, or when the resulting extent would be below 1.
    pub fn bind_transposed(
        &self,
        output: [usize; D],
        output_padding: [usize; D],
    ) -> Result<Geometry<D>> {
        self.check_parameters()?;
        let sides = self.padding_sides()?;
        let mut input = [0; D];
        for axis in 0..D {
            let (low, high) = sides[axis];
            let extra = output_padding[axis];
            let limit = self.stride[axis].max(self.dilation[axis]);
            if extra >= limit {
                return Err(Error::invalid(
                    format!("output padding on axis {axis}"),
                    extra,
                    format!("it must be smaller than the larger of stride and dilation, {limit}"),
                ));
            }
            if output[axis] == 0 {
                return Err(Error::invalid(
                    format!("input extent on axis {axis}"),
                    0,
                    "it must be at least 1",
                ));
            }
            let span = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
            let full = (output[axis] - 1)
                .checked_mul(self.stride[axis])
                .and_then(|n| n.checked_add(span + extra))
                .filter(|&n| n < EXTENT_LIMIT)
                .ok_or_else(|| too_large(axis, output[axis]))?;
            if full <= low + high {
                return Err(Error::invalid(
                    format!("padding on axis {axis}"),
                    format!("{low} + {high}"),
                    format!("it must be smaller than the full output extent {full}"),
                ));
            }
            input[axis] = full - low - high;
            self.check_padding(axis, input[axis], low, high)?;
        }
        Geometry::new(*self, input, output, sides)
    }

    fn check_parameters(&self) -> Result<()> {
        const { assert!(1 <= D && D <= 3, "convolutions have 1, 2 or 3 spatial axes") };
        for axis in 0..D {
            for (name, value) in [
                ("kernel", self.kernel[axis]),
                ("stride", self.stride[axis]),
                ("dilation", self.dilation[axis]),
            ] {
                let argument = format!("{name} on axis {axis}");
                if value == 0 {
                    return Err(Error::invalid(argument, value, "it must be at least 1"));
                }
                if value >= EXTENT_LIMIT {
                    return Err(too_large_argument(argument, value));
                }
            }
            let span = self.dilation[axis].checked_mul(self.kernel[axis] - 1);
            if span.is_none_or(|s| s >= EXTENT_LIMIT) {
                return Err(too_large_argument(
                    format!("dilated kernel extent on axis {axis}"),
                    format!("{} x {}", self.dilation[axis], self.kernel[axis] - 1),
                ));
            }
        }
        if self.groups == 0 {
            return Err(Error::invalid("groups", 0, "it must be at least 1"));
        }
        checked_product("the number of taps", &self.kernel).map(drop)
    }

    fn check_padding(&self, axis: usize, size: usize, low: usize, high: usize) -> Result<()> {
        if size == 0 {
            return Err(Error::invalid(
                format!("input extent on axis {axis}"),
                size,
                "it must be at least 1",
            ));
        }
        if size >= EXTENT_LIMIT {
            return Err(too_large(axis, size));
        }
        let largest = low.max(high);
        let limit = match self.mode {
            PaddingMode::Reflect => size - 1,
            PaddingMode::Circular => size,
            PaddingMode::Zeros | PaddingMode::Replicate => EXTENT_LIMIT,
        };
        if largest > limit {
            return Err(Error::invalid(
                format!("padding on axis {axis}"),
                largest,
                format!("{} padding of an extent of {size} must not exceed {limit}", self.mode),
            ));
        }
        Ok(())
    }

    /// (low, high) per axis, with `same` and `valid` resolved.
    fn padding_sides(&self) -> Result<[(usize, usize); D]> {
        match self.padding {
            Padding::Explicit { low, high } => {
                for (axis, &side) in low.iter().chain(&high).enumerate() {
                    if side >= EXTENT_LIMIT {
                        let argument = format!("padding on axis {}", axis % D);
                        return Err(too_large_argument(argument, side));
                    }
                }
                Ok(std::array::from_fn(|axis| (low[axis], high[axis])))
            }
            Padding::Valid => Ok([(0, 0); D]),
            Padding::Same => {
                if let Some(axis) = self.stride.iter().position(|&s| s != 1) {
                    return Err(Error::invalid(
                        format!("stride on axis {axis}"),
                        self.stride[axis],
                        "same padding requires stride 1",
                    ));
                }
                Ok(std::array::from_fn(|axis| {
                    let total = self.dilation[axis] * (self.kernel[axis] - 1);
                    (total / 2, total - total / 2)
                }))
            }
        }
    }
}

fn too_large(axis: usize, value: usize) -> Error {
    too_large_argument(format!("input extent on axis {axis}"), value)
}

fn too_large_argument(what: String, value: impl std::fmt::Display) -> Error {
    Error::TooLarge { what, value: value.to_string(), limit: EXTENT_LIMIT as u64 - 1 }
}

/// For example `3×3, stride 2×2, padding 1×1 reflect, groups 4`; what is at its default is left out.
impl<const D: usize> fmt::Display for Conv<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&by_axis(self.kernel))?;
        for (name, values) in [("stride", self.stride), ("dilation", self.dilation)] {
            if values != [1; D] {
                write!(f, ", {name} {}", by_axis(values))?;
            }
        }
        match self.padding {
            Padding::Valid => {}
            Padding::Same => write!(f, ", padding same")?,
            Padding::Explicit { low, high } if low == high => {
                if low != [0; D] {
                    write!(f, ", padding {}", by_axis(low))?;
                }
            }
            Padding::Explicit { low, high } => {
                let sides = std::array::from_fn::<_, D, _>(|a| format!("{}:{}", low[a], high[a]));
                write!(f, ", padding {}", by_axis(sides))?;
            }
        }
        if self.mode != PaddingMode::Zeros {
            write!(f, " {}", self.mode)?;
        }
        if self.groups != 1 {
            write!(f, ", groups {}", self.groups)?;
        }
        if self.layout != Layout::ChannelsFirst {
            write!(f, ", {}", self.layout)?;
        }
        Ok(())
    }
}

fn by_axis<const D: usize>(values: [impl fmt::Display; D]) -> String {
    values.map(|v| v.to_string()).join("×")
}

/// A convolution bound to an input's spatial extents: validated once, so that code past this point
/// may rely on every size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry<const D: usize> {
    conv: Conv<D>,
    input: [usize; D],
    output: [usize; D],
    sides: [(usize, usize); D],
}

impl<const D: usize> Geometry<D> {
    fn new(
        conv: Conv<D>,
        input: [usize; D],
        output: [usize; D],
        sides: [(usize, usize); D],
    ) -> Result<Self> {
        let padded: [usize; D] = std::array::from_fn(|a| input[a] + sides[a].0 + sides[a].1);
        checked_product("the padded input", &padded)?;
        checked_product("the number of output positions", &output)?;
        checked_product("one channel's patch matrix", &[&output[..], &conv.kernel].concat())?;
        Ok(Geometry { conv, input, output, sides })
    }

    /// The convolution.
    pub fn conv(&self) -> &Conv<D> {
        &self.conv
    }

    /// Spatial extents of the input, in elements.
    pub fn input(&self) -> [usize; D] {
        self.input
    }

    /// Spatial extents of the output, in elements.
    pub fn output(&self) -> [usize; D] {
        self.output
    }

    /// Padding per axis as (low, high), with `same` and `valid` resolved.
    pub fn padding(&self) -> [(usize, usize); D] {
        self.sides
    }

    /// Number of taps K.
    pub fn taps(&self) -> usize {
        self.conv.kernel.iter().product()
    }

    /// Number of output positions L.
    pub fn positions(&self) -> usize {
        self.output.iter().product()
    }

    /// Number of input positions.
    pub fn input_positions(&self) -> usize {
        self.input.iter().product()
    }

    /// The index map of one axis.
    ///
    /// # Errors
    /// [`Error::Allocation`] when the table, one word per padded position, does not fit in memory.
    pub fn axis(&self, axis: usize) -> Result<AxisMap> {
        let (conv, low) = (&self.conv, self.sides[axis].0 as i64);
        AxisMap::new(
            self.input[axis],
            self.output[axis],
            conv.kernel[axis],
            conv.stride[axis],
            conv.dilation[axis],
            low,
            conv.mode,
        )
    }

    /// The index maps of all axes, with axes of extent 1 in front so that there are always three.
    pub(crate) fn axes(&self) -> Result<Axes> {
        let mut axes = [AxisMap::unit(), AxisMap::unit(), AxisMap::unit()];
        for axis in 0..D {
            axes[3 - D + axis] = self.axis(axis)?;
        }
        Ok(Axes::new(axes))
    }

    /// Channels per group of a tensor with `channels` channels.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there are none or `groups` does not divide them.
    pub fn channels_per_group(&self, argument: &str, channels: usize) -> Result<usize> {
        let groups = self.conv.groups;
        if channels == 0 || !channels.is_multiple_of(groups) {
            return Err(Error::invalid(
                format!("{argument} channels"),
                channels,
                format!("they must be a positive multiple of groups = {groups}"),
            ));
        }
        Ok(channels / groups)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_of_the_adjoint_hold_every_read_once() {
        for (low, high, kernel, dilation, stride) in [
            (1, 1, 3, 1, 1),
            (4, 0, 2, 3, 1),
            (0, 0, 1, 1, 2),
            (2, 5, 3, 2, 1),
            (3, 3, 7, 1, 2),
            (1, 4, 4, 3, 2),
            (2, 2, 3, 2, 4),
            (0, 1, 2, 1, 5),
            (5, 5, 5, 4, 6),
        ] {
            let conv = Conv::new([kernel]).padding([(low, high)]);
            let conv = conv.dilation([dilation]).stride([stride]);
            let map = conv.bind([9]).unwrap().axis(0).unwrap();
            let mut reads = Vec::new();
            for phase in (0..stride).filter_map(|phase| map.adjoint_phase(phase)) {
                let phase = phase.unwrap();
                for j in 0..phase.map.outputs() {
                    for (t, &k) in phase.taps.iter().enumerate() {
                        let o = phase.map.source(j, t);
                        reads.extend(o.map(|o| (o, k, phase.first + j * phase.stride)));
                    }
                }
            }
            reads.sort_unstable();
            let pairs = (0..map.outputs()).flat_map(|o| (0..kernel).map(move |k| (o, k)));
            let expected: Vec<_> =
                pairs.filter_map(|(o, k)| map.source(o, k).map(|i| (o, k, i))).collect();
            assert_eq!(reads, expected, "{conv}, low {low}");
        }
    }
}
