//! The flags that describe a convolution, the same for every command.

use clap::Args;
use serde_json::{Value, json};

use convmat::{Conv, Geometry, Layout, PaddingMode};

use crate::failure::{Failure, Names};
use crate::session::Operand;
use crate::values::{Extents, PaddingFlag, choice, number};

const HEADING: &str = "Geometry";

// Everything but the kernel: some commands have a flag for it, others take it from the weight's shape.
// (Not a doc comment, as clap would show it as the description of every command with these flags.)
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

    /// The extents of a weight's kernel. If `--kernel` is given, it has to say the same.
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

    /// The largest number of values that any flag gives: D, for commands whose tensors do not tell it.
    pub fn axes(&self) -> usize {
        let padding = match &self.padding {
            PaddingFlag::Sides(sides) => sides.len(),
            PaddingFlag::Same | PaddingFlag::Valid => 1,
        };
        self.stride.0.len().max(self.dilation.0.len()).max(padding)
    }

    /// The geometry that results from the flags: text for people, and JSON for programs.
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

// Not a doc comment, as clap would show it as the description of every command with these flags.
#[derive(Args, Debug)]
pub struct TransposedFlags {
    /// Apply the adjoint, as torch.nn.ConvTranspose1d to 3d do
    #[arg(long)]
    pub transposed: bool,

    /// Positions added at the high end of the output, with --transposed
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub output_padding: Option<Extents>,
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
