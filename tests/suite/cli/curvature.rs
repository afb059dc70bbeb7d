//! `covariance` and `kfac`, against the definitions and the library.

use convmat::io::NpzReader;
use convmat::{Conv, Device, KfacLayer, KfacMethod, KfacOptions, KfacState, WeightSharing};
use nalgebra::DMatrix;
use serde_json::json;

use super::Folder;
use crate::catalogue::{integers, randoms, tensor, values};

/// Input [3, 4, 5, 6] and output gradient [3, 6, 5, 3] of a layer with `--kernel 3x2 --padding 1x0:1 --stride
/// 1x2 --groups 2`.
const FLAGS: [&str; 8] =
    ["--kernel", "3x2", "--padding", "1:1x0:1", "--stride", "1x2", "--groups", "2"];

fn conv() -> Conv<2> {
    Conv::new([3, 2]).padding([(1, 1), (0, 1)]).stride([1, 2]).groups(2)
}

fn folder() -> Folder {
    let folder = Folder::new();
    folder.write::<f64>("x.npy", &[3, 4, 5, 6], &randoms(360, 1));
    folder.write::<f64>("dy.npy", &[3, 6, 5, 3], &randoms(270, 2));
    folder
}

fn names(folder: &Folder, file: &str) -> Vec<String> {
    NpzReader::open(folder.path(file)).unwrap().names().to_vec()
}

#[test]
fn covariances_are_sums_or_means_of_products_of_patches() {
    let folder = Folder::new();
    folder.write::<f64>("x.npy", &[3, 2, 4, 4], &integers(96, 1, 3));
    folder.json(&["unfold", "x.npy", "--kernel", "2", "--stride", "2", "-o", "p.npy"]);
    let patches = values(&folder.read::<f64>("p.npy"));
    let (n, d, t) = (3, 8, 4);
    for (mode, scale, divisor) in [
        ("expand", "sum", 1.0),
        ("expand", "mean", (n * t) as f64),
        ("reduce", "sum", 1.0),
        ("reduce", "mean", (n * t * t) as f64),
    ] {
        let args = ["covariance", "x.npy", "--kernel", "2", "--stride", "2", "--bias"];
        let rest = ["--mode", mode, "--scale", scale, "-o", "a.npy"];
        let object = folder.json(&[&args[..], &rest].concat());
        assert_eq!(object["output"]["shape"], json!([9, 9]));
        assert_eq!([&object["mode"], &object["scale"]], [&json!(mode), &json!(scale)]);
        let found = values(&folder.read::<f64>("a.npy"));
        let mut sums = vec![0.0; 81];
        for example in patches.chunks_exact(d * t) {
            let columns = DMatrix::from_fn(d + 1, t, |row, at| match row {
                8 => 1.0,
                _ => example[row * t + at],
            });
            let vectors = if mode == "reduce" {
                DMatrix::from_columns(&[columns.column_sum()])
            } else {
                columns
            };
            let product = &vectors * vectors.transpose();
            sums.iter_mut().zip(product.as_slice()).for_each(|(sum, new)| *sum += new);
        }
        for (found, sum) in found.iter().zip(&sums) {
            assert!((found - sum / divisor).abs() <= 1e-14 * sum.abs(), "{mode} {scale}");
        }
    }
    // Means of whole positions are what is written where nothing is said.
    folder.json(&["covariance", "x.npy", "--kernel", "2", "--groups", "2", "-o", "g.npy"]);
    let found = folder.read::<f64>("g.npy");
    assert_eq!(found.shape(), [2, 4, 4]);
    let mean = ["--mode", "expand", "--scale", "mean", "-o", "h.npy"];
    let args = ["covariance", "x.npy", "--kernel", "2", "--groups", "2"];
    folder.json(&[&args[..], &mean].concat());
    assert_eq!(folder.read::<f64>("h.npy"), found);
}

#[test]
fn halves_are_summed_in_f32() {
    let folder = Folder::new();
    folder.write::<half::f16>("x.npy", &[2, 1, 5], &integers(10, 1, 3));
    folder.write::<half::f16>("dy.npy", &[2, 2, 4], &integers(16, 2, 3));
    let object = folder.json(&["covariance", "x.npy", "--kernel", "2", "-o", "a.npy"]);
    assert_eq!(object["output"]["dtype"], json!("f32"));
    let object = folder.json(&["kfac", "x.npy", "dy.npy", "--kernel", "2", "-o", "f.npz"]);
    assert_eq!(object["output"]["arrays"]["A"]["dtype"], json!("f32"));
    assert_eq!(folder.read::<f32>("f.npz:A"), folder.read::<f32>("a.npy"));
}

/// What is written is what the library computes, under the names and in the shapes of the contract.
#[test]
fn kfac_writes_what_the_library_computes() {
    let folder = folder();
    let (x, dy) = (folder.read::<f64>("x.npy"), folder.read::<f64>("dy.npy"));
    let gradient = tensor::<f64>(&[2, 3, 13], &randoms(78, 3));
    folder.write::<f64>("dw.npy", &[2, 3, 13], &values(&gradient));
    for method in [KfacMethod::Kfac, KfacMethod::Ekfac] {
        for sharing in [WeightSharing::Expand, WeightSharing::Reduce] {
            for (pi, given) in [(true, false), (false, true)] {
                let (method_name, mode) = (method.to_string(), sharing.to_string());
                let mut args = vec!["kfac", "x.npy", "dy.npy", "--bias", "-o", "f.npz"];
                args.extend(FLAGS);
                args.extend(["--method", &method_name, "--mode", &mode, "--damping", "0.25"]);
                if !pi {
                    args.push("--no-pi");
                }
                if given {
                    args.extend(["--gradient", "dw.npy"]);
                }
                let object = folder.json(&args);
                assert_eq!(object["method"], json!(method_name));
                assert_eq!(object["damping"], json!(0.25));

                let layer = KfacLayer::new(conv(), 4, 6, [5, 6]).bias(true);
                let options = KfacOptions::new().method(method).sharing(sharing);
                let options = options.damping(0.25).pi_correction(pi);
                let mut state = KfacState::<f64, 2>::new(&Device::Cpu, layer, options).unwrap();
                state.step(&x, &dy).unwrap();
                let mean = state.mean_gradient(&x, &dy).unwrap();
                let expected = state.precondition(if given { &gradient } else { &mean }).unwrap();
                let read = |key: &str| folder.read::<f64>(&format!("f.npz:{key}"));
                assert_eq!(read("preconditioned"), expected);
                assert_eq!(&read("A"), state.input_factor().unwrap());
                assert_eq!(&read("G"), state.output_factor().unwrap());
                let (a, g) = (state.decompose_input_factor(), state.decompose_output_factor());
                let (a, g) = (a.unwrap(), g.unwrap());
                assert_eq!(&read("eigenvalues_a"), a.values());
                assert_eq!(&read("q_a"), a.vectors());
                assert_eq!(&read("eigenvalues_g"), g.values());
                assert_eq!(&read("q_g"), g.vectors());
                let mut keys = vec!["A", "G", "eigenvalues_a", "q_a", "eigenvalues_g", "q_g"];
                if method == KfacMethod::Ekfac {
                    keys.push("lambda");
                    assert_eq!(&read("lambda"), state.second_moments().unwrap());
                    assert!(object.get("pi").is_none());
                } else {
                    for (group, pi) in state.pi().unwrap().iter().enumerate() {
                        let found = object["pi"][group].as_f64().unwrap();
                        assert!((found - pi).abs() <= 1e-15 * pi, "{found} for {pi}");
                    }
                }
                keys.push("preconditioned");
                assert_eq!(names(&folder, "f.npz"), keys);
            }
        }
    }
}

/// One group has no axis for groups.
#[test]
fn one_group_writes_matrices() {
    let folder = Folder::new();
    folder.write::<f32>("x.npy", &[2, 2, 7], &randoms(28, 1));
    folder.write::<f32>("dy.npy", &[2, 3, 5], &randoms(30, 2));
    folder.write::<f32>("dw.npy", &[3, 6], &randoms(18, 3));
    let args = "kfac x.npy dy.npy --kernel 3 --method ekfac --gradient dw.npy -o f.npz";
    let args: Vec<_> = args.split(' ').collect();
    let object = folder.json(&args);
    for (key, shape) in [
        ("A", json!([6, 6])),
        ("G", json!([3, 3])),
        ("eigenvalues_a", json!([6])),
        ("q_a", json!([6, 6])),
        ("eigenvalues_g", json!([3])),
        ("q_g", json!([3, 3])),
        ("lambda", json!([3, 6])),
        ("preconditioned", json!([3, 6])),
    ] {
        assert_eq!(object["output"]["arrays"][key]["shape"], shape, "{key}");
    }
    assert_eq!(object["damping"], json!(KfacOptions::DEFAULT_DAMPING));
    let text = String::from_utf8(folder.run(&args).stdout).unwrap();
    assert!(text.contains("\n  damping") && text.contains("0.001"), "{text}");
}

#[test]
fn plans_are_explained() {
    let folder = folder();
    for (command, operations) in [
        (&["covariance", "x.npy", "-o", "a.npy"][..], &["covariance"][..]),
        (&["kfac", "x.npy", "dy.npy", "-o", "f.npz"], &["covariance", "gradient_covariance"]),
    ] {
        let object = folder.json(&[command, &FLAGS, &["--explain"]].concat());
        assert!(object["plan"]["flop"].as_u64().unwrap() > 0);
        assert!(object["plan"]["passes"].as_array().is_some_and(|passes| !passes.is_empty()));
        if let Some(plans) = object["plans"].as_array() {
            let names: Vec<_> = plans.iter().map(|plan| plan["operation"].clone()).collect();
            assert_eq!(names, operations);
        }
    }
}

#[test]
fn bad_input_is_named() {
    let folder = Folder::new();
    folder.write::<f32>("x.npy", &[2, 4, 5, 6], &[1.0; 240]);
    folder.write::<f32>("dy.npy", &[2, 6, 3, 4], &randoms(144, 1));
    folder.write::<f64>("dy64.npy", &[2, 6, 3, 4], &randoms(144, 1));
    folder.write::<f32>("few.npy", &[1, 6, 3, 4], &randoms(72, 1));
    folder.write::<f32>("none.npy", &[0, 4, 5, 6], &[]);
    folder.write::<f32>("dnone.npy", &[0, 6, 3, 4], &[]);
    folder.write::<f32>("nan.npy", &[2, 6, 3, 4], &[f64::NAN; 144]);
    folder.write::<f32>("dw.npy", &[6, 35], &[1.0; 210]);
    let kfac = |operands: &str, parts: &[&str]| {
        folder.fails(2, &format!("kfac {operands} --kernel 3 -o f.npz"), parts);
    };
    kfac("x.npy few.npy", &["DY (few.npy) has shape [1, 6, 3, 4]", "[2, 6, 3, 4]"]);
    kfac("x.npy x.npy", &["DY (x.npy) has shape [2, 4, 5, 6]"]);
    kfac("x.npy dy64.npy", &["DY (dy64.npy) is f64", "X (x.npy) is f32"]);
    kfac("none.npy dnone.npy", &["examples is 0"]);
    kfac("x.npy nan.npy", &["output factor", "NaN", "finite"]);
    kfac("x.npy dy.npy --damping 0", &["--damping is 0", "positive"]);
    kfac("x.npy dy.npy --damping -1", &["--damping is -1"]);
    kfac("x.npy dy.npy --damping nan", &["--damping is NaN"]);
    kfac("x.npy dy.npy --damping much", &["--damping", "much"]);
    kfac("x.npy dy.npy --method shampoo", &["--method", "shampoo"]);
    kfac("x.npy dy.npy --mode some", &["--mode", "some"]);
    kfac("x.npy dy.npy --gradient dw.npy", &["--gradient (dw.npy) has shape [6, 35]", "[6, 36]"]);
    kfac("x.npy dy.npy --groups 4", &["DY (dy.npy) channels is 6", "--groups = 4"]);
    kfac("x.npy dy.npy --groups 3", &["X (x.npy) channels is 4", "--groups = 3"]);
    kfac("x.npy dy.npy --stride 2", &["DY (dy.npy) has shape [2, 6, 3, 4]", "[2, 6, 2, 2]"]);
    // All patches are alike: a factor of rank 1, and damping that rounding loses.
    folder.write::<f32>("ones.npy", &[2, 6, 1, 4], &[1.0; 48]);
    folder.fails(
        2,
        "kfac x.npy ones.npy --kernel 5x3 --damping 1e-300 -o f.npz",
        &["factor of group 0", "positive definite"],
    );
    folder.fails(2, "kfac x.npy dy.npy --kernel 3 -o f.npy", &["--output is f.npy", ".npz"]);
    folder.fails(2, "kfac x.npy dy.npy -o f.npz", &["--kernel"]);

    let covariance = |rest: &str, parts: &[&str]| {
        folder.fails(2, &format!("covariance {rest} -o a.npy"), parts);
    };
    covariance("x.npy --kernel 9", &["--kernel extent on axis 0 is 9"]);
    covariance("x.npy --kernel 3 --groups 3", &["X (x.npy) channels is 4", "--groups = 3"]);
    covariance("none.npy --kernel 3", &["X (none.npy) has no examples"]);
    covariance("x.npy --kernel 3 --scale half", &["--scale", "half"]);
    covariance("x.npy --kernel 3 --mode some", &["--mode", "some"]);
    folder.json(&["covariance", "none.npy", "--kernel", "3", "--scale", "sum", "-o", "a.npy"]);
    assert!(values(&folder.read::<f32>("a.npy")).iter().all(|&value| value == 0.0));
}
