//! The command that prunes weights.

use clap::Args;

use convmat::io::Source;
use convmat::{Layout, Pruning};

use super::source;
use crate::values::{choice, number};

/// Keep some entries of a weight, as a sparse matrix
#[derive(Args, Debug)]
#[command(after_help = "\
The matrix has a row for each output channel and a column for each entry of its group's patch, in the \
order (channel, tap), with channels last (tap, channel). It loads with scipy.sparse.load_npz, and convmat \
conv convolves with it; as SciPy has no bfloat16, a bf16 weight makes an f32 matrix. NaN counts as larger \
than every number. Of equal entries --top-k keeps those first in the matrix, --pattern those of the first \
channels; zeros are kept where there are not enough others.

Examples:
  convmat prune w.npy --threshold 0.01 -o pruned.npz
  convmat prune w.npy --top-k 5000 -o pruned.npz
  convmat prune net.safetensors:conv1.weight --pattern 2:4 -o pruned.npz")]
pub struct PruneArgs {
    /// Weight [O, C/G, kernel…]
    #[arg(value_name = "W", value_parser = source)]
    pub w: Source,

    #[command(flatten)]
    kept: Kept,

    /// Order of the weight's axes: OIHW or HWIO
    #[arg(long, value_name = "LAYOUT", default_value = "channels-first",
          value_parser = choice::<Layout>(&["channels-first", "channels-last"]))]
    pub layout: Layout,

    /// File to write, an archive as scipy.sparse.save_npz makes it
    #[arg(short, long, value_name = "W.npz", value_parser = source)]
    pub output: Source,
}

// One of these, and not more. (Not a doc comment, as clap would show it as the command's description.)
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct Kept {
    /// Keep entries larger than T in magnitude; 0 keeps all that are not zero
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    threshold: Option<f64>,

    /// Keep the K entries that are largest in magnitude
    #[arg(long, value_name = "K", value_parser = number, allow_negative_numbers = true)]
    top_k: Option<usize>,

    /// Keep the N largest of every M consecutive channels of a group, at each tap: 2:4 and the like
    #[arg(long, value_name = "N:M", value_parser = pattern)]
    pattern: Option<Pruning>,
}

impl PruneArgs {
    /// Which entries are kept.
    pub fn pruning(&self) -> Pruning {
        let Kept { threshold, top_k, pattern } = self.kept;
        let threshold = Pruning::Threshold(threshold.unwrap_or(0.0));
        pattern.or(top_k.map(Pruning::TopK)).unwrap_or(threshold)
    }
}

fn pattern(text: &str) -> Result<Pruning, String> {
    text.parse().map_err(|error| match error {
        convmat::Error::Invalid { reason, .. } => reason,
        other => other.to_string(),
    })
}
