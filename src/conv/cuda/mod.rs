//! Convolution on CUDA: one file per algorithm, chosen here.
//!
//! | algorithm | files | a thread or product computes | workspace |
//! |---|---|---|---|
//! | naive | `naive.rs`, `kernels/conv/naive.cu` | an element of the result | none |
//! | shifted | `lowering.rs`, `landing.rs`, `products.rs` | one tap of a tile of images | one tap's patches, and the sums of half types |
//! | im2col | `lowering.rs`, `products.rs` | a tile of images | the tile's patches, and the sums of half types |
//! | implicit | `implicit.rs`, `kernels/conv/implicit.cu` | a block of the result | none, or partial sums of `dw`, or (half types, channels first) copies of source and weight |
//! | direct, depthwise | `direct.rs`, `kernels/conv/direct.cu` | some rows of one group's result | none, or partial sums of `dw` |
//!
//! `auto`, by what bounds the shape (reasoned from arithmetic intensity, not yet measured):
//!
//! | for | `auto` is | because |
//! |---|---|---|
//! | several groups of at most 16 channels | direct (depthwise where they have one) | a group's product has a side of at most 16, which fills no tile of a matrix product; memory bounds it |
//! | the same where the direct kernel does not fit (many taps; `dx` in modes other than zeros or with large strides) | naive; `dw` implicit | as above, and each thread's loops are short; those of naive `dw` are not |
//! | one tap, stride 1, no padding | im2col | patches and input are the same: it is one product and nothing else |
//! | `dx` in modes other than zeros (as does `implicit`) | im2col | several padded positions read one input, which fold adds up; implicit has no such path |
//! | all else | implicit | patches are K times the input, and writing and reading them takes as long as a product with 46 outputs |
//!
//! `bias.rs` sums up the bias gradient, in two stages.
//!
//! Sums of half types are f32, with the bias added, and rounded once. Every sum has one order, whatever
//! the device.

mod arguments;
mod bias;
mod channels_last;
mod direct;
mod finish;
mod implicit;
mod landing;
mod lowering;
mod naive;
mod products;
#[cfg(all(test, feature = "simulator", unix))]
mod testing;

pub(super) use bias::backward_bias;

use lowering::Lowering;

use super::problem::Problem;
use crate::device::FULL_ALIGNMENT;
use crate::device::cuda::{CudaDevice, Draft, Region};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::plan::{Algorithm, Explanation, PlanOptions};

/// `y = conv(x, w) + bias`; all of `y` is overwritten.
pub(super) fn forward<T: Element>(
    draft: &mut Draft,
    p: &Problem,
    operands: ForwardOperands<T>,
    options: &PlanOptions,
    explanation: &mut Explanation,
) -> Result<()> {
    let ForwardOperands { x, weight, bias, y } = operands;
    let auto = |device: &CudaDevice| {
        if has_small_groups(p) {
            match direct::has_forward(device, p) {
                true => small_groups(p),
                false => (Algorithm::Naive, "the direct kernel has no room for so many taps"),
            }
        } else if is_product(p) {
            ONE_PRODUCT
        } else {
            NO_PATCHES
        }
    };
    let exists = |device: &CudaDevice| direct::has_forward(device, p);
    let algorithm = choose(draft.device(), p, options, explanation, auto, exists)?;
    if p.batch == 0 {
        return Ok(());
    }
    match algorithm {
        Chosen::Naive => naive::forward(draft, p, x, weight, bias, y),
        Chosen::Shifted => {
            lowered(Lowering::shifted(p)?, options).forward(draft, x, weight, bias, y)
        }
        Chosen::Im2col => lowered(Lowering::im2col(p), options).forward(draft, x, weight, bias, y),
        Chosen::Implicit => {
            let write =
                |draft: &mut Draft, pack| implicit::forward(draft, p, x, weight, bias, y, pack);
            // A product that is shared out among blocks for want of tiles waits for its parts, not for loads.
            let tiles = y.len() >= LEAST_TILE * draft.device().driver().multiprocessors() as usize;
            let copied = x.len() + weight.len();
            let pack =
                tiles && packs::<T>(draft, p, p.channels, copied, options, |t| write(t, true))?;
            write(draft, pack)
        }
        Chosen::Direct => direct::forward(draft, p, x, weight, bias, y),
    }
}

/// `dx = convᵀ(dy, w) + bias`; all of `dx` is overwritten.
pub(super) fn backward_input<T: Element>(
    draft: &mut Draft,
    p: &Problem,
    operands: BackwardInputOperands<T>,
    options: &PlanOptions,
    explanation: &mut Explanation,
) -> Result<()> {
    let BackwardInputOperands { dy, weight, bias, dx } = operands;
    let auto = |device: &CudaDevice| {
        if has_small_groups(p) {
            match direct::has_backward_input::<T>(device, p) {
                true => small_groups(p),
                false => {
                    (Algorithm::Naive, "the direct kernel has no path for this mode or stride")
                }
            }
        } else if is_product(p) {
            ONE_PRODUCT
        } else if p.axes.is_zero_padded() {
            NO_PATCHES
        } else {
            NO_ADJOINT
        }
    };
    let exists = |device: &CudaDevice| direct::has_backward_input::<T>(device, p);
    let mut algorithm = choose(draft.device(), p, options, explanation, auto, exists)?;
    if algorithm == Chosen::Implicit && !p.axes.is_zero_padded() {
        algorithm = Chosen::Im2col;
        explain(explanation, NO_ADJOINT);
    }
    if p.batch == 0 {
        return Ok(());
    }
    match algorithm {
        Chosen::Naive => naive::backward_input(draft, p, dy, weight, bias, dx),
        Chosen::Shifted => {
            lowered(Lowering::shifted(p)?, options).backward_input(draft, dy, weight, bias, dx)
        }
        Chosen::Im2col => {
            lowered(Lowering::im2col(p), options).backward_input(draft, dy, weight, bias, dx)
        }
        Chosen::Implicit => {
            let write = |draft: &mut Draft, pack| {
                implicit::backward_input(draft, p, dy, weight, bias, dx, pack)
            };
            let copied = dy.len() + weight.len();
            let pack = packs::<T>(draft, p, p.outputs, copied, options, |t| write(t, true))?;
            write(draft, pack)
        }
        Chosen::Direct => direct::backward_input(draft, p, dy, weight, bias, dx),
    }
}

/// `dw = Σ dy·Aᵀ`; all of `dw` is overwritten.
pub(super) fn backward_weight<T: Element>(
    draft: &mut Draft,
    p: &Problem,
    operands: BackwardWeightOperands<T>,
    options: &PlanOptions,
    explanation: &mut Explanation,
) -> Result<()> {
    let BackwardWeightOperands { x, dy, dw } = operands;
    let auto = |device: &CudaDevice| {
        if has_small_groups(p) && direct::has_backward_weight::<T>(device, p) {
            small_groups(p)
        } else if is_product(p) {
            ONE_PRODUCT
        } else {
            NO_PATCHES
        }
    };
    let exists = |device: &CudaDevice| direct::has_backward_weight::<T>(device, p);
    let algorithm = choose(draft.device(), p, options, explanation, auto, exists)?;
    if p.batch == 0 {
        draft.clear(dw);
        return Ok(());
    }
    match algorithm {
        Chosen::Naive => naive::backward_weight(draft, p, x, dy, dw),
        Chosen::Shifted => {
            lowered(Lowering::shifted(p)?, options).backward_weight(draft, x, dy, dw)
        }
        Chosen::Im2col => lowered(Lowering::im2col(p), options).backward_weight(draft, x, dy, dw),
        Chosen::Implicit => {
            let write =
                |draft: &mut Draft, pack| implicit::backward_weight(draft, p, x, dy, dw, pack);
            let copied = x.len() + dy.len();
            let both = implicit::can_pack::<T>(draft.device(), p, p.outputs_per_group());
            let pack =
                both && packs::<T>(draft, p, p.channels, copied, options, |t| write(t, true))?;
            write(draft, pack)
        }
        Chosen::Direct => direct::backward_weight(draft, p, x, dy, dw),
    }
}

/// The operands of a convolution.
pub(super) struct ForwardOperands<T> {
    pub x: Region<T>,
    pub weight: Region<T>,
    pub bias: Option<Region<T>>,
    pub y: Region<T>,
}

/// The operands of the gradient by the input, and of a transposed convolution.
pub(super) struct BackwardInputOperands<T> {
    pub dy: Region<T>,
    pub weight: Region<T>,
    pub bias: Option<Region<T>>,
    pub dx: Region<T>,
}

/// The operands of the gradient by the weight.
pub(super) struct BackwardWeightOperands<T> {
    pub x: Region<T>,
    pub dy: Region<T>,
    pub dw: Region<T>,
}

/// What `auto` became, or what was asked for: the code that is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chosen {
    Naive,
    Shifted,
    Im2col,
    Implicit,
    Direct,
}

/// An algorithm and why it is the one.
type Reasoned = (Algorithm, &'static str);

const ONE_PRODUCT: Reasoned =
    (Algorithm::Im2col, "the patches are the input, so it is one product and nothing else");
const NO_PATCHES: Reasoned =
    (Algorithm::Implicit, "patches are several times the input, and need not be stored");
const NO_ADJOINT: Reasoned = (
    Algorithm::Im2col,
    "several padded positions read one input, which fold adds up and implicit cannot",
);

/// The direct kernel, under the name it has for these groups.
fn small_groups(p: &Problem) -> Reasoned {
    match is_depthwise(p) {
        true => {
            (Algorithm::Depthwise, "groups of one channel are bound by memory: no product helps")
        }
        false => (Algorithm::Direct, "groups of few channels fill no tile of a product"),
    }
}

fn explain(explanation: &mut Explanation, (algorithm, reason): Reasoned) {
    explanation.algorithm = algorithm.to_string();
    explanation.reason = reason.into();
}

/// The algorithm that was asked for, or what `auto` stands for. `exists` tells whether there is a direct
/// kernel.
fn choose(
    device: &CudaDevice,
    p: &Problem,
    options: &PlanOptions,
    explanation: &mut Explanation,
    auto: impl Fn(&CudaDevice) -> Reasoned,
    exists: impl Fn(&CudaDevice) -> bool,
) -> Result<Chosen> {
    let wanted = options.algorithm;
    let (algorithm, reason) = match wanted {
        Algorithm::Auto => auto(device),
        named => (named, "as asked for"),
    };
    explain(explanation, (algorithm, reason));
    let missing = |reason: &str| Err(Error::invalid("algorithm", wanted, reason));
    match algorithm {
        Algorithm::Naive => Ok(Chosen::Naive),
        Algorithm::Shifted => Ok(Chosen::Shifted),
        Algorithm::Im2col => Ok(Chosen::Im2col),
        Algorithm::Implicit => Ok(Chosen::Implicit),
        Algorithm::Direct | Algorithm::Depthwise => {
            if !has_small_groups(p) {
                missing("it is for several groups of at most 16 channels")
            } else if algorithm == Algorithm::Depthwise && !is_depthwise(p) {
                missing("it is for groups of one channel")
            } else if !exists(device) {
                missing(
                    "it has no kernel for this operation with these taps, stride and padding mode",
                )
            } else {
                Ok(Chosen::Direct)
            }
        }
        Algorithm::Auto => missing("auto stands for one of the others"),
    }
}

/// The lowering with as much workspace as the caller allows.
fn lowered<'p>(mut lowering: Lowering<'p>, options: &PlanOptions) -> Lowering<'p> {
    let limit = options.workspace_limit.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    lowering.room = limit.map_or(lowering.room, |limit| limit.min(lowering.room));
    lowering
}

/// Results of the smallest tile that a block of the implicit product computes at full speed.
const LEAST_TILE: usize = 64 * 128;

/// Whether it pays to have the implicit product read copies of the source, which has so many channels, and of the
/// weight, `copied` elements together: see [`implicit::can_pack`]. What `write` writes, which is that, has to have
/// room.
fn packs<T: Element>(
    draft: &Draft,
    p: &Problem,
    channels: usize,
    copied: usize,
    options: &PlanOptions,
    write: impl FnOnce(&mut Draft) -> Result<()>,
) -> Result<bool> {
    // By the model of an H100, not measured. Of the catalogue's layers those that are taken by this get up to 2.4
    // times as fast, and none slower; the two short launches alone take 4 microseconds.
    const LEAST_FLOP: f64 = 1e9;
    const LEAST_FLOP_FOR_AN_ELEMENT: f64 = 1000.0;
    let device = draft.device();
    if !implicit::can_pack::<T>(device, p, channels / p.groups)
        || (p.flop() as f64) < LEAST_FLOP.max(LEAST_FLOP_FOR_AN_ELEMENT * copied as f64)
    {
        return Ok(false);
    }
    let Some(limit) = options.workspace_limit else { return Ok(true) };
    let mut trial = Draft::new(device, FULL_ALIGNMENT);
    write(&mut trial)?;
    Ok(trial.workspace_bytes() as u64 <= limit)
}

/// Channels of a group, up to which groups are convolved directly.
const SMALL_GROUP: usize = 16;

fn has_small_groups(p: &Problem) -> bool {
    p.groups > 1 && p.channels_per_group().max(p.outputs_per_group()) <= SMALL_GROUP
}

fn is_depthwise(p: &Problem) -> bool {
    p.channels_per_group() == 1 && p.outputs_per_group() == 1
}

/// Whether the patches are the input, so that the convolution is a matrix product.
fn is_product(p: &Problem) -> bool {
    Lowering::im2col(p).is_product()
}
