//! Convolution with sparse weights on the CPU: direct sparse convolution (Park et al., "Faster CNNs with
//! Direct Sparse Convolutions and Guided Pruning", 2017). Nothing is unrolled into patches: every stored entry
//! multiplies one contiguous run of the input.
//!
//! | what | file | way | tasks |
//! |---|---|---|---|
//! | `y`, no row has two entries | `gather.rs` | copies, scaled where a value is not 1: unfold is one of these | channels and boxes of outputs; channels last, positions |
//! | `y`, all others | `direct.rs` | a padded copy of a box's input (`window.rs`) stays in cache; register tiles sum up a row's entries | images, groups, rows, boxes of outputs |
//! | `dx`, transposed | `adjoint.rs` | the same tiles over runs of dy, row by row of the transposed pattern, then each tap's sums to where they land | images, groups, channels, boxes of inputs |
//! | `dw` | `weight.rs` | dot products of dy with the input's slabs, for stored entries only | groups, channels, parts of the positions |
//!
//! `table.rs` has the entries in the order in which each of these takes them. No split of a sum depends on the
//! number of threads, and every sum has one order.

mod adjoint;
mod direct;
mod gather;
mod sums;
mod table;
mod weight;
mod window;

pub(super) use adjoint::BackwardInput;
pub(super) use weight::BackwardWeight;

use super::problem::Problem;
use crate::conv::WithWeight;
use crate::element::Element;
use crate::error::Result;
use crate::plan::Explanation;
use crate::workers::Workers;

/// The plan of `y = conv(x, w) + bias`.
#[derive(Debug)]
pub(super) enum Forward {
    Gather(gather::Gather),
    Direct(direct::Direct),
}

impl Forward {
    /// For operands of this type.
    pub fn new<T: Element>(p: &Problem, explanation: &mut Explanation) -> Result<(Self, Workers)> {
        if gather::is_gathering(&p.pattern) {
            explanation.algorithm = "gather".into();
            explanation.reason = "no row has two entries: outputs are copies of inputs".into();
            let (plan, workers) = gather::Gather::new::<T>(p, &mut explanation.passes);
            return Ok((Forward::Gather(plan), workers));
        }
        explanation.algorithm = "direct".into();
        explanation.reason = "every entry multiplies a contiguous run of the input".into();
        let (plan, workers) = direct::Direct::new::<T>(p, &mut explanation.passes)?;
        Ok((Forward::Direct(plan), workers))
    }
}

impl WithWeight for Forward {
    fn run<T: Element>(
        &self,
        workers: &Workers,
        x: &[T],
        values: &[T],
        bias: Option<&[T]>,
        y: &mut [T],
        memory: &mut [u8],
    ) -> Result<()> {
        match self {
            Forward::Gather(plan) => plan.run(workers, x, values, bias, y, memory),
            Forward::Direct(plan) => plan.run(workers, x, values, bias, y, memory),
        }
    }
}
