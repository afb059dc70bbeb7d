//! What this machine can do at best: the figures that rates are held against.

use std::time::Instant;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use rayon::prelude::*;

/// Well beyond any cache: 512 MiB a buffer.
const ELEMENTS: usize = 1 << 27;
const ROUNDS: usize = 5;

/// Shortest of some runs, in seconds, after one that is not timed.
fn best(mut run: impl FnMut()) -> f64 {
    run();
    let times = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
}

/// Copying, GB/s read and written: the better of `memcpy` and non-temporal stores.
pub fn copy(threads: usize) -> f64 {
    let source = vec![1f32; ELEMENTS];
    let mut target = vec![0f32; ELEMENTS];
    let chunk = ELEMENTS / threads;
    let mut with = |copy: fn(&mut [f32], &[f32])| {
        best(|| {
            let chunks = target.par_chunks_mut(chunk).zip(source.par_chunks(chunk));
            chunks.for_each(|(to, from)| copy(to, from));
        })
    };
    let seconds = with(|to, from| to.copy_from_slice(from)).min(with(stream_copy));
    2.0 * size_of_val(&source[..]) as f64 / seconds / 1e9
}

/// Writing one value with non-temporal stores, GB/s written.
pub fn store(threads: usize) -> f64 {
    let mut target = vec![0f32; ELEMENTS];
    let seconds = best(|| target.par_chunks_mut(ELEMENTS / threads).for_each(stream_fill));
    size_of_val(&target[..]) as f64 / seconds / 1e9
}

/// Single-precision matrix product of faer, GFLOP/s.
pub fn sgemm(threads: usize) -> f64 {
    const SIZE: usize = 2048;
    let a = Mat::<f32>::from_fn(SIZE, SIZE, |i, j| ((i + 3 * j) % 17) as f32 / 8.0 - 1.0);
    let b = Mat::<f32>::from_fn(SIZE, SIZE, |i, j| ((5 * i + j) % 17) as f32 / 8.0 - 1.0);
    let mut c = Mat::<f32>::zeros(SIZE, SIZE);
    let par = Par::rayon(threads);
    let seconds = best(|| matmul(c.as_mut(), Accum::Replace, a.as_ref(), b.as_ref(), 1.0, par));
    2.0 * (SIZE as f64).powi(3) / seconds / 1e9
}

#[cfg(target_arch = "x86_64")]
fn stream_fill(target: &mut [f32]) {
    use std::arch::x86_64::{__m128, _mm_set1_ps, _mm_sfence, _mm_stream_ps};
    // SAFETY: any bit pattern is a valid f32 and a valid __m128, and SSE is part of x86-64.
    unsafe {
        let (head, body, tail) = target.align_to_mut::<__m128>();
        head.fill(1.0);
        let value = _mm_set1_ps(1.0);
        for vector in body {
            _mm_stream_ps((vector as *mut __m128).cast(), value);
        }
        tail.fill(1.0);
        _mm_sfence();
    }
}

#[cfg(target_arch = "x86_64")]
fn stream_copy(target: &mut [f32], source: &[f32]) {
    use std::arch::x86_64::{__m128, _mm_loadu_ps, _mm_sfence, _mm_stream_ps};
    assert_eq!(target.len(), source.len());
    // SAFETY: any bit pattern is a valid f32 and a valid __m128, SSE is part of x86-64, and each
    // vector of `body` has its four elements in `source`, which is as long as `target`.
    unsafe {
        let (head, body, tail) = target.align_to_mut::<__m128>();
        let (first, rest) = source.split_at(head.len());
        let (middle, last) = rest.split_at(4 * body.len());
        head.copy_from_slice(first);
        for (vector, from) in body.iter_mut().zip(middle.chunks_exact(4)) {
            _mm_stream_ps((vector as *mut __m128).cast(), _mm_loadu_ps(from.as_ptr()));
        }
        tail.copy_from_slice(last);
        _mm_sfence();
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn stream_fill(target: &mut [f32]) {
    target.fill(1.0);
}

#[cfg(not(target_arch = "x86_64"))]
fn stream_copy(target: &mut [f32], source: &[f32]) {
    target.copy_from_slice(source);
}
