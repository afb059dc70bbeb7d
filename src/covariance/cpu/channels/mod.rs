//! ClassSums of products of channels, a block of them against another at a time: the channels are the lanes of
//! vectors.
//!
//! A class is two blocks of virtual channels and a lag. Its sums over all segments of its windows are
//! products of matrices whose operands lie in the panel as they are: a term is a position. Sums over windows
//! are then added up, axis by axis, from those over segments; nothing is subtracted.
//!
//! | file | holds |
//! |---|---|
//! | `mod.rs` | the plan: classes and their windows; a run, panel by panel |
//! | `blocks.rs` | virtual channels, cut into blocks |
//! | `product.rs` | products of two blocks over the positions of a segment |
//! | `sums.rs` | from the sums of classes to the matrix |

mod blocks;
mod product;
mod sums;

use std::ops::Range;

use blocks::{Block, blocks, widest, width};
use product::Product;
use sums::{ClassSums, place};

use super::cost::Cost;
use super::folding::{Folding, Windows};
use super::landing::{Landing, Target};
use super::panel::{Lanes, Line, LineMemory, Panel, Panels, Reader};
use crate::covariance::problem::{Part, Problem};
use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::patches::Images;
use crate::patches::entries::{Entries, longest};
use crate::patches::pieces::digits;
use crate::plan::Pass;
use crate::workers::{Room, Scratch, Shared, Workers};

/// Virtual channels of a block, at most.
const BLOCK: usize = 64;
/// Virtual channels that a task takes of its left block, at most.
const ROWS: usize = 32;
/// Pieces of a block's rows.
const PIECES: usize = BLOCK / ROWS;
/// Marks a class that there is not.
const NONE: u32 = u32::MAX;
/// Rows and columns of the matrix that are written together.
const ENTRIES: usize = 288;

/// Two blocks and a lag.
#[derive(Debug)]
struct Class {
    left: usize,
    /// Those of the left block.
    rows: Range<usize>,
    right: usize,
    /// Channels of the right block that are multiplied, whole vectors of them.
    width: usize,
    lag: [isize; 3],
    /// For each axis, which of the plan's windows.
    windows: [usize; 3],
    /// Elements of the sums of the classes before, of one group.
    sums: usize,
}

/// What a class's sums are made of.
struct Shape {
    rows: usize,
    width: usize,
    windows: [usize; 3],
}

impl Shape {
    fn tile(&self) -> usize {
        self.rows * self.width
    }

    fn len(&self) -> usize {
        self.tile() * self.windows.iter().product::<usize>()
    }
}

#[derive(Debug)]
pub(super) struct Channels {
    p: Problem,
    part: Part,
    pub folding: Folding,
    blocks: Vec<Block>,
    classes: Vec<Class>,
    panels: Panels,
    /// For each extents of its boxes the windows of each axis, by starts.
    windows: Vec<[Vec<Windows>; 3]>,
    /// Elements of the sums of a group.
    sums: usize,
    /// The class of each lag, left block, piece of its rows and right block, where there is one.
    table: Vec<u32>,
    /// The phase of each tap of the part, and its start on each axis.
    places: Vec<(usize, [isize; 3])>,
    /// The entries of the part's patches, cut into pieces, and the rows of the matrix that they are.
    entries: Vec<Entries>,
    targets: Vec<Target>,
    /// Multiplications and additions of all products, and elements of panels that are filled.
    pub cost: Cost,
}

impl Channels {
    /// The plan of one part, by a folding of its axes. `limit` is of bytes of workspace.
    pub fn new<F: Accumulator>(p: &Problem, part: &Part, folding: Folding, limit: usize) -> Self {
        let lanes = F::best_tiles().lanes;
        let blocks = blocks(p, &folding, lanes);
        let (width, widest) = (width(&blocks), widest(&blocks));
        let bytes = size_of::<F>();
        let at_once = [p.groups * width * bytes, 2 * widest * bytes];
        let panels = Panels::new(part, &folding, p.batch, at_once, limit);
        let mut plan = Channels {
            p: p.clone(),
            part: part.clone(),
            folding,
            blocks,
            classes: Vec::new(),
            windows: Vec::new(),
            panels,
            sums: 0,
            table: Vec::new(),
            places: Vec::new(),
            entries: Vec::new(),
            targets: Vec::new(),
            cost: Cost::default(),
        };
        plan.classify(lanes);
        plan.places = part.axes.each_tap().map(|tap| plan.folding.place(tap)).collect();
        let images = Images {
            layout: p.layout,
            axes: part.axes.clone(),
            channels: p.channels,
            groups: p.groups,
        };
        plan.entries = Entries::cut(&images, 0..p.channels_per_group(), ENTRIES);
        plan.targets = plan.entries.iter().map(|entries| plan.target(entries)).collect();
        plan.count();
        plan
    }

    fn target(&self, entries: &Entries) -> Target {
        let (p, part) = (&self.p, &self.part);
        if part.taps.iter().copied().eq(0..p.taps) {
            return Target::Run(entries.range());
        }
        let mut rows = vec![0; entries.len()];
        for (channel, c) in entries.channels.clone().enumerate() {
            for (tap, k) in entries.taps.clone().enumerate() {
                rows[place(p.layout, entries, channel, tap)] = p.row_of(c, part.taps[k]);
            }
        }
        Target::List(rows)
    }

    /// Finds all classes, and their windows.
    fn classify(&mut self, lanes: usize) {
        let mut starts: [Vec<Vec<usize>>; 3] = Default::default();
        let mut classes = Vec::new();
        for lag in self.folding.lags() {
            let still = lag == [0; 3];
            for (left, block) in self.blocks.iter().enumerate() {
                if block.is_one() {
                    continue;
                }
                for (right, other) in self.blocks.iter().enumerate() {
                    // The appended 1 has no lag; without one, each pair of blocks is taken once.
                    let taken = if other.is_one() { still } else { !still || right <= left };
                    if !taken {
                        continue;
                    }
                    for start in (0..block.channels).step_by(ROWS) {
                        let rows = start..(start + ROWS).min(block.channels);
                        let Some(of) = self.starts(block, &rows, other, lag) else { continue };
                        let windows = [0, 1, 2].map(|axis| intern(&mut starts[axis], &of[axis]));
                        // Of a square the lower triangle.
                        let square = still && left == right;
                        let end = rows.end.next_multiple_of(lanes);
                        let width = if square { end } else { other.width };
                        let counts = of.each_ref().map(Vec::len);
                        let shape = Shape { rows: rows.len(), width, windows: counts };
                        let sums = self.sums;
                        self.sums += shape.len();
                        classes.push(Class { left, rows, right, width, lag, windows, sums });
                    }
                }
            }
        }
        self.table = vec![NONE; self.folding.all_lags() * self.blocks.len().pow(2) * PIECES];
        for (number, class) in classes.iter().enumerate() {
            let at = self.index(class.lag, class.left, class.rows.start / ROWS, class.right);
            self.table[at] = number as u32;
        }
        self.classes = classes;
        let windows = |len: &[usize; 3]| {
            [0, 1, 2].map(|axis| {
                let of = starts[axis].iter();
                of.map(|starts| Windows::new(starts.clone(), len[axis])).collect()
            })
        };
        self.windows = self.panels.extents.iter().map(windows).collect();
    }

    /// Where the table has a class.
    fn index(&self, lag: [isize; 3], left: usize, piece: usize, right: usize) -> usize {
        let blocks = self.blocks.len();
        ((self.folding.lag(lag) * blocks + left) * PIECES + piece) * blocks + right
    }

    /// The starts of the windows of two blocks at a lag, by axis; `None` where there is no pair of taps.
    fn starts(
        &self,
        left: &Block,
        rows: &Range<usize>,
        right: &Block,
        lag: [isize; 3],
    ) -> Option<[Vec<usize>; 3]> {
        let mut found: [Vec<usize>; 3] = Default::default();
        for left in left.pieces_in(rows) {
            for right in &right.pieces {
                let Some(phase) = left.phase else { continue };
                let Some(starts) = self.folding.starts(phase, right.phase, lag) else { continue };
                found.iter_mut().zip(starts).for_each(|(found, starts)| found.extend(starts));
            }
        }
        for starts in &mut found {
            starts.sort_unstable();
            starts.dedup();
        }
        (!found[0].is_empty()).then_some(found)
    }

    fn count(&mut self) {
        let (mut products, mut moves) = (0.0, 0.0);
        for panel in self.panels.each() {
            let images = panel.images.len() as f64;
            moves += images * (panel.positions() * width(&self.blocks)) as f64;
            for class in &self.classes {
                let windows = self.windows_of(class, panel.number);
                let tile = (class.rows.len() * class.width) as f64;
                let terms: usize = windows.iter().map(|windows| windows.positions()).product();
                let pieces: usize = windows.iter().map(|w| w.segments.len()).product();
                products += images * tile * terms as f64;
                // Sums over segments are added up a vector at a time.
                moves += 0.1 * tile * pieces as f64;
            }
        }
        moves += self.sums as f64;
        let groups = self.p.groups as f64;
        self.cost = Cost { products: groups * products, moves: groups * moves };
    }

    fn windows_of(&self, class: &Class, number: usize) -> [&Windows; 3] {
        [0, 1, 2].map(|axis| &self.windows[number][axis][class.windows[axis]])
    }

    /// Elements of the largest panel.
    pub fn panel_len(&self) -> usize {
        self.p.groups * width(&self.blocks) * self.panels.positions()
    }

    /// A task's memory besides the sums.
    fn room<F>(&self) -> Room {
        let of = |class: &Class| {
            let (tile, [_, h, w]) = (self.shape(class).tile(), self.shape(class).windows);
            Room::default().and::<F>(tile).and::<F>(tile * w).and::<F>(tile * h * w)
        };
        self.classes.iter().map(of).fold(Room::default(), Room::or)
    }

    fn shape(&self, class: &Class) -> Shape {
        let windows = self.windows_of(class, 0).map(Windows::len);
        Shape { rows: class.rows.len(), width: class.width, windows }
    }

    /// What it takes, and how it goes.
    pub fn workers<T: Element, F: Accumulator>(&self, passes: &mut Vec<Pass>) -> Workers {
        let lanes = F::best_tiles().lanes;
        let tasks = self.p.groups * self.classes.len();
        let own = self.room::<F>().or(LineMemory::<T::Acc, F>::room(&self.part.axes, lanes));
        let own = own.or(Room::default().and::<F>(longest(&self.entries).pow(2)));
        let common = Room::default().and::<F>(self.panel_len()).and::<F>(self.p.groups * self.sums);
        let widest = widest(&self.blocks);
        let fills = self.panels.images() * self.p.groups * self.blocks.len() * self.panels.pieces();
        let channels: usize = self.blocks.iter().map(|block| block.channels).sum();
        let how = format!("{} panels of {channels} virtual channels", self.panels.count());
        passes.push(Pass::on_cpu("pack", fills).by(how));
        let how = format!("register tiles of {lanes} channels");
        passes.push(Pass::on_cpu("multiply", tasks).by(how).with_tile([ROWS, widest]));
        Workers::new(tasks.max(fills), own).with_common(common)
    }

    /// Runs of channels of a phase that are in one piece, of `size`, of all virtual channels: where each
    /// starts in `channels`, its first virtual channel, and its length.
    fn runs(
        &self,
        phase: usize,
        channels: &Range<usize>,
        size: usize,
    ) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
        let first = self.virtual_channel(phase, channels.start);
        let end = first + channels.len();
        (first / size..end.div_ceil(size)).map(move |piece| {
            let start = first.max(piece * size);
            (start - first, start, end.min((piece + 1) * size) - start)
        })
    }

    fn virtual_channel(&self, phase: usize, channel: usize) -> usize {
        phase * self.p.channels_per_group() + channel
    }

    /// Adds all sums of the part to the matrices.
    pub fn run<T: Element, F: Accumulator>(
        &self,
        workers: &Workers,
        x: &[T],
        landing: &Landing<F>,
        common: &mut Scratch,
        memory: &mut [u8],
    ) -> Result<()> {
        let panel = common.take::<F>(self.panel_len());
        let all_sums = common.take::<F>(self.p.groups * self.sums);
        let sums = Shared::new(all_sums);
        let radices = [self.p.groups, self.classes.len()];
        for (number, view) in self.panels.each().enumerate() {
            self.fill(workers, x, &view, panel, memory)?;
            let filled = Filled { view, data: &*panel };
            workers.share_out(radices.iter().product(), memory, |task, scratch| {
                let [group, class] = digits(task, radices);
                let class = &self.classes[class];
                let len = self.shape(class).len();
                // SAFETY: each task has the sums of its own class and group.
                let sums = unsafe { sums.run(group * self.sums + class.sums, len) };
                self.add(group, class, &filled, scratch, sums, number == 0);
                Ok(())
            })?;
        }
        let sums = ClassSums { of: self, data: all_sums };
        sums.land(workers, landing, memory)
    }

    /// Packs what a panel's outputs read of its images.
    fn fill<T: Element, F: Accumulator>(
        &self,
        workers: &Workers,
        x: &[T],
        view: &Panel,
        panel: &mut [F],
        memory: &mut [u8],
    ) -> Result<()> {
        let reader = Reader { p: &self.p, part: &self.part, folding: &self.folding, panel: view };
        let radices = [view.images.len(), self.p.groups, self.blocks.len(), view.pieces()];
        let len = self.p.channels * self.part.axes.inputs();
        let lanes = F::best_tiles().lanes;
        let panel = Shared::new(panel);
        workers.share_out(radices.iter().product(), memory, |task, scratch| {
            let [image, group, block, piece] = digits(task, radices);
            let mut memory = LineMemory::<T::Acc, F>::take(scratch, &self.part.axes, lanes);
            let x = &x[(view.images.start + image) * len..][..len];
            let block = &self.blocks[block];
            let line_len = view.held[2] * block.width;
            for number in view.lines(piece) {
                let first = self.place(group, block, view)
                    + image * view.positions() * block.width
                    + number * line_len;
                // SAFETY: each task has lines of its own.
                let target = unsafe { panel.run(first, line_len) };
                if block.channels < block.width {
                    let positions = target.chunks_exact_mut(block.width);
                    positions.for_each(|lanes| lanes[block.channels..].fill(F::ZERO));
                }
                for piece in &block.pieces {
                    let Some(phase) = piece.phase else {
                        target.chunks_exact_mut(block.width).for_each(|at| at[piece.at] = F::ONE);
                        continue;
                    };
                    let phase = self.folding.phase(Some(phase));
                    let channels = group * self.p.channels_per_group() + piece.channels.start;
                    for start in (0..piece.channels.len()).step_by(lanes) {
                        let count = lanes.min(piece.channels.len() - start);
                        let lanes = Lanes { first: channels + start, count, step: 1 };
                        let target = &mut target[piece.at + start..];
                        let line = Line { phase, number, lanes };
                        reader.line(x, line, target, block.width, &mut memory);
                    }
                }
            }
            Ok(())
        })
    }

    /// Where a block of a group starts in a panel.
    fn place(&self, group: usize, block: &Block, view: &Panel) -> usize {
        (group * width(&self.blocks) + block.offset) * view.images.len() * view.positions()
    }

    /// Adds what a panel's segments sum to, to `new` sums as if they were 0.
    fn add<F: Accumulator>(
        &self,
        group: usize,
        class: &Class,
        Filled { view, data }: &Filled<F>,
        scratch: &mut Scratch,
        sums: &mut [F],
        new: bool,
    ) {
        let shape = self.shape(class);
        let len = shape.tile();
        let [_, windows_h, windows_w] = shape.windows;
        let tile = scratch.take::<F>(len);
        let in_line = scratch.take::<F>(len * windows_w);
        let in_plane = scratch.take::<F>(len * windows_h * windows_w);
        let [d, h, w] = self.windows_of(class, view.number);
        let [left, right] = [class.left, class.right].map(|block| {
            let block = &self.blocks[block];
            let start = self.place(group, block, view);
            &data[start..][..block.width * view.images.len() * view.positions()]
        });
        let product = Product {
            left,
            right,
            widths: [class.left, class.right].map(|block| self.blocks[block].width),
            columns: shape.width,
            rows: class.rows.clone(),
            lag: view.distance(class.lag),
        };
        d.each_sum(in_plane, sums, new, |d, in_plane, new| {
            h.each_sum(in_line, in_plane, new, |h, in_line, new| {
                w.each_sum(tile, in_line, new, |w, tile, new| {
                    let segment = [d, h, w].map(|segment| segment.positions.clone());
                    product.run(view, segment, tile, !new);
                });
            });
        });
    }
}

/// The place of these starts among those that were found so far.
fn intern(all: &mut Vec<Vec<usize>>, starts: &[usize]) -> usize {
    all.iter().position(|other| other == starts).unwrap_or_else(|| {
        all.push(starts.to_vec());
        all.len() - 1
    })
}

/// A panel with its elements.
struct Filled<'a, F> {
    view: Panel<'a>,
    data: &'a [F],
}
