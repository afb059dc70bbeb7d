//! Winograd's algorithm: outputs several at a time, in fewer products than there are taps (Winograd 1980; Lavin &
//! Gray 2016, "Fast algorithms for convolutional neural networks").
//!
//! | file | holds |
//! |---|---|
//! | `transform.rs` | the transforms along one axis, and where they come from |
//! | `cube.rs` | transforms along all axes, of many tiles or channels at a time |
//! | `grid.rs` | the tiles of an output, and how they are read and written |
//! | `correlation.rs` | the convolution, and the input gradient as one |
//! | `unpad.rs` | the input gradient where padded positions read inputs |
//! | `weight_gradient.rs` | the weight gradient |
//! | `choice.rs` | how many outputs at a time, and whether it pays |
//!
//! For 1, 3 or 5 taps on each axis, with strides and dilations of 1. Half types are summed in `f32`, as
//! everywhere.

mod choice;
mod correlation;
mod cube;
mod grid;
mod transform;
mod unpad;
mod weight_gradient;

use super::correlation::Layer;
use super::implicit::{convolution, phase};
use crate::conv::problem::Problem;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::plan::{Algorithm, Pass};
use crate::workers::{Room, Scratch, Shared, Workers};
use correlation::Correlation;
use unpad::{Unpad, padded_problem};

pub(super) use choice::pays;
pub(super) use weight_gradient::BackwardWeight;

/// The plan of a convolution or of an input gradient.
#[derive(Debug)]
pub(crate) struct Correlated {
    correlation: Correlation,
    unpad: Option<Unpad>,
}

fn missing() -> Error {
    let reason = "it is for 1, 3 or 5 taps on each axis, more than one of them, with strides and dilations of 1";
    Error::invalid("algorithm", Algorithm::Winograd, reason)
}

/// The plan of a convolution.
///
/// # Errors
/// [`Error::Invalid`] where there are no tiles for its taps.
pub(super) fn forward<T: Element>(
    p: &Problem,
    passes: &mut Vec<Pass>,
) -> Result<(Correlated, Workers)> {
    correlated::<T>(p, convolution(p), None, passes)
}

/// The plan of an input gradient.
///
/// # Errors
/// [`Error::Invalid`] where there are no tiles for its taps.
pub(super) fn backward_input<T: Element>(
    p: &Problem,
    passes: &mut Vec<Pass>,
) -> Result<(Correlated, Workers)> {
    if choice::tiles(p).is_none() {
        return Err(missing());
    }
    let (padded, unpad) = if p.axes.is_zero_padded() {
        (p.clone(), None)
    } else {
        (padded_problem(p)?, Some(Unpad::new(p)))
    };
    let phases = padded.axes.adjoint_phases()?;
    // Strides are 1: there is one phase, in which all inputs are.
    let only = phases.each().next().ok_or_else(missing)?;
    correlated::<T>(p, phase(&padded, only), unpad, passes)
}

fn correlated<T: Element>(
    p: &Problem,
    layer: Layer,
    unpad: Option<Unpad>,
    passes: &mut Vec<Pass>,
) -> Result<(Correlated, Workers)> {
    let tiles = choice::tiles(p).ok_or_else(missing)?;
    let correlation = Correlation::new(layer, p.layout, tiles);
    correlation.explain(passes);
    let mut workers = correlation.workers::<T>();
    if let Some(unpad) = &unpad {
        let room = Room::default().and::<T::Acc>(unpad.line_len());
        workers = workers
            .or(Workers::new(unpad.tasks(), room))
            .and_common(Room::default().and::<T::Acc>(unpad.padded_len()));
        passes.push(Pass::on_cpu("add up", unpad.tasks()).by("padded positions of each input"));
    }
    Ok((Correlated { correlation, unpad }, workers))
}

impl Correlated {
    /// `target = conv(source, weight) + bias`, or its adjoint; all of `target` is overwritten.
    pub fn run<T: Element>(
        &self,
        workers: &Workers,
        source: &[T],
        weight: &[T],
        bias: Option<&[T]>,
        target: &mut [T],
        memory: &mut [u8],
    ) -> Result<()> {
        let (mut common, memory): (Scratch, _) = workers.split(memory);
        let target = Shared::new(target);
        let correlation = &self.correlation;
        let Some(unpad) = &self.unpad else {
            return correlation.run(workers, source, weight, bias, &target, &mut common, memory);
        };
        let padded = common.take::<T::Acc>(unpad.padded_len());
        let shared = Shared::new(&mut *padded);
        correlation.run(workers, source, weight, None, &shared, &mut common, memory)?;
        unpad.run(workers, padded, bias, &target, memory)
    }
}
