//! Tiles of the lower triangle by the product engine: of patches, or of vectors that `reduce` makes of them.

use super::Job;
use crate::covariance::problem::Part;
use crate::device::cuda::structs::{
    PartRows, PatchProductsArgs, UpdateTilesArgs, VectorProductsArgs,
};
use crate::device::cuda::{Divisor, Draft, Pointer, Region, Spec, THREADS, axis_bound, blocks};
use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::geometry::{AxisMap, Layout};
use crate::patches::cuda as patches;
use crate::product::cuda::{Engine, SymmetricProduct, Tiles};

/// Rows and columns that a block of `update_tiles` takes.
const SQUARE: usize = 32;

impl<T: Element, F: Accumulator> Job<'_, T, F> {
    /// The products of a part's patches.
    pub(super) fn patch_products(
        &self,
        draft: &mut Draft,
        part: &Part,
        rows: PartRows,
    ) -> Result<()> {
        let (p, x, axes) = (self.p, self.operands.x, &part.axes);
        let device = draft.device().clone();
        let engine = Engine::with_sums(&device, T::DTYPE, F::DTYPE);
        let whole = |distances: &[usize]| engine.vector(size_of::<T>(), x.alignment(), distances);
        let vector = match p.layout {
            Layout::ChannelsLast => whole(&[p.channels_per_group(), p.channels]),
            // Taps shift what they read by single positions.
            Layout::ChannelsFirst if axes.iter().all(reads_in_place) => whole(&[axes.inputs()]),
            Layout::ChannelsFirst => 1,
        };
        let depth = p.batch * axes.outputs();
        let sizes = [self.entries(part), depth];
        let product = SymmetricProduct::new(&device, engine, p.groups, sizes, vector, self.limit)?;
        let channels = p.channels_per_group();
        let patches = patches::arguments(x.pointer(), self.distances(), p.batch, channels, axes);
        let spec = Spec::new("patch_products.cu", "patch_products").layout(p.layout);
        let spec = patches::of_axes(spec, axes, device.options().specialise);
        let counts = [x.len(), depth, axis_bound(axes)];
        let arguments = |sums, triangle| PatchProductsArgs { patches, sums, triangle };
        let update = |draft: &mut Draft, tiles| self.update_tiles(draft, rows, tiles);
        // SAFETY: the kernel reads inside the extents of the input.
        unsafe { product.launch(draft, spec, &counts, arguments, update) }
    }

    /// The products of the vectors of all examples, sums of patches over an example's positions.
    pub(super) fn vector_products(&self, draft: &mut Draft) -> Result<()> {
        let (p, rows, held) = (self.p, self.p.rows(), draft.held());
        let device = draft.device().clone();
        let vectors: Region<F> = self.window_totals(draft)?;
        let engine = Engine::with_sums(&device, F::DTYPE, F::DTYPE);
        let vector = engine.vector(size_of::<F>(), vectors.alignment(), &[rows, p.groups * rows]);
        let sizes = [rows, p.batch];
        let product = SymmetricProduct::new(&device, engine, p.groups, sizes, vector, self.limit)?;
        let spec = Spec::new("vector_products.cu", "vector_products");
        let arguments = |sums, triangle| VectorProductsArgs {
            vectors: vectors.pointer(),
            sums,
            triangle,
            example: (p.groups * rows) as i64,
        };
        let part_rows =
            PartRows { taps: Pointer::NULL, inner: Divisor::new(1), layer_taps: p.taps as i64 };
        let update = |draft: &mut Draft, tiles| self.update_tiles(draft, part_rows, tiles);
        // SAFETY: the kernel reads the vectors, as many as there are examples and groups.
        unsafe { product.launch(draft, spec, &[vectors.len()], arguments, update)? };
        draft.release(held);
        Ok(())
    }

    /// The sums of a run of tiles, brought into the result.
    fn update_tiles(&self, draft: &mut Draft, rows: PartRows, tiles: Tiles) -> Result<()> {
        let Tiles { sums, triangle, side, count } = tiles;
        let squares = count * (side / SQUARE).pow(2);
        let tiles = triangle.first as usize + count;
        let spec = self.update_spec(draft, "update_tiles.cu", "update_tiles", squares.max(tiles));
        let spec = spec.define("TILE_ROWS", side).define("TILE_COLUMNS", side);
        let arguments = UpdateTilesArgs { covariance: self.target(), rows, sums, triangle };
        // SAFETY: the kernel reads the sums of the tiles of this run, and updates those of their elements
        // that are inside the result.
        unsafe { draft.launch(spec, blocks(squares, 1)?, THREADS, &arguments) };
        Ok(())
    }
}

/// Whether outputs read the input's positions one by one, in their order.
fn reads_in_place(map: &AxisMap) -> bool {
    map.taps() == 1 && map.stride() == 1 && map.low() == 0 && map.outputs() == map.inputs()
}
