//! Convolution on CUDA: one file per algorithm, chosen here.
//!
//! | algorithm | files | a thread or product computes | workspace |
//! |---|---|---|---|
//! | naive | `naive.rs`, `kernels/conv/naive.cu` | an element of the result | none |
//! | shifted | `lowering.rs`, `landing.rs`, `products.rs` | one tap of a tile of images | one tap's patches, and the sums of half types |
//! | im2col | `lowering.rs`, `products.rs` | a tile of images | the tile's patches, and the sums of half types |
//! | implicit | `implicit.rs`, `kernels/conv/implicit.cu` | a block of the result | none, or partial sums, or (half types, channels first) copies of both operands |
//! | direct, depthwise | `direct/tiles.rs`, `kernels/conv/direct_tiles.cu`; what has no tile `direct.rs`, `kernels/conv/direct.cu` | some rows of one group's result | none, or partial sums of `dw` |
//!
//! `auto` is what is expected to take the shortest time: each way is written as a draft, whose steps say what they
//! move and compute, and [`Work::seconds`] makes that a time, by public figures of the device (nothing was measured).
//! So is, of `implicit`, whether it reads copies. A way that needs more workspace than the caller allows is left out.
//!
//! [`Work::seconds`]: crate::device::cuda::Work::seconds
//!
//! `bias.rs` sums up the bias gradient, in two stages.
//!
//! Sums of half types are f32, with the bias added, and rounded once. Every sum has one order, whatever
//! the device.

mod arguments;
mod bias;
mod channels_last;
mod choice;
mod direct;
mod finish;
mod implicit;
mod known;
mod landing;
mod lowering;
mod naive;
mod products;
mod sectors;
#[cfg(all(test, feature = "simulator", unix))]
mod testing;

pub(super) use bias::backward_bias;

use choice::{Candidates, Chosen, write_best};
use lowering::Lowering;

use super::problem::Problem;
use crate::device::cuda::{Draft, Region};
use crate::element::Element;
use crate::error::Result;
use crate::plan::{Explanation, PlanOptions};

/// `y = conv(x, w) + bias`; all of `y` is overwritten.
pub(super) fn forward<T: Element>(
    draft: &mut Draft,
    p: &Problem,
    operands: ForwardOperands<T>,
    options: &PlanOptions,
    explanation: &mut Explanation,
) -> Result<()> {
    let ForwardOperands { x, weight, bias, y } = operands;
    let device = draft.device();
    let candidates = Candidates {
        dtype: T::DTYPE,
        bias: bias.is_some(),
        direct: direct::has_forward(device, p),
        packed: implicit::can_pack::<T>(device, p, p.channels_per_group()),
        implicit: true,
    };
    write_best(draft, p, options, explanation, candidates, &|draft, chosen| match chosen {
        Chosen::Naive => naive::forward(draft, p, x, weight, bias, y),
        Chosen::Shifted => {
            lowered(Lowering::shifted(p)?, options).forward(draft, x, weight, bias, y)
        }
        Chosen::Im2col => lowered(Lowering::im2col(p), options).forward(draft, x, weight, bias, y),
        Chosen::Implicit { pack } => implicit::forward(draft, p, x, weight, bias, y, pack),
        Chosen::Direct => direct::forward(draft, p, x, weight, bias, y),
    })
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
    let device = draft.device();
    let candidates = Candidates {
        dtype: T::DTYPE,
        bias: bias.is_some(),
        direct: direct::has_backward_input::<T>(device, p),
        packed: implicit::can_pack::<T>(device, p, p.outputs_per_group()),
        implicit: p.axes.is_zero_padded(),
    };
    write_best(draft, p, options, explanation, candidates, &|draft, chosen| match chosen {
        Chosen::Naive => naive::backward_input(draft, p, dy, weight, bias, dx),
        Chosen::Shifted => {
            lowered(Lowering::shifted(p)?, options).backward_input(draft, dy, weight, bias, dx)
        }
        Chosen::Im2col => {
            lowered(Lowering::im2col(p), options).backward_input(draft, dy, weight, bias, dx)
        }
        Chosen::Implicit { pack } => implicit::backward_input(draft, p, dy, weight, bias, dx, pack),
        Chosen::Direct => direct::backward_input(draft, p, dy, weight, bias, dx),
    })
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
    let device = draft.device();
    let can_pack = |channels| implicit::can_pack::<T>(device, p, channels);
    let candidates = Candidates {
        dtype: T::DTYPE,
        bias: false,
        direct: direct::has_backward_weight::<T>(device, p),
        packed: can_pack(p.channels_per_group()) && can_pack(p.outputs_per_group()),
        implicit: true,
    };
    if p.batch == 0 {
        draft.clear(dw);
    }
    write_best(draft, p, options, explanation, candidates, &|draft, chosen| match chosen {
        Chosen::Naive => naive::backward_weight(draft, p, x, dy, dw),
        Chosen::Shifted => {
            lowered(Lowering::shifted(p)?, options).backward_weight(draft, x, dy, dw)
        }
        Chosen::Im2col => lowered(Lowering::im2col(p), options).backward_weight(draft, x, dy, dw),
        Chosen::Implicit { pack } => implicit::backward_weight(draft, p, x, dy, dw, pack),
        Chosen::Direct => direct::backward_weight(draft, p, x, dy, dw),
    })
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

/// The lowering with as much workspace as the caller allows.
fn lowered<'p>(mut lowering: Lowering<'p>, options: &PlanOptions) -> Lowering<'p> {
    let limit = options.workspace_limit.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    lowering.room = limit.map_or(lowering.room, |limit| limit.min(lowering.room));
    lowering
}
