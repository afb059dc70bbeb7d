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
mod with_weight;

pub use backward::{BackwardBiasPlan, BackwardInputPlan, BackwardWeightPlan};
pub use forward::ForwardPlan;
pub use transposed::TransposedPlan;
pub(crate) use with_weight::{WithWeight, run_with_weight};

use crate::error::{Error, Result};
use crate::geometry::Conv;

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
