//! Covariances on the CPU.
//!
//! | file | holds |
//! |---|---|
//! | `folding.rs` | taps as phases and lags; windows and their segments |
//! | `panel.rs` | reading images line by line into panels of virtual channels |
//! | `channels.rs` | sums over windows, the channels of a group being the lanes of vectors |
//! | `landing.rs` | where sums go in the matrix |
//! | `naive.rs` | the loops of the definition |

mod channels;
mod cost;
mod folding;
mod groups;
mod landing;
mod naive;
mod panel;
mod sums;

use channels::Channels;
use cost::Cost;
use folding::Folding;
use groups::Groups;
use landing::Landing;
use sums::Sums;

use super::options::{SymmetricStorage, Update, WeightSharing};
use super::problem::{Part, Problem};
use crate::element::{Accumulator, Element};
use crate::error::{Error, Result};
use crate::plan::{Algorithm, Explanation, Pass, PlanOptions};
use crate::workers::{Scratch, Shared, Workers};

/// The plan of a covariance.
#[derive(Debug)]
pub(crate) enum Covariance {
    Naive(naive::Naive),
    Folded(Folded),
}

/// By virtual channels and lags.
#[derive(Debug)]
pub(crate) struct Folded {
    problem: Problem,
    parts: Vec<Lowered>,
}

/// A part of the problem, by what the lanes of vectors are.
#[derive(Debug)]
enum Lowered {
    Channels(Channels),
    Groups(Groups),
    Sums(Sums),
}

impl Covariance {
    pub fn new<T: Element, F: Accumulator>(
        p: &Problem,
        options: &PlanOptions,
        explanation: &mut Explanation,
    ) -> Result<(Self, Workers)> {
        let passes = &mut explanation.passes;
        if options.algorithm == Algorithm::Naive {
            let (plan, workers) = naive::Naive::new(p, passes);
            explanation.algorithm = "naive".into();
            explanation.reason = "it was asked for".into();
            return Ok((Covariance::Naive(plan), workers));
        }
        let limit = options.workspace_limit.map_or(usize::MAX, |limit| limit as usize);
        if p.sharing == WeightSharing::Reduce {
            let sums = Sums::new::<F>(p, limit)?;
            let workers = sums.workers::<T, F>(passes);
            explanation.algorithm = "sums".into();
            explanation.reason =
                "an example's patches are summed before they are multiplied".into();
            let parts = vec![Lowered::Sums(sums)];
            return Ok((Covariance::Folded(Folded { problem: p.clone(), parts }), workers));
        }
        let mut workers = Workers::none();
        let mut parts = Vec::new();
        let mut reasons = Vec::new();
        for part in &p.parts {
            let foldings = Folding::all(&part.axes);
            let (lagged, unfolded) = (0, foldings.len() - 1);
            let foldings = match options.algorithm {
                Algorithm::Auto => &foldings[..],
                Algorithm::Shifted => &foldings[lagged..=lagged],
                Algorithm::Im2col => &foldings[unfolded..],
                Algorithm::Naive
                | Algorithm::Implicit
                | Algorithm::Direct
                | Algorithm::Depthwise => {
                    let reason = "covariances know auto, naive, shifted and im2col";
                    return Err(Error::invalid("algorithm", options.algorithm, reason));
                }
            };
            let channels = foldings.iter().map(|folding| {
                Lowered::Channels(Channels::new::<F>(p, part, folding.clone(), limit))
            });
            let several = if p.groups > 1 { foldings } else { &[] };
            let groups = several
                .iter()
                .map(|folding| Lowered::Groups(Groups::new::<F>(p, part, folding.clone(), limit)));
            let cost = |plan: &Lowered| plan.cost().total();
            let best = channels.chain(groups).min_by(|a, b| cost(a).total_cmp(&cost(b)));
            let chosen = best.ok_or_else(|| Error::invalid("kernel", 0, "it has no taps"))?;
            workers = workers.or(chosen.workers::<T, F>(passes));
            reasons.push(format!("{:.3e} products", chosen.cost().products));
            parts.push(chosen);
        }
        explanation.algorithm = "lag".into();
        explanation.reason = reasons.join(", ");
        Ok((Covariance::Folded(Folded { problem: p.clone(), parts }), workers))
    }

    pub fn run<T: Element, F: Accumulator>(
        &self,
        workers: &Workers,
        x: &[T],
        update: Update,
        target: &mut [F],
        memory: &mut [u8],
    ) -> Result<()> {
        match self {
            Covariance::Naive(plan) => plan.run(workers, x, update, target),
            Covariance::Folded(plan) => plan.run(workers, x, update, target, memory),
        }
    }
}

impl Lowered {
    fn cost(&self) -> Cost {
        match self {
            Lowered::Channels(plan) => plan.cost,
            Lowered::Groups(plan) => plan.cost,
            Lowered::Sums(plan) => plan.cost(),
        }
    }

    fn workers<T: Element, F: Accumulator>(&self, passes: &mut Vec<Pass>) -> Workers {
        match self {
            Lowered::Channels(plan) => plan.workers::<T, F>(passes),
            Lowered::Groups(plan) => plan.workers::<T, F>(passes),
            Lowered::Sums(plan) => plan.workers::<T, F>(passes),
        }
    }

    fn run<T: Element, F: Accumulator>(
        &self,
        workers: &Workers,
        x: &[T],
        landing: &Landing<F>,
        common: &mut Scratch,
        memory: &mut [u8],
    ) -> Result<()> {
        match self {
            Lowered::Channels(plan) => plan.run(workers, x, landing, common, memory),
            Lowered::Groups(plan) => plan.run(workers, x, landing, common, memory),
            Lowered::Sums(plan) => plan.run(workers, x, landing, common, memory),
        }
    }
}

impl Folded {
    fn run<T: Element, F: Accumulator>(
        &self,
        workers: &Workers,
        x: &[T],
        update: Update,
        target: &mut [F],
        memory: &mut [u8],
    ) -> Result<()> {
        let p = &self.problem;
        // One part has a sum for every element; where there are more or no examples, some get none.
        let all = |part: &Part| part.taps.len() == p.taps;
        let whole = match p.sharing {
            WeightSharing::Reduce => p.batch > 0,
            WeightSharing::Expand => p.batch > 0 && matches!(&p.parts[..], [part] if all(part)),
        };
        let landed = if whole { update } else { Update::add(update.scale) };
        if !whole {
            landing::decay(workers, target, update.decay)?;
            mirror(workers, p, target)?;
        }
        let landing = Landing::new(p, target, landed);
        let (mut common, memory) = workers.split(memory);
        for part in &self.parts {
            part.run(workers, x, &landing, &mut common.part(), memory)?;
        }
        if p.bias && p.sharing == WeightSharing::Expand {
            let (last, count) = (p.entries(), F::from_f64((p.batch * p.positions) as f64));
            // SAFETY: nothing else is written now.
            (0..p.groups).for_each(|group| unsafe { landing.put_one(group, last, last, count) });
        }
        Ok(())
    }
}

/// Copies the lower triangles onto the upper ones, where those are stored.
fn mirror<F: Accumulator>(workers: &Workers, p: &Problem, target: &mut [F]) -> Result<()> {
    if p.storage == SymmetricStorage::Packed {
        return Ok(());
    }
    let d = p.rows();
    let shared = Shared::new(target);
    workers.bare().share_out(p.groups * d, &mut [], |task, _| {
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
