//! The commands about the curvature of a layer's loss.

use clap::{Args, ValueEnum};

use convmat::io::Source;
use convmat::{KfacMethod, KfacOptions, WeightSharing};

use super::source;
use crate::geometry::GeometryFlags;
use crate::values::{Extents, choice};

/// Compute the covariance of a tensor's patches
#[derive(Args, Debug)]
#[command(after_help = "\
The result is [d, d], with groups [G, d, d], d = C/G·K (+ 1 with --bias) for K taps, rows in the order of \
unfold's, the bias's 1 last. --mode expand sums a·aᵀ over all examples and positions; reduce sums each \
example's patches first. --scale mean divides by N·T or, reduced, by N·T², for N examples and T positions: \
the factor A of K-FAC. Half types are summed and written in f32.

Examples:
  convmat covariance x.npy --kernel 3x3 --padding 1 --bias -o a.npy
  convmat covariance x.npy --kernel 3x3 --padding 1 --mode reduce --scale sum -o a.npy")]
pub struct CovarianceArgs {
    /// Input [N, C, spatial…]
    #[arg(value_name = "X", value_parser = source)]
    pub x: Source,

    /// Append a 1 to every patch, for the layer's bias
    #[arg(long)]
    pub bias: bool,

    /// How an example's positions are counted
    #[arg(long, value_name = "MODE", default_value = "expand",
          value_parser = choice::<WeightSharing>(&["expand", "reduce"]))]
    pub mode: WeightSharing,

    /// Whether sums or means are written
    #[arg(long, value_name = "SCALE", value_enum, default_value_t = Scale::Mean)]
    pub scale: Scale,

    /// Extents of the kernel
    #[arg(long, value_name = "K", help_heading = "Geometry", allow_negative_numbers = true)]
    pub kernel: Extents,

    #[command(flatten)]
    pub geometry: GeometryFlags,

    /// File to write: .npy, .npz or .safetensors
    #[arg(short, long, value_name = "A.npy", value_parser = source, help_heading = None)]
    pub output: Source,
}

/// The values of `--scale`.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Scale {
    Sum,
    Mean,
}

/// Compute a layer's Kronecker factors, and precondition its gradient by them (K-FAC, EKFAC)
#[derive(Args, Debug)]
#[command(after_help = "\
DY holds the gradients of the examples' own losses by the layer's output: of a loss that is a mean over the \
batch, N times its gradient. The archive holds, for N examples, T positions, patches a (a 1 appended with \
--bias) and gradients g at each:
  A             expand 1/(NT)·ΣΣ a·aᵀ, reduce 1/(NT²)·Σ(Σ a)·(Σ a)ᵀ: [d, d], d = C/G·K (+ 1)
  G             expand 1/N·ΣΣ g·gᵀ, reduce 1/N·Σ(Σ g)·(Σ g)ᵀ: [O, O]
  eigenvalues_a, q_a, eigenvalues_g, q_g    ascending; eigenvectors are columns
  lambda        of ekfac: the mean of (Q_Gᵀ·∇W_n·Q_A)², [O, d]
  preconditioned, [O, d], of the gradient dW and the damping L:
                kfac (G + √L/π·I)⁻¹·dW·(A + π√L·I)⁻¹, π² = (tr A/dim A)/(tr G/dim G), 1 with --no-pi;
                ekfac Q_G·[(Q_Gᵀ·dW·Q_A) / (lambda + L)]·Q_Aᵀ
dW is the mean of the examples' gradients, or --gradient: columns in the order of unfold's rows, the bias's \
last. With groups all of them have the group as their first axis, and O is that of one group. Half types \
are computed and written in f32.

Examples:
  convmat kfac x.npy dy.npy --kernel 3x3 --padding 1 --bias -o factors.npz
  convmat kfac x.npy dy.npy --kernel 3x3 --padding 1 --method ekfac --damping 1e-2 -o factors.npz")]
pub struct KfacArgs {
    /// Input [N, C, spatial…]
    #[arg(value_name = "X", value_parser = source)]
    pub x: Source,

    /// Gradients of the examples' losses by the output [N, O, output…]
    #[arg(value_name = "DY", value_parser = source)]
    pub dy: Source,

    /// Whether the layer has a bias
    #[arg(long)]
    pub bias: bool,

    /// How an example's positions are counted
    #[arg(long, value_name = "MODE", default_value = "expand",
          value_parser = choice::<WeightSharing>(&["expand", "reduce"]))]
    pub mode: WeightSharing,

    /// How the gradient is preconditioned
    #[arg(long, value_name = "METHOD", default_value = "kfac",
          value_parser = choice::<KfacMethod>(&["kfac", "ekfac"]))]
    pub method: KfacMethod,

    /// What is added to the curvature, positive
    #[arg(long, value_name = "L", default_value_t = KfacOptions::DEFAULT_DAMPING)]
    #[arg(allow_negative_numbers = true)]
    pub damping: f64,

    /// Share the damping equally between A and G
    #[arg(long)]
    pub no_pi: bool,

    /// The gradient to precondition, [O, d] or with groups [G, O/G, d], instead of the examples' mean
    #[arg(long, value_name = "DW", value_parser = source)]
    pub gradient: Option<Source>,

    /// Extents of the kernel
    #[arg(long, value_name = "K", help_heading = "Geometry", allow_negative_numbers = true)]
    pub kernel: Extents,

    #[command(flatten)]
    pub geometry: GeometryFlags,

    /// Archive to write, with the keys listed below
    #[arg(short, long, value_name = "F.npz", value_parser = source, help_heading = None)]
    pub output: Source,
}
