//! Squares of rotated gradients, patches and output gradients being rotated position by position: rotated
//! patches are computed some columns at a time, by tasks that multiply them at once.

use std::ops::Range;

use super::rotation::{Rotations, Target, add_squares, column_pieces, rotate_plain};
use super::source::{Operands, Source};
use super::tiles::{COLUMNS, ENTRIES, gathers, largest_of, plain_rows, slab_len};
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

#[derive(Debug)]
pub(crate) struct Positions {
    problem: Problem,
    source: Source,
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
        rotated: bool,
        explanation: &mut Explanation,
    ) -> (Self, Workers) {
        let gathers = gathers(p, COLUMNS);
        // Several examples' patches are one matrix, if an example's are one tile.
        let most = (COLUMNS / p.positions().max(1)).max(1);
        let plan = Positions {
            problem: p.clone(),
            source: Source::new::<T, F>(p, most, false),
            entries: Entries::cut(&p.images(), 0..p.gathered_per_group(), ENTRIES),
            columns: column_pieces(p, p.groups),
            rows: Pieces::new(p.rows(), ROWS),
            gathers,
            rotated,
        };
        let examples = plan.source.chunks.longest();
        let tasks = p.groups * plan.columns.count();
        if rotated {
            explanation.passes.push(Pass::on_cpu("rotate output gradients", examples));
        }
        let how = format!("{examples} examples at a time");
        let pass = Pass::on_cpu("rotate patches, multiply and square", tasks).by(how);
        explanation.passes.push(pass.with_tile([plan.rows.longest(), plan.columns.longest()]));
        let [patches, turned, one] = plan.lens();
        let room = Room::default()
            .and::<F>(patches)
            .and::<F>(slab_len(&plan.gathers))
            .and::<F>(turned)
            .and::<F>(one)
            .and::<F>(one);
        let common = Room::default().and::<F>(plan.rotated_len());
        let workers = Workers::new(tasks.max(examples), room);
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

    /// Elements of a tile of patches, of rotated patches, and of a gradient.
    fn lens(&self) -> [usize; 3] {
        let positions = self.source.chunks.longest() * self.problem.positions();
        let columns = self.columns.longest();
        let patches = longest(&self.entries) * positions.min(self.tile_columns());
        [patches, positions * columns, self.rows.longest() * columns]
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
            let target = Target { data, update, first: chunk.start == 0, columns: p.columns() };
            workers.share_out(p.groups * self.columns.count(), memory, |task, scratch| {
                let [group, columns] = digits(task, [p.groups, self.columns.count()]);
                let columns = self.columns.get(columns);
                let [patches, turned, one] = self.lens();
                let patches = scratch.take::<F>(patches);
                let slab = scratch.take::<F>(slab_len(&self.gathers));
                let turned = scratch.take::<F>(turned);
                let q_a = rotations.of_patches.unwrap_or(&[]);
                let gathered = read.gathered;
                let memory = [patches, slab, &mut *turned];
                self.turn(gathered, q_a, chunk.len(), group, &columns, memory);
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
    fn turn<F: Accumulator>(
        &self,
        gathered: &[F],
        q_a: &[F],
        examples: usize,
        group: usize,
        columns: &Range<usize>,
        [patches, slab, turned]: [&mut [F]; 3],
    ) {
        let p = &self.problem;
        let (d, t, width) = (p.columns(), p.positions(), columns.len());
        let q_a = &q_a[group * d * d..][..d * d];
        if p.bias {
            let of_bias = &q_a[(d - 1) * d..][columns.clone()];
            let rows = turned[..examples * t * width].chunks_exact_mut(width);
            rows.for_each(|row| row.copy_from_slice(of_bias));
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
