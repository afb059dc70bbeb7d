//! What the side-by-side comparison runs on this crate's side.

pub mod job;
mod matrix;
mod patches;
mod products;
pub mod roofline;

use std::path::Path;

use convmat::with_axes;

use crate::shapes::Shape;
use job::{Job, Operands, Result};
use matrix::Matrix;
use patches::{Fold, Unfold};
use products::{Backward, Forward};

/// The operation of this name on the operands in `folder`.
pub fn prepare(op: &str, shape: &Shape, folder: &Path) -> Result<Box<dyn Job>> {
    let operands = Operands { shape, folder };
    match op {
        "unfold" => with_axes!(shape.spatial, D => boxed(Unfold::<D>::new(&operands)?)),
        "fold" => with_axes!(shape.spatial, D => boxed(Fold::<D>::new(&operands)?)),
        "conv" => with_axes!(shape.spatial, D => boxed(Forward::<D>::new(&operands)?)),
        "backward" => with_axes!(shape.spatial, D => boxed(Backward::<D>::new(&operands)?)),
        "matrix" => with_axes!(shape.spatial, D => boxed(Matrix::<D>::new(&operands)?)),
        _ => Err(format!("no operation is called {op:?}").into()),
    }
}

fn boxed(job: impl Job + 'static) -> Result<Box<dyn Job>> {
    Ok(Box::new(job))
}
