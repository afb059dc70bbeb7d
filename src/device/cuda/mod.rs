//! Kernels: on CUDA GPUs, and in the simulator.

mod driver;
mod kernels;
#[cfg(all(feature = "simulator", unix))]
mod simulator;
