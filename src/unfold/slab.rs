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

use std::ops::Range;

use crate::geometry::AxisMap;

/// A box of output positions: their ranges on the three axes.
pub(crate) type Box3 = [Range<usize>; 3];

/// Slabs of at most this many bytes stay in a core's L2 cache next to what is done with them.
pub(crate) const SLAB_BYTES: usize = 256 << 10;

/// The shape of the slab that serves a box of outputs.
#[derive(Clone, Debug)]
pub(crate) struct Slab<'m> {
    axes: &'m [AxisMap; 3],
    outputs: Box3,
    /// Padded positions held on the two outer axes.
    held: [Range<usize>; 2],
    /// Lines set aside for each phase on the two outer axes.
    per_phase: [usize; 2],
}

impl<'m> Slab<'m> {
    /// The slab for these outputs, none of whose ranges may be empty.
    pub(crate) fn new(axes: &'m [AxisMap; 3], outputs: Box3) -> Self {
        let held = [0, 1].map(|axis| {
            let (map, range) = (&axes[axis], &outputs[axis]);
            let last = map.padded_position(range.end - 1, map.taps() - 1);
            map.padded_position(range.start, 0)..last + 1
        });
        let per_phase = [0, 1].map(|axis| held[axis].len().div_ceil(axes[axis].stride()));
        Slab { axes, outputs, held, per_phase }
    }

    /// Elements in the slab.
    pub(crate) fn len(&self) -> usize {
        let lines = |axis: usize| self.per_phase[axis] * self.axes[axis].stride();
        self.axes[2].taps() * lines(0) * lines(1) * self.width()
    }

    /// Outputs on the first axis.
    pub(crate) fn depth(&self) -> usize {
        self.outputs[0].len()
    }

    /// Outputs on the last axis.
    pub(crate) fn width(&self) -> usize {
        self.outputs[2].len()
    }

    /// Number of output positions that [`Slab::block`] covers: the box's extent on the last two axes.
    pub(crate) fn block_len(&self) -> usize {
        self.outputs[1].len() * self.width()
    }

    /// Where the patch row of `tap` at outer output `d` (counted from the box's first) starts:
    /// [`Slab::block_len`] contiguous elements.
    #[inline]
    pub(crate) fn block(&self, tap: [usize; 3], d: usize) -> usize {
        let d = d * self.axes[0].stride() + tap[0] * self.axes[0].dilation();
        let h = tap[1] * self.axes[1].dilation();
        self.line(tap[2], d, h)
    }

    /// Where the line of tap `w` at padded positions (d, h), counted from the first held, starts.
    #[inline]
    fn line(&self, w: usize, d: usize, h: usize) -> usize {
        let row = |axis: usize, q: usize| {
            let stride = self.axes[axis].stride();
            q % stride * self.per_phase[axis] + q / stride
        };
        let lines = |axis: usize| self.per_phase[axis] * self.axes[axis].stride();
        ((w * lines(0) + row(0, d)) * lines(1) + row(1, h)) * self.width()
    }

    /// Fills the slab from an input plane, converting elements on the way.
    pub(crate) fn fill<T: Copy, U: Copy + Default>(
        &self,
        plane: &[T],
        slab: &mut [U],
        convert: impl Fn(T) -> U + Copy,
    ) {
        let [map_d, map_h, map_w] = self.axes;
        let (height, width) = (map_h.inputs(), map_w.inputs());
        for d in self.held[0].clone() {
            for h in self.held[1].clone() {
                let source = map_d.padded_source(d).zip(map_h.padded_source(h));
                let input = source.map(|(d, h)| &plane[(d * height + h) * width..][..width]);
                for tap in 0..map_w.taps() {
                    let start = self.line(tap, d - self.held[0].start, h - self.held[1].start);
                    let line = &mut slab[start..][..self.width()];
                    match input {
                        None => line.fill(U::default()),
                        Some(input) => {
                            unfold_line(map_w, tap, &self.outputs[2], input, line, convert)
                        }
                    }
                }
            }
        }
    }
}

/// One tap of one line: `line[j] = input[source(outputs.start + j, tap)]`.
#[inline]
pub(crate) fn unfold_line<T: Copy, U: Copy + Default>(
    map: &AxisMap,
    tap: usize,
    outputs: &Range<usize>,
    input: &[T],
    line: &mut [U],
    convert: impl Fn(T) -> U,
) {
    let read = |o: usize| map.source(o, tap).map_or(U::default(), |i| convert(input[i]));
    let inner = inner_outputs(map, tap, outputs);
    for o in (outputs.start..inner.start).chain(inner.end..outputs.end) {
        line[o - outputs.start] = read(o);
    }
    let Some(first) = (!inner.is_empty()).then(|| map.source(inner.start, tap)).flatten() else {
        return;
    };
    let line = &mut line[inner.start - outputs.start..][..inner.len()];
    let input = &input[first..];
    match map.stride() {
        1 => line.iter_mut().zip(input).for_each(|(t, &s)| *t = convert(s)),
        2 => line.iter_mut().zip(input.iter().step_by(2)).for_each(|(t, &s)| *t = convert(s)),
        n => line.iter_mut().zip(input.iter().step_by(n)).for_each(|(t, &s)| *t = convert(s)),
    }
}

/// Those of `outputs` that read the inside of the input through `tap`, where the map is affine.
#[inline]
pub(crate) fn inner_outputs(map: &AxisMap, tap: usize, outputs: &Range<usize>) -> Range<usize> {
    let inner = map.outputs_reading(tap, &map.inside());
    let start = inner.start.clamp(outputs.start, outputs.end);
    start..inner.end.clamp(start, outputs.end)
}

/// Cuts all outputs into boxes whose slabs have at most `limit` elements (or single lines, where even
/// those are larger than the limit). Boxes cover consecutive ranges of the flattened positions.
pub(crate) fn boxes(axes: &[AxisMap; 3], limit: usize) -> Vec<Box3> {
    let out = [0, 1, 2].map(|axis| axes[axis].outputs());
    let whole = [0..out[0], 0..out[1], 0..out[2]];
    let fits = |b: &Box3| Slab::new(axes, b.clone()).len() <= limit;
    if fits(&whole) {
        return vec![whole];
    }
    // The slowest axis that can be cut without a single slice of it being too large; else the last.
    let axis = (0..2)
        .find(|&axis| {
            let slice = [0, 1, 2].map(|a| if a <= axis { 0..1 } else { 0..out[a] });
            out[axis] > 1 && fits(&slice)
        })
        .unwrap_or(2);
    let slice = |n: usize| {
        [0, 1, 2].map(|a| {
            if a < axis {
                0..1
            } else if a == axis {
                0..n
            } else {
                0..out[a]
            }
        })
    };
    // Largest number of positions on that axis that fits, by bisection: the slab grows with it.
    let (mut fitting, mut too_large) = (1, out[axis] + 1);
    while too_large - fitting > 1 {
        let middle = fitting.midpoint(too_large);
        if fits(&slice(middle)) { fitting = middle } else { too_large = middle }
    }
    let mut all = Vec::new();
    for d in 0..if axis > 0 { out[0] } else { 1 } {
        for h in 0..if axis > 1 { out[1] } else { 1 } {
            for start in (0..out[axis]).step_by(fitting) {
                let part = start..(start + fitting).min(out[axis]);
                let at = [d..d + 1, h..h + 1];
                all.push([0, 1, 2].map(|a| match a {
                    a if a < axis => at[a].clone(),
                    a if a == axis => part.clone(),
                    a => 0..out[a],
                }));
            }
        }
    }
    all
}
