//! Addresses and numbers in the arguments of kernels that are filled in when a program runs.

use bytemuck::{Pod, Zeroable};

/// A pointer in a kernel's arguments, 8 bytes as the kernel has it. While a program is made it names an
/// operand of the program, or its workspace, and the distance from there; a run puts the address in place.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct Pointer(u64);

/// Bits of a distance, and of an address: those of today's GPUs and processors have 57 at most, of which
/// the topmost is the system's.
const DISTANCE_BITS: u32 = 56;

impl Pointer {
    pub(crate) const NULL: Pointer = Pointer(0);

    /// A known address.
    pub(crate) fn at(address: u64) -> Self {
        debug_assert!(address >> DISTANCE_BITS == 0);
        Pointer(address)
    }

    /// The first byte of what a run puts in this slot.
    pub(in crate::device::cuda) fn slot(slot: u8) -> Self {
        Pointer((u64::from(slot) + 1) << DISTANCE_BITS)
    }

    /// So many bytes further on.
    pub(crate) fn offset(self, bytes: usize) -> Self {
        Pointer(self.0 + bytes as u64)
    }

    /// How many bytes it lies behind its slot's first, or the address if that is known.
    pub(crate) fn distance(self) -> u64 {
        self.0 & ((1 << DISTANCE_BITS) - 1)
    }

    /// The slot, if the address is not known yet.
    pub(in crate::device::cuda) fn unresolved(self) -> Option<usize> {
        (self.0 >> DISTANCE_BITS).checked_sub(1).map(|slot| slot as usize)
    }

    /// The address, given those of the slots.
    pub(in crate::device::cuda) fn resolve(self, slots: &[u64]) -> u64 {
        match self.unresolved() {
            Some(slot) => slots[slot] + self.distance(),
            None => self.0,
        }
    }
}

/// A number in a kernel's arguments that is another in every run, an `f64` as the kernel has it. While a
/// program is made it names the slot of the number's bits, as pointers name those of addresses.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct PerRun(Pointer);

impl PerRun {
    /// What a run puts in this slot.
    pub(in crate::device::cuda) fn slot(slot: u8) -> Self {
        PerRun(Pointer::slot(slot))
    }
}

/// The argument struct of a kernel, as build.rs makes it of the kernel's own declaration.
pub(crate) trait Arguments: Pod {
    /// Where its pointers are, and the numbers that each run gives, in bytes from its start.
    const OPEN: &'static [usize];
    /// C++ that fails to compile where the kernel's struct has another layout.
    const CHECK: &'static str;
}
