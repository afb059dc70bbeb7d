//! `convmat spectrum`: of a layer, of a sparse matrix, or of the layers of a network.

mod network;

use convmat::io::{Format, NpzReader, NpzWriter, Source};
use convmat::{
    Accumulator, Csr, DType, Device, Element, Error, Norm, NormOptions, Operator, Spectrum,
    SpectrumOptions, Tensor, Top, with_axes,
};
use serde_json::{Value, json};

use super::report_geometry;
use crate::args::SpectrumArgs;
use crate::failure::Failure;
use crate::geometry::{GeometryFlags, TransposedFlags};
use crate::plot::spectrum::{Series, plot, shortened};
use crate::report::{count, rounded, size};
use crate::session::{Operand, Session, check_plot, check_writable};
use crate::values::Extents;

/// The number of values unless `--top` says another.
const TOP: usize = 6;

/// The most values that are printed for people.
const SHOWN: usize = 20;

/// Digits of values, and of what is derived from them.
const DIGITS: usize = 7;
const FEW_DIGITS: usize = 4;

/// The flags that describe a layer.
const LAYER_FLAGS: [&str; 10] = [
    "--input-size",
    "--kernel",
    "--stride",
    "--padding",
    "--dilation",
    "--groups",
    "--padding-mode",
    "--layout",
    "--transposed",
    "--output-padding",
];

pub fn run(args: &SpectrumArgs, session: &mut Session) -> Result<(), Failure> {
    if let Some(output) = &args.output {
        check_output(output)?;
    }
    check_plot(args.plot.as_ref())?;
    for (library, flag) in [
        ("input extent", "--input-size"),
        ("number of singular values", "--top"),
        ("tolerance", "--tolerance"),
        ("method", "--method"),
    ] {
        session.names.set(library, flag);
    }
    if let Some(list) = &args.layers {
        return network::run(args, session, list);
    }
    let operator = match sparse(&args.w)? {
        true => matrix(args, session)?,
        false => layer(args, session)?,
    };
    single(args, session, &operator)
}

/// Only these hold values alone, or values and vectors of other shapes and types.
fn check_output(output: &Source) -> Result<(), Failure> {
    if !matches!(output.format(), Format::Npy | Format::Npz) || output.key().is_some() {
        return Err(Failure::input(format!(
            "--output is {output}, expected a name ending in .npy, for the values, or in .npz, for values, \
             u and v"
        )));
    }
    check_writable(output.path())
}

/// An operator on elements of either type.
enum AnyOperator {
    F32(Operator<f32>),
    F64(Operator<f64>),
}

/// Evaluates an expression with the operator inside.
macro_rules! with_operator {
    ($any:expr, $operator:ident => $body:expr) => {
        match $any {
            AnyOperator::F32($operator) => $body,
            AnyOperator::F64($operator) => $body,
        }
    };
}
use with_operator;

/// Whether the file is an archive of a sparse matrix. One that cannot be read is a matter of who reads it.
fn sparse(source: &Source) -> Result<bool, Failure> {
    if source.format() != Format::Npz || source.key().is_some() {
        return Ok(false);
    }
    let archive = NpzReader::open(source.path())
        .map_err(|e| Failure::reading(&format!("W ({source})"), e))?;
    let has = |name: &str| archive.names().iter().any(|known| known == name);
    Ok(has("format") && has("shape") && has("data"))
}

fn matrix(args: &SpectrumArgs, session: &mut Session) -> Result<AnyOperator, Failure> {
    let label = format!("W ({})", args.w);
    if let Some(flag) = args.given.first(&LAYER_FLAGS) {
        return Err(Failure::input(format!(
            "{flag} is given, but {label} is an assembled matrix: it has no geometry"
        )));
    }
    let path = args.w.path();
    let read = |e| Failure::reading(&label, e);
    session.names.set("operator", &label);
    match session.reading(&args.w, || Csr::<f32>::load_npz(path)) {
        Ok(matrix) => given(session, &args.w, matrix).map(AnyOperator::F32),
        Err(Error::ElementType { found, .. }) if found == DType::F64.to_string() => {
            let matrix = session.reading(&args.w, || Csr::<f64>::load_npz(path)).map_err(read)?;
            given(session, &args.w, matrix).map(AnyOperator::F64)
        }
        Err(Error::ElementType { found, .. }) => Err(Failure::input(format!(
            "{label} has elements of type {found}, expected f32 or f64"
        ))),
        Err(error) => Err(read(error)),
    }
}

fn given<T: Accumulator>(
    session: &mut Session,
    source: &Source,
    matrix: Csr<T>,
) -> Result<Operator<T>, Failure> {
    let shape = matrix.shape();
    let nnz = count(matrix.nnz());
    session.report.operand("matrix", source, &shape, format!("{}, nnz {nnz},", T::DTYPE));
    let bad = matrix.data().and_then(|data| data.iter().find(|v| !v.to_f64().is_finite()).copied());
    if let Some(value) = bad {
        return Err(Failure::input(format!(
            "W ({source}) has the element {value:?}: every element must be finite"
        )));
    }
    let device = session.device.clone();
    session.compute("preparing", || Operator::from_csr(matrix.to_device(&device)?))
}

fn layer(args: &SpectrumArgs, session: &mut Session) -> Result<AnyOperator, Failure> {
    let w = session.load_weight(&args.w)?;
    session.names.set("operator", w.label());
    let Some(size) = &args.input_size else {
        return Err(Failure::input(format!(
            "--input-size is missing: {} is the weight of a layer, whose operator depends on it",
            w.label()
        )));
    };
    let described = Described {
        size,
        kernel: args.kernel.as_ref(),
        geometry: &args.geometry,
        transposed: &args.transposed,
    };
    described.operator(session, w, true)
}

/// What says which operator a weight makes.
struct Described<'a> {
    size: &'a Extents,
    kernel: Option<&'a Extents>,
    geometry: &'a GeometryFlags,
    transposed: &'a TransposedFlags,
}

impl Described<'_> {
    /// The operator; half types are computed with in `f32`.
    fn operator(
        &self,
        session: &mut Session,
        w: Operand,
        reported: bool,
    ) -> Result<AnyOperator, Failure> {
        let axes = w.spatial_axes()?;
        match w.dtype()? {
            DType::F64 => {
                let operator = with_axes!(axes, D => self.typed::<f64, D>(session, w, reported));
                operator.map(AnyOperator::F64)
            }
            _ => {
                let operator = with_axes!(axes, D => self.typed::<f32, D>(session, w, reported));
                operator.map(AnyOperator::F32)
            }
        }
    }

    fn typed<T: Accumulator, const D: usize>(
        &self,
        session: &mut Session,
        w: Operand,
        reported: bool,
    ) -> Result<Operator<T>, Failure> {
        let kernel = self.geometry.kernel_of::<D>(&w, self.kernel)?;
        let conv = self.geometry.conv(kernel)?;
        let size = self.size.resolve::<D>("--input-size")?;
        let extra = self.transposed.resolve::<D>()?;
        let bound = match extra {
            None => conv.bind(size),
            Some(extra) => conv.bind_transposed(size, extra),
        };
        let geometry = bound.map_err(|e| session.names.explain(e))?;
        if reported {
            report_geometry(session, self.geometry, &geometry, extra)?;
        }
        let w = w.convert::<T>(session)?;
        session.compute("preparing", || match extra {
            None => conv.operator(&w, size),
            Some(extra) => conv.transposed_operator(&w, size, extra),
        })
    }
}

/// What is known about one operator.
struct Answer {
    shape: [usize; 2],
    method: String,
    values: Vec<f64>,
    residuals: Option<Vec<f64>>,
    converged: bool,
    interrupted: bool,
    applications: u64,
    /// A lower bound of the norm, from the values alone.
    lower: Option<f64>,
    norm: Option<Norm>,
    condition_number: Option<f64>,
    stable_rank: Option<f64>,
    effective_rank: Option<f64>,
}

/// Left and right singular vectors, in rows.
type Vectors<T> = [Tensor<T>; 2];

/// Computes what the flags ask for.
fn solve<T: Accumulator>(
    args: &SpectrumArgs,
    session: &mut Session,
    operator: &Operator<T>,
    top: Top,
    bracket: bool,
) -> Result<(Answer, Option<Vectors<T>>), Failure> {
    let vectors = args.output.as_ref().is_some_and(|output| output.format() == Format::Npz);
    let mut options = SpectrumOptions::new().top(top).method(args.method).vectors(vectors);
    options = options.iterations(args.iterations).seed(args.seed);
    if let Some(tolerance) = args.tolerance {
        options = options.tolerance(tolerance);
    }
    if let Some(most) = args.applications {
        options = options.applications(most);
    }
    let spectrum =
        session.iterate("singular values", |progress| operator.spectrum(&options, progress))?;
    let norm = match bracket && !session.interrupted {
        true => {
            let options = NormOptions::new().seed(args.seed);
            Some(session.iterate("norm", |progress| operator.norm(&options, progress))?)
        }
        false => None,
    };
    answer(session, spectrum, norm, vectors)
}

fn answer<T: Accumulator>(
    session: &Session,
    spectrum: Spectrum<T>,
    norm: Option<Norm>,
    with_vectors: bool,
) -> Result<(Answer, Option<Vectors<T>>), Failure> {
    let interrupted = session.interrupted && norm.is_none();
    let converged = spectrum.is_converged();
    // Of an iteration that was ended, only what has converged is an answer.
    let kept: Vec<usize> = (0..spectrum.values.len())
        .filter(|&i| !interrupted || converged || spectrum.converged[i])
        .collect();
    let of = |all: &[f64]| kept.iter().filter_map(|&i| all.get(i).copied()).collect::<Vec<_>>();
    let answer = Answer {
        shape: spectrum.shape,
        method: spectrum.method.to_string(),
        values: of(&spectrum.values),
        residuals: (!spectrum.residuals.is_empty()).then(|| of(&spectrum.residuals)),
        converged,
        interrupted: session.interrupted,
        applications: spectrum.applications + norm.as_ref().map_or(0, |norm| norm.applications),
        lower: spectrum.values.first().copied(),
        condition_number: spectrum.condition_number(),
        stable_rank: spectrum.stable_rank(),
        effective_rank: spectrum.effective_rank(),
        norm,
    };
    let vectors = match (spectrum.u, spectrum.v) {
        (Some(u), Some(v)) if with_vectors => {
            let rows = |t: Tensor<T>| rows(t, &kept).map_err(|e| session.names.explain(e));
            Some([rows(u)?, rows(v)?])
        }
        _ => None,
    };
    Ok((answer, vectors))
}

/// These rows of a matrix, on the host.
fn rows<T: Element>(matrix: Tensor<T>, kept: &[usize]) -> convmat::Result<Tensor<T>> {
    let width = matrix.shape()[1];
    let data = matrix.into_vec()?;
    let rows = kept.iter().flat_map(|&row| &data[row * width..(row + 1) * width]);
    Tensor::from_vec(&Device::Cpu, &[kept.len(), width], rows.copied().collect())
}

impl Answer {
    /// What the norm is at least: of a bracket the lower end, from which rounding is taken off.
    fn lower(&self) -> Option<f64> {
        self.norm.as_ref().map(|norm| norm.lower).or(self.lower)
    }

    fn upper(&self) -> Option<f64> {
        self.norm.as_ref()?.upper
    }

    fn bracket(&self) -> Option<[f64; 2]> {
        Some([self.lower()?, self.upper()?])
    }

    fn fields(&self) -> Value {
        let norm = self.norm.as_ref();
        json!({
            "method": self.method,
            "shape": self.shape,
            "values": self.values,
            "residuals": self.residuals,
            "converged": self.converged,
            "interrupted": self.interrupted,
            "applications": self.applications,
            "norm": {
                "lower": self.lower(),
                "upper": self.upper(),
                "bound": norm.and_then(|norm| norm.bound.clone()),
                "probabilistic_upper": norm.and_then(|norm| norm.probabilistic_upper),
                "failure_probability": norm.and_then(|norm| norm.failure_probability),
            },
            "condition_number": self.condition_number,
            "stable_rank": self.stable_rank,
            "effective_rank": self.effective_rank,
        })
    }

    fn convergence(&self) -> String {
        match (self.converged, self.interrupted) {
            (true, false) => "yes".into(),
            (true, true) => "yes, interrupted after that".into(),
            (false, true) => "no, interrupted".into(),
            (false, false) => "no".into(),
        }
    }
}

/// A file's name without its folder, short enough for a picture's heading.
fn heading_name(source: &Source) -> String {
    let file = source.path().file_name().unwrap_or_default().display();
    let key = source.key().map_or(String::new(), |key| format!(":{key}"));
    shortened(&format!("{file}{key}"), 44)
}

fn known(value: Option<f64>, digits: usize) -> String {
    value.map_or("unknown".into(), |value| rounded(value, digits))
}

fn single(
    args: &SpectrumArgs,
    session: &mut Session,
    operator: &AnyOperator,
) -> Result<(), Failure> {
    with_operator!(operator, operator => {
        let [m, n] = operator.shape();
        let top = args.top.unwrap_or(Top::Count(TOP.min(m).min(n)));
        let (answer, vectors) = solve(args, session, operator, top, args.bracket)?;
        let picture = match &args.plot {
            Some(target) => {
                let series = Series {
                    name: args.w.to_string(),
                    values: answer.values.clone(),
                    bracket: answer.bracket(),
                };
                let name = heading_name(&args.w);
                let heading = format!("Singular values of {name}, {} × {}", count(m), count(n));
                Some((target, plot(&heading, &[series], target.format())?))
            }
            None => None,
        };
        report_single(session, &answer);
        if let Some(output) = &args.output {
            save(session, output, &answer, vectors)?;
        }
        picture.map_or(Ok(()), |(target, picture)| session.save_plot(target, &picture))
    })
}

fn report_single(session: &mut Session, answer: &Answer) {
    let report = &mut session.report;
    let [m, n] = answer.shape;
    report.row("shape", format!("{} × {}", count(m), count(n)));
    report.row("method", &answer.method);
    for (i, value) in answer.values.iter().take(SHOWN).enumerate() {
        let mut text = rounded(*value, DIGITS);
        if let Some(residual) = answer.residuals.as_ref().and_then(|residuals| residuals.get(i)) {
            text += &format!(", residual {}", rounded(*residual, 2));
        }
        report.row(format!("value {}", i + 1), text);
    }
    if answer.values.len() > SHOWN {
        report.row("…", format!("{} more", count(answer.values.len() - SHOWN)));
    }
    report.row("converged", answer.convergence());
    if let Some(norm) = &answer.norm {
        let upper = known(norm.upper, DIGITS);
        let bound = norm.bound.as_ref().map_or(String::new(), |bound| format!(" ({bound})"));
        report.row("norm", format!("{} to {upper}{bound}", rounded(norm.lower, DIGITS)));
        if let (Some(upper), Some(p)) = (norm.probabilistic_upper, norm.failure_probability) {
            let text =
                format!("at most {} but for 1 in {}", rounded(upper, DIGITS), rounded(1.0 / p, 2));
            report.row("norm, most likely", text);
        }
    }
    for (label, value) in [
        ("condition number", answer.condition_number),
        ("stable rank", answer.stable_rank),
        ("effective rank", answer.effective_rank),
    ] {
        if let Some(value) = value {
            report.row(label, rounded(value, FEW_DIGITS));
        }
    }
    if answer.applications > 0 {
        report.row("applications", count(answer.applications));
    }
    if let Value::Object(fields) = answer.fields() {
        for (key, value) in fields {
            report.set(&key, value);
        }
    }
}

/// Writes the values and, to an archive, the vectors.
fn save<T: Accumulator>(
    session: &mut Session,
    output: &Source,
    answer: &Answer,
    vectors: Option<Vectors<T>>,
) -> Result<(), Failure> {
    let values = Tensor::from_vec(&Device::Cpu, &[answer.values.len()], answer.values.clone())?;
    let Some([u, v]) = vectors else { return session.save("values", output, values) };
    let path = output.path();
    let bytes = values.len() * size_of::<f64>() + (u.len() + v.len()) * size_of::<T>();
    session.write("--output", path, bytes, |progress| {
        let mut archive = NpzWriter::create(path)?.on_progress(|n| progress.advance(n));
        archive.add("values", &values)?;
        archive.add("u", &u)?;
        archive.add("v", &v)?;
        archive.finish()
    })?;
    let arrays = json!({
        "values": { "shape": values.shape(), "dtype": DType::F64.to_string() },
        "u": { "shape": u.shape(), "dtype": T::DTYPE.to_string() },
        "v": { "shape": v.shape(), "dtype": T::DTYPE.to_string() },
    });
    session.report.row("u", format!("{:?} {}", u.shape(), T::DTYPE));
    session.report.row("v", format!("{:?} {}", v.shape(), T::DTYPE));
    session.report.row("output", format!("{}, {}", path.display(), size(bytes)));
    let path = path.display().to_string();
    session.report.set("output", json!({ "path": path, "arrays": arrays, "bytes": bytes }));
    Ok(())
}
