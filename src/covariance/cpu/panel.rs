//! Panels: what some outputs of some images read, split into virtual channels, with the lanes of vectors
//! side by side at each position.

use std::ops::Range;

use super::folding::Folding;
use crate::covariance::problem::{Part, Problem};
use crate::element::{Accumulator, Element};
use crate::geometry::{Axes, Box3, Layout};
use crate::patches::pieces::{Pieces, digits};
use crate::patches::slab::boxes;
use crate::workers::{Room, Scratch};

/// Bytes that a task reads of a panel, about: they stay in a core's L2 cache.
const CACHED: usize = 2 << 20;
/// Bytes of a panel, at most, unless a single output has more.
const LARGEST: usize = 32 << 20;
/// Lines of a panel that are filled by one task.
pub(super) const LINES: usize = 8;

/// The panels of a part: boxes of outputs of one image after the other, or all outputs of some images.
#[derive(Debug)]
pub(super) struct Panels {
    /// With the number of its extents.
    boxes: Vec<(Box3, usize)>,
    /// The extents of boxes that there are.
    pub extents: Vec<[usize; 3]>,
    /// What a box of each extents takes of each axis.
    held: Vec<[usize; 3]>,
    images: Pieces,
}

/// Some outputs of some images.
#[derive(Debug)]
pub(super) struct Panel<'a> {
    pub images: Range<usize>,
    pub outputs: &'a Box3,
    /// Which extents the outputs have.
    pub number: usize,
    /// Positions that are held on each axis.
    pub held: [usize; 3],
}

impl Panels {
    /// Panels with so many bytes at each position, and so many that one task reads.
    pub fn new(
        part: &Part,
        folding: &Folding,
        batch: usize,
        [all, read]: [usize; 2],
        limit: usize,
    ) -> Self {
        let held = |outputs: &Box3| folding.held(outputs.each_ref().map(Range::len));
        let positions = |outputs: &Box3| held(outputs).iter().product::<usize>();
        let most = (CACHED / read).min(LARGEST.min(limit) / all);
        let cut = boxes(part.axes.output_extents(), |outputs| positions(outputs) <= most);
        let images = if let [whole] = &cut[..] { most / positions(whole) } else { 1 };
        let images = Pieces::new(batch, images.clamp(1, batch.max(1)));
        let mut panels =
            Panels { boxes: Vec::new(), extents: Vec::new(), held: Vec::new(), images };
        for outputs in cut {
            let extents = outputs.each_ref().map(Range::len);
            let known = panels.extents.iter().position(|&other| other == extents);
            let number = known.unwrap_or_else(|| {
                panels.extents.push(extents);
                panels.held.push(held(&outputs));
                panels.extents.len() - 1
            });
            panels.boxes.push((outputs, number));
        }
        panels
    }

    pub fn count(&self) -> usize {
        self.boxes.len() * self.images.count()
    }

    pub fn get(&self, number: usize) -> Panel<'_> {
        let [images, at] = digits(number, [self.images.count(), self.boxes.len()]);
        let (outputs, number) = &self.boxes[at];
        let images = self.images.get(images);
        Panel { images, outputs, number: *number, held: self.held[*number] }
    }

    /// All panels.
    pub fn each(&self) -> impl Iterator<Item = Panel<'_>> {
        (0..self.count()).map(|number| self.get(number))
    }

    /// Positions of the largest panel, over all of its images.
    pub fn positions(&self) -> usize {
        let largest = self.held.iter().map(|held| held.iter().product()).max().unwrap_or(0);
        self.images.longest() * largest
    }

    /// Images of the largest panel.
    pub fn images(&self) -> usize {
        self.images.longest()
    }

    /// Lines of the largest panel that are filled together.
    pub fn pieces(&self) -> usize {
        self.held.iter().map(|[d, h, _]| (d * h).div_ceil(LINES)).max().unwrap_or(0)
    }
}

impl Panel<'_> {
    /// Positions of an image.
    pub fn positions(&self) -> usize {
        self.held.iter().product()
    }

    /// Positions to one that is so far away on each axis.
    pub fn distance(&self, lag: [isize; 3]) -> isize {
        (lag[0] * self.held[1] as isize + lag[1]) * self.held[2] as isize + lag[2]
    }

    /// Pieces of an image's lines.
    pub fn pieces(&self) -> usize {
        (self.held[0] * self.held[1]).div_ceil(LINES)
    }

    /// The lines of a piece.
    pub fn lines(&self, piece: usize) -> Range<usize> {
        piece * LINES..((piece + 1) * LINES).min(self.held[0] * self.held[1])
    }
}

/// Channels that become the lanes of vectors: so many, and how far they are apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lanes {
    /// Counted over all groups.
    pub first: usize,
    pub count: usize,
    pub step: usize,
}

/// A line of a panel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    /// On each axis.
    pub phase: [usize; 3],
    pub number: usize,
    pub lanes: Lanes,
}

/// Reads images by the lines of a folded layer.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    pub p: &'a Problem,
    pub part: &'a Part,
    pub folding: &'a Folding,
    pub panel: &'a Panel<'a>,
}

/// Memory of [`Reader::line`].
#[derive(Debug)]
pub(super) struct LineMemory<'a, A, F> {
    lines: &'a mut [F],
    widened: &'a mut [A],
}

impl<'a, A: Accumulator, F: Accumulator> LineMemory<'a, A, F> {
    pub fn room(axes: &Axes, lanes: usize) -> Room {
        let width = axes[2].inputs();
        Room::default().and::<F>(lanes * width).and::<A>(width)
    }

    pub fn take(scratch: &mut Scratch<'a>, axes: &Axes, lanes: usize) -> Self {
        let width = axes[2].inputs();
        LineMemory { lines: scratch.take(lanes * width), widened: scratch.take(width) }
    }
}

impl Reader<'_> {
    /// The input position behind a position of a phase on an axis; `None` where zeros are read, or nothing
    /// by any window.
    fn source(&self, axis: usize, phase: usize, at: usize) -> Option<usize> {
        let (map, folded) = (&self.part.axes[axis], &self.folding.axes[axis]);
        let q = (self.panel.outputs[axis].start + at) * folded.stride + folded.offsets[phase];
        if q < map.padded_extent() { map.padded_source(q) } else { None }
    }

    /// Fills the positions of a line of a phase, `step` apart, with the lanes that are there.
    pub fn line<T: Element, F: Accumulator>(
        &self,
        image: &[T],
        Line { phase, number, lanes }: Line,
        target: &mut [F],
        step: usize,
        memory: &mut LineMemory<T::Acc, F>,
    ) {
        let [_, height, extent] = self.panel.held;
        let (d, h) = (number / height, number % height);
        let [_, lines, width] = self.part.axes.input_extents();
        let row = self.source(0, phase[0], d).zip(self.source(1, phase[1], h));
        let Some((d, h)) = row else {
            target.chunks_mut(step).take(extent).for_each(|at| at[..lanes.count].fill(F::ZERO));
            return;
        };
        let start = (d * lines + h) * width;
        let source = |at: usize| self.source(2, phase[2], at);
        let LineMemory { lines, widened } = memory;
        if self.p.layout == Layout::ChannelsLast {
            for (at, target) in target.chunks_mut(step).take(extent).enumerate() {
                let target = &mut target[..lanes.count];
                let Some(source) = source(at) else {
                    target.fill(F::ZERO);
                    continue;
                };
                let from = &image[(start + source) * self.p.channels + lanes.first..];
                if lanes.step == 1 {
                    convert(&from[..lanes.count], target);
                } else {
                    let from = from.iter().step_by(lanes.step);
                    target.iter_mut().zip(from).for_each(|(to, from)| *to = of(*from));
                }
            }
            return;
        }
        let sources = (0..extent).filter_map(source);
        let (low, high) = sources.fold((width, 0), |(low, high), s| (low.min(s), high.max(s + 1)));
        let len = high.saturating_sub(low);
        let plane = self.part.axes.inputs();
        for lane in 0..lanes.count {
            let from = (lanes.first + lane * lanes.step) * plane + start + low;
            let line = &mut lines[lane * len..][..len];
            match T::as_acc(&image[from..][..len]) {
                Some(from) => line.iter_mut().zip(from).for_each(|(to, from)| *to = of(*from)),
                None => {
                    let widened = &mut widened[..len];
                    T::widen(&image[from..][..len], widened);
                    line.iter_mut().zip(widened).for_each(|(to, from)| *to = of(*from));
                }
            }
        }
        let source = |at: usize| source(at).map(|source| source - low);
        let targets = target.chunks_mut(step).take(extent);
        match lanes.count {
            16 => transpose::<F, 16>(lines, len, source, targets),
            8 => transpose::<F, 8>(lines, len, source, targets),
            4 => transpose::<F, 4>(lines, len, source, targets),
            count => targets.enumerate().for_each(|(at, target)| {
                let source = source(at);
                for (lane, to) in target[..count].iter_mut().enumerate() {
                    *to = source.map_or(F::ZERO, |source| lines[lane * len + source]);
                }
            }),
        }
    }
}

/// An element as sums take it.
#[inline(always)]
fn of<T: Element, F: Accumulator>(value: T) -> F {
    F::from_f64(value.to_f64())
}

/// A run of elements as sums take them.
#[inline(always)]
fn convert<T: Element, F: Accumulator>(from: &[T], to: &mut [F]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = of(*from));
}

/// Writes `L` lines of `len` elements as positions of `L` lanes.
#[inline(always)]
fn transpose<'t, F: Accumulator, const L: usize>(
    lines: &[F],
    len: usize,
    source: impl Fn(usize) -> Option<usize>,
    targets: impl Iterator<Item = &'t mut [F]>,
) {
    let lines: [&[F]; L] = std::array::from_fn(|lane| &lines[lane * len..][..len]);
    for (at, target) in targets.enumerate() {
        let values = match source(at) {
            Some(source) => std::array::from_fn(|lane| lines[lane][source]),
            None => [F::ZERO; L],
        };
        target[..L].copy_from_slice(&values);
    }
}
