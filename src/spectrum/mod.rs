//! The singular values of linear operators.
