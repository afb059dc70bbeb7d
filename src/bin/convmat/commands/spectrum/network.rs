//! `convmat spectrum --layers`: the layers of a network.

use std::path::Path;

use convmat::io::{Format, Source};
use convmat::{Top, io, product_bound};

use super::{
    Answer, AnyOperator, Described, FEW_DIGITS, LAYER_FLAGS, TOP, heading_name, known, solve,
    with_operator,
};
use crate::args::SpectrumArgs;
use crate::failure::Failure;
use crate::layers::{self, LayerEntry};
use crate::plot::spectrum::{Series, plot};
use crate::report::count;
use crate::session::{Operand, Session};

/// The layers, one after another.
pub(super) fn run(args: &SpectrumArgs, session: &mut Session, list: &Path) -> Result<(), Failure> {
    if let Some(flag) = args.given.first(&LAYER_FLAGS) {
        return Err(Failure::input(format!(
            "{flag} is given, but with --layers the geometry of each layer is in {}",
            list.display()
        )));
    }
    if args.output.is_some() {
        return Err(Failure::input(
            "--output is given, but with --layers there is no one spectrum",
        ));
    }
    if args.w.key().is_some() || args.w.format() == Format::Npy {
        return Err(Failure::input(format!(
            "W is {}, expected an archive of many tensors, without a key, as --layers is given",
            args.w
        )));
    }
    let entries = layers::read(list)?;
    // All of them before any work: what is wrong with the last is known at once.
    let prepared = |entry: &LayerEntry, session: &mut Session| {
        let w = load(session, &args.w, &entry.name)?;
        session.names.set("operator", &entry.name);
        let (geometry, transposed) = (&entry.geometry, &entry.transposed);
        let described = Described { size: &entry.input_size, kernel: None, geometry, transposed };
        described.operator(session, w, false)
    };
    let mut operators = Vec::new();
    for entry in &entries {
        let place = format!("--layers ({}), {}", list.display(), entry.name);
        operators.push(prepared(entry, session).map_err(|failure| failure.within(place))?);
    }
    let mut answers = Vec::new();
    for (entry, operator) in entries.iter().zip(&operators) {
        session.names.set("operator", &entry.name);
        let solved = with_operator!(operator, operator => {
            let [m, n] = operator.shape();
            // A layer that has fewer values gives all of them.
            let top = match args.top.unwrap_or(Top::Count(TOP)) {
                Top::Count(count) => Top::Count(count.min(m.min(n))),
                Top::All => Top::All,
            };
            solve(args, session, operator, top, true).map(|(answer, _)| answer)
        });
        answers.push(solved.map_err(|failure| failure.within(&entry.name))?);
        if session.interrupted {
            break;
        }
    }
    report_network(args, session, &entries, &answers);
    let Some(target) = &args.plot else { return Ok(()) };
    let series: Vec<_> = entries
        .iter()
        .zip(&answers)
        .map(|(entry, answer)| Series {
            name: entry.name.clone(),
            values: answer.values.clone(),
            bracket: answer.bracket(),
        })
        .collect();
    let heading = format!("Singular values of the layers of {}", heading_name(&args.w));
    let picture = plot(&heading, &series, target.format())?;
    session.save_plot(target, &picture)
}

/// Reads one tensor of an archive; the report has a list of them later.
fn load(session: &mut Session, archive: &Source, name: &str) -> Result<Operand, Failure> {
    let source = Source::new(archive.path(), Some(name))?;
    let array = session.reading(&source, || io::read(&source));
    let label = format!("W ({source})");
    let array = array.map_err(|e| Failure::reading(&label, e))?;
    session.names.set("weight", &label);
    session.names.set("kernel", format!("{label} kernel"));
    Ok(Operand::new(label, array))
}

fn report_network(
    args: &SpectrumArgs,
    session: &mut Session,
    entries: &[LayerEntry],
    answers: &[Answer],
) {
    let heads = ["shape", "norm at least", "at most", "condition", "stable rank", "largest value"];
    let mut table = vec![heads.map(String::from)];
    for answer in answers {
        let [m, n] = answer.shape.map(count);
        table.push([
            format!("{m} × {n}"),
            known(answer.lower(), FEW_DIGITS),
            known(answer.upper(), FEW_DIGITS),
            known(answer.condition_number, FEW_DIGITS),
            known(answer.stable_rank, FEW_DIGITS),
            known(answer.values.first().copied(), FEW_DIGITS),
        ]);
    }
    let width = |column: usize| table.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<_> = (0..heads.len()).filter_map(width).collect();
    let lines = table.iter().map(|row| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}"));
        cells.collect::<Vec<_>>().join("  ")
    });
    let labels = ["layer"].into_iter().chain(entries.iter().map(|entry| entry.name.as_str()));
    let report = &mut session.report;
    report.row("network", &args.w);
    for (label, line) in labels.zip(lines) {
        report.row(label, line);
    }
    let whole = answers.len() == entries.len();
    let norms: Option<Vec<_>> = answers.iter().map(|answer| answer.norm.as_ref()).collect();
    let product = norms.filter(|_| whole).and_then(product_bound);
    report.row("product bound", known(product, FEW_DIGITS));
    let converged = answers.iter().filter(|answer| answer.converged).count();
    let interrupted = if session.interrupted { ", interrupted" } else { "" };
    report.row("converged", format!("{converged} of {} layers{interrupted}", entries.len()));
    let layers = entries.iter().zip(answers).map(|(entry, answer)| {
        let mut fields = answer.fields();
        fields["name"] = entry.name.clone().into();
        fields
    });
    report.set("network", args.w.to_string());
    report.set("layers", layers.collect::<Vec<_>>());
    report.set("product_bound", product);
    report.set("interrupted", session.interrupted);
}
