//! Copies of what boxes of whole lines of outputs read, channels last, with the padding around it.

use crate::element::Element;
use crate::geometry::{Axes, AxisMap, Box3, ravel, volume};
use crate::patches::slab::boxes;
use crate::product::cpu::FactorOf;

/// Boxes of whole lines of outputs, and where the copies of what they read have each pixel: all of them at the
/// distances that the largest needs.
#[derive(Debug)]
pub(crate) struct PaddedLines {
    axes: Axes,
    /// Channels of a group, at each pixel, and the factors that a copy has for them.
    channels: usize,
    factors: usize,
    boxes: Vec<Box3>,
    /// Planes, lines and pixels of a copy.
    extents: [usize; 3],
}

/// Padded positions of an outer axis that so many outputs read.
fn held(map: &AxisMap, outputs: usize) -> usize {
    (outputs - 1) * map.stride() + (map.taps() - 1) * map.dilation() + 1
}

impl PaddedLines {
    /// Of at most so many outputs, and so many factors in a copy, unless those of a single line are more.
    pub(crate) fn new<T: Element, F: FactorOf<T>>(
        axes: &Axes,
        channels: usize,
        outputs: usize,
        copied: usize,
    ) -> Self {
        let ([d, h, w], extents) = (&**axes, axes.output_extents());
        let factors = channels.div_ceil(F::CHANNELS);
        let line = w.padded_extent() * factors;
        let boxes = boxes(extents, |part| {
            let [depth, height] = [part[0].len(), part[1].len()];
            let small =
                held(d, depth) * held(h, height) * line <= copied && volume(part) <= outputs;
            part[2].len() == extents[2] && (small || depth * height == 1)
        });
        let longest = |axis: usize| boxes.iter().map(|part| part[axis].len()).max().unwrap_or(1);
        let extents = [held(d, longest(0)), held(h, longest(1)), w.padded_extent()];
        PaddedLines { axes: axes.clone(), channels, factors, boxes, extents }
    }

    pub(crate) fn boxes(&self) -> &[Box3] {
        &self.boxes
    }

    /// PaddedLines of outputs in a plane of the largest box.
    pub(crate) fn longest(&self) -> usize {
        self.boxes.iter().map(|part| part[1].len()).max().unwrap_or(0)
    }

    /// Outputs of the largest box.
    pub(crate) fn largest(&self) -> usize {
        self.boxes.iter().map(volume).max().unwrap_or(0)
    }

    /// Factors in a copy.
    pub(crate) fn copy_len(&self) -> usize {
        self.extents.iter().product::<usize>() * self.factors
    }

    /// Factors from one pixel that a line of outputs reads to the next.
    pub(crate) fn step(&self) -> usize {
        self.axes[2].stride() * self.factors
    }

    /// Pixels of a line.
    pub(crate) fn width(&self) -> usize {
        self.extents[2]
    }

    /// Where the first output of a line reads its first tap, counted from the box's first line.
    pub(crate) fn line(&self, d: usize, h: usize) -> usize {
        let at = [d * self.axes[0].stride(), h * self.axes[1].stride(), 0];
        ravel(at, self.extents) * self.factors
    }

    /// How far each tap is from the first, in row-major order.
    pub(crate) fn taps(&self) -> impl Iterator<Item = usize> + '_ {
        self.axes.each_tap().map(|tap| {
            let at = [0, 1, 2].map(|axis| tap[axis] * self.axes[axis].dilation());
            ravel(at, self.extents) * self.factors
        })
    }

    /// Copies what a box reads of an image, whose pixels are `step` apart; `source` starts at the group's channels of
    /// the first.
    pub(crate) fn copy<T: Element, F: FactorOf<T>>(
        &self,
        source: &[T],
        step: usize,
        outputs: &Box3,
        copy: &mut [F],
    ) {
        let (axes, [_, height, width]) = (&self.axes, self.extents);
        let (channels, factors) = (self.channels, self.factors);
        let first = [0, 1].map(|axis| outputs[axis].start * axes[axis].stride());
        let [depth, lines] = [0, 1].map(|axis| held(&axes[axis], outputs[axis].len()));
        let inside = axes[2].inside();
        for (d, h) in (0..depth).flat_map(|d| (0..lines).map(move |h| (d, h))) {
            let line = &mut copy[(d * height + h) * width * factors..][..width * factors];
            let at = [axes[0].padded_source(first[0] + d), axes[1].padded_source(first[1] + h)];
            let [Some(d), Some(h)] = at else {
                line.fill(F::zeroed());
                continue;
            };
            let from = &source[ravel([d, h, 0], axes.input_extents()) * step..];
            let pixel = |q: usize, line: &mut [F]| {
                let to = &mut line[q * factors..][..factors];
                match axes[2].padded_source(q) {
                    Some(w) => F::read(&from[w * step..][..channels], to),
                    None => to.fill(F::zeroed()),
                }
            };
            if step == channels && channels == factors * F::CHANNELS && !inside.is_empty() {
                (0..inside.start).chain(inside.end..width).for_each(|q| pixel(q, line));
                let w = axes[2].padded_source(inside.start).unwrap_or(0);
                let run = &from[w * channels..][..inside.len() * channels];
                F::read(run, &mut line[inside.start * factors..inside.end * factors]);
            } else {
                (0..width).for_each(|q| pixel(q, line));
            }
        }
    }
}
