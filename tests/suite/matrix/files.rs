//! Matrices in files, and those of other programs.

use std::path::{Path, PathBuf};

use convmat::io::{ArrayType, NpzReader, SafetensorsReader};

use super::*;

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A recorded layer: its weight, its bias and the matrix SciPy made of PyTorch's own outputs
/// (`tests/data/matrix/generate.py`).
fn recorded(name: &str) -> (Tensor<f32>, Option<Tensor<f32>>, Csr<f32>) {
    let path = project(&format!("tests/data/matrix/{name}.npz"));
    let mut layer = NpzReader::open(project("tests/data/matrix/layers.npz")).unwrap();
    let weight = layer.read(&format!("{name}.weight")).unwrap().into_tensor().unwrap();
    let bias = layer.read(&format!("{name}.bias")).ok().map(|b| b.into_tensor().unwrap());
    (weight, bias, Csr::load_npz(path).unwrap())
}

#[test]
fn matrices_equal_those_of_pytorch_and_scipy() {
    let (w, b, expected) = recorded("grouped");
    let conv = Conv::new([3, 2]).stride([2, 1]).padding([1, 2]).dilation([1, 2]).groups(2);
    assert_eq!(conv.matrix(&w, b.as_ref().map(Tensor::view), [5, 4]).unwrap(), expected);

    let (w, b, expected) = recorded("reflect");
    let conv = Conv::new([4]).padding([3]).padding_mode(PaddingMode::Reflect);
    assert_eq!(conv.matrix(&w, b.as_ref().map(Tensor::view), [5]).unwrap(), expected);

    let (w, b, expected) = recorded("circular");
    let conv = Conv::new([3, 3]).padding([2, 1]).padding_mode(PaddingMode::Circular);
    assert_eq!(conv.matrix(&w, b.as_ref().map(Tensor::view), [3, 4]).unwrap(), expected);

    let (w, b, expected) = recorded("replicate");
    let conv = Conv::new([2, 3, 2]).stride([1, 2, 1]).padding([1, 1, 1]);
    let conv = conv.padding_mode(PaddingMode::Replicate);
    assert_eq!(conv.matrix(&w, b.as_ref().map(Tensor::view), [2, 3, 2]).unwrap(), expected);

    let (w, b, expected) = recorded("transposed");
    let conv = Conv::new([3, 2]).stride([2, 3]).padding([1, 0]).dilation([1, 2]).groups(2);
    let bias = b.as_ref().map(Tensor::view);
    assert_eq!(conv.transposed_matrix(&w, bias, [3, 2], [1, 2]).unwrap(), expected);
}

#[test]
fn the_digits_network_has_the_recorded_entries() {
    let mut golden = NpzReader::open(project("data/digits_golden.npz")).unwrap();
    let mut layers = SafetensorsReader::open(project("data/digits_cnn.safetensors")).unwrap();
    let reflect = Conv::new([3, 3]).padding([1, 1]).padding_mode(PaddingMode::Reflect);
    let grouped = Conv::new([3, 3]).stride([2, 2]).padding([1, 1]).groups(4);
    let dilated = Conv::new([3, 3]).padding([2, 2]).dilation([2, 2]);
    for (layer, conv, size) in [("conv1", reflect, 8), ("conv2", grouped, 8), ("conv3", dilated, 4)]
    {
        let weight = layers.read(&format!("{layer}.weight")).unwrap();
        let weight: Tensor<f32> = weight.into_tensor().unwrap();
        let nnz = golden.read(&format!("{layer}.nnz")).unwrap().to_integers().unwrap();
        let counted = conv.matrix_size(weight.shape(), false, [size, size]).unwrap();
        assert_eq!(counted.nnz(), nnz[0] as u64);
        assert_eq!(conv.matrix(&weight, None, [size, size]).unwrap().nnz(), nnz[0] as usize);
    }
}

fn round_trip<T: Element>(matrix: &Csr<f32>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("matrix.npz");
    let (indptr, indices, data) = matrix.clone().into_parts().unwrap();
    let data = data.iter().map(|v| T::from_f64(v.to_f64())).collect();
    let matrix = Csr::<T>::new(matrix.shape(), indptr, indices, data).unwrap();
    matrix.save_npz(&path).unwrap();
    assert_eq!(Csr::<T>::load_npz(&path).unwrap(), matrix);
    let mut archive = NpzReader::open(&path).unwrap();
    // scipy.sparse.load_npz asks for exactly these.
    assert_eq!(archive.read("format").unwrap().dtype(), ArrayType::Bytes(3));
    assert_eq!(
        archive.read("shape").unwrap().to_integers().unwrap(),
        matrix.shape().map(|n| n as i64)
    );
    assert_eq!(archive.read("data").unwrap().dtype(), ArrayType::Float(T::DTYPE));
}

#[test]
fn written_matrices_are_read_back() {
    let (.., matrix) = recorded("grouped");
    round_trip::<f32>(&matrix);
    round_trip::<f64>(&matrix);
    round_trip::<f16>(&matrix);
    let (indptr, indices, data) = matrix.clone().into_parts().unwrap();
    let wide = |i: Indices| Indices::I64(i.view().iter().map(|i| i as i64).collect());
    round_trip::<f32>(&Csr::new(matrix.shape(), wide(indptr), wide(indices), data).unwrap());

    let (indptr, indices, data) = matrix.clone().into_parts().unwrap();
    let data = data.iter().map(|v| bf16::from_f32(*v)).collect();
    let brain = Csr::new(matrix.shape(), indptr, indices, data).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("brain.npz");
    brain.save_npz(&path).unwrap();
    assert_eq!(Csr::<f32>::load_npz(&path).unwrap(), matrix);
}

#[test]
fn files_that_hold_no_such_matrix_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.npz");
    let write = |format: &[u8], shape: &[i64], indices: &[i32]| {
        let mut file = convmat::io::NpzWriter::create(&path).unwrap();
        file.add_bytes_string("format", format).unwrap();
        file.add_i64("shape", shape).unwrap();
        file.add_i32("indptr", &[0, 2]).unwrap();
        file.add_i32("indices", indices).unwrap();
        file.add("data", &tensor::<f32>(&[2], &[1.0, 2.0])).unwrap();
        file.finish().unwrap();
        Csr::<f32>::load_npz(&path)
    };
    assert!(write(b"csr", &[1, 2], &[0, 1]).is_ok());
    assert!(matches!(Csr::<f64>::load_npz(&path), Err(Error::ElementType { .. })));
    let refused = |result: Result<Csr<f32>, Error>| match result.unwrap_err() {
        Error::Format { reason, .. } => reason,
        other => panic!("{other:?}"),
    };
    assert!(refused(write(b"csc", &[1, 2], &[0, 1])).contains("the sparse format is \"csc\""));
    assert!(refused(write(b"csr", &[1, -2], &[0, 1])).contains("shape [1, -2]"));
    assert!(refused(write(b"csr", &[2], &[0, 1])).contains("shape [2]"));
    assert!(refused(write(b"csr", &[1, 2], &[0, 2])).contains("indices[1] is 2"));
    assert!(refused(write(b"csr", &[1, 2], &[1, 0])).contains("must ascend strictly"));
}
