//! Matrices on every device: the same ones, bit by bit.

use super::*;
use crate::catalogue::{accelerators, devices, layers, on, variants};

fn assemble_on<T: Element>(
    device: &Device,
    c: &Case,
    weight: &Tensor<T>,
    bias: Option<&Tensor<T>>,
) -> Csr<T> {
    let (weight, bias) = (on(device, weight), bias.map(|bias| on(device, bias)));
    assemble(c, &weight, bias.as_ref())
}

fn transposed_on<T: Element>(
    device: &Device,
    c: &Case,
    weight: &Tensor<T>,
    bias: Option<&Tensor<T>>,
) -> Option<Csr<T>> {
    let (size, extra) = transposed_sizes(c)?;
    let (weight, bias) = (on(device, weight), bias.map(|bias| on(device, bias)));
    let bias = bias.as_ref().map(Tensor::view);
    let matrix = with_axes!(c.spatial, D => {
        conv::<D>(c).transposed_matrix(&weight, bias, last(size), last(extra))
    });
    Some(matrix.unwrap())
}

fn host<T: Element>(matrix: Csr<T>) -> Csr<T> {
    matrix.to_device(&Device::Cpu).unwrap()
}

/// Overwriting a matrix gives the same bytes as making one.
fn check_assembly<T: Element>(c: &Case, with_bias: bool, seed: u64, devices: &[Device]) {
    let c = &single(c);
    let weight = tensor::<T>(&c.weight_shape(), &randoms(c.weight_len(), seed));
    let bias = tensor::<T>(&[c.outputs], &randoms(c.outputs, seed ^ 1));
    let bias = with_bias.then_some(&bias);
    let up_bias = tensor::<T>(&[c.channels], &randoms(c.channels, seed ^ 2));
    let up_bias = with_bias.then_some(&up_bias);
    let expected = assemble(c, &weight, bias);
    let up = transposed_on(&Device::Cpu, c, &weight, up_bias);
    for device in devices {
        let mut matrix = assemble_on(device, c, &weight, bias);
        assert_eq!(matrix.device(), *device);
        assert_eq!(host(matrix.clone()), expected);
        assert_eq!(transposed_on(device, c, &weight, up_bias).map(host), up);

        let zeros = on(device, &tensor::<T>(&c.weight_shape(), &vec![0.0; c.weight_len()]));
        let (weight, bias) = (on(device, &weight), bias.map(|bias| on(device, bias)));
        let no_bias = on(device, &tensor::<T>(&[c.outputs], &vec![0.0; c.outputs]));
        let no_bias = with_bias.then(|| no_bias.view());
        with_axes!(c.spatial, D => {
            let (conv, size) = (conv::<D>(c), last(c.input));
            conv.matrix_into(&zeros, no_bias, size, &mut matrix).unwrap();
            assert!(host(matrix.clone()).data().unwrap().iter().all(|v| v.to_f64() == 0.0));
            let bias = bias.as_ref().map(Tensor::view);
            conv.matrix_into(&weight, bias, size, &mut matrix)
        })
        .unwrap();
        assert_eq!(host(matrix), expected);
    }
}

/// The same matrix with 64-bit indices.
fn widened<T: Element>(matrix: &Csr<T>) -> Csr<T> {
    let (indptr, indices, data) = matrix.clone().into_parts().unwrap();
    let wide = |i: Indices| Indices::I64(i.view().iter().map(|i| i as i64).collect());
    Csr::new(matrix.shape(), wide(indptr), wide(indices), data).unwrap()
}

/// Products, transposes and the dense matrix of matrices on the device. Sums of small integers are exact.
fn check_algebra<T: Element>(matrix: &Csr<T>, vectors: usize, seed: u64) {
    check_algebra_on(accelerators(), matrix, vectors, seed);
}

fn check_algebra_on<T: Element>(devices: &[Device], matrix: &Csr<T>, vectors: usize, seed: u64) {
    let [rows, columns] = matrix.shape();
    let x = tensor::<T>(&[columns], &integers(columns, seed ^ 1, 1));
    let xs = tensor::<T>(&[columns, vectors], &integers(columns * vectors, seed ^ 2, 1));
    let y = tensor::<T>(&[rows], &integers(rows, seed ^ 3, 1));
    let ys = tensor::<T>(&[rows, vectors], &integers(rows * vectors, seed ^ 4, 1));
    let results = |device: &Device| {
        let matrix = matrix.clone().to_device(device).unwrap();
        let csc = matrix.to_csc().unwrap();
        assert_eq!((csc.shape(), csc.device()), (matrix.shape(), device.clone()));
        assert_eq!(csc.to_csr().unwrap(), matrix);
        let tensors = [
            matrix.mul_vector(&on(device, &x)).unwrap(),
            matrix.mul_matrix(&on(device, &xs)).unwrap(),
            matrix.adjoint_mul_vector(&on(device, &y)).unwrap(),
            matrix.adjoint_mul_matrix(&on(device, &ys)).unwrap(),
            matrix.to_dense().unwrap(),
        ];
        (host(csc.into_transposed_csr()), tensors.map(|t| on(&Device::Cpu, &t)))
    };
    let expected = results(&Device::Cpu);
    for device in devices {
        assert_eq!(results(device), expected);
        assert_eq!(results(device), expected, "again");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn matrices_are_the_same_everywhere(c in cases(), with_bias: bool, seed: u64) {
        check_assembly::<f32>(&c, with_bias, seed, devices());
        check_assembly::<bf16>(&c, with_bias, seed, devices());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn matrices_of_other_types_are_too(c in cases(), with_bias: bool, seed: u64) {
        check_assembly::<f64>(&c, with_bias, seed, devices());
        check_assembly::<f16>(&c, with_bias, seed, devices());
    }

    #[test]
    fn algebra_is_the_same_everywhere(c in cases(), vectors in 0usize..9, seed: u64) {
        let matrix = assemble(&single(&c), &weight::<f32>(&c, seed).0, None);
        check_algebra(&matrix, vectors, seed);
        check_algebra(&widened(&matrix), vectors, seed);
        check_algebra(&assemble(&single(&c), &weight::<f16>(&c, seed).0, None), vectors, seed);
    }

    #[test]
    fn wide_indices_receive_the_same_matrix(c in cases(), with_bias: bool, seed: u64) {
        let c = single(&c);
        let w = tensor::<f32>(&c.weight_shape(), &randoms(c.weight_len(), seed));
        let bias = tensor::<f32>(&[c.outputs], &randoms(c.outputs, seed ^ 1));
        let bias = with_bias.then_some(&bias);
        let expected = widened(&assemble(&c, &w, bias));
        for device in accelerators() {
            // A matrix of the same structure and other values, to be overwritten.
            let mut target = expected.clone();
            target.data_mut().unwrap().fill(7.0);
            let mut target = target.to_device(device).unwrap();
            let (w, bias) = (on(device, &w), bias.map(|bias| on(device, bias)));
            let bias = bias.as_ref().map(Tensor::view);
            with_axes!(c.spatial, D => conv::<D>(&c).matrix_into(&w, bias, last(c.input), &mut target))
                .unwrap();
            assert_eq!(host(target), expected);
        }
    }

    #[test]
    fn sparse_filters_are_the_same_everywhere(c in cases()) {
        with_axes!(c.spatial, D => {
            let conv = conv::<D>(&c);
            let expected = conv.gathering_filter_csr::<f32>(c.channels).unwrap();
            for device in accelerators() {
                let filter = conv.gathering_filter_csr_on::<f32>(device, c.channels).unwrap();
                assert_eq!((filter.device(), filter.shape()), (device.clone(), expected.shape()));
                assert_eq!(host(filter), expected);
            }
            Ok::<(), Error>(())
        })?;
    }
}

/// Kernels made as on GPUs, and those with 64-bit indices.
#[test]
fn layers_have_the_same_matrices_everywhere() {
    for (case, with_bias) in layers().iter().zip([true, false].into_iter().cycle()) {
        check_assembly::<f32>(case, with_bias, 1, &variants());
    }
    let matrix = assemble(&single(&layers()[0]), &weight::<f32>(&layers()[0], 2).0, None);
    check_algebra_on(&variants(), &matrix, 4, 3);
}

fn planar(channels: usize, groups: usize, input: usize, kernel: usize, low: usize) -> Case {
    Case {
        batch: 1,
        channels,
        outputs: channels,
        groups,
        spatial: 2,
        input: [1, input, input],
        kernel: [1, kernel, kernel],
        stride: [1, 1, 1],
        dilation: [1, 1, 1],
        low: [0, low, low],
        high: [0, low, low],
        mode: PaddingMode::Zeros,
        layout: Layout::ChannelsFirst,
    }
}

/// Rows longer than a block writes at once, rows shared by many threads, and many short ones.
#[test]
fn rows_of_every_length_are_the_same_everywhere() {
    for c in [
        planar(12, 1, 20, 20, 3),
        planar(64, 1, 6, 3, 1),
        planar(6, 6, 20, 3, 1),
        planar(7, 7, 30, 1, 0),
        Case {
            mode: PaddingMode::Replicate,
            layout: Layout::ChannelsLast,
            ..planar(3, 1, 5, 4, 3)
        },
        Case { mode: PaddingMode::Circular, ..planar(40, 1, 4, 5, 4) },
    ] {
        check_assembly::<f32>(&c, true, 5, accelerators());
        check_assembly::<f64>(&c, false, 6, accelerators());
    }
}

/// More entries than a block sorts, columns that take several passes, and one that every row has.
#[test]
fn large_transposes_are_the_same_everywhere() {
    let case = planar(6, 1, 17, 3, 1);
    let bias = tensor::<f32>(&[6], &integers(6, 2, 3));
    check_algebra(&assemble(&case, &weight::<f32>(&case, 1).0, Some(&bias)), 4, 3);
    let wide = planar(1, 1, 270, 1, 0);
    let matrix = assemble(&wide, &tensor::<f32>(&[1, 1, 1, 1], &[3.0]), None);
    for device in accelerators() {
        let there = matrix.clone().to_device(device).unwrap();
        assert_eq!(host(there.transpose().unwrap()), matrix);
    }
}

#[test]
fn merged_taps_are_rounded_once_everywhere() {
    let conv = Conv::new([3]).padding([1]).padding_mode(PaddingMode::Replicate);
    for device in devices() {
        let weight = on(device, &tensor::<f16>(&[1, 1, 3], &[2048.0, 1.0, 1.0]));
        let matrix = host(conv.matrix(&weight, None, [1]).unwrap());
        assert_eq!(matrix.data().unwrap()[0].to_f64(), 2050.0);
    }
}

#[test]
fn empty_matrices_are_matrices_everywhere() {
    for device in accelerators() {
        let there = |matrix: &Csr<f32>| matrix.clone().to_device(device).unwrap();
        let empty = Csr::new([0, 0], vec![0], vec![0i32; 0], Vec::<f32>::new()).unwrap();
        assert_eq!(host(there(&empty).transpose().unwrap()), empty);
        let flat = Csr::new([2, 0], vec![0, 0, 0], vec![0i32; 0], Vec::<f32>::new()).unwrap();
        assert_eq!(host(there(&flat).transpose().unwrap()), flat.transpose().unwrap());
        let product = there(&flat).mul_vector(&on(device, &tensor(&[0], &[]))).unwrap();
        assert_eq!(values(&product), [0.0, 0.0]);
        let conv = Conv::new([1]).padding([(1, 0)]).stride([2]);
        let weight = on(device, &tensor::<f32>(&[1, 1, 1], &[5.0]));
        let matrix = host(conv.matrix(&weight, None, [1]).unwrap());
        assert_eq!((matrix.shape(), matrix.nnz()), ([1, 1], 0));
        assert_canonical(&matrix);
    }
}

#[test]
fn what_a_device_does_not_do_says_so() {
    let conv = Conv::new([2]);
    let weight = tensor::<f32>(&[1, 1, 2], &[1.0, -1.0]);
    for device in accelerators() {
        let mut matrix = conv.matrix(&on(device, &weight), None, [3]).unwrap();
        assert!(matrix.indptr().is_none() && matrix.indices().is_none() && matrix.data().is_none());
        assert!(matrix.data_mut().is_none() && matrix.row(0).is_none());
        assert!(matrix.iter_rows().is_none());
        assert_eq!((matrix.nnz(), matrix.index_width()), (4, IndexWidth::I32));
        let refused = |result: Result<(), Error>| {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::DeviceMismatch { .. }), "{error}");
            assert!(error.to_string().contains(&device.to_string()), "{error}");
        };
        refused(matrix.to_coo().map(drop));
        refused(matrix.clone().eliminate_zeros().map(drop));
        refused(matrix.mul_vector(&tensor(&[3], &[1.0; 3])).map(drop));
        refused(conv.matrix_into(&weight, None, [3], &mut matrix));
        let (mut indptr, mut indices, mut data) = ([0i32; 3], [0i32; 4], [0f32; 4]);
        let buffers = CsrBuffers { indptr: &mut indptr, indices: &mut indices, data: &mut data };
        refused(conv.matrix_into(&on(device, &weight), None, [3], buffers));
        let bias = tensor::<f32>(&[1], &[1.0]);
        refused(conv.matrix(&on(device, &weight), Some(bias.view()), [3]).map(drop));
        let message = conv.matrix_into(&on(device, &weight), None, [4], &mut matrix).unwrap_err();
        assert_eq!(message.to_string(), "the matrix has shape [2, 3], expected [3, 4]");
        assert_eq!(matrix.into_parts().unwrap().2, [1.0, -1.0, 1.0, -1.0]);
    }
}

/// Matrices that take wider indices or more memory than there is are refused, and the device stays usable.
#[test]
fn matrices_that_do_not_fit_are_refused_everywhere() {
    let conv = Conv::new([3, 3]).padding([1, 1]);
    for device in devices() {
        let weight = on(device, &tensor::<f32>(&[128, 128, 3, 3], &vec![0.0; 128 * 128 * 9]));
        let mut narrow = Csr::new([0, 0], vec![0i32], vec![0i32; 0], Vec::<f32>::new()).unwrap();
        narrow = narrow.to_device(device).unwrap();
        let refused = conv.matrix_into(&weight, None, [224, 224], &mut narrow).unwrap_err();
        assert!(refused.to_string().contains("7354777600"), "{refused}");
    }
    for device in accelerators() {
        let weight = on(device, &tensor::<f32>(&[64, 64, 3, 3], &vec![1.0; 64 * 64 * 9]));
        let refused = conv.matrix(&weight, None, [20_000, 20_000]).unwrap_err();
        assert!(matches!(refused, Error::Allocation { .. }), "{refused}");
        assert_eq!(host(conv.matrix(&weight, None, [3, 3]).unwrap()).nnz(), 64 * 64 * 49);
    }
}
