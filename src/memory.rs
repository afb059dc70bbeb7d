//! Allocation of large buffers, with errors instead of aborts.

use bytemuck::Zeroable;

use crate::error::{Error, Result};

/// A zero-filled vector of `len` elements, or [`Error::Allocation`]. Large ones are fresh pages from
/// the operating system, so the zeros cost nothing extra.
pub(crate) fn try_zeroed<T: Zeroable>(what: &str, len: usize) -> Result<Vec<T>> {
    let mut vector =
        bytemuck::allocation::try_zeroed_vec(len).map_err(|()| failed::<T>(what, len))?;
    advise_huge_pages(&mut vector);
    Ok(vector)
}

/// An empty vector with room for `capacity` elements, or [`Error::Allocation`].
pub(crate) fn try_with_capacity<T>(what: &str, capacity: usize) -> Result<Vec<T>> {
    let mut vector = Vec::new();
    vector.try_reserve_exact(capacity).map_err(|_| failed::<T>(what, capacity))?;
    Ok(vector)
}

fn failed<T>(what: &str, len: usize) -> Error {
    let bytes = (len as u64).saturating_mul(size_of::<T>() as u64);
    Error::Allocation { what: what.into(), bytes }
}

/// Asks for huge pages behind a large buffer that is about to be written for the first time. With
/// 4 KiB pages the faults of a fresh buffer take several times as long as filling it.
fn advise_huge_pages<T>(buffer: &mut [T]) {
    #[cfg(target_os = "linux")]
    {
        const HUGE: usize = 2 << 20;
        let start = buffer.as_mut_ptr() as usize;
        let first = start.next_multiple_of(HUGE);
        let last = (start + size_of_val(buffer)) / HUGE * HUGE;
        if last > first {
            // SAFETY: the range lies inside the buffer, and this advice never changes its contents.
            // A refusal is no error: the buffer is as good on small pages.
            unsafe { libc::madvise(first as *mut libc::c_void, last - first, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = buffer;
}
