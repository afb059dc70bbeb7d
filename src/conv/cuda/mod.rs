//! Convolution on CUDA: one file per algorithm.

mod bias;
mod implicit;

pub(super) use bias::backward_bias;
