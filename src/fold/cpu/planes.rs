//! Planes folded channels first, each element of the patches read once.
//!
//! The rows of patches that belong to one tap of the last axis are added up in registers, over the taps of the other
//! axes, into a *slab* `[tap w][row of the plane][output w]`; each row of the plane then is the sum of its lines in the
//! slab, one a tap, shifted. Rows lie there phase by phase (all ≡ 0 modulo the stride, then all ≡ 1, …): rows a stride
//! apart are sums of consecutive lines of patches, so that most of a plane is a few long runs. With one spatial axis
//! there is nothing to add up before, and rows of patches are read in place of the slab's.

use std::ops::Range;

use crate::element::Element;
use crate::geometry::{Axes, AxisMap, AxisRows, Box3, PaddingMode};
use crate::patches::slab::inner_outputs;
use crate::product::cpu::{MAX_LANES, Vector, VectorLoop};
use crate::stream;

use super::{Overlap, divide, load, put};

/// How a box of a plane's sums is made of the plane's patches.
#[derive(Debug)]
pub(super) struct BoxFold {
    pub part: Box3,
    /// The number of its first position.
    pub start: usize,
    /// Elements of a line of the slab.
    width: usize,
    taps: Vec<Tap>,
    /// What is added up into the slab; for each tap the same.
    runs: Vec<Run>,
    /// For all runs, where the rows of patches begin that are added up, for the first tap's first output.
    sources: Vec<usize>,
    /// Where each row's line of the first tap is.
    lines: Vec<usize>,
    /// Every `stride`-th element of a row from the first on, from the second on, ….
    phases: Vec<Phase>,
    /// What other elements of lines are added to: (where from the first tap's line on, where in the row).
    edges: Vec<(usize, usize)>,
    /// Whether lines are rows of patches.
    direct: bool,
}

/// A tap of the last axis.
#[derive(Debug)]
struct Tap {
    /// Where its first element is in a row of patches whose source is 0.
    first: usize,
    /// Elements of each row that are read.
    len: usize,
}

/// Consecutive lines of the slab that are sums of consecutive lines of patches.
#[derive(Debug)]
struct Run {
    start: usize,
    lines: usize,
    sources: Range<usize>,
}

/// Elements of a row that are a stride apart.
#[derive(Debug)]
struct Phase {
    len: usize,
    terms: Vec<Term>,
}

/// The elements of a phase with these numbers add consecutive elements of a line.
#[derive(Debug)]
struct Term {
    targets: Range<usize>,
    /// Where the first of them is, counted from the first tap's line.
    start: usize,
}

impl BoxFold {
    /// The sums of a box; `readers` are the outputs that read each input of the two outer axes.
    pub fn new(axes: &Axes, readers: &[AxisRows; 2], part: Box3) -> Self {
        let [_, map_h, map_w] = &**axes;
        let [_, h, w] = axes.input_extents();
        let start = (part[0].start * h + part[1].start) * w + part[2].start;
        let held = held(map_w, &part[2]);
        let outputs: Vec<_> = (0..map_w.taps()).map(|k| map_w.outputs_reading(k, &held)).collect();
        let width = longest(&outputs);
        let tap = |(k, outputs): (usize, &Range<usize>)| Tap {
            first: k * axes.outputs() + outputs.start,
            len: outputs.len(),
        };
        let taps: Vec<_> = outputs.iter().enumerate().map(tap).collect();

        let mut lines = vec![0; part[0].len() * part[1].len()];
        let (mut runs, mut sources) = (Vec::<Run>::new(), Vec::new());
        let whole = taps.iter().all(|tap| tap.len == map_w.outputs());
        let rows = phase_by_phase(&part[0], &part[1], map_h.stride());
        for (index, (d, h)) in rows.enumerate() {
            let start = index * width;
            lines[(d - part[0].start) * part[1].len() + h - part[1].start] = start;
            let added = sources.len();
            for (out_d, taps_d) in readers[0].row(d) {
                for (out_h, taps_h) in readers[1].row(h) {
                    let line = (out_d * map_h.outputs() + out_h) * map_w.outputs();
                    for (tap_d, tap_h) in pairs(taps_d, taps_h) {
                        let row = (tap_d * map_h.taps() + tap_h) * map_w.taps();
                        sources.push(row * axes.outputs() + line);
                    }
                }
            }
            let (before, new) = sources.split_at(added);
            if let Some(last) = runs.last_mut()
                && whole
                && last.sources.len() == new.len()
                && before[last.sources.clone()]
                    .iter()
                    .zip(new)
                    .all(|(&first, &source)| first + last.lines * width == source)
            {
                last.lines += 1;
                sources.truncate(added);
            } else {
                runs.push(Run { start, lines: 1, sources: added..sources.len() });
            }
        }

        let direct = lines.len() == 1 && sources == [0];

        let stride = map_w.stride().min(part[2].len());
        let phase = |phase: usize| Phase {
            len: (part[2].len() - phase).div_ceil(stride),
            terms: Vec::new(),
        };
        let mut phases: Vec<_> = (0..stride).map(phase).collect();
        let mut edges = Vec::new();
        for (k, outputs) in outputs.iter().enumerate() {
            let line = if direct { taps[k].first } else { k * lines.len() * width };
            let target = |o| map_w.source(o, k).map(|i| i - part[2].start);
            let inner = inner_outputs(map_w, k, outputs);
            if !inner.is_empty()
                && let Some(first) = target(inner.start)
            {
                // With fewer elements than the stride, no tap has two of them.
                let (number, phase) = (first / stride, first % stride);
                let targets = number..number + inner.len();
                phases[phase]
                    .terms
                    .push(Term { targets, start: line + inner.start - outputs.start });
            }
            let others = (outputs.start..inner.start).chain(inner.end..outputs.end);
            edges.extend(others.filter_map(|o| Some((line + o - outputs.start, target(o)?))));
        }
        BoxFold { part, start, width, taps, runs, sources, lines, phases, edges, direct }
    }

    /// Elements of the slab for a box.
    pub fn slab_len_of(axes: &Axes, part: &Box3) -> usize {
        let map = &axes[2];
        let held = held(map, &part[2]);
        let outputs: Vec<_> = (0..map.taps()).map(|k| map.outputs_reading(k, &held)).collect();
        map.taps() * part[0].len() * part[1].len() * longest(&outputs)
    }

    /// Elements of its slab, and a vector before and behind, where what is read and written does not matter.
    pub fn slab_len(&self) -> usize {
        if self.direct { 0 } else { self.taps.len() * self.tap_len() + 2 * MAX_LANES }
    }

    /// Elements of a tap's lines.
    fn tap_len(&self) -> usize {
        self.lines.len() * self.width
    }
}

/// The padded positions that are summed into the part of an axis: all of them into the whole axis;
/// into a part of a zero-padded one, where the map is one to one, those of its own positions.
fn held(map: &AxisMap, part: &Range<usize>) -> Range<usize> {
    if part.len() == map.inputs() || map.mode() != PaddingMode::Zeros {
        return 0..map.padded_extent();
    }
    let inside = map.inside();
    let first = map.padded_source(inside.start).filter(|_| !inside.is_empty()).unwrap_or(0);
    let padded = |i: usize| (i.max(first) - first + inside.start).min(inside.end);
    padded(part.start)..padded(part.end)
}

fn longest(ranges: &[Range<usize>]) -> usize {
    ranges.iter().map(ExactSizeIterator::len).max().unwrap_or(0)
}

/// The rows of a box, those a stride apart together.
fn phase_by_phase<'a>(
    part_d: &Range<usize>,
    part_h: &'a Range<usize>,
    stride: usize,
) -> impl Iterator<Item = (usize, usize)> + use<'a> {
    part_d.clone().flat_map(move |d| {
        let phases = 0..stride.min(part_h.len());
        phases
            .flat_map(move |phase| part_h.clone().skip(phase).step_by(stride).map(move |h| (d, h)))
    })
}

fn pairs<'a>(left: &'a [usize], right: &'a [usize]) -> impl Iterator<Item = (usize, usize)> + 'a {
    left.iter().flat_map(move |&l| right.iter().map(move |&r| (l, r)))
}

/// Writes the sums of a box.
pub(super) struct FoldBox<'a, T: Element> {
    pub fold: &'a BoxFold,
    /// The plane's patches `[K, L]`, and whatever else lies behind them.
    pub patches: &'a [T],
    /// As many elements as [`BoxFold::slab_len`] says.
    pub slab: &'a mut [T::Acc],
    /// The box's sums, and whatever will be written after them.
    pub sums: &'a mut [T::Acc],
    pub overlap: Option<&'a Overlap>,
}

impl<T: Element> VectorLoop<T::Acc> for FoldBox<'_, T> {
    #[inline(always)]
    unsafe fn run<X: Vector<T::Acc>>(self) {
        let FoldBox { fold, patches, slab, sums, overlap } = self;
        // SAFETY: the caller has a machine with these instructions.
        unsafe {
            if fold.direct {
                return fold.add_lines::<X, T, T, true>(patches, 0, sums, overlap);
            }
            fold.fill_slab::<X, T>(patches, slab);
            fold.add_lines::<X, T::Acc, T, false>(slab, MAX_LANES, sums, overlap);
        }
    }
}

impl BoxFold {
    /// Adds the rows of patches that belong together up.
    ///
    /// # Safety
    /// The machine has the instructions of `X`.
    #[inline(always)]
    unsafe fn fill_slab<X: Vector<T::Acc>, T: Element>(&self, patches: &[T], slab: &mut [T::Acc]) {
        for (k, tap) in self.taps.iter().enumerate() {
            for run in &self.runs {
                let len = if run.lines > 1 { run.lines * self.width } else { tap.len };
                let slab = &mut slab[MAX_LANES + k * self.tap_len() + run.start..];
                // SAFETY: the caller's promise.
                unsafe {
                    let sources = &self.sources[run.sources.clone()];
                    add_up::<X, T>(&patches[tap.first..], sources, len, slab);
                }
            }
        }
    }

    /// Adds the lines of all taps, which begin at `first` of `data`, up to the rows of the box.
    ///
    /// # Safety
    /// The machine has the instructions of `X`.
    #[inline(always)]
    unsafe fn add_lines<
        X: Vector<T::Acc>,
        U: Element<Acc = T::Acc>,
        T: Element,
        const AHEAD: bool,
    >(
        &self,
        data: &[U],
        first: usize,
        sums: &mut [T::Acc],
        overlap: Option<&Overlap>,
    ) {
        let width = self.part[2].len();
        for (row, &line) in self.lines.iter().enumerate() {
            let sums = &mut sums[row * width..];
            // SAFETY: the caller's promise.
            unsafe {
                let sum = |phase: &Phase, at| phase.sum::<X, U, AHEAD>(data, first + line, at);
                match &self.phases[..] {
                    [all] => {
                        for at in (0..width).step_by(X::LANES) {
                            put(sum(all, at), &mut sums[at..], width - at);
                        }
                    }
                    [even, odd] => {
                        for at in (0..even.len).step_by(X::LANES) {
                            let pairs = sum(even, at).interleave(sum(odd, at));
                            for (at, vector) in [2 * at, 2 * at + X::LANES].into_iter().zip(pairs) {
                                if at < width {
                                    put(vector, &mut sums[at..], width - at);
                                }
                            }
                        }
                    }
                    phases => {
                        for (number, phase) in phases.iter().enumerate() {
                            for at in (0..phase.len).step_by(X::LANES) {
                                let mut lanes = [T::Acc::default(); MAX_LANES];
                                sum(phase, at).store(lanes.as_mut_ptr());
                                let targets = sums[..width].iter_mut().skip(number);
                                let targets = targets.step_by(phases.len()).skip(at);
                                let lanes = &lanes[..X::LANES];
                                targets.zip(lanes).for_each(|(target, &lane)| *target = lane);
                            }
                        }
                    }
                }
            }
            for &(from, to) in &self.edges {
                sums[to] += data[first + line + from].to_acc();
            }
            if let Some([by_d, by_h, by_w]) = overlap {
                let [part_d, part_h, part_w] = &self.part;
                let (d, h) = (row / part_h.len(), row % part_h.len());
                let outer = by_d[part_d.start + d] * by_h[part_h.start + h];
                let counts = by_w[part_w.clone()].iter().map(|by_w| outer * by_w);
                sums.iter_mut().zip(counts).for_each(|(sum, count)| divide(sum, count));
            }
        }
    }
}

impl Phase {
    /// The sums of a vector of elements from number `at` on, of the terms behind `line`; zero behind the last. What the
    /// next ones read is fetched if `AHEAD`: with several rows of patches at once, processors do not see it coming.
    ///
    /// # Safety
    /// The machine has the instructions of `X`.
    #[inline(always)]
    unsafe fn sum<X: Vector<U::Acc>, U: Element, const AHEAD: bool>(
        &self,
        data: &[U],
        line: usize,
        at: usize,
    ) -> X {
        // SAFETY: the caller's promise; lanes are at most as many as there are.
        unsafe {
            let mut sum = X::zero();
            for Term { targets, start } in &self.terms {
                let from = targets.start.saturating_sub(at);
                let to = targets.end.saturating_sub(at).min(X::LANES);
                if from < to {
                    let element = (line + start + at) as isize - targets.start as isize;
                    if AHEAD {
                        stream::read_ahead(data.as_ptr().wrapping_offset(element));
                    }
                    let term = load::<X, U>(data, element);
                    let all = to - from == X::LANES;
                    sum = sum.plus(if all { term } else { term.keep(from..to) });
                }
            }
            sum
        }
    }
}

/// `slab[j] = Σ patches[source + j]` for `len` elements; what follows them in the slab, up to a vector, may be
/// overwritten.
///
/// # Safety
/// The machine has the instructions of `X`.
#[inline(always)]
unsafe fn add_up<X: Vector<T::Acc>, T: Element>(
    patches: &[T],
    sources: &[usize],
    len: usize,
    slab: &mut [T::Acc],
) {
    /// Vectors that are summed together, so that additions do not wait for each other.
    const TOGETHER: usize = 4;
    let Some((&head, rest)) = sources.split_first() else {
        return slab[..len].fill(T::Acc::default());
    };
    let furthest = sources.iter().fold(0, |furthest, &source| furthest.max(source));
    assert!(len == 0 || furthest + len <= patches.len());
    assert!(len.next_multiple_of(X::LANES) <= slab.len());
    let mut at = 0;
    // SAFETY: elements below `len` exist for every source, and so do whole vectors of the slab, both by the assertions;
    // the rest is the caller's promise.
    unsafe {
        while at + TOGETHER * X::LANES <= len {
            let mut sums = [X::zero(); TOGETHER];
            let from = patches.as_ptr().add(head + at);
            for (vector, sum) in sums.iter_mut().enumerate() {
                *sum = X::widen(from.add(vector * X::LANES));
            }
            for &source in rest {
                let from = patches.as_ptr().add(source + at);
                for (vector, sum) in sums.iter_mut().enumerate() {
                    *sum = sum.plus(X::widen(from.add(vector * X::LANES)));
                }
            }
            for (vector, sum) in sums.iter().enumerate() {
                sum.store(slab.as_mut_ptr().add(at + vector * X::LANES));
            }
            at += TOGETHER * X::LANES;
        }
        while at < len {
            let mut sum = load::<X, T>(patches, (head + at) as isize);
            for &source in rest {
                sum = sum.plus(load(patches, (source + at) as isize));
            }
            sum.store(slab.as_mut_ptr().add(at));
            at += X::LANES;
        }
    }
}
