//! Assembly against the oracle, and the sparse matrices that hold the result.

use convmat::{
    Conv, Coo, Csc, Csr, CsrBuffers, DType, Device, Element, Error, Index, IndexWidth, Indices,
    Layout, MatrixSize, PaddingMode, PlanOptions, Product, Tensor, Workspace, with_axes,
};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::catalogue::{cases, conv, integers, last, randoms, tensor, values};
use crate::oracle::Case;

mod devices;
#[cfg(feature = "io")]
mod files;
mod parts;
mod plans;
#[cfg(all(feature = "simulator", unix))]
mod profiles;

/// The case for one image, with channels first: rows and columns of the matrix have that order
/// whatever the weight's layout.
fn single(c: &Case) -> Case {
    Case { batch: 1, ..c.clone() }
}

/// The oracle's activations in the matrix's order (channel, position).
fn channels_first(c: &Case, channels: usize, data: &[f64]) -> Vec<f64> {
    match c.layout {
        Layout::ChannelsFirst => data.to_vec(),
        Layout::ChannelsLast => {
            let positions = data.len() / channels;
            (0..data.len()).map(|i| data[i % positions * channels + i / positions]).collect()
        }
    }
}

fn weight<T: Element>(c: &Case, seed: u64) -> (Tensor<T>, Vec<f64>) {
    let w = integers(c.weight_len(), seed, 3);
    (tensor(&c.weight_shape(), &w), w)
}

fn assemble<T: Element>(c: &Case, weight: &Tensor<T>, bias: Option<&Tensor<T>>) -> Csr<T> {
    let bias = bias.map(Tensor::view);
    with_axes!(c.spatial, D => conv::<D>(c).matrix(weight, bias, last(c.input))).unwrap()
}

fn size_of(c: &Case, bias: bool) -> MatrixSize {
    with_axes!(c.spatial, D => conv::<D>(c).matrix_size(&c.weight_shape(), bias, last(c.input)))
        .unwrap()
}

/// Exact sums as the element type holds them, rounded once.
fn rounded<T: Element>(exact: &[f64]) -> Vec<f64> {
    exact.iter().map(|&v| T::from_f64(v).to_f64()).collect()
}

/// Rebuilding through the checking constructor proves the structure canonical.
fn assert_canonical<T: Element>(matrix: &Csr<T>) {
    let (indptr, indices, data) = matrix.clone().into_parts().unwrap();
    assert_eq!(&Csr::new(matrix.shape(), indptr, indices, data).unwrap(), matrix);
}

/// Entries of each row by the definition: distinct inputs read, times channels, plus the bias.
fn expected_counts(c: &Case, bias: bool) -> Vec<usize> {
    let mut sources = vec![std::collections::BTreeSet::new(); c.positions()];
    c.each_tap(|o, _, i| sources[o].extend(i));
    let one = sources.iter().map(|s| s.len() * (c.channels / c.groups) + usize::from(bias));
    std::iter::repeat_n(one, c.outputs).flatten().collect()
}

fn row_counts<T: Element>(matrix: &Csr<T>) -> Vec<usize> {
    matrix.iter_rows().unwrap().map(|row| row.values().len()).collect()
}

/// Assembly in one element type against the oracle, exactly.
fn check_forward<T: Element>(c: &Case, with_bias: bool, seed: u64) {
    let c = single(c);
    let (w, w64) = weight::<T>(&c, seed);
    let b64 = integers(c.outputs, seed ^ 1, 3);
    let bias = with_bias.then(|| tensor::<T>(&[c.outputs], &b64));
    let matrix = assemble(&c, &w, bias.as_ref());
    assert_canonical(&matrix);
    assert_eq!(row_counts(&matrix), expected_counts(&c, with_bias));

    let size = size_of(&c, with_bias);
    assert_eq!([size.rows(), size.columns()], matrix.shape().map(|n| n as u64));
    assert_eq!((size.nnz(), size.index_width()), (matrix.nnz() as u64, IndexWidth::I32));
    let index_bytes = 4 * (matrix.indptr().unwrap().len() + matrix.nnz());
    assert_eq!(size.bytes(T::DTYPE), (index_bytes + size_of_val(matrix.data().unwrap())) as u64);

    let x = integers(c.input_len(), seed ^ 2, 2);
    let mut extended = channels_first(&c, c.channels, &x);
    extended.extend(with_bias.then_some(1.0));
    let y = matrix.mul_vector(&tensor::<T>(&[extended.len()], &extended)).unwrap();
    let expected = c.forward(&x, &w64, with_bias.then_some(&b64[..]));
    assert_eq!(values(&y), rounded::<T>(&channels_first(&c, c.outputs, &expected)));

    let dy = integers(c.output_len(), seed ^ 3, 2);
    let rows = channels_first(&c, c.outputs, &dy);
    let dx = matrix.adjoint_mul_vector(&tensor::<T>(&[rows.len()], &rows)).unwrap();
    let mut expected = channels_first(&c, c.channels, &c.backward_input(&dy, &w64));
    if with_bias {
        expected.push(rows.iter().zip(0..).map(|(v, row)| v * b64[row / c.positions()]).sum());
    }
    assert_eq!(values(&dx), rounded::<T>(&expected));
}

/// The transposed convolution's matrix is the transpose of the convolution's, with its own bias.
fn check_transposed<T: Element>(c: &Case, with_bias: bool, seed: u64) {
    let c = single(c);
    let (w, _) = weight::<T>(&c, seed);
    let Some((input, extra)) = transposed_sizes(&c) else { return };
    let b64 = integers(c.channels, seed ^ 1, 3);
    let bias = with_bias.then(|| tensor::<T>(&[c.channels], &b64));
    let bias_view = bias.as_ref().map(Tensor::view);
    let matrix = with_axes!(c.spatial, D => {
        conv::<D>(&c).transposed_matrix(&w, bias_view, last(input), last(extra))
    });
    let matrix = matrix.unwrap();
    assert_canonical(&matrix);
    let size = with_axes!(c.spatial, D => {
        let conv = conv::<D>(&c);
        conv.transposed_matrix_size(&c.weight_shape(), with_bias, last(input), last(extra))
    });
    assert_eq!(size.unwrap().nnz(), matrix.nnz() as u64);

    let forward = assemble(&c, &w, None);
    let mut expected = values(&forward.transpose().unwrap().to_dense().unwrap());
    if with_bias {
        let columns = forward.rows();
        let positions: usize = c.input.iter().product();
        expected = (0..forward.columns())
            .flat_map(|row| {
                let mut row_values = expected[row * columns..][..columns].to_vec();
                row_values.push(b64[row / positions]);
                row_values
            })
            .collect();
    }
    assert_eq!(values(&matrix.to_dense().unwrap()), expected);
}

/// (input size of the transposed convolution, output padding that recovers as much of the case's own
/// input as PyTorch's rules allow); `None` where padding leaves nothing.
fn transposed_sizes(c: &Case) -> Option<([usize; 3], [usize; 3])> {
    let output = c.output();
    let mut extra = [0; 3];
    for a in 0..3 {
        let full = (output[a] - 1) * c.stride[a] + c.dilation[a] * (c.kernel[a] - 1) + 1;
        let natural = full.checked_sub(c.low[a] + c.high[a])?;
        extra[a] = c.input[a] - natural;
        if natural == 0 || extra[a] >= c.stride[a].max(c.dilation[a]) {
            return None;
        }
    }
    Some((output, extra))
}

/// The crate's own operations are products with the matrix and its adjoint.
fn check_operations<const D: usize>(c: &Case, seed: u64) {
    let c = &single(c);
    let conv = conv::<D>(c);
    let (w, _) = weight::<f64>(c, seed);
    let bias = tensor::<f64>(&[c.outputs], &integers(c.outputs, seed ^ 1, 3));
    let x = tensor::<f64>(&c.input_shape(), &integers(c.input_len(), seed ^ 2, 9));
    let dy = tensor::<f64>(&c.output_shape(), &integers(c.output_len(), seed ^ 3, 9));
    let column = |values: Vec<f64>| tensor::<f64>(&[values.len()], &values);

    let matrix = conv.matrix(&w, Some(bias.view()), last(c.input)).unwrap();
    let mut image = channels_first(c, c.channels, &values(&x));
    image.push(1.0);
    let y = conv.forward(&x, &w, Some(bias.view())).unwrap();
    let product = matrix.mul_vector(&column(image)).unwrap();
    assert_eq!(values(&product), channels_first(c, c.outputs, &values(&y)));

    let linear = conv.matrix(&w, None, last(c.input)).unwrap();
    let gradient = column(channels_first(c, c.outputs, &values(&dy)));
    let product = linear.adjoint_mul_vector(&gradient).unwrap();
    let dx = conv.backward_input(&dy, &w, last(c.input)).unwrap();
    assert_eq!(values(&product), channels_first(c, c.channels, &values(&dx)));

    if let Some((size, extra)) = transposed_sizes(c) {
        let matrix = conv.transposed_matrix(&w, None, last(size), last(extra)).unwrap();
        let up = conv.transposed(&dy, &w, None, last(extra)).unwrap();
        let product = matrix.mul_vector(&gradient).unwrap();
        assert_eq!(values(&product), channels_first(c, c.channels, &values(&up)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn products_are_the_convolutions(c in cases(), seed: u64) {
        with_axes!(c.spatial, D => {
            check_operations::<D>(&c, seed);
            Ok::<(), Error>(())
        })?;
    }

    #[test]
    fn forward_matches_the_definition(c in cases(), with_bias: bool, seed: u64) {
        check_forward::<f32>(&c, with_bias, seed);
    }

    #[test]
    fn transposed_is_the_transpose(c in cases(), with_bias: bool, seed: u64) {
        check_transposed::<f64>(&c, with_bias, seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn every_element_type_matches_the_definition(c in cases(), with_bias: bool, seed: u64) {
        check_forward::<f64>(&c, with_bias, seed);
        check_forward::<f16>(&c, with_bias, seed);
        check_forward::<bf16>(&c, with_bias, seed);
        check_transposed::<bf16>(&c, with_bias, seed);
        check_transposed::<f16>(&c, with_bias, seed);
    }

    #[test]
    fn buffers_of_either_width_receive_the_same_matrix(c in cases(), seed: u64) {
        let (w, _) = weight::<f32>(&c, seed);
        let bias = tensor::<f32>(&[c.outputs], &integers(c.outputs, seed ^ 1, 3));
        let matrix = assemble(&c, &w, Some(&bias));
        let narrow = assemble_into::<i32>(&c, &w, &bias, &matrix);
        let wide = assemble_into::<i64>(&c, &w, &bias, &matrix);
        assert_eq!(narrow, matrix);
        assert_eq!(wide.index_width(), IndexWidth::I64);
        assert!(wide.indices().unwrap().iter().eq(matrix.indices().unwrap().iter()));
        assert!(wide.indptr().unwrap().iter().eq(matrix.indptr().unwrap().iter()));
        assert_eq!(wide.data().unwrap(), matrix.data().unwrap());
        assert_eq!(wide.transpose().unwrap().to_dense().unwrap(), matrix.transpose().unwrap().to_dense().unwrap());
    }

    #[test]
    fn conversions_agree(c in cases(), seed: u64) {
        let (w, _) = weight::<f32>(&c, seed);
        let matrix = assemble(&c, &w, None);
        let dense = matrix.to_dense().unwrap();
        assert_eq!(matrix.to_coo().unwrap().to_csr().unwrap(), matrix);
        assert_eq!(matrix.to_coo().unwrap().to_dense().unwrap(), dense);
        let csc = matrix.to_csc().unwrap();
        let (indptr, indices, data) = csc.clone().into_parts().unwrap();
        assert_eq!(Csc::new(csc.shape(), indptr, indices, data).unwrap(), csc);
        assert_eq!((csc.shape(), csc.nnz()), (matrix.shape(), matrix.nnz()));
        assert_eq!(csc.to_csr().unwrap(), matrix);
        assert_eq!(csc.to_dense().unwrap(), dense);
        assert_eq!(csc.into_transposed_csr(), matrix.transpose().unwrap());
        assert_eq!(matrix.transpose().unwrap().transpose().unwrap(), matrix);
        let sparser = matrix.clone().eliminate_zeros().unwrap();
        assert_canonical(&sparser);
        assert_eq!(sparser.nnz(), matrix.data().unwrap().iter().filter(|&&v| v != 0.0).count());
        assert_eq!(sparser.to_dense().unwrap(), dense);
    }

    #[test]
    fn many_vectors_are_multiplied_as_one(c in cases(), vectors in 0usize..4, seed: u64) {
        let (w, _) = weight::<f32>(&c, seed);
        check_products(&assemble(&c, &w, None), vectors, seed);
        let (w, _) = weight::<f16>(&c, seed);
        check_products(&assemble(&c, &w, None), vectors, seed);
    }

    #[test]
    fn threads_do_not_change_a_byte(c in cases(), seed: u64) {
        let w = tensor::<f32>(&c.weight_shape(), &randoms(c.weight_len(), seed));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let matrix = assemble(&c, &w, None);
                let y = tensor::<f32>(&[matrix.rows()], &randoms(matrix.rows(), seed ^ 1));
                let x = matrix.adjoint_mul_vector(&y).unwrap();
                (matrix.mul_vector(&x).unwrap(), matrix.transpose().unwrap(), x, matrix)
            })
        };
        assert_eq!(run(1), run(3));
    }
}

/// Rows longer than the pieces they are written in, and more kinds of rows than are kept at hand.
#[test]
fn large_kernels_match_the_definition() {
    for (layout, groups) in [(Layout::ChannelsFirst, 1), (Layout::ChannelsLast, 3)] {
        let case = Case {
            batch: 1,
            channels: 3,
            outputs: 3,
            groups,
            spatial: 2,
            input: [1, 20, 20],
            kernel: [1, 20, 20],
            stride: [1, 1, 1],
            dilation: [1, 1, 1],
            low: [0, 19, 19],
            high: [0, 19, 19],
            mode: PaddingMode::Zeros,
            layout,
        };
        check_forward::<f32>(&case, true, 1);
        check_forward::<f16>(&case, false, 2);
        let matrix = assemble(&case, &weight::<f32>(&case, 3).0, None);
        let (w, size) = (weight::<f32>(&case, 3).0, last(case.output()));
        let up = conv::<2>(&case).transposed_matrix(&w, None, size, [0, 0]).unwrap();
        assert_eq!(up, matrix.transpose().unwrap());
    }
}

fn assemble_into<I: Index>(
    c: &Case,
    weight: &Tensor<f32>,
    bias: &Tensor<f32>,
    like: &Csr<f32>,
) -> Csr<f32>
where
    Vec<I>: Into<Indices>,
{
    let mut indptr = vec![I::from_usize(7); like.indptr().unwrap().len()];
    let mut indices = vec![I::from_usize(7); like.nnz()];
    let mut data = vec![f32::NAN; like.nnz()];
    let buffers = CsrBuffers { indptr: &mut indptr, indices: &mut indices, data: &mut data };
    let bias = Some(bias.view());
    with_axes!(c.spatial, D => conv::<D>(c).matrix_into(weight, bias, last(c.input), buffers))
        .unwrap();
    Csr::new(like.shape(), indptr, indices, data).unwrap()
}

fn check_products<T: Element>(matrix: &Csr<T>, vectors: usize, seed: u64) {
    let [rows, columns] = matrix.shape();
    let pick = |data: &[f64], v: usize| -> Vec<f64> {
        data.iter().skip(v).step_by(vectors).copied().collect()
    };
    let x = integers(columns * vectors, seed ^ 1, 1);
    let y = values(&matrix.mul_matrix(&tensor::<T>(&[columns, vectors], &x)).unwrap());
    let dy = integers(rows * vectors, seed ^ 2, 1);
    let dx = values(&matrix.adjoint_mul_matrix(&tensor::<T>(&[rows, vectors], &dy)).unwrap());
    for v in 0..vectors {
        let one = matrix.mul_vector(&tensor::<T>(&[columns], &pick(&x, v))).unwrap();
        assert_eq!(pick(&y, v), values(&one));
        let one = matrix.adjoint_mul_vector(&tensor::<T>(&[rows], &pick(&dy, v))).unwrap();
        assert_eq!(pick(&dx, v), values(&one));
    }
}

#[test]
fn known_sizes_are_counted_without_assembling() {
    let cases = [
        (Conv::new([3, 3]).padding([1, 1]), [64, 64, 3, 3], [56; 2], 112_869_376, 113_070_080),
        (
            Conv::new([7, 7]).stride([2, 2]).padding([3, 3]),
            [64, 3, 7, 7],
            [224; 2],
            116_214_528,
            117_017_344,
        ),
        (Conv::new([3, 3]).padding([1, 1]), [512, 512, 3, 3], [14; 2], 419_430_400, 419_530_752),
        (Conv::new([3, 3]).padding([1, 1]), [64, 64, 3, 3], [224; 2], 1_838_694_400, 1_841_905_664),
    ];
    for (conv, weight, input, plain, with_bias) in cases {
        assert_eq!(conv.matrix_size(&weight, false, input).unwrap().nnz(), plain);
        let size = conv.matrix_size(&weight, true, input).unwrap();
        assert_eq!((size.nnz(), size.index_width()), (with_bias, IndexWidth::I32));
    }
}

#[test]
fn wide_indices_are_chosen_for_many_entries_rows_or_columns() {
    let conv = Conv::new([3, 3]).padding([1, 1]);
    let entries = conv.matrix_size(&[128, 128, 3, 3], false, [224, 224]).unwrap();
    assert_eq!((entries.nnz(), entries.index_width()), (4 * 1_838_694_400, IndexWidth::I64));
    assert_eq!(entries.bytes(DType::F16), entries.nnz() * 10 + (entries.rows() + 1) * 8);
    let pixels = Conv::new([1, 1]).groups(1 << 10);
    let rows = pixels.matrix_size(&[1 << 10, 1, 1, 1], false, [1 << 11, 1 << 10]).unwrap();
    assert_eq!((rows.rows(), rows.index_width()), (1 << 31, IndexWidth::I64));
    let columns = Conv::new([1, 1]).stride([1 << 10, 1 << 10]);
    let columns = columns.matrix_size(&[1, 1 << 10, 1, 1], false, [1 << 11, 1 << 10]).unwrap();
    assert_eq!((columns.columns(), columns.nnz()), (1 << 31, 2 << 10));
    assert_eq!(columns.index_width(), IndexWidth::I64);
    // One column fewer still fits: 42966·49981 + 1 = 2³¹ − 1.
    let fits = Conv::new([1, 1]).stride([42966, 49981]);
    let fits = fits.matrix_size(&[1, 1, 1, 1], true, [42966, 49981]).unwrap();
    assert_eq!((fits.columns(), fits.index_width()), ((1 << 31) - 1, IndexWidth::I32));

    let overflow =
        Conv::new([1, 1]).matrix_size(&[1 << 40, 1 << 40, 1, 1], true, [1 << 10, 1 << 10]);
    assert!(matches!(overflow, Err(Error::TooLarge { .. })), "{overflow:?}");
}

/// 32-bit buffers for a matrix that needs wider ones are refused before their sizes are looked at.
#[test]
fn narrow_buffers_are_refused_for_wide_matrices() {
    let conv = Conv::new([3, 3]).padding([1, 1]);
    let weight = tensor::<f32>(&[128, 128, 3, 3], &vec![0.0; 128 * 128 * 9]);
    let buffers = CsrBuffers::<f32, i32> { indptr: &mut [], indices: &mut [], data: &mut [] };
    let refused = conv.matrix_into(&weight, None, [224, 224], buffers).unwrap_err();
    assert!(refused.to_string().contains("7354777600"), "{refused}");
    let buffers = CsrBuffers::<f32, i64> { indptr: &mut [], indices: &mut [], data: &mut [] };
    let refused = conv.matrix_into(&weight, None, [224, 224], buffers).unwrap_err();
    assert!(refused.to_string().contains("indptr has shape [0]"), "{refused}");
}

/// The case in which the function this crate replaces gave wrong row pointers: 64→64 3×3 on 56×56 with
/// bias, 113,070,080 entries.
#[test]
fn every_row_pointer_of_a_real_layer_is_right() {
    let (channels, size) = (64usize, 56usize);
    let w: Vec<f32> = (0..channels * channels * 9).map(|i| i as f32).collect();
    let b: Vec<f32> = (0..channels).map(|i| -1.0 - i as f32).collect();
    let device = Device::Cpu;
    let weight = Tensor::from_vec(&device, &[channels, channels, 3, 3], w).unwrap();
    let bias = Tensor::from_vec(&device, &[channels], b).unwrap();
    let conv = Conv::new([3, 3]).padding([1, 1]);
    let matrix = conv.matrix(&weight, Some(bias.view()), [size, size]).unwrap();

    assert_eq!(matrix.shape(), [channels * size * size, channels * size * size + 1]);
    assert_eq!(matrix.nnz(), 113_070_080);
    let indptr: &[i32] = matrix.indptr().unwrap().as_slice().expect("32-bit indices suffice");
    let indices: &[i32] = matrix.indices().unwrap().as_slice().expect("32-bit indices suffice");
    assert_eq!(indptr.len(), channels * size * size + 1);
    let mut pointer = 0i64;
    for (row, &found) in indptr[..indptr.len() - 1].iter().enumerate() {
        assert_eq!(i64::from(found), pointer, "row {row}");
        let reach = |o: usize| if o == 0 || o == size - 1 { 2 } else { 3 };
        pointer += (channels * reach(row / size % size) * reach(row % size) + 1) as i64;
    }
    assert_eq!(i64::from(indptr[indptr.len() - 1]), pointer);

    // Whole rows, a prime stride apart, by the definition.
    for row in (0..matrix.rows()).step_by(1009).chain([matrix.rows() - 1]) {
        let (co, oh, ow) = (row / (size * size), row / size % size, row % size);
        let mut expected = Vec::new();
        for ci in 0..channels {
            for tap in 0..9 {
                let (ih, iw) = (oh + tap / 3, ow + tap % 3);
                if (1..=size).contains(&ih) && (1..=size).contains(&iw) {
                    let column = (ci * size + ih - 1) * size + iw - 1;
                    expected.push((column, ((co * channels + ci) * 9 + tap) as f32));
                }
            }
        }
        expected.push((channels * size * size, -1.0 - co as f32));
        assert!(matrix.row(row).unwrap().iter().eq(expected), "row {row}");
    }
    // Canonical throughout: a row's columns ascend, and the bias column is last.
    let ascends = |r: &[i32]| r.windows(2).all(|w| w[0] < w[1]);
    let rows = indptr.windows(2).map(|p| &indices[p[0] as usize..p[1] as usize]);
    assert!(rows.into_iter().all(ascends));
}

#[test]
fn merged_taps_are_rounded_once() {
    // Replicate padding makes all three taps read the only input: 2048 + 1 + 1 is 2050 in f16 if
    // rounded once, 2048 if rounded after each addition.
    let conv = Conv::new([3]).padding([1]).padding_mode(PaddingMode::Replicate);
    let weight = tensor::<f16>(&[1, 1, 3], &[2048.0, 1.0, 1.0]);
    let matrix = conv.matrix(&weight, None, [1]).unwrap();
    assert_eq!((matrix.nnz(), matrix.data().unwrap()[0].to_f64()), (1, 2050.0));
}

#[test]
fn values_are_copied_bit_by_bit() {
    let bits = [0x7FC0_1234u32, 0x8000_0000, 0x0000_0001, 0xFF80_0000];
    let weight = Tensor::from_vec(&Device::Cpu, &[1, 1, 4], bits.map(f32::from_bits).to_vec());
    let matrix = Conv::new([4]).matrix(&weight.unwrap(), None, [4]).unwrap();
    let found: Vec<u32> = matrix.data().unwrap().iter().map(|v| v.to_bits()).collect();
    assert_eq!(found, bits);
    assert_eq!(matrix.eliminate_zeros().unwrap().nnz(), 3);
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let conv = Conv::new([3, 3]).groups(2);
    let weight = |shape: &[usize]| tensor::<f32>(shape, &vec![0.0; shape.iter().product()]);
    let error = |c: Conv<2>, w: &Tensor<f32>, b: Option<&Tensor<f32>>, size| {
        c.matrix(w, b.map(Tensor::view), size).unwrap_err().to_string()
    };
    for (message, expected) in [
        (
            error(conv, &weight(&[4, 1, 3]), None, [5, 5]),
            "weight has shape [4, 1, 3], expected rank 4",
        ),
        (error(conv, &weight(&[4, 1, 3, 2]), None, [5, 5]), "weight has shape [4, 1, 3, 2]"),
        (error(conv, &weight(&[3, 1, 3, 3]), None, [5, 5]), "output channels is 3"),
        (error(conv, &weight(&[4, 0, 3, 3]), None, [5, 5]), "weight channels is 0"),
        (error(conv, &weight(&[4, 1, 3, 3]), None, [5, 2]), "kernel extent on axis 1 is 3"),
        (error(conv, &weight(&[4, 1, 3, 3]), Some(&weight(&[2])), [5, 5]), "bias has shape [2]"),
    ] {
        assert!(message.contains(expected), "{message}");
    }
    let matrix = conv.matrix(&weight(&[4, 1, 3, 3]), None, [5, 5]).unwrap();
    let message = matrix.mul_vector(&weight(&[49])).unwrap_err().to_string();
    assert_eq!(message, "x has shape [49], expected [50]");
    let message = matrix.adjoint_mul_matrix(&weight(&[36])).unwrap_err().to_string();
    assert_eq!(message, "y has shape [36], expected [36, vectors]");
}
