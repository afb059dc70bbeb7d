//! What simulators can be asked for.

use super::profile::{Profiling, Target};

/// A simulated GPU, where it is not as by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Simulation {
    /// The order in which threads run between barriers follows from this number. By default from
    /// `CONVMAT_SIMULATOR_SEED`, else 0.
    pub seed: Option<u64>,
    /// Memory of the device, in bytes. By default from `CONVMAT_SIMULATOR_MEMORY`, else the host's.
    pub memory: Option<u64>,
    /// What the GPU is like. A profile's is its target.
    pub machine: Machine,
    /// Whether kernels are compiled for each layer's kernel extents, strides, dilations and padding mode,
    /// as on GPUs. By default these are arguments, as compiling takes longer than most simulated work.
    pub specialise: bool,
    /// Whether kernels use 64-bit indices even where 32 bits suffice.
    pub wide_indices: bool,
    /// Whether there is something in cuBLAS's place, which multiplies matrices by cuBLAS's conventions and
    /// checks sizes, strides and memory. By default kernels of the crate do.
    pub blas: bool,
    /// Looks for what lives too short and for races: see [`crate::Device::simulator_with`]. By default as
    /// `CONVMAT_SIMULATOR_SANITIZE` says. Takes GCC, and ten times as long or more.
    pub sanitizer: bool,
    /// Counts what every launch costs on a GPU: see [`crate::Device::take_profile`]. Takes GCC. Not with
    /// `sanitizer`.
    pub profiling: Option<Profiling>,
}

/// What a simulated GPU is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Compute capability as 10·major + minor.
    pub capability: u32,
    /// Number of multiprocessors, which the sizes of launches follow.
    pub multiprocessors: u32,
    /// Shared memory that the arrays of a block may take together, in bytes.
    pub shared_bytes: u32,
}

impl Machine {
    /// What launches see of this GPU.
    pub fn of(target: &Target) -> Self {
        Machine {
            capability: target.capability,
            multiprocessors: target.multiprocessors,
            ..Machine::default()
        }
    }
}

/// Of capability 8.0, the oldest with all that kernels use; 4 multiprocessors, so that launches sized by their
/// number walk through their data in several steps; 48 KiB of shared memory, which is what arrays of fixed size
/// may take on any GPU.
impl Default for Machine {
    fn default() -> Self {
        Machine { capability: 80, multiprocessors: 4, shared_bytes: 48 << 10 }
    }
}
