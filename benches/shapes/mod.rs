//! The shape catalogue: the layers every figure of this crate is quoted on, for benches and tests; and how
//! other layers are described.

#![allow(dead_code, reason = "each target that includes this file uses a part of it")]

pub mod description;

use convmat::{Conv, Layout, PaddingMode, Result};

/// A convolution layer and its input. Spatial quantities have three axes, leading ones of extent 1
/// where `spatial` is smaller.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub name: &'static str,
    pub batch: usize,
    pub channels: usize,
    pub outputs: usize,
    pub groups: usize,
    /// Number of spatial axes.
    pub spatial: usize,
    pub input: [usize; 3],
    pub kernel: [usize; 3],
    pub stride: [usize; 3],
    pub padding: [usize; 3],
    pub dilation: [usize; 3],
    pub mode: PaddingMode,
    pub layout: Layout,
}

/// N, C, H (= W), O, k, s, p, g: a square 2-D layer.
const fn image(name: &'static str, sizes: [usize; 8]) -> Shape {
    let [batch, channels, size, outputs, kernel, stride, padding, groups] = sizes;
    Shape {
        name,
        batch,
        channels,
        outputs,
        groups,
        spatial: 2,
        input: [1, size, size],
        kernel: [1, kernel, kernel],
        stride: [1, stride, stride],
        padding: [0, padding, padding],
        dilation: [1; 3],
        mode: PaddingMode::Zeros,
        layout: Layout::ChannelsFirst,
    }
}

/// ResNet-50's stem, three of its stages and a downsampling block; VGG; a 1×1; ResNeXt's grouped
/// 3×3; ConvNeXt's depthwise 7×7; AlexNet's 5×5; a 3-D and a 1-D layer; a channels-last one.
pub const CATALOGUE: [Shape; 13] = [
    image("stem", [8, 3, 224, 64, 7, 2, 3, 1]),
    image("conv2", [8, 64, 56, 64, 3, 1, 1, 1]),
    image("conv4", [8, 256, 14, 256, 3, 1, 1, 1]),
    image("conv5", [8, 512, 7, 512, 3, 1, 1, 1]),
    image("down", [8, 256, 28, 256, 3, 2, 1, 1]),
    image("vgg", [2, 128, 112, 128, 3, 1, 1, 1]),
    image("1x1", [8, 256, 56, 64, 1, 1, 0, 1]),
    image("resnext", [8, 128, 56, 128, 3, 1, 1, 32]),
    image("convnext", [8, 96, 56, 96, 7, 1, 3, 96]),
    image("5x5", [8, 96, 27, 256, 5, 1, 2, 1]),
    Shape {
        spatial: 3,
        input: [8, 28, 28],
        kernel: [3; 3],
        padding: [1; 3],
        ..image("c3d", [2, 64, 28, 128, 3, 1, 1, 1])
    },
    Shape {
        spatial: 1,
        input: [1, 1, 8000],
        kernel: [1, 1, 3],
        stride: [1, 1, 2],
        ..image("wav2vec", [4, 512, 8000, 512, 3, 2, 0, 1])
    },
    Shape { layout: Layout::ChannelsLast, ..image("notebook", [10, 8, 32, 16, 3, 1, 0, 1]) },
];

/// Layers that the catalogue lacks and users have: of few channels, channels last; MobileNet's strided depthwise 3×3;
/// a strided 1×1; a U-Net's; WaveNet's, dilated; a single image; odd numbers of channels.
pub const OTHERS: [Shape; 9] = [
    Shape { layout: Layout::ChannelsLast, ..image("small", [8, 16, 28, 32, 3, 1, 1, 1]) },
    image("mobile", [8, 96, 112, 96, 3, 2, 1, 96]),
    image("1x1s2", [8, 256, 56, 512, 1, 2, 0, 1]),
    image("unet", [1, 64, 256, 64, 3, 1, 1, 1]),
    Shape {
        spatial: 1,
        input: [1, 1, 16_000],
        kernel: [1, 1, 2],
        padding: [0; 3],
        dilation: [1, 1, 8],
        ..image("wavenet", [4, 64, 16_000, 128, 2, 1, 0, 1])
    },
    image("latency", [1, 256, 14, 256, 3, 1, 1, 1]),
    image("odd3", [8, 3, 64, 17, 3, 1, 1, 1]),
    image("odd17", [8, 17, 56, 100, 3, 1, 1, 1]),
    image("odd100", [8, 100, 28, 100, 3, 1, 1, 1]),
];

/// The convolutions of ResNet-50, each once: `[channels, input, outputs, kernel, stride]`.
pub const RESNET50: [Shape; 23] = {
    const SIZES: [[usize; 5]; 23] = [
        [3, 224, 64, 7, 2],
        [64, 56, 64, 1, 1],
        [64, 56, 64, 3, 1],
        [64, 56, 256, 1, 1],
        [256, 56, 64, 1, 1],
        [256, 56, 128, 1, 1],
        [128, 56, 128, 3, 2],
        [256, 56, 512, 1, 2],
        [128, 28, 512, 1, 1],
        [512, 28, 128, 1, 1],
        [128, 28, 128, 3, 1],
        [512, 28, 256, 1, 1],
        [256, 28, 256, 3, 2],
        [512, 28, 1024, 1, 2],
        [256, 14, 1024, 1, 1],
        [1024, 14, 256, 1, 1],
        [256, 14, 256, 3, 1],
        [1024, 14, 512, 1, 1],
        [512, 14, 512, 3, 2],
        [1024, 14, 2048, 1, 2],
        [512, 7, 2048, 1, 1],
        [2048, 7, 512, 1, 1],
        [512, 7, 512, 3, 1],
    ];
    let mut layers = [image("resnet50", [64, 3, 224, 64, 7, 2, 3, 1]); 23];
    let mut at = 0;
    while at < layers.len() {
        let [channels, size, outputs, kernel, stride] = SIZES[at];
        let sizes = [64, channels, size, outputs, kernel, stride, kernel / 2, 1];
        layers[at] = image("resnet50", sizes);
        at += 1;
    }
    layers
};

/// Matrices are assembled up to this many entries: 8 bytes each with 32-bit indices.
const MATRIX_LIMIT: usize = 120_000_000;

impl Shape {
    /// The layers that have names.
    pub fn named() -> impl Iterator<Item = Shape> {
        CATALOGUE.into_iter().chain(OTHERS)
    }

    /// The layer of this name.
    pub fn find(name: &str) -> Option<Shape> {
        Shape::named().find(|shape| shape.name == name)
    }

    /// The last D of three extents.
    fn last<const D: usize>(extents: [usize; 3]) -> [usize; D] {
        std::array::from_fn(|axis| extents[3 - D + axis])
    }

    /// The crate's description of the layer.
    pub fn conv<const D: usize>(&self) -> Conv<D> {
        Conv::new(Self::last(self.kernel))
            .stride(Self::last(self.stride))
            .padding(Self::last::<D>(self.padding))
            .padding_mode(self.mode)
            .dilation(Self::last(self.dilation))
            .groups(self.groups)
            .layout(self.layout)
    }

    /// Spatial extents of the input.
    pub fn input_size<const D: usize>(&self) -> [usize; D] {
        Self::last(self.input)
    }

    /// Spatial extents of the output, on three axes.
    pub fn output(&self) -> [usize; 3] {
        std::array::from_fn(|a| {
            let span = self.dilation[a] * (self.kernel[a] - 1) + 1;
            (self.input[a] + 2 * self.padding[a] - span) / self.stride[a] + 1
        })
    }

    /// Number of taps K.
    pub fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    /// Number of output positions L.
    pub fn positions(&self) -> usize {
        self.output().iter().product()
    }

    pub fn input_shape(&self) -> Vec<usize> {
        self.layout.activation_shape(self.batch, self.channels, &self.input[3 - self.spatial..])
    }

    pub fn output_shape(&self) -> Vec<usize> {
        self.layout.activation_shape(self.batch, self.outputs, &self.output()[3 - self.spatial..])
    }

    pub fn weight_shape(&self) -> Vec<usize> {
        let kernel = &self.kernel[3 - self.spatial..];
        self.layout.weight_shape(self.outputs, self.channels / self.groups, kernel)
    }

    pub fn patch_shape(&self) -> Vec<usize> {
        self.layout.patch_shape(self.batch, self.channels * self.taps(), self.positions())
    }

    /// Images that a batch repeats where results are checked: two, or one where that is no divisor.
    pub fn repeated(&self) -> usize {
        if self.batch.is_multiple_of(2) { 2 } else { 1 }
    }

    /// Multiplications (and additions) of one forward pass, padded taps included.
    pub fn products(&self) -> usize {
        let per_position = self.outputs * (self.channels / self.groups) * self.taps();
        self.batch * self.positions() * per_position
    }

    /// Bytes of f32 that unfold or fold cannot avoid moving: the input and the patches, once each.
    pub fn patch_bytes(&self) -> usize {
        let elements = |shape: &[usize]| shape.iter().product::<usize>();
        4 * (elements(&self.input_shape()) + elements(&self.patch_shape()))
    }

    /// Entries of the layer's matrix with a bias column.
    pub fn matrix_entries(&self) -> Result<usize> {
        let geometry = self.conv::<3>().bind(self.input)?;
        let mut entries = self.outputs * (self.channels / self.groups);
        for axis in 0..3 {
            entries *= geometry.axis(axis)?.rows()?.total();
        }
        Ok(entries + self.outputs * self.positions())
    }

    /// The layer on an input so small that its matrix has at most 1.2·10⁸ entries.
    pub fn for_matrix(&self) -> Result<Shape> {
        self.for_entries(MATRIX_LIMIT)
    }

    /// The layer on an input so small that its matrix has at most so many entries: the largest
    /// extent halved until it does, or until there is nothing to halve.
    pub fn for_entries(&self, most: usize) -> Result<Shape> {
        let mut shape = *self;
        while shape.matrix_entries()? > most {
            match shape.input.iter_mut().max() {
                Some(largest) if *largest > 1 => *largest = largest.div_ceil(2),
                _ => break,
            }
        }
        Ok(shape)
    }
}

/// Multiples of 1/8 in [−1, 1]: sums of their products are exact in f32 in any order, for every
/// shape here.
pub fn eighths(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 33) % 17) as f32 / 8.0 - 1.0
        })
        .collect()
}
