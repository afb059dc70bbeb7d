//! Convolution on the CPU: one file per algorithm, chosen here.
//!
//! | algorithm | file | work of `y`, `dx` is split over | workspace |
//! |---|---|---|---|
//! | naive | `naive.rs` | elements | none |
//! | shifted | `shifted.rs` | images, groups, channels, boxes of positions | per thread a slab and what is summed up, a few MiB; a copy of the weight with its taps outermost |
//! | im2col | `im2col.rs` | the same; small images together | per thread a tile of patches and what is summed up, a few MiB |
//! | implicit | `implicit.rs`, `depthwise.rs`, on the kernels in `micro.rs` | the same | per thread a slab and what is summed up, a few MiB |
//!
//! `auto` is `implicit`, which stores less and takes groups in its stride, except where the shape makes
//! `im2col` the faster one (measured with 2 threads and AVX-512, where the two differ by 5 to 40%):
//!
//! | im2col for | because |
//! |---|---|
//! | channels last, unless groups have few channels | its tiles are contiguous as they lie; implicit reads channels one at a time |
//! | one long axis: taps on the last axis only | a slab then is as large as the patches, and im2col's products use larger tiles |
//! | few output positions that fill vectors badly, as 7×7 | im2col puts several images in a tile |
//! | `dx` with a stride, one group | implicit needs a pass for each phase of the stride |
//! | `dx` in modes other than zeros | several padded positions read one input: implicit has no such path |
//! | `dw`, one group | long dot products by faer are the faster |
//!
//! `dw` is split over groups, outputs and patch entries, and by `partial.rs` over chunks of the
//! positions where that leaves too few tasks. `runs.rs` and `tiles.rs` hold what the algorithms share:
//! reading and writing blocks of either layout, slabs, and the way back onto the input.
//!
//! No split depends on the number of threads, and every sum has one order.

mod depthwise;
mod gemm;
mod im2col;
mod implicit;
mod micro;
mod naive;
mod partial;
mod patches;
mod runs;
mod shifted;
mod tiles;

use rayon::prelude::*;

use super::Algorithm;
use super::problem::Problem;
use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::geometry::Layout;
use crate::memory::try_zeroed;

/// `y = conv(x, w) + bias`; all of `y` is overwritten.
pub(super) fn forward<T: Element>(
    p: &Problem,
    x: &[T],
    w: &[T],
    bias: Option<&[T]>,
    y: &mut [T],
    algorithm: Algorithm,
) -> Result<()> {
    match resolve(algorithm, implicit_is_faster(p)) {
        Algorithm::Naive => naive::forward(p, x, w, bias, y),
        Algorithm::Shifted => shifted::forward(p, x, w, bias, y),
        Algorithm::Implicit => implicit::forward(p, x, w, bias, y),
        _ => im2col::forward(p, x, w, bias, y),
    }
}

/// What `auto` stands for.
fn resolve(algorithm: Algorithm, implicit: bool) -> Algorithm {
    match algorithm {
        Algorithm::Auto if implicit => Algorithm::Implicit,
        Algorithm::Auto => Algorithm::Im2col,
        chosen => chosen,
    }
}

/// Whether patches are better not gathered, as far as that depends on layout and positions: see the
/// table above.
fn implicit_is_faster(p: &Problem) -> bool {
    let few_channels = p.groups > 1 && p.channels_per_group().max(p.outputs_per_group()) < 16;
    if few_channels {
        return true;
    }
    let [d, h, w] = p.tap_extents();
    let positions = p.output_positions();
    let one_long_axis = d * h == 1 && w > 1;
    let fills_vectors = 8 * positions.next_multiple_of(16) <= 9 * positions;
    p.layout == Layout::ChannelsFirst && !one_long_axis && fills_vectors
}

/// `dx = convᵀ(dy, w) + bias`; all of `dx` is overwritten.
pub(super) fn backward_input<T: Element>(
    p: &Problem,
    dy: &[T],
    w: &[T],
    bias: Option<&[T]>,
    dx: &mut [T],
    algorithm: Algorithm,
) -> Result<()> {
    let strided = !p.axes.is_dense();
    match resolve(algorithm, implicit_is_faster(p) && (p.groups > 1 || !strided)) {
        Algorithm::Naive => naive::backward_input(p, dy, w, bias, dx),
        Algorithm::Shifted => shifted::backward_input(p, dy, w, bias, dx),
        Algorithm::Implicit if p.axes.is_zero_padded() => {
            implicit::backward_input(p, dy, w, bias, dx)
        }
        _ => im2col::backward_input(p, dy, w, bias, dx),
    }
}

/// `dw = Σ dy·Aᵀ`; all of `dw` is overwritten.
pub(super) fn backward_weight<T: Element>(
    p: &Problem,
    x: &[T],
    dy: &[T],
    dw: &mut [T],
    algorithm: Algorithm,
) -> Result<()> {
    let small = p.groups > 1 && p.outputs_per_group() <= 64;
    match resolve(algorithm, implicit_is_faster(p) && small) {
        Algorithm::Naive => naive::backward_weight(p, x, dy, dw),
        Algorithm::Shifted => shifted::backward_weight(p, x, dy, dw),
        Algorithm::Implicit => implicit::backward_weight(p, x, dy, dw),
        _ => im2col::backward_weight(p, x, dy, dw),
    }
}

/// `db[c]` = sum of channel c of `dy`.
pub(super) fn backward_bias<T: Element>(
    layout: Layout,
    batch: usize,
    positions: usize,
    dy: &[T],
    db: &mut [T],
) -> Result<()> {
    let outputs = db.len();
    match layout {
        Layout::ChannelsFirst => {
            db.par_iter_mut().enumerate().for_each(|(c, db)| {
                let planes = (0..batch).map(|n| &dy[(n * outputs + c) * positions..][..positions]);
                *db = T::from_acc(planes.map(sum).fold(T::Acc::ZERO, |a, b| a + b));
            });
        }
        Layout::ChannelsLast => {
            // Rows of chunks of a fixed size, then the chunks in order: the same sum on any pool.
            const ROWS: usize = 1024;
            let chunks = dy.chunks(ROWS * outputs.max(1)).len();
            let mut partial: Vec<T::Acc> = try_zeroed("partial bias gradients", chunks * outputs)?;
            let tasks =
                partial.par_chunks_mut(outputs.max(1)).zip(dy.par_chunks(ROWS * outputs.max(1)));
            tasks.for_each(|(partial, rows)| {
                for row in rows.chunks_exact(outputs) {
                    partial.iter_mut().zip(row).for_each(|(sum, v)| *sum += v.to_acc());
                }
            });
            for (c, db) in db.iter_mut().enumerate() {
                let column = partial.iter().skip(c).step_by(outputs);
                *db = T::from_acc(column.fold(T::Acc::ZERO, |a, &b| a + b));
            }
        }
    }
    Ok(())
}

/// A sum in 16 interleaved parts: faster than one chain of additions, and more accurate.
fn sum<T: Element>(values: &[T]) -> T::Acc {
    let mut parts = [T::Acc::ZERO; 16];
    let chunks = values.chunks_exact(parts.len());
    let rest = chunks.remainder();
    chunks.for_each(|chunk| parts.iter_mut().zip(chunk).for_each(|(s, v)| *s += v.to_acc()));
    parts.iter_mut().zip(rest).for_each(|(s, v)| *s += v.to_acc());
    parts.into_iter().fold(T::Acc::ZERO, |a, b| a + b)
}

macro_rules! bridge {
    ($name:ident, $doc:literal) => {
        #[derive(Debug)]
        pub(in crate::conv) struct $name {
            p: Problem,
            algorithm: Algorithm,
        }
    };
}
bridge!(Forward, "");
bridge!(BackwardInput, "");
bridge!(BackwardWeight, "");
use crate::plan::Explanation;
use crate::workers::{Room, Workers};
type Made<X> = Result<(X, Workers)>;
fn none<X>(x: X) -> Made<X> {
    Ok((x, Workers::new(1, Room::default())))
}
impl Forward {
    pub fn new<T: Element>(
        p: &Problem,
        _: bool,
        algorithm: Algorithm,
        _: &mut Explanation,
    ) -> Made<Self> {
        none(Forward { p: p.clone(), algorithm })
    }
    pub fn run<T: Element>(
        &self,
        _: &Workers,
        x: &[T],
        w: &[T],
        b: Option<&[T]>,
        y: &mut [T],
        _: &mut [u8],
    ) -> Result<()> {
        forward(&self.p, x, w, b, y, self.algorithm)
    }
}
impl BackwardInput {
    pub fn new<T: Element>(
        p: &Problem,
        _: bool,
        algorithm: Algorithm,
        _: &mut Explanation,
    ) -> Made<Self> {
        none(BackwardInput { p: p.clone(), algorithm })
    }
    pub fn run<T: Element>(
        &self,
        _: &Workers,
        x: &[T],
        w: &[T],
        b: Option<&[T]>,
        y: &mut [T],
        _: &mut [u8],
    ) -> Result<()> {
        backward_input(&self.p, x, w, b, y, self.algorithm)
    }
}
impl BackwardWeight {
    pub fn new<T: Element>(p: &Problem, algorithm: Algorithm, _: &mut Explanation) -> Made<Self> {
        none(BackwardWeight { p: p.clone(), algorithm })
    }
    pub fn run<T: Element>(
        &self,
        _: &Workers,
        x: &[T],
        w: &[T],
        y: &mut [T],
        _: &mut [u8],
    ) -> Result<()> {
        backward_weight(&self.p, x, w, y, self.algorithm)
    }
}
#[derive(Clone, Copy, Debug)]
pub(in crate::conv) struct BiasSums {
    pub layout: Layout,
    pub batch: usize,
    pub outputs: usize,
    pub positions: usize,
}
#[derive(Debug)]
pub(in crate::conv) struct BackwardBias(BiasSums);
impl BackwardBias {
    pub fn new<T: Element>(s: BiasSums, _: &mut Explanation) -> Made<Self> {
        none(BackwardBias(s))
    }
    pub fn run<T: Element>(&self, _: &Workers, dy: &[T], db: &mut [T], _: &mut [u8]) -> Result<()> {
        backward_bias(self.0.layout, self.0.batch, self.0.positions, dy, db)
    }
}
