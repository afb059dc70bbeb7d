//! Fold on the CPU: every element of the result is summed by one task, in an order that depends on the
//! geometry alone, so there are no atomics and the bytes do not depend on the number of threads.
//!
//! | case | path |
//! |---|---|
//! | channels first, planes with few patch entries | every entry is added to its sum through an index table |
//! | channels first, one spatial axis | patch rows are added to the line directly |
//! | channels first, else | a task per plane (or box of a large, zero-padded plane): patch rows are added to a slab block by block, then the slab's lines to the plane |
//! | channels last | a task per line of the result, to which groups of channels are added |

use std::ops::Range;

use rayon::prelude::*;

use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::geometry::{Axes, AxisMap, Box3, Layout, PaddingMode};
use crate::patches::slab::{Lines, SLAB_BYTES, boxes, inner_outputs};
use crate::unfold::{TABLE_ENTRIES, entry_sources};

/// Fills `output`; `counts` are batch, channels and groups. All sizes have been checked.
pub(super) fn fold<T: Element>(
    layout: Layout,
    axes: &Axes,
    counts: [usize; 3],
    patches: &[T],
    output: &mut [T],
    average: bool,
) -> Result<()> {
    if output.is_empty() {
        return Ok(());
    }
    let overlap = average.then(|| [0, 1, 2].map(|axis| axes[axis].overlap()));
    match layout {
        Layout::ChannelsFirst => channels_first(axes, patches, output, overlap.as_ref()),
        Layout::ChannelsLast => channels_last(axes, counts, patches, output, overlap.as_ref())?,
    }
    Ok(())
}

/// How many patch entries each position sums, per axis.
type Overlap = [Vec<usize>; 3];

fn channels_first<T: Element>(
    axes: &Axes,
    patches: &[T],
    output: &mut [T],
    overlap: Option<&Overlap>,
) {
    let inputs = axes.input_extents();
    if axes.taps() * axes.outputs() <= TABLE_ENTRIES {
        return through_table(axes, patches, output, overlap);
    }
    let limit = SLAB_BYTES / size_of::<T::Acc>();
    // Modes other than zeros send border positions to other boxes, so those planes stay whole.
    let boxes = if axes[2].mode() == PaddingMode::Zeros {
        boxes(inputs, |part| FoldSlab::new(axes, part.clone()).lines.len() <= limit)
    } else {
        vec![inputs.map(|n| 0..n)]
    };
    let rows = axes.taps() * axes.outputs();
    let plane = inputs.iter().product();
    let tasks: Vec<_> = output
        .chunks_mut(plane)
        .zip(patches.chunks(rows))
        .flat_map(|(mut plane, patches)| {
            boxes.iter().map(move |part| {
                let len = part.iter().map(|r| r.len()).product();
                (plane.split_off_mut(..len).unwrap_or_default(), patches, part)
            })
        })
        .collect();
    let at_least = ((16 << 10) / plane).max(1);
    tasks.into_par_iter().with_min_len(at_least).for_each_init(
        || (Vec::new(), Vec::new()),
        |(slab_data, sums), (target, patches, part)| {
            into_sums(target, sums, |sums| {
                if inputs[..2] == [1, 1] && axes.taps() == axes[2].taps() {
                    fold_rows(&axes[2], patches, &part[2], sums);
                } else {
                    let slab = FoldSlab::new(axes, part.clone());
                    slab_data.clear();
                    slab_data.resize(slab.lines.len(), T::Acc::ZERO);
                    slab.add_patches(patches, slab_data);
                    slab.add_lines_to(slab_data, sums);
                }
                if let Some(overlap) = overlap {
                    divide(overlap, part, 1, sums);
                }
            });
        },
    );
}

fn through_table<T: Element>(
    axes: &Axes,
    patches: &[T],
    output: &mut [T],
    overlap: Option<&Overlap>,
) {
    let inputs = axes.input_extents();
    let plane = inputs.iter().product();
    // Neighbouring entries belong to different positions, so the additions do not wait for each other;
    // what is dropped goes to one more sum.
    let sources = entry_sources(axes, plane);
    let planes = ((32 << 10) / sources.len()).max(1);
    let tasks = output.par_chunks_mut(planes * plane);
    let tasks = tasks.zip(patches.par_chunks(planes * sources.len()));
    tasks.for_each_init(Vec::new, |sums, (output, patches)| {
        for (target, patches) in output.chunks_mut(plane).zip(patches.chunks(sources.len())) {
            sums.clear();
            sums.resize(plane + 1, T::Acc::ZERO);
            sources.iter().zip(patches).for_each(|(&s, patch)| sums[s] += patch.to_acc());
            let sums = &mut sums[..plane];
            if let Some(overlap) = overlap {
                divide(overlap, &inputs.map(|n| 0..n), 1, sums);
            }
            T::narrow(sums, target);
        }
    });
}

/// One spatial axis: adds the patch rows `[K, L]` of a line to the part of it that `sums` is.
fn fold_rows<T: Element>(map: &AxisMap, patches: &[T], part: &Range<usize>, sums: &mut [T::Acc]) {
    let held = held(map, part);
    for (tap, row) in patches.chunks_exact(map.outputs()).enumerate() {
        let outputs = map.outputs_reading(tap, &held);
        LineFold::new(map, tap, outputs.clone(), part.start).add(&row[outputs], sums);
    }
}

/// The padded positions that are summed into the part of an axis: all of them into the whole axis;
/// into a part of a zero-padded one, where the map is one to one, those of its own positions.
fn held(map: &AxisMap, part: &Range<usize>) -> Range<usize> {
    if part.len() == map.inputs() {
        return 0..map.padded_extent();
    }
    let inside = map.inside();
    let first = map.padded_source(inside.start).filter(|_| !inside.is_empty()).unwrap_or(0);
    let padded = |i: usize| (i.max(first) - first + inside.start).min(inside.end);
    padded(part.start)..padded(part.end)
}

/// Runs `sum` on zeros, in place when elements are accumulators and else in `scratch`, and leaves the
/// rounded result in `target`.
fn into_sums<T: Element>(
    target: &mut [T],
    scratch: &mut Vec<T::Acc>,
    sum: impl FnOnce(&mut [T::Acc]),
) {
    if let Some(target) = T::as_acc_mut(target) {
        target.fill(T::Acc::ZERO);
        return sum(target);
    }
    scratch.clear();
    scratch.resize(target.len(), T::Acc::ZERO);
    sum(scratch);
    T::narrow(scratch, target);
}

/// Divides the sums of a box by the number of entries each has; `inner` elements share a position.
fn divide<A: Accumulator>(overlap: &Overlap, part: &Box3, inner: usize, sums: &mut [A]) {
    let mut sums = sums.chunks_exact_mut(inner);
    for d in part[0].clone() {
        for h in part[1].clone() {
            for w in part[2].clone() {
                let count = overlap[0][d] * overlap[1][h] * overlap[2][w];
                let sums = sums.next().unwrap_or_default();
                if count > 1 {
                    let count = A::from_f64(count as f64);
                    sums.iter_mut().for_each(|sum| *sum = *sum / count);
                }
            }
        }
    }
}

/// The slab that gathers what belongs to a box of the result.
struct FoldSlab<'m> {
    axes: &'m Axes,
    part: Box3,
    /// Padded positions that are summed, per axis.
    held: Box3,
    lines: Lines,
}

impl<'m> FoldSlab<'m> {
    fn new(axes: &'m Axes, part: Box3) -> Self {
        let held = [0, 1, 2].map(|axis| held(&axes[axis], &part[axis]));
        let width = (0..axes[2].taps()).map(|k| axes[2].outputs_reading(k, &held[2]).len());
        let width = width.max().unwrap_or(0);
        let lines = Lines::new(axes, [held[0].len(), held[1].len()], width);
        FoldSlab { axes, part, held, lines }
    }

    /// Adds the patch rows of one plane, `[K, L]`.
    fn add_patches<T: Element>(&self, patches: &[T], slab: &mut [T::Acc]) {
        let [map_d, map_h, map_w] = &**self.axes;
        let (height, width) = (map_h.outputs(), map_w.outputs());
        let rows = patches.chunks_exact(self.axes.outputs());
        for (tap, row) in self.axes.each_tap().zip(rows) {
            let [out_d, out_h, out_w] =
                [0, 1, 2].map(|axis| self.axes[axis].outputs_reading(tap[axis], &self.held[axis]));
            if out_h.is_empty() || out_w.is_empty() {
                continue;
            }
            let h = map_h.padded_position(out_h.start, tap[1]) - self.held[1].start;
            for d in out_d {
                let at = map_d.padded_position(d, tap[0]) - self.held[0].start;
                let start = self.lines.line(tap[2], at, h);
                if out_w.len() == width && self.lines.width() == width {
                    let row = &row[(d * height + out_h.start) * width..][..out_h.len() * width];
                    add(row, &mut slab[start..]);
                    continue;
                }
                for (line, h) in out_h.clone().enumerate() {
                    let row = &row[(d * height + h) * width + out_w.start..][..out_w.len()];
                    add(row, &mut slab[start + line * self.lines.width()..]);
                }
            }
        }
    }

    /// Adds the slab's lines to the box of the result.
    fn add_lines_to<A: Accumulator>(&self, slab: &[A], sums: &mut [A]) {
        let [map_d, map_h, map_w] = &**self.axes;
        let [part_d, part_h, part_w] = &self.part;
        for tap in 0..map_w.taps() {
            let outputs = map_w.outputs_reading(tap, &self.held[2]);
            let fold = LineFold::new(map_w, tap, outputs, part_w.start);
            for (at_d, d) in self.held[0].clone().enumerate() {
                let Some(i) = map_d.padded_source(d) else { continue };
                for (at_h, h) in self.held[1].clone().enumerate() {
                    let Some(j) = map_h.padded_source(h) else { continue };
                    let line = (i - part_d.start) * part_h.len() + j - part_h.start;
                    let target = &mut sums[line * part_w.len()..][..part_w.len()];
                    fold.add(&slab[self.lines.line(tap, at_d, at_h)..], target);
                }
            }
        }
    }
}

/// `target[j] += source[j]` over all of `source`.
#[inline]
fn add<T: Element>(source: &[T], target: &mut [T::Acc]) {
    target.iter_mut().zip(source).for_each(|(t, s)| *t += s.to_acc());
}

/// Where the elements of a line go, through one tap of the last axis: `target[source(o, tap) − first] +=
/// line[o]`.
struct LineFold {
    /// The part of the line that goes to every `stride`-th target from `start` on.
    inner: Range<usize>,
    start: usize,
    stride: usize,
    /// All others: (where in the line, where in the target).
    edges: Vec<(usize, usize)>,
}

impl LineFold {
    /// A line that holds these outputs, and a target that begins with input `first`.
    fn new(map: &AxisMap, tap: usize, outputs: Range<usize>, first: usize) -> Self {
        let inner = inner_outputs(map, tap, &outputs);
        let edges = (outputs.start..inner.start).chain(inner.end..outputs.end);
        let edges = edges.filter_map(|o| Some((o - outputs.start, map.source(o, tap)? - first)));
        let edges = edges.collect();
        let start = if inner.is_empty() { None } else { map.source(inner.start, tap) };
        let inner = inner.start - outputs.start..inner.end - outputs.start;
        LineFold { inner, start: start.map_or(0, |i| i - first), stride: map.stride(), edges }
    }

    #[inline]
    fn add<T: Element>(&self, line: &[T], target: &mut [T::Acc]) {
        for &(from, to) in &self.edges {
            target[to] += line[from].to_acc();
        }
        let line = &line[self.inner.clone()];
        let target = &mut target[self.start..];
        match self.stride {
            1 => add(line, target),
            2 => target.iter_mut().step_by(2).zip(line).for_each(|(t, s)| *t += s.to_acc()),
            n => target.iter_mut().step_by(n).zip(line).for_each(|(t, s)| *t += s.to_acc()),
        }
    }
}

fn channels_last<T: Element>(
    axes: &Axes,
    [_, channels, groups]: [usize; 3],
    patches: &[T],
    output: &mut [T],
    overlap: Option<&Overlap>,
) -> Result<()> {
    let [map_d, map_h, map_w] = &**axes;
    let readers = [map_d.adjoint_rows()?, map_h.adjoint_rows()?];
    let lines = map_d.inputs() * map_h.inputs();
    let patch = axes.taps() * channels;
    let image = axes.outputs() * patch;
    let per_group = channels / groups;
    let tasks = output.par_chunks_mut(map_w.inputs() * channels).enumerate();
    tasks.for_each_init(Vec::new, |scratch, (task, target)| {
        let patches = &patches[task / lines * image..][..image];
        let (d, h) = (task % lines / map_h.inputs(), task % map_h.inputs());
        into_sums(target, scratch, |sums| {
            for (out_d, taps_d) in readers[0].row(d) {
                for (out_h, taps_h) in readers[1].row(h) {
                    let first = (out_d * map_h.outputs() + out_h) * map_w.outputs() * patch;
                    let line = &patches[first..][..map_w.outputs() * patch];
                    for (tap_d, tap_h) in pairs(taps_d, taps_h) {
                        let tap = (tap_d * map_h.taps() + tap_h) * map_w.taps();
                        add_taps(map_w, tap, per_group, line, patch / groups, sums);
                    }
                }
            }
            if let Some(overlap) = overlap {
                let part = [d..d + 1, h..h + 1, 0..map_w.inputs()];
                divide(overlap, &part, channels, sums);
            }
        });
    });
    Ok(())
}

fn pairs<'a>(left: &'a [usize], right: &'a [usize]) -> impl Iterator<Item = (usize, usize)> + 'a {
    left.iter().flat_map(move |&l| right.iter().map(move |&r| (l, r)))
}

/// Adds the taps `first_tap..` of the last axis, at all its outputs, to a line of channels-last sums.
/// `line` holds the patches of those outputs, each one block of `block` elements per group.
fn add_taps<T: Element>(
    map: &AxisMap,
    first_tap: usize,
    per_group: usize,
    line: &[T],
    block: usize,
    sums: &mut [T::Acc],
) {
    let channels = sums.len() / map.inputs();
    let groups = channels / per_group;
    for o in 0..map.outputs() {
        for k in 0..map.taps() {
            let Some(i) = map.source(o, k) else { continue };
            for group in 0..groups {
                let at = (o * groups + group) * block + (first_tap + k) * per_group;
                let target = &mut sums[i * channels + group * per_group..][..per_group];
                add(&line[at..][..per_group], target);
            }
        }
    }
}
