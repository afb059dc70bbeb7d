//! What is computed with sparse weights is what is computed with the dense weights that they are.

use convmat::{
    Conv, Device, Element, Error, Layout, OptionalView, PaddingMode, Pruning, SparseWeight, Tensor,
    with_axes,
};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::catalogue::{
    accelerators, cases, conv, devices, integers, last, layers, on, randoms, tensor, values,
    variants,
};
use crate::oracle::Case;

/// Operands of a case, rounded to T: x, weight, bias, dy.
struct Operands<T: Element> {
    x: Tensor<T>,
    w: SparseWeight<T>,
    b: Tensor<T>,
    dy: Tensor<T>,
}

impl<T: Element> Operands<T> {
    /// Of the weight's elements those above the threshold are stored, and some zeros.
    fn new(case: &Case, seed: u64, threshold: f64) -> Self {
        let make = |len, number| integers(len, seed.wrapping_add(number), 2);
        let dense = tensor::<T>(&case.weight_shape(), &make(case.weight_len(), 2));
        let pruning = match threshold {
            // All that there are, zeros too.
            t if t < 0.0 => Pruning::TopK(case.weight_len()),
            t => Pruning::Threshold(t),
        };
        let w = with_axes!(case.spatial, D => SparseWeight::from_dense(&conv::<D>(case), &dense, pruning));
        Operands {
            x: tensor(&case.input_shape(), &make(case.input_len(), 1)),
            w: w.unwrap(),
            b: tensor(&[case.outputs], &make(case.outputs, 3)),
            dy: tensor(&case.output_shape(), &make(case.output_len(), 4)),
        }
    }

    fn on(&self, device: &Device) -> Self {
        Operands {
            x: on(device, &self.x),
            w: self.w.clone().to_device(device).unwrap(),
            b: on(device, &self.b),
            dy: on(device, &self.dy),
        }
    }
}

/// y with and without bias, dx and dw `_into` buffers full of garbage.
fn run<T: Element, const D: usize>(case: &Case, at: &Operands<T>) -> [Tensor<T>; 4] {
    let conv = conv::<D>(case);
    let dirty = |shape: &[usize]| {
        let len = shape.iter().product();
        Tensor::from_vec(&at.x.device(), shape, vec![T::from_f64(f64::NAN); len]).unwrap()
    };
    let (mut y, mut plain) = (dirty(&case.output_shape()), dirty(&case.output_shape()));
    conv.sparse_forward_into(&at.x, &at.w, Some(at.b.view()), &mut y).unwrap();
    conv.sparse_forward_into(&at.x, &at.w, None, &mut plain).unwrap();
    let mut dx = dirty(&case.input_shape());
    conv.sparse_backward_input_into(&at.dy, &at.w, &mut dx).unwrap();
    let mut dw = dirty(&[at.w.entries()]);
    conv.sparse_backward_weight_into(&at.x, &at.dy, &at.w, &mut dw).unwrap();
    [y, plain, dx, dw]
}

fn check<T: Element>(case: &Case, device: &Device, seed: u64, threshold: f64) {
    let at = Operands::<T>::new(case, seed, threshold);
    let dense = values(&at.w.to_dense().unwrap());
    let [x, b, dy] = [&at.x, &at.b, &at.dy].map(values);
    let dw = tensor::<f64>(&case.weight_shape(), &case.backward_weight(&x, &dy));
    // The oracle's gradient at the stored entries, by the same order of elements as the weight's.
    let all = with_axes!(case.spatial, D => {
        SparseWeight::from_dense(&conv::<D>(case), &dw, Pruning::TopK(case.weight_len()))
    });
    let (all, [_, columns]) = (all.unwrap().values().to_vec().unwrap(), at.w.shape());
    let rows = at.w.indptr().windows(2).enumerate();
    let rows = rows.flat_map(|(row, ends)| vec![row; ends[1] - ends[0]]);
    let stored =
        rows.zip(at.w.indices()).map(|(row, &column)| all[row * columns + column as usize]);
    let exact = [
        case.forward(&x, &dense, Some(&b)),
        case.forward(&x, &dense, None),
        case.backward_input(&dy, &dense),
        stored.collect(),
    ];
    let at = at.on(device);
    let found = with_axes!(case.spatial, D => Ok::<_, Error>(run::<T, D>(case, &at))).unwrap();
    for (what, (found, exact)) in found.iter().zip(&exact).enumerate() {
        // Sums are exact in the accumulator; one rounding remains for the half types.
        let rounded: Vec<f64> = exact.iter().map(|&v| T::from_f64(v).to_f64()).collect();
        assert_eq!(values(found), rounded, "{} on {device}, result {what}, {case:?}", T::DTYPE);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn stored_entries_are_the_dense_weight(c in cases(), seed: u64, threshold in -1i8..2) {
        check::<f32>(&c, &Device::Cpu, seed, threshold.into());
        check::<f64>(&c, &Device::Cpu, seed, threshold.into());
        check::<f16>(&c, &Device::Cpu, seed, threshold.into());
        check::<bf16>(&c, &Device::Cpu, seed, threshold.into());
    }

    #[test]
    fn rows_of_one_entry_are_scaled_copies(c in cases(), seed: u64) {
        with_axes!(c.spatial, D => {
            check_scaled::<f32, D>(&c, &Device::Cpu, seed);
            check_scaled::<bf16, D>(&c, &Device::Cpu, seed);
            Ok::<(), Error>(())
        })?;
    }

    #[test]
    fn gathering_is_unfold_to_the_bit(c in cases(), seed: u64) {
        with_axes!(c.spatial, D => {
            check_gathering::<D>(&c, &Device::Cpu, seed);
            Ok::<(), Error>(())
        })?;
    }

    /// ⟨A·x, y⟩ = ⟨x, Aᵀ·y⟩, whatever the geometry.
    #[test]
    fn transposed_is_the_adjoint(c in cases(), seed: u64) {
        let at = Operands::<f64>::new(&c, seed, 0.0);
        let (y, dx) = with_axes!(c.spatial, D => {
            let conv = conv::<D>(&c);
            let y = conv.sparse_forward(&at.x, &at.w, None)?;
            Ok::<_, Error>((y, conv.sparse_backward_input(&at.dy, &at.w, last(c.input))?))
        })?;
        let dot = |a: &Tensor<f64>, b: &Tensor<f64>| -> f64 {
            values(a).iter().zip(values(b)).map(|(a, b)| a * b).sum()
        };
        prop_assert_eq!(dot(&y, &at.dy), dot(&at.x, &dx));
    }

    #[test]
    fn transposed_is_that_of_the_dense_weight(c in cases(), seed: u64, extra in 0usize..3) {
        with_axes!(c.spatial, D => {
            check_transposed::<f32, D>(&c, &Device::Cpu, seed, extra);
            check_transposed::<f16, D>(&c, &Device::Cpu, seed, extra);
            Ok::<(), Error>(())
        })?;
    }
}

/// Every row has at most one entry; some are empty, some have a zero or a one.
fn check_scaled<T: Element, const D: usize>(c: &Case, device: &Device, seed: u64) {
    let conv = conv::<D>(c);
    let patch = c.channels / c.groups * c.taps();
    let (starts, columns) = (integers(c.outputs, seed, 1), integers(c.outputs, seed ^ 9, 1 << 20));
    let (mut indptr, mut indices) = (vec![0], Vec::new());
    for (keep, column) in starts.into_iter().zip(columns) {
        if keep >= 0.0 {
            indices.push((column.abs() as usize % patch) as i32);
        }
        indptr.push(indices.len() as i32);
    }
    let data = integers(indices.len(), seed ^ 5, 2).into_iter().map(T::from_f64).collect();
    let weight =
        SparseWeight::from_parts(&conv, [c.outputs, patch], indptr, indices, data).unwrap();
    let (x, b) = (integers(c.input_len(), seed ^ 1, 2), integers(c.outputs, seed ^ 2, 2));
    let dense = values(&weight.to_dense().unwrap());
    let (there, weight) =
        (on(device, &tensor::<T>(&c.input_shape(), &x)), weight.to_device(device).unwrap());
    let bias = on(device, &tensor::<T>(&[c.outputs], &b));
    for bias_too in [false, true] {
        let bias = OptionalView::from(bias_too.then(|| bias.view()));
        let y = conv.sparse_forward(&there, &weight, bias).unwrap();
        let expected = c.forward(&x, &dense, bias_too.then_some(&b[..]));
        assert_eq!(values(&y), expected, "{c:?} on {device}");
    }
}

/// Any bits at all, NaNs with their payloads among them.
fn check_gathering<const D: usize>(c: &Case, device: &Device, seed: u64) {
    let conv = conv::<D>(c);
    let filter = SparseWeight::from_coo(&conv, &conv.gathering_filter_coo(c.channels).unwrap());
    let filter = filter.unwrap().to_device(device).unwrap();
    let words = integers(c.input_len(), seed, i64::from(u32::MAX >> 1));
    let odd = [0x8000_0000u32, 0x7f80_0001, 0xffc0_1234, 1];
    let bits = words.iter().enumerate().map(|(at, &word)| match at % 5 {
        0..4 => odd[at % 5],
        _ => word as i64 as u32,
    });
    let x = bits.map(f32::from_bits).collect();
    let x = Tensor::from_vec(device, &c.input_shape(), x).unwrap();
    let bits = |tensor: Tensor<f32>| -> Vec<u32> {
        tensor.view().to_vec().unwrap().iter().map(|v| v.to_bits()).collect()
    };
    let y = conv.sparse_forward(&x, &filter, None).unwrap();
    assert_eq!(bits(y), bits(conv.unfold(&x).unwrap()), "{c:?} on {device}");
}

fn check_transposed<T: Element, const D: usize>(
    c: &Case,
    device: &Device,
    seed: u64,
    extra: usize,
) {
    let conv = conv::<D>(c);
    let at = Operands::<T>::new(c, seed, 0.0);
    let dense = at.w.to_dense().unwrap();
    let bias = tensor::<T>(&[c.channels], &integers(c.channels, seed ^ 3, 2));
    let extra: [usize; D] = std::array::from_fn(|axis| {
        let axis = 3 - D + axis;
        extra % c.stride[axis].max(c.dilation[axis])
    });
    let expected = conv.transposed(&at.dy, &dense, Some(bias.view()), extra);
    let (bias, at) = (on(device, &bias), at.on(device));
    let found = conv.sparse_transposed(&at.dy, &at.w, Some(bias.view()), extra);
    match (found, expected) {
        (Ok(found), Ok(expected)) => assert_eq!(values(&found), values(&expected), "{c:?}"),
        (Err(found), Err(expected)) => assert_eq!(found.to_string(), expected.to_string()),
        (found, expected) => panic!("{found:?}, expected {expected:?}"),
    }
}

/// Kernels are compiled for every layer: the usual ones here, the unusual ones where layers are arguments.
#[test]
fn devices_compute_the_same() {
    for device in accelerators() {
        for c in layers().into_iter().step_by(3) {
            check::<f32>(&c, device, 1, 0.0);
            with_axes!(c.spatial, D => {
                check_gathering::<D>(&c, device, 3);
                check_scaled::<f32, D>(&c, device, 4);
                check_transposed::<f32, D>(&c, device, 5, 1);
                Ok::<(), Error>(())
            })
            .unwrap();
        }
        check::<f64>(&layers()[1], device, 1, 0.0);
    }
    for device in variants() {
        check::<bf16>(&layers()[0], &device, 2, 1.0);
        check::<f16>(&layers()[3], &device, 1, -1.0);
    }
}

#[cfg(feature = "simulator")]
#[test]
fn kernels_for_any_layer_compute_the_same() {
    let simulation =
        convmat::Simulation { specialise: false, wide_indices: true, ..Default::default() };
    let Ok(device) = Device::simulator_with(simulation) else { return };
    for c in layers() {
        check::<f32>(&c, &device, 1, 0.0);
        with_axes!(c.spatial, D => {
            check_transposed::<f32, D>(&c, &device, 5, 1);
            Ok::<(), Error>(())
        })
        .unwrap();
    }
}

/// A layer that takes many boxes, pieces of channels and of rows.
fn large(layout: Layout, stride: usize) -> Case {
    Case {
        batch: 2,
        channels: 48,
        outputs: 40,
        groups: 1,
        spatial: 2,
        input: [1, 70, 150],
        kernel: [1, 3, 3],
        stride: [1, stride, stride],
        dilation: [1; 3],
        low: [0, 1, 1],
        high: [0, 1, 1],
        mode: PaddingMode::Replicate,
        layout,
    }
}

#[test]
fn large_layers_are_the_dense_ones() {
    for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
        for stride in [1, 2] {
            let c = large(layout, stride);
            let at = Operands::<f32>::new(&c, 7, 1.0);
            let dense = at.w.to_dense().unwrap();
            let conv = conv::<2>(&c);
            let y = conv.forward(&at.x, &dense, Some(at.b.view())).unwrap();
            assert_eq!(conv.sparse_forward(&at.x, &at.w, Some(at.b.view())).unwrap(), y);
            let dx = conv.backward_input(&at.dy, &dense, last(c.input)).unwrap();
            let found = conv.sparse_backward_input(&at.dy, &at.w, last(c.input)).unwrap();
            assert_eq!(found, dx);
            let dw = conv.backward_weight(&at.x, &at.dy).unwrap();
            let dw = SparseWeight::from_dense(&conv, &dw, Pruning::TopK(dw.len())).unwrap();
            let dw = dw.to_csr().unwrap();
            let found = conv.sparse_backward_weight(&at.x, &at.dy, &at.w).unwrap();
            let found = found.to_csr().unwrap();
            for (found, all) in found.iter_rows().unwrap().zip(dw.iter_rows().unwrap()) {
                let mut entries = found.iter();
                assert!(entries.all(|(column, value)| all.values()[column] == value));
            }
            check_gathering::<2>(&c, &Device::Cpu, 3);
        }
    }
}

#[test]
fn threads_do_not_show() {
    let c = large(Layout::ChannelsFirst, 1);
    let conv = conv::<2>(&c);
    let dense = tensor::<f32>(&c.weight_shape(), &randoms(c.weight_len(), 2));
    let weight = SparseWeight::from_dense(&conv, &dense, Pruning::Threshold(0.8)).unwrap();
    let x = tensor::<f32>(&c.input_shape(), &randoms(c.input_len(), 1));
    let dy = tensor::<f32>(&c.output_shape(), &randoms(c.output_len(), 3));
    let on_threads = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let y = conv.sparse_forward(&x, &weight, None).unwrap();
            let dx = conv.sparse_backward_input(&dy, &weight, last(c.input)).unwrap();
            let dw = conv.sparse_backward_weight(&x, &dy, &weight).unwrap();
            (y, dx, dw)
        })
    };
    let alone = on_threads(1);
    for threads in [2, 3, 7] {
        assert!(on_threads(threads) == alone, "{threads} threads");
    }
}

#[test]
fn empty_weights_and_batches_are_computed() {
    let conv = Conv::new([2]);
    let dense = tensor::<f32>(&[3, 2, 2], &[0.; 12]);
    let weight = SparseWeight::from_dense(&conv, &dense, Pruning::Threshold(0.)).unwrap();
    let full = SparseWeight::from_dense(&conv, &dense, Pruning::TopK(12)).unwrap();
    for device in devices() {
        let bias = on(device, &tensor::<f32>(&[3], &[1., 2., 3.]));
        let x = on(device, &tensor::<f32>(&[1, 2, 3], &[1., f64::NAN, 3., 4., 5., 6.]));
        let weight = weight.clone().to_device(device).unwrap();
        let y = conv.sparse_forward(&x, &weight, Some(bias.view())).unwrap();
        assert_eq!(values(&y), [1., 1., 2., 2., 3., 3.]);
        let dx = conv.sparse_backward_input(&y, &weight, [3]).unwrap();
        assert_eq!(values(&dx), [0.; 6]);
        assert_eq!(conv.sparse_backward_weight(&x, &y, &weight).unwrap().entries(), 0);

        let full = full.clone().to_device(device).unwrap();
        let x = Tensor::<f32>::zeros(device, &[0, 2, 3]).unwrap();
        let y = conv.sparse_forward(&x, &full, None).unwrap();
        assert_eq!(y.shape(), [0, 3, 2]);
        assert_eq!(conv.sparse_backward_input(&y, &full, [3]).unwrap().shape(), [0, 2, 3]);
        let dw = conv.sparse_backward_weight(&x, &y, &full).unwrap();
        assert_eq!(dw.values().to_vec().unwrap(), [0.; 12]);
    }
}
