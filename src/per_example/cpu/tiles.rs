//! Pieces of gradients: plain rows by patches, summed over the positions of one image or of several.

use std::ops::Range;

use crate::element::Accumulator;
use crate::geometry::{Box3, Layout, ravel, volume};
use crate::patches::entries::{Entries, longest};
use crate::patches::gather::Gather;
use crate::patches::pieces::{Pieces, digits, shift};
use crate::patches::slab::{Slab, boxes, positions};
use crate::per_example::problem::{Part, Place, Problem};
use crate::plan::Pass;
use crate::product::cpu::{Dimensions, Matrix, MatrixMut, Old, add_dots, gemm, sum_of_lanes};
use crate::workers::{Room, Scratch};

/// Positions in a tile of patches, at most.
pub(super) const COLUMNS: usize = 512;
/// Patch entries in a tile, at most.
pub(super) const ENTRIES: usize = 320;
/// Plain rows that are multiplied at a time, at most.
const ROWS: usize = 256;
/// Elements in the slab of one channel, unless a single line has more.
pub(super) const SLAB: usize = 64 << 10;
/// Channels of groups for which register tiles of dot products are the faster, at most.
const FEW: usize = 16;
/// Lanes of the sums of a group for which they are, at most.
const LANES: usize = 256 << 10;
/// Positions times rows that are multiplied at a time by those, at most.
const GRADIENTS: usize = 64 << 10;
/// Products that a task of several small groups does, about.
const WORK: usize = 1 << 20;

/// How the gradient of an image is cut into pieces.
#[derive(Debug)]
pub(super) struct Tiles {
    problem: Problem,
    kernel: Kernel,
}

#[derive(Debug)]
enum Kernel {
    /// Tiles of gathered patches, and matrix products.
    Products { gathers: Vec<(Box3, Gather)>, entries: Vec<Entries>, rows: Pieces },
    /// Whole groups of few channels: dot products with the blocks of slabs, which are the patch's rows.
    Dots { areas: Vec<Area>, entries: Entries, groups: Pieces },
}

/// A box of outputs.
#[derive(Debug)]
struct Area {
    outputs: Box3,
    slab: Slab,
    /// Where each entry's rows start in the slabs of the group's channels.
    starts: Vec<usize>,
}

impl Tiles {
    pub fn new<F: Accumulator>(p: &Problem) -> Self {
        let (rows, columns) = (p.plain_per_group(), p.entries());
        let lanes = rows * columns * F::best_tiles().lanes;
        let few = p.gathered_per_group().max(rows) < FEW && lanes <= LANES;
        let kernel = if p.groups > 1 && few { dots(p) } else { products(p) };
        Tiles { problem: p.clone(), kernel }
    }

    /// Pieces of a gradient.
    pub fn pieces(&self) -> usize {
        let p = &self.problem;
        let tiles = match &self.kernel {
            Kernel::Products { entries, rows, .. } => p.groups * rows.count() * entries.len(),
            Kernel::Dots { groups, .. } => groups.count(),
        };
        tiles + usize::from(p.bias)
    }

    /// What [`Tiles::sum`] takes.
    pub fn room<F: Accumulator>(&self) -> Room {
        let p = &self.problem;
        let tiles = match &self.kernel {
            Kernel::Products { gathers, entries, rows } => {
                let columns = largest_of(gathers);
                Room::default()
                    .and::<F>(rows.longest() * longest(entries))
                    .and::<F>(longest(entries) * columns)
                    .and::<F>(slab_len(gathers))
            }
            Kernel::Dots { areas, .. } => {
                let sums = p.plain_per_group() * p.entries();
                let slabs = areas.iter().map(|area| area.slab.len()).max().unwrap_or(0);
                Room::default()
                    .and::<F>(sums)
                    .and::<F>(sums * F::best_tiles().lanes)
                    .and::<F>(slabs * p.gathered_per_group())
                    .and::<F>(copy_len(p, areas))
            }
        };
        tiles.or(Room::default().and::<F>(p.rows()))
    }

    /// What a task does.
    pub fn explain<F: Accumulator>(&self, tasks: usize, what: &str) -> Pass {
        match &self.kernel {
            Kernel::Products { entries, rows, .. } => {
                let pass = Pass::on_cpu(format!("gather and multiply, {what}"), tasks);
                pass.with_tile([rows.longest(), longest(entries)])
            }
            Kernel::Dots { groups, .. } => {
                let lanes = F::best_tiles().lanes;
                let how =
                    format!("register tiles of {lanes} lanes, {} groups a task", groups.longest());
                Pass::on_cpu(format!("dot products with slabs, {what}"), tasks).by(how)
            }
        }
    }

    /// Sums one piece over some images, in order, and hands on what it is in parts: one, or one for each of
    /// its groups.
    pub fn sum<F: Accumulator>(
        &self,
        gathered: &[F],
        plain: &[F],
        images: Range<usize>,
        piece: usize,
        scratch: &mut Scratch,
        mut visit: impl FnMut(&Part<'_, F>),
    ) {
        let p = &self.problem;
        if p.bias && piece + 1 == self.pieces() {
            let dy = if p.transposed { gathered } else { plain };
            return sum_bias(p, dy, images, scratch.take(p.rows()), visit);
        }
        match &self.kernel {
            Kernel::Products { gathers, entries, rows } => {
                let [group, piece, number] = digits(piece, [p.groups, rows.count(), entries.len()]);
                let (rows, entries) = (rows.get(piece), &entries[number]);
                let sums = scratch.take::<F>(rows.len() * entries.len());
                let columns = largest_of(gathers);
                let patches = scratch.take::<F>(entries.len() * columns);
                let slab = scratch.take::<F>(slab_len(gathers));
                let mut old = Old::Replaced;
                for n in images {
                    for (area, gather) in gathers {
                        let patches =
                            gather.gather(gathered, &(n..n + 1), group, entries, slab, patches);
                        let at = positions(area, p.axes.output_extents());
                        let size = Dimensions {
                            rows: rows.len(),
                            columns: entries.len(),
                            terms: at.len(),
                        };
                        let plain = plain_rows(p, plain, n, group, rows.clone(), at.start);
                        let target = MatrixMut { data: &mut *sums, row: entries.len(), column: 1 };
                        gemm(size, plain, patches.t(), target, old);
                        old = Old::Kept;
                    }
                }
                visit(&Part { group, place: Place::Tile { rows, entries }, sums });
            }
            Kernel::Dots { areas, entries, groups } => {
                for group in groups.get(piece) {
                    let mut scratch = scratch.part();
                    let sums = scratch.take::<F>(p.plain_per_group() * p.entries());
                    sum_group(p, areas, [gathered, plain], images.clone(), group, scratch, sums);
                    let place = Place::Tile { rows: 0..p.plain_per_group(), entries };
                    visit(&Part { group, place, sums });
                }
            }
        }
    }
}

fn products(p: &Problem) -> Kernel {
    let images = p.images();
    let gathers = gathers(p, COLUMNS);
    let entries = Entries::cut(&images, 0..p.gathered_per_group(), ENTRIES);
    Kernel::Products { gathers, entries, rows: Pieces::new(p.plain_per_group(), ROWS) }
}

/// Boxes of at most so many positions, and what gathers their patches.
pub(super) fn gathers(p: &Problem, columns: usize) -> Vec<(Box3, Gather)> {
    let images = p.images();
    let boxes = boxes(p.axes.output_extents(), |outputs| {
        volume(outputs) <= columns && Slab::len_for(&p.axes, outputs) <= SLAB
    });
    boxes.into_iter().map(|area| (area.clone(), Gather::new(&images, area))).collect()
}

/// Elements of the largest slab.
pub(super) fn slab_len(gathers: &[(Box3, Gather)]) -> usize {
    gathers.iter().map(|(_, gather)| gather.slab_len()).max().unwrap_or(0)
}

/// Plain rows of a group, from a position on.
pub(super) fn plain_rows<'a, F>(
    p: &Problem,
    plain: &'a [F],
    n: usize,
    group: usize,
    rows: Range<usize>,
    position: usize,
) -> Matrix<'a, F> {
    let channel = group * p.plain_per_group() + rows.start;
    let image = &plain[n * p.plain_len()..];
    match p.layout {
        Layout::ChannelsFirst => {
            let (row, column) = (p.positions(), 1);
            Matrix { data: &image[channel * row + position..], row, column }
        }
        Layout::ChannelsLast => {
            let (row, column) = (1, p.plain);
            Matrix { data: &image[position * column + channel..], row, column }
        }
    }
}

/// The bias's column of all groups: sums of dy over positions.
fn sum_bias<F: Accumulator>(
    p: &Problem,
    dy: &[F],
    images: Range<usize>,
    sums: &mut [F],
    mut visit: impl FnMut(&Part<'_, F>),
) {
    let (channels, positions) = match p.transposed {
        true => (p.gathered, p.axes.inputs()),
        false => (p.plain, p.positions()),
    };
    for group in 0..p.groups {
        let range = shift(0..p.rows(), group * p.rows());
        sums.fill(F::ZERO);
        for n in images.clone() {
            let image = &dy[n * channels * positions..][..channels * positions];
            match p.layout {
                Layout::ChannelsFirst => {
                    let planes = image.chunks_exact(positions).skip(range.start);
                    sums.iter_mut().zip(planes).for_each(|(sum, plane)| *sum += total(plane));
                }
                Layout::ChannelsLast => {
                    for values in image.chunks_exact(channels) {
                        let values = &values[range.clone()];
                        sums.iter_mut().zip(values).for_each(|(sum, &value)| *sum += value);
                    }
                }
            }
        }
        visit(&Part { group, place: Place::Bias, sums });
    }
}

/// The sum of a plane, in lanes.
fn total<F: Accumulator>(plane: &[F]) -> F {
    let mut lanes = [F::ZERO; 16];
    let mut chunks = plane.chunks_exact(16);
    for chunk in &mut chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &value)| *lane += value);
    }
    let rest = chunks.remainder().iter().fold(F::ZERO, |sum, &value| sum + value);
    sum_of_lanes(&mut lanes) + rest
}

fn dots(p: &Problem) -> Kernel {
    let all = Entries::cut(&p.images(), 0..p.gathered_per_group(), usize::MAX);
    let Some(entries) = all.into_iter().next() else { return products(p) };
    let (rows, taps) = (p.plain_per_group(), p.taps());
    let boxes = boxes(p.axes.output_extents(), |outputs| {
        volume(outputs) * rows <= GRADIENTS && Slab::len_for(&p.axes, outputs) <= SLAB
    });
    let area = |outputs: Box3| {
        let slab = Slab::new(&p.axes, outputs.clone());
        let blocks: Vec<usize> = slab.taps().map(|tap| slab.block(tap, 0)).collect();
        let starts = (0..p.entries()).map(|entry| {
            let [channel, tap] = match p.layout {
                Layout::ChannelsFirst => digits(entry, [p.gathered_per_group(), taps]),
                Layout::ChannelsLast => {
                    let [tap, channel] = digits(entry, [taps, p.gathered_per_group()]);
                    [channel, tap]
                }
            };
            channel * slab.len() + blocks[tap]
        });
        let starts = starts.collect();
        Area { outputs, slab, starts }
    };
    let areas = boxes.into_iter().map(area).collect();
    let work = (rows * p.entries() * p.positions()).max(1);
    Kernel::Dots { areas, entries, groups: Pieces::new(p.groups, (WORK / work).max(1)) }
}

/// Elements of a copy of some plain rows.
fn copy_len(p: &Problem, areas: &[Area]) -> usize {
    let positions = areas.iter().map(|area| area.slab.block_len()).max().unwrap_or(0);
    if p.layout == Layout::ChannelsFirst { 0 } else { p.plain_per_group() * positions }
}

/// The sums of one group.
fn sum_group<F: Accumulator>(
    p: &Problem,
    areas: &[Area],
    [gathered, plain]: [&[F]; 2],
    images: Range<usize>,
    group: usize,
    mut scratch: Scratch,
    sums: &mut [F],
) {
    let (rows, channels) = (p.plain_per_group(), p.gathered_per_group());
    let lanes = F::best_tiles().lanes;
    let of_lanes = scratch.zeros::<F>(sums.len() * lanes);
    let slab_len = areas.iter().map(|area| area.slab.len()).max().unwrap_or(0);
    let slabs = scratch.take::<F>(slab_len * channels);
    let copy = scratch.take::<F>(copy_len(p, areas));
    let inputs = p.axes.inputs();
    for (n, area) in images.flat_map(|n| areas.iter().map(move |area| (n, area))) {
        let Area { outputs, slab, starts } = area;
        let image = &gathered[n * p.gathered_len()..][..p.gathered_len()];
        for (index, slabs) in slabs.chunks_exact_mut(slab.len()).take(channels).enumerate() {
            let channel = group * channels + index;
            let (start, step) = match p.layout {
                Layout::ChannelsFirst => (channel * inputs, 1),
                Layout::ChannelsLast => (channel, p.gathered),
            };
            slab.copy(&image[start..], step, slabs);
        }
        let len = slab.block_len();
        for d in 0..slab.depth() {
            let at = [outputs[0].start + d, outputs[1].start, outputs[2].start];
            let at = ravel(at, p.axes.output_extents());
            let left = plain_rows(p, plain, n, group, 0..rows, at);
            let (left, row) = match p.layout {
                Layout::ChannelsFirst => (left.data, left.row),
                Layout::ChannelsLast => {
                    for (m, copy) in copy[..rows * len].chunks_exact_mut(len).enumerate() {
                        let row = left.data[m..].iter().step_by(left.column);
                        copy.iter_mut().zip(row).for_each(|(copy, &value)| *copy = value);
                    }
                    (&*copy, len)
                }
            };
            add_dots(left, row, &slabs[d * slab.depth_step()..], starts, len, rows, of_lanes);
        }
    }
    let of_lanes = of_lanes.chunks_exact_mut(lanes).map(sum_of_lanes);
    sums.iter_mut().zip(of_lanes).for_each(|(sum, value)| *sum = value);
}

/// Positions in the largest of these boxes.
pub(super) fn largest_of(gathers: &[(Box3, Gather)]) -> usize {
    gathers.iter().map(|(area, _)| volume(area)).max().unwrap_or(0)
}
