//! Convolution on CUDA: one file per algorithm.

mod bias;

pub(super) use bias::backward_bias;
