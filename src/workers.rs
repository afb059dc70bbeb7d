//! Tasks on the CPU: shared out among rayon's threads, each with memory of its own.
//!
//! A plan says beforehand how many workers there are at most and what memory each takes; a run allocates
//! nothing. A worker takes the tasks of a range of its own one after the other, and then those that others
//! have left. Which worker gets a task never shows in a result: every element of it belongs to one task.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytemuck::Pod;
use rayon::prelude::*;

use crate::element::{Accumulator, BATCH, Element};
use crate::error::Result;

/// Bytes at whose multiples memory begins: a cache line, and a vector.
pub(crate) const ALIGNMENT: usize = 64;

/// Ranges that tasks are divided into, at most: more workers share them.
const RANGES: usize = 64;

/// Elements whose parts a task adds up: at most, and at least where there are threads that would have none.
const TOTALS: usize = 16 << 10;
const LEAST_TOTALS: usize = 512;

/// Elements whose parts a task of [`Workers::add_up`] adds up.
fn totals_of_task(len: usize) -> usize {
    len.div_ceil(wanted_tasks(2)).clamp(LEAST_TOTALS, TOTALS)
}

/// Tasks of [`Workers::add_up`] for so many elements.
pub(crate) fn totals(len: usize) -> usize {
    len.div_ceil(totals_of_task(len))
}

/// Tasks there should be at least, for several threads so many for each.
pub(crate) fn wanted_tasks(each: usize) -> usize {
    match rayon::current_num_threads() {
        1 => 1,
        threads => each * threads,
    }
}

/// How many workers take part, and what memory each of them has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Workers {
    /// Workers, at most.
    count: usize,
    /// Bytes of each one's memory.
    bytes: usize,
    /// Bytes of memory that they have in common.
    common: usize,
}

impl Workers {
    /// Workers for so many tasks: as many as rayon has threads, if there are tasks for them.
    pub(crate) fn new(tasks: usize, room: Room) -> Self {
        let count = rayon::current_num_threads().min(tasks).max(1);
        Workers { count, bytes: room.bytes(), common: 0 }
    }

    /// None, for work that these are to be [`Workers::or`].
    pub(crate) fn none() -> Self {
        Workers { count: 1, bytes: 0, common: 0 }
    }

    /// The same for work that takes no memory.
    pub(crate) fn bare(self) -> Self {
        Workers { bytes: 0, common: 0, ..self }
    }

    /// Those that serve work of either kind, one after the other.
    pub(crate) fn or(self, other: Workers) -> Self {
        Workers {
            count: self.count.max(other.count),
            bytes: self.bytes.max(other.bytes),
            common: self.common.max(other.common),
        }
    }

    /// The same, with memory in common besides: see [`Workers::split`].
    pub(crate) fn with_common(self, room: Room) -> Self {
        Workers { common: room.bytes(), ..self }
    }

    /// The same, with more memory in common besides.
    pub(crate) fn and_common(self, room: Room) -> Self {
        Workers { common: self.common.saturating_add(room.bytes()), ..self }
    }

    /// As many of them, at least one, as have room in so many bytes.
    pub(crate) fn within(self, limit: u64) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let most = limit.saturating_sub(self.common).checked_div(self.bytes);
        Workers { count: most.map_or(self.count, |most| most.clamp(1, self.count)), ..self }
    }

    /// Bytes of the memory that they have in common, and of all workers' own.
    pub(crate) fn workspace(&self) -> usize {
        self.count.saturating_mul(self.bytes).saturating_add(self.common)
    }

    /// Divides memory as large as [`Workers::workspace`] says into what is common, for what one pass
    /// leaves to the next, and what [`Workers::share_out`] hands to the workers.
    pub(crate) fn split<'m>(&self, memory: &'m mut [u8]) -> (Scratch<'m>, &'m mut [u8]) {
        let (common, own) = memory.split_at_mut(self.common);
        (Scratch { rest: common }, own)
    }

    /// Has every element of `results` written, by tasks of `len` elements that take no memory: `work` is
    /// told where they start.
    pub(crate) fn share_out_slice<T: Send>(
        &self,
        results: &mut [T],
        len: usize,
        work: impl Fn(usize, &mut [T]) + Sync,
    ) -> Result<()> {
        self.bare()
            .share_out_chunks(results, len, &mut [], |task, chunk, _| work(task * len, chunk))
    }

    /// Has every element of `results` written: that of each part of the sums, which follow each other, in order.
    pub(crate) fn add_up<T: Element>(&self, parts: &[T::Acc], results: &mut [T]) -> Result<()> {
        let len = results.len();
        self.share_out_slice(results, totals_of_task(len), |start, results| {
            for (number, results) in results.chunks_mut(BATCH).enumerate() {
                let sums = &mut [T::Acc::ZERO; BATCH][..results.len()];
                for part in parts.chunks_exact(len) {
                    let part = &part[start + number * BATCH..];
                    sums.iter_mut().zip(part).for_each(|(sum, &part)| *sum += part);
                }
                T::narrow(sums, results);
            }
        })
    }

    /// Has every element of `results` written, by tasks of `len` elements, each with the memory of the worker that
    /// does it: `work` is told the number of the task.
    pub(crate) fn share_out_chunks<T: Send>(
        &self,
        results: &mut [T],
        len: usize,
        memory: &mut [u8],
        work: impl Fn(usize, &mut [T], &mut Scratch) + Sync,
    ) -> Result<()> {
        let (all, results) = (results.len(), Shared::new(results));
        self.share_out(all.div_ceil(len.max(1)), memory, |task, scratch| {
            let start = task * len;
            // SAFETY: every task has elements of its own.
            work(task, unsafe { results.run(start, len.min(all - start)) }, scratch);
            Ok(())
        })
    }

    /// Does `tasks` pieces of work, each with the memory of the worker that does it, which holds any
    /// values. `memory` is as large as [`Workers::workspace`] says, or what [`Workers::split`] leaves
    /// of that.
    ///
    /// # Errors
    /// What a piece of work returns; those not begun by then are left out.
    pub(crate) fn share_out(
        &self,
        tasks: usize,
        memory: &mut [u8],
        work: impl Fn(usize, &mut Scratch) -> Result<()> + Sync,
    ) -> Result<()> {
        self.share_out_any(tasks, memory, &work)
    }

    /// [`Workers::share_out`] of any work: compiled once, and with it all that rayon makes of a closure.
    fn share_out_any(
        &self,
        tasks: usize,
        memory: &mut [u8],
        work: &(dyn Fn(usize, &mut Scratch) -> Result<()> + Sync),
    ) -> Result<()> {
        let memory = &mut memory[..self.count * self.bytes];
        if self.count == 1 || tasks <= 1 {
            let memory = &mut memory[..self.bytes];
            return (0..tasks).try_for_each(|task| work(task, &mut Scratch { rest: memory }));
        }
        // Every worker begins with a range of its own and then helps the others: from one run to the next
        // a processor works on the same elements, which it may still have in its cache.
        let ranges = self.count.min(RANGES);
        let end_of = |range: usize| (range + 1) * tasks / ranges;
        let next: [AtomicUsize; RANGES] =
            std::array::from_fn(|range| AtomicUsize::new(range * tasks / ranges));
        let worker = |number: usize, memory: &mut [u8]| -> Result<()> {
            let own = number * ranges / self.count;
            for range in (own..ranges).chain(0..own) {
                loop {
                    let task = next[range].fetch_add(1, Ordering::Relaxed);
                    if task >= end_of(range) {
                        break;
                    }
                    let done = work(task, &mut Scratch { rest: memory });
                    if done.is_err() {
                        next.iter().for_each(|next| next.store(tasks, Ordering::Relaxed));
                        return done;
                    }
                }
            }
            Ok(())
        };
        if self.bytes == 0 {
            return (0..self.count)
                .into_par_iter()
                .with_max_len(1)
                .try_for_each(|number| worker(number, &mut []));
        }
        memory
            .par_chunks_exact_mut(self.bytes)
            .with_max_len(1)
            .enumerate()
            .try_for_each(|(number, memory)| worker(number, memory))
    }
}

/// What a worker's memory is made of: the mirror of the [`Scratch::take`]s of a task.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Room(usize);

impl Room {
    /// And `len` elements more.
    pub(crate) fn and<A>(self, len: usize) -> Self {
        Room(self.0.saturating_add(bytes_of::<A>(len)))
    }

    /// What serves tasks of either kind.
    pub(crate) fn or(self, other: Room) -> Self {
        Room(self.0.max(other.0))
    }

    fn bytes(self) -> usize {
        // Two lines apart, so that neighbours do not share what a processor fetches at a time.
        self.0.next_multiple_of(2 * ALIGNMENT)
    }
}

fn bytes_of<A>(len: usize) -> usize {
    len.saturating_mul(size_of::<A>()).checked_next_multiple_of(ALIGNMENT).unwrap_or(usize::MAX / 2)
}

/// A worker's memory during a task.
#[derive(Debug)]
pub(crate) struct Scratch<'a> {
    rest: &'a mut [u8],
}

impl<'a> Scratch<'a> {
    /// `len` elements of any value.
    ///
    /// # Panics
    /// When the plan's [`Room`] has none for them: an error in this crate.
    pub(crate) fn take<A: Pod>(&mut self, len: usize) -> &'a mut [A] {
        if len == 0 {
            return &mut [];
        }
        let bytes = bytes_of::<A>(len);
        let (taken, rest) = std::mem::take(&mut self.rest).split_at_mut(bytes);
        self.rest = rest;
        &mut bytemuck::cast_slice_mut(taken)[..len]
    }

    /// `len` elements, all zero.
    pub(crate) fn zeros<A: Pod>(&mut self, len: usize) -> &'a mut [A] {
        let taken = self.take(len);
        taken.fill(A::zeroed());
        taken
    }

    /// The same memory for a part of the task: what that takes is free again afterwards.
    pub(crate) fn part(&mut self) -> Scratch<'_> {
        Scratch { rest: self.rest }
    }
}

/// A slice that tasks write disjoint parts of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shared<'a, T> {
    data: *mut T,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: all access is through `Shared::run` and `Shared::scatter`, whose callers vouch for disjointness.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(data: &'a mut [T]) -> Self {
        Shared { data: data.as_mut_ptr(), len: data.len(), borrowed: PhantomData }
    }

    /// A run of the slice.
    ///
    /// # Safety
    /// While the result is alive, nothing else may use any part of this run.
    #[allow(clippy::mut_from_ref)] // Disjointness is the caller's to guarantee.
    pub(crate) unsafe fn run(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: the run lies inside the slice, which is borrowed for 'a; the caller sees to it that
        // no other reference to it exists.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }
}

impl<T: Element> Shared<'_, T> {
    /// Writes rounded accumulators to the elements `start`, `start + step`, ….
    ///
    /// # Safety
    /// Nothing else may use these elements.
    pub(crate) unsafe fn scatter(&self, start: usize, step: usize, values: &[T::Acc]) {
        let last = start + (values.len().max(1) - 1) * step;
        assert!(values.is_empty() || last < self.len);
        let mut narrow = [T::default(); BATCH];
        for (number, values) in values.chunks(BATCH).enumerate() {
            let narrow = &mut narrow[..values.len()];
            T::narrow(values, narrow);
            for (index, &value) in (number * BATCH..).zip(&*narrow) {
                // SAFETY: inside the slice by the assertion; the caller sees to the rest.
                unsafe { *self.data.add(start + index * step) = value };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn every_task_is_done_once_with_memory_of_its_own() {
        for tasks in [0, 1, 2, 7, 1000] {
            for len in [0, 3, 100] {
                let workers = Workers::new(tasks, Room::default().and::<u32>(len).and::<f64>(len));
                let mut memory = vec![0u64; workers.workspace().div_ceil(8) + 8];
                let memory: &mut [u8] = bytemuck::cast_slice_mut(&mut memory);
                let start = memory.as_ptr().align_offset(ALIGNMENT);
                let mut done = vec![0u8; tasks];
                let shared = Shared::new(&mut done);
                let work = |task: usize, scratch: &mut Scratch| {
                    let mine = scratch.take::<u32>(len);
                    mine.fill(task as u32);
                    scratch.zeros::<f64>(len).fill(1.0);
                    std::thread::yield_now();
                    assert!(mine.iter().all(|&v| v == task as u32));
                    // SAFETY: one task has this element.
                    unsafe { shared.run(task, 1)[0] += 1 };
                    Ok(())
                };
                workers.share_out(tasks, &mut memory[start..], work).unwrap();
                assert!(done.iter().all(|&count| count == 1));
            }
        }
    }

    #[test]
    fn common_memory_outlives_a_pass() {
        let room = |len| Room::default().and::<u32>(len);
        let workers = Workers::new(10, room(7)).with_common(room(10));
        let mut memory = vec![[0u64; 8]; workers.workspace().div_ceil(ALIGNMENT) + 1];
        let memory: &mut [u8] = bytemuck::cast_slice_mut(&mut memory);
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        let (mut common, memory) = workers.split(&mut memory[start..]);
        let squares = common.take::<u32>(10);
        let square = |start: usize, squares: &mut [u32]| {
            squares.iter_mut().zip(start..).for_each(|(square, n)| *square = (n * n) as u32);
        };
        workers.share_out_slice(squares, 3, square).unwrap();
        let squares = &*squares;
        let check = |task: usize, scratch: &mut Scratch| {
            scratch.take::<u32>(7).fill(0);
            assert_eq!(squares[task], (task * task) as u32);
            Ok(())
        };
        workers.share_out(10, memory, check).unwrap();
    }

    #[test]
    fn an_error_ends_the_work() {
        let workers = Workers::new(1000, Room::default());
        let fail = |task, _: &mut Scratch| match task {
            500 => Err(Error::invalid("task", task, "it fails")),
            _ => Ok(()),
        };
        assert!(workers.share_out(1000, &mut [], fail).is_err());
    }
}
