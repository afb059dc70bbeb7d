//! The index maps of a layer's three axes, and what follows from all three together.

use std::ops::{Deref, Range};
use std::sync::Arc;

use super::axis::{AdjointPhase, AxisMap, AxisRows};
use super::padding::PaddingMode;
use crate::error::Result;

/// A box of positions: their ranges on the three axes.
pub(crate) type Box3 = [Range<usize>; 3];

/// The index maps of all axes: always three, those in front of extent 1 where the layer has fewer. A
/// handle: clones share the tables.
#[derive(Clone, Debug)]
pub(crate) struct Axes(Arc<[AxisMap; 3]>);

impl Axes {
    pub(crate) fn new(maps: [AxisMap; 3]) -> Self {
        Axes(Arc::new(maps))
    }

    /// Extents of the input.
    pub(crate) fn input_extents(&self) -> [usize; 3] {
        self.each_ref().map(AxisMap::inputs)
    }

    /// Extents of the output.
    pub(crate) fn output_extents(&self) -> [usize; 3] {
        self.each_ref().map(AxisMap::outputs)
    }

    /// Extents of the kernel.
    pub(crate) fn tap_extents(&self) -> [usize; 3] {
        self.each_ref().map(AxisMap::taps)
    }

    /// Number of input positions.
    pub(crate) fn inputs(&self) -> usize {
        self.input_extents().iter().product()
    }

    /// Number of output positions.
    pub(crate) fn outputs(&self) -> usize {
        self.output_extents().iter().product()
    }

    /// Number of taps K.
    pub(crate) fn taps(&self) -> usize {
        self.tap_extents().iter().product()
    }

    /// All taps, row-major.
    pub(crate) fn each_tap(&self) -> impl Iterator<Item = [usize; 3]> + use<> {
        let extents = self.tap_extents();
        (0..extents.iter().product()).map(move |tap| unravel(tap, extents))
    }

    /// Whether no axis has a stride.
    pub(crate) fn is_dense(&self) -> bool {
        self.iter().all(|map| map.stride() == 1)
    }

    /// Whether every tap that leaves the input is dropped, so that no input is read twice through one
    /// tap by one output.
    pub(crate) fn is_zero_padded(&self) -> bool {
        self.iter().all(|map| map.mode() == PaddingMode::Zeros)
    }

    /// Whether output o reads input o and nothing else: there is one tap, and the patches are the input.
    pub(crate) fn is_identity(&self) -> bool {
        self.iter().all(|map| {
            map.taps() == 1
                && map.stride() == 1
                && map.inputs() == map.outputs()
                && map.inside() == (0..map.outputs())
        })
    }

    /// For each axis, the outputs that read each input.
    pub(crate) fn adjoint_rows(&self) -> Result<[AxisRows; 3]> {
        let [d, h, w] = &**self;
        Ok([d.adjoint_rows()?, h.adjoint_rows()?, w.adjoint_rows()?])
    }

    /// The adjoint of a zero-padded layer, phase by phase of its strides.
    pub(crate) fn adjoint_phases(&self) -> Result<AdjointPhases> {
        let phases = |map: &AxisMap| -> Result<Vec<AdjointPhase>> {
            (0..map.stride()).filter_map(|phase| map.adjoint_phase(phase)).collect()
        };
        let [d, h, w] = &**self;
        let by_axis = [phases(d)?, phases(h)?, phases(w)?];
        Ok(AdjointPhases { by_axis, inputs: self.input_extents() })
    }
}

impl Deref for Axes {
    type Target = [AxisMap; 3];

    fn deref(&self) -> &[AxisMap; 3] {
        &self.0
    }
}

/// The phases of a strided adjoint: the inputs of each combination of phases are reached by taps of their
/// own, and over them the adjoint is a correlation with stride 1.
#[derive(Clone, Debug)]
pub(crate) struct AdjointPhases {
    by_axis: [Vec<AdjointPhase>; 3],
    inputs: [usize; 3],
}

impl AdjointPhases {
    /// Whether some output reads every input; those that none reads belong to no phase.
    pub(crate) fn cover_all(&self) -> bool {
        let reached =
            |phases: &Vec<AdjointPhase>| phases.iter().map(|p| p.map.outputs()).sum::<usize>();
        self.by_axis.each_ref().map(reached) == self.inputs
    }

    /// Every combination of one phase an axis.
    pub(crate) fn each(&self) -> impl Iterator<Item = [&AdjointPhase; 3]> {
        let [d, h, w] = &self.by_axis;
        d.iter().flat_map(move |d| h.iter().flat_map(move |h| w.iter().map(move |w| [d, h, w])))
    }
}

/// The coordinates of a row-major index.
pub(crate) fn unravel(index: usize, extents: [usize; 3]) -> [usize; 3] {
    let [_, h, w] = extents;
    [index / (h * w), index / w % h, index % w]
}

/// The row-major index of coordinates.
pub(crate) fn ravel(at: [usize; 3], extents: [usize; 3]) -> usize {
    (at[0] * extents[1] + at[1]) * extents[2] + at[2]
}

/// Number of positions in a box.
pub(crate) fn volume(part: &Box3) -> usize {
    part.iter().map(Range::len).product()
}
