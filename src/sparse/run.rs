//! Running what a sparse weight makes of an activation.

use std::sync::Arc;

use super::cpu::WithValues;
use super::weight::{Pattern, SparseWeight};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::plan::{BIAS, Plan, Steps, Workspace};
use crate::tensor::{TensorView, TensorViewMut};

/// The operands' numbers; the result is the last.
const SOURCE: usize = 0;
const WEIGHT: usize = 1;

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

/// Runs a plan of a convolution or of its adjoint, whose operands are what is read, the weight's values, the
/// bias if there is one, and the result.
pub(super) fn run_with_values<T: Element, C: WithValues>(
    plan: &Plan<C>,
    pattern: &Arc<Pattern>,
    source: TensorView<'_, T>,
    weight: &SparseWeight<T>,
    bias: Option<TensorView<'_, T>>,
    target: TensorViewMut<'_, T>,
    workspace: &mut Workspace<'_>,
) -> Result<()> {
    check_planned(pattern, weight)?;
    let values = weight.values();
    plan.check_optional(BIAS, bias.as_ref())?;
    plan.check(&[
        (SOURCE, source.shape(), &source.device()),
        (WEIGHT, values.shape(), &values.device()),
        (plan.last(), target.shape(), &target.device()),
    ])?;
    match plan.steps() {
        Steps::Cpu { plan, workers } => {
            let memory = workspace.host(workers.workspace())?;
            let bias = bias.as_ref().map(TensorView::host);
            plan.run(workers, source.host(), values.host(), bias, target.host(), memory)
        }
        #[cfg(gpu)]
        Steps::Cuda(program) => {
            let (source, values, target) = (source.address(), values.address(), target.address());
            let bias = bias.as_ref().map(TensorView::address);
            // SAFETY: the operands were checked, and are borrowed.
            unsafe {
                match bias {
                    None => plan.queue(program, &[source, values, target], workspace),
                    Some(bias) => plan.queue(program, &[source, values, bias, target], workspace),
                }
            }
        }
    }
}
