//! The flags that describe a convolution, the same for every command.

use std::fmt;
use std::str::FromStr;

use clap::Args;
use serde_json::{Value, json};

use convmat::{Conv, Geometry, Layout, Padding, PaddingMode};

use crate::args::{TransposedFlags, choice};
use crate::failure::{Failure, Names};
use crate::session::Operand;

const HEADING: &str = "Geometry";

// Everything but the kernel, which is a flag for some commands and a weight's shape for others. (Not a
// doc comment: clap would make that the text of the command these are flattened into.)
#[derive(Args, Debug)]
#[command(next_help_heading = HEADING)]
pub struct GeometryFlags {
    /// Input positions from one output to the next
    #[arg(long, value_name = "S", default_value = "1", allow_negative_numbers = true)]
    pub stride: Extents,

    /// Padding: both sides (1 or 1x2), low:high (0:1 or 0:1x2:3), `same` or `valid`
    #[arg(long, value_name = "P", default_value = "0", allow_negative_numbers = true)]
    pub padding: PaddingFlag,

    /// Input positions from one tap to the next
    #[arg(long, value_name = "D", default_value = "1", allow_negative_numbers = true)]
    pub dilation: Extents,

    /// Groups into which the channels are split
    #[arg(long, value_name = "G", default_value_t = 1)]
    #[arg(value_parser = number, allow_negative_numbers = true)]
    pub groups: usize,

    /// What padded positions read
    #[arg(long, value_name = "MODE", default_value = "zeros",
          value_parser = choice::<PaddingMode>(&["zeros", "reflect", "replicate", "circular"]))]
    pub padding_mode: PaddingMode,

    /// Order of the axes: NCHW and OIHW, or NHWC and HWIO
    #[arg(long, value_name = "LAYOUT", default_value = "channels-first",
          value_parser = choice::<Layout>(&["channels-first", "channels-last"]))]
    pub layout: Layout,
}

impl GeometryFlags {
    /// The convolution with this kernel.
    pub fn conv<const D: usize>(&self, kernel: [usize; D]) -> Result<Conv<D>, Failure> {
        Ok(Conv::new(kernel)
            .stride(self.stride.resolve("--stride")?)
            .dilation(self.dilation.resolve("--dilation")?)
            .padding(self.padding.resolve::<D>()?)
            .padding_mode(self.padding_mode)
            .groups(self.groups)
            .layout(self.layout))
    }

    /// The kernel of a weight, with which `--kernel` has to agree if it is given.
    pub fn kernel_of<const D: usize>(
        &self,
        weight: &Operand,
        flag: Option<&Extents>,
    ) -> Result<[usize; D], Failure> {
        let label = weight.label();
        let (_, _, kernel) = self
            .layout
            .split_weight::<D>(label, weight.shape())
            .map_err(|e| Names::default().explain(e))?;
        match flag {
            Some(flag) if flag.resolve::<D>("--kernel")? != kernel => {
                let found = Extents(kernel.to_vec());
                Err(Failure::input(format!(
                    "--kernel is {flag}, but {label} of shape {:?} has a kernel of {found}",
                    weight.shape()
                )))
            }
            _ => Ok(kernel),
        }
    }

    /// The largest number of values that any flag gives, for commands without a tensor to tell D.
    pub fn axes(&self) -> usize {
        let padding = match &self.padding {
            PaddingFlag::Sides(sides) => sides.len(),
            PaddingFlag::Same | PaddingFlag::Valid => 1,
        };
        self.stride.0.len().max(self.dilation.0.len()).max(padding)
    }

    /// What the flags came to, for people and for programs.
    pub fn describe<const D: usize>(
        &self,
        geometry: &Geometry<D>,
    ) -> Result<(String, Value), Failure> {
        let conv = geometry.conv();
        let (kernel, sides) = (conv.kernel_size(), geometry.padding());
        let stride = self.stride.resolve::<D>("--stride")?;
        let dilation = self.dilation.resolve::<D>("--dilation")?;
        let join = |v: &[usize]| Extents(v.to_vec()).to_string();
        let mut text = format!("kernel {}, stride {}", join(&kernel), join(&stride));
        let shown = sides.map(|(l, h)| if l == h { l.to_string() } else { format!("{l}:{h}") });
        text += &format!(", padding {}", shown.join("x"));
        if self.padding_mode != PaddingMode::Zeros {
            text += &format!(" {}", self.padding_mode);
        }
        if dilation != [1; D] {
            text += &format!(", dilation {}", join(&dilation));
        }
        if self.groups != 1 {
            text += &format!(", groups {}", self.groups);
        }
        if self.layout != Layout::default() {
            text += &format!(", {}", self.layout);
        }
        let value = json!({
            "axes": D,
            "kernel": kernel.to_vec(),
            "stride": stride.to_vec(),
            "dilation": dilation.to_vec(),
            "padding": sides.map(|(l, h)| [l, h]).to_vec(),
            "padding_mode": self.padding_mode.to_string(),
            "groups": self.groups,
            "layout": self.layout.to_string(),
        });
        Ok((text, value))
    }
}

impl TransposedFlags {
    /// The output padding of each axis; `None` when the convolution is not transposed.
    pub fn resolve<const D: usize>(&self) -> Result<Option<[usize; D]>, Failure> {
        match (&self.output_padding, self.transposed) {
            (Some(padding), true) => padding.resolve("--output-padding").map(Some),
            (None, transposed) => Ok(transposed.then_some([0; D])),
            (Some(padding), false) => Err(Failure::input(format!(
                "--output-padding is {padding}, but means nothing without --transposed"
            ))),
        }
    }
}

/// One value for all axes or one per axis: `3`, `3x3`, `1x3x3`.
#[derive(Clone, Debug, PartialEq)]
pub struct Extents(pub Vec<usize>);

impl Extents {
    /// The value of each of D axes.
    pub fn resolve<const D: usize>(&self, flag: &str) -> Result<[usize; D], Failure> {
        per_axis(&self.0).ok_or_else(|| wrong_count::<D>(flag, self))
    }
}

fn per_axis<V: Copy, const D: usize>(values: &[V]) -> Option<[V; D]> {
    match values {
        &[one] => Some([one; D]),
        many => many.try_into().ok(),
    }
}

fn wrong_count<const D: usize>(flag: &str, value: impl fmt::Display) -> Failure {
    let expected = match D {
        1 => "one value, for the one spatial axis".into(),
        _ => format!("one value, or one for each of the {D} spatial axes"),
    };
    Failure::input(format!("{flag} is {value}, expected {expected}"))
}

impl FromStr for Extents {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        axes(text, number).map(Extents).map_err(|e| e + " (write 3, 3x3 or 1x3x3)")
    }
}

impl fmt::Display for Extents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.iter().map(usize::to_string).collect::<Vec<_>>().join("x"))
    }
}

/// The values between the `x`s.
fn axes<V>(text: &str, parse: impl Fn(&str) -> Result<V, String>) -> Result<Vec<V>, String> {
    let values: Vec<V> = text.split('x').map(parse).collect::<Result<_, _>>()?;
    match values.len() {
        1..=3 => Ok(values),
        n => Err(format!("{n} values, but there are at most 3 spatial axes")),
    }
}

/// A number without sign.
pub fn number(text: &str) -> Result<usize, String> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("`{text}` is not a whole number"));
    }
    text.parse().map_err(|_| format!("`{text}` is too large"))
}

/// What `--padding` says.
#[derive(Clone, Debug, PartialEq)]
pub enum PaddingFlag {
    Same,
    Valid,
    /// (low, high), once or per axis.
    Sides(Vec<(usize, usize)>),
}

impl PaddingFlag {
    fn resolve<const D: usize>(&self) -> Result<Padding<D>, Failure> {
        Ok(match self {
            PaddingFlag::Same => Padding::Same,
            PaddingFlag::Valid => Padding::Valid,
            PaddingFlag::Sides(sides) => {
                per_axis(sides).ok_or_else(|| wrong_count::<D>("--padding", self))?.into()
            }
        })
    }
}

impl FromStr for PaddingFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "same" => Ok(PaddingFlag::Same),
            "valid" => Ok(PaddingFlag::Valid),
            _ => axes(text, sides)
                .map(PaddingFlag::Sides)
                .map_err(|e| e + " (write 1, 1x2, 0:1, 0:1x2:3, same or valid)"),
        }
    }
}

fn sides(text: &str) -> Result<(usize, usize), String> {
    match text.split_once(':') {
        Some((low, high)) => Ok((number(low)?, number(high)?)),
        None => number(text).map(|both| (both, both)),
    }
}

impl fmt::Display for PaddingFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PaddingFlag::Same => f.write_str("same"),
            PaddingFlag::Valid => f.write_str("valid"),
            PaddingFlag::Sides(sides) => {
                let text = sides.iter().map(|(l, h)| match l == h {
                    true => l.to_string(),
                    false => format!("{l}:{h}"),
                });
                f.write_str(&text.collect::<Vec<_>>().join("x"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_serve_all_axes_or_one_each() {
        let extents = |text: &str| text.parse::<Extents>();
        assert_eq!(extents("3").unwrap().resolve::<3>("--kernel").unwrap(), [3, 3, 3]);
        assert_eq!(extents("1x2x3").unwrap().resolve("--kernel").unwrap(), [1, 2, 3]);
        let error = extents("1x2x3").unwrap().resolve::<2>("--kernel").unwrap_err();
        assert_eq!(
            error.to_string(),
            "--kernel is 1x2x3, expected one value, or one for each of the 2 spatial axes"
        );
        for bad in ["", "x", "3x", "3 x 3", "-1", "+1", "1.5", "1x1x1x1", "99999999999999999999"] {
            assert!(extents(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn padding_has_sides_and_names() {
        let padding = |text: &str| text.parse::<PaddingFlag>();
        assert_eq!(padding("same"), Ok(PaddingFlag::Same));
        assert_eq!(padding("1x2:3"), Ok(PaddingFlag::Sides(vec![(1, 1), (2, 3)])));
        assert_eq!(padding("0:1x2:3").unwrap().to_string(), "0:1x2:3");
        assert_eq!(
            padding("0:1").unwrap().resolve::<2>().unwrap(),
            Padding::Explicit { low: [0, 0], high: [1, 1] }
        );
        for bad in ["", "1:", ":1", "1:2:3", "full", "samex1", "-1"] {
            assert!(padding(bad).is_err(), "{bad}");
        }
    }
}
