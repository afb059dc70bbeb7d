//! Patches: on the CPU, pieces of the patch matrix that are never all there at once, and the way back
//! onto the input.
//!
//! | file | holds |
//! |---|---|
//! | `division.rs` | how a result is divided among threads, where tasks copy what they read |
//! | `entries.rs` | consecutive entries of a patch: rows of the patch matrix that are made together |
//! | `slab.rs` | what a box of outputs reads of a plane, unfolded on the last axis only |
//! | `gather.rs` | entries × outputs of a box, copied out of slabs, or images if channels are last |
//! | `landing.rs` | where the outputs of a box land in a box of inputs |
//! | `padded.rs` | what a box of whole lines of outputs reads of images, channels last, copied with its padding |
//! | `pieces.rs` | ranges cut into pieces, and tasks numbered over several of them |
//! | `cuda.rs` | how CUDA kernels are told of patches, which they read where they lie |

#[cfg(gpu)]
pub(crate) mod cuda;
pub(crate) mod division;
pub(crate) mod entries;
pub(crate) mod gather;
pub(crate) mod landing;
pub(crate) mod padded;
pub(crate) mod pieces;
pub(crate) mod slab;

use crate::geometry::{Axes, Layout};

/// Images that patches are taken of.
#[derive(Clone, Debug)]
pub(crate) struct Images {
    pub layout: Layout,
    pub axes: Axes,
    /// Channels over all groups.
    pub channels: usize,
    pub groups: usize,
}

impl Images {
    pub fn channels_per_group(&self) -> usize {
        self.channels / self.groups
    }

    /// Elements of an image.
    pub fn len(&self) -> usize {
        self.channels * self.axes.inputs()
    }
}
