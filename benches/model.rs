//! What the catalogue's layers would take on a GPU, by the simulator's counts and its model: nothing here is
//! measured.
//!
//! ```text
//! cargo bench --features full --bench model [-- --target h100 --shapes stem,conv2 --operations dx --types f64 --blocks 32]
//! ```
//!
//! Prints a table in Markdown: of each layer, operation, element type and layout the modelled time of all its
//! launches, its part of the roofline, what binds the longest launch, and how far that one's accesses are from
//! the least. Kernels are made for each layer, as on a GPU, so that the first run compiles hundreds.

use std::io::Write;
use std::process::ExitCode;

use convmat::{
    Device, Element, LaunchProfile, Layout, Profiling, Result, Simulation, Target, Tensor,
    with_axes,
};
use half::{bf16, f16};

mod shapes;
use shapes::{CATALOGUE, Shape};

const OPERATIONS: [&str; 5] = ["unfold", "fold", "forward", "dx", "dw"];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |flag: &str| {
        let at = arguments.iter().position(|argument| argument == flag)?;
        arguments.get(at + 1).map(String::as_str)
    };
    let target: Target = value("--target").unwrap_or("h100").parse()?;
    let blocks = value("--blocks").and_then(|text| text.parse().ok()).unwrap_or(32);
    let list = |flag| value(flag).map(|text| text.split(',').collect()).unwrap_or_default();
    let (names, operations): (Vec<&str>, Vec<&str>) = (list("--shapes"), list("--operations"));
    let types: Vec<&str> = list("--types");
    let types = if types.is_empty() { vec!["f32", "f16", "bf16"] } else { types };
    // As for all benches in test mode: a little of everything.
    let test = arguments.iter().any(|argument| argument == "--test");
    let names = if test { vec!["notebook"] } else { names };
    let profiling = Some(Profiling { target, blocks: Some(blocks) });
    let simulation = Simulation { profiling, specialise: true, ..Simulation::default() };
    let device = Device::simulator_with(simulation)?;
    println!(
        "Modelled for {target}, at most {blocks} blocks of a launch counted; nothing is measured.\n"
    );
    println!(
        "| layer | layout | type | operation | launches | us | of the roofline | bound by | sectors | wavefronts |"
    );
    println!("|---|---|---|---|--:|--:|--:|---|--:|--:|");
    let mut rows = Vec::new();
    for shape in CATALOGUE.iter().filter(|shape| names.is_empty() || names.contains(&shape.name)) {
        for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
            let shape = Shape { layout, ..*shape };
            let asked = |of: &&str| operations.is_empty() || operations.contains(of);
            for operation in OPERATIONS.into_iter().filter(asked) {
                for dtype in &types {
                    rows.extend(match *dtype {
                        "f64" => profile::<f64>(&device, &shape, operation)?,
                        "f32" => profile::<f32>(&device, &shape, operation)?,
                        "f16" => profile::<f16>(&device, &shape, operation)?,
                        _ => profile::<bf16>(&device, &shape, operation)?,
                    });
                }
            }
        }
    }
    rows.sort_by(|a, b| a.0.total_cmp(&b.0));
    println!("\nThe rows furthest from the roofline that take more than a launch:\n");
    for (_, row) in rows.iter().take(10) {
        println!("{row}");
    }
    Ok(())
}

/// Prints a row; gives the part of the roofline and the row, unless launching takes the longest.
fn profile<T: Element>(
    device: &Device,
    shape: &Shape,
    operation: &str,
) -> Result<Option<(f64, String)>> {
    let zeros = |shape: &[usize]| Tensor::<T>::zeros(device, shape);
    with_axes!(shape.spatial, D => {
        let conv = shape.conv::<D>();
        let size: [usize; D] = std::array::from_fn(|axis| shape.input[3 - D + axis]);
        let (x, weight) = (zeros(&shape.input_shape())?, zeros(&shape.weight_shape())?);
        device.take_profile();
        match operation {
            "unfold" => drop(conv.unfold(&x)?),
            "fold" => {
                drop(conv.fold(&zeros(&shape.patch_shape())?, size)?);
            }
            "forward" => drop(conv.forward(&x, &weight, None)?),
            _ => {
                let y = shape.output_shape();
                let y = zeros(&y)?;
                match operation {
                    "dx" => drop(conv.backward_input(&y, &weight, size)?),
                    _ => drop(conv.backward_weight(&x, &y)?),
                }
            }
        }
        Ok::<_, convmat::Error>(())
    })?;
    Ok(row(shape, T::DTYPE.to_string(), operation, &device.take_profile()))
}

fn row(
    shape: &Shape,
    dtype: String,
    operation: &str,
    launches: &[LaunchProfile],
) -> Option<(f64, String)> {
    let seconds = |launch: &&LaunchProfile| launch.model.seconds;
    let all: f64 = launches.iter().map(|launch| launch.model.seconds).sum();
    let least: f64 =
        launches.iter().map(|launch| launch.model.seconds * launch.model.fraction).sum();
    let longest = launches.iter().max_by(|a, b| seconds(a).total_cmp(&seconds(b)))?;
    let shared = longest.shared;
    let wavefronts = match shared.wavefronts_ideal > 0.0 {
        true => format!("{:.2}x", shared.wavefronts / shared.wavefronts_ideal),
        false => "–".into(),
    };
    let layout = shape.layout;
    let text = format!(
        "| {} | {layout} | {dtype} | {operation} | {} | {:.1} | {:.0}% | {} | {:.2}x | {wavefronts} |",
        shape.name,
        launches.len(),
        1e6 * all,
        100.0 * least / all,
        longest.model.limiter,
        1.0 / longest.global.efficiency(),
    );
    println!("{text}");
    let _ = std::io::stdout().flush();
    (longest.model.limiter != convmat::Limiter::Launch).then_some((least / all, text))
}
