//! Norms from Gram matrices of positions: `‖Σ_t g_t·a_tᵀ‖² = Σ_t Σ_t' (a_t·a_t')·(g_t·g_t')` (Goodfellow 2015,
//! "Efficient per-example gradient computations"; Li et al. 2022 for layers that share weights), which is
//! the cheaper where positions are few.
//!
//! The products of patches are those of the inputs they are made of, `a_t·a_t' = Σ_k x_i(t,k)·x_i(t',k)`:
//! each pair of inputs is multiplied once and looked up for every tap, unless inputs are many beside
//! outputs.

use std::ops::Range;

use super::tiles::{ENTRIES, gathers, plain_rows, slab_len};
use crate::element::Accumulator;
use crate::geometry::{Box3, Layout, ravel, unravel};
use crate::patches::entries::{Entries, longest};
use crate::patches::gather::Gather;
use crate::patches::pieces::Pieces;
use crate::per_example::problem::Problem;
use crate::product::cpu::{Dimensions, Matrix, MatrixMut, Old, gemm};
use crate::workers::{Room, Scratch};

/// Positions on a side of a Gram matrix, at most.
const POSITIONS: usize = 1024;
/// Rows of a Gram matrix that are made at a time.
const ROWS: usize = 64;

/// How the products of patches are found.
#[derive(Debug)]
pub(super) enum Patches {
    /// From patches, gathered.
    Gathered { gather: Vec<(Box3, Gather)>, entries: Vec<Entries> },
    /// From those of the inputs: for each tap the outputs that read consecutive inputs.
    LookedUp { taps: Vec<Vec<Segment>> },
}

/// Outputs `output..output + len` read inputs `input..input + len`.
#[derive(Debug)]
pub(super) struct Segment {
    output: usize,
    input: usize,
    len: usize,
}

/// Sums of squares of one example's gradient in one group, but for the bias.
#[derive(Debug)]
pub(super) struct Gram {
    problem: Problem,
    patches: Patches,
}

impl Gram {
    /// Of patches that are gathered; `None` where there are too many positions.
    pub fn gathered(p: &Problem) -> Option<Self> {
        if p.positions() > POSITIONS {
            return None;
        }
        let gather = gathers(p, POSITIONS);
        if gather.len() != 1 {
            // All of a patch matrix's columns have to be there at once.
            return None;
        }
        let entries = Entries::cut(&p.images(), 0..p.gathered_per_group(), ENTRIES);
        Some(Gram { problem: p.clone(), patches: Patches::Gathered { gather, entries } })
    }

    /// Of products of inputs; `None` where there are too many.
    pub fn looked_up(p: &Problem) -> Option<Self> {
        if p.positions().max(p.axes.inputs()) > POSITIONS {
            return None;
        }
        let taps = p.axes.each_tap().map(|tap| segments(p, tap)).collect();
        Some(Gram { problem: p.clone(), patches: Patches::LookedUp { taps } })
    }

    /// Floating-point operations of an example, symmetric matrices counted once.
    pub fn flop(&self) -> u64 {
        let p = &self.problem;
        let [t, inputs] = [p.positions(), p.axes.inputs()].map(|n| n as u64);
        let pairs = t * (t + 1);
        let rows = p.plain_per_group() as u64;
        let patches = match &self.patches {
            Patches::Gathered { .. } => pairs * p.entries() as u64,
            Patches::LookedUp { .. } => {
                inputs * (inputs + 1) * p.gathered_per_group() as u64 + pairs / 2 * p.taps() as u64
            }
        };
        p.groups as u64 * (patches + pairs * rows + pairs)
    }

    /// What it is called.
    pub fn name(&self) -> &'static str {
        match &self.patches {
            Patches::Gathered { .. } => "gram of patches",
            Patches::LookedUp { .. } => "gram of inputs",
        }
    }

    pub fn room<F: Accumulator>(&self) -> Room {
        let p = &self.problem;
        let block = ROWS * p.positions();
        let room = Room::default().and::<F>(block);
        match &self.patches {
            Patches::Gathered { gather, entries } => room
                .and::<F>(p.positions() * p.positions())
                .and::<F>(longest(entries) * p.positions())
                .and::<F>(slab_len(gather)),
            Patches::LookedUp { .. } => {
                room.and::<F>(block).and::<F>(p.axes.inputs() * p.axes.inputs())
            }
        }
    }

    /// The sum of the squares of an image's gradient in a group.
    pub fn sum<F: Accumulator>(
        &self,
        gathered: &[F],
        plain: &[F],
        n: usize,
        group: usize,
        scratch: &mut Scratch,
    ) -> f64 {
        let p = &self.problem;
        let t = p.positions();
        let plain = plain_rows(p, plain, n, group, 0..p.plain_per_group(), 0);
        let of_plain = scratch.take::<F>(ROWS * t);
        let mut sum = 0.0;
        let mut add = |rows: &Range<usize>, of_patches: &[F]| {
            let target = &mut of_plain[..rows.len() * t];
            products(plain, p.plain_per_group(), rows.clone(), t, target, Old::Replaced);
            let both = of_patches.chunks_exact(t).zip(target.chunks_exact(t));
            for (patches, plain) in both.take(rows.len()) {
                let dot = |range: Range<usize>| {
                    let pairs = patches[range.clone()].iter().zip(&plain[range]);
                    pairs.map(|(&a, &b)| (a * b).to_f64()).sum::<f64>()
                };
                // Pairs of a row's position with those before this block are there once, but count twice.
                sum += 2.0 * dot(0..rows.start) + dot(rows.clone());
            }
        };
        match &self.patches {
            Patches::Gathered { gather, entries } => {
                let all = scratch.take::<F>(t * t);
                let patches = scratch.take::<F>(longest(entries) * t);
                let slab = scratch.take::<F>(slab_len(gather));
                for (number, entries) in entries.iter().enumerate() {
                    let old = if number == 0 { Old::Replaced } else { Old::Kept };
                    for (_, gather) in gather {
                        let patches =
                            gather.gather(gathered, &(n..n + 1), group, entries, slab, patches);
                        for rows in Pieces::new(t, ROWS).each() {
                            let target = &mut all[rows.start * t..rows.end * t];
                            products(patches, entries.len(), rows, t, target, old);
                        }
                    }
                }
                for rows in Pieces::new(t, ROWS).each() {
                    add(&rows, &all[rows.start * t..]);
                }
            }
            Patches::LookedUp { taps } => {
                let of_patches = scratch.take::<F>(ROWS * t);
                let inputs = p.axes.inputs();
                let all = scratch.take::<F>(inputs * inputs);
                let image = &gathered[n * p.gathered_len()..];
                let channel = group * p.gathered_per_group();
                let image = match p.layout {
                    Layout::ChannelsFirst => {
                        Matrix { data: &image[channel * inputs..], row: inputs, column: 1 }
                    }
                    Layout::ChannelsLast => {
                        Matrix { data: &image[channel..], row: 1, column: p.gathered }
                    }
                };
                for rows in Pieces::new(inputs, ROWS).each() {
                    let target = &mut all[rows.start * inputs..rows.end * inputs];
                    products(image, p.gathered_per_group(), rows, inputs, target, Old::Replaced);
                }
                mirror(all, inputs);
                for rows in Pieces::new(t, ROWS).each() {
                    let target = &mut of_patches[..rows.len() * t];
                    target.fill(F::ZERO);
                    taps.iter().for_each(|tap| look_up(tap, all, inputs, &rows, t, target));
                    add(&rows, target);
                }
            }
        }
        sum
    }
}

/// Rows of the Gram matrix of the columns of `a`, up to the diagonal's block, in rows of `t` elements.
fn products<F: Accumulator>(
    a: Matrix<'_, F>,
    terms: usize,
    rows: Range<usize>,
    t: usize,
    target: &mut [F],
    old: Old,
) {
    let size = Dimensions { rows: rows.len(), columns: rows.end, terms };
    let target = MatrixMut { data: target, row: t, column: 1 };
    gemm(size, a.from(0, rows.start).t(), a, target, old);
}

/// Copies what is below the diagonal above it.
fn mirror<F: Copy>(all: &mut [F], n: usize) {
    for block in Pieces::new(n, ROWS).each() {
        for row in block.clone() {
            for column in block.end..n {
                all[row * n + column] = all[column * n + row];
            }
        }
    }
}

/// Adds a tap's products of inputs to those of the patches at `rows` and all positions before them, and in
/// their block.
fn look_up<F: Accumulator>(
    tap: &[Segment],
    all: &[F],
    inputs: usize,
    rows: &Range<usize>,
    t: usize,
    target: &mut [F],
) {
    for Segment { output, input, len } in tap {
        for index in 0..*len {
            if !rows.contains(&(output + index)) {
                continue;
            }
            let source = &all[(input + index) * inputs..][..inputs];
            let target = &mut target[(output + index - rows.start) * t..][..rows.end];
            for other in tap.iter().take_while(|other| other.output < rows.end) {
                let len = other.len.min(rows.end - other.output);
                let sums = &mut target[other.output..][..len];
                let values = &source[other.input..][..len];
                sums.iter_mut().zip(values).for_each(|(sum, &value)| *sum += value);
            }
        }
    }
}

/// The inputs that outputs read through a tap.
fn segments(p: &Problem, tap: [usize; 3]) -> Vec<Segment> {
    let mut found: Vec<Segment> = Vec::new();
    for output in 0..p.positions() {
        let at = unravel(output, p.axes.output_extents());
        let [d, h, w] = [0, 1, 2].map(|axis| p.axes[axis].source(at[axis], tap[axis]));
        let (Some(d), Some(h), Some(w)) = (d, h, w) else { continue };
        let input = ravel([d, h, w], p.axes.input_extents());
        match found.last_mut() {
            Some(last) if last.output + last.len == output && last.input + last.len == input => {
                last.len += 1;
            }
            _ => found.push(Segment { output, input, len: 1 }),
        }
    }
    found
}
