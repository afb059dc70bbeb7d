//! Sums of products of channels for many groups of few channels: the groups are the lanes of vectors.
//!
//! At each position the lanes of all images of a panel are side by side, so that a run of positions is a run
//! of vectors, and a class's sums over a segment are dot products, lane by lane, of such runs.

use std::ops::Range;

use super::cost::Cost;
use super::folding::{Folding, Segment, Windows};
use super::landing::Landing;
use super::panel::{Lanes, Line, LineMemory, Panel, Panels, Reader};
use crate::covariance::problem::{Part, Problem};
use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::geometry::ravel;
use crate::patches::pieces::digits;
use crate::plan::Pass;
use crate::product::cpu::add_dots;
use crate::workers::{Room, Scratch, Shared, Workers};

/// Sums of vectors that a task adds up for a segment, about.
const AT_A_TIME: usize = 48;

/// Two phases and a lag.
#[derive(Debug)]
struct Class {
    /// `None` for the appended 1.
    right: Option<usize>,
    lag: [isize; 3],
    /// On each axis where its windows start.
    starts: [Vec<usize>; 3],
    /// The taps of the part on the left and on the right, and their window.
    pairs: Vec<[usize; 3]>,
    /// Vectors of the sums of the classes before, of one block of groups.
    sums: usize,
}

impl Class {
    fn windows(&self) -> [usize; 3] {
        self.starts.each_ref().map(Vec::len)
    }
}

/// Classes of one left phase, whose sums a task adds up.
#[derive(Debug)]
struct Family {
    left: usize,
    classes: Range<usize>,
}

#[derive(Debug)]
pub(super) struct Groups {
    p: Problem,
    part: Part,
    pub folding: Folding,
    lanes: usize,
    classes: Vec<Class>,
    families: Vec<Family>,
    panels: Panels,
    /// For each extents of its boxes the windows of each phase on each axis.
    windows: Vec<[Vec<Windows>; 3]>,
    /// Vectors of the sums of a block of groups.
    sums: usize,
    pub cost: Cost,
}

impl Groups {
    /// The plan of one part, by a folding of its axes. `limit` is of bytes of workspace.
    pub fn new<F: Accumulator>(p: &Problem, part: &Part, folding: Folding, limit: usize) -> Self {
        let lanes = F::best_tiles().lanes;
        let blocks = p.groups.div_ceil(lanes);
        let channels = p.channels_per_group() * folding.phases() + usize::from(p.bias);
        let bytes = channels * lanes * size_of::<F>();
        let panels = Panels::new(part, &folding, p.batch, [blocks * bytes, bytes], limit);
        let windows = panels.extents.iter().map(|&extents| folding.windows(extents)).collect();
        let mut plan = Groups {
            p: p.clone(),
            part: part.clone(),
            folding,
            lanes,
            classes: Vec::new(),
            families: Vec::new(),
            panels,
            windows,
            sums: 0,
            cost: Cost::default(),
        };
        plan.classify();
        plan.count();
        plan
    }

    fn classify(&mut self) {
        let (phases, square) = (self.folding.phases(), self.p.channels_per_group().pow(2));
        for left in 0..phases {
            let mut first = self.classes.len();
            let mut vectors = 0;
            for lag in self.folding.lags() {
                let still = lag == [0; 3];
                let one = (still && self.p.bias).then_some(None);
                let last = if still { left + 1 } else { phases };
                for right in (0..last).map(Some).chain(one) {
                    let Some(starts) = self.folding.starts(left, right, lag) else { continue };
                    let pairs = self.pairs(left, right, lag, &starts);
                    let class = Class { right, lag, starts, pairs, sums: self.sums };
                    self.sums += self.tile(&class) * class.windows().iter().product::<usize>();
                    vectors += square;
                    self.classes.push(class);
                    if vectors >= AT_A_TIME {
                        let end = self.classes.len();
                        self.families.push(Family { left, classes: first..end });
                        (first, vectors) = (end, 0);
                    }
                }
            }
            if first < self.classes.len() {
                self.families.push(Family { left, classes: first..self.classes.len() });
            }
        }
    }

    /// The pairs of taps of two phases that are a lag apart, and their windows.
    fn pairs(
        &self,
        left: usize,
        right: Option<usize>,
        lag: [isize; 3],
        starts: &[Vec<usize>; 3],
    ) -> Vec<[usize; 3]> {
        let places: Vec<_> = self.part.axes.each_tap().map(|tap| self.folding.place(tap)).collect();
        let mut found = Vec::new();
        let of_left = places.iter().enumerate().filter(|(_, place)| place.0 == left);
        for (a, &(_, start)) in of_left {
            let at = |axis: usize| {
                let start = start[axis] as usize;
                starts[axis].partition_point(|&other| other < start)
            };
            let window = ravel([0, 1, 2].map(at), starts.each_ref().map(Vec::len));
            let other = [0, 1, 2].map(|axis| start[axis] + lag[axis]);
            let b = match right {
                Some(right) => places.iter().position(|&place| place == (right, other)),
                None => Some(0),
            };
            found.extend(b.map(|b| [a, b, window]));
        }
        found
    }

    /// Channels on the right of a class.
    fn columns(&self, class: &Class) -> usize {
        if class.right.is_some() { self.p.channels_per_group() } else { 1 }
    }

    /// Vectors of a class's sums over a window.
    fn tile(&self, class: &Class) -> usize {
        self.p.channels_per_group() * self.columns(class)
    }

    fn blocks(&self) -> usize {
        self.p.groups.div_ceil(self.lanes)
    }

    /// Virtual channels of a group.
    pub fn virtual_channels(&self) -> usize {
        self.p.channels_per_group() * self.folding.phases() + usize::from(self.p.bias)
    }

    /// The windows of a left phase.
    fn windows_of(&self, left: usize, number: usize) -> [&Windows; 3] {
        let phase = self.folding.phase(Some(left));
        [0, 1, 2].map(|axis| &self.windows[number][axis][phase[axis]])
    }

    fn count(&mut self) {
        let (mut products, mut moves) = (0.0, 0.0);
        for panel in self.panels.each() {
            let images = panel.images.len() as f64;
            moves += images * (panel.positions() * self.virtual_channels()) as f64;
            for family in &self.families {
                let windows = self.windows_of(family.left, panel.number);
                for class in &self.classes[family.classes.clone()] {
                    let (mut positions, mut pieces) = ([0; 3], [0; 3]);
                    for axis in 0..3 {
                        for segment in &windows[axis].segments {
                            if !windows[axis].within(segment, &class.starts[axis]).is_empty() {
                                positions[axis] += segment.positions.len();
                                pieces[axis] += 1;
                            }
                        }
                    }
                    // Every run loads and stores its sums.
                    let [d, h, w] = positions.map(|positions| positions as f64);
                    let runs = d * h * f64::from(pieces[2]);
                    products += self.tile(class) as f64 * (images * d * h * w + 2.0 * runs);
                }
            }
        }
        moves += self.sums as f64;
        let lanes = (self.blocks() * self.lanes) as f64;
        self.cost = Cost { products: lanes * products, moves: lanes * moves };
    }

    /// Elements of the largest panel.
    pub fn panel_len(&self) -> usize {
        self.blocks() * self.virtual_channels() * self.panels.positions() * self.lanes
    }

    /// Vectors of a family's sums over a segment; with those over windows of the last axis, and over
    /// windows of the last two.
    fn buffers(&self, family: &Family) -> [usize; 3] {
        let mut found = [0; 3];
        for class in &self.classes[family.classes.clone()] {
            let (tile, [_, h, w]) = (self.tile(class), class.windows());
            found = [found[0] + tile, found[1] + tile * w, found[2] + tile * h * w];
        }
        found
    }

    pub fn workers<T: Element, F: Accumulator>(&self, passes: &mut Vec<Pass>) -> Workers {
        let tasks = self.blocks() * self.families.len();
        let own = self.families.iter().map(|family| {
            let vectors = self.buffers(family);
            let [_, terms, _] = vectors;
            let room =
                vectors.iter().fold(Room::default(), |room, n| room.and::<F>(n * self.lanes));
            room.and::<usize>(terms.max(vectors[0]))
        });
        let own = own.fold(Room::default(), Room::or);
        let own = own.or(LineMemory::<T::Acc, F>::room(&self.part.axes, self.lanes));
        let sums = self.blocks() * self.sums * self.lanes;
        let common = Room::default().and::<F>(self.panel_len()).and::<F>(sums);
        let (channels, panels) = (self.virtual_channels(), self.panels.count());
        let fills = self.blocks() * channels * self.panels.pieces();
        let how = format!("{panels} panels of {channels} virtual channels a group");
        passes.push(Pass::on_cpu("pack", fills).by(how));
        let how = format!("dot products in lanes of {} groups", self.lanes);
        passes.push(Pass::on_cpu("multiply", tasks).by(how));
        Workers::new(tasks.max(fills), own).with_common(common)
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
        let per_block = self.sums * self.lanes;
        let all_sums = common.take::<F>(self.blocks() * per_block);
        all_sums.fill(F::ZERO);
        let radices = [self.blocks(), self.families.len()];
        let sums = Shared::new(&mut *all_sums);
        for view in self.panels.each() {
            self.fill(workers, x, &view, panel, memory)?;
            let len = self.virtual_channels() * view.positions() * view.images.len() * self.lanes;
            let (view, panel) = (&view, &*panel);
            workers.share_out(radices.iter().product(), memory, |task, scratch| {
                let [block, family] = digits(task, radices);
                let family = &self.families[family];
                let first = self.classes[family.classes.start].sums;
                let end = self.classes.get(family.classes.end).map_or(self.sums, |c| c.sums);
                let start = block * per_block + first * self.lanes;
                // SAFETY: each task has the sums of its own family and block.
                let sums = unsafe { sums.run(start, (end - first) * self.lanes) };
                self.add(family, view, &panel[block * len..][..len], scratch, sums);
                Ok(())
            })?;
        }
        let all_sums = &*all_sums;
        workers.share_out(radices.iter().product(), memory, |task, _| {
            let [block, family] = digits(task, radices);
            let family = &self.families[family];
            for class in &self.classes[family.classes.clone()] {
                self.land(block, family.left, class, &all_sums[block * per_block..], landing);
            }
            Ok(())
        })
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
        let [depth, height, width] = view.held;
        let radices = [self.blocks(), self.virtual_channels(), view.pieces()];
        let per_group = self.p.channels_per_group();
        let len = self.p.channels * self.part.axes.inputs();
        let pitch = view.images.len() * self.lanes;
        let panel = Shared::new(panel);
        workers.share_out(radices.iter().product(), memory, |task, scratch| {
            let [block, channel, piece] = digits(task, radices);
            let mut memory = LineMemory::<T::Acc, F>::take(scratch, &self.part.axes, self.lanes);
            let groups = block * self.lanes..((block + 1) * self.lanes).min(self.p.groups);
            for number in view.lines(piece) {
                let row = (block * self.virtual_channels() + channel) * depth * height + number;
                // SAFETY: each task has lines of its own.
                let target = unsafe { panel.run(row * width * pitch, width * pitch) };
                let phase = channel / per_group;
                if phase == self.folding.phases() {
                    target.fill(F::ONE);
                    continue;
                }
                if groups.len() < self.lanes {
                    target.fill(F::ZERO);
                }
                let first = groups.start * per_group + channel % per_group;
                let lanes = Lanes { first, count: groups.len(), step: per_group };
                let line = Line { phase: self.folding.phase(Some(phase)), number, lanes };
                for (image, n) in view.images.clone().enumerate() {
                    let (x, target) = (&x[n * len..][..len], &mut target[image * self.lanes..]);
                    reader.line(x, line, target, pitch, &mut memory);
                }
            }
            Ok(())
        })
    }

    /// Adds what a panel's segments sum to, in the panel of a block of groups.
    fn add<F: Accumulator>(
        &self,
        family: &Family,
        view: &Panel,
        panel: &[F],
        scratch: &mut Scratch,
        sums: &mut [F],
    ) {
        let pitch = view.images.len() * self.lanes;
        let (lanes, rows) = (self.lanes, self.p.channels_per_group());
        let [terms, in_line, in_plane] = self.buffers(family);
        let tiles = scratch.take::<F>(terms * lanes);
        let in_line = scratch.take::<F>(in_line * lanes);
        let in_plane = scratch.take::<F>(in_plane * lanes);
        let starts = scratch.take::<usize>(terms / rows);
        let classes = &self.classes[family.classes.clone()];
        let [d, h, w] = self.windows_of(family.left, view.number);
        let plane = view.positions() * pitch;
        let within = |class: &Class, axis: usize, segment: &Segment| {
            [d, h, w][axis].within(segment, &class.starts[axis])
        };
        for segment_d in &d.segments {
            in_plane.fill(F::ZERO);
            for segment_h in &h.segments {
                in_line.fill(F::ZERO);
                for segment_w in &w.segments {
                    let of = [segment_d, segment_h, segment_w];
                    let here = |class: &&Class| {
                        (0..3).all(|axis| !within(class, axis, of[axis]).is_empty())
                    };
                    let mut count = 0;
                    for class in classes.iter().filter(here) {
                        let lag = view.distance(class.lag);
                        let phase = class.right.unwrap_or(self.folding.phases());
                        for channel in 0..self.columns(class) {
                            starts[count] = (phase * rows + channel) * plane + lag as usize * pitch;
                            count += 1;
                        }
                    }
                    if count == 0 {
                        continue;
                    }
                    let tiles = &mut tiles[..rows * count * lanes];
                    tiles.fill(F::ZERO);
                    let len = segment_w.positions.len() * pitch;
                    for d in segment_d.positions.clone() {
                        for h in segment_h.positions.clone() {
                            let line = (d * view.held[1] + h) * view.held[2];
                            let at = (line + segment_w.positions.start) * pitch;
                            let left = &panel[family.left * rows * plane + at..];
                            let right = &panel[at..];
                            add_dots(left, plane, right, &starts[..count], len, rows, tiles);
                        }
                    }
                    let (mut column, mut first) = (0, 0);
                    for class in classes {
                        let (tile, [.., windows]) = (self.tile(class), class.windows());
                        if here(&class) {
                            let columns = self.columns(class);
                            for window in within(class, 2, segment_w) {
                                for row in 0..rows {
                                    let target = first + (window * rows + row) * columns;
                                    let from = row * count + column;
                                    add(
                                        in_line,
                                        target * lanes,
                                        &tiles[from * lanes..],
                                        columns * lanes,
                                    );
                                }
                            }
                            column += columns;
                        }
                        first += tile * windows;
                    }
                }
                let (mut from, mut first) = (0, 0);
                for class in classes {
                    let [_, windows_h, windows_w] = class.windows();
                    let len = self.tile(class) * windows_w;
                    for window in within(class, 1, segment_h) {
                        let target = first + window * len;
                        add(in_plane, target * lanes, &in_line[from * lanes..], len * lanes);
                    }
                    (from, first) = (from + len, first + len * windows_h);
                }
            }
            let (mut from, mut first) = (0, 0);
            for class in classes {
                let [windows_d, windows_h, windows_w] = class.windows();
                let len = self.tile(class) * windows_h * windows_w;
                for window in within(class, 0, segment_d) {
                    add(
                        sums,
                        (first + window * len) * lanes,
                        &in_plane[from * lanes..],
                        len * lanes,
                    );
                }
                (from, first) = (from + len, first + len * windows_d);
            }
        }
    }

    /// Writes the sums of a class to the matrices of a block of groups.
    fn land<F: Accumulator>(
        &self,
        block: usize,
        left: usize,
        class: &Class,
        sums: &[F],
        landing: &Landing<F>,
    ) {
        let (p, taps) = (&self.p, &self.part.taps);
        let (rows, columns) = (p.channels_per_group(), self.columns(class));
        let square = class.lag == [0; 3] && class.right == Some(left);
        let groups = block * self.lanes..((block + 1) * self.lanes).min(p.groups);
        for &[a, b, window] in &class.pairs {
            for c in 0..rows {
                let others = if square { c + 1 } else { columns };
                for other in 0..others {
                    let at = class.sums + (window * rows + c) * columns + other;
                    let row = p.row_of(c, taps[a]);
                    let column = match class.right {
                        Some(_) => p.row_of(other, taps[b]),
                        None => p.entries(),
                    };
                    for (group, &sum) in groups.clone().zip(&sums[at * self.lanes..]) {
                        // SAFETY: each pair of entries is in one class, and there once.
                        unsafe { landing.put_one(group, row, column, sum) };
                    }
                }
            }
        }
    }
}

/// Adds `len` sums to those that start at `at`.
fn add<F: Accumulator>(target: &mut [F], at: usize, sums: &[F], len: usize) {
    target[at..][..len].iter_mut().zip(sums).for_each(|(target, &sum)| *target += sum);
}
