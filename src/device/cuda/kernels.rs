//! The kernel sources, embedded by `build.rs`: files of `kernels/` by their plain names.

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
