//! Sparse matrices of given parts.

use super::*;

#[test]
fn malformed_parts_are_refused_with_the_place() {
    let new = |indptr: &[i32], indices: &[i32]| {
        let data = vec![1.0f32; indices.len()];
        Csr::new([2, 3], indptr.to_vec(), indices.to_vec(), data).map(drop)
    };
    assert!(new(&[0, 2, 3], &[0, 2, 1]).is_ok());
    for (indptr, indices, expected) in [
        (&[0, 2][..], &[0, 2][..], "indptr has shape [2], expected [3], one more than rows"),
        (&[], &[], "indptr has shape [0]"),
        (&[1, 2, 3], &[0, 2, 1], "indptr[0] is 1: it must be 0"),
        (&[0, 2, 4], &[0, 2, 1], "indptr[2] is 4: it must be the number of entries, 3"),
        (&[0, 4, 3], &[0, 2, 1], "indptr[2] is 3: it must not be less than indptr[1] = 4"),
        (&[0, -1, 3], &[0, 2, 1], "indptr[1] is -1: it must not be less than indptr[0] = 0"),
        (&[0, 2, 3], &[0, 3, 1], "indices[1] is 3: the column of an entry of row 0"),
        (&[0, 2, 3], &[0, 2, -1], "indices[2] is -1: the column of an entry of row 1"),
        (
            &[0, 2, 3],
            &[2, 0, 1],
            "indices[1] is 0: the columns of row 0 must ascend strictly, but 2",
        ),
        (
            &[0, 1, 3],
            &[0, 1, 1],
            "indices[2] is 1: the columns of row 1 must ascend strictly, but 1",
        ),
    ] {
        let message = new(indptr, indices).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    let message =
        Csr::new([1, 1], vec![0i32, 1], vec![0i64], vec![1.0f32]).unwrap_err().to_string();
    assert_eq!(message, "indices has element type i64, expected i32, as indptr has");
    let message = Csr::new([1, 1], vec![0, 1], vec![0], vec![1.0f32; 2]).unwrap_err().to_string();
    assert!(
        message.contains("indices has shape [1], expected [2], as many as values"),
        "{message}"
    );
    let message = Csr::new([1, 1 << 31], vec![0, 0], vec![0i32; 0], Vec::<f32>::new());
    assert!(matches!(message, Err(Error::TooLarge { .. })));
    let message = Csc::new([2, 1], vec![0, 1], vec![2], vec![1.0f32]).unwrap_err().to_string();
    assert!(message.contains("indices[0] is 2: the row of an entry of column 0"), "{message}");
}

#[test]
fn empty_matrices_are_matrices() {
    let empty = Csr::new([0, 0], vec![0], vec![0i32; 0], Vec::<f32>::new()).unwrap();
    assert_eq!(empty.transpose().unwrap(), empty);
    assert_eq!(empty.to_dense().unwrap().shape(), [0, 0]);
    let flat = Csr::new([2, 0], vec![0, 0, 0], vec![0i32; 0], Vec::<f32>::new()).unwrap();
    assert_eq!(flat.transpose().unwrap().shape(), [0, 2]);
    assert_eq!(values(&flat.mul_vector(&tensor(&[0], &[])).unwrap()), [0.0, 0.0]);
    assert_eq!(flat.adjoint_mul_matrix(&tensor(&[2, 3], &[0.0; 6])).unwrap().shape(), [0, 3]);
    assert_eq!(flat.iter_rows().unwrap().len(), 2);
    assert!(flat.row(2).is_none());
    // Every tap of the only row falls into the padding.
    let dropped = Conv::new([1]).padding([(1, 0)]).stride([2]);
    let matrix = dropped.matrix(&tensor::<f32>(&[1, 1, 1], &[5.0]), None, [1]).unwrap();
    assert_eq!((matrix.shape(), matrix.nnz()), ([1, 1], 0));
}

#[test]
fn triplets_add_up_in_order() {
    let (rows, columns) = (vec![1, 0, 1, 1], vec![2, 0, 0, 2]);
    let coo = Coo::new([3, 3], rows, columns, vec![1.0f32, 2.0, 3.0, 4.0]).unwrap();
    let expected = Csr::new([3, 3], vec![0, 1, 3, 3], vec![0, 0, 2], vec![2.0f32, 3.0, 5.0]);
    assert_eq!(coo.to_csr().unwrap(), expected.unwrap());
    assert_eq!(values(&coo.to_dense().unwrap()), [2.0, 0.0, 0.0, 3.0, 0.0, 5.0, 0.0, 0.0, 0.0]);
    let message =
        Coo::new([3, 3], vec![0, 3], vec![0, 0], vec![1.0f32; 2]).unwrap_err().to_string();
    assert_eq!(message, "rows[1] is 3: it must be at least 0 and below 3");
    let message = Coo::new([3, 3], vec![0], vec![-1], vec![1.0f32]).unwrap_err().to_string();
    assert_eq!(message, "columns[0] is -1: it must be at least 0 and below 3");
}

#[cfg(feature = "sprs")]
#[test]
fn sprs_wraps_without_copying() {
    let conv = Conv::new([3, 3]).padding([1, 1]);
    let weight = tensor::<f32>(&[2, 3, 3, 3], &integers(54, 5, 3));
    let matrix = conv.matrix(&weight, None, [4, 5]).unwrap();
    assert!(matrix.as_sprs::<i64>().is_none());
    let view = matrix.as_sprs::<i32>().unwrap();
    assert_eq!((view.shape(), view.nnz()), ((40, 60), matrix.nnz()));
    assert!(std::ptr::eq(view.data(), matrix.data().unwrap()));
    let x = randoms(60, 6).iter().map(|&v| v as f32).collect::<Vec<_>>();
    let product = &view * &sprs::CsVecI::<f32, i32>::new(60, (0..60).collect(), x.clone());
    let ours = matrix.mul_vector(&Tensor::from_vec(&Device::Cpu, &[60], x).unwrap()).unwrap();
    for (&found, expected) in ours.as_slice().unwrap().iter().zip(product.to_dense()) {
        assert!((found - expected).abs() < 1e-4);
    }
    let address = matrix.data().unwrap().as_ptr();
    let matrix = matrix.into_sprs::<i64>().unwrap_err();
    let owned = matrix.clone().into_sprs::<i32>().unwrap();
    let back = Csr::from_sprs(owned).unwrap();
    assert_eq!(back, matrix);
    let moved = matrix.into_sprs::<i32>().unwrap();
    assert_eq!(moved.data().as_ptr(), address);
    let refused = Csr::from_sprs(moved.into_csc()).unwrap_err().to_string();
    assert!(refused.contains("CSC"), "{refused}");
}
