//! Transforms along all axes of a tile: of [`LANES`] tiles, channels or rows at a time, one value of each in every
//! place of a cube.

use super::transform::{Direction, LANES, Lines, Tile, transform};
use crate::element::Accumulator;
use crate::workers::{Room, Scratch};

/// The tiles of all three axes, at least one of which has products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tiles(pub [Tile; 3]);

impl Tiles {
    pub fn outputs(&self) -> [usize; 3] {
        self.0.map(Tile::outputs)
    }

    /// Inputs that the outputs read.
    pub fn inputs(&self) -> [usize; 3] {
        self.0.map(Tile::products)
    }

    /// Products of a tile.
    pub fn products(&self) -> usize {
        self.inputs().iter().product()
    }

    /// The axes that are transformed.
    fn axes(&self) -> impl DoubleEndedIterator<Item = usize> + use<> {
        let tiles = self.0;
        (0..3).filter(move |&axis| tiles[axis] != Tile::Single)
    }

    /// Values of each axis before or behind a transform.
    fn extents(&self, direction: Direction) -> [usize; 3] {
        self.0.map(|tile| match direction {
            Direction::Inputs => tile.products(),
            Direction::Taps | Direction::TapGradients => tile.taps(),
            Direction::Outputs | Direction::Gradients => tile.outputs(),
        })
    }
}

/// Lanes from one value that is read to the next: as many again behind those that are used, so that some may be
/// written that have no meaning.
pub(super) const PITCH: usize = 2 * LANES;

/// Memory for a cube that is transformed axis by axis.
pub(super) struct Cube<'m, A> {
    /// Value (d, h, w) of lane l is at `((d·H + h)·W + w)·PITCH + l` before a transform, and LANES apart behind it.
    pub values: &'m mut [A],
    spare: &'m mut [A],
}

impl<'m, A: Accumulator> Cube<'m, A> {
    pub fn room(room: Room, tiles: &Tiles) -> Room {
        let len = tiles.products() * PITCH;
        room.and::<A>(len).and::<A>(len)
    }

    pub fn take(scratch: &mut Scratch<'m>, tiles: &Tiles) -> Self {
        let len = tiles.products() * PITCH;
        Cube { values: scratch.take::<A>(len), spare: scratch.take::<A>(len) }
    }

    /// Makes factors of the values: number p of lane l goes to `to[p·plane + l]`.
    pub fn factors_of_values(
        &mut self,
        tiles: &Tiles,
        direction: Direction,
        to: &mut [A],
        plane: usize,
    ) {
        assert!((tiles.products() - 1) * plane + LANES <= to.len());
        let mut extents = tiles.extents(direction);
        let mut axes = tiles.axes().rev().peekable();
        let mut pitch = PITCH;
        while let Some(axis) = axes.next() {
            let outer: usize = extents[..axis].iter().product();
            let behind: usize = extents[axis + 1..].iter().product();
            let (from_extent, to_extent) = (extents[axis], tiles.0[axis].products());
            extents[axis] = to_extent;
            let last = axes.peek().is_none();
            let (target, step) =
                if last { (to.as_mut_ptr(), plane) } else { (self.spare.as_mut_ptr(), LANES) };
            let lines = Lines {
                from: self.values.as_ptr(),
                from_outer: from_extent * behind * pitch,
                from_step: behind * pitch,
                from_inner: pitch,
                to: target,
                to_outer: to_extent * behind * step,
                to_step: behind * step,
                to_inner: step,
                outer,
                inner: behind,
            };
            // SAFETY: a cube has room for the values of its largest extents, and the target for all planes by the
            // assertion.
            unsafe { transform(tiles.0[axis], direction, lines) };
            pitch = LANES;
            if !last {
                std::mem::swap(&mut self.values, &mut self.spare);
            }
        }
    }

    /// Makes values of products: that numbered p of lane l is `from[p·plane + l]`.
    pub fn values_of_products(
        &mut self,
        tiles: &Tiles,
        direction: Direction,
        from: &[A],
        plane: usize,
    ) {
        assert!((tiles.products() - 1) * plane + LANES <= from.len());
        let mut extents = tiles.inputs();
        let results = tiles.extents(direction);
        for (number, axis) in tiles.axes().rev().enumerate() {
            let outer: usize = extents[..axis].iter().product();
            let behind: usize = extents[axis + 1..].iter().product();
            let (from_extent, to_extent) = (extents[axis], results[axis]);
            extents[axis] = to_extent;
            let (source, step) =
                if number == 0 { (from.as_ptr(), plane) } else { (self.values.as_ptr(), LANES) };
            let lines = Lines {
                from: source,
                from_outer: from_extent * behind * step,
                from_step: behind * step,
                from_inner: step,
                to: self.spare.as_mut_ptr(),
                to_outer: to_extent * behind * LANES,
                to_step: behind * LANES,
                to_inner: LANES,
                outer,
                inner: behind,
            };
            // SAFETY: as above.
            unsafe { transform(tiles.0[axis], direction, lines) };
            std::mem::swap(&mut self.values, &mut self.spare);
        }
    }
}
