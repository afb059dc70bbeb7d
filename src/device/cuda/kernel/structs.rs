//! The argument structs of kernels.

use bytemuck::{Pod, Zeroable};

use super::arguments::{AxesArguments, Divisor};
use super::pointer::{Arguments, Pointer};

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct UnfoldArgs {
    pub input: Pointer,
    pub patches: Pointer,
    pub count: i64,
    pub channels: i64,
    pub per_group: i64,
    pub axes: AxesArguments,
    pub chunks: Divisor,
    pub positions: Divisor,
    pub groups: Divisor,
    pub plane: Divisor,
    pub line: Divisor,
}

impl Arguments for UnfoldArgs {
    const POINTERS: &'static [usize] = &[0, 8];
    const CHECK: &'static str = "";
}
