//! Writing large outputs without reading them first.
//!
//! An ordinary store to memory that is not in cache first fetches the line it is about to overwrite,
//! which costs a third of the bandwidth of a copy. Non-temporal stores do not; they pay off when the
//! output is larger than the caches and whole lines are written.

use bytemuck::Pod;

/// Bytes in a cache line.
const LINE: usize = 64;

/// Outputs of at least this many bytes are written past the caches: larger than a core's L2, so that
/// a consumer would not find them there anyway.
const STREAM_FROM: usize = 4 << 20;

/// Whether an output of `bytes` in total should be written past the caches.
pub(crate) fn worthwhile(bytes: usize) -> bool {
    cfg!(target_arch = "x86_64") && bytes >= STREAM_FROM
}

/// Copies a slice, past the caches if `streaming`; other threads see it after [`fence`].
#[inline]
pub(crate) fn copy<T: Pod>(target: &mut [T], source: &[T], streaming: bool) {
    let per_line = LINE / size_of::<T>();
    let (head, lines) = match streaming {
        true => {
            let head = target.as_ptr().align_offset(LINE).min(target.len());
            (head, (target.len() - head) / per_line * per_line)
        }
        false => (0, 0),
    };
    target[..head].copy_from_slice(&source[..head]);
    stream_lines(&mut target[head..][..lines], &source[head..][..lines]);
    target[head + lines..].copy_from_slice(&source[head + lines..]);
}

/// Bytes that [`copy_short`] copies at a time.
const CHUNK: usize = 64;

/// Elements besides its own that a slice has, so that short copies at its end are quick.
pub(crate) const fn margin<T>() -> usize {
    CHUNK / size_of::<T>()
}

/// Copies the first `len` elements of a slice, few as they may be: as long as both slices go on behind them, by whole
/// chunks, which overwrite what follows in the target.
#[inline(always)]
pub(crate) fn copy_short<T: Pod>(target: &mut [T], source: &[T], len: usize) {
    /// More bytes are better copied by the library, which chooses the instructions.
    const MANY: usize = 2 << 10;
    let bytes = len * size_of::<T>();
    let whole = bytes.next_multiple_of(CHUNK);
    if bytes > MANY || whole > size_of_val(source).min(size_of_val(target)) {
        return target[..len].copy_from_slice(&source[..len]);
    }
    let (from, to) =
        (source.as_ptr().cast::<[u8; CHUNK]>(), target.as_mut_ptr().cast::<[u8; CHUNK]>());
    for chunk in 0..whole / CHUNK {
        // SAFETY: both slices have `whole` bytes, and do not overlap; `Pod` values may be copied as bytes.
        unsafe { std::ptr::copy_nonoverlapping(from.add(chunk), to.add(chunk), 1) };
    }
}

/// Has the processor fetch what will be read 2 KiB after this.
#[inline(always)]
pub(crate) fn read_ahead<T>(_from: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64, and a prefetch of what does not exist does nothing.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(_from.wrapping_byte_add(2 << 10).cast());
    }
}

/// Fills a slice front to back, past the caches if `streaming`. Complete once dropped.
pub(crate) struct StreamWriter<'a, T: Pod> {
    target: &'a mut [T],
    /// Elements of `target` that are written.
    written: usize,
    /// A partly filled cache line: `pending` elements that belong at `written`.
    line: [T; LINE],
    pending: usize,
    streaming: bool,
}

impl<'a, T: Pod> StreamWriter<'a, T> {
    pub(crate) fn new(target: &'a mut [T], streaming: bool) -> Self {
        StreamWriter { target, written: 0, line: [T::zeroed(); LINE], pending: 0, streaming }
    }

    /// Appends `source`, which must fit into what is left of the target.
    #[inline]
    pub(crate) fn write(&mut self, mut source: &[T]) {
        let per_line = LINE / size_of::<T>();
        if !self.streaming {
            return self.copy(source);
        }
        if self.pending > 0 {
            let (head, rest) = source.split_at(source.len().min(per_line - self.pending));
            self.line[self.pending..][..head.len()].copy_from_slice(head);
            self.pending += head.len();
            if self.pending < per_line {
                return;
            }
            stream_lines(&mut self.target[self.written..][..per_line], &self.line[..per_line]);
            self.written += per_line;
            self.pending = 0;
            source = rest;
        }
        // Only the first write can find the target off a line boundary.
        let misaligned = self.target[self.written..].as_ptr().align_offset(LINE);
        let (head, source) = source.split_at(misaligned.min(source.len()));
        self.copy(head);
        let (lines, tail) = source.split_at(source.len() / per_line * per_line);
        stream_lines(&mut self.target[self.written..][..lines.len()], lines);
        self.written += lines.len();
        self.line[..tail.len()].copy_from_slice(tail);
        self.pending = tail.len();
    }

    #[inline]
    fn copy(&mut self, source: &[T]) {
        self.target[self.written..][..source.len()].copy_from_slice(source);
        self.written += source.len();
    }
}

impl<T: Pod> Drop for StreamWriter<'_, T> {
    fn drop(&mut self) {
        let pending = self.line;
        self.copy(&pending[..self.pending]);
        if self.streaming {
            fence();
        }
    }
}

/// Copies whole cache lines to a target that starts on a line boundary (or is empty).
#[cfg(target_arch = "x86_64")]
#[inline]
fn stream_lines<T: Pod>(target: &mut [T], source: &[T]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
    let bytes = size_of_val(source);
    assert!(size_of_val(target) == bytes && bytes.is_multiple_of(LINE));
    assert!(bytes == 0 || (target.as_ptr() as usize).is_multiple_of(LINE));
    let (from, to) = (source.as_ptr().cast::<__m128i>(), target.as_mut_ptr().cast::<__m128i>());
    for vector in 0..bytes / size_of::<__m128i>() {
        // SAFETY: both slices are `bytes` long, the target is aligned to 64 bytes, and `Pod` values
        // may be copied as bytes. SSE2 is part of x86-64.
        unsafe { _mm_stream_si128(to.add(vector), _mm_loadu_si128(from.add(vector))) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn stream_lines<T: Pod>(target: &mut [T], source: &[T]) {
    target.copy_from_slice(source);
}

/// Orders the non-temporal stores before whatever another thread does after synchronising with this.
pub(crate) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_sfence()
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_length_arrive_in_order_at_any_alignment() {
        let source: Vec<u16> = (0..3000).collect();
        for offset in 0..40 {
            for piece in [1, 7, 31, 32, 33, 100, 2900] {
                let mut target = vec![u16::MAX; 3000];
                let mut writer = StreamWriter::new(&mut target[offset..2950], true);
                source[offset..2950].chunks(piece).for_each(|p| writer.write(p));
                drop(writer);
                assert_eq!(target[offset..2950], source[offset..2950]);
                assert!(target[..offset].iter().chain(&target[2950..]).all(|&v| v == u16::MAX));
            }
        }
    }
}
