//! What the side-by-side comparison runs on this crate's side.

mod covariance;
mod examples;
pub mod job;
mod matrix;
mod patches;
mod products;
pub mod roofline;
mod spectra;

use std::path::Path;

use convmat::{PlanOptions, with_axes};

use crate::shapes::Shape;
use covariance::Covariance;
use examples::{Moment, Norms};
use job::{Job, Operands, Result};
use matrix::Matrix;
use patches::{Fold, Unfold};
use products::{Backward, Forward};
use spectra::{LARGEST, LOW_RANK, LOW_RANK_REFERENCE, Question, Spectra};

/// The operation of this name on the operands in `folder`.
pub fn prepare(op: &str, shape: &Shape, folder: &Path) -> Result<Box<dyn Job>> {
    let operands = Operands { shape, folder };
    let spectra =
        |question| with_axes!(shape.spatial, D => boxed(Spectra::<D>::new(&operands, question)?));
    match op {
        "unfold" => with_axes!(shape.spatial, D => boxed(Unfold::<D>::new(&operands)?)),
        "fold" => with_axes!(shape.spatial, D => boxed(Fold::<D>::new(&operands)?)),
        "conv" | "conv-winograd" => {
            let options = PlanOptions::new().allow_winograd(op == "conv-winograd");
            with_axes!(shape.spatial, D => boxed(Forward::<D>::new(&operands, options)?))
        }
        "backward" | "backward-winograd" => {
            let options = PlanOptions::new().allow_winograd(op == "backward-winograd");
            with_axes!(shape.spatial, D => boxed(Backward::<D>::new(&operands, options)?))
        }
        "matrix" => with_axes!(shape.spatial, D => boxed(Matrix::<D>::new(&operands)?)),
        "covariance" => with_axes!(shape.spatial, D => boxed(Covariance::new::<D>(&operands)?)),
        "ghost-norms" => with_axes!(shape.spatial, D => boxed(Norms::new::<D>(&operands)?)),
        "lambda" => with_axes!(shape.spatial, D => boxed(Moment::new::<D>(&operands)?)),
        "svd" => spectra(LARGEST),
        "svd_lowrank" => spectra(LOW_RANK),
        "svd_reference" => spectra(LOW_RANK_REFERENCE),
        "circular" => spectra(Question::Circular),
        "norm" => spectra(Question::Norm),
        _ => Err(format!("no operation is called {op:?}").into()),
    }
}

fn boxed(job: impl Job + 'static) -> Result<Box<dyn Job>> {
    Ok(Box::new(job))
}
