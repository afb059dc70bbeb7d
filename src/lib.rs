//! convmat
#![warn(missing_docs)]

mod conv;
mod device;
mod element;
mod error;
mod filter;
mod fold;
mod geometry;
#[cfg(feature = "io")]
pub mod io;
mod matrix;
mod memory;
mod stream;
mod tensor;
mod unfold;

pub use conv::Algorithm;
pub use device::{Device, Probe};
pub use element::{Accumulator, DType, Element};
pub use error::{Error, Result};
pub use geometry::{AxisMap, AxisRows, Conv, Geometry, Layout, Padding, PaddingMode};
pub use matrix::{
    Coo, Csc, Csr, CsrBuffers, Index, IndexView, IndexWidth, Indices, MatrixSize, Row,
};
pub use tensor::{Tensor, TensorView, TensorViewMut};
