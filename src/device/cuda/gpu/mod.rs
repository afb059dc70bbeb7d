//! CUDA GPUs, through the libraries that come with a driver: which are there, the driver, NVRTC, cuBLAS,
//! and cudarc's memory in and out.

mod blas;
pub(crate) mod graph;
pub(crate) mod interop;
pub(super) mod libraries;
mod module;
pub(super) mod nvrtc;
mod pool;
pub(in crate::device) mod probe;
mod queue;
pub(crate) mod runtime;
#[cfg(test)]
mod tests;
