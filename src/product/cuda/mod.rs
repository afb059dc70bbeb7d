//! Matrix products on CUDA: the crate's own kernels, and cuBLAS where it is found.

mod gemm;
mod symmetric;
mod tiles;

pub(crate) use gemm::{multiply, multiply_in_f64};
pub(crate) use symmetric::{SymmetricProduct, Tiles};
pub(crate) use tiles::{Engine, Operands, Product};
