//! Fold on the CPU: every element of the result is summed by one task, in an order that depends on the
//! geometry alone, so there are no atomics and the bytes do not depend on the number of threads.
//!
//! | case | path |
//! |---|---|
//! | channels first, planes with few patch entries | every entry is added to its sum through an index table |
//! | channels first, one spatial axis | patch rows are added to the line directly |
//! | channels first, else | plane by plane (or box by box of large, zero-padded planes) patch rows are added to a slab block by block, then the slab's lines to the plane |
//! | channels last | line by line of the result, groups of channels are added |

use std::ops::Range;

use crate::element::{Accumulator, Element, each_batch};
use crate::error::Result;
use crate::geometry::{Axes, AxisMap, AxisRows, Box3, Layout, PaddingMode, volume};
use crate::patches::slab::{Lines, SLAB_BYTES, boxes, inner_outputs};
use crate::plan::{Explanation, Pass};
use crate::unfold::{Call, TABLE_ENTRIES, entry_sources};
use crate::workers::{Room, Scratch, Shared, Workers};

/// Patch entries that a task adds up at least, so that scheduling does not show.
const TASK_ENTRIES: usize = 32 << 10;

/// How patches are added up, and all tables for it.
#[derive(Debug)]
pub(crate) struct Fold {
    call: Call,
    path: Path,
    tasks: usize,
    /// To average: how many patch entries each position sums, per axis.
    overlap: Option<[Vec<usize>; 3]>,
}

#[derive(Debug)]
enum Path {
    /// So many planes, whose patch entries are added to the sums with these numbers.
    Table { planes: usize, sources: Vec<usize> },
    /// So many planes at a time if there is one box, else a box of a plane.
    Boxes { planes: usize, boxes: Vec<BoxFold> },
    /// So many lines of channels-last images; for the two outer axes, the outputs that read each input.
    Lines { lines: usize, readers: [AxisRows; 2] },
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
            Layout::ChannelsFirst if entries <= TABLE_ENTRIES => {
                // Neighbouring entries belong to different positions, so the additions do not wait for
                // each other; what is dropped goes to one more sum.
                let sources = entry_sources(axes, plane);
                let per_task = at_least(entries);
                let room = Room::default().and::<T::Acc>(plane + 1);
                let reason = "lines are short, and a look-up an entry is cheaper";
                let path = Path::Table { planes: per_task, sources };
                ("table", reason, path, planes.div_ceil(per_task), room)
            }
            Layout::ChannelsFirst => {
                let limit = SLAB_BYTES / size_of::<T::Acc>();
                // Modes other than zeros send border positions to other boxes, so those planes stay whole.
                let parts = if axes[2].mode() == PaddingMode::Zeros {
                    boxes(inputs, |part| FoldSlab::lines(axes, part).1.len() <= limit)
                } else {
                    vec![inputs.map(|n| 0..n)]
                };
                let boxes: Vec<_> =
                    parts.into_iter().map(|part| BoxFold::new(axes, part)).collect();
                let largest = |of: fn(&BoxFold) -> usize| boxes.iter().map(of).max().unwrap_or(0);
                let room = Room::default()
                    .and::<T::Acc>(sums_apart::<T>(largest(|b| volume(&b.part))))
                    .and::<T::Acc>(largest(BoxFold::slab_len));
                let per_task = if boxes.len() == 1 { at_least(entries) } else { 1 };
                let tasks = planes.div_ceil(per_task) * boxes.len();
                let (algorithm, reason) = match boxes.first().map(|first| &first.way) {
                    Some(Way::Slab(_)) => {
                        ("slab", "rows of patches are added as blocks to a slab in a core's cache")
                    }
                    _ => ("rows", "with one spatial axis, rows of patches are added to the line"),
                };
                (algorithm, reason, Path::Boxes { planes: per_task, boxes }, tasks, room)
            }
            Layout::ChannelsLast => {
                let readers = [axes[0].adjoint_rows()?, axes[1].adjoint_rows()?];
                let line = inputs[2] * channels;
                let lines = batch * inputs[0] * inputs[1];
                let per_task = at_least(line * axes.taps());
                let room = Room::default().and::<T::Acc>(sums_apart::<T>(line));
                let path = Path::Lines { lines: per_task, readers };
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
                Path::Table { planes, sources } => {
                    let sums = scratch.take::<T::Acc>(plane + 1);
                    let whole = axes.input_extents().map(|n| 0..n);
                    let patches = patches[task * planes * entries..].chunks(entries);
                    for (target, patches) in
                        part(task, planes * plane).chunks_mut(plane).zip(patches)
                    {
                        sums.fill(T::Acc::ZERO);
                        sources
                            .iter()
                            .zip(patches)
                            .for_each(|(&s, patch)| sums[s] += patch.to_acc());
                        self.divide(&whole, 1, &mut sums[..plane]);
                        T::narrow(&sums[..plane], target);
                    }
                }
                Path::Boxes { planes, boxes } => match &boxes[..] {
                    [whole] => {
                        let patches = patches[task * planes * entries..].chunks(entries);
                        let targets = part(task, planes * plane).chunks_mut(plane);
                        for (target, patches) in targets.zip(patches) {
                            self.fold_box(whole, patches, target, scratch.part());
                        }
                    }
                    boxes => {
                        let (image, own) = (task / boxes.len(), &boxes[task % boxes.len()]);
                        let patches = &patches[image * entries..][..entries];
                        let start = image * plane + own.start;
                        // SAFETY: boxes are consecutive positions, none of which is in two of them.
                        let target = unsafe { target.run(start, volume(&own.part)) };
                        self.fold_box(own, patches, target, scratch.part());
                    }
                },
                Path::Lines { lines, readers } => {
                    let line = axes[2].inputs() * self.call.channels;
                    let targets = part(task, lines * line).chunks_mut(line);
                    for (number, target) in targets.enumerate() {
                        let sums = scratch.part();
                        self.fold_line(readers, task * lines + number, patches, target, sums);
                    }
                }
            }
            Ok(())
        })
    }

    /// A box of a plane's sums, from the plane's patches `[K, L]`.
    fn fold_box<T: Element>(
        &self,
        own: &BoxFold,
        patches: &[T],
        target: &mut [T],
        mut scratch: Scratch,
    ) {
        let slab = scratch.take::<T::Acc>(own.slab_len());
        into_sums(target, scratch, |sums| {
            match &own.way {
                Way::Rows(taps) => {
                    let rows = patches.chunks_exact(self.call.axes.outputs());
                    for ((outputs, fold), row) in taps.iter().zip(rows) {
                        fold.add(&row[outputs.clone()], sums);
                    }
                }
                Way::Slab(fold) => {
                    slab.fill(T::Acc::ZERO);
                    fold.add_patches(patches, slab);
                    fold.add_lines_to(&own.part, slab, sums);
                }
            }
            self.divide(&own.part, 1, sums);
        });
    }

    /// The sums of a line of a channels-last image.
    fn fold_line<T: Element>(
        &self,
        readers: &[AxisRows; 2],
        number: usize,
        patches: &[T],
        target: &mut [T],
        scratch: Scratch,
    ) {
        let Call { axes, channels, groups, .. } = &self.call;
        let [map_d, map_h, map_w] = &**axes;
        let lines = map_d.inputs() * map_h.inputs();
        let patch = axes.taps() * channels;
        let image = axes.outputs() * patch;
        let patches = &patches[number / lines * image..][..image];
        let (d, h) = (number % lines / map_h.inputs(), number % map_h.inputs());
        into_sums(target, scratch, |sums| {
            for (out_d, taps_d) in readers[0].row(d) {
                for (out_h, taps_h) in readers[1].row(h) {
                    let first = (out_d * map_h.outputs() + out_h) * map_w.outputs() * patch;
                    let line = &patches[first..][..map_w.outputs() * patch];
                    for (tap_d, tap_h) in pairs(taps_d, taps_h) {
                        let tap = (tap_d * map_h.taps() + tap_h) * map_w.taps();
                        add_taps(map_w, tap, channels / groups, line, patch / groups, sums);
                    }
                }
            }
            self.divide(&[d..d + 1, h..h + 1, 0..map_w.inputs()], *channels, sums);
        });
    }

    /// To average: divides the sums of a box by the number of entries each has; `inner` elements share a
    /// position.
    fn divide<A: Accumulator>(&self, part: &Box3, inner: usize, sums: &mut [A]) {
        let Some(overlap) = &self.overlap else { return };
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
}

/// Elements of the memory that sums take besides the result: none where they are of the result's type.
fn sums_apart<T: Element>(len: usize) -> usize {
    if T::DTYPE == <T::Acc as Element>::DTYPE { 0 } else { len }
}

/// Runs `sum` on zeros, in place when elements are accumulators and else in memory of the worker's, and
/// leaves the rounded result in `target`.
fn into_sums<T: Element>(target: &mut [T], mut scratch: Scratch, sum: impl FnOnce(&mut [T::Acc])) {
    if let Some(target) = T::as_acc_mut(target) {
        target.fill(T::Acc::ZERO);
        return sum(target);
    }
    let sums = scratch.zeros::<T::Acc>(target.len());
    sum(sums);
    T::narrow(sums, target);
}

/// How a box of a plane's sums is made of the plane's patches.
#[derive(Debug)]
struct BoxFold {
    part: Box3,
    /// The number of its first position.
    start: usize,
    way: Way,
}

#[derive(Debug)]
enum Way {
    /// One spatial axis: each tap's row, the outputs of which are added to the line.
    Rows(Vec<(Range<usize>, LineFold)>),
    Slab(FoldSlab),
}

impl BoxFold {
    fn new(axes: &Axes, part: Box3) -> Self {
        let [d, h, w] = axes.input_extents();
        let map = &axes[2];
        let start = (part[0].start * h + part[1].start) * w + part[2].start;
        let way = if [d, h] == [1, 1] && axes.taps() == map.taps() {
            let held = held(map, &part[2]);
            let row = |tap| {
                let outputs = map.outputs_reading(tap, &held);
                (outputs.clone(), LineFold::new(map, tap, outputs, part[2].start))
            };
            Way::Rows((0..map.taps()).map(row).collect())
        } else {
            Way::Slab(FoldSlab::new(axes, &part))
        };
        BoxFold { part, start, way }
    }

    /// Elements of its slab.
    fn slab_len(&self) -> usize {
        match &self.way {
            Way::Rows(_) => 0,
            Way::Slab(slab) => slab.lines.len(),
        }
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

/// The slab that gathers what belongs to a box of the result.
#[derive(Debug)]
struct FoldSlab {
    axes: Axes,
    /// Padded positions that are summed, per axis.
    held: Box3,
    lines: Lines,
    /// Where the lines of each tap of the last axis go.
    taps: Vec<LineFold>,
}

impl FoldSlab {
    fn new(axes: &Axes, part: &Box3) -> Self {
        let map = &axes[2];
        let (held, lines) = Self::lines(axes, part);
        let fold = |tap| LineFold::new(map, tap, map.outputs_reading(tap, &held[2]), part[2].start);
        let taps = (0..map.taps()).map(fold).collect();
        FoldSlab { axes: axes.clone(), held, lines, taps }
    }

    /// The padded positions that are summed into this box, and the lines for them.
    fn lines(axes: &Axes, part: &Box3) -> (Box3, Lines) {
        let held = [0, 1, 2].map(|axis| held(&axes[axis], &part[axis]));
        let width = (0..axes[2].taps()).map(|k| axes[2].outputs_reading(k, &held[2]).len());
        let lines = Lines::new(axes, [held[0].len(), held[1].len()], width.max().unwrap_or(0));
        (held, lines)
    }

    /// Adds the patch rows of one plane, `[K, L]`.
    fn add_patches<T: Element>(&self, patches: &[T], slab: &mut [T::Acc]) {
        let [map_d, map_h, map_w] = &*self.axes;
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
    fn add_lines_to<A: Accumulator>(&self, part: &Box3, slab: &[A], sums: &mut [A]) {
        let [map_d, map_h, _] = &*self.axes;
        let [part_d, part_h, part_w] = part;
        for (tap, fold) in self.taps.iter().enumerate() {
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
    each_batch(source, |start, source| {
        target[start..].iter_mut().zip(source).for_each(|(t, &s)| *t += s);
    });
}

/// Where the elements of a line go, through one tap of the last axis: `target[source(o, tap) − first] +=
/// line[o]`.
#[derive(Debug)]
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
            2 => each_batch(line, |start, line| {
                let target = target[2 * start..].iter_mut().step_by(2);
                target.zip(line).for_each(|(t, &s)| *t += s);
            }),
            n => each_batch(line, |start, line| {
                let target = target[n * start..].iter_mut().step_by(n);
                target.zip(line).for_each(|(t, &s)| *t += s);
            }),
        }
    }
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
