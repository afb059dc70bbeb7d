//! The half-way stage between an input plane and its patches: unfolding one axis is enough to make
//! every patch row a plain copy.
//!
//! The index map is separable, so a plane is unfolded along its last axis first, into a *slab*
//! `[tap w][padded d][padded h][output w]`. There a patch row (tap d, h, w) at outputs (d, h, ·) is
//! the contiguous line (w, d·stride + tap·dilation, h·stride + tap·dilation). Padded lines are stored
//! phase by phase (all positions ≡ 0 modulo the stride, then all ≡ 1, …), so the lines of consecutive
//! outputs h are consecutive too, and a whole plane of outputs is one block copy. Strides, dilation,
//! padding and its modes cost something only while the slab is filled, which moves 1/(K_D·K_H) of the
//! patches' bytes and stays in cache.

use std::cmp::Ordering;
use std::ops::Range;

use bytemuck::Pod;

use crate::element::{Element, copy_every};
use crate::geometry::{Axes, AxisMap, Box3, ravel, volume};
use crate::product::cpu::FactorOf;

/// Slabs of at most this many bytes stay in a core's L2 cache next to what is done with them.
pub(crate) const SLAB_BYTES: usize = 256 << 10;

/// Where the lines of a slab are.
#[derive(Clone, Debug)]
struct Lines {
    taps: usize,
    stride: [usize; 2],
    /// Lines set aside for each phase on the two outer axes, and for all of them.
    per_phase: [usize; 2],
    counts: [usize; 2],
    /// Elements in a line.
    width: usize,
}

impl Lines {
    /// Lines of `width` elements for so many padded positions on the two outer axes.
    fn new(axes: &Axes, held: [usize; 2], width: usize) -> Self {
        let stride = [0, 1].map(|axis| axes[axis].stride());
        let per_phase = [0, 1].map(|axis| held[axis].div_ceil(stride[axis]));
        // Of phases that have one line at most, only the first have any.
        let counts = [0, 1].map(|axis| match per_phase[axis] {
            0 | 1 => held[axis],
            lines => stride[axis] * lines,
        });
        Lines { taps: axes[2].taps(), stride, per_phase, counts, width }
    }

    /// Elements in all lines.
    pub(crate) fn len(&self) -> usize {
        self.taps * self.counts[0] * self.counts[1] * self.width
    }

    /// Where the line of tap `w` at padded positions (d, h), counted from the first held, starts.
    /// The lines of h, h + stride, h + 2·stride, … follow each other.
    #[inline]
    pub(crate) fn line(&self, w: usize, d: usize, h: usize) -> usize {
        let row = |axis: usize, q: usize| {
            q % self.stride[axis] * self.per_phase[axis] + q / self.stride[axis]
        };
        ((w * self.counts[0] + row(0, d)) * self.counts[1] + row(1, h)) * self.width
    }
}

/// The slab that serves a box of outputs.
#[derive(Clone, Debug)]
pub(crate) struct Slab {
    axes: Axes,
    outputs: Box3,
    lines: Lines,
    /// The first tap's lines.
    runs: Vec<Run>,
    taps: Vec<LineMap>,
}

/// Consecutive lines of a slab that are read from consecutive rows of the input, or from none.
#[derive(Clone, Debug)]
struct Run {
    /// Where the first line starts.
    start: usize,
    /// The row of the input it is read from; `None` in zero padding.
    row: Option<usize>,
    lines: usize,
}

/// Where the elements of a line come from, through one tap of the last axis.
#[derive(Clone, Debug)]
struct LineMap {
    /// Elements that come from `first`, `first + stride`, … of the input's row.
    inner: Range<usize>,
    first: usize,
    /// All others, and where they come from; `None` for zero.
    edges: Vec<(usize, Option<usize>)>,
}

impl LineMap {
    fn new(map: &AxisMap, tap: usize, outputs: &Range<usize>) -> Self {
        let inner = inner_outputs(map, tap, outputs);
        let edges = (outputs.start..inner.start).chain(inner.end..outputs.end);
        let edges = edges.map(|o| (o - outputs.start, map.source(o, tap))).collect();
        let first = if inner.is_empty() { None } else { map.source(inner.start, tap) };
        let inner = inner.start - outputs.start..inner.end - outputs.start;
        LineMap { inner, first: first.unwrap_or(0), edges }
    }

    /// Fills consecutive lines of `width` elements from consecutive rows of the input from `input` on, whose
    /// neighbours are `step` elements apart. More than one line only if rows are as long as lines and the
    /// stride is 1: then all inner elements are one copy, which the edges are written over.
    #[inline]
    fn fill<U: Pod>(
        &self,
        [stride, step, width]: [usize; 3],
        input: usize,
        lines: &mut [U],
        read: impl Fn(usize, usize, &mut [U]),
    ) {
        let row = width * step;
        if !self.inner.is_empty() {
            let end = lines.len() - width + self.inner.end;
            read(input + self.first * step, stride * step, &mut lines[self.inner.start..end]);
        }
        for (index, line) in lines.chunks_exact_mut(width).enumerate() {
            for &(j, source) in &self.edges {
                match source {
                    Some(i) => read(input + index * row + i * step, 1, &mut line[j..=j]),
                    None => line[j] = U::zeroed(),
                }
            }
        }
    }
}

impl Slab {
    /// The slab for these outputs, none of whose ranges may be empty.
    pub(crate) fn new(axes: &Axes, outputs: Box3) -> Self {
        let [map_d, map_h, map_w] = &**axes;
        let [held_d, held_h] = held(axes, &outputs);
        let lines = Lines::new(axes, [held_d.len(), held_h.len()], outputs[2].len());
        let width = outputs[2].len();
        let joined = map_w.stride() == 1 && map_w.inputs() == width;
        let mut runs: Vec<Run> = Vec::new();
        for d in held_d.clone() {
            for h in held_h.clone() {
                let source = map_d.padded_source(d).zip(map_h.padded_source(h));
                let row = source.map(|(d, h)| d * map_h.inputs() + h);
                let start = lines.line(0, d - held_d.start, h - held_h.start);
                match runs.last_mut() {
                    Some(last)
                        if (joined || row.is_none())
                            && last.start + last.lines * width == start
                            && last.row.map(|first| first + last.lines) == row =>
                    {
                        last.lines += 1;
                    }
                    _ => runs.push(Run { start, row, lines: 1 }),
                }
            }
        }
        let taps = (0..map_w.taps()).map(|tap| LineMap::new(map_w, tap, &outputs[2])).collect();
        Slab { axes: axes.clone(), outputs, lines, runs, taps }
    }

    /// Elements in the slab for these outputs.
    pub(crate) fn len_for(axes: &Axes, outputs: &Box3) -> usize {
        Lines::new(axes, held(axes, outputs).map(|held| held.len()), outputs[2].len()).len()
    }

    /// Elements in the slab.
    pub(crate) fn len(&self) -> usize {
        self.lines.len()
    }

    /// Outputs on the first axis.
    pub(crate) fn depth(&self) -> usize {
        self.outputs[0].len()
    }

    /// How far the blocks of one outer output are behind those of the output before.
    pub(crate) fn depth_step(&self) -> usize {
        self.lines.line(0, self.axes[0].stride(), 0)
    }

    /// Number of output positions that [`Slab::block`] covers: the box's extent on the last two axes.
    pub(crate) fn block_len(&self) -> usize {
        self.outputs[1].len() * self.outputs[2].len()
    }

    /// Where the patch row of `tap` at outer output `d` (counted from the box's first) starts:
    /// [`Slab::block_len`] contiguous elements.
    #[inline]
    pub(crate) fn block(&self, tap: [usize; 3], d: usize) -> usize {
        let d = self.axes[0].padded_position(d, tap[0]);
        self.lines.line(tap[2], d, self.axes[1].padded_position(0, tap[1]))
    }

    /// Where all blocks start, in the order of the patches.
    pub(crate) fn blocks(&self) -> Vec<usize> {
        let of_tap = |tap| (0..self.depth()).map(move |d| self.block(tap, d));
        self.taps().flat_map(of_tap).collect()
    }

    /// Where the line of tap `w` at padded positions (d, h), counted from the box's first, starts.
    pub(crate) fn line(&self, w: usize, d: usize, h: usize) -> usize {
        self.lines.line(w, d, h)
    }

    /// The taps, in the order of the patch rows.
    pub(crate) fn taps(&self) -> impl Iterator<Item = [usize; 3]> + use<> {
        self.axes.each_tap()
    }

    /// Fills the slab with factors of elements of channels, whose planes' elements are `step` apart.
    pub(crate) fn fill<T: Element, F: FactorOf<T>>(
        &self,
        channels: &[&[T]],
        step: usize,
        slab: &mut [F],
    ) {
        match *channels {
            [plane] => self
                .fill_by(step, slab, |start, step, to| F::interleave(&[&plane[start..]], step, to)),
            [first, second] => self.fill_by(step, slab, |start, step, to| {
                F::interleave(&[&first[start..], &second[start..]], step, to)
            }),
            _ => {}
        }
    }

    /// Fills the slab with elements of a plane as they are.
    pub(crate) fn copy<T: Element>(&self, plane: &[T], step: usize, slab: &mut [T]) {
        self.fill_by(step, slab, |start, step, to| copy_every(&plane[start..], step, to));
    }

    /// Fills the slab by `read`, which is told where a plane's first element is, how far the next ones are from each
    /// other, and where they go.
    fn fill_by<U: Pod>(
        &self,
        step: usize,
        slab: &mut [U],
        read: impl Fn(usize, usize, &mut [U]) + Copy,
    ) {
        let row_len = self.axes[2].inputs() * step;
        let (stride, width) = (self.axes[2].stride(), self.outputs[2].len());
        let tap_len = self.lines.len() / self.taps.len();
        for (tap, slab) in self.taps.iter().zip(slab.chunks_exact_mut(tap_len)) {
            for &Run { start, row, lines } in &self.runs {
                let lines = &mut slab[start..][..lines * width];
                match row {
                    None => lines.fill(U::zeroed()),
                    Some(row) => {
                        let steps = [stride, step, width];
                        tap.fill(steps, row * row_len, lines, read);
                    }
                }
            }
        }
    }

    /// Fills `[slab][channel]` from some channels of a channels-last image of `all` channels.
    pub(crate) fn fill_channels_last<T: Element>(
        &self,
        image: &[T],
        all: usize,
        channels: Range<usize>,
        slab: &mut [T::Acc],
    ) {
        let map = &self.axes[2];
        let count = channels.len();
        self.each_line(|start, tap, row| {
            let line = slab[start * count..].chunks_exact_mut(count);
            for (o, target) in self.outputs[2].clone().zip(line) {
                match row.zip(map.source(o, tap)) {
                    None => target.fill(T::Acc::default()),
                    Some((row, i)) => {
                        let at = (row * map.inputs() + i) * all + channels.start;
                        T::widen(&image[at..][..count], target);
                    }
                }
            }
        });
    }

    /// Calls `visit(start, tap, row)` for every line: where it starts, its tap on the last axis, and
    /// which row of the input plane it is read from; `None` when that lies in zero padding.
    fn each_line(&self, mut visit: impl FnMut(usize, usize, Option<usize>)) {
        let tap_len = self.lines.len() / self.taps.len();
        for tap in 0..self.taps.len() {
            for run in &self.runs {
                for line in 0..run.lines {
                    let start = tap * tap_len + run.start + line * self.outputs[2].len();
                    visit(start, tap, run.row.map(|row| row + line));
                }
            }
        }
    }
}

/// Padded positions that these outputs read on the two outer axes.
fn held(axes: &Axes, outputs: &Box3) -> [Range<usize>; 2] {
    [0, 1].map(|axis| {
        let (map, range) = (&axes[axis], &outputs[axis]);
        let last = map.padded_position(range.end - 1, map.taps() - 1);
        map.padded_position(range.start, 0)..last + 1
    })
}

/// Those of `outputs` that read the inside of the input through `tap`, where the map is affine.
#[inline]
pub(crate) fn inner_outputs(map: &AxisMap, tap: usize, outputs: &Range<usize>) -> Range<usize> {
    let inner = map.outputs_reading(tap, &map.inside());
    let start = inner.start.clamp(outputs.start, outputs.end);
    start..inner.end.clamp(start, outputs.end)
}

/// Boxes of outputs whose slabs have at most `limit` elements.
pub(crate) fn output_boxes(axes: &Axes, limit: usize) -> Vec<Box3> {
    boxes(axes.output_extents(), |outputs| Slab::len_for(axes, outputs) <= limit)
}

/// The positions of a box made by [`boxes`]: consecutive ones, in row-major order over `extents`.
pub(crate) fn positions(part: &Box3, extents: [usize; 3]) -> Range<usize> {
    let start = ravel(part.each_ref().map(|range| range.start), extents);
    start..start + volume(part)
}

/// Positions in the largest of these boxes.
pub(crate) fn largest(boxes: &[Box3]) -> usize {
    boxes.iter().map(volume).max().unwrap_or(0)
}

/// Cuts the positions of an array into boxes that fit (or single elements, where even those do not),
/// as large as can be. Boxes cover consecutive ranges of the flattened positions.
pub(crate) fn boxes(extents: [usize; 3], fits: impl Fn(&Box3) -> bool) -> Vec<Box3> {
    // A box: some positions of one axis, one of each slower axis, all of each faster one.
    let cut = |axis: usize, at: [usize; 2], part: Range<usize>| -> Box3 {
        std::array::from_fn(|a| match a.cmp(&axis) {
            Ordering::Less => at[a]..at[a] + 1,
            Ordering::Equal => part.clone(),
            Ordering::Greater => 0..extents[a],
        })
    };
    if fits(&cut(0, [0, 0], 0..extents[0])) {
        return vec![cut(0, [0, 0], 0..extents[0])];
    }
    // The slowest axis a single slice of which fits; else the last.
    let axis = (0..2).find(|&axis| fits(&cut(axis, [0, 0], 0..1))).unwrap_or(2);
    // The largest number of slices that fits, by bisection.
    let (mut fitting, mut too_large) = (1, extents[axis] + 1);
    while too_large - fitting > 1 {
        let middle = fitting.midpoint(too_large);
        if fits(&cut(axis, [0, 0], 0..middle)) { fitting = middle } else { too_large = middle }
    }
    let outer = [0, 1].map(|a| if a < axis { extents[a] } else { 1 });
    let mut all = Vec::new();
    for d in 0..outer[0] {
        for h in 0..outer[1] {
            let parts = (0..extents[axis]).step_by(fitting);
            let part = |start: usize| start..(start + fitting).min(extents[axis]);
            all.extend(parts.map(|start| cut(axis, [d, h], part(start))));
        }
    }
    all
}
