//! Sums of products of channels, a block of them against another at a time: the channels are the lanes of
//! vectors.
//!
//! A class is two blocks of virtual channels and a lag. Its sums over all segments of its windows are
//! products of matrices whose operands lie in the panel as they are: a term is a position. Sums over windows
//! are then added up, axis by axis, from those over segments; nothing is subtracted.

use std::ops::Range;

use super::folding::{Folding, Segment, Windows};
use super::landing::Landing;
use super::panel::{CACHED, LINES, Lanes, LineMemory, PANEL, Reader};
use crate::covariance::problem::{Part, Problem};
use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::geometry::{Box3, volume};
use crate::patches::pieces::digits;
use crate::patches::slab::boxes;
use crate::plan::Pass;
use crate::product::cpu::{Products, RegisterTiles, Step, tile};
use crate::workers::{Room, Scratch, Shared, Workers};

/// Virtual channels of a block, at most.
const BLOCK: usize = 64;
/// Virtual channels that a task takes of its left block, at most.
const ROWS: usize = 32;
/// Terms of a product that are summed up in registers.
const TERMS: usize = 128;

/// The channels of a group in one phase, from some channel on.
#[derive(Clone, Debug)]
struct Piece {
    /// `None` for the appended 1.
    phase: Option<usize>,
    channels: Range<usize>,
    /// The first one's place in its block.
    at: usize,
}

/// Virtual channels that are side by side.
#[derive(Clone, Debug)]
struct Block {
    pieces: Vec<Piece>,
    channels: usize,
    /// The same rounded up to whole vectors.
    width: usize,
    /// Elements of the blocks before, at one position.
    offset: usize,
}

/// Two blocks and a lag.
#[derive(Debug)]
struct Class {
    left: usize,
    /// Those of the left block.
    rows: Range<usize>,
    right: usize,
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
    folding: Folding,
    blocks: Vec<Block>,
    classes: Vec<Class>,
    /// For each extent of boxes that there is, the windows of each axis, by starts.
    windows: Vec<[Vec<Windows>; 3]>,
    boxes: Vec<(Box3, usize)>,
    /// Images of a panel; more than one only where it has all their outputs.
    images: usize,
    /// Elements of the sums of a group.
    sums: usize,
    /// Multiplications and additions of all products, and elements of panels that are filled.
    pub cost: Cost,
}

/// What a plan does, counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    /// Multiplications with an addition, of whole vectors.
    pub products: f64,
    /// Elements that are packed, written or added besides.
    pub moves: f64,
}

impl Cost {
    /// In units of a multiplication. An element that is moved takes about as long as so many.
    pub fn total(&self) -> f64 {
        self.products + 40.0 * self.moves
    }
}

impl Channels {
    /// The plan of one part, by a folding of its axes. `limit` is of bytes of workspace.
    pub fn new<T: Element, F: Accumulator>(
        p: &Problem,
        part: &Part,
        folding: Folding,
        limit: usize,
    ) -> Self {
        let lanes = F::best_tiles().lanes;
        let blocks = blocks(p, &folding, lanes);
        let width: usize = blocks.iter().map(|block| block.width).sum();
        let widest = blocks.iter().map(|block| block.width).max().unwrap_or(lanes);
        let bytes = size_of::<F>();
        let all = p.groups * width * bytes;
        let fits = |outputs: &Box3| {
            let positions: usize = folding.extents(extents(outputs)).iter().product();
            2 * widest * bytes * positions <= CACHED && all * positions <= PANEL.min(limit)
        };
        let boxes = boxes(part.axes.output_extents(), fits);
        let positions: usize = folding.extents(extents(&boxes[0])).iter().product();
        let images = match boxes.len() {
            1 => (CACHED / (2 * widest * bytes * positions))
                .min(PANEL.min(limit) / (all * positions).max(1))
                .clamp(1, p.batch.max(1)),
            _ => 1,
        };
        let mut plan = Channels {
            p: p.clone(),
            part: part.clone(),
            folding,
            blocks,
            classes: Vec::new(),
            windows: Vec::new(),
            boxes: Vec::new(),
            images,
            sums: 0,
            cost: Cost::default(),
        };
        let mut lens: Vec<[usize; 3]> = Vec::new();
        for outputs in boxes {
            let len = extents(&outputs);
            let number = lens.iter().position(|&other| other == len).unwrap_or(lens.len());
            if number == lens.len() {
                lens.push(len);
            }
            plan.boxes.push((outputs, number));
        }
        plan.classify(&lens);
        plan.count();
        plan
    }

    /// Finds all classes, and their windows for boxes of these extents.
    fn classify(&mut self, lens: &[[usize; 3]]) {
        let mut starts: [Vec<Vec<usize>>; 3] = Default::default();
        let mut classes = Vec::new();
        for lag in self.folding.lags() {
            let still = lag == [0; 3];
            for (left, block) in self.blocks.iter().enumerate() {
                if block.is_one() {
                    continue;
                }
                for (right, other) in self.blocks.iter().enumerate() {
                    let once = right <= left || other.is_one();
                    if if still { !once } else { other.is_one() } {
                        continue;
                    }
                    for start in (0..block.channels).step_by(ROWS) {
                        let rows = start..(start + ROWS).min(block.channels);
                        let Some(of) = self.starts(block, &rows, other, lag) else { continue };
                        let windows = [0, 1, 2].map(|axis| intern(&mut starts[axis], &of[axis]));
                        let class = Class { left, rows, right, lag, windows, sums: self.sums };
                        let counts = of.each_ref().map(Vec::len);
                        let (rows, width) = (class.rows.len(), other.width);
                        self.sums += Shape { rows, width, windows: counts }.len();
                        classes.push(class);
                    }
                }
            }
        }
        self.classes = classes;
        let windows = |len: &[usize; 3]| {
            [0, 1, 2].map(|axis| {
                let of = starts[axis].iter();
                of.map(|starts| Windows::new(starts.clone(), len[axis])).collect()
            })
        };
        self.windows = lens.iter().map(windows).collect();
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
                let (l, r) = (self.folding.phase(left.phase), self.folding.phase(right.phase));
                let pairs = [0, 1, 2]
                    .map(|axis| self.folding.axes[axis].pairs(l[axis], r[axis], lag[axis]));
                if pairs.iter().any(|pairs| pairs.is_empty()) {
                    continue;
                }
                for (found, pairs) in found.iter_mut().zip(pairs) {
                    found.extend(pairs.iter().map(|pair| pair.start));
                }
            }
        }
        for starts in &mut found {
            starts.sort_unstable();
            starts.dedup();
        }
        (!found[0].is_empty()).then_some(found)
    }

    fn count(&mut self) {
        let images = self.p.batch as f64;
        let mut cost = Cost::default();
        let mut segments = 0.0;
        for (outputs, number) in &self.boxes {
            let positions: usize = self.folding.extents(extents(outputs)).iter().product();
            let width: usize = self.blocks.iter().map(|block| block.width).sum();
            cost.moves += images * (positions * width) as f64;
            for class in &self.classes {
                let windows = self.windows_of(class, *number);
                let tile = (class.rows.len() * self.blocks[class.right].width) as f64;
                let terms: usize = windows.iter().map(|windows| windows.positions()).product();
                cost.products += images * tile * terms as f64;
                let pieces: usize = windows.iter().map(|w| w.segments.len()).product();
                segments += tile * pieces as f64;
            }
        }
        let panels = self.panels_of_images() as f64;
        // Sums of segments are added up, a vector at a time; sums of windows are written one by one.
        cost.moves += 0.1 * panels * segments + self.sums as f64;
        let groups = self.p.groups as f64;
        self.cost = Cost { products: groups * cost.products, moves: groups * cost.moves };
    }

    fn windows_of(&self, class: &Class, number: usize) -> [&Windows; 3] {
        [0, 1, 2].map(|axis| &self.windows[number][axis][class.windows[axis]])
    }

    fn panels_of_images(&self) -> usize {
        self.p.batch.div_ceil(self.images)
    }

    /// Number of panels.
    fn panels(&self) -> usize {
        self.panels_of_images() * self.boxes.len()
    }

    /// Elements of the largest panel.
    fn panel_len(&self) -> usize {
        let width: usize = self.blocks.iter().map(|block| block.width).sum();
        let positions =
            |outputs: &Box3| -> usize { self.folding.extents(extents(outputs)).iter().product() };
        let largest = self.boxes.iter().map(|(outputs, _)| positions(outputs)).max().unwrap_or(0);
        self.p.groups * width * largest * self.images
    }

    /// Elements of a task's memory besides the sums.
    fn buffers(&self) -> usize {
        let of = |class: &Class| {
            let [_, h, w] = self.shape(class).windows;
            self.shape(class).tile() * (1 + w + h * w)
        };
        self.classes.iter().map(of).max().unwrap_or(0)
    }

    fn shape(&self, class: &Class) -> Shape {
        let windows = self.windows_of(class, 0).map(Windows::len);
        Shape { rows: class.rows.len(), width: self.blocks[class.right].width, windows }
    }

    /// What it takes, and how it goes.
    pub fn workers<T: Element, F: Accumulator>(&self, passes: &mut Vec<Pass>) -> Workers {
        let lanes = F::best_tiles().lanes;
        let tasks = self.p.groups * self.classes.len();
        let own = Room::default().and::<F>(self.buffers());
        let own = own.or(LineMemory::<T::Acc, F>::room(&self.part.axes, lanes));
        let common = Room::default().and::<F>(self.panel_len()).and::<F>(self.p.groups * self.sums);
        let widest = self.blocks.iter().map(|block| block.width).max().unwrap_or(0);
        let (fills, panels) = (self.fills(self.images), self.panels());
        let how = format!("{panels} panels of {} virtual channels", self.virtual_channels());
        passes.push(Pass::on_cpu("pack", fills).by(how));
        let how = format!("register tiles of {lanes} channels");
        passes.push(Pass::on_cpu("multiply", tasks).by(how).with_tile([ROWS, widest]));
        Workers::new(tasks.max(fills), own).with_common(common)
    }

    pub fn virtual_channels(&self) -> usize {
        self.blocks.iter().map(|block| block.channels).sum()
    }

    /// Tasks of filling a panel.
    fn fills(&self, images: usize) -> usize {
        let [d, h, _] = self.folding.extents(extents(&self.boxes[0].0));
        images * self.p.groups * self.blocks.len() * (d * h).div_ceil(LINES)
    }

    /// Adds all sums of the part to the matrices.
    pub fn run<T: Element, F: Accumulator>(
        &self,
        workers: &Workers,
        x: &[T],
        landing: &Landing<F>,
        memory: &mut [u8],
    ) -> Result<()> {
        let (mut common, memory) = workers.split(memory);
        let panel = common.take::<F>(self.panel_len());
        let sums = Shared::new(common.take::<F>(self.p.groups * self.sums));
        let (panels, tasks) = (self.panels(), self.p.groups * self.classes.len());
        for number in 0..panels {
            let [images, of] = digits(number, [self.panels_of_images(), self.boxes.len()]);
            let images = images * self.images..((images + 1) * self.images).min(self.p.batch);
            let (outputs, lens) = &self.boxes[of];
            let view =
                View { images: images.len(), extents: self.folding.extents(extents(outputs)) };
            let reader = Reader { p: &self.p, part: &self.part, folding: &self.folding, outputs };
            self.fill(workers, x, images, &reader, &view, panel, memory)?;
            let panel = &*panel;
            workers.share_out(tasks, memory, |task, scratch| {
                let [group, class] = digits(task, [self.p.groups, self.classes.len()]);
                let class = &self.classes[class];
                let shape = self.shape(class);
                // SAFETY: each task has the sums of its own class and group.
                let sums = unsafe { sums.run(group * self.sums + class.sums, shape.len()) };
                if number == 0 {
                    sums.fill(F::ZERO);
                }
                self.add(group, class, *lens, &view, panel, scratch, sums);
                if number + 1 == panels {
                    self.land(group, class, &shape, sums, landing);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Packs what the panel's outputs read of its images.
    fn fill<T: Element, F: Accumulator>(
        &self,
        workers: &Workers,
        x: &[T],
        images: Range<usize>,
        reader: &Reader,
        view: &View,
        panel: &mut [F],
        memory: &mut [u8],
    ) -> Result<()> {
        let [depth, height, width] = view.extents;
        let pieces = (depth * height).div_ceil(LINES);
        let radices = [images.len(), self.p.groups, self.blocks.len(), pieces];
        let per_group = self.p.channels_per_group();
        let len = self.p.channels * self.part.axes.inputs();
        let lanes = F::best_tiles().lanes;
        let panel = Shared::new(panel);
        workers.share_out(radices.iter().product(), memory, |task, scratch| {
            let [image, group, block, piece] = digits(task, radices);
            let mut memory = LineMemory::<T::Acc, F>::take(scratch, &self.part.axes, lanes);
            let x = &x[(images.start + image) * len..][..len];
            let block = &self.blocks[block];
            for line in piece * LINES..((piece + 1) * LINES).min(depth * height) {
                let first = self.place(group, block, view)
                    + (image * depth * height + line) * width * block.width;
                // SAFETY: each task has lines of its own.
                let target = unsafe { panel.run(first, width * block.width) };
                if block.channels < block.width {
                    let padding = target.chunks_exact_mut(block.width);
                    padding.for_each(|lanes| lanes[block.channels..].fill(F::ZERO));
                }
                for piece in &block.pieces {
                    let Some(phase) = piece.phase else {
                        target.chunks_exact_mut(block.width).for_each(|at| at[piece.at] = F::ONE);
                        continue;
                    };
                    let phase = self.folding.phase(Some(phase));
                    let at = [line / height, line % height];
                    for start in (0..piece.channels.len()).step_by(lanes) {
                        let count = lanes.min(piece.channels.len() - start);
                        let first = group * per_group + piece.channels.start + start;
                        let from = Lanes { first, count, step: 1 };
                        let target = &mut target[piece.at + start..];
                        let step = block.width;
                        reader.line(x, phase, at, from, width, target, step, &mut memory);
                    }
                }
            }
            Ok(())
        })
    }

    /// Where a block of a group starts in a panel.
    fn place(&self, group: usize, block: &Block, view: &View) -> usize {
        let width: usize = self.blocks.iter().map(|block| block.width).sum();
        (group * width + block.offset) * view.images * view.positions()
    }

    /// Adds what a panel's segments sum to.
    fn add<F: Accumulator>(
        &self,
        group: usize,
        class: &Class,
        lens: usize,
        view: &View,
        panel: &[F],
        scratch: &mut Scratch,
        sums: &mut [F],
    ) {
        let shape = self.shape(class);
        let len = shape.tile();
        let [_, windows_h, windows_w] = shape.windows;
        let tile = scratch.take::<F>(len);
        let in_line = scratch.take::<F>(len * windows_w);
        let in_plane = scratch.take::<F>(len * windows_h * windows_w);
        let [d, h, w] = self.windows_of(class, lens);
        let [left, right] = [class.left, class.right].map(|block| {
            let block = &self.blocks[block];
            let start = self.place(group, block, view);
            &panel[start..][..block.width * view.images * view.positions()]
        });
        let product = Product {
            left,
            right,
            widths: [self.blocks[class.left].width, shape.width],
            rows: class.rows.clone(),
            lag: view.distance(class.lag),
        };
        for segment_d in &d.segments {
            in_plane.fill(F::ZERO);
            for segment_h in &h.segments {
                in_line.fill(F::ZERO);
                for segment_w in &w.segments {
                    let positions = [segment_d, segment_h, segment_w];
                    product.run(view, positions.map(|segment| segment.positions.clone()), tile);
                    add_to(segment_w, tile, in_line);
                }
                add_to(segment_h, in_line, in_plane);
            }
            add_to(segment_d, in_plane, sums);
        }
    }

    /// Writes the sums of a class to the matrix.
    fn land<F: Accumulator>(
        &self,
        group: usize,
        class: &Class,
        shape: &Shape,
        sums: &[F],
        landing: &Landing<F>,
    ) {
        let (left, right) = (&self.blocks[class.left], &self.blocks[class.right]);
        let square = class.lag == [0; 3] && class.left == class.right;
        let windows = self.windows_of(class, 0);
        let [_, extent_h, extent_w] = self.part.axes.tap_extents();
        for l in left.pieces_in(&class.rows) {
            for r in &right.pieces {
                let phases = (self.folding.phase(l.phase), self.folding.phase(r.phase));
                let pairs = [0, 1, 2].map(|axis| {
                    let (l, r) = (phases.0[axis], phases.1[axis]);
                    self.folding.axes[axis].pairs(l, r, class.lag[axis])
                });
                for d in pairs[0] {
                    for h in pairs[1] {
                        for w in pairs[2] {
                            let at = [d, h, w];
                            let at = [0, 1, 2].map(|axis| windows[axis].place(at[axis].start));
                            let window =
                                (at[0] * shape.windows[1] + at[1]) * shape.windows[2] + at[2];
                            let tile = &sums[window * shape.tile()..][..shape.tile()];
                            let tap = |d: usize, h: usize, w: usize| {
                                self.part.taps[(d * extent_h + h) * extent_w + w]
                            };
                            let taps =
                                (tap(d.left, h.left, w.left), tap(d.right, h.right, w.right));
                            for c in l.channels.clone() {
                                let place = l.at + c - l.channels.start;
                                let Some(row) = place.checked_sub(class.rows.start) else {
                                    continue;
                                };
                                if row >= class.rows.len() {
                                    break;
                                }
                                let sums = &tile[row * shape.width..][..shape.width];
                                let row = self.p.row_of(c, taps.0);
                                for (index, other) in r.channels.clone().enumerate() {
                                    let lane = r.at + index;
                                    if square && lane > place {
                                        break;
                                    }
                                    let column = match r.phase {
                                        Some(_) => self.p.row_of(other, taps.1),
                                        None => self.p.entries(),
                                    };
                                    // SAFETY: each pair of entries is in one class, and there once.
                                    unsafe { landing.put(group, row, column, sums[lane]) };
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Adds the sums over a segment to those of the windows that it is in.
fn add_to<F: Accumulator>(segment: &Segment, sums: &[F], windows: &mut [F]) {
    for window in segment.windows.clone() {
        let target = &mut windows[window * sums.len()..][..sums.len()];
        target.iter_mut().zip(sums).for_each(|(target, &sum)| *target += sum);
    }
}

/// The place of these starts among those that were found so far.
fn intern(all: &mut Vec<Vec<usize>>, starts: &[usize]) -> usize {
    all.iter().position(|other| other == starts).unwrap_or_else(|| {
        all.push(starts.to_vec());
        all.len() - 1
    })
}

fn extents(outputs: &Box3) -> [usize; 3] {
    outputs.each_ref().map(Range::len)
}

/// The virtual channels of a group, phase by phase, cut into blocks; the appended 1 has its own.
fn blocks(p: &Problem, folding: &Folding, lanes: usize) -> Vec<Block> {
    let per_group = p.channels_per_group();
    let all = per_group * folding.phases();
    let most = BLOCK.max(lanes);
    let (mut blocks, mut offset): (Vec<Block>, _) = (Vec::new(), 0);
    for start in (0..all).step_by(most) {
        let end = (start + most).min(all);
        let mut pieces = Vec::new();
        let mut at = start;
        while at < end {
            let (phase, channel) = (at / per_group, at % per_group);
            let count = (per_group - channel).min(end - at);
            let channels = channel..channel + count;
            pieces.push(Piece { phase: Some(phase), channels, at: at - start });
            at += count;
        }
        let (channels, width) = (end - start, (end - start).next_multiple_of(lanes));
        blocks.push(Block { pieces, channels, width, offset });
        offset += width;
    }
    if p.bias {
        let pieces = vec![Piece { phase: None, channels: 0..1, at: 0 }];
        blocks.push(Block { pieces, channels: 1, width: lanes, offset });
    }
    blocks
}

impl Block {
    fn is_one(&self) -> bool {
        self.pieces[0].phase.is_none()
    }

    fn pieces_in(&self, rows: &Range<usize>) -> impl Iterator<Item = &Piece> {
        self.pieces.iter().filter(move |piece| {
            piece.at < rows.end && rows.start < piece.at + piece.channels.len()
        })
    }
}

/// A panel's images and their positions.
struct View {
    images: usize,
    extents: [usize; 3],
}

impl View {
    fn positions(&self) -> usize {
        self.extents.iter().product()
    }

    /// Positions to one that is so far away on each axis.
    fn distance(&self, lag: [isize; 3]) -> isize {
        (lag[0] * self.extents[1] as isize + lag[1]) * self.extents[2] as isize + lag[2]
    }
}

/// The operands of a class's products.
struct Product<'a, F> {
    left: &'a [F],
    right: &'a [F],
    widths: [usize; 2],
    rows: Range<usize>,
    lag: isize,
}

impl<F: Accumulator> Product<'_, F> {
    /// `tile[m][j] = Σ left[q][m]·right[q + lag][j]` over the positions of a segment of all images.
    fn run(&self, view: &View, segment: Box3, tile: &mut [F]) {
        let mut steps = [Step { weight: 0, patch: 0, rows: 0 }; TERMS];
        let (mut count, mut first) = (0, true);
        let [_, lines, width] = view.extents;
        for image in 0..view.images {
            for d in segment[0].clone() {
                for h in segment[1].clone() {
                    let line = image * view.positions() + (d * lines + h) * width;
                    for q in line + segment[2].start..line + segment[2].end {
                        let weight = q * self.widths[0] + self.rows.start;
                        let patch = (q as isize + self.lag) as usize * self.widths[1];
                        steps[count] = Step { weight, patch, rows: 0 };
                        count += 1;
                        if count == TERMS {
                            self.multiply(&steps, tile, !first);
                            (count, first) = (0, false);
                        }
                    }
                }
            }
        }
        debug_assert!(volume(&segment) * view.images > 0);
        if count > 0 {
            self.multiply(&steps[..count], tile, !first);
        }
    }

    fn multiply(&self, steps: &[Step], sums: &mut [F], add: bool) {
        let tiles = F::best_tiles();
        let (rows, width) = (self.rows.len(), self.widths[1]);
        let furthest = |field: fn(&Step) -> usize| steps.iter().map(field).max().unwrap_or(0);
        assert!(furthest(|step| step.weight) + rows <= self.left.len());
        assert!(furthest(|step| step.patch) + width <= self.right.len());
        assert!(rows * width <= sums.len() && width.is_multiple_of(tiles.lanes));
        let mut row = 0;
        while row < rows {
            let tile = tile(tiles.products, rows - row);
            let mut column = 0;
            while column < width {
                let (vectors, kernel) = tile.kernel((width - column) / tiles.lanes);
                let operands = Products {
                    steps: steps.as_ptr(),
                    count: steps.len(),
                    weights: self.left[row..].as_ptr(),
                    row: 1,
                    patches: self.right[column..].as_ptr(),
                    sums: sums[row * width + column..].as_mut_ptr(),
                    pitch: width,
                    add,
                };
                // SAFETY: by the assertions above all rows and columns of every step exist, and so do those
                // of the sums; this machine has the instructions of its best tiles.
                unsafe { kernel(operands) };
                column += vectors * tiles.lanes;
            }
            row += tile.rows;
        }
    }
}
