//! The matrix of a layer with a sparse weight, and weights in files.

use convmat::{Conv, Csr, Element, Error, Pruning, SparseWeight, with_axes};
use proptest::prelude::*;

use crate::catalogue::{accelerators, cases, conv, integers, last, on, tensor, values};
use crate::oracle::Case;

fn pruned<T: Element, const D: usize>(c: &Case, seed: u64, pruning: Pruning) -> SparseWeight<T> {
    let dense = tensor::<T>(&c.weight_shape(), &integers(c.weight_len(), seed, 2));
    SparseWeight::from_dense(&conv::<D>(c), &dense, pruning).unwrap()
}

/// That of the dense weight, with fewer entries: none where nothing is stored.
fn check<T: Element, const D: usize>(c: &Case, seed: u64, bias: bool) {
    let (conv, size) = (conv::<D>(c), last(c.input));
    let weight = pruned::<T, D>(c, seed, Pruning::Threshold(1.0));
    let b = bias.then(|| tensor::<T>(&[c.outputs], &integers(c.outputs, seed ^ 1, 2)));
    let b = b.as_ref();
    let matrix = conv.sparse_matrix(&weight, b.map(|b| b.view()), size).unwrap();
    let dense = conv.matrix(&weight.to_dense().unwrap(), b.map(|b| b.view()), size).unwrap();
    assert_eq!(matrix.to_dense().unwrap(), dense.to_dense().unwrap());
    // Sums of entries may be zero, but these are entries all the same.
    let ones = weight.with_values(tensor::<T>(&[weight.entries()], &vec![1.0; weight.entries()]));
    let ones = ones.unwrap();
    let pattern = conv.sparse_matrix(&ones, b.map(|b| b.view()), size).unwrap();
    let all = conv.matrix(&ones.to_dense().unwrap(), b.map(|b| b.view()), size).unwrap();
    let bias_zeros = b.map_or(0, |b| values(b).iter().filter(|&&b| b == 0.0).count());
    let stored = all.eliminate_zeros().unwrap().nnz() + bias_zeros * c.positions();
    assert_eq!((pattern.nnz(), matrix.nnz()), (stored, stored), "{c:?}");
    // Of all entries it is the dense one, bit by bit.
    let full = pruned::<T, D>(c, seed, Pruning::TopK(c.weight_len()));
    let dense = conv.matrix(&full.to_dense().unwrap(), b.map(|b| b.view()), size).unwrap();
    assert_eq!(conv.sparse_matrix(&full, b.map(|b| b.view()), size).unwrap(), dense);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn only_stored_entries_are_in_the_matrix(c in cases(), seed: u64, bias: bool) {
        with_axes!(c.spatial, D => {
            check::<f32, D>(&c, seed, bias);
            check::<half::bf16, D>(&c, seed, bias);
            Ok::<(), Error>(())
        })?;
    }
}

#[test]
fn matrices_are_made_on_the_host() {
    let conv = Conv::new([2]);
    let dense = tensor::<f32>(&[1, 1, 2], &[1., 2.]);
    let weight = SparseWeight::from_dense(&conv, &dense, Pruning::Threshold(0.)).unwrap();
    let short = tensor::<f32>(&[2], &[1., 2.]);
    let refused = conv.sparse_matrix(&weight, Some(short.view()), [3]).unwrap_err();
    assert!(matches!(refused, Error::Shape { .. }), "{refused}");
    for device in accelerators() {
        let there = weight.clone().to_device(device).unwrap();
        let refused = conv.sparse_matrix(&there, None, [3]).unwrap_err();
        assert!(matches!(refused, Error::DeviceMismatch { .. }), "{refused}");
        let bias = on(device, &tensor::<f32>(&[1], &[1.]));
        let refused = conv.sparse_matrix(&weight, Some(bias.view()), [3]).unwrap_err();
        assert!(matches!(refused, Error::DeviceMismatch { .. }), "{refused}");
    }
}

#[cfg(feature = "io")]
mod files {
    use convmat::TensorView;
    use convmat::io::NpzWriter;

    use super::*;

    fn layer() -> Conv<1> {
        Conv::new([2])
    }

    /// An archive with these arrays of integers and, as `data` or `values`, of f32.
    fn archive(
        format: Option<&[u8]>,
        integers: &[(&str, &[i64])],
        values: (&str, &[f32]),
    ) -> tempfile::TempDir {
        let folder = tempfile::TempDir::new().unwrap();
        let mut writer = NpzWriter::create(folder.path().join("w.npz")).unwrap();
        if let Some(format) = format {
            writer.add_bytes_string("format", format).unwrap();
        }
        integers.iter().for_each(|(name, of)| writer.add_i64(name, of).unwrap());
        let shape = [values.1.len()];
        writer.add(values.0, TensorView::from_slice(&shape, values.1).unwrap()).unwrap();
        writer.finish().unwrap();
        folder
    }

    fn load(folder: &tempfile::TempDir) -> Result<SparseWeight<f32>, Error> {
        SparseWeight::load_npz(&layer(), folder.path().join("w.npz"))
    }

    #[test]
    fn weights_come_back_from_files_of_every_form() {
        let expected = SparseWeight::from_parts(
            &layer(),
            [2, 4],
            vec![0i32, 2, 3],
            vec![0i32, 3, 1],
            vec![1f32, 5., 3.],
        )
        .unwrap();
        let shape = ("shape", &[2i64, 4][..]);
        // Out of order, with a duplicate.
        let row = ("row", &[1i64, 0, 0, 0][..]);
        let col = ("col", &[1i64, 3, 0, 3][..]);
        let data = ("data", &[3f32, 2., 1., 3.][..]);
        assert_eq!(load(&archive(Some(b"coo"), &[shape, row, col], data)).unwrap(), expected);
        let indptr = ("indptr", &[0i64, 3, 4][..]);
        let indices = ("indices", &[3i64, 0, 3, 1][..]);
        let data = ("data", &[2f32, 1., 3., 3.][..]);
        assert_eq!(
            load(&archive(Some(b"csr"), &[shape, indptr, indices], data)).unwrap(),
            expected
        );
        let size = ("size", &[2i64, 4][..]);
        let parts = [("crow_indices", indptr.1), ("col_indices", indices.1), size];
        assert_eq!(load(&archive(None, &parts, ("values", data.1))).unwrap(), expected);
        let folder = tempfile::TempDir::new().unwrap();
        expected.to_csr().unwrap().save_npz(folder.path().join("w.npz")).unwrap();
        assert_eq!(load(&folder).unwrap(), expected);
        let again = Csr::<f32>::load_npz(folder.path().join("w.npz")).unwrap();
        assert_eq!(SparseWeight::from_csr(&layer(), &again).unwrap(), expected);
    }

    #[test]
    fn malformed_files_are_refused() {
        let (shape, data) = (("shape", &[2i64, 4][..]), ("data", &[1f32][..]));
        let (row, col) = (("row", &[1i64][..]), ("col", &[1i64][..]));
        let reason = |folder: &tempfile::TempDir| match load(folder) {
            Err(Error::Format { reason, .. }) => reason,
            other => panic!("{other:?}"),
        };
        let of = |format, parts: &[(&str, &[i64])]| reason(&archive(Some(format), parts, data));
        let found = of(b"csc", &[shape]);
        assert_eq!(found, "the sparse format is \"csc\", expected \"csr\" or \"coo\"");
        assert_eq!(of(b"coo", &[("shape", &[4]), row, col]), "the matrix has shape [4]");
        let found = of(b"coo", &[shape, row, ("col", &[4])]);
        assert_eq!(found, "columns[0] is 4: it must be at least 0 and below 4");
        let found = of(b"csr", &[shape, ("indptr", &[0, 2, 1]), ("indices", &[0])]);
        assert_eq!(found, "indptr[1] is 2: the number of entries is 1");
        assert!(!of(b"coo", &[shape, row]).is_empty());
        let other = archive(Some(b"coo"), &[("shape", &[2, 3]), row, col], data);
        assert!(matches!(load(&other), Err(Error::Shape { .. })));
    }

    /// Rows cost memory, and a few triplets could ask for any number of them.
    #[test]
    fn triplets_do_not_ask_for_more_rows_than_a_file_accounts_for() {
        const EMPTY: i64 = 1 << 18;
        let (row, col, data) = (("row", &[1i64][..]), ("col", &[1i64][..]), ("data", &[1f32][..]));
        let of = |rows| load(&archive(Some(b"coo"), &[("shape", &[rows, 4]), row, col], data));
        assert_eq!(of(EMPTY + 1).unwrap().shape(), [EMPTY as usize + 1, 4]);
        for rows in [EMPTY + 2, i64::from(i32::MAX), i64::MAX] {
            let Err(Error::Format { reason, .. }) = of(rows) else { panic!("{rows} rows") };
            assert_eq!(
                reason,
                format!(
                    "the matrix has {rows} rows for 1 entries, of which at most 262144 may be empty"
                )
            );
        }
    }
}
