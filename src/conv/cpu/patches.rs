//! Tiles of the patch matrix, gathered.

use std::ops::Range;

use super::gemm::Matrix;
use super::runs::{Scratch, oriented, pieces, room, shift};
use crate::conv::problem::Problem;
use crate::element::Element;
use crate::error::Result;
use crate::geometry::{Box3, Layout, unravel, volume};
use crate::patches::slab::Slab;

/// Consecutive entries of a group's patch: all taps of some channels or some taps of one channel,
/// channels first; all channels of some taps or some channels of one tap, channels last.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// Channels, counted within the group.
    pub channels: Range<usize>,
    pub taps: Range<usize>,
    /// Where the first entry is in the patch.
    start: usize,
}

impl Block {
    fn new(p: &Problem, channels: Range<usize>, taps: Range<usize>) -> Self {
        let start = match p.layout {
            Layout::ChannelsFirst => channels.start * p.taps() + taps.start,
            Layout::ChannelsLast => taps.start * p.channels_per_group() + channels.start,
        };
        Block { channels, taps, start }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.channels.len() * self.taps.len()
    }

    /// The entries, counted within the group's patch.
    pub fn entries(&self) -> Range<usize> {
        self.start..self.start + self.len()
    }
}

/// Cuts the patch entries of these channels of a group into blocks of at most `limit` entries.
pub(super) fn blocks(p: &Problem, channels: Range<usize>, limit: usize) -> Vec<Block> {
    let (taps, per_group) = (p.taps(), p.channels_per_group());
    // As even as can be, where each of the range has `unit` entries.
    let cut = |range: Range<usize>, unit: usize| {
        let parts = range.len().div_ceil((limit / unit).max(1));
        let size = range.len().div_ceil(parts.max(1));
        pieces(range.len(), size.max(1)).map(move |part| shift(part, range.start))
    };
    let whole = channels.len() == per_group;
    match p.layout {
        Layout::ChannelsFirst if taps <= limit => {
            cut(channels, taps).map(|channels| Block::new(p, channels, 0..taps)).collect()
        }
        Layout::ChannelsFirst => channels
            .flat_map(|c| cut(0..taps, 1).map(move |taps| Block::new(p, c..c + 1, taps)))
            .collect(),
        Layout::ChannelsLast if whole && per_group <= limit => {
            cut(0..taps, per_group).map(|taps| Block::new(p, channels.clone(), taps)).collect()
        }
        Layout::ChannelsLast => (0..taps)
            .flat_map(|tap| {
                cut(channels.clone(), 1).map(move |part| Block::new(p, part, tap..tap + 1))
            })
            .collect(),
    }
}

/// Gathers the patches of one group at the same output positions of some images.
pub(super) struct Gather<'p> {
    p: &'p Problem,
    images: Range<usize>,
    part: &'p Box3,
    group: usize,
    slab: Slab,
}

impl<'p> Gather<'p> {
    pub fn new(p: &'p Problem, images: Range<usize>, part: &'p Box3, group: usize) -> Self {
        Gather { p, images, part, group, slab: Slab::new(&p.axes, part.clone()) }
    }

    /// A block of patch entries, as a matrix of entries × columns, a column for each output position
    /// of each image.
    pub fn gather<'a, T: Element>(
        &self,
        x: &[T],
        block: &Block,
        slab: &mut Scratch<T::Acc>,
        patches: &'a mut Scratch<T::Acc>,
    ) -> Result<Matrix<'a, T::Acc>> {
        let p = self.p;
        let columns = self.images.len() * volume(self.part);
        let patches = room(patches, block.len() * columns)?;
        let len = p.channels * p.input_positions();
        for (index, n) in self.images.clone().enumerate() {
            let image = &x[n * len..][..len];
            let column = index * volume(self.part);
            match p.layout {
                Layout::ChannelsFirst => {
                    let slab = room(slab, self.slab.len())?;
                    self.channels_first(image, block, slab, &mut patches[column..], columns);
                }
                Layout::ChannelsLast => {
                    self.channels_last(image, block, &mut patches[column * block.len()..]);
                }
            }
        }
        let step = if p.layout == Layout::ChannelsFirst { columns } else { block.len() };
        Ok(oriented(p.layout, patches, step))
    }

    /// Fills rows of `columns` elements, from their first: each tap's is a block of the slab.
    fn channels_first<T: Element>(
        &self,
        image: &[T],
        block: &Block,
        slab: &mut [T::Acc],
        patches: &mut [T::Acc],
        columns: usize,
    ) {
        let positions = self.p.input_positions();
        let first = self.group * self.p.channels_per_group();
        let mut row = 0;
        for channel in block.channels.clone() {
            self.slab.fill(
                &image[(first + channel) * positions..][..positions],
                1,
                slab,
                T::to_acc,
            );
            for tap in block.taps.clone() {
                let tap = unravel(tap, self.p.tap_extents());
                let len = self.slab.block_len();
                for d in 0..self.slab.depth() {
                    let source = &slab[self.slab.block(tap, d)..][..len];
                    patches[row * columns + d * len..][..len].copy_from_slice(source);
                }
                row += 1;
            }
        }
    }

    /// Fills the contiguous patches of the box's positions.
    fn channels_last<T: Element>(&self, image: &[T], block: &Block, patches: &mut [T::Acc]) {
        let p = self.p;
        let [map_d, map_h, map_w] = &*p.axes;
        let count = block.channels.len();
        let first = self.group * p.channels_per_group() + block.channels.start;
        let mut patches = patches.chunks_exact_mut(block.len());
        for o_d in self.part[0].clone() {
            for o_h in self.part[1].clone() {
                for o_w in self.part[2].clone() {
                    let Some(patch) = patches.next() else { return };
                    let mut taps = block.taps.clone();
                    let mut target = patch;
                    while !taps.is_empty() {
                        let [d, h, w] = unravel(taps.start, p.tap_extents());
                        let in_line = (map_w.taps() - w).min(taps.len());
                        taps.start += in_line;
                        let (line, rest) = target.split_at_mut(in_line * count);
                        target = rest;
                        let row = map_d.source(o_d, d).zip(map_h.source(o_h, h));
                        let Some((d, h)) = row else {
                            line.fill(T::Acc::default());
                            continue;
                        };
                        let start = (d * map_h.inputs() + h) * map_w.inputs() * p.channels;
                        let row = &image[start..][..map_w.inputs() * p.channels];
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
        let (map, channels) = (&self.p.axes[2], self.p.channels);
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
