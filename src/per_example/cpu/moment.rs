//! Squares of rotated gradients, summed over examples: `Σ_n (Q_Gᵀ·∇W_n·Q_A)∘²`.
//!
//! Rotations may be of gradients, which takes O·d·(d + O) products an example, or of patches and output
//! gradients position by position, which takes T·(d² + O²): whichever is less, for each side.

use std::ops::Range;

use super::positions::Positions;
use super::rotation::{Rotations, Target, add_squares, column_pieces, decayed, rotate_plain};
use super::source::{Operands, Source};
use super::tiles::Tiles;
use super::winograd::{PRODUCTS, Winograd};
use crate::covariance::Update;
use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::patches::pieces::{Pieces, digits};
use crate::per_example::problem::Problem;
use crate::plan::{Explanation, Pass};
use crate::product::cpu::{Dimensions, Matrix, MatrixMut, Old, gemm};
use crate::workers::{Room, Scratch, Shared, Workers};

/// Bytes of gradients that are had at a time, unless a single one is more.
const BYTES: usize = 8 << 20;
/// Rows, over examples, that are multiplied at a time, at most.
const ROWS: usize = 1024;
/// Channels of a group from which on transforming tiles is little beside multiplying them.
const CHANNELS: usize = 32;
/// Elements of gradients that a task of several small groups reads, about.
const WORK: usize = 16 << 10;

/// The plan.
#[derive(Debug)]
pub(crate) enum Moment {
    Gradients(Gradients),
    Positions(Positions),
}

/// Gradients, some examples at a time, and then rotated.
#[derive(Debug)]
pub(crate) struct Gradients {
    problem: Problem,
    source: Source,
    tiles: Tiles,
    /// Whether output gradients are rotated position by position.
    plain_first: bool,
    /// How tasks share the result: groups, rows and columns of a group.
    groups: Pieces,
    rows: Pieces,
    columns: Pieces,
    /// Whether gradients are to be rotated from the left.
    rows_rotated: bool,
}

impl Moment {
    /// For rotations by a Q_A or none, and by a Q_G or none.
    pub fn new<T: Element, F: Accumulator>(
        p: &Problem,
        [q_a, q_g]: [bool; 2],
        way: Option<Way>,
        explanation: &mut Explanation,
    ) -> (Self, Workers) {
        let costs = costs(p, [q_a, q_g]);
        let cheapest = costs.into_iter().flatten().min_by_key(|&(_, flop)| flop);
        let way = way.or(cheapest.map(|(way, _)| way)).unwrap_or(Way::Gradients);
        explanation.algorithm = way.name().into();
        let told = costs.into_iter().flatten();
        let told: Vec<_> = told.map(|(way, flop)| format!("{flop} to {}", way.name())).collect();
        explanation.reason = format!("FLOP of an example: {}", told.join(", "));
        match way {
            Way::Positions | Way::Winograd => {
                let tiles = if way == Way::Winograd { Winograd::new(p) } else { None };
                let (plan, workers) = Positions::new::<T, F>(p, tiles, q_g, explanation);
                (Moment::Positions(plan), workers)
            }
            Way::Mixed | Way::Gradients => {
                let plain_first = way == Way::Mixed;
                let (plan, workers) = Gradients::new::<T, F>(p, plain_first, q_g, explanation);
                (Moment::Gradients(plan), workers)
            }
        }
    }

    /// `target = decay·target + scale·Σ_n (Q_Gᵀ·∇W_n·Q_A)∘²`.
    pub fn run<T: Element, F: Accumulator>(
        &self,
        workers: &Workers,
        operands: Operands<'_, T>,
        rotations: Rotations<'_, F>,
        update: Update,
        target: &mut [F],
        memory: &mut [u8],
    ) -> Result<()> {
        let batch = match self {
            Moment::Gradients(plan) => plan.problem.batch,
            Moment::Positions(plan) => plan.batch(),
        };
        if batch == 0 {
            target.iter_mut().for_each(|value| *value = decayed(*value, update));
            return Ok(());
        }
        match self {
            Moment::Gradients(plan) => {
                plan.run(workers, operands, rotations, update, target, memory)
            }
            Moment::Positions(plan) => {
                plan.run(workers, operands, rotations, update, target, memory)
            }
        }
    }
}

/// What is rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Gradients, from both sides.
    Gradients,
    /// Output gradients position by position, and then gradients from the right.
    Mixed,
    /// Output gradients and patches position by position.
    Positions,
    /// The same, patches by fewer products.
    Winograd,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Gradients => "rotate gradients",
            Way::Mixed => "rotate output gradients, then gradients",
            Way::Positions => "rotate patches and output gradients",
            Way::Winograd => "rotate patches by tiles, and output gradients",
        }
    }
}

/// The ways there are, with the floating-point operations of an example.
fn costs(p: &Problem, [q_a, q_g]: [bool; 2]) -> [Option<(Way, u64)>; 4] {
    let [t, o, d] = [p.positions(), p.rows(), p.columns()].map(|n| n as u64);
    let product = |of: bool, a: u64, b: u64, c: u64| {
        let flop = 2 * (p.groups as u64) * a.saturating_mul(b).saturating_mul(c);
        if of { flop } else { 0 }
    };
    let gradient = p.gradient_flop();
    let (rows, columns) = (product(q_g, o, o, d), product(q_a, o, d, d));
    let (plain, patches) = (product(q_g, t, o, o), product(q_a, t, d, d));
    // A transposed convolution's patches are of its output gradients, and mix with the taps.
    let by_position = !p.transposed;
    let channels = p.gathered_per_group();
    let winograd = Winograd::new(p).filter(|_| by_position && q_a && channels >= CHANNELS);
    let by_tiles = winograd.map(|winograd| {
        let products = product(true, (PRODUCTS * winograd.tiles()) as u64, channels as u64, d);
        (Way::Winograd, gradient + plain + products)
    });
    [
        Some((Way::Gradients, gradient + rows + columns)),
        (by_position && q_g).then_some((Way::Mixed, gradient + plain + columns)),
        (by_position && q_a).then_some((Way::Positions, gradient + plain + patches)),
        by_tiles,
    ]
}

impl Gradients {
    fn new<T: Element, F: Accumulator>(
        p: &Problem,
        plain_first: bool,
        q_g: bool,
        explanation: &mut Explanation,
    ) -> (Self, Workers) {
        let each = p.gradient_len() + if plain_first { p.plain_len() } else { 0 };
        let most = BYTES / size_of::<F>() / each.max(1);
        let (source, tiles) = (Source::new::<T, F>(p, most, false), Tiles::new::<F>(p));
        let rows_rotated = q_g && !plain_first;
        let rows = Pieces::new(p.rows(), if rows_rotated { p.rows() } else { ROWS });
        let examples = source.chunks.longest();
        let in_group = (p.rows() * p.columns() * examples).max(1);
        let groups = Pieces::new(p.groups, (WORK / in_group).clamp(1, p.groups));
        let columns = column_pieces(p, groups.count() * rows.count());
        let common = Room::default()
            .and::<F>(examples * p.gradient_len())
            .and::<F>(if plain_first { examples * p.plain_len() } else { 0 });
        let plan = Gradients {
            problem: p.clone(),
            source,
            tiles,
            plain_first,
            groups,
            rows,
            columns,
            rows_rotated,
        };
        let one = rows.longest() * columns.longest();
        let squares = Room::default()
            .and::<F>(one)
            .and::<F>(one * plan.together())
            .and::<F>(if rows_rotated { one } else { 0 });
        let room = plan.tiles.room::<F>().or(squares);
        let (tasks, squares) = (examples * plan.tiles.pieces(), plan.tasks());
        let passes = &mut explanation.passes;
        if plain_first {
            passes.push(Pass::on_cpu("rotate output gradients", examples));
        }
        passes.push(plan.tiles.explain::<F>(tasks, "store"));
        let how = format!("{examples} examples at a time");
        let tile = [rows.longest(), columns.longest()];
        passes.push(Pass::on_cpu("rotate and square", squares).by(how).with_tile(tile));
        let workers = Workers::new(tasks.max(squares), room);
        let workers = workers.with_common(plan.source.room::<F>(common));
        (plan, workers)
    }

    /// Tasks that rotate and square.
    fn tasks(&self) -> usize {
        self.groups.count() * self.rows.count() * self.columns.count()
    }

    /// Examples whose gradients are multiplied as one matrix.
    fn together(&self) -> usize {
        let rows = self.rows.longest().max(1);
        if self.rows.count() > 1 {
            1
        } else {
            (ROWS / rows).clamp(1, self.source.chunks.longest().max(1))
        }
    }

    fn run<T: Element, F: Accumulator>(
        &self,
        workers: &Workers,
        operands: Operands<'_, T>,
        rotations: Rotations<'_, F>,
        update: Update,
        target: &mut [F],
        memory: &mut [u8],
    ) -> Result<()> {
        let Gradients { problem: p, source, tiles, .. } = self;
        let (rows, columns) = (p.rows(), p.columns());
        let examples = source.chunks.longest();
        let (mut common, memory) = workers.split(memory);
        let gradients = common.take::<F>(examples * p.gradient_len());
        let rotated_len = if self.plain_first { examples * p.plain_len() } else { 0 };
        let rotated = common.take::<F>(rotated_len);
        let mut copies = source.copies::<F>(&mut common);
        let data = Shared::new(target);
        for chunk in source.chunks.each() {
            let read = source.load(workers, p, operands, chunk.clone(), None, &mut copies)?;
            let plain = match rotations.of_gradients {
                Some(q_g) if self.plain_first => {
                    rotate_plain(workers, p, read.plain, q_g, chunk.len(), rotated, memory)?;
                    &*rotated
                }
                _ => read.plain,
            };
            let of_chunk = Shared::new(&mut *gradients);
            workers.share_out(chunk.len() * tiles.pieces(), memory, |task, scratch| {
                let [n, piece] = digits(task, [chunk.len(), tiles.pieces()]);
                tiles.sum(read.gathered, plain, n..n + 1, piece, scratch, |part| {
                    // `[group][example][row][column]`
                    let first = (part.group * chunk.len() + n) * rows;
                    p.each_run(part, |row, column, values| {
                        // SAFETY: every element of a gradient is in one piece of it.
                        let target =
                            unsafe { of_chunk.run((first + row) * columns + column, values.len()) };
                        target.copy_from_slice(values);
                    });
                });
                Ok(())
            })?;
            let gradients = &*gradients;
            let target = Target { data, update, first: chunk.start == 0, columns };
            workers.share_out(self.tasks(), memory, |task, scratch| {
                let radices = [self.groups.count(), self.rows.count(), self.columns.count()];
                let [groups, rows, columns] = digits(task, radices);
                let (rows, columns) = (self.rows.get(rows), self.columns.get(columns));
                for group in self.groups.get(groups) {
                    let (rows, columns) = (rows.clone(), columns.clone());
                    let mut scratch = scratch.part();
                    let squares = self.squares(
                        gradients,
                        rotations,
                        chunk.len(),
                        group,
                        &rows,
                        &columns,
                        &mut scratch,
                    );
                    let first = group * p.rows() + rows.start;
                    // SAFETY: tasks have elements of their own.
                    unsafe { target.add(squares, first, rows.len(), columns) };
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The sums of squares of some rows and columns of a group.
    #[allow(clippy::too_many_arguments)]
    fn squares<'m, F: Accumulator>(
        &self,
        gradients: &[F],
        rotations: Rotations<'_, F>,
        examples: usize,
        group: usize,
        rows: &Range<usize>,
        columns: &Range<usize>,
        scratch: &mut Scratch<'m>,
    ) -> &'m [F] {
        let p = &self.problem;
        let (o, d) = (p.rows(), p.columns());
        let one = rows.len() * columns.len();
        let sums = scratch.zeros::<F>(one);
        let products = scratch.take::<F>(one * self.together());
        let rotated = scratch.take::<F>(if self.rows_rotated { one } else { 0 });
        for some in Pieces::new(examples, self.together()).each() {
            let start = (group * examples + some.start) * o + rows.start;
            let source = Matrix { data: &gradients[start * d..], row: d, column: 1 };
            let products = &mut products[..one * some.len()];
            match rotations.of_patches {
                Some(q_a) => {
                    let q_a = Matrix { data: &q_a[group * d * d..][..d * d], row: d, column: 1 };
                    let size = Dimensions {
                        rows: some.len() * rows.len(),
                        columns: columns.len(),
                        terms: d,
                    };
                    let target = MatrixMut { data: &mut *products, row: columns.len(), column: 1 };
                    gemm(size, source, q_a.from(0, columns.start), target, Old::Replaced);
                }
                None => {
                    let rows = products.chunks_exact_mut(columns.len()).enumerate();
                    rows.for_each(|(row, values)| {
                        let source = &source.data[row * d + columns.start..][..columns.len()];
                        values.copy_from_slice(source);
                    });
                }
            }
            for product in products.chunks_exact(one) {
                match rotations.of_gradients {
                    Some(q_g) if self.rows_rotated => {
                        let q_g = &q_g[group * o * o..][..o * o];
                        let q_g = Matrix { data: q_g, row: 1, column: o };
                        let size = Dimensions { rows: o, columns: columns.len(), terms: o };
                        let product = Matrix { data: product, row: columns.len(), column: 1 };
                        let target =
                            MatrixMut { data: &mut *rotated, row: columns.len(), column: 1 };
                        gemm(size, q_g, product, target, Old::Replaced);
                        add_squares(rotated, sums);
                    }
                    _ => add_squares(product, sums),
                }
            }
        }
        sums
    }
}
