//! Unfold on the CPU.
//!
//! | case | path |
//! |---|---|
//! | one tap, nothing padded or skipped, channels first | a parallel copy |
//! | channels first, planes with few patch entries | a task looks every entry of a plane's patches up in one table |
//! | channels first, planes whose slab fits in L2 | a task fills one slab per plane and copies K blocks out of it |
//! | channels first, larger planes | the same per box of outputs |
//! | channels last | a task per run of positions; a tap is a copy of a group's channels, taps that are neighbours in memory are copied together |

use rayon::prelude::*;

use crate::element::Element;
use crate::geometry::{Axes, Box3, Layout};
use crate::patches::slab::{SLAB_BYTES, Slab, output_boxes};
use crate::stream::{self, StreamWriter};

/// Bytes of output a task should write at least, so that scheduling does not show.
const TASK_BYTES: usize = 128 << 10;

/// Planes with at most so many patch entries (C·K of one channel) are copied through an index table,
/// which costs one look-up an entry but nothing a line: their lines are shorter than a cache line.
pub(crate) const TABLE_ENTRIES: usize = 2048;

/// Fills `patches`; `counts` are batch, channels and groups. All sizes have been checked.
pub(super) fn unfold<T: Element>(
    layout: Layout,
    axes: &Axes,
    counts: [usize; 3],
    input: &[T],
    patches: &mut [T],
) {
    if patches.is_empty() {
        return;
    }
    match layout {
        Layout::ChannelsFirst => channels_first(axes, input, patches),
        Layout::ChannelsLast => channels_last(axes, counts, input, patches),
    }
}

fn channels_first<T: Element>(axes: &Axes, input: &[T], patches: &mut [T]) {
    let streaming = stream::worthwhile(size_of_val(patches));
    let (plane_in, positions) = (axes.inputs(), axes.outputs());
    let rows = axes.taps();
    if axes.is_identity() {
        let len = TASK_BYTES / size_of::<T>();
        patches.par_chunks_mut(len).zip(input.par_chunks(len)).for_each(|(target, source)| {
            StreamWriter::new(target, streaming).write(source);
        });
        return;
    }
    if rows * positions <= TABLE_ENTRIES {
        return from_table(axes, plane_in, input, patches, streaming);
    }
    let boxes = output_boxes(axes, SLAB_BYTES / size_of::<T>());
    if let [all] = &boxes[..] {
        let slab = Slab::new(axes, all.clone());
        let planes = (TASK_BYTES / (rows * positions * size_of::<T>())).max(1);
        let tasks = patches.par_chunks_mut(planes * rows * positions);
        let tasks = tasks.zip(input.par_chunks(planes * plane_in));
        tasks.for_each_init(
            || vec![T::default(); slab.len()],
            |scratch, (patches, input)| {
                let mut writer = StreamWriter::new(patches, streaming);
                for plane in input.chunks(plane_in) {
                    slab.fill(plane, 1, scratch, |v| v);
                    for tap in axes.each_tap() {
                        copy_row(&slab, scratch, tap, &mut writer);
                    }
                }
            },
        );
        return;
    }
    let tasks: Vec<_> = patches
        .chunks_mut(rows * positions)
        .zip(input.chunks(plane_in))
        .flat_map(|(patches, plane)| box_tasks(axes, &boxes, patches, plane))
        .collect();
    tasks.into_par_iter().for_each_init(Vec::new, |scratch, task| {
        let slab = Slab::new(axes, task.outputs);
        scratch.resize(slab.len(), T::default());
        slab.fill(task.plane, 1, scratch, |v| v);
        for (tap, row) in axes.each_tap().zip(task.rows) {
            copy_row(&slab, scratch, tap, &mut StreamWriter::new(row, streaming));
        }
    });
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

fn from_table<T: Element>(
    axes: &Axes,
    plane_in: usize,
    input: &[T],
    patches: &mut [T],
    streaming: bool,
) {
    // A dropped tap reads the zero behind the plane.
    let sources = entry_sources(axes, plane_in);
    let entries = sources.len();
    let planes = (TASK_BYTES / (entries * size_of::<T>())).max(1);
    let tasks = patches.par_chunks_mut(planes * entries).zip(input.par_chunks(planes * plane_in));
    tasks.for_each_init(
        || (vec![T::default(); plane_in + 1], vec![T::default(); entries]),
        |(padded, staged), (patches, input)| {
            let mut writer = StreamWriter::new(patches, streaming);
            for plane in input.chunks(plane_in) {
                padded[..plane_in].copy_from_slice(plane);
                staged.iter_mut().zip(&sources).for_each(|(t, &s)| *t = padded[s]);
                writer.write(staged);
            }
        },
    );
}

/// A box of outputs of one plane, and its piece of each of the plane's patch rows.
struct BoxTask<'a, T> {
    outputs: Box3,
    plane: &'a [T],
    rows: Vec<&'a mut [T]>,
}

fn box_tasks<'a, T>(
    axes: &Axes,
    boxes: &[Box3],
    patches: &'a mut [T],
    plane: &'a [T],
) -> Vec<BoxTask<'a, T>> {
    let mut tasks: Vec<_> = boxes
        .iter()
        .map(|outputs| BoxTask { outputs: outputs.clone(), plane, rows: Vec::new() })
        .collect();
    for mut row in patches.chunks_mut(axes.outputs()) {
        for task in &mut tasks {
            let piece = row.split_off_mut(..task.outputs.iter().map(|r| r.len()).product());
            task.rows.extend(piece);
        }
    }
    tasks
}

fn copy_row<T: Element>(slab: &Slab, data: &[T], tap: [usize; 3], writer: &mut StreamWriter<T>) {
    for d in 0..slab.depth() {
        writer.write(&data[slab.block(tap, d)..][..slab.block_len()]);
    }
}

fn channels_last<T: Element>(
    axes: &Axes,
    [_, channels, groups]: [usize; 3],
    input: &[T],
    patches: &mut [T],
) {
    let streaming = stream::worthwhile(size_of_val(patches));
    let positions = axes.outputs();
    let plane_in = axes.inputs() * channels;
    let row = axes.taps() * channels;
    let per_task = (TASK_BYTES / (row * size_of::<T>())).max(1);
    patches.par_chunks_mut(per_task * row).enumerate().for_each_init(
        || vec![T::default(); row],
        |scratch, (task, patches)| {
            let count = patches.len() / row;
            let mut writer = StreamWriter::new(patches, streaming);
            for position in task * per_task..task * per_task + count {
                let image = &input[position / positions * plane_in..][..plane_in];
                gather_position(axes, groups, image, position % positions, scratch);
                writer.write(scratch);
            }
        },
    );
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
