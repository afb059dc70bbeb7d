//! From a kernel's description to something that can be launched: the sources, what is defined in front of
//! them, the arguments, the compiler and its cache.

pub(super) mod arguments;
mod cache;
pub(super) mod compiler;
pub(super) mod pointer;
pub(super) mod sources;
pub(super) mod spec;
pub(crate) mod structs;
