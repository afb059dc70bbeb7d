//! How sparse weights are made: pruned from dense ones, and from matrices of any origin.

use convmat::{
    Conv, Coo, Csr, Device, Element, Error, Layout, Pruning, SparseWeight, Tensor, with_axes,
};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::catalogue::{accelerators, cases, conv, integers, tensor, values};
use crate::oracle::Case;

/// What is kept of a dense weight, as another one.
fn pruned<T: Element>(case: &Case, dense: &[f64], pruning: Pruning) -> SparseWeight<T> {
    let dense = tensor::<T>(&case.weight_shape(), dense);
    with_axes!(case.spatial, D => SparseWeight::from_dense(&conv::<D>(case), &dense, pruning))
        .unwrap()
}

/// Where element (row, column) of the matrix is in the dense weight: the table in the documentation.
fn dense_index(case: &Case, row: usize, column: usize) -> usize {
    let (per_group, taps) = (case.channels / case.groups, case.taps());
    match case.layout {
        Layout::ChannelsFirst => case.weight_index(row, column / taps, column % taps),
        Layout::ChannelsLast => case.weight_index(row, column % per_group, column / per_group),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn thresholds_keep_what_is_larger(c in cases(), seed: u64, threshold in 0u8..4) {
        let dense = integers(c.weight_len(), seed, 4);
        let weight = pruned::<f32>(&c, &dense, Pruning::Threshold(threshold.into()));
        let kept = |v: f64| if v.abs() > threshold.into() { v } else { 0.0 };
        let expected: Vec<f64> = dense.iter().map(|&v| kept(v)).collect();
        let entries = expected.iter().filter(|&&v| v != 0.0).count();
        prop_assert_eq!(values(&weight.to_dense().unwrap()), expected);
        prop_assert_eq!(weight.entries(), entries);
        let sparsity = 1.0 - entries as f64 / dense.len() as f64;
        prop_assert!((weight.sparsity() - sparsity).abs() < 1e-12);
        prop_assert_eq!(weight.dense_shape(), c.weight_shape());
    }

    #[test]
    fn the_largest_entries_are_kept_and_ties_go_to_the_first(c in cases(), seed: u64, part in 0.0..1.0) {
        let dense = integers(c.weight_len(), seed, 2);
        let count = (part * dense.len() as f64) as usize;
        let weight = pruned::<f32>(&c, &dense, Pruning::TopK(count));
        prop_assert_eq!(weight.entries(), count);
        let [rows, columns] = weight.shape();
        let mut order: Vec<(usize, usize)> =
            (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))).collect();
        let magnitude = |&(row, column): &(usize, usize)| dense[dense_index(&c, row, column)].abs();
        order.sort_by(|a, b| magnitude(b).total_cmp(&magnitude(a)));
        order.truncate(count);
        order.sort_unstable();
        prop_assert_eq!(places(&weight), order);
    }

    #[test]
    fn every_block_of_channels_keeps_as_many(c in cases(), seed: u64, n in 1usize..4, more in 0usize..3) {
        let m = n + more;
        let dense = integers(c.weight_len(), seed, 2);
        let weight = pruned::<f64>(&c, &dense, Pruning::Pattern { n, m });
        let (per_group, taps) = (c.channels / c.groups, c.taps());
        let mut expected = vec![0.0; dense.len()];
        let mut entries = 0;
        for output in 0..c.outputs {
            for tap in 0..taps {
                let channels: Vec<usize> = (0..per_group).collect();
                for block in channels.chunks(m) {
                    let mut block = block.to_vec();
                    let at = |&channel: &usize| c.weight_index(output, channel, tap);
                    block.sort_by(|a, b| dense[at(b)].abs().total_cmp(&dense[at(a)].abs()));
                    block.truncate(n);
                    entries += block.len();
                    block.iter().for_each(|channel| expected[at(channel)] = dense[at(channel)]);
                }
            }
        }
        prop_assert_eq!(weight.entries(), entries);
        prop_assert_eq!(values(&weight.to_dense().unwrap()), expected);
    }

    #[test]
    fn matrices_of_weights_are_weights(c in cases(), seed: u64) {
        let dense = integers(c.weight_len(), seed, 1);
        let weight = pruned::<f32>(&c, &dense, Pruning::Threshold(0.0));
        let csr = weight.to_csr().unwrap();
        for (place, value) in places(&weight).into_iter().zip(values_of(&weight)) {
            prop_assert_eq!(value, dense[dense_index(&c, place.0, place.1)]);
        }
        let coo = csr.to_coo().unwrap();
        let again = with_axes!(c.spatial, D => {
            let conv = conv::<D>(&c);
            Ok::<_, Error>([SparseWeight::from_csr(&conv, &csr)?, SparseWeight::from_coo(&conv, &coo)?])
        });
        for again in again.unwrap() {
            prop_assert_eq!(&again, &weight);
        }
    }

    #[test]
    fn gathering_filters_are_sparse_weights(c in cases()) {
        let (weight, dense) = with_axes!(c.spatial, D => {
            let conv = conv::<D>(&c);
            let filter = conv.gathering_filter_coo::<f16>(c.channels)?;
            let weight = SparseWeight::from_coo(&conv, &filter)?;
            Ok::<_, Error>((weight.to_dense()?, conv.gathering_filter::<f16>(c.channels)?))
        })
        .unwrap();
        prop_assert_eq!(weight, dense);
    }
}

/// (row, column) of each entry.
fn places<T: Element>(weight: &SparseWeight<T>) -> Vec<(usize, usize)> {
    let rows = weight.indptr().windows(2).enumerate();
    let rows = rows.flat_map(|(row, ends)| vec![row; ends[1] - ends[0]]);
    rows.zip(weight.indices().iter().map(|&column| column as usize)).collect()
}

fn values_of<T: Element>(weight: &SparseWeight<T>) -> Vec<f64> {
    weight.values().to_vec().unwrap().into_iter().map(T::to_f64).collect()
}

/// Two input channels, kernel 2: four columns (channel, tap).
fn layer() -> Conv<1> {
    Conv::new([2])
}

#[test]
fn parts_in_any_order_with_duplicates_and_zeros_are_sorted_and_summed() {
    let weight = SparseWeight::from_parts(
        &layer(),
        [3, 4],
        vec![0i64, 4, 4, 6],
        vec![3i64, 1, 3, 0, 2, 2],
        vec![1f32, 2., 4., 0., -1., 1.],
    )
    .unwrap();
    // An empty row in the middle; a stored zero, and one that is the sum of what is stored.
    assert_eq!((weight.indptr(), weight.indices()), (&[0, 3, 3, 4][..], &[0, 1, 3, 2][..]));
    assert_eq!(values_of(&weight), [0., 2., 5., 0.]);
}

#[test]
fn half_types_are_added_up_before_they_are_rounded() {
    // 1 + 2⁻⁸ is half-way between two numbers of bf16, and so is lost if it is rounded at once.
    let small = bf16::from_f64(2f64.powi(-8));
    let coo =
        Coo::new([1, 4], vec![0; 3], vec![1; 3], vec![bf16::from_f64(1.), small, small]).unwrap();
    let weight = SparseWeight::from_coo(&layer(), &coo).unwrap();
    assert_eq!(values_of(&weight), [1. + 2f64.powi(-7)]);
}

#[test]
fn nan_is_kept() {
    let dense = tensor::<f32>(&[1, 2, 2], &[1., f64::NAN, f64::INFINITY, -2.]);
    for (pruning, kept) in [
        (Pruning::Threshold(f64::MAX), vec![1, 2]),
        (Pruning::TopK(1), vec![1]),
        (Pruning::TopK(2), vec![1, 2]),
        (Pruning::Pattern { n: 1, m: 2 }, vec![1, 2]),
    ] {
        let weight = SparseWeight::from_dense(&layer(), &dense, pruning).unwrap();
        assert_eq!(weight.indices(), kept, "{pruning}");
    }
}

#[test]
fn values_move_and_change() {
    let dense = tensor::<f32>(&[2, 2, 2], &[1., 0., 2., 0., 0., 0., 0., 3.]);
    let weight = SparseWeight::from_dense(&layer(), &dense, Pruning::Threshold(0.)).unwrap();
    let mut doubled = weight.with_values(tensor::<f64>(&[3], &[2., 4., 6.])).unwrap();
    assert_eq!(values_of(&doubled), [2., 4., 6.]);
    doubled.values_mut().as_mut_slice().unwrap()[0] = 7.;
    assert_eq!(values(&doubled.to_dense().unwrap()), [7., 0., 4., 0., 0., 0., 0., 6.]);
    let refused = weight.with_values(tensor::<f32>(&[2], &[1., 2.])).unwrap_err();
    assert_eq!(refused.to_string(), "values has shape [2], expected [3]");
    for device in accelerators() {
        let moved = weight.clone().to_device(device).unwrap();
        assert_eq!(moved.device(), *device);
        assert_eq!(moved.to_csr().unwrap(), weight.to_csr().unwrap());
        assert_eq!(moved.to_device(&Device::Cpu).unwrap(), weight);
    }
}

#[test]
fn malformed_weights_are_refused() {
    let parts = |shape, indptr: &[i32], indices: &[i32]| {
        let data = vec![1f32; indices.len()];
        SparseWeight::from_parts(&layer(), shape, indptr.to_vec(), indices.to_vec(), data)
            .unwrap_err()
            .to_string()
    };
    for (error, expected) in [
        (parts([2, 4], &[0, 1], &[0]), "indptr has shape [2], expected [3], one more than rows"),
        (parts([2, 4], &[1, 1, 1], &[0]), "indptr[0] is 1: it must be 0"),
        (parts([2, 4], &[0, 2, 1], &[0, 1]), "indptr[2] is 1: it must not be less than 2"),
        (parts([2, 4], &[0, 1, 3], &[0, 1]), "indptr[2] is 3: the number of entries is 2"),
        (parts([2, 4], &[0, 1, 1], &[0, 1]), "indptr[2] is 1: the number of entries is 2"),
        (parts([2, 4], &[0, -1, 1], &[0]), "indptr[1] is -1: the number of entries is 1"),
        (parts([2, 4], &[0, 1, 2], &[0, 4]), "columns[1] is 4: it must be at least 0 and below 4"),
        (
            parts([2, 4], &[0, 1, 2], &[-1, 0]),
            "columns[0] is -1: it must be at least 0 and below 4",
        ),
        (
            parts([2, 3], &[0, 0, 0], &[]),
            "weight has shape [2, 3], expected [output channels, channels of a group x the kernel's 2 taps]",
        ),
        (
            parts([2, 0], &[0, 0, 0], &[]),
            "weight has shape [2, 0], expected [output channels, channels of a group x the kernel's 2 taps]",
        ),
        (
            parts([0, 4], &[0], &[]),
            "weight output channels is 0: they must be a positive multiple of groups = 1",
        ),
    ] {
        assert_eq!(error, expected);
    }
    let widths = SparseWeight::from_parts(&layer(), [1, 4], vec![0i64, 1], vec![0i32], vec![1f32]);
    assert!(matches!(widths, Err(Error::ElementType { .. })));
    let lengths =
        SparseWeight::from_parts(&layer(), [1, 4], vec![0, 1], vec![0, 1], vec![1f32]).unwrap_err();
    assert!(matches!(lengths, Error::Shape { .. }), "{lengths}");
    let groups = Csr::new([3, 4], vec![0; 4], Vec::<i32>::new(), Vec::<f32>::new()).unwrap();
    let groups = SparseWeight::from_csr(&layer().groups(2), &groups).unwrap_err();
    assert!(matches!(groups, Error::Invalid { .. }), "{groups}");
    let rows = 1 << 31;
    let large = SparseWeight::<f32>::from_parts(
        &layer(),
        [rows, 4],
        Vec::<i64>::new(),
        Vec::<i64>::new(),
        vec![],
    );
    assert!(matches!(large, Err(Error::TooLarge { .. })));
}

#[test]
fn impossible_prunings_are_refused() {
    let dense = tensor::<f32>(&[1, 2, 2], &[1., 2., 3., 4.]);
    let error =
        |pruning| SparseWeight::from_dense(&layer(), &dense, pruning).unwrap_err().to_string();
    assert_eq!(error(Pruning::Threshold(-1.)), "threshold is -1: it must not be negative");
    assert_eq!(error(Pruning::Threshold(f64::NAN)), "threshold is NaN: it must not be negative");
    assert_eq!(error(Pruning::TopK(5)), "entries to keep is 5: the weight has 4 entries");
    let reason = "of each block at least 1 entry is kept, and at most all of them";
    assert_eq!(error(Pruning::Pattern { n: 0, m: 4 }), format!("pattern is 0:4: {reason}"));
    assert_eq!(error(Pruning::Pattern { n: 5, m: 4 }), format!("pattern is 5:4: {reason}"));
    assert_eq!("2:4".parse::<Pruning>().unwrap(), Pruning::TWO_OF_FOUR);
    assert_eq!(Pruning::TWO_OF_FOUR.to_string(), "2:4");
    assert!("2".parse::<Pruning>().is_err() && "4:2".parse::<Pruning>().is_err());
    let other = Conv::new([3]);
    let refused = SparseWeight::from_dense(&other, &dense, Pruning::TopK(1)).unwrap_err();
    assert!(matches!(refused, Error::Shape { .. }), "{refused}");
    for device in accelerators() {
        let there = dense.clone().to_device(device).unwrap();
        let refused = SparseWeight::from_dense(&layer(), &there, Pruning::TopK(1)).unwrap_err();
        assert!(matches!(refused, Error::DeviceMismatch { .. }), "{refused}");
    }
    let empty = SparseWeight::from_dense(&layer(), &dense, Pruning::TopK(0)).unwrap();
    assert_eq!((empty.entries(), empty.sparsity()), (0, 1.0));
    assert_eq!(empty.to_dense().unwrap(), Tensor::zeros(&Device::Cpu, &[1, 2, 2]).unwrap());
}
