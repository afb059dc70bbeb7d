//! The matrix of a convolution, and sparse matrices to hold it.
//!
//! `assembly` writes the matrix, `product` multiplies with it. [`Csr`] is the result; it converts to
//! [`Csc`], [`Coo`], a dense tensor, a file that SciPy reads and, with the feature `sprs`, that crate's
//! matrices.

mod assembly;
mod canonical;
mod coo;
mod csc;
mod csr;
#[cfg(gpu)]
pub(crate) mod cuda;
mod index;
#[cfg(feature = "io")]
pub(crate) mod npz;
mod product;
mod size;
#[cfg(feature = "sprs")]
mod sprs;
mod storage;
mod target;
mod transpose;

pub use assembly::MatrixPlan;
pub use coo::Coo;
pub use csc::Csc;
pub use csr::{Csr, Row};
pub use index::{Index, IndexView, Indices};
pub use product::{Product, ProductPlan};
pub use size::MatrixSize;
#[cfg(gpu)]
pub(crate) use storage::Extent;
pub use target::{CsrBuffers, CsrTarget};
