//! Times of this crate's operations on a CUDA GPU, on every layer of the catalogue, in every algorithm,
//! element type and layout: `cargo bench --bench cuda -- --help`.
//!
//! Nothing is timed before its result has been checked. A call is timed by events on the device, with the
//! L2 cache overwritten before it, and its rate held against what this machine does at best in the same
//! run. Where there is no GPU there is nothing to time: run as a test, it then checks one tiny layer on the
//! simulator, if that was built in.
//!
//! `dense` and `sparse` are what is timed and know `report`, which knows `machine`, `model` and `options`; below
//! them all are `outcome` and the shapes.

mod dense;
mod machine;
mod model;
mod options;
mod outcome;
mod report;
#[path = "../shapes/mod.rs"]
mod shapes;
mod sparse;

use std::process::ExitCode;

use convmat::{DType, Device};
use half::{bf16, f16};

use dense::Examples;
use machine::Gpu;
use options::Options;
use outcome::Result;
use report::Bench;
use shapes::Shape;

fn main() -> ExitCode {
    match run() {
        Ok(failed) => ExitCode::from(u8::from(failed)),
        Err(error) => {
            eprintln!("cuda: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether something was wrong.
fn run() -> Result<bool> {
    let dense = dense::Operation::ALL.iter().map(ToString::to_string);
    let operations = dense.chain(sparse::NAMES.map(String::from)).collect();
    let options = Options::read(operations)?;
    if options.help {
        println!("{}", options::help());
        return Ok(false);
    }
    let Some((gpu, device)) = open(&options)? else { return Ok(false) };
    if let Some(folder) = &options.save {
        std::fs::create_dir_all(folder)?;
    }
    let mut bench = Bench::new(&options, device, gpu)?;
    for shape in &options.shapes {
        layer(&mut bench, shape)?;
    }
    let Bench { checked, failed, .. } = bench;
    eprintln!("{checked} rows, {failed} of them failed");
    Ok(failed > 0)
}

fn layer(bench: &mut Bench, shape: &Shape) -> Result<()> {
    let mut examples = Examples::new(shape);
    for &dtype in &bench.options.dtypes {
        match dtype {
            DType::F16 => of_type::<f16>(bench, &mut examples)?,
            DType::BF16 => of_type::<bf16>(bench, &mut examples)?,
            DType::F64 => of_type::<f64>(bench, &mut examples)?,
            _ => of_type::<f32>(bench, &mut examples)?,
        }
        bench.device.release_memory();
    }
    Ok(())
}

fn of_type<T: convmat::Element>(bench: &mut Bench, examples: &mut Examples) -> Result<()> {
    dense::run::<T>(bench, examples)?;
    sparse::run::<T>(bench, examples.shape())
}

/// What there is to run on, and the GPU if it is to be timed. `None`, having said why, where there is
/// nothing and nothing was asked for.
fn open(options: &Options) -> Result<Option<(Option<Gpu>, Device)>> {
    let named = options.device.as_deref();
    if named == Some("simulator") {
        return Ok(Some((None, Device::simulator()?)));
    }
    let ordinal = match named.map(|name| name.strip_prefix("cuda").map(|n| n.strip_prefix(':'))) {
        None | Some(Some(None)) => 0,
        Some(Some(Some(ordinal))) => ordinal.parse()?,
        Some(None) => return Err(format!("--device is {}", named.unwrap_or_default()).into()),
    };
    let absent = match Gpu::open(ordinal) {
        Ok((gpu, device)) => return Ok(Some(((!options.test).then_some(gpu), device))),
        Err(error) if named.is_some() => return Err(error),
        Err(error) => error,
    };
    if options.test {
        match Device::simulator() {
            Ok(device) => return Ok(Some((None, device))),
            Err(error) => println!("nothing to check: {error}"),
        }
    }
    println!("nothing to time: {absent}");
    Ok(None)
}
