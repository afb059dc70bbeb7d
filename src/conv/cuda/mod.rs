//! Convolution on CUDA: one file per algorithm, chosen here.
//!
//! | algorithm | files | a thread or product computes | workspace |
//! |---|---|---|---|
//! | naive | `naive.rs`, `kernels/naive.cu` | an element of the result | none |
//! | shifted | `shifted.rs`, `lowering.rs`, `products.rs` | one tap of a tile of images | one tap's patches, and the sums of half types |
//! | im2col | `im2col.rs`, `lowering.rs`, `products.rs` | a tile of images | the tile's patches, and the sums of half types |
//! | implicit | `implicit.rs`, `kernels/implicit.cu` | a block of the result | none, or partial sums of `dw` |
//! | (direct) | `direct.rs`, `kernels/direct.cu` | some rows of one group's result | none, or partial sums of `dw` |
//!
//! `auto`, by what bounds the shape (reasoned from arithmetic intensity, not yet measured):
//!
//! | for | `auto` is | because |
//! |---|---|---|
//! | several groups of at most 16 channels | direct | a group's product has a side of at most 16, which fills no tile of a matrix product; memory bounds it |
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
mod direct;
mod finish;
mod im2col;
mod implicit;
mod lowering;
mod naive;
mod products;
mod shifted;

pub(super) use bias::backward_bias;

use super::Algorithm;
use super::problem::Problem;
use crate::device::cuda::{DeviceSlice, DeviceSliceMut};
use crate::element::Element;
use crate::error::{Error, Result};

/// `y = conv(x, w) + bias`; all of `y` is overwritten.
pub(super) fn forward<T: Element>(
    p: &Problem,
    x: DeviceSlice<'_, T>,
    w: DeviceSlice<'_, T>,
    bias: Option<DeviceSlice<'_, T>>,
    mut y: DeviceSliceMut<'_, T>,
    algorithm: Algorithm,
) -> Result<()> {
    if p.batch == 0 {
        return Ok(());
    }
    let (bias, y) = (bias.as_ref(), &mut y);
    match algorithm {
        Algorithm::Direct | Algorithm::Depthwise => Err(unplanned(algorithm)),
        Algorithm::Auto if has_small_groups(p) => {
            if !direct::forward(p, &x, &w, bias, y)? {
                naive::forward(p, &x, &w, bias, y)?;
            }
            Ok(())
        }
        Algorithm::Naive => naive::forward(p, &x, &w, bias, y),
        Algorithm::Shifted => shifted::lowering(p)?.forward(&x, &w, bias, y),
        Algorithm::Im2col => im2col::lowering(p).forward(&x, &w, bias, y),
        Algorithm::Auto if is_product(p) => im2col::lowering(p).forward(&x, &w, bias, y),
        Algorithm::Auto | Algorithm::Implicit => implicit::forward(p, &x, &w, bias, y),
    }
}

/// `dx = convᵀ(dy, w) + bias`; all of `dx` is overwritten.
pub(super) fn backward_input<T: Element>(
    p: &Problem,
    dy: DeviceSlice<'_, T>,
    w: DeviceSlice<'_, T>,
    bias: Option<DeviceSlice<'_, T>>,
    mut dx: DeviceSliceMut<'_, T>,
    algorithm: Algorithm,
) -> Result<()> {
    if p.batch == 0 {
        return Ok(());
    }
    let (bias, dx) = (bias.as_ref(), &mut dx);
    match algorithm {
        Algorithm::Direct | Algorithm::Depthwise => Err(unplanned(algorithm)),
        Algorithm::Auto if has_small_groups(p) => {
            if !direct::backward_input(p, &dy, &w, bias, dx)? {
                naive::backward_input(p, &dy, &w, bias, dx)?;
            }
            Ok(())
        }
        Algorithm::Naive => naive::backward_input(p, &dy, &w, bias, dx),
        Algorithm::Shifted => shifted::lowering(p)?.backward_input(&dy, &w, bias, dx),
        Algorithm::Auto if is_product(p) => im2col::lowering(p).backward_input(&dy, &w, bias, dx),
        Algorithm::Auto | Algorithm::Implicit if p.axes.is_zero_padded() => {
            implicit::backward_input(p, &dy, &w, bias, dx)
        }
        _ => im2col::lowering(p).backward_input(&dy, &w, bias, dx),
    }
}

/// `dw = Σ dy·Aᵀ`; all of `dw` is overwritten.
pub(super) fn backward_weight<T: Element>(
    p: &Problem,
    x: DeviceSlice<'_, T>,
    dy: DeviceSlice<'_, T>,
    mut dw: DeviceSliceMut<'_, T>,
    algorithm: Algorithm,
) -> Result<()> {
    if p.batch == 0 {
        return dw.clear();
    }
    let dw = &mut dw;
    match algorithm {
        Algorithm::Direct | Algorithm::Depthwise => Err(unplanned(algorithm)),
        Algorithm::Auto if has_small_groups(p) && direct::backward_weight(p, &x, &dy, dw)? => {
            Ok(())
        }
        Algorithm::Naive => naive::backward_weight(p, &x, &dy, dw),
        Algorithm::Shifted => shifted::lowering(p)?.backward_weight(&x, &dy, dw),
        Algorithm::Im2col => im2col::lowering(p).backward_weight(&x, &dy, dw),
        Algorithm::Auto if is_product(p) => im2col::lowering(p).backward_weight(&x, &dy, dw),
        Algorithm::Auto | Algorithm::Implicit => implicit::backward_weight(p, &x, &dy, dw),
    }
}

/// These are not yet to be had by name.
fn unplanned(algorithm: Algorithm) -> Error {
    Error::invalid("algorithm", algorithm, "on CUDA it is part of auto")
}

/// Channels of a group, up to which groups are convolved directly.
const SMALL_GROUP: usize = 16;

fn has_small_groups(p: &Problem) -> bool {
    p.groups > 1 && p.channels_per_group().max(p.outputs_per_group()) <= SMALL_GROUP
}

/// Whether the patches are the input, so that the convolution is a matrix product.
fn is_product(p: &Problem) -> bool {
    im2col::lowering(p).is_product()
}
