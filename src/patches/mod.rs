//! Patches as other rooms use them: pieces of the patch matrix on the CPU that are never all there at once.

pub(crate) mod slab;
