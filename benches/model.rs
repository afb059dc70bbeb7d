//! What the catalogue's layers would take on a GPU, by the simulator's counts and its model: nothing here is
//! measured.
//!
//! ```text
//! cargo bench --features full --bench model [-- --target h100 --shapes stem,conv2 --operations dx --blocks 32
//!     --types f32,bf16 --padding reflect --indices 64 --entries 1000000]
//! ```
//!
//! Prints a table in Markdown: of each layer, operation, element type and layout the modelled time of all its
//! launches, its part of the roofline, what binds the longest launch, and how far that one's accesses are from
//! the least. Kernels are made for each layer, as on a GPU, so that the first run compiles hundreds.
//!
//! The matrix of a layer is assembled on the simulator (`matrix`), but made on the CPU for what reads it: of an
//! image so small that it has at most so many entries, and fewer for `transpose`, all of whose blocks have to run.
//!
//! `--floors results/model-h100.md` fails where a row takes more than 5% longer than that table has it.

use std::io::Write;
use std::process::ExitCode;

use convmat::{
    Csr, Device, Element, Error, LaunchProfile, Layout, Profiling, Result, Simulation, Target,
    Tensor, with_axes,
};
use half::{bf16, f16};

mod shapes;
use shapes::{CATALOGUE, Shape};

const OPERATIONS: [&str; 9] =
    ["unfold", "fold", "forward", "dx", "dw", "matrix", "spmv", "spmm", "transpose"];

/// Vectors that a matrix is multiplied with at once.
const VECTORS: usize = 16;
/// Entries of matrices that are multiplied and transposed, at most.
const MULTIPLIED: usize = 8_000_000;
const TRANSPOSED: usize = 1_000_000;

/// Simulators that count some blocks of a launch, and all of them; and entries of matrices, if they are given.
struct Setting {
    some: Device,
    all: Device,
    entries: Option<usize>,
}

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
    let floors = value("--floors").map(Floors::read).transpose()?;
    let padding = value("--padding").map(str::parse).transpose()?;
    let device = |blocks| {
        let profiling = Some(Profiling { target, blocks });
        let wide_indices = value("--indices") == Some("64");
        let rest = Simulation::default();
        Device::simulator_with(Simulation { profiling, specialise: true, wide_indices, ..rest })
    };
    let entries = value("--entries").and_then(|text| text.parse().ok());
    let setting = Setting { some: device(Some(blocks))?, all: device(None)?, entries };
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
            let shape = Shape { layout, mode: padding.unwrap_or(shape.mode), ..*shape };
            let asked = |of: &&str| operations.is_empty() || operations.contains(of);
            for operation in OPERATIONS.into_iter().filter(asked) {
                for dtype in &types {
                    rows.extend(match *dtype {
                        "f64" => profile::<f64>(&setting, &shape, operation)?,
                        "f32" => profile::<f32>(&setting, &shape, operation)?,
                        "f16" => profile::<f16>(&setting, &shape, operation)?,
                        _ => profile::<bf16>(&setting, &shape, operation)?,
                    });
                }
            }
        }
    }
    let slower = floors.map(|floors| floors.slower(&rows)).unwrap_or_default();
    rows.retain(|row| !row.launching);
    rows.sort_by(|a, b| a.fraction.total_cmp(&b.fraction));
    println!("\nThe rows furthest from the roofline that take more than a launch:\n");
    for row in rows.iter().take(10) {
        println!("{}", row.line);
    }
    match &slower[..] {
        [] => Ok(()),
        rows => Err(invalid(&rows.join("; "), "slower than the table has it")),
    }
}

fn invalid(value: &str, reason: &str) -> Error {
    Error::Invalid { argument: "--floors".into(), value: value.into(), reason: reason.into() }
}

/// A line of the table.
struct Row {
    line: String,
    /// Of the roofline.
    fraction: f64,
    /// Whether launching takes the longest.
    launching: bool,
}

/// The times of a table that was kept.
struct Floors(String);

impl Floors {
    /// What a row may be slower by: another C++ compiler orders accesses a little differently.
    const SLACK: f64 = 1.05;

    fn read(path: &str) -> Result<Self> {
        let text = std::fs::read_to_string(path);
        text.map(Floors).map_err(|error| invalid(path, &error.to_string()))
    }

    /// A line's layer, layout, type and operation, and its microseconds.
    fn time(line: &str) -> Option<([&str; 4], f64)> {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, layer, layout, dtype, operation, _, time, ..] = cells[..] else { return None };
        Some(([layer, layout, dtype, operation], time.parse().ok()?))
    }

    /// The rows that take longer than the table has it, or that it does not have.
    fn slower(&self, rows: &[Row]) -> Vec<String> {
        let known: Vec<_> = self.0.lines().filter_map(Floors::time).collect();
        let found = rows.iter().filter_map(|row| Floors::time(&row.line));
        let mut slower = Vec::new();
        for (name, time) in found {
            match known.iter().find(|(other, _)| *other == name) {
                Some((_, floor)) if time <= floor * Floors::SLACK => {}
                Some((_, floor)) => {
                    slower.push(format!("{}: {time} us, {floor} us", name.join(" ")))
                }
                None => slower.push(format!("{}: not in the table", name.join(" "))),
            }
        }
        slower
    }
}

/// Prints a row.
fn profile<T: Element>(setting: &Setting, shape: &Shape, operation: &str) -> Result<Option<Row>> {
    let device = match operation {
        "transpose" => &setting.all,
        _ => &setting.some,
    };
    match operation {
        "matrix" => {
            let shape = shape.for_matrix()?;
            let weight = Tensor::<T>::zeros(device, &shape.weight_shape())?;
            device.take_profile();
            assembled(&shape, &weight)?;
        }
        "spmv" | "spmm" | "transpose" => {
            let most = if operation == "transpose" { TRANSPOSED } else { MULTIPLIED };
            let shape = shape.for_entries(setting.entries.unwrap_or(most))?;
            let weight = Tensor::<T>::zeros(&Device::Cpu, &shape.weight_shape())?;
            let matrix = assembled(&shape, &weight)?.to_device(device)?;
            let vectors = |count| Tensor::<T>::zeros(device, &[matrix.columns(), count]);
            let (one, many) = (vectors(1)?.reshape(&[matrix.columns()])?, vectors(VECTORS)?);
            device.take_profile();
            match operation {
                "spmv" => drop(matrix.mul_vector(&one)?),
                "spmm" => drop(matrix.mul_matrix(&many)?),
                _ => drop(matrix.transpose()?),
            }
        }
        _ => dense::<T>(device, shape, operation)?,
    }
    Ok(row(shape, T::DTYPE.to_string(), operation, &device.take_profile()))
}

fn assembled<T: Element>(shape: &Shape, weight: &Tensor<T>) -> Result<Csr<T>> {
    with_axes!(shape.spatial, D => {
        shape.conv::<D>().matrix(weight, None, shape.input_size::<D>())
    })
}

/// What makes no matrix.
fn dense<T: Element>(device: &Device, shape: &Shape, operation: &str) -> Result<()> {
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
        Ok(())
    })
}

fn row(shape: &Shape, dtype: String, operation: &str, launches: &[LaunchProfile]) -> Option<Row> {
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
    let line = format!(
        "| {} | {layout} | {dtype} | {operation} | {} | {:.1} | {:.0}% | {} | {:.2}x | {wavefronts} |",
        shape.name,
        launches.len(),
        1e6 * all,
        100.0 * least / all,
        longest.model.limiter,
        1.0 / longest.global.efficiency(),
    );
    println!("{line}");
    let _ = std::io::stdout().flush();
    let launching = longest.model.limiter == convmat::Limiter::Launch;
    Some(Row { line, fraction: least / all, launching })
}
