//! K-FAC and its relatives: curvature of one layer's loss as Kronecker products, for convolutions and
//! transposed convolutions of any geometry, group by group.
//!
//! | file | holds |
//! |---|---|
//! | `layer.rs` | the layer, and its gradient as matrices |
//! | `options.rs`, `convention.rs`, `damping.rs` | what a caller wishes |
//! | `state.rs` | what is kept, and the schedule |
//! | `average.rs` | averages over batches |
//! | `refresh.rs` | what is computed of averages |
//! | `precondition.rs` | gradients, preconditioned |
//! | `moment.rs` | second moments of the examples' gradients |
//! | `inverse.rs`, `lowrank.rs`, `eigen.rs`, `matrix.rs` | factors on the host |
//! | `file.rs` | a state as a file |

mod average;
mod convention;
mod damping;
mod eigen;
#[cfg(feature = "io")]
mod file;
mod inverse;
mod layer;
mod lowrank;
mod matrix;
mod moment;
mod options;
mod precondition;
mod refresh;
mod state;

pub use convention::{Convention, FactorScales};
pub use damping::LevenbergMarquardt;
pub use eigen::FactorEigen;
pub use layer::KfacLayer;
pub use lowrank::LowRankBound;
pub use options::{KfacMethod, KfacOptions};
pub use state::KfacState;
