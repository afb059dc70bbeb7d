//! Layers, matrices and closures as linear operators.

pub(crate) mod layer;
