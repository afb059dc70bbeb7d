//! The commands: a file for each, or for two that belong together.

mod backward;
mod conv;
mod covariance;
mod devices;
mod filter;
mod kfac;
mod matrix;
mod patches;
mod sparse;
mod spectrum;

use std::path::Path;

use convmat::io::{Format, NpzWriter, Source};
use convmat::{Csr, Element, Geometry};
use serde_json::json;

use crate::args::Command;
use crate::failure::Failure;
use crate::geometry::GeometryFlags;
use crate::report;
use crate::session::Session;
use crate::values::Extents;

pub fn run(command: &Command, session: &mut Session) -> Result<(), Failure> {
    match command {
        Command::Devices => devices::run(session),
        Command::Filter(args) => filter::run(args, session),
        Command::Unfold(args) => patches::unfold(args, session),
        Command::Fold(args) => patches::fold(args, session),
        Command::Conv(args) if sparse::is_sparse(&args.w) => sparse::conv(args, session),
        Command::Conv(args) => conv::run(args, session),
        Command::ConvBackward(args) => backward::run(args, session),
        Command::Matrix(args) => matrix::run(args, session),
        Command::Prune(args) => sparse::prune(args, session),
        Command::Spectrum(args) => spectrum::run(args, session),
        Command::Covariance(args) => covariance::run(args, session),
        Command::Kfac(args) => kfac::run(args, session),
    }
}

/// The path of an output that must be an npz archive because it holds several arrays.
fn archive_path<'a>(what: &str, output: &'a Source) -> Result<&'a Path, Failure> {
    if output.format() != Format::Npz || output.key().is_some() {
        return Err(Failure::input(format!(
            "--output is {output}, expected a name ending in .npz: {what} is an archive of arrays"
        )));
    }
    Ok(output.path())
}

/// Adds the geometry to the report, with the output padding of a transposed convolution.
fn report_geometry<const D: usize>(
    session: &mut Session,
    flags: &GeometryFlags,
    geometry: &Geometry<D>,
    transposed: Option<[usize; D]>,
) -> Result<(), Failure> {
    let (mut text, mut value) = flags.describe(geometry)?;
    value["transposed"] = transposed.is_some().into();
    if let Some(extra) = transposed {
        text += &format!(", transposed with output padding {}", Extents(extra.to_vec()));
        value["output_padding"] = extra.to_vec().into();
    }
    session.report.row("geometry", text);
    session.report.set("geometry", value);
    Ok(())
}

/// Writes a matrix so that `scipy.sparse.load_npz` reads it, and reports its size.
fn save_matrix<T: Element>(
    session: &mut Session,
    path: &Path,
    matrix: &Csr<T>,
) -> Result<(), Failure> {
    let (nnz, width) = (matrix.nnz(), matrix.index_width());
    let [rows, columns] = matrix.shape();
    let bytes = nnz * (T::DTYPE.size() + width.size()) + (rows + 1) * width.size();
    session.write("--output", path, bytes, |progress| {
        let writer = NpzWriter::create(path)?;
        matrix.write_npz(writer.on_progress(|n| progress.advance(n)))
    })?;
    let report = &mut session.report;
    report.row("rows", report::count(rows));
    report.row("columns", report::count(columns));
    let filled = 100.0 * nnz as f64 / (rows as f64 * columns as f64).max(1.0);
    report.row("nnz", format!("{} ({filled:.3}% filled)", report::count(nnz)));
    let size = report::size(bytes);
    report.row(
        "bytes",
        format!("{} ({size}: {} values, {width} indices)", report::count(bytes), T::DTYPE),
    );
    report.row("output", path.display());
    for (key, value) in [("rows", rows), ("columns", columns), ("nnz", nnz), ("bytes", bytes)] {
        report.set(key, value);
    }
    report.set("dtype", T::DTYPE.to_string());
    report.set("index_dtype", width.to_string());
    report.set("output", json!({ "path": path.display().to_string() }));
    Ok(())
}
