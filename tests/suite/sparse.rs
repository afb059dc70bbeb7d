//! Sparse weights: how they are made, and that convolving with them is convolving with the dense weight that
//! has zeros where nothing is stored.

mod matrices;
mod operations;
mod plans;
mod weights;
