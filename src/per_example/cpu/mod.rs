//! Gradients of single examples on the CPU.
//!
//! Everything is computed on accumulators: operands of other types are converted some examples at a time.
//! Every task writes elements, or parts of sums, of its own, and sums are added up in one order: results do
//! not depend on the number of threads.
//!
//! | file | holds |
//! |---|---|
//! | `source.rs` | the operands as accumulators |
//! | `tiles.rs` | pieces of gradients: patches gathered tile by tile, and products |
//! | `gradients.rs` | gradients as they are |
//! | `norms.rs`, `gram.rs` | their norms: of the pieces, or from Gram matrices of positions |
//! | `clipped.rs` | their sum, each scaled to a norm of at most a limit |
//! | `moment.rs`, `positions.rs`, `rotation.rs` | squares of rotated gradients: gradients or positions rotated |
//! | `winograd.rs` | patches of 3×3 layers rotated in fewer products |

mod clipped;
mod gradients;
mod gram;
mod moment;
mod norms;
mod positions;
mod rotation;
mod source;
#[cfg(test)]
mod tests;
mod tiles;
mod winograd;

pub(crate) use clipped::Clipped;
pub(crate) use gradients::Gradients;
pub(crate) use moment::Moment;
pub(crate) use norms::Norms;
pub(crate) use rotation::Rotations;
pub(crate) use source::Operands;
