//! What takes NVRTC but no GPU: every kernel compiled for every architecture.

use std::time::Instant;

use convmat::{
    Accumulator, Algorithm, Conv, CovarianceOptions, Device, Element, KernelInfo, KernelOptions,
    Layout, Operator, Pruning, Result, SparseWeight, Tensor, WeightSharing, with_axes,
};
use half::{bf16, f16};

use crate::catalogue::skipped;
use crate::shapes::{CATALOGUE, Shape};

const ARCHITECTURES: [u32; 7] = [75, 80, 86, 89, 90, 100, 120];

/// Compiled here and now: what a kernel takes is not known of one that was read from the cache.
const FRESH: KernelOptions = KernelOptions { specialise: true, wide: false, reuse: false };

/// Every operation on a layer, by every algorithm.
fn every_call<T: Element>(device: &Device, shape: &Shape) -> Result<()> {
    let zeros = |shape: &[usize]| Tensor::<T>::zeros(device, shape);
    with_axes!(shape.spatial, D => {
        let conv = shape.conv::<D>();
        let size: [usize; D] = std::array::from_fn(|axis| shape.input[3 - D + axis]);
        let x = zeros(&shape.input_shape())?;
        let weight = zeros(&shape.weight_shape())?;
        let bias = zeros(&[shape.outputs])?;
        let patches = conv.unfold(&x)?;
        conv.fold(&patches, size)?;
        conv.fold_average(&patches, size)?;
        let mut y = conv.forward(&x, &weight, None)?;
        let (mut dx, mut dw) = (zeros(x.shape())?, zeros(weight.shape())?);
        for algorithm in Algorithm::GENERAL {
            conv.forward_into(&x, &weight, Some(bias.view()), &mut y, algorithm)?;
            conv.backward_input_into(&y, &weight, &mut dx, algorithm)?;
            conv.backward_weight_into(&x, &y, &mut dw, algorithm)?;
        }
        conv.backward_bias(&y)?;
        let matrix = conv.matrix(&weight, Some(bias.view()), size)?;
        let columns = zeros(&[matrix.columns()])?;
        matrix.mul_vector(&columns)?;
        matrix.transpose()?;
        conv.gathering_filter_csr_on::<T>(device, shape.channels)?;
        matrix.mul_matrix(&columns.reshape(&[matrix.columns(), 1])?)?;
        sparse_calls::<T, D>(device, shape, &conv)
    })
}

/// Every operation with a sparse weight, of few entries as only the kernels matter.
fn sparse_calls<T: Element, const D: usize>(
    device: &Device,
    shape: &Shape,
    conv: &Conv<D>,
) -> Result<()> {
    let dense = Tensor::<T>::zeros(&Device::Cpu, &shape.weight_shape())?;
    let weight = SparseWeight::from_dense(conv, &dense, Pruning::TopK(64))?.to_device(device)?;
    let x = Tensor::zeros(device, &shape.input_shape())?;
    let y = conv.sparse_forward(&x, &weight, None)?;
    conv.sparse_backward_input(&y, &weight, shape.input_size::<D>())?;
    conv.sparse_backward_weight(&x, &y, &weight)?;
    Ok(())
}

/// By each thread for itself and by the tensor cores: what differs most between architectures.
fn two_types(device: &Device, shape: &Shape) -> Result<()> {
    every_call::<f32>(device, shape)?;
    every_call::<bf16>(device, shape)
}

fn every_type(device: &Device, shape: &Shape) -> Result<()> {
    two_types(device, shape)?;
    every_call::<f64>(device, shape)?;
    every_call::<f16>(device, shape)
}

type Work = fn(&Device, &Shape) -> Result<()>;

/// Layers that between them take every path: dense, few channels, grouped, depthwise; 1-D to 3-D.
const EVERY_PATH: [&str; 7] = ["stem", "conv2", "down", "resnext", "convnext", "c3d", "wav2vec"];

/// Layers whose kernels, when they take the geometry as arguments, are those of all: one for matrix
/// products and one for direct kernels.
const BOTH_KINDS: [&str; 2] = ["conv2", "convnext"];

fn layers(names: &'static [&str]) -> impl Iterator<Item = Shape> {
    CATALOGUE.into_iter().filter(|shape| names.contains(&shape.name)).flat_map(|shape| {
        let with = |layout| Shape { layout, ..shape };
        [with(Layout::ChannelsFirst), with(Layout::ChannelsLast)]
    })
}

/// The kernels of these layers, compiled in parallel; `None` where NVRTC or the architecture is missing.
fn compile(
    capability: u32,
    options: KernelOptions,
    names: &'static [&str],
    calls: Work,
) -> Option<Vec<KernelInfo>> {
    compile_calls(capability, options, |device| {
        layers(names).try_for_each(|shape| calls(device, &shape))
    })
}

fn compile_calls(
    capability: u32,
    options: KernelOptions,
    calls: impl FnOnce(&Device) -> Result<()>,
) -> Option<Vec<KernelInfo>> {
    let device = Device::compile_only(capability, options)
        .map_err(|reason| skipped("nvrtc", reason))
        .ok()?;
    let start = Instant::now();
    device.prepare(calls).unwrap_or_else(|error| panic!("{error}"));
    let Device::Cuda(device) = device else { unreachable!("it compiles for CUDA") };
    let kernels = device.kernels();
    println!("{device}: {} kernels in {:.1} s", kernels.len(), start.elapsed().as_secs_f64());
    Some(kernels)
}

#[test]
fn every_kernel_compiles_for_every_architecture() {
    for capability in ARCHITECTURES {
        let calls = if capability == 90 { every_type } else { two_types };
        compile(capability, KernelOptions { specialise: false, ..FRESH }, &BOTH_KINDS, calls);
    }
}

/// Of spectra: those of layers are the kernels above, those of panels are their own.
#[test]
fn kernels_of_panels_compile_for_every_architecture() {
    fn iterate<T: convmat::Accumulator>(device: &Device) -> Result<()> {
        // Two vectors at a time, and each alone, as what is not computed depends on one another.
        let matrix = Tensor::<T>::zeros(device, &[6, 5])?;
        Operator::from_dense(matrix)?.svd_lowrank(2, 0).map(drop)
    }
    let both = |device: &Device| iterate::<f32>(device).and_then(|()| iterate::<f64>(device));
    for capability in ARCHITECTURES {
        for wide in [false, true] {
            let options = KernelOptions { wide, ..FRESH };
            let Some(kernels) = compile_calls(capability, options, both) else { return };
            for entry in ["partial_dots", "total_dots"] {
                let found = kernels.iter().filter(|kernel| kernel.name.contains(entry));
                // Of one vector and of several, in either type.
                assert!(
                    found.count() >= if entry == "partial_dots" { 4 } else { 2 },
                    "{kernels:#?}"
                );
            }
        }
    }
}

/// Groups of 64 channels, and their layout: a dense layer and a depthwise one.
const KINDS: [(usize, Layout); 4] = [
    (1, Layout::ChannelsLast),
    (64, Layout::ChannelsFirst),
    (1, Layout::ChannelsFirst),
    (64, Layout::ChannelsLast),
];

/// All covariances of layers of these kinds, with strides.
fn covariances<T: Element, F: Accumulator>(
    device: &Device,
    kinds: &[(usize, Layout)],
) -> Result<()> {
    for &(groups, layout) in kinds {
        let conv = Conv::new([3, 3]).stride([2, 2]).padding([1, 1]).groups(groups).layout(layout);
        let x = Tensor::<T>::zeros(device, &layout.activation_shape(8, 64, &[28, 28]))?;
        let y = Tensor::<T>::zeros(device, &layout.activation_shape(8, 64, &[14, 14]))?;
        for sharing in [WeightSharing::Expand, WeightSharing::Reduce] {
            let options = CovarianceOptions::new().sharing(sharing);
            conv.covariance::<T, F>(&x, options.bias(true))?;
            conv.transposed_covariance::<T, F>(&y, [1, 1], options.bias(true))?;
            conv.gradient_covariance::<T, F>(&y, options)?;
        }
    }
    Ok(())
}

/// Made for each layer or not, with 32-bit indices none may spill registers.
#[test]
fn kernels_of_covariances_compile_for_every_architecture() {
    let calls = |device: &Device| {
        covariances::<f32, f32>(device, &KINDS[..2])?;
        covariances::<bf16, f32>(device, &KINDS[..1])
    };
    let others = |device: &Device| {
        covariances::<bf16, f32>(device, &KINDS)?;
        covariances::<f32, f32>(device, &KINDS[2..])?;
        covariances::<f16, f64>(device, &KINDS[..2])?;
        covariances::<f32, f64>(device, &KINDS[2..])?;
        covariances::<f64, f64>(device, &KINDS[..2])
    };
    let mut found = Vec::new();
    for capability in ARCHITECTURES {
        let options = KernelOptions { specialise: capability == 90, ..FRESH };
        let Some(kernels) = compile_calls(capability, options, calls) else { return };
        found.extend(kernels);
    }
    found.extend(compile_calls(90, FRESH, others).into_iter().flatten());
    compile_calls(90, KernelOptions { wide: true, ..FRESH }, calls);
    for entry in [
        "patch_products",
        "vector_products",
        "few_products",
        "window_sums",
        "window_totals",
        "update_tiles",
        "update_few",
        "update_apart",
        "update_bias",
    ] {
        assert!(found.iter().any(|kernel| kernel.name.contains(entry)), "{entry}");
    }
    for KernelInfo { name, registers, local_bytes, .. } in &found {
        println!("{registers:4} registers {local_bytes:4} B local  {name}");
    }
    let spilled: Vec<_> = found.iter().filter(|kernel| kernel.local_bytes > 0).collect();
    assert!(spilled.is_empty(), "{spilled:#?}");
}

#[test]
fn every_kernel_compiles_with_wide_indices() {
    compile(90, KernelOptions { specialise: false, wide: true, ..FRESH }, &BOTH_KINDS, two_types);
}

/// As GPUs run them: made for each layer. None may spill registers.
#[test]
fn specialised_kernels_do_not_spill() {
    let Some(kernels) = compile(90, FRESH, &EVERY_PATH, two_types) else { return };
    for KernelInfo { name, registers, shared_bytes, local_bytes } in &kernels {
        println!(
            "{registers:4} registers {shared_bytes:6} B shared {local_bytes:4} B local  {name}"
        );
    }
    let spilled: Vec<_> = kernels.iter().filter(|kernel| kernel.local_bytes > 0).collect();
    assert!(spilled.is_empty(), "{spilled:#?}");
}
