//! The structs that kernels and the host share, made by build.rs of their declarations in `kernels/`.

// A kernel's arguments are there whether or not this build launches it.
#![allow(dead_code)]

include!(concat!(env!("OUT_DIR"), "/structs.rs"));
