//! What the fuzz targets share: an allocator that counts, and files and numbers to try.

pub mod zip;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use arbitrary::{Arbitrary, Unstructured};

/// Counts what is allocated, and refuses what no small input needs: so a fault is found before it takes
/// memory that others on the machine use.
pub struct Counting;

/// Bytes of one request from which on it is refused.
const REFUSED_FROM: usize = 1 << 30;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// Notes a request for so many bytes; false when it is to be refused.
fn request(bytes: usize) -> bool {
    let live = LIVE.fetch_add(bytes, Relaxed).saturating_add(bytes);
    PEAK.fetch_max(live, Relaxed);
    let granted = bytes < REFUSED_FROM;
    if !granted {
        LIVE.fetch_sub(bytes, Relaxed);
    }
    granted
}

// SAFETY: everything is the system allocator's, but for null where a request is refused, which may be.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller has promised.
        if request(layout.size()) { unsafe { System.alloc(layout) } } else { std::ptr::null_mut() }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !request(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: as the caller has promised.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller has promised.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // Counted as a copy, which it may be.
        if !request(bytes) {
            return std::ptr::null_mut();
        }
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller has promised.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

/// Runs `work`, and fails when what it had asked for at any one time, granted or not, is more than so many
/// bytes.
pub fn within<R>(allowance: usize, work: impl FnOnce() -> R) -> R {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = work();
    let taken = PEAK.load(Relaxed).saturating_sub(before);
    assert!(taken <= allowance, "{taken} bytes were asked for at once, where {allowance} suffice");
    result
}

/// Bytes that reading may take, whatever the file: buffers, messages and what is set up once.
pub const FIXED: usize = 1 << 20;

/// A directory for files, which whoever runs the target takes away: see `run`.
pub fn directory() -> PathBuf {
    let directory = std::env::temp_dir().join(format!("convmat-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory for files is there or can be made");
    directory
}

/// A number as small as most are, or next to a power of two, where overflows are.
pub fn number(u: &mut Unstructured<'_>) -> arbitrary::Result<usize> {
    Ok(match u8::arbitrary(u)? {
        tag @ 0..200 => usize::from(tag % 9),
        200..240 => {
            let power = u32::from(u8::arbitrary(u)? % 65);
            let base = 1usize.checked_shl(power).unwrap_or(0);
            base.wrapping_add_signed(isize::from(i8::arbitrary(u)? % 4))
        }
        240.. => usize::arbitrary(u)?,
    })
}
