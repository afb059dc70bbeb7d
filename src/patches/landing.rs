//! The way back: where the outputs of a box land in a box of inputs.

use std::ops::{AddAssign, Range};
use std::sync::Arc;

use super::Images;
use crate::geometry::{AxisMap, Box3, Layout, ravel};

/// Where the outputs of a box, through each tap, land in a box of the input: the adjoint of the index
/// map, restricted to both.
#[derive(Clone, Debug)]
pub(crate) struct Landing {
    layout: Layout,
    outer: [Arc<OuterAxis>; 2],
    inner: Arc<LastAxis>,
    /// Inputs from one output of a segment to the next.
    stride: usize,
    /// Extents of the outputs' and of the inputs' box.
    from: [usize; 3],
    to: [usize; 3],
}

/// For each tap (output, input) pairs, counted from the boxes' first.
type OuterAxis = Vec<Vec<(usize, usize)>>;

/// For each tap segments of outputs that land on evenly spaced inputs.
type LastAxis = Vec<Vec<Segment>>;

/// Outputs `output..output + len` that land on inputs `input`, `input + stride`, ….
#[derive(Clone, Debug)]
struct Segment {
    output: usize,
    input: usize,
    len: usize,
}

impl Landing {
    /// For each box of inputs the boxes of outputs, by number, that land there, and how.
    pub fn between(of: &Images, outputs: &[Box3], inputs: &[Box3]) -> Vec<Vec<(usize, Self)>> {
        let Images { layout, axes, .. } = of;
        let [map_d, map_h, map_w] = &**axes;
        let table_d = Table::new(0, outputs, inputs, |from, to| outer_axis(map_d, from, to));
        let table_h = Table::new(1, outputs, inputs, |from, to| outer_axis(map_h, from, to));
        let table_w = Table::new(2, outputs, inputs, |from, to| last_axis(map_w, from, to));
        let landing = |from: usize, to: usize| {
            let outer = [table_d.get(from, to)?.clone(), table_h.get(from, to)?.clone()];
            let inner = table_w.get(from, to)?.clone();
            let extents = |area: &Box3| area.each_ref().map(Range::len);
            let (stride, from, to) =
                (map_w.stride(), extents(&outputs[from]), extents(&inputs[to]));
            Some(Landing { layout: *layout, outer, inner, stride, from, to })
        };
        let to = |to: usize| {
            let all = (0..outputs.len()).filter_map(|from| Some((from, landing(from, to)?)));
            all.collect()
        };
        (0..inputs.len()).map(to).collect()
    }

    /// Calls `visit(output, input, segment length)` for every run of outputs, as flat positions in
    /// their boxes, that lands through `tap`.
    fn each_segment(&self, tap: [usize; 3], mut visit: impl FnMut(usize, usize, usize)) {
        for &(from_d, to_d) in &self.outer[0][tap[0]] {
            for &(from_h, to_h) in &self.outer[1][tap[1]] {
                for s in &self.inner[tap[2]] {
                    let from = ravel([from_d, from_h, s.output], self.from);
                    visit(from, ravel([to_d, to_h, s.input], self.to), s.len);
                }
            }
        }
    }

    /// Adds one tap's `product` of `channels` × outputs to `sums` of channels × inputs, both oriented
    /// as the layout has it, whose runs start `product_step` and `sums_step` apart.
    pub fn add<A: Copy + AddAssign>(
        &self,
        tap: [usize; 3],
        channels: usize,
        product_step: usize,
        product: &[A],
        sums_step: usize,
        sums: &mut [A],
    ) {
        match self.layout {
            Layout::ChannelsFirst => {
                for channel in 0..channels {
                    let row = &product[channel * product_step..];
                    let sums = &mut sums[channel * sums_step..];
                    self.each_segment(tap, |from, to, len| {
                        add_strided(&row[from..][..len], &mut sums[to..], self.stride);
                    });
                }
            }
            Layout::ChannelsLast => self.each_segment(tap, |from, to, len| {
                for j in 0..len {
                    let source = &product[(from + j) * product_step..][..channels];
                    add_strided(source, &mut sums[(to + j * self.stride) * sums_step..], 1);
                }
            }),
        }
    }
}

/// What lands on one axis, for every range of outputs and every range of inputs that the boxes have
/// there: boxes share their ranges, of which there are few.
struct Table<A> {
    /// Which range each box of outputs, and each of inputs, has.
    from: Vec<usize>,
    to: Vec<usize>,
    /// By range of inputs and of outputs; `None` where nothing lands.
    entries: Vec<Option<Arc<A>>>,
    /// Ranges of outputs.
    count: usize,
}

impl<A> Table<A> {
    fn new(
        axis: usize,
        outputs: &[Box3],
        inputs: &[Box3],
        landing: impl Fn(&Range<usize>, &Range<usize>) -> Option<A>,
    ) -> Self {
        let (from, from_ranges) = distinct(axis, outputs);
        let (to, to_ranges) = distinct(axis, inputs);
        let pairs = to_ranges.iter().flat_map(|to| from_ranges.iter().map(move |from| (from, to)));
        let entries = pairs.map(|(from, to)| landing(from, to).map(Arc::new)).collect();
        Table { from, to, entries, count: from_ranges.len() }
    }

    /// For boxes of these numbers.
    fn get(&self, from: usize, to: usize) -> Option<&Arc<A>> {
        self.entries[self.to[to] * self.count + self.from[from]].as_ref()
    }
}

/// The distinct ranges that boxes have on an axis, and which of them each has.
fn distinct(axis: usize, boxes: &[Box3]) -> (Vec<usize>, Vec<Range<usize>>) {
    let mut ranges: Vec<(usize, usize)> =
        boxes.iter().map(|area| (area[axis].start, area[axis].end)).collect();
    ranges.sort_unstable();
    ranges.dedup();
    let which =
        |area: &Box3| ranges.binary_search(&(area[axis].start, area[axis].end)).unwrap_or_default();
    let which = boxes.iter().map(which).collect();
    (which, ranges.into_iter().map(|(start, end)| start..end).collect())
}

fn outer_axis(map: &AxisMap, outputs: &Range<usize>, inputs: &Range<usize>) -> Option<OuterAxis> {
    let taps = (0..map.taps()).map(|k| pairs(map, k, outputs, inputs).collect());
    Some(taps.collect()).filter(|taps: &OuterAxis| taps.iter().any(|pairs| !pairs.is_empty()))
}

fn last_axis(map: &AxisMap, outputs: &Range<usize>, inputs: &Range<usize>) -> Option<LastAxis> {
    let stride = map.stride();
    let segments = |k: usize| {
        let mut segments: Vec<Segment> = Vec::new();
        for (output, input) in pairs(map, k, outputs, inputs) {
            match segments.last_mut() {
                Some(s) if s.output + s.len == output && s.input + s.len * stride == input => {
                    s.len += 1;
                }
                _ => segments.push(Segment { output, input, len: 1 }),
            }
        }
        segments
    };
    let taps: LastAxis = (0..map.taps()).map(segments).collect();
    Some(taps).filter(|taps| taps.iter().any(|segments| !segments.is_empty()))
}

/// The (output, input) pairs of a tap with both in their ranges, counted from the ranges' starts.
fn pairs<'a>(
    map: &'a AxisMap,
    tap: usize,
    outputs: &'a Range<usize>,
    inputs: &'a Range<usize>,
) -> impl Iterator<Item = (usize, usize)> + 'a {
    outputs.clone().filter_map(move |o| {
        let i = map.source(o, tap).filter(|i| inputs.contains(i))?;
        Some((o - outputs.start, i - inputs.start))
    })
}

/// `target[j·stride] += source[j]`.
#[inline]
fn add_strided<A: Copy + AddAssign>(source: &[A], target: &mut [A], stride: usize) {
    match stride {
        1 => target.iter_mut().zip(source).for_each(|(t, &s)| *t += s),
        n => target.iter_mut().step_by(n).zip(source).for_each(|(t, &s)| *t += s),
    }
}
