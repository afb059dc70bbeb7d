//! Matrix products: what is multiplied, how it is cut into tiles, and by what.

#[cfg(gpu)]
pub(crate) mod cuda;
