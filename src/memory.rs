//! Allocation of large buffers: with errors instead of aborts, on huge pages, and recycled.
//!
//! The pages of a fresh large buffer are cleared by the operating system as they are first touched,
//! which takes longer than most operations of this crate take to fill them. The buffers of results are
//! therefore kept for the next result when their tensor is dropped, as allocators for GPU memory do.

use std::any::Any;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytemuck::{Pod, Zeroable};

use crate::error::{Error, Result};

/// A zero-filled vector of `len` elements, or [`Error::Allocation`]. Large ones are fresh pages from
/// the operating system, so the zeros cost nothing extra.
pub(crate) fn try_zeroed<T: Zeroable>(what: &str, len: usize) -> Result<Vec<T>> {
    let mut vector =
        bytemuck::allocation::try_zeroed_vec(len).map_err(|()| failed::<T>(what, len))?;
    advise_huge_pages(&mut vector);
    Ok(vector)
}

/// Buffers from this size on are worth keeping, in bytes: smaller ones the allocator keeps itself.
const KEEP_FROM: usize = 1 << 20;

/// Bytes of a result that debug builds fill beforehand, at most.
const POISONED: usize = 64 << 20;

/// Idle buffers take up at most so many bytes; the oldest are given up first.
const KEEP_AT_MOST: usize = 512 << 20;

/// A buffer that nobody uses: a `Vec<T>` of some element type.
struct Idle {
    bytes: usize,
    vector: Box<dyn Any + Send>,
}

static IDLE: Mutex<Vec<Idle>> = Mutex::new(Vec::new());

fn idle() -> MutexGuard<'static, Vec<Idle>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives all idle buffers back to the allocator.
pub(crate) fn release_idle() {
    let buffers = std::mem::take(&mut *idle());
    drop(buffers);
}

/// The elements of a tensor. Dropping one that was made for a result keeps it for the next.
#[derive(Debug)]
pub(crate) struct Buffer<T: Pod + Send> {
    data: Vec<T>,
    recycle: bool,
}

impl<T: Pod + Send> Buffer<T> {
    /// A buffer for a result: its elements have any value, and all of them are to be overwritten.
    pub(crate) fn for_result(len: usize) -> Result<Self> {
        let mut data = match take(len) {
            Some(data) => data,
            None => try_zeroed("a tensor", len)?,
        };
        if cfg!(debug_assertions) {
            // No number, whatever the type: what takes fresh memory for zeros is found out by tests.
            let bytes = bytemuck::cast_slice_mut::<T, u8>(&mut data);
            let some = bytes.len().min(POISONED);
            bytes[..some].fill(u8::MAX);
        }
        Ok(Buffer { data, recycle: true })
    }

    pub(crate) fn into_vec(mut self) -> Vec<T> {
        std::mem::take(&mut self.data)
    }
}

/// The best fitting idle buffer.
fn take<T: Pod + Send>(len: usize) -> Option<Vec<T>> {
    if len.saturating_mul(size_of::<T>()) < KEEP_FROM {
        return None;
    }
    let mut idle = idle();
    let capacity = |idle: &Idle| idle.vector.downcast_ref().map(Vec::<T>::capacity);
    let fits = |&(_, capacity): &(usize, usize)| capacity >= len && capacity / 2 <= len;
    let all = idle.iter().enumerate().filter_map(|(at, idle)| Some((at, capacity(idle)?)));
    let (at, _) = all.filter(fits).min_by_key(|&(_, capacity)| capacity)?;
    let mut vector = *idle.remove(at).vector.downcast::<Vec<T>>().ok()?;
    drop(idle);
    vector.truncate(len);
    vector.resize(len, T::zeroed());
    Some(vector)
}

impl<T: Pod + Send> Drop for Buffer<T> {
    fn drop(&mut self) {
        let bytes = self.data.capacity() * size_of::<T>();
        if !self.recycle || !(KEEP_FROM..=KEEP_AT_MOST).contains(&bytes) {
            return;
        }
        let vector = Box::new(std::mem::take(&mut self.data));
        let mut idle = idle();
        idle.push(Idle { bytes, vector });
        let mut excess = idle.iter().map(|idle| idle.bytes).sum::<usize>();
        excess = excess.saturating_sub(KEEP_AT_MOST);
        let mut given_up = 0;
        while excess > 0 {
            excess = excess.saturating_sub(idle[given_up].bytes);
            given_up += 1;
        }
        let given_up: Vec<Idle> = idle.drain(..given_up).collect();
        drop(idle);
        drop(given_up);
    }
}

impl<T: Pod + Send> From<Vec<T>> for Buffer<T> {
    fn from(data: Vec<T>) -> Self {
        Buffer { data, recycle: false }
    }
}

impl<T: Pod + Send> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        self.data.clone().into()
    }
}

impl<T: Pod + Send + PartialEq> PartialEq for Buffer<T> {
    fn eq(&self, other: &Self) -> bool {
        self.data == other.data
    }
}

impl<T: Pod + Send> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.data
    }
}

impl<T: Pod + Send> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.data
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, as it looks at what all tests of this binary share.
    #[test]
    fn results_are_recycled_within_bounds() {
        let len = 3 << 20;
        let buffer = Buffer::<f32>::for_result(len).unwrap();
        let address = buffer.as_ptr();
        drop(buffer);
        // Another type, a much smaller and a larger result do not fit; one a little smaller does.
        assert_ne!(Buffer::<u32>::for_result(len).unwrap().as_ptr().cast(), address);
        assert_ne!(Buffer::<f32>::for_result(len / 3).unwrap().as_ptr(), address);
        assert_ne!(Buffer::<f32>::for_result(len + 1).unwrap().as_ptr(), address);
        let buffer = Buffer::<f32>::for_result(len - 9).unwrap();
        assert_eq!((buffer.as_ptr(), buffer.len()), (address, len - 9));
        // A vector that is handed out is not recycled, nor is one that came from outside.
        let vector = buffer.into_vec();
        assert_ne!(Buffer::<f32>::for_result(len).unwrap().as_ptr(), address);
        drop(Buffer::from(vector));
        for _ in 0..3 {
            let all: Vec<_> = (0..6).map(|_| Buffer::<f64>::for_result(16 << 20)).collect();
            drop(all);
            assert!(idle().iter().map(|idle| idle.bytes).sum::<usize>() <= KEEP_AT_MOST);
        }
        assert!(!idle().is_empty());
        release_idle();
        assert!(idle().is_empty());
    }
}
