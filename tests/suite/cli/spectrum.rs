//! Singular values: of layers, of assembled matrices and of networks.

use std::fs;
use std::path::{Path, PathBuf};

use convmat::io::NpzReader;
use serde_json::{Value, json};

use super::Folder;
use crate::catalogue::{randoms, values};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(name)
}

/// PyTorch's singular values of a layer of the digits network, descending.
fn golden(layer: &str) -> Vec<f64> {
    let mut archive = NpzReader::open(data("digits_golden.npz")).unwrap();
    let key = format!("{layer}.singular_values");
    values(&archive.read(&key).unwrap().into_tensor::<f64>().unwrap())
}

/// The digits network's layers: their name, the extents of their input, and their flags.
const DIGITS: [(&str, &str, &[&str]); 3] = [
    ("conv1", "8", &["--padding", "1", "--padding-mode", "reflect"]),
    ("conv2", "8x8", &["--stride", "2", "--padding", "1", "--groups", "4"]),
    ("conv3", "4", &["--padding", "2", "--dilation", "2"]),
];

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn assert_close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= tolerance * expected[0], "value {i} is {f}, expected {e}");
    }
}

fn args(command: &str) -> Vec<&str> {
    command.split(' ').collect()
}

/// By every method, and from the assembled matrix, the values are PyTorch's.
#[test]
fn layers_of_the_digits_network_have_the_values_of_pytorch() {
    let folder = Folder::new();
    for (layer, size, flags) in DIGITS {
        let weight = format!("{}:{layer}.weight", data("digits_cnn.safetensors").display());
        let expected = golden(layer);
        let head = [&["spectrum", &weight, "--input-size", size], flags].concat();
        let dense = folder.json(&[&head[..], &["--top", "all", "--method", "dense"]].concat());
        assert_eq!(dense["method"], "dense");
        assert_eq!(dense["converged"], json!(true));
        let found = numbers(&dense["values"]);
        assert_close(&found, &expected, 2e-6);
        let condition = dense["condition_number"].as_f64();
        assert!(condition.is_none_or(|c| c >= 1.0), "{condition:?}");
        let effective = dense["effective_rank"].as_f64().unwrap();
        assert!(effective >= 1.0 && effective <= expected.len() as f64);

        let iterated = [&head[..], &["--method", "lanczos", "--bracket", "-o", "s.npz"]].concat();
        let object = folder.json(&iterated);
        assert_eq!(object["method"], "lanczos");
        assert_close(&numbers(&object["values"]), &expected[..6], 2e-6);
        let residuals = numbers(&object["residuals"]);
        assert!(residuals.len() == 6 && residuals.iter().all(|r| *r <= 1e-6 * expected[0]));
        assert!(object["applications"].as_u64().unwrap() > 0);
        let norm = &object["norm"];
        let [lower, upper] = ["lower", "upper"].map(|end| norm[end].as_f64().unwrap());
        assert!(lower <= expected[0] * (1.0 + 1e-6) && lower >= 0.99 * expected[0], "{norm}");
        assert!(upper >= expected[0], "{norm}");
        assert!(norm["bound"].as_str().is_some_and(|text| !text.is_empty()), "{norm}");
        let likely = norm["probabilistic_upper"].as_f64().unwrap();
        assert!(likely >= expected[0] && likely <= 1.02 * expected[0], "{norm}");
        assert!(norm["failure_probability"].as_f64().is_some_and(|p| p > 0.0 && p < 1e-6));

        // Values and vectors, as rows.
        let [m, n] = [0, 1].map(|axis| object["shape"][axis].as_u64().unwrap() as usize);
        assert_eq!(m.min(n), expected.len());
        let mut archive = NpzReader::open(folder.path("s.npz")).unwrap();
        assert_eq!(archive.names(), ["values", "u", "v"]);
        let saved = values(&archive.read("values").unwrap().into_tensor::<f64>().unwrap());
        assert_close(&saved, &numbers(&object["values"]), 1e-15);
        assert_eq!(archive.read("u").unwrap().shape(), [6, m]);
        assert_eq!(archive.read("v").unwrap().shape(), [6, n]);
        assert_eq!(object["output"]["arrays"]["u"], json!({ "shape": [6, m], "dtype": "f32" }));

        let matrix = [&["matrix", &weight, "-o", "m.npz", "--input-size", size], flags].concat();
        folder.json(&matrix);
        let object = folder.json(&["spectrum", "m.npz", "--top", "all", "-o", "s.npy"]);
        assert_close(&numbers(&object["values"]), &expected, 2e-6);
        // Reading JSON may cost the last digit.
        assert_close(&values(&folder.read::<f64>("s.npy")), &numbers(&object["values"]), 1e-15);
        assert_eq!(object["shape"], json!([m, n]));
    }
}

#[test]
fn a_network_is_a_table_of_its_layers() {
    let folder = Folder::new();
    let model = data("digits_cnn.safetensors").display().to_string();
    let layers = r#"[
        {"name": "conv1.weight", "input_size": 8, "padding": 1, "padding_mode": "reflect"},
        {"name": "conv2.weight", "input_size": "8x8", "stride": [2, 2], "padding": "1", "groups": 4},
        {"name": "conv3.weight", "input_size": [4, 4], "padding": [[2, 2], [2, 2]], "dilation": 2}]"#;
    fs::write(folder.path("layers.json"), layers).unwrap();
    let command = ["spectrum", &model, "--layers", "layers.json", "--plot", "layers.svg"];
    let object = folder.json(&command);
    let layers = object["layers"].as_array().unwrap();
    let mut product = 1.0;
    for ((layer, _, _), object) in DIGITS.into_iter().zip(layers) {
        assert_eq!(object["name"], json!(format!("{layer}.weight")));
        let expected = golden(layer);
        assert_close(&numbers(&object["values"]), &expected[..6], 2e-6);
        let upper = object["norm"]["upper"].as_f64().unwrap();
        assert!(upper >= expected[0]);
        product *= upper;
        let keys = [
            "method",
            "shape",
            "residuals",
            "converged",
            "applications",
            "condition_number",
            "stable_rank",
            "effective_rank",
        ];
        assert!(keys.iter().all(|key| object.get(key).is_some()), "{object}");
    }
    assert_eq!(layers.len(), 3);
    let bound = object["product_bound"].as_f64().unwrap();
    assert!((bound / product - 1.0).abs() < 1e-12);
    let svg = fs::read_to_string(folder.path("layers.svg")).unwrap();
    for part in ["<svg", "index", "singular value", "conv1.weight", "conv3.weight", "norm "] {
        assert!(svg.contains(part), "{part}");
    }
    let text = String::from_utf8(folder.run(&command).stdout).unwrap();
    let line = text.lines().find(|line| line.contains("conv2.weight")).unwrap();
    assert!(line.contains("512 × 1,024"), "{text}");
    assert!(text.contains("product bound"), "{text}");
}

/// A layer with few values, transposed and with elements of f64.
#[test]
fn fewer_values_than_six_are_all_of_them() {
    let folder = Folder::new();
    folder.write::<f64>("w.npy", &[1, 2, 3], &randoms(6, 1));
    let command = "spectrum w.npy --transposed --stride 2 --output-padding 1 --input-size 4";
    let object = folder.json(&args(&format!("{command} --plot s.png")));
    assert_eq!(object["values"].as_array().unwrap().len(), 4);
    assert_eq!(object["geometry"]["transposed"], json!(true));
    assert_eq!(&fs::read(folder.path("s.png")).unwrap()[1..4], b"PNG");
    assert_eq!(object["norm"]["upper"], Value::Null);
    let text = String::from_utf8(folder.run(&args(command)).stdout).unwrap();
    for part in ["  value 1 ", "  value 4 ", "  method ", "  converged "] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_limit_on_applications_leaves_values_that_have_not_converged() {
    let folder = Folder::new();
    folder.write::<f64>("w.npy", &[8, 8, 3, 3], &randoms(576, 2));
    let command = "spectrum w.npy --input-size 24 --padding 1 --method lanczos --top 20 \
                   --tolerance 1e-13 --applications 60";
    let object = folder.json(&args(command));
    assert_eq!(object["converged"], json!(false));
    assert_eq!(object["interrupted"], json!(false));
}

#[test]
fn the_same_seed_gives_the_same_values() {
    let folder = Folder::new();
    folder.write::<f32>("w.npy", &[4, 4, 3, 3], &randoms(144, 3));
    let run = |seed: &str| {
        let command = "spectrum w.npy --input-size 12 --method randomized --iterations 1 --seed";
        numbers(&folder.json(&[&args(command)[..], &[seed]].concat())["values"])
    };
    assert_eq!(run("7"), run("7"));
    assert_ne!(run("7"), run("8"));
}

#[test]
fn bad_input_is_named_and_leaves_no_file() {
    let folder = Folder::new();
    folder.write::<f32>("w.npy", &[2, 2, 3, 3], &randoms(36, 4));
    folder.write::<f32>("big.npy", &[64, 64, 3, 3], &randoms(36_864, 5));
    let mut bad = randoms(36, 4);
    bad[7] = f64::NAN;
    folder.write::<f32>("nan.npy", &[2, 2, 3, 3], &bad);
    folder.json(&args("matrix w.npy --input-size 5 -o m.npz"));
    folder.json(&args("matrix nan.npy --input-size 5 -o mnan.npz"));
    let model = data("digits_cnn.safetensors").display().to_string();
    for (name, layers) in [
        ("unknown.json", r#"[{"name": "conv1.weight", "input_size": 8, "strides": 2}]"#),
        ("missing.json", r#"[{"name": "conv9.weight", "input_size": 8}]"#),
        ("small.json", r#"[{"name": "conv1.weight", "input_size": 2}]"#),
        ("broken.json", "[{"),
    ] {
        fs::write(folder.path(name), layers).unwrap();
    }
    let with_files = "-o s.npz --plot s.svg";
    for (command, parts) in [
        ("spectrum w.npy", &["--input-size is missing", "W (w.npy)"][..]),
        ("spectrum nan.npy --input-size 5", &["W (nan.npy)", "NaN", "finite"]),
        ("spectrum mnan.npz", &["W (mnan.npz)", "NaN", "finite"]),
        ("spectrum w.npy --input-size 5 --top 0", &["--top is 0"]),
        ("spectrum w.npy --input-size 5 --top 19", &["--top is 19", "18"]),
        ("spectrum w.npy --input-size 5 --top some", &["--top", "some", "all"]),
        ("spectrum w.npy --input-size 5 --tolerance 0", &["--tolerance is 0"]),
        ("spectrum w.npy --input-size 5 --tolerance -1", &["--tolerance is -1"]),
        ("spectrum w.npy --input-size 5 --method fast", &["--method", "fast"]),
        (
            "spectrum w.npy --input-size 5 --padding 1 --stride 2 --padding-mode circular --method circular",
            &["--stride on axis", "is 2", "input extent is 5"],
        ),
        ("spectrum big.npy --input-size 224 --method dense", &["--method is dense"]),
        ("spectrum m.npz --input-size 5", &["--input-size is given", "W (m.npz)"]),
        ("spectrum m.npz --stride 1", &["--stride is given", "W (m.npz)"]),
        ("spectrum m.npz --transposed", &["--transposed is given"]),
        ("spectrum none.npz", &["W (none.npz)", "No such file"]),
    ] {
        folder.fails(2, &format!("{command} {with_files}"), parts);
    }
    for (list, parts) in [
        ("unknown.json", &["--layers (unknown.json)", "conv1.weight", "strides"][..]),
        ("missing.json", &["--layers (missing.json)", "conv9.weight", "conv1.weight"]),
        ("small.json", &["--layers (small.json), conv1.weight", "kernel"]),
        ("broken.json", &["--layers (broken.json)", "JSON"]),
        ("none.json", &["--layers (none.json)", "No such file"]),
    ] {
        folder.fails(2, &format!("spectrum {model} --layers {list} --plot s.svg"), parts);
    }
    folder.fails(2, "spectrum w.npy --layers small.json", &["W is w.npy"]);
    let network = format!("spectrum {model} --layers small.json");
    folder.fails(2, &format!("{network} --padding 1"), &["--padding is given", "small.json"]);
    folder.fails(2, &format!("{network} -o s.npz"), &["--output is given"]);
    for (flags, part) in
        [("-o s.txt", "s.txt"), ("-o s.safetensors", ".npy"), ("--plot s.pdf", "s.pdf")]
    {
        folder.fails(2, &format!("spectrum w.npy --input-size 5 {flags}"), &[part]);
    }
}
