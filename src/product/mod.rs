//! Matrix products: what is multiplied, how it is cut into tiles, and by what.

pub(crate) mod cpu;
#[cfg(gpu)]
pub(crate) mod cuda;
