//! Arguments of the command line: any text is parsed, and commands put together from small values are run on
//! files in a directory of their own.

#![no_main]

use std::sync::LazyLock;

use arbitrary::{Arbitrary, Unstructured};
use clap::Parser;
use convmat::io::{self, NpzWriter};
use convmat::{Device, Tensor};
use convmat_fuzz::{Counting, directory};
use libfuzzer_sys::fuzz_target;

/// The program's modules, all but `main`. They name each other from the root, so that is where they are.
#[allow(dead_code, reason = "some are for `main` only")]
#[path = "../../src/bin/convmat"]
mod program {
    pub mod args;
    pub mod commands;
    pub mod failure;
    pub mod geometry;
    pub mod layers;
    pub mod plot;
    pub mod progress;
    pub mod report;
    pub mod session;
    pub mod signals;
    pub mod values;
}
use program::{
    args, commands, failure, geometry, layers, plot, progress, report, session, signals, values,
};

use args::Cli;
use session::Session;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Makes the operands and goes where they are. Arguments that are run name files without a folder, so what
/// they write is there, too.
static OPERANDS: LazyLock<()> = LazyLock::new(|| {
    std::env::set_current_dir(directory()).unwrap();
    write("x1.npy", &[2, 2, 5]);
    write("x2.npy", &[1, 2, 4, 5]);
    write("x3.npy", &[1, 2, 3, 3, 3]);
    write("w1.npy", &[2, 2, 3]);
    write("w2.npy", &[2, 2, 2, 3]);
    write("w3.npy", &[2, 2, 2, 2, 2]);
    write("dy2.npy", &[1, 2, 3, 3]);
    write("patches.npy", &[1, 4, 6]);
    write("b.npy", &[2]);
    let mut archive = NpzWriter::create("sparse.npz").unwrap();
    archive.add_bytes_string("format", b"csr").unwrap();
    archive.add_i32("indptr", &[0, 2, 3]).unwrap();
    archive.add_i32("indices", &[0, 5, 3]).unwrap();
    archive.add_i64("shape", &[2, 6]).unwrap();
    archive.add("data", &tensor(&[3])).unwrap();
    archive.finish().unwrap();
});

fn tensor(shape: &[usize]) -> Tensor<f32> {
    let len = shape.iter().product::<usize>();
    let data = (0..len).map(|i| (i % 7) as f32 - 3.0).collect();
    Tensor::from_vec(&Device::Cpu, shape, data).unwrap()
}

fn write(name: &str, shape: &[usize]) {
    io::write_npy(name, &tensor(shape)).unwrap();
}

fuzz_target!(|data: &[u8]| {
    LazyLock::force(&OPERANDS);
    let u = &mut Unstructured::new(data);
    let Ok(composed) = u.ratio(3, 4) else { return };
    if !composed {
        // Parsed only: this may name any file.
        let text = String::from_utf8_lossy(u.bytes(u.len()).unwrap_or_default());
        let arguments = std::iter::once("convmat").chain(text.split('\n'));
        if let Err(error) = Cli::try_parse_from(arguments) {
            assert!(!error.render().to_string().is_empty());
        }
        std::fs::write("layers.json", &*text).unwrap();
        if let Err(failure) = layers::read("layers.json".as_ref()) {
            assert_eq!(failure.exit_status(), 2);
        }
        return;
    }
    let Ok(arguments) = arguments(u) else { return };
    assert!(arguments.iter().all(|argument| !argument.contains(['/', '\\'])), "{arguments:?}");
    let Ok(cli) = Cli::try_parse_from(&arguments) else { return };
    let json = cli.json;
    let run = || -> Result<(), failure::Failure> {
        let mut session = Session::new(&cli)?;
        commands::run(&cli.command, &mut session)?;
        // Standard output is closed: see `run`.
        let _ = session.into_report().print(json);
        Ok(())
    };
    if let Err(failure) = run() {
        let message = failure.to_string();
        assert!(!message.is_empty());
        assert!([1, 2].contains(&failure.exit_status()), "{message}");
    }
});

const FILES: [&str; 14] = [
    "x1.npy",
    "x2.npy",
    "x3.npy",
    "w1.npy",
    "w2.npy",
    "w3.npy",
    "dy2.npy",
    "patches.npy",
    "b.npy",
    "sparse.npz",
    "sparse.npz:data",
    "sparse.npz:none",
    "out.npz",
    "missing.npy",
];

/// A number that is small, or so large that it is refused at once.
fn count(u: &mut Unstructured<'_>) -> arbitrary::Result<String> {
    const HUGE: [&str; 6] = [
        "1152921504606846975",
        "1152921504606846976",
        "9223372036854775807",
        "9223372036854775808",
        "18446744073709551615",
        "18446744073709551616",
    ];
    Ok(match u.ratio(1, 12)? {
        true => (*u.choose(&HUGE)?).into(),
        false => u.int_in_range(0u8..=4)?.to_string(),
    })
}

/// One of them for all axes, or one for each.
fn extents(u: &mut Unstructured<'_>) -> arbitrary::Result<String> {
    let axes = u.int_in_range(1..=3)?;
    let values = (0..axes).map(|_| count(u)).collect::<Result<Vec<_>, _>>()?;
    Ok(values.join("x"))
}

/// A command with some of its flags, right or wrong.
fn arguments(u: &mut Unstructured<'_>) -> arbitrary::Result<Vec<String>> {
    const COMMANDS: [(&str, usize); 10] = [
        ("filter", 0),
        ("unfold", 1),
        ("fold", 1),
        ("conv", 2),
        ("conv-backward", 3),
        ("matrix", 1),
        ("prune", 1),
        ("spectrum", 1),
        ("covariance", 1),
        ("kfac", 2),
    ];
    const OUTPUTS: [&str; 6] = [
        "out.npy",
        "out.npz",
        "out.safetensors",
        "out.npz:key",
        "out.npy:key",
        "out.safetensors:key",
    ];
    let (command, operands) = *u.choose(&COMMANDS)?;
    let mut all: Vec<String> = ["convmat", command, "--device=cpu"].map(String::from).into();
    for _ in 0..operands {
        all.push((*u.choose(&FILES)?).into());
    }
    if u.ratio(7, 8)? {
        all.push(format!("--output={}", u.choose(&OUTPUTS)?));
    }
    if u.ratio(3, 4)? {
        all.push(format!("--kernel={}", extents(u)?));
    }
    if command == "filter" {
        all.push(format!("--channels={}", count(u)?));
    }
    if matches!(command, "fold" | "matrix" | "spectrum") {
        all.push(format!("--input-size={}", extents(u)?));
    }
    for _ in 0..u.int_in_range(0..=6)? {
        all.push(flag(u)?);
    }
    Ok(all)
}

/// Any flag that some command has.
fn flag(u: &mut Unstructured<'_>) -> arbitrary::Result<String> {
    const SWITCHES: [&str; 9] = [
        "transposed",
        "json",
        "explain",
        "sparse",
        "average",
        "eliminate-zeros",
        "bracket",
        "no-pi",
        "bias",
    ];
    const MODES: [&str; 4] = ["zeros", "reflect", "replicate", "circular"];
    const ALGORITHMS: [&str; 6] = ["naive", "shifted", "im2col", "implicit", "direct", "depthwise"];
    const METHODS: [&str; 6] = ["lanczos", "randomized", "circular", "dense", "kfac", "ekfac"];
    let name = *u.choose(&[
        "stride",
        "dilation",
        "padding",
        "padding-sides",
        "output-padding",
        "groups",
        "bias",
        "padding-mode",
        "layout",
        "algorithm",
        "method",
        "dtype",
        "mode",
        "scale",
        "top",
        "plot",
        "tolerance",
        "damping",
        "threshold",
        "pattern",
        "top-k",
        "seed",
        "applications",
        "iterations",
        "gradient",
        "switch",
    ])?;
    let value = match name {
        "stride" | "dilation" | "padding" | "output-padding" => extents(u)?,
        "padding-sides" if u.ratio(1, 2)? => {
            return Ok(format!("--padding={}", u.choose(&["same", "valid"])?));
        }
        "padding-sides" => return Ok(format!("--padding={}:{}", count(u)?, count(u)?)),
        "bias" | "gradient" => (*u.choose(&FILES)?).into(),
        "padding-mode" => (*u.choose(&MODES)?).into(),
        "layout" => "channels-last".into(),
        "algorithm" => (*u.choose(&ALGORITHMS)?).into(),
        "method" => (*u.choose(&METHODS)?).into(),
        "dtype" => (*u.choose(&["f16", "bf16", "f64"])?).into(),
        "mode" => (*u.choose(&["expand", "reduce"])?).into(),
        "scale" => (*u.choose(&["sum", "mean"])?).into(),
        "top" if u.ratio(1, 4)? => "all".into(),
        "plot" => (*u.choose(&["out.svg", "out.png"])?).into(),
        "tolerance" | "damping" | "threshold" => f64::arbitrary(u)?.to_string(),
        "pattern" => format!("{}:{}", count(u)?, count(u)?),
        // More of these take longer, as they are to.
        "iterations" => u.int_in_range(0u8..=4)?.to_string(),
        "switch" => return Ok(format!("--{}", u.choose(&SWITCHES)?)),
        _ => count(u)?,
    };
    Ok(format!("--{name}={value}"))
}
