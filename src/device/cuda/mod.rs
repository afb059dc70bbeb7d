//! CUDA devices.

#![allow(dead_code)]

mod driver;
mod kernels;

#[cfg(feature = "cuda")]
mod blas;
#[cfg(feature = "cuda")]
mod interop;
#[cfg(feature = "cuda")]
mod nvrtc;
#[cfg(feature = "cuda")]
mod probe;
#[cfg(feature = "cuda")]
mod queue;
#[cfg(feature = "cuda")]
mod runtime;
#[cfg(all(test, feature = "cuda"))]
mod tests;
