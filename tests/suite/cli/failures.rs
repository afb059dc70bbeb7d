//! Bad input and failures: the exit status, the sentence, and no file that was not there before.

use std::fs;

use convmat::io::{self, AnyView, NpzWriter};

use super::Folder;
use crate::catalogue::tensor;

#[test]
fn bad_input_is_named() {
    let folder = Folder::new();
    folder.write::<f32>("x.npy", &[1, 4, 5, 6], &[1.0; 120]);
    folder.write::<f32>("w.npy", &[2, 4, 3, 3], &[1.0; 72]);
    folder.write::<f64>("w64.npy", &[2, 4, 3, 3], &[1.0; 72]);
    folder.write::<f32>("b.npy", &[3], &[1.0; 3]);
    let mut archive = NpzWriter::create(folder.path("z.npz")).unwrap();
    archive.add_i64("count", &[1, 2]).unwrap();
    archive.add("data", &tensor::<f32>(&[1], &[1.0])).unwrap();
    archive.finish().unwrap();
    for (command, parts) in [
        // Flags.
        ("unfold x.npy -o a.npy", &["--kernel"][..]),
        ("unfold x.npy --kernel 3", &["--output"]),
        ("unfold x.npy --kernel 3 --strode 2 -o a.npy", &["--strode", "--stride"]),
        ("frobnicate", &["frobnicate"]),
        ("unfold x.npy --kernel 3y -o a.npy", &["--kernel", "3y"]),
        ("unfold x.npy --kernel 3x3x3x3 -o a.npy", &["--kernel", "3x3x3x3"]),
        ("unfold x.npy --kernel 99999999999999999999 -o a.npy", &["99999999999999999999"]),
        ("unfold x.npy --kernel 3x3x3 -o a.npy", &["--kernel is 3x3x3", "2 spatial axes"]),
        ("unfold x.npy --kernel 3 --stride 0 -o a.npy", &["--stride on axis 0 is 0"]),
        ("unfold x.npy --kernel 3 --stride -1 -o a.npy", &["--stride", "`-1`"]),
        ("unfold x.npy --kernel 0 -o a.npy", &["--kernel on axis 0 is 0"]),
        ("unfold x.npy --kernel 3 --dilation 1x0 -o a.npy", &["--dilation on axis 1 is 0"]),
        ("unfold x.npy --kernel 7 -o a.npy", &["--kernel extent on axis 0 is 7"]),
        ("unfold x.npy --kernel 3 --padding 1:2:3 -o a.npy", &["--padding", "1:2:3"]),
        ("unfold x.npy --kernel 3 --padding 1x1x1 -o a.npy", &["--padding is 1x1x1"]),
        ("unfold x.npy --kernel 3 --padding same --stride 2 -o a.npy", &["--stride", "same"]),
        (
            "unfold x.npy --kernel 3 --padding 9 --padding-mode reflect -o a.npy",
            &["--padding", "9"],
        ),
        ("unfold x.npy --kernel 3 --padding-mode odd -o a.npy", &["--padding-mode", "odd"]),
        ("unfold x.npy --kernel 3 --padding 9000000000 -o a.npy", &["18000000005 x 18000000006"]),
        ("unfold x.npy --kernel 3 --groups 0 -o a.npy", &["--groups is 0"]),
        (
            "unfold x.npy --kernel 3 --groups 3 -o a.npy",
            &["X (x.npy) channels is 4", "--groups = 3"],
        ),
        ("unfold x.npy --kernel 3 --groups two -o a.npy", &["--groups", "two"]),
        ("unfold x.npy --kernel 3 --layout nchw -o a.npy", &["--layout", "nchw"]),
        ("conv x.npy w.npy --algorithm fast -o y.npy", &["--algorithm", "fast"]),
        ("conv x.npy w.npy --kernel 5 -o y.npy", &["--kernel is 5", "W (w.npy)", "3x3"]),
        ("conv x.npy w.npy --output-padding 1 -o y.npy", &["--output-padding is 1"]),
        ("filter --channels 4 --kernel 3 --groups 3 -o f.npy", &["--channels is 4"]),
        ("filter --channels 4 --kernel 3 --dtype i8 -o f.npy", &["--dtype", "i8"]),
        ("filter --channels 99999999999 --kernel 3 -o f.npy", &["299999999997"]),
        ("fold x.npy --kernel 3 --input-size 0 -o f.npy", &["--input-size on axis 0 is 0"]),
        ("matrix w.npy --input-size 2x9 -o m.npz", &["W (w.npy) kernel extent on axis 0 is 3"]),
        ("matrix w.npy --input-size 9 --groups 3 -o m.npz", &["W (w.npy) output channels is 2"]),
        // Devices.
        ("devices --device cuda:999", &["--device cuda:999"]),
        ("unfold x.npy --kernel 3 -o a.npy --device cuda:999", &["--device cuda:999"]),
        ("--device gpu devices", &["--device is \"gpu\""]),
        // Names of files.
        ("unfold x.txt --kernel 3 -o a.npy", &["'<X>'", "x.txt", "file.npz:key"]),
        ("unfold x.npy:key --kernel 3 -o a.npy", &["x.npy:key"]),
        ("unfold x.npy --kernel 3 -o a.txt", &["--output", "a.txt"]),
        ("matrix w.npy --input-size 9 -o m.npy", &["--output is m.npy", ".npz"]),
        ("filter --channels 1 --kernel 3 --sparse -o f.npy", &["--output is f.npy", ".npz"]),
        ("conv-backward x.npy w.npy x.npy -o g.npz:dx", &["--output is g.npz:dx"]),
        // Tensors.
        ("unfold no.npy --kernel 3 -o a.npy", &["X (no.npy)", "No such file"]),
        ("conv x.npy no.safetensors:w -o y.npy", &["W (no.safetensors:w)"]),
        ("unfold z.npz:none --kernel 3 -o a.npy", &["`none`", "count, data"]),
        ("unfold z.npz --kernel 3 -o a.npy", &["X (z.npz)", "count, data"]),
        ("unfold z.npz:count --kernel 3 -o a.npy", &["X (z.npz:count)", "i64", "astype"]),
        ("unfold b.npy --kernel 3 -o a.npy", &["X (b.npy) has shape [3]"]),
        ("conv x.npy w64.npy -o y.npy", &["W (w64.npy) is f64", "X (x.npy) is f32"]),
        ("conv x.npy b.npy -o y.npy", &["W (b.npy) has shape [3]"]),
        ("conv x.npy w.npy --groups 2 -o y.npy", &["W (w.npy) has shape [2, 4, 3, 3]"]),
        ("conv x.npy w.npy --bias b.npy -o y.npy", &["--bias (b.npy) has shape [3]", "[2]"]),
        ("conv-backward x.npy w.npy x.npy -o g.npz", &["DY (x.npy) has shape [1, 4, 5, 6]"]),
        ("fold x.npy --kernel 3 --input-size 5x6 -o f.npy", &["A (x.npy) has shape"]),
        ("matrix w.npy --bias b.npy --input-size 9 -o m.npz", &["--bias (b.npy)", "[2]"]),
    ] {
        folder.fails(2, command, parts);
    }
}

/// Cut off anywhere, a file is an error, and never a partial result.
#[test]
fn damaged_files_are_refused() {
    let folder = Folder::new();
    let x = tensor::<f32>(&[1, 1, 2, 3], &[1.0; 6]);
    io::write_npy(folder.path("x.npy"), &x).unwrap();
    io::write_safetensors(folder.path("x.safetensors"), &[("x", AnyView::new(&x).unwrap())])
        .unwrap();
    let mut archive = NpzWriter::create(folder.path("x.npz")).unwrap();
    archive.add("x", &x).unwrap();
    archive.finish().unwrap();
    for name in ["x.npy", "x.npz", "x.safetensors"] {
        let whole = fs::read(folder.path(name)).unwrap();
        for cut in [0, 1, 7, whole.len() / 2, whole.len() - 1] {
            let damaged = format!("cut.{}", name.split_once('.').unwrap().1);
            fs::write(folder.path(&damaged), &whole[..cut]).unwrap();
            folder.fails(2, &format!("unfold {damaged} --kernel 1 -o a.npy"), &[&damaged]);
        }
    }
}

#[test]
fn failures_leave_what_was_there() {
    let folder = Folder::new();
    folder.write::<f32>("x.npy", &[1, 1, 2, 3], &[1.0; 6]);
    fs::create_dir(folder.path("folder.npy")).unwrap();
    let missing = "unfold x.npy --kernel 1 -o none/a.npy";
    folder.fails(1, missing, &["--output none/a.npy", "No such file"]);
    folder.fails(1, "unfold x.npy --kernel 1 -o folder.npy", &["--output folder.npy"]);
    // More memory than there are addresses: an error message, not an abort of the process.
    folder.fails(1, "filter --channels 9000000 --kernel 3 -o x.npy", &["could not allocate"]);
    folder.fails(2, "unfold x.npy --kernel 9 -o x.npy", &["--kernel"]);
    assert_eq!(folder.read::<f32>("x.npy").shape(), [1, 1, 2, 3]);
    // Reading and writing the same file is fine: it is replaced when all is done.
    folder.json(&["unfold", "x.npy", "--kernel", "1", "-o", "x.npy"]);
    assert_eq!(folder.read::<f32>("x.npy").shape(), [1, 1, 6]);
    assert_eq!(folder.names(), ["folder.npy", "x.npy"]);
}

/// When a device exists but fails while it works, that is a failure and not bad input. Here the
/// simulator's compiler refuses every kernel.
#[cfg(all(unix, feature = "simulator"))]
#[test]
fn a_device_that_fails_is_not_bad_input() {
    use std::os::unix::fs::PermissionsExt;
    if convmat::Device::simulator().is_err() {
        return eprintln!("skipped: there is no simulator");
    }
    let folder = Folder::new();
    folder.write::<f32>("x.npy", &[1, 1, 2, 3], &[1.0; 6]);
    let script =
        "#!/bin/sh\ncase \"$*\" in *unit.cpp*) echo refused >&2; exit 1;; esac\nexec c++ \"$@\"\n";
    fs::write(folder.path("refuses"), script).unwrap();
    fs::set_permissions(folder.path("refuses"), fs::Permissions::from_mode(0o755)).unwrap();
    let before = folder.names();
    let output = folder
        .command(&["unfold", "x.npy", "--kernel", "1", "-o", "a.npy", "--device", "simulator"])
        .env("CXX", folder.path("refuses"))
        .env("CONVMAT_CACHE_DIR", "")
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("does not compile") && stderr.contains("refused"), "{stderr}");
    assert_eq!(folder.names(), before);
}
