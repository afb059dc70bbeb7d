//! The singular values of linear operators.

mod bound;
mod bound_gram;
mod circular;
mod circular_kernel;
mod circular_solver;
mod frobenius;
mod symbol;

#[cfg(test)]
mod bound_tests;
#[cfg(test)]
mod circular_tests;
#[cfg(test)]
mod symbol_tests;
