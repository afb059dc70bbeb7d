//! Running what a weight makes of an activation.

use crate::element::Element;
use crate::error::Result;
use crate::plan::{BIAS, Plan, Steps, Workspace};
use crate::tensor::{TensorView, TensorViewMut};
use crate::workers::Workers;

/// A plan of what a weight makes of an activation: the convolution, or its adjoint.
pub(crate) trait WithWeight {
    /// Writes all of `target`.
    fn run<T: Element>(
        &self,
        workers: &Workers,
        source: &[T],
        weight: &[T],
        bias: Option<&[T]>,
        target: &mut [T],
        memory: &mut [u8],
    ) -> Result<()>;
}

/// The operands' numbers; the result is the last.
const SOURCE: usize = 0;
const WEIGHT: usize = 1;

/// Runs a plan of a convolution or of its adjoint, whose operands are what is read, the weight (or what is
/// stored of it), the bias if there is one, and the result.
pub(crate) fn run_with_weight<T: Element, C: WithWeight>(
    plan: &Plan<C>,
    source: TensorView<'_, T>,
    weight: TensorView<'_, T>,
    bias: Option<TensorView<'_, T>>,
    target: TensorViewMut<'_, T>,
    workspace: &mut Workspace<'_>,
) -> Result<()> {
    plan.check_optional(BIAS, bias.as_ref())?;
    plan.check(&[
        (SOURCE, source.shape(), &source.device()),
        (WEIGHT, weight.shape(), &weight.device()),
        (plan.last(), target.shape(), &target.device()),
    ])?;
    match plan.steps() {
        Steps::Cpu { plan, workers } => {
            let memory = workspace.host(workers.workspace())?;
            let bias = bias.as_ref().map(TensorView::host);
            plan.run(workers, source.host(), weight.host(), bias, target.host(), memory)
        }
        #[cfg(gpu)]
        Steps::Cuda(program) => {
            let (source, weight, target) = (source.address(), weight.address(), target.address());
            let bias = bias.as_ref().map(TensorView::address);
            // SAFETY: the operands were checked, and are borrowed.
            unsafe {
                match bias {
                    None => plan.queue(program, &[source, weight, target], workspace),
                    Some(bias) => plan.queue(program, &[source, weight, bias, target], workspace),
                }
            }
        }
    }
}
