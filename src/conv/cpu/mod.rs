//! Convolution on the CPU: one file per algorithm, chosen here, when it is planned.
//!
//! | algorithm | file | work of `y`, `dx` is split over | workspace |
//! |---|---|---|---|
//! | naive | `naive.rs` | elements | none |
//! | shifted | `shifted.rs` | images, groups, channels, boxes of positions | per worker a slab and what is summed up, a few MiB; a copy of the weight with its taps outermost |
//! | im2col | `im2col.rs` | the same; small images together | per worker a tile of patches and what is summed up, a few MiB |
//! | implicit | `implicit.rs`, `correlation.rs`, `dots.rs` | the same | per worker a slab and what is summed up, a few MiB; of half types a copy of the weight |
//! | implicit, channels last | `pixels.rs`, `pixel_sums.rs` | images, groups, boxes of lines | per worker a copy of what some lines read, and a line of sums; of `dw` a group's weight |
//! | depthwise | `implicit.rs`, `correlation.rs`, `depthwise.rs` | the same | the same |
//! | winograd | `winograd/` | tiles of outputs, or channels | the factors of weights or inputs, and per worker what of the others it multiplies; of `dw` all products |
//!
//! `auto` is `depthwise` for groups of one channel and one output whose lines are many and fill vectors
//! well. Else it is `implicit`, which stores less and takes groups in its stride, except where the shape
//! makes `im2col` the faster one (measured with 2 threads and AVX-512, where the two differ by 5 to 40%):
//!
//! | im2col for | because |
//! |---|---|
//! | channels last, lines of few outputs and many terms | several lines fill a tile; `pixels.rs` takes them one at a time, or joined by what lies between them |
//! | one long axis: taps on the last axis only | a slab then is as large as the patches, and im2col's products use larger tiles |
//! | few output positions that fill vectors badly, as 7×7 | im2col puts several images in a tile |
//! | `dx` with a stride, one group | implicit needs a pass for each phase of the stride |
//! | `dx` in modes other than zeros | several padded positions read one input: implicit has no such path |
//! | `dw`, one group | long dot products by faer are the faster |
//!
//! `bf16` whose channels are multiplied in pairs (`crate::product::cpu::Pair`) is always `implicit`, but for `dx` in
//! modes other than zeros: an instruction then makes twice the products that it makes of widened elements.
//!
//! `dw` is split over groups, outputs and patch entries, and by `parts.rs` over parts of the positions
//! where that leaves too few tasks. `runs.rs` reads and writes operands of either layout, run by run;
//! `crate::patches` holds slabs, tiles of patches and the way back onto the input, and
//! `crate::product::cpu` what multiplies. `bias.rs` sums up the bias gradient.
//!
//! No split depends on the number of threads, and every sum has one order.

mod bias;
mod correlation;
mod depthwise;
mod dots;
mod im2col;
mod implicit;
mod naive;
mod parts;
mod pixel_sums;
mod pixels;
mod runs;
mod shifted;
#[cfg(test)]
mod tests;
mod winograd;

pub(crate) use bias::BackwardBias;

use super::problem::Problem;
use super::with_weight::WithWeight;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::geometry::Layout;
use crate::plan::{Algorithm, Explanation, PlanOptions};
use crate::workers::Workers;

/// Why an algorithm that was asked for by name is taken.
const ASKED: &str = "it was asked for";

/// Which algorithm, and why.
struct Choice {
    way: Way,
    reason: &'static str,
}

/// The algorithms there are.
enum Way {
    Naive,
    Shifted,
    Im2col,
    /// Or depthwise, where that pays and `by_lines` allows it.
    Implicit {
        by_lines: bool,
    },
    Winograd,
}

/// Outputs of a line, channels last, that fill tiles well, and terms of an output that make up for fewer.
const NARROW: usize = 16;
const TERMS: usize = 1024;

/// The choice for the algorithm if one was named, and else `auto`, or what is faster and allowed.
fn choose(options: &PlanOptions, p: &Problem, auto: Choice) -> Result<Choice> {
    let algorithm = options.algorithm;
    let way = match algorithm {
        Algorithm::Auto if options.winograd && winograd::pays(p) => {
            let reason = "it was allowed, and is expected to be the fastest";
            return Ok(Choice { way: Way::Winograd, reason });
        }
        Algorithm::Auto => return Ok(auto),
        Algorithm::Winograd => Way::Winograd,
        Algorithm::Naive => Way::Naive,
        Algorithm::Shifted => Way::Shifted,
        Algorithm::Im2col => Way::Im2col,
        Algorithm::Implicit => Way::Implicit { by_lines: false },
        Algorithm::Depthwise => Way::Implicit { by_lines: true },
        Algorithm::Direct => {
            return Err(Error::invalid("algorithm", algorithm, "it exists on CUDA devices only"));
        }
    };
    Ok(Choice { way, reason: ASKED })
}

/// What `auto` is for products with a weight over so many channels.
fn by_type<T: Element>(channels: usize, by_shape: Choice) -> Choice {
    if !correlation::packs::<T>(channels) {
        return by_shape;
    }
    let reason = "its channels are multiplied in pairs: twice the products of an instruction";
    Choice { way: Way::Implicit { by_lines: true }, reason }
}

/// What `auto` is, as far as that depends on layout and positions: see the table above.
fn by_shape(p: &Problem) -> Choice {
    let implicit = |reason| Choice { way: Way::Implicit { by_lines: true }, reason };
    let im2col = |reason| Choice { way: Way::Im2col, reason };
    if p.groups > 1 && p.channels_per_group().max(p.outputs_per_group()) < 16 {
        return implicit("groups of few channels cost it nothing extra");
    }
    let [d, h, w] = p.tap_extents();
    let (positions, [_, _, w_outputs]) = (p.output_positions(), p.output_extents());
    match p.layout {
        Layout::ChannelsLast if w_outputs < NARROW && p.channels_per_group() * p.taps() > TERMS => {
            im2col(
                "many terms and narrow lines, that fill tiles badly: it puts several lines in a tile",
            )
        }
        Layout::ChannelsLast => implicit("channels last: pixels are multiplied where they lie"),
        Layout::ChannelsFirst if d * h == 1 && w > 1 => {
            im2col("taps on the last axis only: a slab would be as large as the patches")
        }
        Layout::ChannelsFirst if 8 * positions.next_multiple_of(16) > 9 * positions => {
            im2col("few positions, that fill vectors badly: it puts several images in a tile")
        }
        Layout::ChannelsFirst => implicit("it stores less than the patches"),
    }
}

/// What `auto` is for the input gradient.
fn by_shape_of_dx<T: Element>(p: &Problem) -> Choice {
    let im2col = |reason| Choice { way: Way::Im2col, reason };
    if !p.axes.is_zero_padded() {
        return im2col("several padded positions read one input: implicit has no such path");
    }
    let choice = by_shape(p);
    let choice = match choice.way {
        Way::Implicit { .. } if p.groups == 1 && !p.axes.is_dense() => {
            im2col("a stride: implicit would need a pass for each of its phases")
        }
        Way::Implicit { .. } | Way::Im2col | Way::Shifted | Way::Naive | Way::Winograd => choice,
    };
    by_type::<T>(p.outputs_per_group(), choice)
}

/// What `auto` is for the weight gradient.
fn by_shape_of_dw(p: &Problem) -> Choice {
    let choice = by_shape(p);
    if p.layout == Layout::ChannelsLast && p.outputs_per_group() > 1 && pixel_sums::fits(p) {
        let reason = "channels last: pixels are multiplied where they lie";
        return Choice { way: Way::Implicit { by_lines: true }, reason };
    }
    match choice.way {
        Way::Implicit { .. } if p.groups == 1 || p.outputs_per_group() > 64 => {
            Choice { way: Way::Im2col, reason: "long dot products by faer are the faster" }
        }
        Way::Implicit { .. } | Way::Im2col | Way::Shifted | Way::Naive | Way::Winograd => choice,
    }
}

/// What correlations turned out to be, and why.
fn implicit_or_depthwise(
    correlations: &implicit::Correlations,
    asked: Algorithm,
    reason: &'static str,
) -> Result<(Algorithm, &'static str)> {
    match asked {
        Algorithm::Depthwise if !correlations.by_lines() => {
            let reason = "it takes groups of one channel and one output, whose lines are not strided, \
                          at least four, and fill vectors well";
            Err(Error::invalid("algorithm", asked, reason))
        }
        Algorithm::Auto if correlations.by_lines() => {
            let reason = "groups of one channel and one output: lines are the rows of a tile";
            Ok((Algorithm::Depthwise, reason))
        }
        Algorithm::Depthwise => Ok((Algorithm::Depthwise, reason)),
        Algorithm::Auto
        | Algorithm::Naive
        | Algorithm::Shifted
        | Algorithm::Im2col
        | Algorithm::Implicit
        | Algorithm::Direct
        | Algorithm::Winograd => Ok((Algorithm::Implicit, reason)),
    }
}

/// Tells what was chosen, and that the last pass adds the bias.
fn explain(explanation: &mut Explanation, algorithm: Algorithm, reason: &'static str, bias: bool) {
    explanation.algorithm = algorithm.to_string();
    explanation.reason = reason.into();
    if let (true, Some(pass)) = (bias, explanation.passes.last_mut()) {
        pass.specialisation += ", then the bias";
    }
}

/// The plan of `y = conv(x, w) + bias`.
#[derive(Debug)]
pub(crate) enum Forward {
    Naive(naive::Forward),
    Shifted(shifted::Forward),
    Im2col(im2col::Forward),
    /// Depthwise too.
    Implicit(implicit::Correlations),
    Winograd(Box<winograd::Correlated>),
}

/// The plan of `dx = convᵀ(dy, w) + bias`.
#[derive(Debug)]
pub(crate) enum BackwardInput {
    Naive(naive::BackwardInput),
    Shifted(shifted::BackwardInput),
    Im2col(im2col::BackwardInput),
    /// Depthwise too.
    Implicit(implicit::Correlations),
    Winograd(Box<winograd::Correlated>),
}

/// The plan of `dw = Σ dy·Aᵀ`.
#[derive(Debug)]
pub(crate) enum BackwardWeight {
    Naive(naive::BackwardWeight),
    Shifted(shifted::BackwardWeight),
    Im2col(im2col::BackwardWeight),
    Implicit(dots::BackwardWeight),
    Pixels(pixel_sums::PixelSums),
    Winograd(winograd::BackwardWeight),
}

impl Forward {
    /// For operands of this type, with a bias or without.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a named algorithm that does not exist for this.
    pub(super) fn new<T: Element>(
        p: &Problem,
        bias: bool,
        options: &PlanOptions,
        explanation: &mut Explanation,
    ) -> Result<(Self, Workers)> {
        let Choice { way, reason } =
            choose(options, p, by_type::<T>(p.channels_per_group(), by_shape(p)))?;
        let passes = &mut explanation.passes;
        let ((plan, workers), (algorithm, reason)) = match way {
            Way::Naive => {
                let (plan, workers) = naive::Forward::new(p, passes);
                ((Forward::Naive(plan), workers), (Algorithm::Naive, reason))
            }
            Way::Shifted => {
                let (plan, workers) = shifted::Forward::new::<T>(p, passes);
                ((Forward::Shifted(plan), workers), (Algorithm::Shifted, reason))
            }
            Way::Im2col => {
                let (plan, workers) = im2col::Forward::new::<T>(p, passes);
                ((Forward::Im2col(plan), workers), (Algorithm::Im2col, reason))
            }
            Way::Implicit { by_lines } => {
                let (plan, workers) = implicit::forward::<T>(p, by_lines, passes)?;
                let made = implicit_or_depthwise(&plan, options.algorithm, reason)?;
                ((Forward::Implicit(plan), workers), made)
            }
            Way::Winograd => {
                let (plan, workers) = winograd::forward::<T>(p, passes)?;
                ((Forward::Winograd(Box::new(plan)), workers), (Algorithm::Winograd, reason))
            }
        };
        explain(explanation, algorithm, reason, bias);
        Ok((plan, workers))
    }
}

impl WithWeight for Forward {
    /// `y = conv(x, w) + bias`; all of `y` is overwritten.
    fn run<T: Element>(
        &self,
        workers: &Workers,
        x: &[T],
        w: &[T],
        bias: Option<&[T]>,
        y: &mut [T],
        memory: &mut [u8],
    ) -> Result<()> {
        match self {
            Forward::Naive(plan) => plan.run(workers, x, w, bias, y),
            Forward::Shifted(plan) => plan.run(workers, x, w, bias, y, memory),
            Forward::Im2col(plan) => plan.run(workers, x, w, bias, y, memory),
            Forward::Implicit(plan) => plan.run(workers, x, w, bias, y, memory),
            Forward::Winograd(plan) => plan.run(workers, x, w, bias, y, memory),
        }
    }
}

impl BackwardInput {
    /// For operands of this type, with a bias or without.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a named algorithm that does not exist for this.
    pub(super) fn new<T: Element>(
        p: &Problem,
        bias: bool,
        options: &PlanOptions,
        explanation: &mut Explanation,
    ) -> Result<(Self, Workers)> {
        let (algorithm, auto) = (options.algorithm, by_shape_of_dx::<T>(p));
        let Choice { way, reason } = choose(options, p, auto)?;
        let replaced = matches!(way, Way::Implicit { .. }) && !p.axes.is_zero_padded();
        if replaced && algorithm == Algorithm::Depthwise {
            let reason = "it has no path for padding modes other than zeros";
            return Err(Error::invalid("algorithm", algorithm, reason));
        }
        let (way, reason) = if replaced {
            (
                Way::Im2col,
                "implicit was asked for, but has no path for padding modes other than zeros",
            )
        } else {
            (way, reason)
        };
        let passes = &mut explanation.passes;
        let ((plan, workers), (algorithm, reason)) = match way {
            Way::Naive => {
                let (plan, workers) = naive::BackwardInput::new(p, passes)?;
                ((BackwardInput::Naive(plan), workers), (Algorithm::Naive, reason))
            }
            Way::Shifted => {
                let (plan, workers) = shifted::BackwardInput::new::<T>(p, passes);
                ((BackwardInput::Shifted(plan), workers), (Algorithm::Shifted, reason))
            }
            Way::Im2col => {
                let (plan, workers) = im2col::BackwardInput::new::<T>(p, passes);
                ((BackwardInput::Im2col(plan), workers), (Algorithm::Im2col, reason))
            }
            Way::Implicit { by_lines } => {
                let (plan, workers) = implicit::backward_input::<T>(p, by_lines, passes)?;
                let made = implicit_or_depthwise(&plan, algorithm, reason)?;
                ((BackwardInput::Implicit(plan), workers), made)
            }
            Way::Winograd => {
                let (plan, workers) = winograd::backward_input::<T>(p, passes)?;
                ((BackwardInput::Winograd(Box::new(plan)), workers), (Algorithm::Winograd, reason))
            }
        };
        explain(explanation, algorithm, reason, bias);
        Ok((plan, workers))
    }
}

impl WithWeight for BackwardInput {
    /// `dx = convᵀ(dy, w) + bias`; all of `dx` is overwritten.
    fn run<T: Element>(
        &self,
        workers: &Workers,
        dy: &[T],
        w: &[T],
        bias: Option<&[T]>,
        dx: &mut [T],
        memory: &mut [u8],
    ) -> Result<()> {
        match self {
            BackwardInput::Naive(plan) => plan.run(workers, dy, w, bias, dx),
            BackwardInput::Shifted(plan) => plan.run(workers, dy, w, bias, dx, memory),
            BackwardInput::Im2col(plan) => plan.run(workers, dy, w, bias, dx, memory),
            BackwardInput::Implicit(plan) => plan.run(workers, dy, w, bias, dx, memory),
            BackwardInput::Winograd(plan) => plan.run(workers, dy, w, bias, dx, memory),
        }
    }
}

impl BackwardWeight {
    /// For operands of this type.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a named algorithm that does not exist for this.
    pub(super) fn new<T: Element>(
        p: &Problem,
        options: &PlanOptions,
        explanation: &mut Explanation,
    ) -> Result<(Self, Workers)> {
        let Choice { way, reason } = choose(options, p, by_shape_of_dw(p))?;
        if options.algorithm == Algorithm::Depthwise {
            let reason = "it has no path for the weight gradient on the CPU";
            return Err(Error::invalid("algorithm", options.algorithm, reason));
        }
        let passes = &mut explanation.passes;
        let (plan, workers, algorithm) = match way {
            Way::Naive => {
                let (plan, workers) = naive::BackwardWeight::new(p, passes);
                (BackwardWeight::Naive(plan), workers, Algorithm::Naive)
            }
            Way::Shifted => {
                let (plan, workers) = shifted::BackwardWeight::new::<T>(p, passes);
                (BackwardWeight::Shifted(plan), workers, Algorithm::Shifted)
            }
            Way::Im2col => {
                let (plan, workers) = im2col::BackwardWeight::new::<T>(p, passes);
                (BackwardWeight::Im2col(plan), workers, Algorithm::Im2col)
            }
            Way::Implicit { .. } if p.layout == Layout::ChannelsLast && pixel_sums::fits(p) => {
                let (plan, workers) = pixel_sums::PixelSums::new::<T>(p, passes);
                (BackwardWeight::Pixels(plan), workers, Algorithm::Implicit)
            }
            Way::Implicit { .. } => {
                let (plan, workers) = dots::BackwardWeight::new::<T>(p, passes);
                (BackwardWeight::Implicit(plan), workers, Algorithm::Implicit)
            }
            Way::Winograd => {
                let (plan, workers) = winograd::BackwardWeight::new::<T>(p, passes)?;
                (BackwardWeight::Winograd(plan), workers, Algorithm::Winograd)
            }
        };
        explain(explanation, algorithm, reason, false);
        Ok((plan, workers))
    }

    /// `dw = Σ dy·Aᵀ`; all of `dw` is overwritten.
    pub(super) fn run<T: Element>(
        &self,
        workers: &Workers,
        x: &[T],
        dy: &[T],
        dw: &mut [T],
        memory: &mut [u8],
    ) -> Result<()> {
        match self {
            BackwardWeight::Naive(plan) => plan.run(workers, x, dy, dw),
            BackwardWeight::Shifted(plan) => plan.run(workers, x, dy, dw, memory),
            BackwardWeight::Im2col(plan) => plan.run(workers, x, dy, dw, memory),
            BackwardWeight::Implicit(plan) => plan.run(workers, x, dy, dw, memory),
            BackwardWeight::Pixels(plan) => plan.run(workers, x, dy, dw, memory),
            BackwardWeight::Winograd(plan) => plan.run(workers, x, dy, dw, memory),
        }
    }
}
