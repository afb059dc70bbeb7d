//! The command line, run as a process: here what it prints, in `results` what it writes, in `plots` what
//! it draws, in `spectrum` what it says of operators, in `curvature` what it computes of losses, in
//! `profile` what launches cost, in `failures` how it fails, and in `interrupts` how it ends when it is told to.

mod curvature;
mod explanations;
mod failures;
#[cfg(target_os = "linux")]
mod interrupts;
mod plots;
#[cfg(all(feature = "simulator", unix))]
mod profile;
mod results;
mod sparse;
mod spectrum;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use convmat::io;
use convmat::{Device, Element, Tensor};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::catalogue::tensor;

/// A folder of its own to run in, and the device that [`Folder::json`] runs commands on.
struct Folder(TempDir, String);

impl Folder {
    fn new() -> Self {
        Folder::on(&Device::Cpu)
    }

    /// One in which [`Folder::json`] runs commands on this device.
    fn on(device: &Device) -> Self {
        Folder(TempDir::new().unwrap(), device.to_string())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn write<T: Element>(&self, name: &str, shape: &[usize], data: &[f64]) {
        io::write_npy(self.path(name), &tensor::<T>(shape, data)).unwrap();
    }

    fn read<T: Element>(&self, source: &str) -> Tensor<T> {
        let source = self.path(source).to_str().unwrap().parse().unwrap();
        io::read(&source).unwrap().into_tensor().unwrap()
    }

    fn command<S: AsRef<str>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_convmat"));
        command.current_dir(self.0.path()).args(args.iter().map(AsRef::as_ref));
        command
    }

    fn run<S: AsRef<str>>(&self, args: &[S]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs with `--json`, expects success, and returns the one object.
    fn json<S: AsRef<str>>(&self, args: &[S]) -> Value {
        let output = self.command(args).args(["--json", "--device", &self.1]).output().unwrap();
        let args: Vec<_> = args.iter().map(AsRef::as_ref).collect();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{args:?}: {stderr}");
        assert_eq!(stderr, "", "{args:?}");
        let object: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&object["command"], &object["device"]), (&json!(args[0]), &json!(self.1)));
        object
    }

    /// Expects failure with this exit status and one sentence that contains all of `parts`, nothing
    /// on standard output, and no file that was not there before.
    fn fails(&self, status: i32, command: &str, parts: &[&str]) {
        let args: Vec<_> = command.split(' ').collect();
        let before = self.names();
        for extra in [&[][..], &["--json"]] {
            let output = self.command(&args).args(extra).output().unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(status), "{command}: {stderr}");
            assert!(stderr.starts_with("error: ") && stderr.ends_with('\n'), "{command}: {stderr}");
            assert_eq!(stderr.lines().count(), 1, "{command}: {stderr}");
            for part in parts {
                assert!(stderr.contains(part), "{command}: {stderr} lacks {part}");
            }
            assert!(output.stdout.is_empty(), "{command}");
            assert_eq!(self.names(), before, "{command}");
        }
    }
}

#[test]
fn devices_are_listed_with_reasons() {
    let folder = Folder::new();
    let object = folder.json(&["devices"]);
    let devices = object["devices"].as_array().unwrap();
    let names: Vec<_> = devices.iter().map(|d| d["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"cpu") && names.contains(&"simulator"), "{names:?}");
    assert!(names.contains(&"cuda") || names.contains(&"cuda:0"), "{names:?}");
    for device in devices {
        let available = device["available"].as_bool().unwrap();
        let text = if available { &device["description"] } else { &device["reason"] };
        assert!(!text.as_str().unwrap().is_empty());
    }
    let text = String::from_utf8(folder.run(&["devices", "--device", "cpu"]).stdout).unwrap();
    assert!(text.contains("cpu") && text.contains("(selected)"), "{text}");
    assert!(!text.contains('\x1b'), "colour where there is no terminal: {text}");
}

#[test]
fn people_get_an_aligned_list() {
    let folder = Folder::new();
    folder.write::<f32>("x.npy", &[1, 2, 5, 5], &[1.0; 50]);
    let args = ["unfold", "x.npy", "--kernel", "3", "--padding", "0:1", "-o", "a.npy"];
    let output = folder.run(&args);
    let text = String::from_utf8(output.stdout).unwrap();
    let expected = "\
unfold
  input     [1, 2, 5, 5] f32 from x.npy
  geometry  kernel 3x3, stride 1x1, padding 0:1x0:1
  patches   [1, 18, 16] f32 to a.npy, 1.1 KiB
  time      read ";
    assert!(text.starts_with(expected), "{text}");
    assert!(output.stderr.is_empty());
}

#[test]
fn one_value_serves_all_axes_and_same_is_resolved() {
    let folder = Folder::new();
    folder.write::<f32>("x.npy", &[1, 1, 5, 6], &[1.0; 30]);
    let object =
        folder.json(&["unfold", "x.npy", "--kernel", "2x3", "--padding", "same", "-o", "a.npy"]);
    let geometry = json!({
        "axes": 2, "kernel": [2, 3], "stride": [1, 1], "dilation": [1, 1], "groups": 1,
        "padding": [[0, 1], [1, 1]], "padding_mode": "zeros", "layout": "channels-first",
        "transposed": false,
    });
    assert_eq!(object["geometry"], geometry);
    assert_eq!(object["output"]["shape"], json!([1, 6, 30]));
    assert!(object["seconds"]["total"].as_f64().unwrap() > 0.0);
    let object =
        folder.json(&["unfold", "x.npy", "--kernel", "2", "--padding", "valid", "-o", "a.npy"]);
    assert_eq!(object["geometry"]["kernel"], json!([2, 2]));
}

#[test]
fn help_and_version_are_answers() {
    let folder = Folder::new();
    let stdout = |args: &[&str]| {
        let output = folder.run(args);
        assert!(output.status.success() && output.stderr.is_empty(), "{args:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(stdout(&["--version"]), format!("convmat {}\n", env!("CARGO_PKG_VERSION")));
    let help = stdout(&["--help"]);
    for command in [
        "devices",
        "filter",
        "unfold",
        "fold",
        "conv",
        "conv-backward",
        "matrix",
        "spectrum",
        "covariance",
        "kfac",
    ] {
        assert!(help.contains(&format!("\n  {command} ")), "{command}");
        let help = stdout(&[command, "--help"]);
        assert!(command == "devices" || help.contains(&format!("  convmat {command} ")), "{help}");
        assert!(help.contains("--device") && help.contains("--json"), "{help}");
    }
    let bare = folder.run::<&str>(&[]);
    assert_eq!(bare.status.code(), Some(2));
    assert!(String::from_utf8(bare.stderr).unwrap().contains("Usage: convmat"));
}

/// As in `convmat … | head`: no panic, and the output file is written.
#[test]
fn a_closed_pipe_is_not_a_failure() {
    let folder = Folder::new();
    folder.write::<f32>("x.npy", &[1, 1, 2, 3], &[1.0; 6]);
    for args in [&["unfold", "x.npy", "--kernel", "1", "-o", "a.npy"][..], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = folder.command(args).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{args:?}: {:?}", output.status);
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{args:?}");
    }
    assert!(folder.path("a.npy").exists());
}
