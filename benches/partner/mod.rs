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

use convmat::{DType, Element, PlanOptions, with_axes, with_dtype};

use crate::shapes::Shape;
use covariance::Covariance;
use examples::{Moment, Norms};
use job::{Job, Operands, Result};
use matrix::Matrix;
use patches::{Fold, Unfold};
use products::{Backward, Forward};
use spectra::{LARGEST, LOW_RANK, LOW_RANK_REFERENCE, Question, Spectra};

/// The operation of this name on the operands in `folder`, whose elements are of this type.
pub fn prepare(op: &str, shape: &Shape, dtype: DType, folder: &Path) -> Result<Box<dyn Job>> {
    let operands = Operands { shape, folder };
    match op {
        "unfold" | "fold" | "conv" | "conv-winograd" | "backward" | "backward-winograd" => {
            with_dtype!(dtype, T => of_any_type::<T>(op, &operands))
        }
        _ if dtype == DType::F32 => of_f32(op, &operands),
        _ => Err(format!("{op:?} is of f32 only").into()),
    }
}

fn of_any_type<T: Element>(op: &str, operands: &Operands) -> Result<Box<dyn Job>> {
    let spatial = operands.shape.spatial;
    match op {
        "unfold" => with_axes!(spatial, D => boxed(Unfold::<T, D>::new(operands)?)),
        "fold" => with_axes!(spatial, D => boxed(Fold::<T, D>::new(operands)?)),
        "conv" | "conv-winograd" => {
            let options = PlanOptions::new().allow_winograd(op == "conv-winograd");
            with_axes!(spatial, D => boxed(Forward::<T, D>::new(operands, options)?))
        }
        _ => {
            let options = PlanOptions::new().allow_winograd(op == "backward-winograd");
            with_axes!(spatial, D => boxed(Backward::<T, D>::new(operands, options)?))
        }
    }
}

fn of_f32(op: &str, operands: &Operands) -> Result<Box<dyn Job>> {
    let shape = operands.shape;
    let spectra =
        |question| with_axes!(shape.spatial, D => boxed(Spectra::<D>::new(operands, question)?));
    match op {
        "matrix" => with_axes!(shape.spatial, D => boxed(Matrix::<D>::new(operands)?)),
        "covariance" => with_axes!(shape.spatial, D => boxed(Covariance::new::<D>(operands)?)),
        "ghost-norms" => with_axes!(shape.spatial, D => boxed(Norms::new::<D>(operands)?)),
        "lambda" => with_axes!(shape.spatial, D => boxed(Moment::new::<D>(operands)?)),
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
