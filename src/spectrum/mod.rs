//! The singular values of linear operators.

mod bound;
mod bound_gram;
mod circular;
mod circular_kernel;
mod circular_solver;
mod frobenius;
mod symbol;

pub use bound::NormBound;
pub(crate) use bound::norm_bound;
pub use circular::{CircularSpectrum, CircularTriplets};
pub use circular_kernel::TorusKernel;
pub(crate) use circular_solver::Accuracy;
pub(crate) use frobenius::frobenius_norm;

#[cfg(test)]
mod bound_tests;
#[cfg(test)]
mod circular_tests;
#[cfg(test)]
mod symbol_tests;
