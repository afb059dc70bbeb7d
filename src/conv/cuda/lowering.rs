//! Convolution as matrix products over gathered patches: what `im2col` and `shifted` have in common.
//!
//! The batch is cut into tiles of as many images as the workspace has room for. A tile's patches are
//! gathered, of all taps or of one after the other, and multiplied for all its images and groups at once.
//! Sums of half types are kept in f32 until all products are in, and rounded once: on the way out, by the
//! product itself where it is the only one, else from a workspace of sums.

use std::ops::Range;

use super::finish::{Sums, finish};
use super::landing::land;
use super::products::{Operand, Products};
use crate::conv::problem::Problem;
use crate::device::cuda::{Draft, Region, THREADS, Work};
use crate::element::Element;
use crate::error::Result;
use crate::geometry::{Axes, AxisMap, Layout, unravel};
use crate::{fold, unfold};

/// Bytes of workspace, unless a single image takes more or the caller says otherwise. Enough for products that fill the largest GPU:
/// 100,000 patches of 576 f32. And little of its memory.
const WORKSPACE: usize = 256 << 20;

/// The taps that are gathered at a time.
pub(super) struct Block {
    /// The index maps of these taps alone.
    pub maps: Axes,
    /// The first of them.
    pub tap: [usize; 3],
}

impl Block {
    fn taps(&self) -> usize {
        self.maps.taps()
    }

    /// Whether the patches are the input itself.
    fn is_identity(&self) -> bool {
        self.maps.is_identity()
    }
}

/// A convolution cut into blocks of taps: all at once, or one by one.
pub(super) struct Lowering<'a> {
    pub p: &'a Problem,
    pub blocks: Vec<Block>,
    /// Bytes of workspace, unless a single image takes more.
    pub room: usize,
}

/// What a call takes, in elements.
#[derive(Clone, Copy, Debug)]
struct Workspace {
    /// Images in a tile.
    images: usize,
    patches: usize,
    sums: usize,
    /// Elements of a copy of the weight.
    weights: usize,
}

impl Workspace {
    /// As many images as `room` bytes hold, each with so many elements of `patches` (an element of so
    /// many bytes) and of sums.
    fn new(room: usize, batch: usize, patches: [usize; 2], sums: [usize; 2]) -> Self {
        let image = patches[0] * patches[1] + sums[0] * sums[1];
        let images = (room / image.max(1)).clamp(1, batch.max(1));
        Workspace { images, patches: images * patches[0], sums: images * sums[0], weights: 0 }
    }
}

impl<'a> Lowering<'a> {
    /// All taps at once: a matrix product over patches, as `y = W·A`, `dx = fold(Wᵀ·dy)`, `dW = dy·Aᵀ`.
    pub fn im2col(p: &'a Problem) -> Self {
        let blocks = vec![Block { maps: p.axes.clone(), tap: [0; 3] }];
        Lowering { p, blocks, room: WORKSPACE }
    }

    /// Tap by tap: a matrix product over what that tap alone gathers, which is a shifted copy of the input,
    /// or the input itself where there is no shift. Takes a K-th of the patches' workspace, and reads and
    /// writes the sums K times.
    pub fn shifted(p: &'a Problem) -> Result<Self> {
        let block = |tap| {
            let tap = unravel(tap, p.tap_extents());
            let [d, h, w] = &*p.axes;
            let maps = Axes::new([d.tap_axis(tap[0])?, h.tap_axis(tap[1])?, w.tap_axis(tap[2])?]);
            Ok(Block { maps, tap })
        };
        let blocks = (0..p.taps()).map(block).collect::<Result<_>>()?;
        Ok(Lowering { p, blocks, room: WORKSPACE })
    }

    /// Elements of one image's patches; 0 where they are the input itself.
    fn patches(&self) -> usize {
        let gathered = self.blocks.iter().filter(|block| !block.is_identity());
        let taps = gathered.map(Block::taps).max().unwrap_or(0);
        self.p.channels * taps * self.p.output_positions()
    }

    /// Whether the weight has to be copied with its taps outermost, where blocks are single taps.
    fn reorders(&self) -> bool {
        self.p.layout == Layout::ChannelsFirst && self.blocks.len() > 1
    }

    fn weights(&self) -> usize {
        self.p.outputs * self.p.channels_per_group() * self.p.taps()
    }

    fn forward_workspace<T: Element>(&self, bias: bool) -> Workspace {
        let p = self.p;
        let direct = is_sum::<T>() || self.blocks.len() == 1 && !bias;
        let sums = if direct { 0 } else { p.outputs * p.output_positions() };
        let room = [self.patches(), size_of::<T>()];
        let weights = if self.reorders() { self.weights() } else { 0 };
        Workspace {
            weights,
            ..Workspace::new(self.room, p.batch, room, [sums, size_of::<T::Acc>()])
        }
    }

    fn backward_input_workspace<T: Element>(&self, bias: bool) -> Workspace {
        let p = self.p;
        let direct = is_sum::<T>() || self.is_product() && !bias;
        let sums = if direct { 0 } else { p.channels * p.input_positions() };
        let bytes = size_of::<T::Acc>();
        let weights = if self.reorders() { self.weights() } else { 0 };
        Workspace {
            weights,
            ..Workspace::new(self.room, p.batch, [self.patches(), bytes], [sums, bytes])
        }
    }

    fn backward_weight_workspace<T: Element>(&self) -> Workspace {
        let p = self.p;
        let bytes = size_of::<T::Acc>();
        let room = [self.patches(), size_of::<T>()];
        match p.layout {
            Layout::ChannelsFirst => {
                Workspace::new(self.room, p.batch, room, [self.weights(), bytes])
            }
            Layout::ChannelsLast => {
                let space = Workspace::new(self.room, p.batch, room, [0, 0]);
                Workspace { sums: self.weights(), ..space }
            }
        }
    }

    /// Whether the whole convolution is one matrix product.
    pub fn is_product(&self) -> bool {
        matches!(&self.blocks[..], [block] if block.is_identity())
    }

    /// A block's part of a weight whose blocks follow each other.
    fn weight(&self, first: Operand, block: usize) -> Operand {
        first.from(block * (self.weights() / self.blocks.len()))
    }

    /// The weight, with its taps outermost where each is multiplied by itself.
    fn ordered<T: Element>(
        &self,
        draft: &mut Draft,
        w: Region<T>,
        copy: Region<T>,
    ) -> Result<Operand> {
        if !self.reorders() {
            return Ok(w.into());
        }
        let rows = w.len() / self.p.taps();
        let sums = Sums { rows: Some(rows), ..Sums::whole(w.into()) };
        // SAFETY: the weight is as large as its copy.
        unsafe { finish(draft, sums, None, copy)? };
        Ok(copy.into())
    }

    fn tiles(&self, images: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let batch = self.p.batch;
        (0..batch).step_by(images).map(move |first| first..(first + images).min(batch))
    }

    /// How some images are unfolded and folded through the taps of a block.
    fn patching(&self, block: &Block, images: usize) -> unfold::Call {
        unfold::Call {
            layout: self.p.layout,
            axes: block.maps.clone(),
            batch: images,
            channels: self.p.channels,
            groups: self.p.groups,
        }
    }

    /// The tile's patches through one block: gathered, or the input itself.
    fn gather<T: Element>(
        &self,
        draft: &mut Draft,
        block: &Block,
        tile: &Range<usize>,
        x: Region<T>,
        patches: Region<T>,
    ) -> Result<Operand> {
        let p = self.p;
        let x = x.slice(scale(tile, p.channels * p.input_positions()));
        if block.is_identity() {
            return Ok(x.into());
        }
        let len = tile.len() * p.channels * block.taps() * p.output_positions();
        let target = patches.slice(0..len);
        draft.expect(moving::<T>(x.len() + len));
        unfold::cuda::unfold(draft, &self.patching(block, tile.len()), x, target)?;
        Ok(target.into())
    }

    pub fn forward<T: Element>(
        &self,
        draft: &mut Draft,
        x: Region<T>,
        w: Region<T>,
        bias: Option<Region<T>>,
        y: Region<T>,
    ) -> Result<()> {
        let p = self.p;
        let space = self.forward_workspace::<T>(bias.is_some());
        let patches = draft.workspace("a tile of patches", space.patches)?;
        let copy = draft.workspace("a copy of the weight", space.weights)?;
        let sums = draft.workspace::<T::Acc>("a tile of sums", space.sums)?;
        let weight = self.ordered(draft, w, copy)?;
        let bias = bias.map(|bias| (bias, run(p.layout, p.output_positions())));
        for tile in self.tiles(space.images) {
            let y = y.slice(scale(&tile, p.outputs * p.output_positions()));
            let outputs = target(sums, y);
            for (index, block) in self.blocks.iter().enumerate() {
                let products = Products {
                    p,
                    taps: block.taps(),
                    images: tile.len(),
                    patches: self.gather(draft, block, &tile, x, patches)?,
                    outputs,
                    weight: self.weight(weight, index),
                    weights: 0,
                };
                // SAFETY: all are as large as the problem and the tile say.
                unsafe { products.forward(draft, index > 0)? };
            }
            // SAFETY: the sums are the tile's outputs.
            unsafe { finish(draft, Sums::whole(outputs), bias, y)? };
        }
        Ok(())
    }

    pub fn backward_input<T: Element>(
        &self,
        draft: &mut Draft,
        dy: Region<T>,
        w: Region<T>,
        bias: Option<Region<T>>,
        dx: Region<T>,
    ) -> Result<()> {
        let p = self.p;
        let space = self.backward_input_workspace::<T>(bias.is_some());
        let patches = draft.workspace::<T::Acc>("a tile of patches", space.patches)?;
        let copy = draft.workspace("a copy of the weight", space.weights)?;
        let sums = draft.workspace::<T::Acc>("a tile of sums", space.sums)?;
        let weight = self.ordered(draft, w, copy)?;
        let bias = bias.map(|bias| (bias, run(p.layout, p.input_positions())));
        for tile in self.tiles(space.images) {
            let dx = dx.slice(scale(&tile, p.channels * p.input_positions()));
            let outputs = dy.slice(scale(&tile, p.outputs * p.output_positions()));
            let inputs = target(sums, dx);
            for (index, block) in self.blocks.iter().enumerate() {
                let lands = !block.is_identity();
                let products = Products {
                    p,
                    taps: block.taps(),
                    images: tile.len(),
                    patches: if lands { patches.into() } else { inputs },
                    outputs: outputs.into(),
                    weight: self.weight(weight, index),
                    weights: 0,
                };
                // SAFETY: all are as large as the problem and the tile say.
                unsafe { products.backward_input(draft, index > 0 && !lands)? };
                if !lands {
                    continue;
                }
                let len = tile.len() * p.channels * block.taps() * p.output_positions();
                let products = patches.slice(0..len);
                // Elements that are sums themselves are summed up where they belong.
                let target = if is_sum::<T>() { dx.cast() } else { sums.slice(0..dx.len()) };
                match &self.blocks[..] {
                    [block] => {
                        // Products of taps that padding drops are not read.
                        let read = products.len() as f64 * inside(&block.maps);
                        draft.expect(moving::<T::Acc>(read as usize + target.len()));
                        let patching = self.patching(block, tile.len());
                        fold::cuda::fold(draft, &patching, products, target, false)?;
                    }
                    _ => land(draft, p, block.tap, tile.len(), products, target, index > 0)?,
                }
            }
            // SAFETY: the sums are the tile's inputs.
            unsafe { finish(draft, Sums::whole(inputs), bias, dx)? };
        }
        Ok(())
    }

    pub fn backward_weight<T: Element>(
        &self,
        draft: &mut Draft,
        x: Region<T>,
        dy: Region<T>,
        dw: Region<T>,
    ) -> Result<()> {
        let p = self.p;
        let space = self.backward_weight_workspace::<T>();
        let patches = draft.workspace("a tile of patches", space.patches)?;
        let sums = draft.workspace::<T::Acc>("weight gradients of images", space.sums)?;
        for tile in self.tiles(space.images) {
            let outputs = dy.slice(scale(&tile, p.outputs * p.output_positions()));
            for (index, block) in self.blocks.iter().enumerate() {
                let products = Products {
                    p,
                    taps: block.taps(),
                    images: tile.len(),
                    patches: self.gather(draft, block, &tile, x, patches)?,
                    outputs: outputs.into(),
                    weight: self.weight(sums.into(), index),
                    weights: self.weights(),
                };
                // SAFETY: all are as large as the problem and the tile say; the first tile is the largest.
                unsafe { products.backward_weight(draft, tile.start > 0)? };
            }
        }
        let part = self.weights();
        let rows = self.reorders().then_some(p.taps());
        let sums = Sums { first: sums.into(), parts: space.sums / part, part, rows };
        // SAFETY: the workspace has so many parts of this length.
        unsafe { finish(draft, sums, None, dw) }
    }
}

/// What a kernel is expected to do that reads and writes so many elements.
fn moving<T>(elements: usize) -> Work {
    Work::moving(elements.div_ceil(8 * THREADS as usize), (elements * size_of::<T>()) as f64)
}

/// The part of all taps of all outputs that padding does not drop.
fn inside(maps: &Axes) -> f64 {
    let part = |map: &AxisMap| {
        let read: usize = map.outputs_of_taps().iter().sum();
        read as f64 / (map.outputs() * map.taps()).max(1) as f64
    };
    maps.iter().map(part).product()
}

/// Whether elements of this type are sums themselves.
fn is_sum<T: Element>() -> bool {
    T::DTYPE == T::Acc::DTYPE
}

/// Where products go: a workspace, or the result itself where there is none.
fn target<T: Element>(sums: Region<T::Acc>, result: Region<T>) -> Operand {
    if sums.len() == 0 { result.into() } else { sums.into() }
}

/// How many neighbours of an activation are of one channel.
fn run(layout: Layout, positions: usize) -> usize {
    if layout == Layout::ChannelsFirst { positions } else { 1 }
}

fn scale(range: &Range<usize>, by: usize) -> Range<usize> {
    range.start * by..range.end * by
}

#[cfg(all(test, feature = "simulator", unix))]
mod tests {
    use half::bf16;

    use super::*;
    use crate::conv::cuda::naive;
    use crate::conv::cuda::testing::run_once;
    use crate::device::Device;
    use crate::device::cuda::{CudaDevice, DeviceBuffer};
    use crate::geometry::Conv;

    fn integers<T: Element>(device: &CudaDevice, len: usize, seed: usize) -> DeviceBuffer<T> {
        let value = |i| T::from_f64(((i * 31 + seed * 17) % 23 % 5) as f64 - 2.0);
        let data: Vec<T> = (0..len).map(value).collect();
        DeviceBuffer::from_slice(device, "integers", &data).unwrap()
    }

    /// Tiles of one image, and of two with the last alone, give what the definition gives.
    fn check<T: Element>(device: &CudaDevice, p: &Problem, mut lowering: Lowering<'_>) {
        let inputs = p.channels * p.input_positions();
        let outputs = p.outputs * p.output_positions();
        let [x, dy] = [(inputs, 1), (outputs, 2)].map(|(n, s)| integers::<T>(device, 3 * n, s));
        let weights = lowering.weights();
        let [w, b] = [(weights, 3), (p.outputs, 4)].map(|(n, s)| integers::<T>(device, n, s));
        let fresh = || [x.len(), dy.len(), weights].map(|len| integers::<T>(device, len, 5));
        let expected = fresh();
        let [dx, y, dw] = &expected;
        run_once(device, [&x, &w, &b, y], |draft, [x, w, b, y]| {
            naive::forward(draft, p, x, w, Some(b), y)
        });
        run_once(device, [&dy, &w, dx], |draft, [dy, w, dx]| {
            naive::backward_input(draft, p, dy, w, None, dx)
        });
        run_once(device, [&x, &dy, dw], |draft, [x, dy, dw]| {
            naive::backward_weight(draft, p, x, dy, dw)
        });
        let expected = expected.map(|buffer| buffer.to_vec().unwrap());
        for (room, most) in [(1, 1), (6000, 3)] {
            lowering.room = room;
            let found = fresh();
            let [dx, y, dw] = &found;
            run_once(device, [&x, &w, &b, y], |draft, [x, w, b, y]| {
                lowering.forward(draft, x, w, Some(b), y)
            });
            run_once(device, [&dy, &w, dx], |draft, [dy, w, dx]| {
                lowering.backward_input(draft, dy, w, None, dx)
            });
            run_once(device, [&x, &dy, dw], |draft, [x, dy, dw]| {
                lowering.backward_weight(draft, x, dy, dw)
            });
            assert!(lowering.forward_workspace::<T>(true).images <= most);
            let found = found.map(|buffer| buffer.to_vec().unwrap());
            assert!(found == expected, "{} in {room} bytes, {p:?}", T::DTYPE);
        }
    }

    #[test]
    fn batches_are_cut_into_tiles() {
        let Device::Cuda(device) = Device::simulator().unwrap() else { unreachable!() };
        for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
            for groups in [1, 2] {
                let conv = Conv::new([3, 2]).padding([1, 0]).groups(groups).layout(layout);
                let p = Problem::new(&conv.bind([5, 6]).unwrap(), 3, 4, 6).unwrap();
                check::<f32>(&device, &p, Lowering::im2col(&p));
                check::<f32>(&device, &p, Lowering::shifted(&p).unwrap());
                check::<bf16>(&device, &p, Lowering::im2col(&p));
                check::<bf16>(&device, &p, Lowering::shifted(&p).unwrap());
            }
        }
    }
}
