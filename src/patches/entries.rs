//! Consecutive entries of a patch: rows of the patch matrix that are made together.

use std::ops::Range;

use super::Images;
use super::pieces::{Pieces, shift};
use crate::geometry::Layout;

/// Consecutive entries of a group's patch: all taps of some channels or some taps of one channel,
/// channels first; all channels of some taps or some channels of one tap, channels last.
#[derive(Clone, Debug)]
pub(crate) struct Entries {
    /// Channels, counted within the group.
    pub channels: Range<usize>,
    pub taps: Range<usize>,
    /// Where the first entry is in the patch.
    start: usize,
}

impl Entries {
    fn new(images: &Images, channels: Range<usize>, taps: Range<usize>) -> Self {
        let start = match images.layout {
            Layout::ChannelsFirst => channels.start * images.axes.taps() + taps.start,
            Layout::ChannelsLast => taps.start * images.channels_per_group() + channels.start,
        };
        Entries { channels, taps, start }
    }

    /// Cuts the patch entries of these channels of a group into pieces of at most `limit` entries.
    pub fn cut(images: &Images, channels: Range<usize>, limit: usize) -> Vec<Self> {
        let (taps, per_group) = (images.axes.taps(), images.channels_per_group());
        // As even as can be, where each of the range has `unit` entries.
        let cut = |range: Range<usize>, unit: usize| {
            let pieces = range.len().div_ceil((limit / unit).max(1));
            let size = range.len().div_ceil(pieces.max(1));
            let pieces = Pieces::new(range.len(), size.max(1));
            pieces.each().map(move |piece| shift(piece, range.start))
        };
        let whole = channels.len() == per_group;
        match images.layout {
            Layout::ChannelsFirst if taps <= limit => {
                cut(channels, taps).map(|piece| Entries::new(images, piece, 0..taps)).collect()
            }
            Layout::ChannelsFirst => channels
                .flat_map(|c| cut(0..taps, 1).map(move |taps| Entries::new(images, c..c + 1, taps)))
                .collect(),
            Layout::ChannelsLast if whole && per_group <= limit => cut(0..taps, per_group)
                .map(|taps| Entries::new(images, channels.clone(), taps))
                .collect(),
            Layout::ChannelsLast => (0..taps)
                .flat_map(|tap| {
                    let pieces = cut(channels.clone(), 1);
                    pieces.map(move |piece| Entries::new(images, piece, tap..tap + 1))
                })
                .collect(),
        }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.channels.len() * self.taps.len()
    }

    /// The entries, counted within the group's patch.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.len()
    }
}

/// Entries in the longest of these pieces.
pub(crate) fn longest(pieces: &[Entries]) -> usize {
    pieces.iter().map(Entries::len).max().unwrap_or(0)
}
