//! The tiles of an output, and what they read and write of an activation.

use std::ops::Range;

use super::cube::PITCH;
use super::cube::Tiles;
use super::transform::LANES;
use crate::element::{Accumulator, Element};
use crate::geometry::{Axes, AxisMap, Strides, ravel};
use crate::patches::pieces::digits;
use crate::product::cpu::{Vector, VectorLoop};
use crate::workers::Shared;

/// Where a padded position has no input.
const NOWHERE: usize = usize::MAX;

/// The tiles of all images: those of an image follow each other, in row-major order.
#[derive(Debug)]
pub(super) struct Grid {
    pub tiles: Tiles,
    /// The image of each tile, and its place among the tiles of that.
    places: Vec<(usize, [usize; 3])>,
    /// Tiles of a line.
    line: usize,
    inputs: [usize; 3],
    outputs: [usize; 3],
    /// The inputs behind the padded positions that tiles read.
    sources: [Vec<usize>; 3],
    /// Padded positions of the last axis behind which inputs follow each other.
    inside: Range<usize>,
}

/// Tiles that follow each other in a line, and the lane of the first.
struct Segment {
    lane: usize,
    image: usize,
    first: [usize; 3],
    len: usize,
}

impl Grid {
    /// For axes whose strides are 1, and whose dilations are where there are several taps.
    pub fn new(tiles: Tiles, axes: &Axes, batch: usize) -> Self {
        let outputs = axes.output_extents();
        let counts = [0, 1, 2].map(|axis| outputs[axis].div_ceil(tiles.outputs()[axis]));
        let sources = [0, 1, 2].map(|axis| {
            let tile = tiles.0[axis];
            let read = counts[axis] * tile.outputs() + tile.taps() - 1;
            let map: &AxisMap = &axes[axis];
            // The last tile may reach beyond the last output.
            let source = |q| if q < map.padded_extent() { map.padded_source(q) } else { None };
            (0..read).map(|q| source(q).unwrap_or(NOWHERE)).collect()
        });
        let inside = axes[2].inside();
        let [d, h, w] = counts;
        let all = 0..batch * d * h * w;
        let places = all.map(|tile| {
            let [image, place @ ..] = digits(tile, [batch, d, h, w]);
            (image, place)
        });
        let (places, inputs) = (places.collect(), axes.input_extents());
        Grid { tiles, places, line: w, inputs, outputs, sources, inside }
    }

    /// Tiles of all images.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Elements of a line that [`Grid::read_tiles`] or [`Grid::write_tiles`] makes on its way.
    pub fn line_len(&self) -> usize {
        (LANES + 1) * self.tiles.outputs()[2] + self.tiles.0[2].taps() - 1
    }

    fn segments(&self, tiles: Range<usize>) -> impl Iterator<Item = Segment> + '_ {
        let mut next = tiles.start;
        std::iter::from_fn(move || {
            if next == tiles.end {
                return None;
            }
            let (image, first) = self.places[next];
            let len = (self.line - first[2]).min(tiles.end - next);
            let lane = next - tiles.start;
            next += len;
            Some(Segment { lane, image, first, len })
        })
    }

    /// Reads at most [`LANES`] tiles of a channel, channels first: a lane for each.
    pub fn read_tiles<T: Element>(
        &self,
        source: &[T],
        strides: Strides,
        channel: usize,
        tiles: Range<usize>,
        line: &mut [T::Acc],
        values: &mut [T::Acc],
    ) {
        let [rows, columns, inputs] = self.tiles.inputs();
        let outputs = self.tiles.outputs();
        if tiles.len() < LANES {
            values.fill(T::Acc::ZERO);
        }
        for Segment { lane, image, first, len } in self.segments(tiles) {
            let plane = &source[strides.at(image, channel, 0)..];
            let padded = first[2] * outputs[2];
            for (d, h) in (0..rows).flat_map(|d| (0..columns).map(move |h| (d, h))) {
                let values = &mut values[(d * columns + h) * inputs * PITCH + lane..];
                let at =
                    |axis: usize, i: usize| self.sources[axis][first[axis] * outputs[axis] + i];
                let (d, h) = (at(0, d), at(1, h));
                let read = (len - 1) * outputs[2] + inputs;
                if d == NOWHERE || h == NOWHERE {
                    line.fill(T::Acc::ZERO);
                } else {
                    let from = &plane[(d * self.inputs[1] + h) * self.inputs[2]..];
                    self.read_line(&from[..self.inputs[2]], padded, &mut line[..read]);
                }
                deal(line, outputs[2], len, inputs, values);
            }
        }
    }

    /// Padded positions of the last axis from `start` on.
    fn read_line<T: Element>(&self, from: &[T], start: usize, line: &mut [T::Acc]) {
        let end = start + line.len();
        let sources = &self.sources[2][start..end];
        let inside = self.inside.start.clamp(start, end)..self.inside.end.clamp(start, end);
        let inside = inside.start - start..inside.end.max(inside.start) - start;
        for at in (0..inside.start).chain(inside.end..line.len()) {
            line[at] = from.get(sources[at]).map_or(T::Acc::ZERO, |value| value.to_acc());
        }
        if !inside.is_empty() {
            let first = sources[inside.start];
            T::widen(&from[first..first + inside.len()], &mut line[inside]);
        }
    }

    /// Reads a tile of at most [`LANES`] neighbouring channels, channels last: a lane for each.
    pub fn read_channels<T: Element>(
        &self,
        source: &[T],
        strides: Strides,
        channels: Range<usize>,
        tile: usize,
        values: &mut [T::Acc],
    ) {
        let (image, first) = self.places[tile];
        let outputs = self.tiles.outputs();
        let [rows, columns, inputs] = self.tiles.inputs();
        let at = |axis: usize, i: usize| self.sources[axis][first[axis] * outputs[axis] + i];
        for (d, h) in (0..rows).flat_map(|d| (0..columns).map(move |h| (d, h))) {
            let values = &mut values[(d * columns + h) * inputs * PITCH..][..inputs * PITCH];
            let (d, h) = (at(0, d), at(1, h));
            let line = if d == NOWHERE || h == NOWHERE {
                None
            } else {
                let position = (d * self.inputs[1] + h) * self.inputs[2];
                Some(&source[strides.at(image, channels.start, position)..])
            };
            let sources = &self.sources[2][first[2] * outputs[2]..][..inputs];
            for (&w, lanes) in sources.iter().zip(values.chunks_exact_mut(PITCH)) {
                let lanes = &mut lanes[..LANES];
                match line {
                    Some(line) if w != NOWHERE => {
                        widen_lanes(&line[w * strides.position..][..channels.len()], lanes);
                    }
                    _ => lanes.fill(T::Acc::ZERO),
                }
            }
        }
    }

    /// Reads the outputs of at most [`LANES`] tiles, as [`Grid::read_tiles`] reads what they are made of; those
    /// beyond the last are zero.
    pub fn read_outputs<T: Element>(
        &self,
        source: &[T],
        strides: Strides,
        channel: usize,
        tiles: Range<usize>,
        line: &mut [T::Acc],
        values: &mut [T::Acc],
    ) {
        let [rows, columns, width] = self.tiles.outputs();
        values[..rows * columns * width * PITCH].fill(T::Acc::ZERO);
        for segment in self.segments(tiles) {
            let Segment { lane, len, .. } = segment;
            self.each_line(&segment, strides, channel, |number, start, whole| {
                T::widen(&source[start..start + whole], &mut line[..whole]);
                line[whole..].fill(T::Acc::ZERO);
                let values = &mut values[number * width * PITCH + lane..];
                deal(line, width, len, width, values);
            });
        }
    }

    /// Reads the outputs of a tile, as [`Grid::read_channels`] reads what they are made of.
    pub fn read_output_channels<T: Element>(
        &self,
        source: &[T],
        strides: Strides,
        channels: Range<usize>,
        tile: usize,
        values: &mut [T::Acc],
    ) {
        let volume: usize = self.tiles.outputs().iter().product();
        values[..volume * PITCH].fill(T::Acc::ZERO);
        self.each_output(tile, strides, channels.start, |number, start| {
            let lanes = &mut values[number * PITCH..][..LANES];
            widen_lanes(&source[start..start + channels.len()], lanes);
        });
    }

    /// Writes the outputs of at most [`LANES`] tiles to a channel, channels first, with `bias` added.
    ///
    /// # Safety
    /// Nothing else may use these elements of the target.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn write_tiles<T: Element>(
        &self,
        values: &[T::Acc],
        bias: T::Acc,
        tiles: Range<usize>,
        line: &mut [T::Acc],
        target: &Shared<T>,
        strides: Strides,
        channel: usize,
    ) {
        let width = self.tiles.outputs()[2];
        for segment in self.segments(tiles) {
            let Segment { lane, len, .. } = segment;
            self.each_line(&segment, strides, channel, |number, start, whole| {
                collect(&values[number * width * LANES + lane..], width, len, bias, line);
                // SAFETY: promised by the caller.
                T::narrow(&line[..whole], unsafe { target.run(start, whole) });
            });
        }
    }

    /// Writes the outputs of a tile to neighbouring channels, channels last; `values` hold their biases already.
    ///
    /// # Safety
    /// Nothing else may use these elements of the target.
    pub unsafe fn write_channels<T: Element>(
        &self,
        values: &[T::Acc],
        tile: usize,
        target: &Shared<T>,
        strides: Strides,
        channels: Range<usize>,
    ) {
        self.each_output(tile, strides, channels.start, |number, start| {
            // SAFETY: promised by the caller.
            let target = unsafe { target.run(start, channels.len()) };
            narrow_lanes(&values[number * LANES..][..LANES], target);
        });
    }

    /// Visits the lines of a segment's outputs: their number in a tile, where they start, and how many outputs
    /// there are of the segment's.
    fn each_line(
        &self,
        segment: &Segment,
        strides: Strides,
        channel: usize,
        mut visit: impl FnMut(usize, usize, usize),
    ) {
        let outputs = self.tiles.outputs();
        let start = [0, 1, 2].map(|axis| segment.first[axis] * outputs[axis]);
        let whole = (segment.len * outputs[2]).min(self.outputs[2] - start[2]);
        for d in 0..outputs[0].min(self.outputs[0] - start[0]) {
            for h in 0..outputs[1].min(self.outputs[1] - start[1]) {
                let at = ravel([start[0] + d, start[1] + h, start[2]], self.outputs);
                visit(d * outputs[1] + h, strides.at(segment.image, channel, at), whole);
            }
        }
    }

    /// Visits the outputs of a tile that there are: their number, and where they are.
    fn each_output(
        &self,
        tile: usize,
        strides: Strides,
        channel: usize,
        mut visit: impl FnMut(usize, usize),
    ) {
        let (image, first) = self.places[tile];
        let segment = Segment { lane: 0, image, first, len: 1 };
        let width = self.tiles.outputs()[2];
        self.each_line(&segment, strides, channel, |number, start, whole| {
            for w in 0..whole {
                visit(number * width + w, start + w * strides.position);
            }
        });
    }
}

/// Moves values between a line, where those of a tile lie together, and lanes: so many of a tile, for so many tiles.
/// Lanes up to the next power of two are moved, too, which have no meaning.
trait Shuffle {
    /// # Safety
    /// As many values as lanes take can be read and written.
    unsafe fn lanes<const STEP: usize, const LEN: usize>(self);
}

/// A shuffle of extents that are known when it is compiled, for the compiler to shuffle vectors.
struct OfExtents<S> {
    step: usize,
    len: usize,
    shuffle: S,
}

/// Lanes that are moved for so many tiles.
fn moved(tiles: usize) -> usize {
    tiles.next_power_of_two().clamp(4, LANES)
}

impl<A: Accumulator, S: Shuffle> VectorLoop<A> for OfExtents<S> {
    #[inline(always)]
    unsafe fn run<X: Vector<A>>(self) {
        let shuffle = self.shuffle;
        // SAFETY: promised by the caller.
        unsafe {
            match (self.step, self.len) {
                (4, 16) => shuffle.lanes::<4, 16>(),
                (4, 8) => shuffle.lanes::<4, 8>(),
                (4, _) => shuffle.lanes::<4, 4>(),
                (2, 16) => shuffle.lanes::<2, 16>(),
                (2, 8) => shuffle.lanes::<2, 8>(),
                (2, _) => shuffle.lanes::<2, 4>(),
                (_, 16) => shuffle.lanes::<1, 16>(),
                (_, 8) => shuffle.lanes::<1, 8>(),
                (_, _) => shuffle.lanes::<1, 4>(),
            }
        }
    }
}

/// Deals a line out: value i of lane s is `line[s·step + i]`, and goes to `values[i·PITCH + s]`.
fn deal<A: Accumulator>(line: &[A], step: usize, len: usize, inputs: usize, values: &mut [A]) {
    let len = moved(len);
    assert!(line.len() >= len * step + inputs - step && values.len() >= (inputs - 1) * PITCH + len);
    let shuffle = Deal { line: line.as_ptr(), inputs, values: values.as_mut_ptr() };
    // SAFETY: the line is as long and the values are as many, by the assertion; no vector is used.
    unsafe { A::vectorised(OfExtents { step, len, shuffle }) }
}

struct Deal<A> {
    line: *const A,
    inputs: usize,
    values: *mut A,
}

impl<A: Accumulator> Shuffle for Deal<A> {
    #[inline(always)]
    unsafe fn lanes<const STEP: usize, const LEN: usize>(self) {
        // SAFETY: promised by the caller.
        unsafe {
            for first in (0..self.inputs).step_by(STEP) {
                let line = self.line.add(first);
                let values = self.values.add(first * PITCH);
                let count = STEP.min(self.inputs - first);
                if count == STEP {
                    let line = line.cast::<[[A; STEP]; LEN]>().read_unaligned();
                    let columns: [[A; LEN]; STEP] =
                        std::array::from_fn(|i| std::array::from_fn(|s| line[s][i]));
                    for (i, lanes) in columns.into_iter().enumerate() {
                        values.add(i * PITCH).cast::<[A; LEN]>().write_unaligned(lanes);
                    }
                } else {
                    for i in 0..count {
                        let lanes: [A; LEN] = std::array::from_fn(|s| *line.add(s * STEP + i));
                        values.add(i * PITCH).cast::<[A; LEN]>().write_unaligned(lanes);
                    }
                }
            }
        }
    }
}

/// The way back, for tiles that do not overlap: value i of lane s, `values[i·LANES + s]`, goes to `line[s·step + i]`.
fn collect<A: Accumulator>(values: &[A], step: usize, len: usize, bias: A, line: &mut [A]) {
    let len = moved(len);
    assert!(values.len() >= (step - 1) * LANES + len && line.len() >= len * step);
    let shuffle = Collect { values: values.as_ptr(), bias, line: line.as_mut_ptr() };
    // SAFETY: the line is as long and the values are as many, by the assertion; no vector is used.
    unsafe { A::vectorised(OfExtents { step, len, shuffle }) }
}

struct Collect<A> {
    values: *const A,
    bias: A,
    line: *mut A,
}

impl<A: Accumulator> Shuffle for Collect<A> {
    #[inline(always)]
    unsafe fn lanes<const STEP: usize, const LEN: usize>(self) {
        // SAFETY: promised by the caller.
        unsafe {
            let values: [[A; LEN]; STEP] = std::array::from_fn(|i| {
                self.values.add(i * LANES).cast::<[A; LEN]>().read_unaligned()
            });
            let line: [[A; STEP]; LEN] =
                std::array::from_fn(|s| std::array::from_fn(|i| values[i][s] + self.bias));
            self.line.cast::<[[A; STEP]; LEN]>().write_unaligned(line);
        }
    }
}

/// Widens at most [`LANES`] elements; lanes beyond them are zero. All of them, which are most, are copied as vectors.
fn widen_lanes<T: Element>(from: &[T], lanes: &mut [T::Acc]) {
    match (T::as_acc(from).and_then(|from| <&[_; LANES]>::try_from(from).ok()), lanes.len()) {
        (Some(from), LANES) => lanes.copy_from_slice(from),
        _ => {
            let (lanes, rest) = lanes.split_at_mut(from.len());
            T::widen(from, lanes);
            rest.fill(T::Acc::ZERO);
        }
    }
}

/// Rounds as many lanes as there are elements.
fn narrow_lanes<T: Element>(lanes: &[T::Acc], to: &mut [T]) {
    if to.len() == LANES
        && let Some(to) = T::as_acc_mut(to)
    {
        to[..LANES].copy_from_slice(&lanes[..LANES]);
    } else {
        T::narrow(&lanes[..to.len()], to);
    }
}
