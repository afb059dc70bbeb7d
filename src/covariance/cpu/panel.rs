//! Panels: what some outputs of some images read, split into virtual channels, with the lanes of vectors
//! side by side at each position.

use super::folding::Folding;
use crate::covariance::problem::{Part, Problem};
use crate::element::{Accumulator, Element};
use crate::geometry::{Axes, Box3, Layout};
use crate::workers::{Room, Scratch};

/// Bytes of what a task reads of a panel, about: they stay in a core's L2 cache.
pub(super) const CACHED: usize = 1 << 20;
/// Bytes of a panel, at most.
pub(super) const PANEL: usize = 32 << 20;
/// Lines of a panel that are filled by one task.
pub(super) const LINES: usize = 8;

/// The extents of a box.
pub(super) fn extents(outputs: &Box3) -> [usize; 3] {
    outputs.each_ref().map(std::ops::Range::len)
}

/// Channels that become the lanes of vectors: so many, and how far they are apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lanes {
    /// Counted over all groups.
    pub first: usize,
    pub count: usize,
    pub step: usize,
}

/// Reads images by the lines of a folded layer.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    pub p: &'a Problem,
    pub part: &'a Part,
    pub folding: &'a Folding,
    /// The outputs whose patches the panel holds.
    pub outputs: &'a Box3,
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
        let q = (self.outputs[axis].start + at) * folded.stride + folded.offsets[phase];
        if q < map.padded_extent() { map.padded_source(q) } else { None }
    }

    /// Fills `extent` positions of a line, `step` apart, with the lanes at line (d, h) of a phase.
    pub fn line<T: Element, F: Accumulator>(
        &self,
        image: &[T],
        phase: [usize; 3],
        [d, h]: [usize; 2],
        lanes: Lanes,
        extent: usize,
        target: &mut [F],
        step: usize,
        memory: &mut LineMemory<T::Acc, F>,
    ) {
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
