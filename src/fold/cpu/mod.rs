//! Fold on the CPU: every element of the result is summed by one task, in an order that depends on the
//! geometry alone, so there are no atomics and the bytes do not depend on the number of threads.
//!
//! | case | path |
//! |---|---|
//! | one tap, nothing padded or skipped | a parallel copy |
//! | channels first | plane by plane, or box by box of large, zero-padded planes: `planes.rs` |
//! | channels last | line by line of the result: `pixels.rs` |

mod pixels;
mod planes;

use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::geometry::{Layout, PaddingMode, volume};
use crate::patches::slab::{SLAB_BYTES, boxes};
use crate::plan::{Explanation, Pass};
use crate::product::cpu::{MAX_LANES, Vector, Vectorised};
use crate::stream::{self, StreamWriter};
use crate::unfold::Call;
use crate::workers::{Room, Scratch, Shared, Workers, wanted_tasks};

use pixels::{FoldLines, PixelFold};
use planes::{BoxFold, FoldBox};

/// Patch entries that a task adds up, or sums that it writes, at least, so that scheduling does not show.
const TASK_ENTRIES: usize = 32 << 10;

/// Tasks for each thread there should be at least.
const TASKS: usize = 2;

/// How many patch entries each position sums, per axis.
type Overlap = [Vec<usize>; 3];

/// How patches are added up, and all tables for it.
#[derive(Debug)]
pub(crate) struct Fold {
    call: Call,
    path: Path,
    tasks: usize,
    /// To average.
    overlap: Option<Overlap>,
}

#[derive(Debug)]
enum Path {
    /// Runs of so many elements, written past the caches or not.
    Copy { len: usize, streaming: bool },
    /// So many planes at a time if there is one box, else a box of a plane.
    Boxes { planes: usize, boxes: Vec<BoxFold> },
    /// So many lines of channels-last images.
    Lines { lines: usize, fold: PixelFold },
}

impl Fold {
    /// A plan for elements of this type, and whom it takes.
    pub(super) fn new<T: Element>(
        call: &Call,
        average: bool,
        explanation: &mut Explanation,
    ) -> Result<(Self, Workers)> {
        let Call { layout, axes, batch, channels, .. } = call;
        let inputs = axes.input_extents();
        let (planes, plane, entries) =
            (batch * channels, axes.inputs(), axes.taps() * axes.outputs());
        let at_least = |entries: usize| (TASK_ENTRIES / entries.max(1)).max(1);
        let (algorithm, reason, path, tasks, room) = match layout {
            _ if axes.is_identity() => {
                let len = 2 * TASK_ENTRIES;
                let streaming = stream::worthwhile(planes * plane * size_of::<T>());
                let tasks = (planes * plane).div_ceil(len);
                let path = Path::Copy { len, streaming };
                ("copy", "the patches are the result", path, tasks, Room::default())
            }
            Layout::ChannelsFirst => {
                let readers = [axes[0].adjoint_rows()?, axes[1].adjoint_rows()?];
                let limit = SLAB_BYTES / size_of::<T::Acc>();
                // Modes other than zeros send border positions to other boxes, so those planes stay whole.
                let parts = if axes[2].mode() == PaddingMode::Zeros {
                    // Fewer planes than tasks are divided, too.
                    let share = (planes * entries / wanted_tasks(TASKS)).max(TASK_ENTRIES);
                    let share = (share as u128 * plane as u128 / entries.max(1) as u128) as usize;
                    boxes(inputs, |part| {
                        BoxFold::slab_len_of(axes, part) <= limit && volume(part) <= share
                    })
                } else {
                    vec![inputs.map(|n| 0..n)]
                };
                let boxes: Vec<_> =
                    parts.into_iter().map(|part| BoxFold::new(axes, &readers, part)).collect();
                let largest = |of: fn(&BoxFold) -> usize| boxes.iter().map(of).max().unwrap_or(0);
                let room = Room::default()
                    .and::<T::Acc>(sums_apart::<T>(largest(|b| volume(&b.part))))
                    .and::<T::Acc>(largest(BoxFold::slab_len));
                let per_task = if boxes.len() == 1 { at_least(entries.max(plane)) } else { 1 };
                let tasks = planes.div_ceil(per_task) * boxes.len();
                let reason = "entries are read once, and added up in registers and a core's cache";
                ("planes", reason, Path::Boxes { planes: per_task, boxes }, tasks, room)
            }
            Layout::ChannelsLast => {
                let line = inputs[2] * channels;
                let lines = batch * inputs[0] * inputs[1];
                let per_task = at_least(line * axes.taps());
                let room = Room::default().and::<T::Acc>(sums_apart::<T>(line));
                let path = Path::Lines { lines: per_task, fold: PixelFold::new(call)? };
                let reason = "channels are neighbours, and added together";
                ("lines", reason, path, lines.div_ceil(per_task), room)
            }
        };
        explanation.algorithm = algorithm.into();
        explanation.reason = reason.into();
        let what = if average { "average patches" } else { "add up patches" };
        explanation.passes.push(Pass::on_cpu(what, tasks).by(format!("sums in {}", T::Acc::DTYPE)));
        let overlap = average.then(|| [0, 1, 2].map(|axis| axes[axis].overlap()));
        Ok((Fold { call: call.clone(), path, tasks, overlap }, Workers::new(tasks, room)))
    }

    /// Writes all of `output`.
    pub(super) fn run<T: Element>(
        &self,
        workers: &Workers,
        patches: &[T],
        output: &mut [T],
        memory: &mut [u8],
    ) -> Result<()> {
        let axes = &self.call.axes;
        let (plane, entries) = (axes.inputs(), axes.taps() * axes.outputs());
        let (all, target) = (output.len(), Shared::new(output));
        // The part of the result that is a task's, if each has `len` elements.
        let part = |task: usize, len: usize| {
            let start = task * len;
            // SAFETY: parts of different tasks do not overlap.
            unsafe { target.run(start, len.min(all - start)) }
        };
        workers.share_out(self.tasks, memory, |task, scratch| {
            match &self.path {
                Path::Copy { len, streaming } => {
                    let target = part(task, *len);
                    let source = &patches[task * len..][..target.len()];
                    StreamWriter::new(target, *streaming).write(source);
                }
                Path::Boxes { planes, boxes } => match &boxes[..] {
                    [whole] => {
                        let target = part(task, planes * plane);
                        for number in 0..target.len() / plane {
                            let patches = &patches[(task * planes + number) * entries..];
                            // What is behind the plane will be overwritten.
                            let target = &mut target[number * plane..];
                            self.fold_box(whole, patches, target, scratch.part());
                        }
                    }
                    boxes => {
                        let (image, own) = (task / boxes.len(), &boxes[task % boxes.len()]);
                        let patches = &patches[image * entries..];
                        let start = image * plane + own.start;
                        // SAFETY: boxes are consecutive positions, none of which is in two of them.
                        let target = unsafe { target.run(start, volume(&own.part)) };
                        self.fold_box(own, patches, target, scratch.part());
                    }
                },
                Path::Lines { lines, fold } => {
                    let line = axes[2].inputs() * self.call.channels;
                    let targets = part(task, lines * line).chunks_mut(line);
                    for (number, target) in targets.enumerate() {
                        into_sums(target, line, scratch.part(), |sums, _| {
                            let line = task * lines + number;
                            let overlap = self.overlap.as_ref();
                            let work = FoldLines::<T> { fold, line, patches, sums, overlap };
                            // SAFETY: everything is in slices.
                            unsafe { T::Acc::vectorised(work) }
                        });
                    }
                }
            }
            Ok(())
        })
    }

    /// A box of a plane's sums, from the plane's patches `[K, L]` and all that are behind them.
    fn fold_box<T: Element>(
        &self,
        fold: &BoxFold,
        patches: &[T],
        target: &mut [T],
        scratch: Scratch,
    ) {
        into_sums(target, volume(&fold.part), scratch, |sums, mut scratch| {
            let slab = scratch.take::<T::Acc>(fold.slab_len());
            let overlap = self.overlap.as_ref();
            // SAFETY: everything is in slices.
            unsafe { T::Acc::vectorised(FoldBox { fold, patches, slab, sums, overlap }) }
        });
    }
}

/// Elements of the memory that so many sums take besides the result: none where they are of the result's type.
fn sums_apart<T: Element>(len: usize) -> usize {
    if T::DTYPE == <T::Acc as Element>::DTYPE { 0 } else { len + MAX_LANES }
}

/// Has `sum` write `len` sums, and what it likes behind them: in place when elements are accumulators, and else in
/// memory of the worker's, from where they are rounded to `target`.
fn into_sums<T: Element>(
    target: &mut [T],
    len: usize,
    mut scratch: Scratch,
    sum: impl FnOnce(&mut [T::Acc], Scratch),
) {
    if let Some(target) = T::as_acc_mut(target) {
        return sum(target, scratch);
    }
    let sums = scratch.take::<T::Acc>(sums_apart::<T>(len));
    sum(sums, scratch);
    T::narrow(&sums[..len], &mut target[..len]);
}

/// The elements from `at` on, those before the first and behind the last as zero.
///
/// # Safety
/// The machine has the instructions of `X`.
#[inline(always)]
unsafe fn load<X: Vector<T::Acc>, T: Element>(data: &[T], at: isize) -> X {
    // SAFETY: the caller's promise, and only elements that exist are read.
    unsafe {
        if at >= 0 && at as usize + X::LANES <= data.len() {
            return X::widen(data.as_ptr().offset(at));
        }
        let lanes: [T; MAX_LANES] = std::array::from_fn(|lane| {
            let element = at.checked_add_unsigned(lane).and_then(|at| usize::try_from(at).ok());
            element.and_then(|element| data.get(element)).copied().unwrap_or_default()
        });
        X::widen(lanes.as_ptr())
    }
}

/// Writes a vector to the first elements: all of it if there is room, else the first `left` lanes.
///
/// # Safety
/// The machine has the instructions of `X`.
#[inline(always)]
unsafe fn put<A: Accumulator, X: Vector<A>>(vector: X, target: &mut [A], left: usize) {
    // SAFETY: the caller's promise, and only elements that exist are written.
    unsafe {
        if X::LANES <= target.len() {
            vector.store(target.as_mut_ptr());
        } else {
            let left = left.min(target.len()).min(X::LANES);
            vector.store_part(target.as_mut_ptr(), left);
        }
    }
}

/// Divides a sum by the number of entries it has.
#[inline(always)]
fn divide<A: Accumulator>(sum: &mut A, count: usize) {
    *sum = *sum / A::from_f64(count.max(1) as f64);
}
