//! The commands, their flags and what `--help` says about them.

mod curvature;
mod prune;

pub use curvature::{CovarianceArgs, KfacArgs, Scale};
pub use prune::PruneArgs;

use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Style, Styles};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};

use convmat::io::Source;
use convmat::{Algorithm, DType, Method, Top};

use crate::geometry::{GeometryFlags, TransposedFlags};
use crate::plot::Target;
use crate::values::{Extents, Given, choice, number};

const STYLES: Styles = Styles::styled()
    .header(Style::new().bold())
    .usage(Style::new().bold())
    .literal(AnsiColor::Cyan.on_default())
    .placeholder(AnsiColor::Green.on_default());

const NOTES: &str = "\
Tensors are named file.npy, file.npz:key or file.safetensors:name; the key may be left out where the \
archive holds one array. Elements are f16, bf16, f32 or f64, and all operands of a command share one \
type. Convolutions have 1, 2 or 3 spatial axes, as many as the tensor's rank says; a geometry flag \
takes one value for all axes (--stride 2) or one per axis (--stride 1x2x2).

Examples:
  convmat devices
  convmat unfold x.npy --kernel 3x3 --padding 1 -o patches.npy
  convmat conv x.npy model.safetensors:conv1.weight --bias model.safetensors:conv1.bias -o y.npy
  convmat matrix w.npy --input-size 56x56 --padding 1 -o matrix.npz
  convmat spectrum w.npy --input-size 56x56 --padding 1 --top 6 --plot spectrum.svg
  convmat kfac x.npy dy.npy --kernel 3x3 --padding 1 --bias -o factors.npz

Exit status: 0 when done, 1 for a failure (disk, memory or device), 2 for bad input, 130 after \
Ctrl-C (in general 128 plus the signal's number). A command that fails or is interrupted leaves its \
output as it was.";

/// Convolution as linear algebra: patches, products, gradients and sparse matrices
#[derive(Parser, Debug)]
#[command(name = "convmat", version, styles = STYLES, max_term_width = 100, after_help = NOTES)]
#[command(propagate_version = false, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// Where to compute: auto, cpu, cuda, cuda:N or simulator
    #[arg(long, global = true, value_name = "DEVICE", default_value = "auto")]
    #[arg(help_heading = "Global options")]
    pub device: String,

    /// Print one JSON object instead of text
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,

    /// Print how it is computed, and why so: algorithm, passes, workspace, FLOP and least bytes
    #[arg(long, global = true, help_heading = "Global options")]
    pub explain: bool,

    #[command(flatten)]
    pub profile: ProfileArgs,

    #[command(subcommand)]
    pub command: Command,
}

/// What of the simulator's launches is counted.
#[derive(Args, Debug)]
pub struct ProfileArgs {
    /// With --device simulator, print what every launch costs: sectors, bank conflicts, products, and a
    /// model of its time on a GPU
    #[arg(long, global = true, help_heading = "Global options")]
    pub profile: bool,

    /// The GPU that --profile is for: a100, h100, h200, l4, rtx4090 or rtx5090
    #[arg(long, global = true, value_name = "GPU", default_value = "h100")]
    #[arg(help_heading = "Global options")]
    pub target: String,

    /// With --profile, run and count at most N blocks of a launch and scale the counts; no output is then
    /// written
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(help_heading = "Global options")]
    pub sample_blocks: Option<u32>,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// List the devices found and, for each that was not, the reason
    Devices,
    Filter(FilterArgs),
    Unfold(UnfoldArgs),
    Fold(FoldArgs),
    Conv(ConvArgs),
    ConvBackward(ConvBackwardArgs),
    Matrix(MatrixArgs),
    Prune(PruneArgs),
    Spectrum(SpectrumArgs),
    Covariance(CovarianceArgs),
    Kfac(KfacArgs),
}

impl Command {
    pub fn name(&self) -> &'static str {
        match self {
            Command::Devices => "devices",
            Command::Filter(_) => "filter",
            Command::Unfold(_) => "unfold",
            Command::Fold(_) => "fold",
            Command::Conv(_) => "conv",
            Command::ConvBackward(_) => "conv-backward",
            Command::Matrix(_) => "matrix",
            Command::Prune(_) => "prune",
            Command::Spectrum(_) => "spectrum",
            Command::Covariance(_) => "covariance",
            Command::Kfac(_) => "kfac",
        }
    }
}

/// Write the filter with which convolution gathers patches
#[derive(Args, Debug)]
#[command(after_help = "\
The filter is the identity of size C·K seen as a convolution weight [C·K, C, kernel…], K being the \
number of taps: convolving with it is unfolding. With groups it is the identity of (C/G)·K tiled G \
times, [C·K, C/G, kernel…]. Sparse, it is the same as a matrix [C·K, (C/G)·K].

Examples:
  convmat filter --channels 3 --kernel 3x3 -o filter.npy
  convmat filter --channels 64 --kernel 3x3 --groups 64 --sparse -o filter.npz")]
pub struct FilterArgs {
    /// Number of input channels
    #[arg(long, value_name = "C", value_parser = number, allow_negative_numbers = true)]
    pub channels: usize,

    /// Extents of the kernel, one value per axis; their number is that of spatial axes
    #[arg(long, value_name = "K", help_heading = "Geometry", allow_negative_numbers = true)]
    pub kernel: Extents,

    /// Groups into which the channels are split
    #[arg(long, value_name = "G", default_value_t = 1)]
    #[arg(help_heading = "Geometry", value_parser = number, allow_negative_numbers = true)]
    pub groups: usize,

    /// Order of the filter's axes: OIHW or HWIO
    #[arg(long, value_name = "LAYOUT", default_value = "channels-first")]
    #[arg(help_heading = "Geometry")]
    #[arg(value_parser = choice::<convmat::Layout>(&["channels-first", "channels-last"]))]
    pub layout: convmat::Layout,

    /// Element type
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    #[arg(value_parser = PossibleValuesParser::new(["f16", "bf16", "f32", "f64"]).map(dtype))]
    pub dtype: DType,

    /// Write a sparse matrix of one row per filter, for scipy.sparse.load_npz
    #[arg(long)]
    pub sparse: bool,

    /// File to write: .npy, .npz or .safetensors; .npz with --sparse
    #[arg(short, long, value_name = "F.npy|F.npz", value_parser = source)]
    pub output: Source,
}

/// Gather the patches of a tensor (im2col)
#[derive(Args, Debug)]
#[command(after_help = "\
The result is [N, C·K, L] with K taps and L output positions, rows ordered (channel, tap), as \
torch.nn.functional.unfold makes it, but for 1 to 3 spatial axes and any padding. With channels last \
it is [N, L, C·K], columns ordered (group, tap, channel of the group).

Examples:
  convmat unfold x.npy --kernel 3x3 --padding 1 -o patches.npy
  convmat unfold batch.npz:images --kernel 7 --stride 2 --padding 3 --padding-mode reflect -o p.npy
  convmat unfold nhwc.npy --kernel 3x3 --padding same --layout channels-last -o p.npy")]
pub struct UnfoldArgs {
    /// Input [N, C, spatial…]
    #[arg(value_name = "X", value_parser = source)]
    pub x: Source,

    /// Extents of the kernel
    #[arg(long, value_name = "K", help_heading = "Geometry", allow_negative_numbers = true)]
    pub kernel: Extents,

    #[command(flatten)]
    pub geometry: GeometryFlags,

    /// File to write: .npy, .npz or .safetensors
    #[arg(short, long, value_name = "A.npy", value_parser = source, help_heading = None)]
    pub output: Source,
}

/// Add overlapping patches up (col2im), the adjoint of unfold
#[derive(Args, Debug)]
#[command(after_help = "\
Takes what unfold makes: [N, C·K, L] or, with channels last, [N, L, C·K]. The number of spatial axes \
is the largest number of values that any flag gives.

Examples:
  convmat fold patches.npy --input-size 56x56 --kernel 3x3 --padding 1 -o x.npy
  convmat fold patches.npy --input-size 56x56 --kernel 3x3 --padding 1 --average -o x.npy")]
pub struct FoldArgs {
    /// Patches [N, C·K, L]
    #[arg(value_name = "A", value_parser = source)]
    pub patches: Source,

    /// Spatial extents of the result
    #[arg(long, value_name = "HxW", allow_negative_numbers = true)]
    pub input_size: Extents,

    /// Divide by the number of patches that overlap, which undoes unfold
    #[arg(long)]
    pub average: bool,

    /// Extents of the kernel
    #[arg(long, value_name = "K", help_heading = "Geometry", allow_negative_numbers = true)]
    pub kernel: Extents,

    #[command(flatten)]
    pub geometry: GeometryFlags,

    /// File to write: .npy, .npz or .safetensors
    #[arg(short, long, value_name = "X.npy", value_parser = source, help_heading = None)]
    pub output: Source,
}

/// Convolve, or convolve transposed
#[derive(Args, Debug)]
#[command(after_help = "\
As torch.nn.functional.conv1d, conv2d and conv3d (like those, it does not flip the kernel), and as \
conv_transpose1d to 3d with --transposed. Half types are summed in f32 and rounded once.

W may be sparse: a matrix of output channels by (channel of the group, tap) (with channels last, (tap, \
channel)), as convmat prune, convmat filter --sparse and scipy.sparse.save_npz write it, in CSR or COO \
form, or the parts of a PyTorch sparse tensor under their names (crow_indices, col_indices or indices, \
values, size). It needs --kernel, and only its entries are multiplied.

Examples:
  convmat conv x.npy w.npy --padding 1 -o y.npy
  convmat conv x.npy pruned.npz --kernel 3x3 --padding 1 -o y.npy
  convmat conv x.npy net.safetensors:stem.weight --bias net.safetensors:stem.bias -o y.npy
  convmat conv x.npy w.npy --groups 32 --padding 1 --algorithm shifted -o y.npy
  convmat conv z.npy w.npy --transposed --stride 2 --output-padding 1 -o y.npy")]
pub struct ConvArgs {
    /// Input [N, C, spatial…]
    #[arg(value_name = "X", value_parser = source)]
    pub x: Source,

    /// Weight [O, C/G, kernel…]; with --transposed [C, O/G, kernel…]; or a sparse matrix
    #[arg(value_name = "W", value_parser = source)]
    pub w: Source,

    /// Bias [O], added to every position
    #[arg(long, value_name = "B", value_parser = source)]
    pub bias: Option<Source>,

    /// How to compute it; the results agree up to rounding
    #[arg(long, value_name = "ALGORITHM", default_value = "auto", value_parser = algorithm())]
    pub algorithm: Algorithm,

    #[command(flatten)]
    pub transposed: TransposedFlags,

    /// Extents of the kernel; those of W, with which they have to agree; needed if W is sparse
    #[arg(long, value_name = "K", help_heading = "Geometry", allow_negative_numbers = true)]
    pub kernel: Option<Extents>,

    #[command(flatten)]
    pub geometry: GeometryFlags,

    /// File to write: .npy, .npz or .safetensors
    #[arg(short, long, value_name = "Y.npy", value_parser = source, help_heading = None)]
    pub output: Source,
}

/// Compute the gradients of a convolution: dx, dw and db
#[derive(Args, Debug)]
#[command(after_help = "\
Given the input, the weight and the gradient of the output, writes an archive with the gradients of \
the input (dx), of the weight (dw) and of the bias (db).

Example:
  convmat conv-backward x.npy w.npy dy.npy --stride 2 --padding 1 -o gradients.npz")]
pub struct ConvBackwardArgs {
    /// Input [N, C, spatial…]
    #[arg(value_name = "X", value_parser = source)]
    pub x: Source,

    /// Weight [O, C/G, kernel…]
    #[arg(value_name = "W", value_parser = source)]
    pub w: Source,

    /// Gradient of the output [N, O, output…]
    #[arg(value_name = "DY", value_parser = source)]
    pub dy: Source,

    /// How to compute them; the results agree up to rounding
    #[arg(long, value_name = "ALGORITHM", default_value = "auto", value_parser = algorithm())]
    pub algorithm: Algorithm,

    /// Extents of the kernel; those of W, with which they have to agree
    #[arg(long, value_name = "K", help_heading = "Geometry", allow_negative_numbers = true)]
    pub kernel: Option<Extents>,

    #[command(flatten)]
    pub geometry: GeometryFlags,

    /// Archive to write, with the keys dx, dw and db
    #[arg(short, long, value_name = "G.npz", value_parser = source, help_heading = None)]
    pub output: Source,
}

/// Assemble the sparse matrix of a convolution
#[derive(Args, Debug)]
#[command(after_help = "\
The matrix M takes one flattened example to its output, y = M·x: rows are (output channel, position), \
columns (input channel, position), row-major whatever the layout of W. A bias becomes one last column, \
to be multiplied by 1. The file loads with scipy.sparse.load_npz; as SciPy has no bfloat16, a bf16 \
weight makes an f32 matrix. The picture has a cell for every entry or, where the matrix is larger than \
the picture, darker cells where there are more entries.

Examples:
  convmat matrix w.npy --input-size 56x56 --padding 1 -o matrix.npz
  convmat matrix w.npy --input-size 14 --padding 1 -o matrix.npz --plot pattern.svg
  convmat matrix w.npy --bias b.npy --input-size 28 --padding 1 --padding-mode circular -o m.npz
  convmat matrix w.npy --transposed --input-size 14x14 --stride 2 --output-padding 1 -o m.npz")]
pub struct MatrixArgs {
    /// Weight [O, C/G, kernel…]; with --transposed [C, O/G, kernel…]
    #[arg(value_name = "W", value_parser = source)]
    pub w: Source,

    /// Bias [O], the matrix's last column
    #[arg(long, value_name = "B", value_parser = source)]
    pub bias: Option<Source>,

    /// Spatial extents of the input
    #[arg(long, value_name = "HxW", allow_negative_numbers = true)]
    pub input_size: Extents,

    #[command(flatten)]
    pub transposed: TransposedFlags,

    /// Drop entries that are zero; otherwise the pattern depends on the geometry alone
    #[arg(long)]
    pub eliminate_zeros: bool,

    /// Extents of the kernel; those of W, with which they have to agree
    #[arg(long, value_name = "K", help_heading = "Geometry", allow_negative_numbers = true)]
    pub kernel: Option<Extents>,

    #[command(flatten)]
    pub geometry: GeometryFlags,

    /// File to write, an archive as scipy.sparse.save_npz makes it
    #[arg(short, long, value_name = "M.npz", value_parser = source, help_heading = None)]
    pub output: Source,

    /// Draw the pattern of the matrix: .svg or .png
    #[arg(long, value_name = "M.svg|M.png", help_heading = None)]
    pub plot: Option<Target>,
}

/// Compute the singular values of a layer, a sparse matrix or a network's layers
#[derive(Args, Debug)]
#[command(after_help = "\
The operator is the linear part of the layer (without its bias) on one example of --input-size, the \
matrix that `convmat matrix` assembles; nothing is assembled here. W may also be such a matrix, or any \
other that scipy.sparse.save_npz wrote in compressed sparse row form; then there are no geometry flags.

Methods: lanczos iterates until residuals are small; randomized makes a fixed number of iterations, as \
torch.svd_lowrank; circular is exact, for circular padding and strides that divide the input; dense is \
exact, for what is small; auto takes circular or dense where it can, else lanczos.

For a network W is a file of many tensors, and --layers lists those to look at: \
[{\"name\": \"conv1.weight\", \"input_size\": \"56x56\", \"padding\": 1}, …]. The other keys are stride, dilation, \
groups, padding_mode, transposed, output_padding and layout; values are as for the flags, or numbers and \
arrays. The norm of each layer is bracketed, and the product of the upper ends bounds how much the \
layers together can magnify, where what is between them magnifies nothing.

Ctrl-C ends an iteration early: what has converged is reported, and the exit status is 130. Pressed a \
second time, it ends the program.

Examples:
  convmat spectrum w.npy --input-size 56x56 --padding 1
  convmat spectrum w.npy --input-size 56x56 --padding 1 --bracket --plot spectrum.svg
  convmat spectrum w.npy --input-size 32 --padding 1 --padding-mode circular --top all -o s.npy
  convmat spectrum matrix.npz --top 20 -o triplets.npz
  convmat spectrum model.safetensors --layers layers.json --plot layers.png")]
pub struct SpectrumArgs {
    // First, because what comes after it takes away what it looks at.
    #[command(flatten)]
    pub given: Given,

    /// Weight [O, C/G, kernel…], with --transposed [C, O/G, kernel…]; a sparse matrix; or a network
    #[arg(value_name = "W", value_parser = source)]
    pub w: Source,

    /// Spatial extents of the input; needed unless W is a matrix or --layers is given
    #[arg(long, value_name = "HxW", allow_negative_numbers = true)]
    pub input_size: Option<Extents>,

    /// The layers of a network, as JSON; W is the file that holds their weights
    #[arg(long, value_name = "LAYERS.json")]
    pub layers: Option<PathBuf>,

    #[command(flatten)]
    pub transposed: TransposedFlags,

    /// How many of the largest singular values: a number or all [default: 6, or all if there are fewer]
    #[arg(long, value_name = "K", value_parser = top, allow_negative_numbers = true)]
    pub top: Option<Top>,

    /// How to compute them
    #[arg(long, value_name = "METHOD", default_value = "auto",
          value_parser = choice::<Method>(&["auto", "lanczos", "randomized", "circular", "dense"]))]
    pub method: Method,

    /// Residuals that count as converged, in parts of the largest value [default: 1e-6, for f64 1e-9]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub tolerance: Option<f64>,

    /// The most vectors to which the operator or its adjoint is applied, about
    #[arg(long, value_name = "MOST")]
    pub applications: Option<u64>,

    /// Power iterations of the randomized method
    #[arg(long, value_name = "NITER", default_value_t = 2)]
    pub iterations: usize,

    /// Where random vectors come from: the same seed gives the same result
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub seed: u64,

    /// Bracket the norm: what it is at least, and what it is at most
    #[arg(long)]
    pub bracket: bool,

    /// Extents of the kernel; those of W, with which they have to agree
    #[arg(long, value_name = "K", help_heading = "Geometry", allow_negative_numbers = true)]
    pub kernel: Option<Extents>,

    #[command(flatten)]
    pub geometry: GeometryFlags,

    /// File to write: .npy for the values; .npz for values, u and v (singular vectors as rows)
    #[arg(short, long, value_name = "S.npy|S.npz", value_parser = source, help_heading = None)]
    pub output: Option<Source>,

    /// Draw the values in order: .svg or .png
    #[arg(long, value_name = "F.svg|F.png", help_heading = None)]
    pub plot: Option<Target>,
}

/// The value of `--top`.
fn top(text: &str) -> Result<Top, String> {
    match text {
        "all" => Ok(Top::All),
        _ => number(text).map(Top::Count).map_err(|e| e + " (write a number or all)"),
    }
}

fn algorithm() -> impl TypedValueParser<Value = Algorithm> {
    choice(&["auto", "naive", "shifted", "im2col", "implicit", "direct", "depthwise"])
}

fn dtype(name: String) -> DType {
    match name.as_str() {
        "f16" => DType::F16,
        "bf16" => DType::BF16,
        "f64" => DType::F64,
        _ => DType::F32,
    }
}

/// The name of a tensor in a file.
fn source(text: &str) -> Result<Source, String> {
    text.parse().map_err(|error| match error {
        convmat::Error::Invalid { reason, .. } => reason,
        other => other.to_string(),
    })
}
