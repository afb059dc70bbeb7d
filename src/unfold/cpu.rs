//! Unfold on the CPU.
//!
//! | case | path |
//! |---|---|
//! | one tap, nothing padded or skipped, channels first | a parallel copy |
//! | channels first, planes with few patch entries | a task looks every entry of a plane's patches up in one table |
//! | channels first, planes whose slab fits in L2 | a task fills one slab per plane and copies K blocks out of it |
//! | channels first, larger planes | the same per box of outputs |
//! | channels last | a task per run of positions; a tap is a copy of a group's channels, taps that are neighbours in memory are copied together |

use super::Call;
use crate::element::Element;
use crate::error::Result;
use crate::geometry::{Axes, Box3, Layout, ravel};
use crate::patches::slab::{SLAB_BYTES, Slab, output_boxes};
use crate::plan::{Explanation, Pass};
use crate::stream::{self, StreamWriter};
use crate::workers::{Room, Scratch, Shared, Workers};

/// Bytes of output a task should write at least, so that scheduling does not show.
const TASK_BYTES: usize = 128 << 10;

/// Planes with at most so many patch entries (C·K of one channel) are copied through an index table,
/// which costs one look-up an entry but nothing a line: their lines are shorter than a cache line.
pub(crate) const TABLE_ENTRIES: usize = 2048;

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
    /// So many planes, whose patch entries copy the inputs with these numbers.
    Table { planes: usize, sources: Vec<usize> },
    /// So many planes, through a slab each.
    Planes { planes: usize, slab: Slab },
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
            Layout::ChannelsLast => {
                let per_task = at_least(rows * channels * size);
                let room = Room::default().and::<T>(rows * channels);
                let tasks = (batch * positions).div_ceil(per_task);
                let path = Path::Positions { positions: per_task };
                ("positions", "channels are neighbours, and copied together", path, tasks, room)
            }
            Layout::ChannelsFirst if axes.is_identity() => {
                let len = TASK_BYTES / size;
                let tasks = (planes * plane_in).div_ceil(len);
                ("copy", "the patches are the input", Path::Copy { len }, tasks, Room::default())
            }
            Layout::ChannelsFirst if rows * positions <= TABLE_ENTRIES => {
                // A dropped tap reads the zero behind the plane.
                let sources = entry_sources(axes, plane_in);
                let per_task = at_least(sources.len() * size);
                let room = Room::default().and::<T>(plane_in + 1).and::<T>(sources.len());
                let path = Path::Table { planes: per_task, sources };
                let reason =
                    "lines are shorter than a cache line, and a look-up an entry is cheaper";
                ("table", reason, path, planes.div_ceil(per_task), room)
            }
            Layout::ChannelsFirst => {
                let boxes = output_boxes(axes, SLAB_BYTES / size);
                let slabs = boxes.into_iter().map(|part| (part.clone(), Slab::new(axes, part)));
                let mut slabs: Vec<_> = slabs.collect();
                let largest = slabs.iter().map(|(_, slab)| slab.len()).max().unwrap_or(0);
                let room = Room::default().and::<T>(largest);
                if slabs.len() == 1 {
                    let per_task = at_least(rows * positions * size);
                    let path = Path::Planes { planes: per_task, slab: slabs.remove(0).1 };
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
                Path::Table { planes, sources } => {
                    let padded = scratch.zeros::<T>(plane_in + 1);
                    let staged = scratch.take::<T>(sources.len());
                    let target = part(task, planes * plane_out);
                    let count = target.len() / plane_out;
                    let mut writer = StreamWriter::new(target, streaming);
                    for plane in input[task * planes * plane_in..].chunks(plane_in).take(count) {
                        padded[..plane_in].copy_from_slice(plane);
                        staged.iter_mut().zip(sources).for_each(|(t, &s)| *t = padded[s]);
                        writer.write(staged);
                    }
                }
                Path::Planes { planes, slab } => {
                    let data = scratch.take::<T>(slab.len());
                    let target = part(task, planes * plane_out);
                    let count = target.len() / plane_out;
                    let mut writer = StreamWriter::new(target, streaming);
                    for plane in input[task * planes * plane_in..].chunks(plane_in).take(count) {
                        slab.copy(plane, 1, data);
                        for tap in axes.each_tap() {
                            copy_row(slab, data, tap, &mut writer);
                        }
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
        let patch = scratch.take::<T>(row);
        let target = part(row);
        let count = target.len() / row;
        let mut writer = StreamWriter::new(target, self.streaming);
        for position in first..first + count {
            let image = &input[position / axes.outputs() * plane_in..][..plane_in];
            gather_position(axes, *groups, image, position % axes.outputs(), patch);
            writer.write(patch);
        }
    }
}

/// Every patch entry of one plane, row-major: the index of the input it copies, or `dropped`.
pub(crate) fn entry_sources(axes: &Axes, dropped: usize) -> Vec<usize> {
    let [map_d, map_h, map_w] = &**axes;
    let outputs = [0, 1, 2].map(|axis| 0..axes[axis].outputs());
    let mut sources = Vec::new();
    for tap in axes.each_tap() {
        for d in outputs[0].clone().map(|o| map_d.source(o, tap[0])) {
            for h in outputs[1].clone().map(|o| map_h.source(o, tap[1])) {
                let line = d.zip(h).map(|(d, h)| (d * map_h.inputs() + h) * map_w.inputs());
                let source = outputs[2].clone().map(|o| line.zip(map_w.source(o, tap[2])));
                sources.extend(source.map(|s| s.map_or(dropped, |(line, w)| line + w)));
            }
        }
    }
    sources
}

fn copy_row<T: Element>(slab: &Slab, data: &[T], tap: [usize; 3], writer: &mut StreamWriter<T>) {
    for d in 0..slab.depth() {
        writer.write(&data[slab.block(tap, d)..][..slab.block_len()]);
    }
}

/// The patch of one position of a channels-last image, ordered (group, tap, channel of the group).
fn gather_position<T: Element>(
    axes: &Axes,
    groups: usize,
    image: &[T],
    position: usize,
    patch: &mut [T],
) {
    let [map_d, map_h, map_w] = &**axes;
    let channels = image.len() / axes.inputs();
    let per_group = channels / groups;
    let (w, rest) = (position % map_w.outputs(), position / map_w.outputs());
    let (d, h) = (rest / map_h.outputs(), rest % map_h.outputs());
    let row = map_w.taps();
    // Taps along the last axis that lie side by side in memory.
    let together = groups == 1
        && map_w.dilation() == 1
        && map_w.inside().start <= map_w.padded_position(w, 0)
        && map_w.padded_position(w, row - 1) < map_w.inside().end;
    for (line, tap) in
        (0..map_d.taps() * map_h.taps()).map(|k| (k, [k / map_h.taps(), k % map_h.taps()]))
    {
        let outer = map_d.source(d, tap[0]).zip(map_h.source(h, tap[1]));
        let input = outer.map(|(d, h)| {
            let width = map_w.inputs() * channels;
            &image[(d * map_h.inputs() + h) * width..][..width]
        });
        if let (true, Some(input), Some(first)) = (together, input, map_w.source(w, 0)) {
            let len = row * channels;
            patch[line * len..][..len].copy_from_slice(&input[first * channels..][..len]);
            continue;
        }
        for k in 0..row {
            let source =
                input.zip(map_w.source(w, k)).map(|(input, i)| &input[i * channels..][..channels]);
            for group in 0..groups {
                let at = (group * (patch.len() / groups)) + (line * row + k) * per_group;
                let target = &mut patch[at..][..per_group];
                match source {
                    Some(source) => {
                        target.copy_from_slice(&source[group * per_group..][..per_group])
                    }
                    None => target.fill(T::default()),
                }
            }
        }
    }
}
