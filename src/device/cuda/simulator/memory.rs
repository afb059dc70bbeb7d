//! Device memory of the simulator: every allocation lies at the end of a mapping of its own, between
//! inaccessible pages, so that an access past its end faults. What lies before it in its first page, and
//! the few bytes after it that alignment leaves, is looked at after each launch.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

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
    alignment: usize,
    tables: Mutex<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    used: u64,
    /// By address.
    live: BTreeMap<u64, Allocation>,
    /// By the size of their accessible part.
    idle: HashMap<usize, Vec<Mapping>>,
    idle_bytes: usize,
}

#[derive(Debug)]
struct Allocation {
    bytes: usize,
    alignment: usize,
    mapping: Mapping,
}

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
    pub(super) fn new(limit: u64, alignment: usize) -> Memory {
        Memory { limit, alignment, tables: Mutex::default() }
    }

    /// Where allocations lie, ascending.
    pub(super) fn ranges(&self) -> Vec<Range<u64>> {
        let tables = self.tables();
        tables.live.iter().map(|(&start, of)| start..start + of.bytes as u64).collect()
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
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
        let kept = tables.idle.get_mut(&rounded).and_then(Vec::pop);
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
        // SAFETY: the mapping is accessible, and nobody has its address yet.
        unsafe { ptr::write_bytes(mapping.start as *mut u8, POISON, mapping.bytes) };
        let allocation = Allocation { bytes, alignment: self.alignment, mapping };
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
        if tables.idle_bytes + mapping.bytes <= MOST_IDLE_BYTES && mapping.open(false) {
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
