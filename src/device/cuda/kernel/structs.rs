//! The structs that kernels and the host share, made by build.rs of their declarations in `kernels/`.

#![allow(
    dead_code,
    reason = "a kernel's arguments are there whether or not this build launches it"
)]

include!(concat!(env!("OUT_DIR"), "/structs.rs"));
