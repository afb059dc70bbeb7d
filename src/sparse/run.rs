//! Running what a sparse weight makes of an activation.

use std::sync::Arc;

use super::weight::{Pattern, SparseWeight};
use crate::conv::{WithWeight, run_with_weight};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::plan::{Plan, Workspace};
use crate::tensor::{TensorView, TensorViewMut};

/// Fails unless the weight has the pattern that was planned for.
pub(super) fn check_planned<T: Element>(
    pattern: &Arc<Pattern>,
    weight: &SparseWeight<T>,
) -> Result<()> {
    if Arc::ptr_eq(pattern, weight.pattern()) || pattern == weight.pattern() {
        return Ok(());
    }
    let value = format!("{:?} with {} entries", weight.dense_shape(), weight.entries());
    Err(Error::invalid("weight", value, "the plan was made for another pattern"))
}

/// Runs a plan of a convolution or of its adjoint on the values of a weight that has the plan's pattern.
pub(super) fn run_with_values<T: Element, C: WithWeight>(
    plan: &Plan<C>,
    pattern: &Arc<Pattern>,
    source: TensorView<'_, T>,
    weight: &SparseWeight<T>,
    bias: Option<TensorView<'_, T>>,
    target: TensorViewMut<'_, T>,
    workspace: &mut Workspace<'_>,
) -> Result<()> {
    check_planned(pattern, weight)?;
    run_with_weight(plan, source, weight.values(), bias, target, workspace)
}
