//! Matrix products on the CPU: faer's for large matrices, and register tiles whose operands may lie
//! anywhere in memory. Both compute on the calling thread.

mod bfloat;
mod dots;
mod factor;
mod gemm;
mod micro;
#[cfg(target_arch = "x86_64")]
mod pairs;
#[cfg(target_arch = "x86_64")]
mod registers;
mod rows;
mod vector;

pub(crate) use bfloat::{narrow, widen};
pub(crate) use dots::add_dots;
pub(crate) use factor::{Factor, FactorOf};
pub(crate) use gemm::{Dimensions, Matrix, MatrixMut, Old, gemm};
pub(crate) use micro::{
    Entries, Outer, Products, RegisterTiles, Run, Step, Tiles, sum_of_lanes, tile,
};
#[cfg(target_arch = "x86_64")]
pub(crate) use pairs::Pair;
pub(crate) use rows::{Rows, multiply_rows};
pub(crate) use vector::{MAX_LANES, Vector, VectorLoop, Vectorised};
