//! Which algorithm: the one that was asked for, or the one that is expected to be the fastest.

use std::sync::Arc;

use super::known::Known;
use super::lowering::Lowering;
use crate::conv::problem::{Numbers, Problem};
use crate::device::cuda::Draft;
use crate::element::DType;
use crate::error::{Error, Result};
use crate::plan::{Algorithm, Alternative, Explanation, PlanOptions};

/// The code that is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chosen {
    Naive,
    Shifted,
    Im2col,
    /// From copies with neighbouring channels, or from the operands as they are.
    Implicit {
        pack: bool,
    },
    Direct,
}

/// What is written, besides the problem, and which of the ways that not every operation has exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Candidates {
    pub dtype: DType,
    pub bias: bool,
    pub direct: bool,
    pub implicit: bool,
    pub packed: bool,
}

const NO_ADJOINT: &str =
    "several padded positions read one input, which fold adds up and implicit cannot";

/// Channels of a group, up to which groups are convolved directly.
const SMALL_GROUP: usize = 16;

fn has_small_groups(p: &Problem) -> bool {
    p.groups > 1 && p.channels_per_group().max(p.outputs_per_group()) <= SMALL_GROUP
}

fn is_depthwise(p: &Problem) -> bool {
    p.channels_per_group() == 1 && p.outputs_per_group() == 1
}

impl Chosen {
    /// Its name, for this problem.
    fn algorithm(self, p: &Problem) -> Algorithm {
        match self {
            Chosen::Naive => Algorithm::Naive,
            Chosen::Shifted => Algorithm::Shifted,
            Chosen::Im2col => Algorithm::Im2col,
            Chosen::Implicit { .. } => Algorithm::Implicit,
            Chosen::Direct if is_depthwise(p) => Algorithm::Depthwise,
            Chosen::Direct => Algorithm::Direct,
        }
    }

    /// What speaks for it, where it is expected to be the fastest.
    fn reason(self, p: &Problem, candidates: Candidates) -> &'static str {
        match self {
            Chosen::Naive => "there is so little to do that nothing pays",
            Chosen::Shifted => "one tap at a time is multiplied where it lies",
            Chosen::Im2col if Lowering::im2col(p).is_product() => {
                "the patches are the input, so it is one product and nothing else"
            }
            Chosen::Im2col if !candidates.implicit => NO_ADJOINT,
            Chosen::Im2col => {
                "a product over patches fills its tiles, which saves more than they cost"
            }
            Chosen::Implicit { pack: false } => {
                "patches are several times the input, and need not be stored"
            }
            Chosen::Implicit { pack: true } => {
                "patches need not be stored, and copies with neighbouring channels are read at once"
            }
            Chosen::Direct if is_depthwise(p) => {
                "groups of one channel are bound by memory: no product helps"
            }
            Chosen::Direct => "groups of few channels fill no tile of a product",
        }
    }
}

impl Candidates {
    fn implicit(self) -> impl Iterator<Item = Chosen> {
        let ways = [(self.implicit, false), (self.implicit && self.packed, true)];
        ways.into_iter().filter(|(exists, _)| *exists).map(|(_, pack)| Chosen::Implicit { pack })
    }

    /// The ways that the wanted algorithm stands for; of those that are equally fast the first is taken.
    fn wanted(self, p: &Problem, wanted: Algorithm) -> Result<Vec<Chosen>> {
        let missing = |reason: &str| Err(Error::invalid("algorithm", wanted, reason));
        Ok(match wanted {
            Algorithm::Naive => vec![Chosen::Naive],
            Algorithm::Shifted => vec![Chosen::Shifted],
            Algorithm::Im2col => vec![Chosen::Im2col],
            Algorithm::Implicit if !self.implicit => vec![Chosen::Im2col],
            Algorithm::Implicit => self.implicit().collect(),
            Algorithm::Direct | Algorithm::Depthwise => {
                if !has_small_groups(p) {
                    return missing("it is for several groups of at most 16 channels");
                }
                if wanted == Algorithm::Depthwise && !is_depthwise(p) {
                    return missing("it is for groups of one channel");
                }
                if !self.direct {
                    return missing(
                        "it has no kernel for this operation with these taps, stride and padding mode",
                    );
                }
                vec![Chosen::Direct]
            }
            Algorithm::Winograd => return missing("it exists on the CPU only"),
            Algorithm::Auto => {
                let direct = self.direct && has_small_groups(p);
                let first = direct.then_some(Chosen::Direct);
                let mut all: Vec<Chosen> = first.into_iter().collect();
                all.extend(self.implicit());
                // Where it is one product, it comes before others that are as fast.
                let product = Lowering::im2col(p).is_product();
                all.insert(if product { 0 } else { all.len() }, Chosen::Im2col);
                all.extend([Chosen::Shifted, Chosen::Naive]);
                all
            }
        })
    }
}

/// Writes a convolution in the way that was asked for, or that is expected to take the shortest time; `write` writes
/// it in one of them.
///
/// # Errors
/// [`Error::Invalid`] for an algorithm that does not exist here, and what `write` returns.
pub(super) fn write_best(
    draft: &mut Draft,
    p: &Problem,
    options: &PlanOptions,
    explanation: &mut Explanation,
    candidates: Candidates,
    write: &dyn Fn(&mut Draft, Chosen) -> Result<()>,
) -> Result<()> {
    let ways = candidates.wanted(p, options.algorithm)?;
    let expected = match ways[..] {
        _ if p.batch == 0 => Arc::default(),
        [_] => Arc::default(),
        _ => {
            static KNOWN: Known<Question, Arc<Expected>> = Known::new();
            let question = Question::new(draft, p, options, explanation.operation, candidates);
            let find = || Arc::new(expect(draft, options, &ways, write));
            KNOWN.answer(question, find, |found| found.complete)
        }
    };
    let Expected { fitting, crowded_out, .. } = &*expected;
    let chosen = fitting.first().map_or(ways[0], |(_, way)| *way);
    explanation.algorithm = chosen.algorithm(p).to_string();
    explanation.reason = match options.algorithm {
        Algorithm::Implicit if !candidates.implicit => NO_ADJOINT.into(),
        Algorithm::Auto if *crowded_out => {
            "what would be faster has no room in the workspace that is allowed".into()
        }
        Algorithm::Auto => chosen.reason(p, candidates).into(),
        _ => "as asked for".into(),
    };
    explanation.alternatives = alternatives(p, fitting);
    if p.batch == 0 {
        return Ok(());
    }
    let before = draft.seconds();
    write(draft, chosen)?;
    explanation.expected_seconds = Some(draft.seconds() - before);
    Ok(())
}

/// What an answer depends on.
#[derive(PartialEq, Eq, Hash)]
struct Question {
    device: u64,
    specialise: bool,
    wide: bool,
    alignment: u64,
    tf32: bool,
    operation: &'static str,
    candidates: Candidates,
    algorithm: Algorithm,
    limit: Option<u64>,
    numbers: Numbers,
}

impl Question {
    fn new(
        draft: &Draft,
        p: &Problem,
        options: &PlanOptions,
        operation: &'static str,
        candidates: Candidates,
    ) -> Self {
        Question {
            device: draft.device().driver().identity(),
            specialise: draft.device().options().specialise,
            wide: draft.device().options().wide,
            alignment: draft.alignment(),
            tf32: options.tf32,
            operation,
            candidates,
            algorithm: options.algorithm,
            limit: options.workspace_limit,
            numbers: p.numbers(),
        }
    }
}

/// How many seconds each way is expected to take, the fastest first.
#[derive(Default)]
struct Expected {
    /// Those that can be written within the workspace that is allowed.
    fitting: Vec<(f64, Chosen)>,
    /// Whether one that needs more would be faster.
    crowded_out: bool,
    /// Whether all could be written: cuBLAS is not started while a graph is captured, but later.
    complete: bool,
}

fn expect(
    draft: &Draft,
    options: &PlanOptions,
    ways: &[Chosen],
    write: &dyn Fn(&mut Draft, Chosen) -> Result<()>,
) -> Expected {
    let limit = options.workspace_limit.unwrap_or(u64::MAX);
    let (mut fitting, mut crowded_out, mut complete) = (Vec::new(), f64::INFINITY, true);
    for &way in ways {
        let mut trial = draft.trial();
        if write(&mut trial, way).is_err() {
            complete = false;
            continue;
        }
        if trial.workspace_bytes() as u64 <= limit {
            fitting.push((trial.seconds(), way));
        } else {
            crowded_out = crowded_out.min(trial.seconds());
        }
    }
    // Stable: of equals the first stays first.
    fitting.sort_by(|a, b| a.0.total_cmp(&b.0));
    let crowded_out = fitting.first().is_some_and(|best| crowded_out < best.0);
    Expected { fitting, crowded_out, complete }
}

/// The other algorithms, each in its fastest way.
fn alternatives(p: &Problem, expected: &[(f64, Chosen)]) -> Vec<Alternative> {
    let mut found: Vec<Alternative> = Vec::new();
    for (seconds, way) in expected {
        let algorithm = way.algorithm(p).to_string();
        if !found.iter().any(|other| other.algorithm == algorithm) {
            found.push(Alternative { algorithm, seconds: *seconds });
        }
    }
    if !found.is_empty() {
        found.remove(0);
    }
    found
}

#[cfg(all(test, feature = "simulator", unix))]
mod tests;
