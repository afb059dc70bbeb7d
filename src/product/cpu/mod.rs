//! Matrix products on the CPU: faer's for large matrices, and register tiles whose operands may lie
//! anywhere in memory. Both compute on the calling thread.

mod dots;
mod gemm;
mod micro;
mod rows;
mod vector;

pub(crate) use dots::add_dots;
pub(crate) use gemm::{Dimensions, Matrix, MatrixMut, Old, gemm};
pub(crate) use micro::{
    Entries, Outer, Products, RegisterTiles, Run, Step, Tiles, sum_of_lanes, tile,
};
pub(crate) use rows::{Rows, multiply_rows};
pub(crate) use vector::{Vector, VectorLoop, Vectorised};
