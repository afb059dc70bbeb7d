//! How the taps of a layer become lags between virtual channels.
//!
//! On each axis a tap `k` reads the padded positions `o·stride + k·dilation`. Either the axis is *lagged*: its
//! padded positions are split by their phase, the remainder by the stride, and a tap is a phase and a
//! start, so that all pairs of taps of two phases that are the same lag apart sum the same products over
//! windows that are shifted. Or it is *unfolded*: each tap is a phase of its own that starts at 0, as in the
//! patch matrix. What has another phase is another virtual channel.

use std::ops::Range;

use crate::geometry::{AxisMap, unravel};

/// Two taps whose products are summed over the window of one start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    pub left: usize,
    /// Of no meaning where the right side is the appended 1.
    pub right: usize,
    /// The left tap's first position.
    pub start: usize,
}

/// One axis, lagged or unfolded.
#[derive(Clone, Debug)]
pub(super) struct FoldedAxis {
    pub stride: usize,
    /// The padded position of each phase's first position.
    pub offsets: Vec<usize>,
    /// The largest start.
    pub reach: usize,
    /// By left phase, right phase (the last of them the appended 1) and lag.
    pairs: Vec<Vec<Pair>>,
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
        FoldedAxis::new(stride, offsets, places)
    }

    pub fn unfolded(map: &AxisMap) -> Self {
        let offsets = (0..map.taps()).map(|k| k * map.dilation()).collect();
        FoldedAxis::new(map.stride(), offsets, (0..map.taps()).map(|k| (k, 0)).collect())
    }

    /// From the phase and the start of each tap.
    fn new(stride: usize, offsets: Vec<usize>, places: Vec<(usize, usize)>) -> Self {
        let reach = places.iter().map(|&(_, start)| start).max().unwrap_or(0);
        let mut axis = FoldedAxis { stride, offsets, reach, pairs: Vec::new() };
        let phases = axis.offsets.len();
        axis.pairs = vec![Vec::new(); phases * (phases + 1) * (2 * reach + 1)];
        for (left, &(l, start)) in places.iter().enumerate() {
            for (right, &(r, other)) in places.iter().enumerate() {
                let at = axis.index(l, r, other as isize - start as isize);
                axis.pairs[at].push(Pair { left, right, start });
            }
            let at = axis.index(l, phases, 0);
            axis.pairs[at].push(Pair { left, right: 0, start });
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

    /// The pairs of taps of these phases that are so far apart, by start. `right` may be one more than the
    /// last phase: the appended 1, which has no lag.
    pub fn pairs(&self, left: usize, right: usize, lag: isize) -> &[Pair] {
        &self.pairs[self.index(left, right, lag)]
    }

    /// All lags there may be.
    pub fn lags(&self) -> std::ops::RangeInclusive<isize> {
        -(self.reach as isize)..=self.reach as isize
    }
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

    /// Number of phases over all axes.
    pub fn phases(&self) -> usize {
        self.axes.iter().map(FoldedAxis::phases).product()
    }

    /// A phase's phase on each axis; of the appended 1 the one after the last.
    pub fn phase(&self, phase: Option<usize>) -> [usize; 3] {
        let extents = self.axes.each_ref().map(FoldedAxis::phases);
        phase.map_or(extents, |phase| unravel(phase, extents))
    }

    /// Positions that these outputs take on each axis.
    pub fn extents(&self, outputs: [usize; 3]) -> [usize; 3] {
        [0, 1, 2].map(|axis| outputs[axis] + self.axes[axis].reach)
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
        Windows { starts, segments }
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Positions in any window.
    pub fn positions(&self) -> usize {
        self.segments.iter().map(|segment| segment.positions.len()).sum()
    }

    /// The place of a window that there is.
    pub fn place(&self, start: usize) -> usize {
        self.starts.partition_point(|&other| other < start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
