//! Covariances on the CPU.

mod naive;

use super::options::{SymmetricStorage, Update};
use super::problem::Problem;
use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::plan::Explanation;
use crate::workers::{Shared, Workers};

/// The plan of a covariance.
#[derive(Debug)]
pub(crate) enum Covariance {
    Naive(naive::Naive),
}

impl Covariance {
    pub fn new(p: &Problem, explanation: &mut Explanation) -> Result<(Self, Workers)> {
        let (plan, workers) = naive::Naive::new(p, &mut explanation.passes);
        explanation.algorithm = "naive".into();
        explanation.reason = "it is the only one".into();
        Ok((Covariance::Naive(plan), workers))
    }

    pub fn run<T: Element, F: Accumulator>(
        &self,
        workers: &Workers,
        x: &[T],
        update: Update,
        target: &mut [F],
        _memory: &mut [u8],
    ) -> Result<()> {
        match self {
            Covariance::Naive(plan) => plan.run(workers, x, update, target),
        }
    }
}

/// Copies the lower triangles onto the upper ones, where those are stored.
fn mirror<F: Accumulator>(workers: &Workers, p: &Problem, target: &mut [F]) -> Result<()> {
    if p.storage == SymmetricStorage::Packed {
        return Ok(());
    }
    let d = p.rows();
    let shared = Shared::new(target);
    workers.share_out(p.groups * d, &mut [], |task, _| {
        let (group, row) = (task / d * d * d, task % d);
        for column in row + 1..d {
            // SAFETY: this task alone writes this row above the diagonal; below it nothing is written.
            unsafe {
                let value = shared.run(group + column * d + row, 1)[0];
                shared.run(group + row * d + column, 1)[0] = value;
            }
        }
        Ok(())
    })
}
