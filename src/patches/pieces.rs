//! Ranges cut into pieces, and tasks numbered over several of them.

use std::ops::Range;

/// The digits of `index` in a mixed radix, the last one fastest: which task it is.
pub(crate) fn digits<const N: usize>(mut index: usize, radices: [usize; N]) -> [usize; N] {
    let mut digits = [0; N];
    for (digit, radix) in digits.iter_mut().zip(radices).rev() {
        *digit = index % radix;
        index /= radix;
    }
    digits
}

/// A range from 0 that is cut into pieces of one size, but for the last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pieces {
    extent: usize,
    size: usize,
}

impl Pieces {
    /// The pieces of at most `size`, which is not 0, of `0..extent`.
    pub(crate) fn new(extent: usize, size: usize) -> Self {
        Pieces { extent, size }
    }

    /// What is cut.
    pub(crate) fn extent(&self) -> usize {
        self.extent
    }

    /// Number of pieces.
    pub(crate) fn count(&self) -> usize {
        self.extent.div_ceil(self.size)
    }

    /// Length of the longest.
    pub(crate) fn longest(&self) -> usize {
        self.size.min(self.extent)
    }

    /// The piece with this number.
    pub(crate) fn get(&self, index: usize) -> Range<usize> {
        index * self.size..((index + 1) * self.size).min(self.extent)
    }

    /// All of them, in order.
    pub(crate) fn each(self) -> impl Iterator<Item = Range<usize>> {
        (0..self.count()).map(move |index| self.get(index))
    }
}

/// A range counted from `origin`, counted from 0.
pub(crate) fn shift(range: Range<usize>, origin: usize) -> Range<usize> {
    range.start + origin..range.end + origin
}
