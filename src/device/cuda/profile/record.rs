//! What the kernels' side writes down: mirrors `kernels/simulator/profile.h`.

/// What a thread did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(dead_code, reason = "all but the first are made by the kernels' side")]
pub(in crate::device::cuda) enum Kind {
    Load,
    Store,
    Atomic,
    /// Asynchronous copies: what they read, through the L1 cache or past it, and what they write.
    CopyLoad,
    CopyLoadPastL1,
    CopyStore,
    /// A row of 16 bytes that a lane gives to `load_matrices`.
    MatrixRow,
    /// A barrier of the block.
    Meeting,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(in crate::device::cuda) struct Record {
    pub address: u64,
    pub site: u32,
    /// With [`SHARED`] if it is to shared memory.
    pub thread: u16,
    pub bytes: u8,
    pub kind: Kind,
}

/// Marks accesses to shared memory.
pub(super) const SHARED: u16 = 1 << 15;

impl Record {
    pub(super) fn is_shared(&self) -> bool {
        self.thread & SHARED != 0
    }

    pub(super) fn thread(&self) -> usize {
        usize::from(self.thread & !SHARED)
    }
}

/// Positions in the counts of a block.
pub(super) const FUSED_F32: usize = 0;
pub(super) const FUSED_F64: usize = 1;
pub(super) const MMA_F16: usize = 2;
pub(super) const MMA_BF16: usize = 3;
pub(super) const MMA_TF32: usize = 4;
pub(super) const MMA_F64: usize = 5;
pub(super) const EXCHANGES: usize = 6;
pub(in crate::device::cuda) const COUNTS: usize = 8;

/// All that was written down of a block.
#[derive(Debug, Default)]
pub(in crate::device::cuda) struct Recording {
    pub records: Vec<Record>,
    pub counts: [u64; COUNTS],
}
