//! Device memory of the simulator: every allocation lies at the end of a mapping of its own, between
//! inaccessible pages, so that an access past its end faults. What lies before it in its first page, and
//! the few bytes after it that alignment leaves, is looked at after each launch.

use std::collections::{BTreeMap, HashMap};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::cells::{Cell, Cells};

/// What allocations are aligned to: the longest load of a kernel. CUDA's own 256 bytes would leave more
/// between an allocation and the page that guards it.
pub(super) const ALIGNMENT: usize = 16;
/// What they are aligned to where sectors and lines are counted: as on a device.
pub(super) const DEVICE_ALIGNMENT: usize = 256;
/// Memory that nothing was written to reads as NaN, or -1.
const POISON: u8 = 0xff;
/// Freed mappings are kept for later up to this size.
const MOST_IDLE_BYTES: usize = 256 << 20;

#[derive(Debug)]
pub(super) struct Memory {
    limit: u64,
    pub(super) kind: MemoryKind,
    tables: Mutex<Tables>,
}

/// What memory is like, beyond its size.
#[derive(Clone, Copy, Debug)]
pub(super) struct MemoryKind {
    /// What allocations are aligned to, in bytes.
    pub alignment: usize,
    /// Whether there is a cell for each byte, for the sanitizer.
    pub cells: bool,
    /// Whether memory takes none of the host's before it is written to; it then begins as zeros.
    pub sparse: bool,
}

#[derive(Debug, Default)]
pub(super) struct Tables {
    used: u64,
    /// By address.
    pub(super) live: BTreeMap<u64, Allocation>,
    /// By the size of their accessible part.
    idle: HashMap<usize, Vec<Mapping>>,
    idle_bytes: usize,
}

#[derive(Debug)]
pub(super) struct Allocation {
    bytes: usize,
    alignment: usize,
    mapping: Mapping,
    pub(super) cells: Option<Cells>,
}

/// Where an allocation and its cells lie. Mirrors `Allocation` in `kernels/simulator/profile.h`.
#[derive(Clone, Debug)]
#[repr(C)]
pub(super) struct Place {
    pages: u64,
    pub start: u64,
    pub end: u64,
    pages_end: u64,
    cells: *const Cell,
}

// SAFETY: an address, which only the sanitizer's launches use.
unsafe impl Sync for Place {}

/// Accessible pages between two that are not.
#[derive(Debug)]
struct Mapping {
    /// Of the accessible part.
    start: usize,
    bytes: usize,
}

fn page() -> usize {
    // SAFETY: asks for a constant of the system.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// Main memory of the host, in bytes.
pub(super) fn of_host() -> Result<u64, String> {
    // SAFETY: asks for a constant of the system.
    let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
    match u64::try_from(pages) {
        Ok(pages) => Ok(pages * page() as u64),
        Err(_) => Err("the system does not say how much memory it has".into()),
    }
}

impl Mapping {
    fn new(bytes: usize) -> Option<Mapping> {
        let whole = bytes.checked_add(2 * page())?;
        // SAFETY: a new mapping, placed by the system.
        let at = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_NORESERVE;
            libc::mmap(ptr::null_mut(), whole, libc::PROT_NONE, flags, -1, 0)
        };
        if at == libc::MAP_FAILED {
            return None;
        }
        let mapping = Mapping { start: at as usize + page(), bytes };
        mapping.open(true).then_some(mapping)
    }

    /// Makes it accessible, or inaccessible; whether the system did.
    fn open(&self, open: bool) -> bool {
        let protection = if open { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_NONE };
        // SAFETY: the pages are this mapping's own.
        unsafe { libc::mprotect(self.start as *mut _, self.bytes, protection) == 0 }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: as mapped by new(), and no allocation lies in it any more.
        unsafe { libc::munmap((self.start - page()) as *mut _, self.bytes + 2 * page()) };
    }
}

impl Allocation {
    fn address(&self) -> usize {
        self.mapping.start + self.mapping.bytes - self.bytes.next_multiple_of(self.alignment)
    }

    /// Overwrites what lies around it with poison, if it is anything else: whether it was.
    fn heal(&self) -> bool {
        let address = self.address();
        let end = address + self.bytes;
        let before = self.mapping.start..address;
        let after = end..self.mapping.start + self.mapping.bytes;
        let mut damaged = false;
        for range in [before, after].into_iter().filter(|range| !range.is_empty()) {
            let at = range.start as *mut u8;
            // SAFETY: the range is accessible and ours, and outside what kernels may touch. It is all
            // poison if the first byte is and every other equals the one before.
            unsafe {
                let rest = range.len() - 1;
                if *at != POISON || libc::memcmp(at.cast(), at.add(1).cast(), rest) != 0 {
                    damaged = true;
                    ptr::write_bytes(at, POISON, range.len());
                }
            }
        }
        damaged
    }
}

impl Memory {
    pub(super) fn new(limit: u64, kind: MemoryKind) -> Memory {
        Memory { limit, kind, tables: Mutex::default() }
    }

    /// Where allocations lie, ascending.
    pub(super) fn places(&self) -> Vec<Place> {
        let place = |(&start, of): (&u64, &Allocation)| Place {
            pages: of.mapping.start as u64,
            start,
            end: start + of.bytes as u64,
            pages_end: (of.mapping.start + of.mapping.bytes) as u64,
            cells: of.cells.as_ref().map_or(ptr::null(), Cells::address),
        };
        self.tables().live.iter().map(place).collect()
    }

    pub(super) fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn free_and_total(&self) -> (u64, u64) {
        (self.limit - self.tables().used, self.limit)
    }

    pub(super) fn allocate(&self, bytes: usize) -> Option<u64> {
        let rounded = bytes.max(1).checked_next_multiple_of(page())?;
        let mut tables = self.tables();
        let used = tables.used.checked_add(bytes as u64)?;
        if used > self.limit {
            return None;
        }
        let kept = tables.idle.get_mut(&rounded).filter(|_| !self.kind.sparse).and_then(Vec::pop);
        if kept.is_some() {
            tables.idle_bytes -= rounded;
        }
        let mapping = match kept.filter(|mapping| mapping.open(true)) {
            Some(mapping) => mapping,
            None => match Mapping::new(rounded) {
                Some(mapping) => mapping,
                None => {
                    tables.drop_idle();
                    Mapping::new(rounded)?
                }
            },
        };
        if !self.kind.sparse {
            // SAFETY: the mapping is accessible, and nobody has its address yet.
            unsafe { ptr::write_bytes(mapping.start as *mut u8, POISON, mapping.bytes) };
        }
        let cells = if self.kind.cells { Some(Cells::new(bytes.max(1))?) } else { None };
        let allocation = Allocation { bytes, alignment: self.kind.alignment, mapping, cells };
        if self.kind.sparse {
            allocation.heal();
        }
        let address = allocation.address() as u64;
        tables.live.insert(address, allocation);
        tables.used = used;
        Some(address)
    }

    /// An error says why this memory cannot be released; it stays then.
    pub(super) fn free(&self, address: u64, bytes: usize) -> Result<(), String> {
        let mut tables = self.tables();
        match tables.live.get(&address) {
            Some(allocation) if allocation.bytes == bytes => {}
            Some(allocation) => {
                let found = allocation.bytes;
                return Err(format!("{bytes} bytes at {address:#x}, where {found} were allocated"));
            }
            None => return Err(format!("nothing is allocated at {address:#x}")),
        }
        let Some(Allocation { mapping, .. }) = tables.live.remove(&address) else { return Ok(()) };
        tables.used -= bytes as u64;
        if !self.kind.sparse
            && tables.idle_bytes + mapping.bytes <= MOST_IDLE_BYTES
            && mapping.open(false)
        {
            tables.idle_bytes += mapping.bytes;
            tables.idle.entry(mapping.bytes).or_default().push(mapping);
        }
        Ok(())
    }

    pub(super) fn trim(&self) {
        self.tables().drop_idle();
    }

    /// An error unless the range lies inside one allocation.
    pub(super) fn check(&self, address: u64, bytes: usize) -> Result<(), String> {
        let inside = match self.tables().live.range(..=address).next_back() {
            Some((start, allocation)) => {
                let from = address - start;
                from.checked_add(bytes as u64).is_some_and(|end| end <= allocation.bytes as u64)
            }
            None => false,
        };
        if inside || bytes == 0 {
            return Ok(());
        }
        Err(format!("{bytes} bytes from {address:#x} on, {}", self.locate(address)))
    }

    /// Sets bytes of one allocation to zero.
    pub(super) fn clear(&self, address: u64, bytes: usize) {
        let end = address as usize + bytes;
        let pages = (address as usize).next_multiple_of(page())..end / page() * page();
        if !self.kind.sparse || pages.is_empty() {
            // SAFETY: check() has seen that this is live memory of ours.
            unsafe { ptr::write_bytes(address as *mut u8, 0, bytes) };
            return;
        }
        // SAFETY: as above. Whole pages are given back to the system, and are zeros then.
        unsafe {
            ptr::write_bytes(address as *mut u8, 0, pages.start - address as usize);
            libc::madvise(pages.start as *mut _, pages.len(), libc::MADV_DONTNEED);
            ptr::write_bytes(pages.end as *mut u8, 0, end - pages.end);
        }
    }

    /// Where an address lies, seen from the nearest allocation.
    pub(super) fn locate(&self, address: u64) -> String {
        const NEAR: u64 = 1 << 20;
        let tables = self.tables();
        let before = tables.live.range(..=address).next_back().map(|(start, allocation)| {
            let from = address - start;
            (from.saturating_sub(allocation.bytes as u64), "from the start", from, allocation.bytes)
        });
        let after = tables.live.range(address..).next().map(|(start, allocation)| {
            (start - address, "before the start", start - address, allocation.bytes)
        });
        match before.into_iter().chain(after).min_by_key(|&(distance, ..)| distance) {
            Some((distance, side, from, bytes)) if distance <= NEAR => {
                format!("at {address:#x}: {from} bytes {side} of an allocation of {bytes}")
            }
            _ => format!("at {address:#x}: near no allocation"),
        }
    }

    /// Whether bytes around an allocation were written since the last call.
    pub(super) fn find_overrun(&self) -> Option<String> {
        let tables = self.tables();
        let damaged: Vec<_> = tables.live.values().filter(|allocation| allocation.heal()).collect();
        let bytes = damaged.first()?.bytes;
        Some(format!("wrote just before or after an allocation of {bytes} bytes"))
    }
}

impl Tables {
    fn drop_idle(&mut self) {
        self.idle.clear();
        self.idle_bytes = 0;
    }
}
