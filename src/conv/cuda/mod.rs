//! Convolution on CUDA.

pub(super) mod implicit;
