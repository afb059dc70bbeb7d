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
//! Words that the algorithms share, each with one meaning:
//!
//! | word | means |
//! |---|---|
//! | part | some of the terms of a sum, added up by one task or block; the parts are then added in order |
//! | tile | the rows and columns of a product that a task or block computes at a time |
//! | block | on CUDA, the threads that share a tile; on the CPU, consecutive entries of the patch that are gathered together |
//! | box | a range of positions on each axis |
//! | piece | consecutive elements out of a longer range, all pieces of about one length |
//! | run | consecutive elements in memory |
//! | slab | an input plane, padded and unfolded on its last axis only: every tap's view of it is contiguous |

mod backward;
mod cpu;
#[cfg(gpu)]
mod cuda;
mod forward;
mod problem;
mod transposed;

pub use backward::{BackwardBiasPlan, BackwardInputPlan, BackwardWeightPlan};
pub use forward::ForwardPlan;
pub use transposed::TransposedPlan;

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
