//! What a box of outputs reads of a channel, copied so that every tap is one contiguous run of it.
//!
//! Without a stride on the last axis the copy is the padded plane itself, at which every tap is a shift; sums
//! then have a few elements behind each line that nobody wants. Where those would be many, and with a stride,
//! it is a slab, which is unfolded along the last axis.

use crate::element::Element;
use crate::error::Result;
use crate::geometry::{Axes, Box3};
use crate::patches::slab::Slab;

/// Unwanted elements are accepted up to one for so many others.
const LEAST_WANTED: usize = 6;

/// The copy for a box of outputs.
#[derive(Debug)]
pub(super) struct Window {
    slab: Slab,
    /// Elements from one tap of the last axis to the next, where the copy is not unfolded.
    shift: Option<usize>,
    /// From one line of sums to the next.
    line: usize,
}

/// Axes whose padded planes are copied as they are, if that pays.
pub(super) fn shifted_axes(axes: &Axes) -> Result<Option<Axes>> {
    let last = &axes[2];
    let unwanted = last.padded_extent() - last.outputs();
    if last.stride() != 1 || unwanted * LEAST_WANTED > last.outputs() || last.taps() == 1 {
        return Ok(None);
    }
    Ok(Some(Axes::new([axes[0].clone(), axes[1].clone(), last.padded_axis()?])))
}

impl Window {
    /// For these outputs; `shifted` are the [`shifted_axes`] of `axes`, which serve boxes of whole lines.
    pub fn new(axes: &Axes, shifted: Option<&Axes>, outputs: &Box3) -> Self {
        match shifted.filter(|_| outputs[2].len() == axes[2].outputs()) {
            Some(padded) => {
                let line = padded[2].outputs();
                let outputs = [outputs[0].clone(), outputs[1].clone(), 0..line];
                let shift = Some(axes[2].dilation());
                Window { slab: Slab::new(padded, outputs), shift, line }
            }
            None => {
                let line = outputs[2].len();
                Window { slab: Slab::new(axes, outputs.clone()), shift: None, line }
            }
        }
    }

    /// Elements in the copy for these outputs.
    pub fn len_for(axes: &Axes, shifted: Option<&Axes>, outputs: &Box3) -> usize {
        match shifted.filter(|_| outputs[2].len() == axes[2].outputs()) {
            Some(padded) => {
                let line = 0..padded[2].outputs();
                Slab::len_for(padded, &[outputs[0].clone(), outputs[1].clone(), line])
            }
            None => Slab::len_for(axes, outputs),
        }
    }

    /// Elements in the copy.
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// From one line of sums to the next.
    pub fn line(&self) -> usize {
        self.line
    }

    /// Sums of one outer output, the unwanted ones included.
    pub fn block_len(&self) -> usize {
        self.slab.block_len()
    }

    /// Outputs on the first axis.
    pub fn depth(&self) -> usize {
        self.slab.depth()
    }

    /// How far what one outer output reads is behind what the one before reads.
    pub fn depth_step(&self) -> usize {
        self.slab.depth_step()
    }

    /// Where what this tap reads starts.
    pub fn place(&self, [d, h, w]: [usize; 3]) -> usize {
        match self.shift {
            Some(shift) => self.slab.block([d, h, 0], 0) + w * shift,
            None => self.slab.block([d, h, w], 0),
        }
    }

    /// Fills the copy from a plane whose elements are `step` apart.
    pub fn fill<T: Element>(&self, plane: &[T], step: usize, copy: &mut [T::Acc]) {
        self.slab.fill(&[plane], step, copy);
    }
}
