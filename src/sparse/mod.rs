//! Convolution with sparse weights: of the weight only some entries are stored, and multiplied.
//!
//! | file | holds |
//! |---|---|
//! | `weight.rs` | [`SparseWeight`]: a pattern and its values |
//! | `source.rs` | weights made from sparse matrices |
//! | `prune.rs` | weights made from dense ones: which entries are kept |
//! | `file.rs` | weights in files of SciPy's and PyTorch's matrices |
//! | `problem.rs`, `order.rs` | a call with every size checked; entries in the orders that loops take them in |
//! | `forward.rs`, `adjoint.rs`, `gradient.rs` | the calls and their plans, which `run.rs` runs |
//! | `matrix.rs` | the convolution as a matrix |
//! | `cpu`, `cuda.rs` | how they are computed |

mod adjoint;
mod cpu;
#[cfg(gpu)]
mod cuda;
#[cfg(feature = "io")]
mod file;
mod forward;
mod gradient;
mod matrix;
mod order;
mod problem;
mod prune;
mod run;
mod source;
mod weight;

pub use adjoint::{SparseBackwardInputPlan, SparseTransposedPlan};
pub use forward::SparseForwardPlan;
pub use gradient::SparseBackwardWeightPlan;
pub use prune::Pruning;
pub use weight::SparseWeight;
