//! Covariances on the CPU.
//!
//! | file | holds |
//! |---|---|
//! | `folding.rs` | taps as phases and lags; windows and their segments |
//! | `panel.rs` | reading images line by line into panels of virtual channels |
//! | `channels.rs` | sums over windows, the channels of a group being the lanes of vectors |
//! | `groups.rs` | the same for many groups of few channels, the groups being the lanes |
//! | `sums.rs` | sums of an example's patches, for `reduce` |
//! | `landing.rs` | where sums go in the matrix |
//! | `cost.rs` | what plans do, counted |
//! | `naive.rs` | the loops of the definition |
//!
//! `auto` plans every way there is, each axis lagged or unfolded, channels or groups as lanes, and takes the
//! one that is counted to be the fastest.

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
use folding::{Folding, Kind};
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
    /// For operands of these types.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a named algorithm that does not exist for covariances.
    pub fn new<T: Element, F: Accumulator>(
        p: &Problem,
        options: &PlanOptions,
        explanation: &mut Explanation,
    ) -> Result<(Self, Workers)> {
        let passes = &mut explanation.passes;
        let ways = match options.algorithm {
            Algorithm::Naive => {
                let (plan, workers) = naive::Naive::new(p, passes);
                explanation.algorithm = Algorithm::Naive.to_string();
                explanation.reason = "it was asked for".into();
                return Ok((Covariance::Naive(plan), workers));
            }
            Algorithm::Auto => Ways::All,
            Algorithm::Shifted => Ways::Lagged,
            Algorithm::Im2col => Ways::Unfolded,
            Algorithm::Implicit
            | Algorithm::Direct
            | Algorithm::Depthwise
            | Algorithm::Winograd => {
                let reason = "covariances know auto, naive, shifted and im2col";
                return Err(Error::invalid("algorithm", options.algorithm, reason));
            }
        };
        let limit = options.workspace_limit.map_or(usize::MAX, |limit| limit as usize);
        let lower = |limit: usize| -> Result<Vec<Lowered>> {
            match p.sharing {
                WeightSharing::Reduce => Ok(vec![Lowered::Sums(Sums::new::<F>(p, limit)?)]),
                WeightSharing::Expand => {
                    p.parts.iter().map(|part| ways.best::<F>(p, part, limit)).collect()
                }
            }
        };
        let workers = |parts: &[Lowered], passes: &mut Vec<Pass>| {
            let each = parts.iter().map(|part| part.workers::<T, F>(passes));
            each.fold(Workers::none(), Workers::or)
        };
        let mut parts = lower(limit)?;
        let needed = workers(&parts, &mut Vec::new()).workspace();
        if needed > limit {
            // All but the panels is as large whatever the limit.
            let largest = parts.iter().map(Lowered::panel_len).max().unwrap_or(0);
            let others = needed.saturating_sub(largest * size_of::<F>());
            parts = lower(limit.saturating_sub(others))?;
        }
        let workers = workers(&parts, passes);
        (explanation.algorithm, explanation.reason) = describe(&parts);
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

/// Which ways a plan may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ways {
    All,
    /// Lags on all axes.
    Lagged,
    /// Patches.
    Unfolded,
}

impl Ways {
    /// The one that takes the least time, as counted.
    fn best<F: Accumulator>(self, p: &Problem, part: &Part, limit: usize) -> Result<Lowered> {
        let foldings = Folding::all(&part.axes);
        let last = foldings.len() - 1;
        let foldings = match self {
            Ways::All => &foldings[..],
            Ways::Lagged => &foldings[..1],
            Ways::Unfolded => &foldings[last..],
        };
        let by = |folding: &Folding| {
            let folding = folding.clone();
            Lowered::Channels(Channels::new::<F>(p, part, folding, limit))
        };
        let channels = foldings.iter().map(by);
        let by = |folding: &Folding| {
            let folding = folding.clone();
            Lowered::Groups(Groups::new::<F>(p, part, folding, limit))
        };
        let groups = foldings.iter().filter(|_| p.groups > 1).map(by);
        let cost = |plan: &Lowered| plan.cost().total();
        let best = channels.chain(groups).min_by(|a, b| cost(a).total_cmp(&cost(b)));
        best.ok_or_else(|| Error::invalid("kernel", 0, "it has no taps"))
    }
}

/// The algorithm of a plan, and why it is that.
fn describe(parts: &[Lowered]) -> (String, String) {
    let flop = 2.0 * parts.iter().map(|part| part.cost().products).sum::<f64>();
    let Some(part) = parts.first() else {
        return ("none".into(), "no output reads the input".into());
    };
    let (folding, lanes) = match part {
        Lowered::Channels(plan) => (&plan.folding, ""),
        Lowered::Groups(plan) => {
            (&plan.folding, "; groups are few channels and many, so they are the lanes")
        }
        Lowered::Sums(_) => {
            let reason = "an example's patches are summed first, in one pass over the input";
            return ("sums".into(), reason.into());
        }
    };
    let (name, why) = match folding.kind() {
        Kind::Single => ("syrk", "each patch is one position"),
        Kind::Lagged => ("lag", "pairs of taps that are one lag apart share their sums"),
        Kind::Mixed => ("lag", "pairs of taps share their sums on some axes, others are unfolded"),
        Kind::Unfolded => ("syrk", "so few pairs of taps share a lag that patches are the faster"),
    };
    (name.into(), format!("{why}: {flop:.2e} FLOP{lanes}"))
}

impl Lowered {
    /// Elements of the largest panel.
    fn panel_len(&self) -> usize {
        match self {
            Lowered::Channels(plan) => plan.panel_len(),
            Lowered::Groups(plan) => plan.panel_len(),
            Lowered::Sums(plan) => plan.panel_len(),
        }
    }

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
        if p.batch == 0 {
            // There would be no first panel that sums start from.
            return Ok(());
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
