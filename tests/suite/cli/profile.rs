//! `--profile`: a contract, as others script against its JSON.

use serde_json::Value;

use super::Folder;
use crate::catalogue::{integers, skipped};

fn folder() -> Option<Folder> {
    let folder = Folder(tempfile::TempDir::new().unwrap(), "simulator".into());
    folder.write::<f32>("x.npy", &[2, 8, 16, 16], &integers(4096, 1, 3));
    folder.write::<f32>("w.npy", &[16, 8, 3, 3], &integers(1152, 2, 3));
    let output = folder.run(&[
        "unfold",
        "x.npy",
        "--kernel",
        "3",
        "--device",
        "simulator",
        "--profile",
        "-o",
        "p.npy",
    ]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    if output.status.success() {
        return Some(folder);
    }
    skipped("simulator", stderr);
    None
}

fn check(launch: &Value) {
    assert!(
        launch["kernel"].is_string() && launch["grid"].as_array().unwrap().len() == 3,
        "{launch}"
    );
    for field in ["threads", "shared_bytes", "mma", "fused", "blocks", "counted_blocks"] {
        assert!(launch[field].is_u64(), "{field}: {launch}");
    }
    assert!(launch["registers"].is_u64() || launch["registers"].is_null(), "{launch}");
    assert!(launch["occupancy"].as_f64().is_some_and(|part| part > 0.0 && part <= 1.0), "{launch}");
    for field in [
        "store_sectors",
        "store_sectors_compulsory",
        "load_sectors",
        "load_sectors_past_l1",
        "load_sectors_compulsory",
    ] {
        assert!(launch["global"][field].is_u64(), "{field}: {launch}");
    }
    for field in ["wavefronts", "wavefronts_ideal"] {
        assert!(launch["shared"][field].is_u64(), "{field}: {launch}");
    }
    // Only where `nvdisasm` is.
    let sass = launch.get("sass").unwrap_or_else(|| panic!("{launch}"));
    if !sass.is_null() {
        let loops = [sass, &sass["main_loop"]];
        for counts in loops.into_iter().filter(|counts| !counts.is_null()) {
            for field in ["instructions", "mma", "ffma", "dfma", "shared_loads", "shared_stores"] {
                assert!(counts[field].is_u64(), "{field}: {launch}");
            }
            for field in ["loads", "stores", "copies"] {
                let widths = counts[field].as_object().unwrap();
                let are_widths = widths.iter().all(|(bits, count)| {
                    bits.parse::<u32>().is_ok_and(|bits| bits % 8 == 0) && count.is_u64()
                });
                assert!(are_widths, "{field}: {launch}");
            }
        }
        assert!(sass["instructions"].as_u64() > Some(10), "{launch}");
    }
    let model = &launch["model"];
    assert!(model["seconds"].as_f64().unwrap() > 0.0 && model["fraction"].is_f64(), "{launch}");
    assert!(model["limiter"].is_string(), "{launch}");
}

#[test]
fn launches_are_objects_and_tables() {
    let Some(folder) = folder() else { return };
    for (target, command) in [
        ("h100", "unfold x.npy --kernel 3x3 --padding 1 -o a.npy"),
        ("l4", "conv x.npy w.npy --padding 1 -o y.npy"),
        ("a100", "fold a.npy --kernel 3x3 --padding 1 --input-size 16x16 -o o.npy"),
    ] {
        let args: Vec<&str> = command.split(' ').collect();
        let plain = folder.json(&args);
        assert!(plain.get("launches").is_none(), "{command}: it was not asked for");
        let result = std::fs::read(folder.path(args[args.len() - 1])).unwrap();
        let object = folder.json(&[&args[..], &["--profile", "--target", target]].concat());
        assert_eq!(object["target"], target);
        let launches = object["launches"].as_array().unwrap();
        assert!(!launches.is_empty(), "{command}");
        launches.iter().for_each(check);
        // What is profiled is computed all the same.
        assert_eq!(std::fs::read(folder.path(args[args.len() - 1])).unwrap(), result, "{command}");
    }
    let output = folder.run(&[
        "conv",
        "x.npy",
        "w.npy",
        "-o",
        "y.npy",
        "--device",
        "simulator",
        "--profile",
    ]);
    let text = String::from_utf8(output.stdout).unwrap();
    for part in ["of 256 threads", "loads ", "stores ", "model ", "predicted, not measured"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn samples_write_no_output() {
    let Some(folder) = folder() else { return };
    let args =
        ["unfold", "x.npy", "--kernel", "3", "--profile", "--sample-blocks", "2", "-o", "b.npy"];
    let object = folder.json(&args);
    assert!(object.get("output").is_none() && !folder.path("b.npy").exists());
    let launch = &object["launches"][0];
    check(launch);
    assert!(launch["counted_blocks"] == 2 && launch["blocks"].as_u64().unwrap() > 2, "{launch}");
}

#[test]
fn what_cannot_be_profiled_is_bad_input() {
    let Some(folder) = folder() else { return };
    let unfold = "unfold x.npy --kernel 3 -o a.npy";
    folder.fails(2, &format!("{unfold} --device cpu --profile"), &["--profile", "cpu"]);
    folder.fails(2, &format!("{unfold} --profile"), &["--profile", "auto"]);
    folder.fails(2, &format!("{unfold} --sample-blocks 2"), &["--sample-blocks", "--profile"]);
    let simulated = format!("{unfold} --device simulator --profile");
    folder.fails(2, &format!("{simulated} --target h101"), &["h101", "h100"]);
    folder.fails(2, &format!("{simulated} --sample-blocks 0"), &["--sample-blocks", "0"]);
}
