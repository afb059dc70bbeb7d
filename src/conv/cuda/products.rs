//! Matrix products over patches that lie in memory, for a tile of images and all groups.

use crate::conv::problem::Problem;
use crate::device::cuda::{Draft, Gemm, Matrix, Pointer, Region};
use crate::element::{DType, Element};
use crate::error::Result;
use crate::geometry::Layout;
use crate::product::cuda::multiply;

/// The operands of a tile's products: a patch matrix of `taps` taps, outputs, and a weight of as many taps
/// that lies like the convolution's own.
pub(super) struct Products<'a> {
    pub p: &'a Problem,
    pub taps: usize,
    pub images: usize,
    pub patches: Operand,
    pub outputs: Operand,
    pub weight: Operand,
    /// From one image's sums for the weight to the next one's, where each image has sums of its own.
    pub weights: usize,
}

/// Where an operand lies, and what its elements are.
#[derive(Clone, Copy)]
pub(super) struct Operand {
    pub pointer: Pointer,
    pub dtype: DType,
}

impl<T: Element> From<Region<T>> for Operand {
    fn from(region: Region<T>) -> Self {
        Operand { pointer: region.pointer(), dtype: T::DTYPE }
    }
}

impl Operand {
    /// The operand `elements` further on.
    pub fn from(self, elements: usize) -> Self {
        Operand { pointer: self.pointer.offset(elements * self.dtype.size()), ..self }
    }
}

/// A factor or result of the products for image n and group g, which lies n·`image` + g·`group` elements
/// after `first`.
struct Part {
    first: Operand,
    leading: usize,
    transposed: bool,
    image: usize,
    group: usize,
}

impl Products<'_> {
    /// Patch rows of a group.
    fn entries(&self) -> usize {
        self.p.channels_per_group() * self.taps
    }

    /// The tile's parts of patches, outputs and weight, with images folded into the rows where they can
    /// be: channels last, patches and outputs are matrices of rows that go on from image to image.
    fn parts(&self) -> [Part; 3] {
        let p = self.p;
        let (entries, outputs, positions) =
            (self.entries(), p.outputs_per_group(), p.output_positions());
        let part =
            |first, leading, image, group| Part { first, leading, transposed: false, image, group };
        match p.layout {
            Layout::ChannelsFirst => {
                let patches = p.groups * entries * positions;
                [
                    part(self.patches, positions, patches, entries * positions),
                    part(self.outputs, positions, p.outputs * positions, outputs * positions),
                    part(self.weight, entries, 0, outputs * entries),
                ]
            }
            Layout::ChannelsLast => [
                part(self.patches, p.groups * entries, 0, entries),
                part(self.outputs, p.outputs, 0, outputs),
                part(self.weight, p.outputs, 0, outputs),
            ],
        }
    }

    /// `outputs (+)= W·patches`
    ///
    /// # Safety
    /// The operands are memory of the device, as large as the problem and the tile say.
    pub unsafe fn forward(&self, draft: &mut Draft, add: bool) -> Result<()> {
        let [patches, outputs, weight] = self.parts();
        let (per_group, rows) = (self.p.outputs_per_group(), self.rows());
        // SAFETY: passed on to the caller.
        unsafe {
            match self.p.layout {
                Layout::ChannelsFirst => {
                    let size = [per_group, rows, self.entries()];
                    self.queue(draft, size, weight, patches, outputs, add)
                }
                Layout::ChannelsLast => {
                    let size = [rows, per_group, self.entries()];
                    self.queue(draft, size, patches, weight, outputs, add)
                }
            }
        }
    }

    /// `patches (+)= Wᵀ·outputs`
    ///
    /// # Safety
    /// As [`Products::forward`].
    pub unsafe fn backward_input(&self, draft: &mut Draft, add: bool) -> Result<()> {
        let [patches, outputs, weight] = self.parts();
        let weight = Part { transposed: true, ..weight };
        let (per_group, rows) = (self.p.outputs_per_group(), self.rows());
        // SAFETY: passed on to the caller.
        unsafe {
            match self.p.layout {
                Layout::ChannelsFirst => {
                    let size = [self.entries(), rows, per_group];
                    self.queue(draft, size, weight, outputs, patches, add)
                }
                Layout::ChannelsLast => {
                    let size = [rows, self.entries(), per_group];
                    self.queue(draft, size, outputs, weight, patches, add)
                }
            }
        }
    }

    /// `weight (+)= outputs·patchesᵀ`: channels first, sums for each image; channels last, for all images.
    ///
    /// # Safety
    /// As [`Products::forward`].
    pub unsafe fn backward_weight(&self, draft: &mut Draft, add: bool) -> Result<()> {
        let [patches, outputs, weight] = self.parts();
        let patches = Part { transposed: true, ..patches };
        let (per_group, rows) = (self.p.outputs_per_group(), self.rows());
        // SAFETY: passed on to the caller.
        unsafe {
            match self.p.layout {
                Layout::ChannelsFirst => {
                    let weight = Part { image: self.weights, ..weight };
                    let size = [per_group, self.entries(), rows];
                    self.queue(draft, size, outputs, patches, weight, add)
                }
                Layout::ChannelsLast => {
                    let size = [self.entries(), per_group, rows];
                    self.queue(draft, size, patches, outputs, weight, add)
                }
            }
        }
    }

    /// Positions in a product.
    fn rows(&self) -> usize {
        match self.p.layout {
            Layout::ChannelsFirst => self.p.output_positions(),
            Layout::ChannelsLast => self.p.output_positions() * self.images,
        }
    }

    /// Queues `c (+)= a·b` for every group and, channels first, image: in one call if all three go on
    /// evenly from an image's last group to the next image, else in the fewest.
    unsafe fn queue(
        &self,
        draft: &mut Draft,
        [m, n, k]: [usize; 3],
        a: Part,
        b: Part,
        c: Part,
        add: bool,
    ) -> Result<()> {
        let groups = self.p.groups;
        let images = if self.p.layout == Layout::ChannelsFirst { self.images } else { 1 };
        let even = [&a, &b, &c].iter().all(|part| part.image == groups * part.group);
        let by_image: fn(&Part) -> usize = |part| part.image;
        let by_group: fn(&Part) -> usize = |part| part.group;
        // How far each product of a call, and each call, is from the last.
        let (batch, inner, calls, outer) = if even {
            (images * groups, by_group, 1, by_image)
        } else if images < groups {
            (groups, by_group, images, by_image)
        } else {
            (images, by_image, groups, by_group)
        };
        for call in 0..calls {
            let matrix = |part: &Part| Matrix {
                address: part.first.from(call * outer(part)).pointer,
                leading: part.leading,
                stride: inner(part),
                transposed: part.transposed,
            };
            let gemm = Gemm {
                dtype: a.first.dtype,
                output: c.first.dtype,
                m,
                n,
                k,
                batch,
                a: matrix(&a),
                b: matrix(&b),
                c: matrix(&c),
                alpha: 1.0,
                beta: if add { 1.0 } else { 0.0 },
                tf32: draft.rounds_to_tf32(a.first.dtype),
            };
            // SAFETY: passed on to the caller; the result overlaps neither factor, as it is another
            // operand.
            unsafe { multiply(draft, &gemm)? };
        }
        Ok(())
    }
}
