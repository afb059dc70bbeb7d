//! Matrix products on the CPU: faer's for large matrices, and register tiles whose operands may lie
//! anywhere in memory. Both compute on the calling thread.

mod dots;
mod gemm;
mod micro;

pub(crate) use dots::add_dots;
pub(crate) use gemm::{Dimensions, Matrix, MatrixMut, Old, gemm};
pub(crate) use micro::{
    Entries, Outer, Products, RegisterTiles, Run, Step, Tiles, sum_of_lanes, tile,
};
