//! Unfold on the CPU.
//!
//! | case | path |
//! |---|---|
//! | one tap, nothing padded or skipped | a parallel copy |
//! | channels first, planes whose slab fits in L2 | a task fills one slab per plane and copies K blocks out of it; short ones are put together in cache first |
//! | channels first, larger planes | the same per box of outputs |
//! | channels last | a task per run of positions; a tap is a copy of a group's channels, taps that are neighbours in memory are copied together |

use super::Call;
use crate::element::Element;
use crate::error::Result;
use crate::geometry::{Axes, Box3, Layout, ravel, unravel, volume};
use crate::patches::slab::{SLAB_BYTES, Slab, boxes};
use crate::plan::{Explanation, Pass};
use crate::stream::{self, StreamWriter};
use crate::workers::{Room, Scratch, Shared, Workers, wanted_tasks};

/// Bytes a task should write, or read, at least, so that scheduling does not show.
const TASK_BYTES: usize = 128 << 10;

/// Tasks for each thread there should be at least.
const TASKS: usize = 2;

/// A plane's patches of at most so many bytes are put together in a core's cache before they are written.
const STAGED_BYTES: usize = 16 << 10;

/// How patches are gathered, and all tables for it.
#[derive(Debug)]
pub(crate) struct Unfold {
    call: Call,
    path: Path,
    tasks: usize,
    /// Whether patches are written past the caches.
    streaming: bool,
}

#[derive(Debug)]
enum Path {
    /// Runs of so many elements.
    Copy { len: usize },
    /// So many planes, through a slab each; where the slab's blocks are that the patches are made of.
    Planes { planes: usize, slab: Slab, blocks: Vec<usize> },
    /// Boxes of a plane's outputs.
    Boxes(Vec<(Box3, Slab)>),
    /// So many positions.
    Positions { positions: usize },
}

impl Unfold {
    /// A plan for elements of this type, and whom it takes.
    pub(super) fn new<T: Element>(call: &Call, explanation: &mut Explanation) -> (Self, Workers) {
        let Call { layout, axes, batch, channels, .. } = call;
        let size = size_of::<T>();
        let (plane_in, rows, positions) = (axes.inputs(), axes.taps(), axes.outputs());
        let planes = batch * channels;
        let bytes = planes * rows * positions * size;
        let at_least = |each: usize| (TASK_BYTES / each.max(1)).max(1);
        let (algorithm, reason, path, tasks, room) = match layout {
            _ if axes.is_identity() => {
                let len = TASK_BYTES / size;
                let tasks = (planes * plane_in).div_ceil(len);
                ("copy", "the patches are the input", Path::Copy { len }, tasks, Room::default())
            }
            Layout::ChannelsLast => {
                let per_task = at_least(rows * channels * size);
                let room = Room::default().and::<T>(rows * channels + stream::margin::<T>());
                let tasks = (batch * positions).div_ceil(per_task);
                let path = Path::Positions { positions: per_task };
                ("positions", "channels are neighbours, and copied together", path, tasks, room)
            }
            Layout::ChannelsFirst => {
                // Fewer planes than tasks are divided, too.
                let share = (bytes / wanted_tasks(TASKS)).max(TASK_BYTES) / (rows * size);
                let boxes = boxes(axes.output_extents(), |part| {
                    Slab::len_for(axes, part) <= SLAB_BYTES / size && volume(part) <= share
                });
                let slabs = boxes.into_iter().map(|part| (part.clone(), Slab::new(axes, part)));
                let mut slabs: Vec<_> = slabs.collect();
                let largest = slabs.iter().map(|(_, slab)| slab.len()).max().unwrap_or(0);
                let room = Room::default().and::<T>(largest + stream::margin::<T>());
                if slabs.len() == 1 {
                    let per_task = at_least((rows * positions).max(plane_in) * size);
                    let slab = slabs.remove(0).1;
                    let room = room.and::<T>(staged::<T>(rows * positions));
                    let path = Path::Planes { planes: per_task, blocks: slab.blocks(), slab };
                    let reason = "a plane unfolded on its last axis stays in a core's cache";
                    ("slab", reason, path, planes.div_ceil(per_task), room)
                } else {
                    let tasks = planes * slabs.len();
                    let reason =
                        "a box of a plane, unfolded on its last axis, stays in a core's cache";
                    ("slab", reason, Path::Boxes(slabs), tasks, room)
                }
            }
        };
        let streaming = stream::worthwhile(bytes);
        explanation.algorithm = algorithm.into();
        explanation.reason = reason.into();
        let stores = if streaming { "stores past the caches" } else { "stores to the caches" };
        explanation.passes.push(Pass::on_cpu("gather patches", tasks).by(stores));
        let plan = Unfold { call: call.clone(), path, tasks, streaming };
        (plan, Workers::new(tasks, room))
    }

    /// Writes all of `patches`.
    pub(super) fn run<T: Element>(
        &self,
        workers: &Workers,
        input: &[T],
        patches: &mut [T],
        memory: &mut [u8],
    ) -> Result<()> {
        let (axes, streaming) = (&self.call.axes, self.streaming);
        let (plane_in, plane_out) = (axes.inputs(), axes.taps() * axes.outputs());
        let (all, target) = (patches.len(), Shared::new(patches));
        // The part of the patches that is a task's, if each has `len` elements.
        let part = |task: usize, len: usize| {
            let start = task * len;
            // SAFETY: parts of different tasks do not overlap.
            unsafe { target.run(start, len.min(all - start)) }
        };
        workers.share_out(self.tasks, memory, |task, scratch| {
            match &self.path {
                Path::Copy { len } => {
                    let target = part(task, *len);
                    let source = &input[task * len..][..target.len()];
                    StreamWriter::new(target, streaming).write(source);
                }
                Path::Planes { planes, slab, blocks } => {
                    let data = scratch.take::<T>(slab.len() + stream::margin::<T>());
                    let staged = scratch.take::<T>(staged::<T>(plane_out));
                    let target = part(task, planes * plane_out);
                    let count = target.len() / plane_out;
                    let len = slab.block_len();
                    let mut writer = StreamWriter::new(target, streaming);
                    for plane in input[task * planes * plane_in..].chunks(plane_in).take(count) {
                        slab.copy(plane, 1, &mut data[..slab.len()]);
                        if staged.is_empty() {
                            blocks.iter().for_each(|&block| writer.write(&data[block..][..len]));
                            continue;
                        }
                        for (row, &block) in blocks.iter().enumerate() {
                            stream::copy_short(&mut staged[row * len..], &data[block..], len);
                        }
                        writer.write(&staged[..plane_out]);
                    }
                }
                Path::Boxes(boxes) => {
                    let (plane, (outputs, slab)) = (task / boxes.len(), &boxes[task % boxes.len()]);
                    let data = scratch.take::<T>(slab.len());
                    slab.copy(&input[plane * plane_in..][..plane_in], 1, data);
                    let first = ravel(outputs.each_ref().map(|o| o.start), axes.output_extents());
                    let len = slab.depth() * slab.block_len();
                    for (row, tap) in axes.each_tap().enumerate() {
                        let start = plane * plane_out + row * axes.outputs() + first;
                        // SAFETY: a box's outputs of each of the plane's rows are this task's.
                        let target = unsafe { target.run(start, len) };
                        copy_row(slab, data, tap, &mut StreamWriter::new(target, streaming));
                    }
                }
                Path::Positions { positions } => {
                    self.positions(task * positions, input, scratch, |len| {
                        part(task, positions * len)
                    });
                }
            }
            Ok(())
        })
    }

    /// The patches of consecutive positions of channels-last images, from `first` on.
    fn positions<'p, T: Element>(
        &self,
        first: usize,
        input: &[T],
        scratch: &mut Scratch,
        part: impl FnOnce(usize) -> &'p mut [T],
    ) {
        let Call { axes, channels, groups, .. } = &self.call;
        let (plane_in, row) = (axes.inputs() * channels, axes.taps() * channels);
        let patch = scratch.take::<T>(row + stream::margin::<T>());
        let target = part(row);
        let count = target.len() / row;
        let mut writer = StreamWriter::new(target, self.streaming);
        let outputs = axes.output_extents();
        let mut image = first / axes.outputs();
        let mut position = unravel(first % axes.outputs(), outputs);
        for _ in 0..count {
            gather_position(axes, *channels, *groups, &input[image * plane_in..], position, patch);
            writer.write(&patch[..row]);
            // The next position, of the next image after the last.
            image += next(&mut position, outputs);
        }
    }
}

/// Steps on to the next position: 1 where that is the first one again.
fn next(position: &mut [usize; 3], extents: [usize; 3]) -> usize {
    for axis in (0..3).rev() {
        position[axis] += 1;
        if position[axis] < extents[axis] {
            return 0;
        }
        position[axis] = 0;
    }
    1
}

/// Elements of memory in which so many are put together; none if they are too many.
fn staged<T>(len: usize) -> usize {
    if len * size_of::<T>() <= STAGED_BYTES { len + stream::margin::<T>() } else { 0 }
}

fn copy_row<T: Element>(slab: &Slab, data: &[T], tap: [usize; 3], writer: &mut StreamWriter<T>) {
    for d in 0..slab.depth() {
        writer.write(&data[slab.block(tap, d)..][..slab.block_len()]);
    }
}

/// The patch of one position of a channels-last image, ordered (group, tap, channel of the group). Others may follow
/// the image; what follows the patch may be overwritten.
fn gather_position<T: Element>(
    axes: &Axes,
    channels: usize,
    groups: usize,
    image: &[T],
    [d, h, w]: [usize; 3],
    patch: &mut [T],
) {
    let [map_d, map_h, map_w] = &**axes;
    let (per_group, block) = (channels / groups, axes.taps() * channels / groups);
    let row = map_w.taps();
    // Taps along the last axis that lie side by side in memory.
    let together = groups == 1
        && map_w.dilation() == 1
        && map_w.inside().start <= map_w.padded_position(w, 0)
        && map_w.padded_position(w, row - 1) < map_w.inside().end;
    let first = if together { map_w.source(w, 0) } else { None };
    let mut tap = 0;
    for source_d in (0..map_d.taps()).map(|k| map_d.source(d, k)) {
        for source_h in (0..map_h.taps()).map(|k| map_h.source(h, k)) {
            let line =
                source_d.zip(source_h).map(|(d, h)| (d * map_h.inputs() + h) * map_w.inputs());
            if let (Some(line), Some(first)) = (line, first) {
                let source = &image[(line + first) * channels..];
                stream::copy_short(&mut patch[tap * channels..], source, row * channels);
                tap += row;
                continue;
            }
            for source_w in (0..row).map(|k| map_w.source(w, k)) {
                let source = line.zip(source_w).map(|(line, w)| &image[(line + w) * channels..]);
                for group in 0..groups {
                    let target = &mut patch[group * block + tap * per_group..];
                    match source {
                        // Groups' blocks lie apart, and those behind may be written already.
                        Some(source) if groups > 1 => target[..per_group]
                            .copy_from_slice(&source[group * per_group..][..per_group]),
                        Some(source) => stream::copy_short(target, source, channels),
                        None => target[..per_group].fill(T::default()),
                    }
                }
                tap += 1;
            }
        }
    }
}
