//! Squares of rotated gradients, patches and output gradients being rotated position by position: rotated
//! patches are computed some columns at a time, by tasks that multiply them at once.

use std::ops::Range;

use super::rotation::{Rotations, Target, add_squares, column_pieces, rotate_plain};
use super::source::{Operands, Source};
use super::tiles::{COLUMNS, ENTRIES, gathers, largest_of, plain_rows, slab_len};
use super::winograd::Winograd;
use crate::covariance::Update;
use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::geometry::Box3;
use crate::patches::entries::{Entries, longest};
use crate::patches::gather::Gather;
use crate::patches::pieces::{Pieces, digits};
use crate::patches::slab::positions;
use crate::per_example::problem::Problem;
use crate::plan::{Explanation, Pass};
use crate::product::cpu::{Dimensions, Matrix, MatrixMut, Old, gemm};
use crate::workers::{Room, Shared, Workers};

/// Rows of gradients that are squared at a time, at most.
const ROWS: usize = 256;
/// Positions, over examples, whose patches are rotated by tiles at a time: for each such time Q_A is
/// transformed.
const TILED: usize = 2048;
/// Bytes of transformed inputs, unless a single example's are more.
const BYTES: usize = 8 << 20;

#[derive(Debug)]
pub(crate) struct Positions {
    problem: Problem,
    source: Source,
    tiles: Option<Winograd>,
    gathers: Vec<(Box3, Gather)>,
    entries: Vec<Entries>,
    columns: Pieces,
    rows: Pieces,
    /// Whether output gradients are rotated.
    rotated: bool,
}

impl Positions {
    pub fn new<T: Element, F: Accumulator>(
        p: &Problem,
        tiles: Option<Winograd>,
        rotated: bool,
        explanation: &mut Explanation,
    ) -> (Self, Workers) {
        let gathers = gathers(p, COLUMNS);
        // Several examples' patches are one matrix, if an example's are one tile.
        let most = match &tiles {
            None => COLUMNS / p.positions().max(1),
            Some(tiles) => {
                let affordable = BYTES / size_of::<F>() / tiles.inputs_len(1).max(1);
                affordable.min(TILED / p.positions().max(1))
            }
        };
        let most = most.max(1);
        let plan = Positions {
            problem: p.clone(),
            source: Source::new::<T, F>(p, most, false),
            entries: Entries::cut(&p.images(), 0..p.gathered_per_group(), ENTRIES),
            columns: column_pieces(p, p.groups),
            rows: Pieces::new(p.rows(), ROWS),
            tiles,
            gathers,
            rotated,
        };
        let examples = plan.source.chunks.longest();
        let tasks = p.groups * plan.columns.count();
        if rotated {
            explanation.passes.push(Pass::on_cpu("rotate output gradients", examples));
        }
        if plan.tiles.is_some() {
            explanation.passes.push(Pass::on_cpu("transform the input's tiles", p.gathered));
        }
        let how = format!("{examples} examples at a time");
        let pass = Pass::on_cpu("rotate patches, multiply and square", tasks).by(how);
        explanation.passes.push(pass.with_tile([plan.rows.longest(), plan.columns.longest()]));
        let ([first, second], [turned, one]) = (plan.sources(), plan.lens());
        let room = Room::default()
            .and::<F>(first)
            .and::<F>(second)
            .and::<F>(turned)
            .and::<F>(one)
            .and::<F>(one);
        let common = Room::default().and::<F>(plan.rotated_len()).and::<F>(plan.transformed_len());
        let transforms = if plan.tiles.is_some() { p.gathered } else { 0 };
        let workers = Workers::new(tasks.max(examples).max(transforms), room);
        let workers = workers.with_common(plan.source.room::<F>(common));
        (plan, workers)
    }

    pub fn batch(&self) -> usize {
        self.problem.batch
    }

    /// Elements of rotated output gradients.
    fn rotated_len(&self) -> usize {
        let examples = self.source.chunks.longest();
        if self.rotated { examples * self.problem.plain_len() } else { 0 }
    }

    /// Elements of the transformed inputs of a chunk.
    fn transformed_len(&self) -> usize {
        self.tiles.as_ref().map_or(0, |tiles| tiles.inputs_len(self.source.chunks.longest()))
    }

    /// Elements of what rotating patches takes: those of a tile and of its slab, or of transformed columns and
    /// of a product.
    fn sources(&self) -> [usize; 2] {
        let (examples, columns) = (self.source.chunks.longest(), self.columns.longest());
        match &self.tiles {
            Some(tiles) => [tiles.weight_len(columns), examples * tiles.tiles() * columns],
            None => {
                let positions = examples * self.problem.positions();
                let patches = longest(&self.entries) * positions.min(self.tile_columns());
                [patches, slab_len(&self.gathers)]
            }
        }
    }

    /// Elements of rotated patches, and of a gradient.
    fn lens(&self) -> [usize; 2] {
        let positions = self.source.chunks.longest() * self.problem.positions();
        let columns = self.columns.longest();
        [positions * columns, self.rows.longest() * columns]
    }

    /// Columns of a tile of patches, at most.
    fn tile_columns(&self) -> usize {
        let images = if self.gathers.len() == 1 { self.source.chunks.longest() } else { 1 };
        images * largest_of(&self.gathers)
    }

    pub fn run<T: Element, F: Accumulator>(
        &self,
        workers: &Workers,
        operands: Operands<'_, T>,
        rotations: Rotations<'_, F>,
        update: Update,
        target: &mut [F],
        memory: &mut [u8],
    ) -> Result<()> {
        let Positions { problem: p, source, .. } = self;
        let (mut common, memory) = workers.split(memory);
        let rotated = common.take::<F>(self.rotated_len());
        let transformed = common.take::<F>(self.transformed_len());
        let mut copies = source.copies::<F>(&mut common);
        let data = Shared::new(target);
        for chunk in source.chunks.each() {
            let read = source.load(workers, p, operands, chunk.clone(), None, &mut copies)?;
            let plain = match rotations.of_gradients {
                Some(q_g) if self.rotated => {
                    rotate_plain(workers, p, read.plain, q_g, chunk.len(), rotated, memory)?;
                    &*rotated
                }
                _ => read.plain,
            };
            if let Some(tiles) = &self.tiles {
                tiles.transform(workers, read.gathered, chunk.len(), transformed, memory)?;
            }
            let transformed = &*transformed;
            let target = Target { data, update, first: chunk.start == 0, columns: p.columns() };
            workers.share_out(p.groups * self.columns.count(), memory, |task, scratch| {
                let [group, columns] = digits(task, [p.groups, self.columns.count()]);
                let columns = self.columns.get(columns);
                let [turned, one] = self.lens();
                let memory = self.sources().map(|len| scratch.take::<F>(len));
                let turned = scratch.take::<F>(turned);
                let q_a = rotations.of_patches.unwrap_or(&[]);
                let sources = [read.gathered, transformed];
                self.turn(sources, q_a, chunk.len(), group, &columns, memory, turned);
                let (product, sums) = (scratch.take::<F>(one), scratch.take::<F>(one));
                for rows in self.rows.each() {
                    let one = rows.len() * columns.len();
                    let (product, sums) = (&mut product[..one], &mut sums[..one]);
                    sums.fill(F::ZERO);
                    for n in 0..chunk.len() {
                        let (terms, width) = (p.positions(), columns.len());
                        let size = Dimensions { rows: rows.len(), columns: width, terms };
                        let left = plain_rows(p, plain, n, group, rows.clone(), 0);
                        let right = &turned[n * terms * width..][..terms * width];
                        let right = Matrix { data: right, row: width, column: 1 };
                        let result = MatrixMut { data: &mut *product, row: width, column: 1 };
                        gemm(size, left, right, result, Old::Replaced);
                        add_squares(product, sums);
                    }
                    let first = group * p.rows() + rows.start;
                    // SAFETY: every task has columns of a group of its own.
                    unsafe { target.add(sums, first, rows.len(), columns.clone()) };
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Some columns of the rotated patches of all positions of the examples of a chunk, a row for each.
    #[allow(clippy::too_many_arguments)]
    fn turn<F: Accumulator>(
        &self,
        [gathered, transformed]: [&[F]; 2],
        q_a: &[F],
        examples: usize,
        group: usize,
        columns: &Range<usize>,
        [patches, slab]: [&mut [F]; 2],
        turned: &mut [F],
    ) {
        let p = &self.problem;
        let (d, t, width) = (p.columns(), p.positions(), columns.len());
        let q_a = &q_a[group * d * d..][..d * d];
        if p.bias {
            let of_bias = &q_a[(d - 1) * d..][columns.clone()];
            let rows = turned[..examples * t * width].chunks_exact_mut(width);
            rows.for_each(|row| row.copy_from_slice(of_bias));
        }
        if let Some(tiles) = &self.tiles {
            if !p.bias {
                turned[..examples * t * width].fill(F::ZERO);
            }
            let memory = [patches, slab];
            return tiles.rotate(transformed, examples, group, q_a, d, columns, memory, turned);
        }
        let together = if self.gathers.len() == 1 { examples } else { 1 };
        for images in Pieces::new(examples, together).each() {
            for (area, gather) in &self.gathers {
                let at = positions(area, p.axes.output_extents());
                let start = (images.start * t + at.start) * width;
                for (number, entries) in self.entries.iter().enumerate() {
                    let patches = gather.gather(gathered, &images, group, entries, slab, patches);
                    let rows = images.len() * at.len();
                    let size = Dimensions { rows, columns: width, terms: entries.len() };
                    let q_a = Matrix { data: q_a, row: d, column: 1 };
                    let q_a = q_a.from(entries.range().start, columns.start);
                    let target = MatrixMut {
                        data: &mut turned[start..][..rows * width],
                        row: width,
                        column: 1,
                    };
                    let old = if p.bias || number > 0 { Old::Kept } else { Old::Replaced };
                    gemm(size, patches.t(), q_a, target, old);
                }
            }
        }
    }
}
