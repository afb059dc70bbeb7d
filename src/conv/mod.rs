//! Convolution and its adjoints.
//!
//! | call | computes | PyTorch |
//! |---|---|---|
//! | [`Conv::forward`] | `y = W·A + b`, A the patches of x | `F.conv{1,2,3}d` |
//! | [`Conv::backward_input`] | `dx = fold(Wᵀ·dy)` | `torch.nn.grad.conv*_input` |
//! | [`Conv::backward_weight`] | `dW = dy·Aᵀ` | `torch.nn.grad.conv*_weight` |
//! | [`Conv::backward_bias`] | `db = Σ dy` | `dy.sum((0, 2, …))` |
//! | [`Conv::transposed`] | `y = fold(Wᵀ·x) + b` | `F.conv_transpose{1,2,3}d` |
//!
//! Each has a form that returns a fresh tensor, with [`Algorithm::Auto`], and an `_into` form that
//! overwrites the caller's buffer with an [`Algorithm`] of the caller's choice. The algorithms agree
//! up to rounding; `f16` and `bf16` operands are summed in `f32` and rounded once, at the end.
//!
//! Words that the algorithms use, each for one thing:
//!
//! | word | is |
//! |---|---|
//! | entries | consecutive entries of a group's patch: rows of the patch matrix |
//! | box | ranges of positions, one on each of the three axes |
//! | piece | one of the consecutive ranges, of one length but for the last, that an extent is cut into |
//! | run | contiguous elements of an operand |
//! | slab | what a box of outputs reads of one channel, padded, and unfolded on the last axis |
//! | block | of a slab: what one tap reads for the outputs of a box at one outer position, contiguous |
//! | tile | rows × columns of a result that are computed together, by a task or a block of threads; a *register tile*, within it, in registers |
//! | part | of a sum: the sum over some of its terms, which is added to the others' in order |

mod backward;
mod cpu;
#[cfg(gpu)]
mod cuda;
mod forward;
mod problem;
mod transposed;
mod workspace;

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::geometry::Conv;

/// How a convolution is computed. All agree up to rounding, on finite data exactly where the sums
/// are exact; for the same operands each gives the same bytes whatever the number of threads.
///
/// [`Algorithm::Auto`] always exists. One that is named but does not exist for the operation, the shape
/// or the device is refused with [`Error::Invalid`], with one exception: `Implicit` is `Im2col` in the
/// input gradient with a padding mode other than zeros.
///
/// With `zeros` padding a dropped tap is a product left out by `Naive` and one with 0 elsewhere:
/// where a *weight* is infinite or NaN that product is NaN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// The fastest one for the shape.
    #[default]
    Auto,
    /// The loops of the definition, one output element at a time: slow, and easy to believe.
    Naive,
    /// One matrix product per tap, accumulated over shifted views of a padded copy of the input.
    Shifted,
    /// Patches gathered tile by tile into a workspace that stays in cache, and one matrix product
    /// per tile. The patch matrix as a whole is never stored.
    Im2col,
    /// A matrix product whose innermost loops read the patches where they lie in a padded copy of a
    /// piece of the input.
    Implicit,
    /// Each thread computes some rows of one group's result, without patches or products. CUDA only.
    Direct,
    /// The same for groups of one channel. On the CPU several lines of the result are computed at a
    /// time, where there are enough and their last axis is not strided.
    Depthwise,
}

impl Algorithm {
    /// Every algorithm, [`Algorithm::Auto`] first.
    pub const ALL: [Algorithm; 7] = [
        Algorithm::Auto,
        Algorithm::Naive,
        Algorithm::Shifted,
        Algorithm::Im2col,
        Algorithm::Implicit,
        Algorithm::Direct,
        Algorithm::Depthwise,
    ];
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Algorithm::Auto => "auto",
            Algorithm::Naive => "naive",
            Algorithm::Shifted => "shifted",
            Algorithm::Im2col => "im2col",
            Algorithm::Implicit => "implicit",
            Algorithm::Direct => "direct",
            Algorithm::Depthwise => "depthwise",
        })
    }
}

/// Reads the names that `Display` writes.
impl FromStr for Algorithm {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Algorithm::ALL.into_iter().find(|a| a.to_string() == text).ok_or_else(|| {
            Error::invalid(
                "algorithm",
                format!("{text:?}"),
                "expected auto, naive, shifted, im2col, implicit, direct or depthwise",
            )
        })
    }
}

/// A weight's extents, checked against the convolution: (output channels, input channels per group).
fn check_weight<const D: usize>(conv: &Conv<D>, shape: &[usize]) -> Result<(usize, usize)> {
    let layout = conv.axis_order();
    let (outputs, inputs, kernel) = layout.split_weight::<D>("weight", shape)?;
    if kernel != conv.kernel_size() || inputs == 0 {
        let expected = layout.weight_shape(outputs, inputs.max(1), &conv.kernel_size());
        return Err(Error::shape(
            "weight",
            format!("{expected:?}, the convolution's kernel"),
            shape,
        ));
    }
    if outputs == 0 || !outputs.is_multiple_of(conv.group_count()) {
        return Err(Error::invalid(
            "weight output channels",
            outputs,
            format!("they must be a positive multiple of groups = {}", conv.group_count()),
        ));
    }
    Ok((outputs, inputs))
}
