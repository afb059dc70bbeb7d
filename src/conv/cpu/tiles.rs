//! Pieces of the index map that a task works on at a time: slabs of an input's channels, from which
//! every tap's view of the outputs is a block, and the way back, onto a piece of an input.

use std::ops::{AddAssign, Range};

use super::runs::{Scratch, room};
use crate::conv::problem::Problem;
use crate::element::Element;
use crate::error::Result;
use crate::geometry::{AxisMap, Box3, Layout, ravel, volume};
use crate::patches::slab::{Slab, boxes};

/// The positions of a box, which [`boxes`] makes consecutive ones, in row-major order over `extents`.
pub(super) fn positions(part: &Box3, extents: [usize; 3]) -> Range<usize> {
    let start = ravel([0, 1, 2].map(|axis| part[axis].start), extents);
    start..start + volume(part)
}

/// Cuts the outputs into boxes of at most `limit` positions whose slabs, of one channel, have at most
/// `slab_limit` elements.
pub(super) fn output_boxes(p: &Problem, limit: usize, slab_limit: usize) -> Vec<Box3> {
    boxes(p.output_extents(), |part| {
        volume(part) <= limit && Slab::len_for(&p.axes, part) <= slab_limit
    })
}

/// Cuts the inputs into boxes of at most `limit` positions.
pub(super) fn input_boxes(p: &Problem, limit: usize) -> Vec<Box3> {
    boxes(p.input_extents(), |part| volume(part) <= limit)
}

/// A slab of some channels of one image: channels first `[channel][slab]`, channels last
/// `[slab][channel]`.
pub(super) fn fill_slab<T: Element>(
    p: &Problem,
    slab: &Slab,
    outputs_w: &Range<usize>,
    x: &[T],
    n: usize,
    channels: Range<usize>,
    data: &mut [T::Acc],
) {
    let positions = p.input_positions();
    let image = &x[n * p.channels * positions..][..p.channels * positions];
    if p.layout == Layout::ChannelsFirst {
        for (channel, data) in channels.zip(data.chunks_exact_mut(slab.len())) {
            slab.fill(&image[channel * positions..][..positions], 1, data, T::to_acc);
        }
        return;
    }
    let map_w = &p.axes[2];
    let count = channels.len();
    slab.each_line(|start, tap, row| {
        let line = data[start * count..].chunks_exact_mut(count);
        for (o, target) in outputs_w.clone().zip(line) {
            match row.zip(map_w.source(o, tap)) {
                None => target.fill(T::Acc::default()),
                Some((row, i)) => {
                    let at = (row * map_w.inputs() + i) * p.channels + channels.start;
                    T::widen(&image[at..][..count], target);
                }
            }
        }
    });
}

/// Where the outputs of a box, through each tap, land in a box of the input: the adjoint of the index
/// map, restricted to both.
pub(super) struct Landing {
    /// For each tap of the two outer axes, (output, input) pairs, counted from the boxes' first.
    outer: [Vec<Vec<(usize, usize)>>; 2],
    /// For each tap of the last axis, runs of outputs that land on evenly spaced inputs.
    inner: Vec<Vec<Segment>>,
    /// Inputs from one output of a run to the next.
    stride: usize,
    /// Extents of the outputs' and of the inputs' box.
    from: [usize; 3],
    to: [usize; 3],
}

/// Outputs `output..output + len` that land on inputs `input`, `input + stride`, ….
struct Segment {
    output: usize,
    input: usize,
    len: usize,
}

impl Landing {
    pub fn new(p: &Problem, outputs: &Box3, inputs: &Box3) -> Self {
        let outer = [0, 1].map(|axis| {
            let map = &p.axes[axis];
            (0..map.taps())
                .map(|k| pairs(map, k, &outputs[axis], &inputs[axis]).collect())
                .collect()
        });
        let map = &p.axes[2];
        let stride = map.stride();
        let inner = (0..map.taps())
            .map(|k| {
                let mut segments: Vec<Segment> = Vec::new();
                for (output, input) in pairs(map, k, &outputs[2], &inputs[2]) {
                    match segments.last_mut() {
                        Some(s)
                            if s.output + s.len == output && s.input + s.len * stride == input =>
                        {
                            s.len += 1;
                        }
                        _ => segments.push(Segment { output, input, len: 1 }),
                    }
                }
                segments
            })
            .collect();
        let extents = |part: &Box3| part.each_ref().map(Range::len);
        Landing { outer, inner, stride, from: extents(outputs), to: extents(inputs) }
    }

    /// Whether no output lands in the inputs' box.
    pub fn is_empty(&self) -> bool {
        self.outer.iter().any(|axis| axis.iter().all(Vec::is_empty))
            || self.inner.iter().all(Vec::is_empty)
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
    /// as the layout has it. `steps` are the distances between the runs of one and of the other.
    pub fn add<A: Copy + AddAssign>(
        &self,
        layout: Layout,
        tap: [usize; 3],
        channels: usize,
        steps: [usize; 2],
        product: &[A],
        sums: &mut [A],
    ) {
        let [product_step, sums_step] = steps;
        match layout {
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

/// The weight with its taps outermost, `[tap][output][channel of the group]` channels first and
/// `[tap][channel of the group][output]` channels last, so that a tap's weights are a matrix.
pub(super) fn taps_outermost<'a, T: Element>(
    p: &Problem,
    w: &'a [T],
    scratch: &'a mut Scratch<T::Acc>,
) -> Result<&'a [T::Acc]> {
    use rayon::prelude::*;
    if let (Layout::ChannelsLast, Some(w)) = (p.layout, T::as_acc(w)) {
        return Ok(w);
    }
    let target = room(scratch, w.len())?;
    let taps = p.taps();
    match p.layout {
        Layout::ChannelsLast => T::widen(w, target),
        Layout::ChannelsFirst => {
            let rows = p.outputs * p.channels_per_group();
            target.par_chunks_mut(rows).enumerate().for_each(|(tap, target)| {
                let source = w[tap..].iter().step_by(taps);
                target.iter_mut().zip(source).for_each(|(t, s)| *t = s.to_acc());
            });
        }
    }
    Ok(target)
}
