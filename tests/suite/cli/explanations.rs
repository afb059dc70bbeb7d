//! `--explain`: a contract, as others script against its JSON.

use convmat::Device;
use serde_json::Value;

use super::Folder;
use crate::catalogue::{devices, integers};

/// Every command's plan has these fields, of these types, and at least one pass with a kernel.
fn check(plan: &Value, command: &str) {
    assert!(plan["algorithm"].is_string() && plan["reason"].is_string(), "{command}: {plan}");
    for field in ["workspace_bytes", "flop", "bytes"] {
        assert!(plan[field].is_u64(), "{command}, {field}: {plan}");
    }
    let passes = plan["passes"].as_array().unwrap();
    assert!(passes.iter().all(|pass| pass["kernel"].is_string()), "{command}: {plan}");
    assert!(!passes.is_empty() || command.contains("--sparse"), "{command}: {plan}");
}

#[test]
fn every_command_explains_its_plan() {
    let commands = [
        "filter --channels 2 --kernel 3x3 -o o.npy",
        "filter --channels 2 --kernel 3x3 --sparse -o o.npz",
        "unfold x.npy --kernel 3x3 --padding 1 -o a.npy",
        "fold a.npy --kernel 3x3 --padding 1 --input-size 6x5 -o o.npy",
        "fold a.npy --kernel 3x3 --padding 1 --input-size 6x5 --average -o o.npy",
        "conv x.npy w.npy --padding 1 -o y.npy",
        "conv y.npy w.npy --padding 1 --transposed -o o.npy",
        "conv-backward x.npy w.npy y.npy --padding 1 -o o.npz",
        "matrix w.npy --input-size 6x5 --padding 1 -o o.npz",
    ];
    for device in devices() {
        let folder = Folder::on(device);
        folder.write::<f32>("x.npy", &[1, 2, 6, 5], &integers(60, 1, 3));
        folder.write::<f32>("w.npy", &[4, 2, 3, 3], &integers(72, 2, 3));
        for command in commands {
            let args: Vec<_> = command.split(' ').collect();
            let plain = folder.json(&args);
            assert!(plain.get("plan").is_none(), "{command}: it was not asked for");
            let object = folder.json(&[&args[..], &["--explain"]].concat());
            check(&object["plan"], command);
            if args[0] == "conv-backward" {
                let plans = object["plans"].as_array().unwrap();
                plans.iter().for_each(|plan| check(plan, command));
                let names: Vec<_> = plans.iter().map(|plan| plan["operation"].clone()).collect();
                assert_eq!(names, ["backward_weight", "backward_input", "backward_bias"]);
            }
            if args[0] == "conv" && *device != Device::Cpu {
                let plan = &object["plan"];
                let others = plan["alternatives"].as_array().unwrap();
                let seconds = |of: &Value| of["expected_seconds"].as_f64().unwrap();
                assert!(!others.is_empty(), "{plan}");
                assert!(others.iter().all(|other| seconds(other) >= seconds(plan)), "{plan}");
            }
            if args[0] == "conv" {
                let flop = 2 * 4 * 30 * 2 * 9;
                assert_eq!(object["plan"]["flop"], flop, "{command}");
            }
        }
        let output =
            folder.run(&["unfold", "x.npy", "--kernel", "3x3", "-o", "a.npy", "--explain"]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("\n  algorithm ") && text.contains("\n  pass 1"), "{text}");
    }
}

/// What is asked for by name and does not exist is bad input.
#[test]
fn algorithms_that_do_not_exist_are_refused() {
    let folder = Folder::new();
    folder.write::<f32>("x.npy", &[1, 2, 6, 5], &integers(60, 1, 3));
    folder.write::<f32>("w.npy", &[4, 2, 3, 3], &integers(72, 2, 3));
    let command = "conv x.npy w.npy --algorithm direct --device cpu -o y.npy";
    folder.fails(2, command, &["algorithm", "direct"]);
}
