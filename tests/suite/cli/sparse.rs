//! Pruned weights: what is kept, what is written, and convolving with it.

use convmat::{Conv, Csr, Device, Pruning, SparseWeight};
use serde_json::json;

use super::Folder;
use crate::catalogue::{devices, integers, tensor, values};

/// Output channels 4, channels 8 in two groups, kernel 3x2.
const SHAPE: [usize; 4] = [4, 4, 3, 2];

fn weight() -> Vec<f64> {
    integers(96, 3, 5)
}

#[test]
fn what_is_kept_is_written_and_reported() {
    let folder = Folder::new();
    folder.write::<f32>("w.npy", &SHAPE, &weight());
    let dense = tensor::<f32>(&SHAPE, &weight());
    let conv = Conv::new([3, 2]);
    for (flags, pruning, name) in [
        (["--threshold", "2"], Pruning::Threshold(2.), "threshold 2"),
        (["--top-k", "20"], Pruning::TopK(20), "top 20"),
        (["--pattern", "2:4"], Pruning::TWO_OF_FOUR, "2:4"),
    ] {
        let object = folder.json(&[&["prune", "w.npy", "-o", "p.npz"][..], &flags].concat());
        let expected = SparseWeight::from_dense(&conv, &dense, pruning).unwrap();
        assert_eq!(object["shape"], json!([4, 24]));
        assert_eq!(object["kernel"], json!([3, 2]));
        assert_eq!(object["entries"], json!(expected.entries()));
        assert_eq!(object["sparsity"], json!(expected.sparsity()));
        assert_eq!(object["pruning"], json!(name));
        let path = folder.path("p.npz");
        assert_eq!(Csr::load_npz(&path).unwrap(), expected.to_csr().unwrap());
    }
    let text =
        String::from_utf8(folder.run(&["prune", "w.npy", "--top-k", "24", "-o", "p.npz"]).stdout);
    assert!(text.unwrap().contains("75%"));
}

#[test]
fn sparse_weights_are_convolved_with() {
    let usable = |device: &&Device| !device.to_string().starts_with("cuda");
    for device in devices().iter().filter(usable) {
        let folder = Folder::on(device);
        folder.write::<f32>("w.npy", &SHAPE, &weight());
        folder.write::<f32>("x.npy", &[2, 8, 5, 6], &integers(480, 1, 3));
        folder.write::<f32>("b.npy", &[4], &[1., 2., 3., 4.]);
        folder.json(&["prune", "w.npy", "--threshold", "1", "-o", "p.npz"]);
        let flags = ["--groups", "2", "--padding", "1", "--stride", "2", "-o", "y.npy"];
        let head = ["conv", "x.npy", "p.npz", "--kernel", "3x2", "--bias", "b.npy"];
        let object = folder.json(&[&head[..], &flags].concat());
        let conv = Conv::new([3, 2]).groups(2).padding([1, 1]).stride([2, 2]);
        let dense = tensor::<f32>(&SHAPE, &weight());
        let kept = SparseWeight::from_dense(&conv, &dense, Pruning::Threshold(1.)).unwrap();
        assert_eq!(object["entries"], json!(kept.entries()));
        let x = tensor::<f32>(&[2, 8, 5, 6], &integers(480, 1, 3));
        let b = tensor::<f32>(&[4], &[1., 2., 3., 4.]);
        let dense = kept.to_dense().unwrap();
        let y = conv.forward(&x, &dense, Some(b.view())).unwrap();
        assert_eq!(values(&folder.read::<f32>("y.npy")), values(&y));

        let head = ["conv", "y.npy", "p.npz", "--kernel", "3x2", "--transposed"];
        let flags = ["--groups", "2", "--padding", "1", "--stride", "2", "-o", "z.npy"];
        let object = folder.json(&[&head[..], &flags, &["--output-padding", "0x1"]].concat());
        assert_eq!(object["geometry"]["transposed"], json!(true));
        let z = conv.transposed(&y, &dense, None, [0, 1]).unwrap();
        assert_eq!(values(&folder.read::<f32>("z.npy")), values(&z));
    }
}

#[test]
fn a_sparse_filter_gathers_patches() {
    let folder = Folder::new();
    folder.write::<f64>("x.npy", &[1, 3, 6, 5], &integers(90, 1, 9));
    let filter = ["filter", "--channels", "3", "--kernel", "3x3", "--sparse", "--dtype", "f64"];
    folder.json(&[&filter[..], &["-o", "f.npz"]].concat());
    let flags = ["--kernel", "3x3", "--padding", "1", "--padding-mode", "reflect"];
    folder.json(&[&["unfold", "x.npy", "-o", "a.npy"][..], &flags].concat());
    folder.json(&[&["conv", "x.npy", "f.npz", "-o", "y.npy"][..], &flags].concat());
    let (patches, y) = (folder.read::<f64>("a.npy"), folder.read::<f64>("y.npy"));
    assert_eq!(y.shape(), [1, 27, 6, 5]);
    assert_eq!(values(&y), values(&patches));
}

#[test]
fn what_cannot_be_is_refused() {
    let folder = Folder::new();
    folder.write::<f32>("w.npy", &SHAPE, &weight());
    folder.write::<f32>("x.npy", &[1, 4, 5, 6], &integers(120, 1, 3));
    folder.write::<f64>("x64.npy", &[1, 4, 5, 6], &integers(120, 1, 3));
    folder.json(&["prune", "w.npy", "--threshold", "1", "-o", "p.npz"]);
    folder.fails(2, "prune w.npy --threshold=-1 -o q.npz", &["--threshold is -1"]);
    folder.fails(2, "prune w.npy --top-k 97 -o q.npz", &["--top-k is 97", "96 entries"]);
    folder.fails(2, "prune w.npy --pattern 5:4 -o q.npz", &["5:4", "at most all of them"]);
    folder.fails(2, "prune w.npy --threshold 1 -o q.npy", &["--output is q.npy", ".npz"]);
    folder.fails(2, "conv x.npy p.npz -o y.npy", &["W (p.npz)", "needs --kernel"]);
    folder.fails(2, "conv x.npy p.npz --kernel 5 -o y.npy", &["W (p.npz)", "25 taps"]);
    let algorithm = "conv x.npy p.npz --kernel 3x2 --algorithm im2col -o y.npy";
    folder.fails(2, algorithm, &["--algorithm is im2col", "one way only"]);
    let types = "conv x64.npy p.npz --kernel 3x2 -o y.npy";
    folder.fails(2, types, &["W (p.npz) is f32", "X is f64"]);
    let channels = "conv x.npy p.npz --kernel 3x2 --groups 2 -o y.npy";
    folder.fails(2, channels, &["X (x.npy)", "8 channels, as the weight has"]);
}
