//! How the taps of a layer become lags between virtual channels.
//!
//! On each axis a tap `k` reads the padded positions `o·stride + k·dilation`. Either the axis is *lagged*: its
//! padded positions are split by their phase, the remainder by the stride, and a tap is a phase and a
//! start, so that all pairs of taps of two phases that are the same lag apart sum the same products over
//! windows that are shifted. Or it is *unfolded*: each tap is a phase of its own that starts at 0, as in the
//! patch matrix. What has another phase is another virtual channel.

use std::ops::Range;

use crate::element::Accumulator;
use crate::geometry::{AxisMap, ravel, unravel};

/// One axis, lagged or unfolded.
#[derive(Clone, Debug)]
pub(super) struct FoldedAxis {
    lagged: bool,
    pub stride: usize,
    /// The padded position of each phase's first position.
    pub offsets: Vec<usize>,
    /// The largest start.
    pub reach: usize,
    /// The phase and the start of each tap.
    places: Vec<(usize, usize)>,
    /// By left phase, right phase (the last of them the appended 1) and lag.
    starts: Vec<Vec<usize>>,
}

impl FoldedAxis {
    pub fn lagged(map: &AxisMap) -> Self {
        let (stride, dilation) = (map.stride(), map.dilation());
        let mut offsets: Vec<usize> = (0..map.taps()).map(|k| k * dilation % stride).collect();
        offsets.sort_unstable();
        offsets.dedup();
        let place = |k: usize| {
            let offset = k * dilation % stride;
            (offsets.binary_search(&offset).unwrap_or_default(), k * dilation / stride)
        };
        let places = (0..map.taps()).map(place).collect();
        FoldedAxis::new(true, stride, offsets, places)
    }

    pub fn unfolded(map: &AxisMap) -> Self {
        let offsets = (0..map.taps()).map(|k| k * map.dilation()).collect();
        let places = (0..map.taps()).map(|k| (k, 0)).collect();
        FoldedAxis::new(false, map.stride(), offsets, places)
    }

    /// From the phase and the start of each tap.
    fn new(lagged: bool, stride: usize, offsets: Vec<usize>, places: Vec<(usize, usize)>) -> Self {
        let reach = places.iter().map(|&(_, start)| start).max().unwrap_or(0);
        let mut axis = FoldedAxis { lagged, stride, offsets, reach, places, starts: Vec::new() };
        let phases = axis.offsets.len();
        axis.starts = vec![Vec::new(); phases * (phases + 1) * (2 * reach + 1)];
        for (l, start) in axis.places.clone() {
            for (r, other) in axis.places.clone() {
                let at = axis.index(l, r, other as isize - start as isize);
                axis.starts[at].push(start);
            }
            let at = axis.index(l, phases, 0);
            axis.starts[at].push(start);
        }
        axis
    }

    fn index(&self, left: usize, right: usize, lag: isize) -> usize {
        let lags = 2 * self.reach + 1;
        (left * (self.offsets.len() + 1) + right) * lags + (lag + self.reach as isize) as usize
    }

    pub fn phases(&self) -> usize {
        self.offsets.len()
    }

    /// Where the left ones start of the pairs of taps of these phases that are so far apart. `right` may be
    /// one more than the last phase: the appended 1, which has no lag.
    pub fn starts(&self, left: usize, right: usize, lag: isize) -> &[usize] {
        &self.starts[self.index(left, right, lag)]
    }

    /// All lags there may be.
    pub fn lags(&self) -> std::ops::RangeInclusive<isize> {
        -(self.reach as isize)..=self.reach as isize
    }
}

/// What is done with axes that have several taps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// There are none.
    Single,
    Lagged,
    Mixed,
    Unfolded,
}

/// All three axes.
#[derive(Clone, Debug)]
pub(super) struct Folding {
    pub axes: [FoldedAxis; 3],
}

impl Folding {
    /// Every way there is; the first lags all axes, the last unfolds them all.
    pub fn all(maps: &[AxisMap; 3]) -> Vec<Folding> {
        let several = |axis: usize| maps[axis].taps() > 1;
        let ways =
            (0..8).filter(|way: &usize| (0..3).all(|axis| way >> axis & 1 == 0 || several(axis)));
        ways.map(|way| {
            let fold = |axis: usize| match way >> axis & 1 {
                0 => FoldedAxis::lagged(&maps[axis]),
                _ => FoldedAxis::unfolded(&maps[axis]),
            };
            Folding { axes: [0, 1, 2].map(fold) }
        })
        .collect()
    }

    pub fn kind(&self) -> Kind {
        let several = self.axes.iter().filter(|axis| axis.places.len() > 1);
        let (lagged, unfolded): (Vec<_>, Vec<_>) = several.partition(|axis| axis.lagged);
        match (lagged.is_empty(), unfolded.is_empty()) {
            (true, true) => Kind::Single,
            (false, true) => Kind::Lagged,
            (false, false) => Kind::Mixed,
            (true, false) => Kind::Unfolded,
        }
    }

    /// Number of phases over all axes.
    pub fn phases(&self) -> usize {
        self.axes.iter().map(FoldedAxis::phases).product()
    }

    /// A phase's phase on each axis; of the appended 1 the one after the last.
    pub fn phase(&self, phase: Option<usize>) -> [usize; 3] {
        let extents = self.axes.each_ref().map(FoldedAxis::phases);
        phase.map_or(extents, |phase| unravel(phase, extents))
    }

    /// On each axis where the left ones start of the pairs of taps of these phases that are so far apart;
    /// `None` where there is no pair. The right one may be the appended 1, which has no lag.
    pub fn starts(
        &self,
        left: usize,
        right: Option<usize>,
        lag: [isize; 3],
    ) -> Option<[Vec<usize>; 3]> {
        let (left, right) = (self.phase(Some(left)), self.phase(right));
        let starts = [0, 1, 2]
            .map(|axis| self.axes[axis].starts(left[axis], right[axis], lag[axis]).to_vec());
        starts.iter().all(|starts| !starts.is_empty()).then_some(starts)
    }

    /// For each axis and each of its phases the windows of all its taps, over so many outputs.
    pub fn windows(&self, outputs: [usize; 3]) -> [Vec<Windows>; 3] {
        [0, 1, 2].map(|axis| {
            let of = &self.axes[axis];
            let all = |phase: usize| of.starts(phase, of.phases(), 0).to_vec();
            (0..of.phases()).map(|phase| Windows::new(all(phase), outputs[axis])).collect()
        })
    }

    /// Positions that outputs of these extents hold on each axis.
    pub fn held(&self, outputs: [usize; 3]) -> [usize; 3] {
        [0, 1, 2].map(|axis| outputs[axis] + self.axes[axis].reach)
    }

    /// The phase of a tap, and its start on each axis.
    pub fn place(&self, tap: [usize; 3]) -> (usize, [isize; 3]) {
        let places = [0, 1, 2].map(|axis| self.axes[axis].places[tap[axis]]);
        let extents = self.axes.each_ref().map(FoldedAxis::phases);
        (ravel(places.map(|(phase, _)| phase), extents), places.map(|(_, start)| start as isize))
    }

    /// Number of lags, each and its opposite.
    pub fn all_lags(&self) -> usize {
        self.axes.iter().map(|axis| 2 * axis.reach + 1).product()
    }

    /// The number of a lag.
    pub fn lag(&self, lag: [isize; 3]) -> usize {
        let at = |axis: usize| (lag[axis] + self.axes[axis].reach as isize) as usize;
        ravel([0, 1, 2].map(at), self.axes.each_ref().map(|axis| 2 * axis.reach + 1))
    }

    /// Lags of which one of each and its opposite is taken, the first of them none at all.
    pub fn lags(&self) -> Vec<[isize; 3]> {
        let [d, h, w] = &self.axes;
        let all =
            d.lags().flat_map(|d| h.lags().flat_map(move |h| w.lags().map(move |w| [d, h, w])));
        all.filter(|&lag| lag >= [0; 3]).collect()
    }
}

/// Windows of one length on an axis, cut where any of them begins or ends.
#[derive(Clone, Debug)]
pub(super) struct Windows {
    /// Ascending.
    pub starts: Vec<usize>,
    len: usize,
    pub segments: Vec<Segment>,
}

/// Positions that no window divides.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub positions: Range<usize>,
    /// The windows that they are in, by their places in [`Windows::starts`].
    pub windows: Range<usize>,
}

impl Windows {
    /// `starts` in any order.
    pub fn new(mut starts: Vec<usize>, len: usize) -> Self {
        starts.sort_unstable();
        starts.dedup();
        let mut cuts: Vec<usize> = starts.iter().flat_map(|&start| [start, start + len]).collect();
        cuts.sort_unstable();
        cuts.dedup();
        let segment = |positions: Range<usize>| {
            let first = starts.partition_point(|&start| start + len < positions.end);
            let end = starts.partition_point(|&start| start <= positions.start);
            Segment { positions, windows: first..end.max(first) }
        };
        let segments = cuts.windows(2).map(|cut| segment(cut[0]..cut[1]));
        let segments = segments.filter(|segment| !segment.windows.is_empty()).collect();
        Windows { starts, len, segments }
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Positions in any window.
    pub fn positions(&self) -> usize {
        self.segments.iter().map(|segment| segment.positions.len()).sum()
    }

    /// Of windows that start at some of these starts, ascending, those that a segment is in.
    pub fn within(&self, segment: &Segment, starts: &[usize]) -> Range<usize> {
        let Range { start, end } = segment.positions;
        let first = starts.partition_point(|&at| at + self.len < end);
        first..starts.partition_point(|&at| at <= start).max(first)
    }

    /// Adds to every window's sums those of its segments: `add` adds a segment's to what it is given.
    /// What is `new`, here and for `add`, has no values yet and counts as 0. `running` is memory for the sums
    /// of one window.
    ///
    /// Where all windows have a segment in common, the sums of the segments after it and those of the ones
    /// before it are carried from window to window; what is carried grows only.
    pub fn each_sum<F: Accumulator>(
        &self,
        running: &mut [F],
        windows: &mut [F],
        new: bool,
        mut add: impl FnMut(&Segment, &mut [F], bool),
    ) {
        if let ([segment], [_]) = (&self.segments[..], &self.starts[..]) {
            return add(segment, windows, new);
        }
        let len = running.len();
        let all = 0..self.len();
        let Some(core) = self.segments.iter().position(|segment| segment.windows == all) else {
            if new {
                windows.fill(F::ZERO);
            }
            for segment in &self.segments {
                add(segment, running, true);
                for window in segment.windows.clone() {
                    add_to(running, &mut windows[window * len..][..len], false);
                }
            }
            return;
        };
        let (before, from_core) = self.segments.split_at(core);
        let mut later = from_core.iter().peekable();
        for window in all.clone() {
            let mut first = window == 0;
            while let Some(segment) = later.next_if(|segment| segment.windows.start <= window) {
                add(segment, running, std::mem::take(&mut first));
            }
            add_to(running, &mut windows[window * len..][..len], new);
        }
        let mut earlier = before.iter().rev().peekable();
        let mut first = true;
        for window in all.rev() {
            while let Some(segment) = earlier.next_if(|segment| segment.windows.end > window) {
                add(segment, running, std::mem::take(&mut first));
            }
            if !first {
                add_to(running, &mut windows[window * len..][..len], false);
            }
        }
    }

    /// The place of a window that there is.
    pub fn place(&self, start: usize) -> usize {
        self.starts.partition_point(|&other| other < start)
    }
}

/// Adds sums to a target, or to 0 if it is new.
fn add_to<F: Accumulator>(sums: &[F], target: &mut [F], new: bool) {
    match new {
        true => target.copy_from_slice(sums),
        false => target.iter_mut().zip(sums).for_each(|(target, &sum)| *target += sum),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_windows_are_those_of_their_segments() {
        for (starts, len) in [
            (vec![0], 5),
            (vec![0, 1, 2, 3, 4], 9),
            (vec![2, 4, 5], 4),
            (vec![0, 3, 6], 2),
            (vec![0, 4, 5], 3),
            (vec![0, 1], 1),
        ] {
            let windows = Windows::new(starts.clone(), len);
            for new in [true, false] {
                let mut sums = vec![if new { f64::NAN } else { 0.5 }; windows.len()];
                windows.each_sum(&mut [f64::NAN], &mut sums, new, |segment, sum, new| {
                    let of: usize = segment.positions.clone().map(|at| 1 << at).sum();
                    sum[0] = of as f64 + if new { 0.0 } else { sum[0] };
                });
                let of = |start: usize| -> usize { (start..start + len).map(|at| 1 << at).sum() };
                let old = if new { 0.0 } else { 0.5 };
                let expected: Vec<f64> =
                    starts.iter().map(|&start| old + of(start) as f64).collect();
                assert_eq!(sums, expected, "{starts:?}, {len}, {new}");
            }
        }
    }

    #[test]
    fn segments_make_up_every_window() {
        for (starts, len) in [
            (vec![0], 5),
            (vec![2, 0, 1], 7),
            (vec![0, 3, 6], 2),
            (vec![0, 4, 5], 3),
            (vec![1, 2, 9], 1),
        ] {
            let windows = Windows::new(starts, len);
            for (number, &start) in windows.starts.iter().enumerate() {
                let inside = windows.segments.iter().filter(|s| s.windows.contains(&number));
                let positions: Vec<usize> = inside.flat_map(|s| s.positions.clone()).collect();
                assert_eq!(positions, (start..start + len).collect::<Vec<_>>());
            }
        }
    }
}
