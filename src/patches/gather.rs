//! Tiles of the patch matrix, gathered: some entries of one group's patches at the outputs of a box.

use std::ops::Range;

use super::Images;
use super::entries::Entries;
use super::slab::Slab;
use crate::element::Element;
use crate::geometry::{Box3, Layout, unravel, volume};
use crate::product::cpu::Matrix;

/// Gathers the patches at the outputs of a box.
#[derive(Clone, Debug)]
pub(crate) struct Gather {
    of: Images,
    outputs: Box3,
    /// Through which channels-first images are read.
    slab: Option<Slab>,
}

impl Gather {
    pub fn new(of: &Images, outputs: Box3) -> Self {
        let slab = match of.layout {
            Layout::ChannelsFirst => Some(Slab::new(&of.axes, outputs.clone())),
            Layout::ChannelsLast => None,
        };
        Gather { of: of.clone(), outputs, slab }
    }

    /// Elements of the slab that it takes.
    pub fn slab_len(&self) -> usize {
        self.slab.as_ref().map_or(0, Slab::len)
    }

    /// Some entries of a group's patches, as a matrix of entries × columns, a column for each output of
    /// each of `images`. `slab` is memory to use, `patches` that of the matrix.
    pub fn gather<'a, T: Element>(
        &self,
        x: &[T],
        images: &Range<usize>,
        group: usize,
        entries: &Entries,
        slab: &mut [T::Acc],
        patches: &'a mut [T::Acc],
    ) -> Matrix<'a, T::Acc> {
        let Images { layout, channels, .. } = self.of;
        let positions = volume(&self.outputs);
        let columns = images.len() * positions;
        let patches = &mut patches[..entries.len() * columns];
        let per_group = self.of.channels_per_group();
        let image_len = self.of.len();
        for (index, n) in images.clone().enumerate() {
            let image = &x[n * image_len..][..image_len];
            let column = index * positions;
            match &self.slab {
                Some(map) => {
                    let plane = image_len / channels;
                    let planes = &image[group * per_group * plane..][..per_group * plane];
                    let patches = &mut patches[column..];
                    self.channels_first(map, planes, entries, slab, patches, columns);
                }
                None => {
                    self.channels_last(
                        image,
                        group,
                        entries,
                        &mut patches[column * entries.len()..],
                    );
                }
            }
        }
        let step = if layout == Layout::ChannelsFirst { columns } else { entries.len() };
        Matrix::of_runs(layout, patches, step)
    }

    /// Fills rows of `columns` elements, from their first: each tap's is a block of the slab.
    fn channels_first<T: Element>(
        &self,
        map: &Slab,
        planes: &[T],
        entries: &Entries,
        slab: &mut [T::Acc],
        patches: &mut [T::Acc],
        columns: usize,
    ) {
        let positions = self.of.axes.inputs();
        let slab = &mut slab[..map.len()];
        let mut row = 0;
        for channel in entries.channels.clone() {
            map.fill(&[&planes[channel * positions..][..positions]], 1, slab);
            for tap in entries.taps.clone() {
                let tap = unravel(tap, self.of.axes.tap_extents());
                let len = map.block_len();
                for d in 0..map.depth() {
                    let source = &slab[map.block(tap, d)..][..len];
                    patches[row * columns + d * len..][..len].copy_from_slice(source);
                }
                row += 1;
            }
        }
    }

    /// Fills the contiguous patches of the box's positions.
    fn channels_last<T: Element>(
        &self,
        image: &[T],
        group: usize,
        entries: &Entries,
        patches: &mut [T::Acc],
    ) {
        let Images { axes, channels, .. } = &self.of;
        let [map_d, map_h, map_w] = &**axes;
        let count = entries.channels.len();
        let first = group * self.of.channels_per_group() + entries.channels.start;
        let mut patches = patches.chunks_exact_mut(entries.len());
        for o_d in self.outputs[0].clone() {
            for o_h in self.outputs[1].clone() {
                for o_w in self.outputs[2].clone() {
                    let Some(patch) = patches.next() else { return };
                    let mut taps = entries.taps.clone();
                    let mut target = patch;
                    while !taps.is_empty() {
                        let [d, h, w] = unravel(taps.start, axes.tap_extents());
                        let in_line = (map_w.taps() - w).min(taps.len());
                        taps.start += in_line;
                        let (line, rest) = target.split_at_mut(in_line * count);
                        target = rest;
                        let row = map_d.source(o_d, d).zip(map_h.source(o_h, h));
                        let Some((d, h)) = row else {
                            line.fill(T::Acc::default());
                            continue;
                        };
                        let start = (d * map_h.inputs() + h) * map_w.inputs() * channels;
                        let row = &image[start..][..map_w.inputs() * channels];
                        self.line(row, o_w, w, first, count, line);
                    }
                }
            }
        }
    }

    /// Some channels of consecutive taps of the last axis, from tap `w` on, at output `o`.
    fn line<T: Element>(
        &self,
        row: &[T],
        o: usize,
        w: usize,
        first: usize,
        count: usize,
        line: &mut [T::Acc],
    ) {
        let (map, channels) = (&self.of.axes[2], self.of.channels);
        let taps = line.len() / count;
        let (from, to) = (map.padded_position(o, w), map.padded_position(o, w + taps - 1));
        let inside = map.inside().start <= from && to < map.inside().end;
        // Taps side by side in memory are one copy.
        if let (true, true, Some(i)) =
            (inside && map.dilation() == 1, count == channels, map.source(o, w))
        {
            return T::widen(&row[i * channels..][..line.len()], line);
        }
        for (tap, target) in line.chunks_exact_mut(count).enumerate() {
            match map.source(o, w + tap) {
                Some(i) => T::widen(&row[i * channels + first..][..count], target),
                None => target.fill(T::Acc::default()),
            }
        }
    }
}
