//! Images folded channels last: every position adds up the patches that reach it, vectors of channels at a time, and is
//! written once.

use crate::element::Element;
use crate::error::Result;
use crate::geometry::{AxisRows, unravel};
use crate::product::cpu::{Vector, VectorLoop};
use crate::unfold::Call;

use super::{Overlap, divide, load, put};

/// Where the patches of each input position are, as the sum of one number from each axis.
#[derive(Debug)]
pub(super) struct PixelFold {
    axes: [AxisSources; 3],
    extents: [usize; 3],
    /// Elements of an image's patches.
    image: usize,
    groups: usize,
    /// Channels of a group.
    channels: usize,
    /// Elements of a group's block of a patch.
    block: usize,
}

/// Of one axis, for each input.
#[derive(Debug)]
struct AxisSources {
    /// Where the sources of each input start.
    start: Vec<usize>,
    /// (output, tap), by the distances from one to the next in the patches.
    sources: Vec<usize>,
}

impl AxisSources {
    fn new(readers: &AxisRows, by_output: usize, by_tap: usize) -> Self {
        let (mut start, mut sources) = (vec![0], Vec::new());
        for row in 0..readers.rows() {
            for (output, taps) in readers.row(row) {
                sources.extend(taps.iter().map(|tap| output * by_output + tap * by_tap));
            }
            start.push(sources.len());
        }
        AxisSources { start, sources }
    }

    fn of(&self, input: usize) -> &[usize] {
        &self.sources[self.start[input]..self.start[input + 1]]
    }
}

impl PixelFold {
    pub fn new(call: &Call) -> Result<Self> {
        let Call { axes, channels, groups, .. } = call;
        let per_group = channels / groups;
        let readers = axes.adjoint_rows()?;
        let (outputs, taps) = (axes.output_extents(), axes.tap_extents());
        let sources = |axis: usize| {
            let behind = |extents: [usize; 3]| extents[axis + 1..].iter().product::<usize>();
            let by_output = behind(outputs) * axes.taps() * channels;
            AxisSources::new(&readers[axis], by_output, behind(taps) * per_group)
        };
        Ok(PixelFold {
            axes: [sources(0), sources(1), sources(2)],
            extents: axes.input_extents(),
            image: axes.outputs() * axes.taps() * channels,
            groups: *groups,
            channels: per_group,
            block: axes.taps() * per_group,
        })
    }
}

/// Writes the sums of one line of the images.
pub(super) struct FoldLines<'a, T: Element> {
    pub fold: &'a PixelFold,
    /// Its number among those of all images.
    pub line: usize,
    /// Of all images.
    pub patches: &'a [T],
    /// The line's sums, and whatever else may be overwritten.
    pub sums: &'a mut [T::Acc],
    pub overlap: Option<&'a Overlap>,
}

impl<T: Element> VectorLoop<T::Acc> for FoldLines<'_, T> {
    #[inline(always)]
    unsafe fn run<X: Vector<T::Acc>>(self) {
        let FoldLines { fold, line, patches, sums, overlap } = self;
        let [depth, height, width] = fold.extents;
        let pixel = fold.groups * fold.channels;
        let [image, d, h] = unravel(line, [usize::MAX, depth, height]);
        let patches = &patches[image * fold.image..];
        for w in 0..width {
            let sums = &mut sums[w * pixel..];
            for group in 0..fold.groups {
                let patches = &patches[group * fold.block..];
                let sums = &mut sums[group * fold.channels..];
                // SAFETY: the caller has a machine with these instructions.
                unsafe { fold.add_up::<X, T>([d, h, w], patches, sums) };
            }
            if let Some([by_d, by_h, by_w]) = overlap {
                let count = by_d[d] * by_h[h] * by_w[w];
                sums[..pixel].iter_mut().for_each(|sum| divide(sum, count));
            }
        }
    }
}

impl PixelFold {
    /// The sums of a position's channels of a group; what follows them, up to a vector, may be overwritten.
    ///
    /// # Safety
    /// The machine has the instructions of `X`.
    #[inline(always)]
    unsafe fn add_up<X: Vector<T::Acc>, T: Element>(
        &self,
        position: [usize; 3],
        patches: &[T],
        sums: &mut [T::Acc],
    ) {
        let [by_d, by_h, by_w] = [0, 1, 2].map(|axis| self.axes[axis].of(position[axis]));
        let mut at = 0;
        // SAFETY: the caller's promise.
        unsafe {
            while at < self.channels {
                let mut sum = X::zero();
                for d in by_d {
                    for h in by_h {
                        for w in by_w {
                            sum = sum.plus(load(patches, (d + h + w + at) as isize));
                        }
                    }
                }
                put(sum, &mut sums[at..], self.channels - at);
                at += X::LANES;
            }
        }
    }
}
