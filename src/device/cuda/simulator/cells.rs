//! What the sanitizer knows of each byte of device memory: kernels' accesses are noted by
//! `kernels/simulator/sanitizer.h`, those of the host and of copies here.

use std::ptr;

use super::memory::Memory;

/// What the sanitizer knows of a byte; all zeros of one that nothing was done to. Mirrors `Cell` in
/// `kernels/simulator/profile.h`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Cell {
    /// When it was written: 0 if it was not.
    written: u32,
    read: u32,
    constant: u32,
    writer: u16,
    reader: u16,
}

/// Earlier than all launches.
const BEFORE: u32 = 1;

impl Cell {
    /// Of a byte that the host has written.
    const WRITTEN: Cell = Cell { written: BEFORE, read: 0, constant: 0, writer: 0, reader: 0 };
}

/// A cell for each byte of an allocation.
#[derive(Debug)]
pub(super) struct Cells {
    start: *mut Cell,
    len: usize,
}

// SAFETY: plain memory, which launches and the calls of the queue use one at a time.
unsafe impl Send for Cells {}

impl Cells {
    pub(super) fn new(len: usize) -> Option<Cells> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_NORESERVE;
        let bytes = len.checked_mul(size_of::<Cell>())?;
        // SAFETY: a new mapping, placed by the system and all zeros.
        let at = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(ptr::null_mut(), bytes, access, flags, -1, 0)
        };
        (at != libc::MAP_FAILED).then_some(Cells { start: at.cast(), len })
    }

    pub(super) fn address(&self) -> *const Cell {
        self.start
    }

    fn all(&mut self) -> &mut [Cell] {
        // SAFETY: as mapped by new(); any bytes are a cell.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl Drop for Cells {
    fn drop(&mut self) {
        // SAFETY: as mapped by new(), and nothing refers to it any more.
        unsafe { libc::munmap(self.start.cast(), self.len * size_of::<Cell>()) };
    }
}

impl Memory {
    /// Cells of bytes of one allocation, if there are any.
    fn cells<R>(
        &self,
        address: u64,
        bytes: usize,
        use_of: impl FnOnce(&mut [Cell]) -> R,
    ) -> Option<R> {
        if bytes == 0 || !self.kind.cells {
            return None;
        }
        let mut tables = self.tables();
        let (start, allocation) = tables.live.range_mut(..=address).next_back()?;
        let from = (address - start) as usize;
        let cells = allocation.cells.as_mut()?.all();
        cells.get_mut(from..from + bytes).map(use_of)
    }

    /// Says that bytes of one allocation have been written by other than kernels.
    pub(super) fn mark_written(&self, address: u64, bytes: usize) {
        self.cells(address, bytes, |cells| cells.fill(Cell::WRITTEN));
    }

    /// Copies what is known of whether bytes were written.
    pub(super) fn copy_marks(&self, from: u64, to: u64, bytes: usize) {
        let written = |cells: &mut [Cell]| -> Vec<bool> {
            cells.iter().map(|cell| cell.written != 0).collect()
        };
        let Some(written) = self.cells(from, bytes, written) else { return };
        self.cells(to, bytes, |cells| {
            for (cell, written) in cells.iter_mut().zip(written) {
                *cell = Cell { written: if written { BEFORE } else { 0 }, ..Cell::WRITTEN };
            }
        });
    }

    /// An error unless all bytes, of one allocation, were written.
    pub(super) fn check_written(&self, address: u64, bytes: usize) -> Result<(), String> {
        let first = self.cells(address, bytes, |cells| cells.iter().position(|of| of.written == 0));
        match first.flatten() {
            Some(at) => {
                let place = self.locate(address + at as u64);
                Err(format!("byte {at} of {bytes} was never written, {place}"))
            }
            None => Ok(()),
        }
    }

    /// Makes all that was done to memory older than all launches.
    pub(super) fn age(&self) {
        for allocation in self.tables().live.values_mut() {
            for cell in allocation.cells.iter_mut().flat_map(Cells::all) {
                *cell = Cell { written: cell.written.min(BEFORE), ..Cell::WRITTEN };
            }
        }
    }
}
