//! What a command prints: an aligned list for people, or one JSON object for programs.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use clap::builder::styling::{AnsiColor, Style};
use serde_json::{Map, Value, json};

use convmat::io::Source;
use convmat::{DType, Explanation, Pass};
#[cfg(feature = "simulator")]
use convmat::{LaunchProfile, SassCounts, SassWidths};

/// What is known about a command's work; the command adds to it as it goes on.
pub struct Report {
    title: &'static str,
    rows: Vec<(String, String)>,
    object: Map<String, Value>,
    /// What plans say, printed below the rows.
    plans: String,
}

impl Report {
    pub fn new(command: &'static str) -> Self {
        let mut report =
            Report { title: command, rows: Vec::new(), object: Map::new(), plans: String::new() };
        report.set("command", command);
        report
    }

    /// A line for people.
    pub fn row(&mut self, label: impl Into<String>, text: impl Display) {
        self.rows.push((label.into(), text.to_string()));
    }

    /// A field for programs.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.object.insert(key.into(), value.into());
    }

    /// A tensor that was read.
    pub fn operand(&mut self, name: &str, source: &Source, shape: &[usize], dtype: impl Display) {
        self.row(name, format!("{shape:?} {dtype} from {source}"));
        let field = json!({
            "source": source.to_string(),
            "shape": shape,
            "dtype": dtype.to_string(),
        });
        self.set(&name.replace(' ', "_"), field);
    }

    /// A tensor that was written; `path` names the file and, in an archive, the key.
    pub fn tensor(&mut self, name: &str, path: &Source, shape: &[usize], dtype: DType) {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        self.row(name, format!("{shape:?} {dtype} to {path}, {}", size(bytes)));
        self.set(
            "output",
            json!({
                "path": path.path().display().to_string(),
                "key": path.key(),
                "shape": shape,
                "dtype": dtype.to_string(),
                "bytes": bytes,
            }),
        );
    }

    /// What was computed how. A command that computes several things has the field `plan` for all of them
    /// together, and `plans` for each.
    pub fn plans(&mut self, plans: &[Explanation]) {
        let Some(first) = plans.first() else { return };
        self.plans = plans.iter().map(|plan| format!("{plan}\n")).collect();
        let joined = |of: fn(&Explanation) -> &str| {
            let one = |plan: &Explanation| format!("{} {}", plan.operation, of(plan));
            plans.iter().map(one).collect::<Vec<_>>().join("; ")
        };
        let mut all = explained(first);
        if plans.len() > 1 {
            all = json!({
                "algorithm": joined(|plan| &plan.algorithm),
                "reason": joined(|plan| &plan.reason),
                "passes": plans.iter().flat_map(|p| &p.passes).map(pass).collect::<Vec<_>>(),
                "workspace_bytes": plans.iter().map(|p| p.workspace_bytes).max(),
                "flop": plans.iter().map(|p| p.flop).sum::<u64>(),
                "bytes": plans.iter().map(|p| p.bytes).sum::<u64>(),
            });
            self.set("plans", plans.iter().map(explained).collect::<Vec<_>>());
        }
        self.set("plan", all);
    }

    /// Leaves a field out.
    pub fn remove(&mut self, key: &str) {
        self.object.remove(key);
        self.rows.retain(|(label, _)| label != key);
    }

    /// What every launch of a simulator cost.
    #[cfg(feature = "simulator")]
    pub fn launches(&mut self, launches: &[LaunchProfile]) {
        self.plans.extend(launches.iter().map(|launch| format!("\n{launch}\n")));
        self.set("launches", launches.iter().map(launch).collect::<Vec<_>>());
    }

    /// Prints it to standard output.
    pub fn print(self, as_json: bool) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if as_json {
            writeln!(out, "{}", Value::Object(self.object))?;
        } else {
            let colour = coloured(&out);
            let [title, label] = [Style::new().bold(), AnsiColor::Cyan.on_default()]
                .map(|style| if colour { style } else { Style::new() });
            let width = self.rows.iter().map(|(l, _)| l.len()).max().unwrap_or(0);
            writeln!(out, "{title}{}{title:#}", self.title)?;
            for (name, text) in &self.rows {
                writeln!(out, "  {label}{name:width$}{label:#}  {text}")?;
            }
            write!(out, "{}", self.plans)?;
        }
        out.flush()
    }
}

fn explained(plan: &Explanation) -> Value {
    json!({
        "operation": plan.operation,
        "subject": plan.subject,
        "algorithm": plan.algorithm,
        "reason": plan.reason,
        "expected_seconds": plan.expected_seconds,
        "alternatives": plan.alternatives.iter().map(|other| json!({
            "algorithm": other.algorithm,
            "expected_seconds": other.seconds,
        })).collect::<Vec<_>>(),
        "passes": plan.passes.iter().map(pass).collect::<Vec<_>>(),
        "workspace_bytes": plan.workspace_bytes,
        "flop": plan.flop,
        "bytes": plan.bytes,
    })
}

/// Counts are whole numbers, unless they are scaled from some of the blocks.
#[cfg(feature = "simulator")]
fn launch(launch: &LaunchProfile) -> Value {
    let count = |count: f64| json!(count.round() as u64);
    let LaunchProfile { global, shared, operations, model, .. } = launch;
    json!({
        "kernel": launch.kernel,
        "grid": launch.grid,
        "threads": launch.threads,
        "blocks": launch.blocks,
        "counted_blocks": launch.counted_blocks,
        "registers": launch.registers,
        "local_bytes": launch.local_bytes,
        "shared_bytes": launch.shared_bytes,
        "occupancy": launch.occupancy,
        "sass": launch.sass.map(|sass| {
            let mut object = stretch(&sass.whole);
            object["main_loop"] = json!(sass.main_loop.as_ref().map(stretch));
            object
        }),
        "global": {
            "load_requests": count(global.load_requests),
            "load_bytes": count(global.load_bytes),
            "load_sectors": count(global.load_sectors),
            "load_lines": count(global.load_lines),
            "load_sectors_past_l1": count(global.load_sectors_past_l1),
            "load_sectors_past_l2": count(global.load_sectors_past_l2),
            "load_sectors_compulsory": count(global.load_sectors_compulsory),
            "store_requests": count(global.store_requests),
            "store_bytes": count(global.store_bytes),
            "store_sectors": count(global.store_sectors),
            "store_lines": count(global.store_lines),
            "store_sectors_compulsory": count(global.store_sectors_compulsory),
            "atomics": count(global.atomics),
            "efficiency": global.efficiency(),
        },
        "shared": {
            "requests": count(shared.requests),
            "wavefronts": count(shared.wavefronts),
            "wavefronts_ideal": count(shared.wavefronts_ideal),
            "matrix_loads": count(shared.matrix_loads),
        },
        "mma": count(operations.mma()),
        "fused": count(operations.fused_f32 + operations.fused_f64),
        "shuffles": count(operations.exchanges),
        "barriers": count(operations.barriers),
        "copies": count(operations.copies),
        "idle_lanes": operations.idle,
        "model": {
            "seconds": model.seconds,
            "fraction": model.fraction,
            "limiter": model.limiter.to_string(),
        },
    })
}

/// Instructions, and what there is of each kind.
#[cfg(feature = "simulator")]
fn stretch(counts: &SassCounts) -> Value {
    let widths = |widths: SassWidths| {
        let each = widths.each().map(|(bits, count)| (bits.to_string(), json!(count)));
        Value::Object(each.collect())
    };
    json!({
        "instructions": counts.instructions,
        "mma": counts.mma,
        "ffma": counts.ffma,
        "dfma": counts.dfma,
        "loads": widths(counts.loads),
        "stores": widths(counts.stores),
        "copies": widths(counts.copies),
        "shared_loads": counts.shared_loads,
        "matrix_loads": counts.matrix_loads,
        "shared_stores": counts.shared_stores,
    })
}

fn pass(pass: &Pass) -> Value {
    json!({
        "kernel": pass.kernel,
        "specialisation": pass.specialisation,
        "tile": pass.tile,
        "grid": pass.grid,
        "block": pass.block,
        "registers": pass.registers,
        "shared_bytes": pass.shared_bytes,
        "local_bytes": pass.local_bytes,
        "tasks": pass.tasks,
    })
}

/// Whether to print colours there: only on a terminal, and not if `NO_COLOR` is set, see
/// <https://no-color.org>.
fn coloured(stream: &impl IsTerminal) -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    stream.is_terminal() && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

/// What error messages start with.
pub fn error_label() -> String {
    let red = AnsiColor::Red.on_default().bold();
    if coloured(&io::stderr()) { format!("{red}error:{red:#}") } else { "error:".into() }
}

/// 1234567 as `1,234,567`.
pub fn count(n: impl Display) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in binary units.
pub fn size(bytes: usize) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = "bytes";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "bytes" { format!("{bytes} bytes") } else { format!("{value:.1} {unit}") }
}

/// A number with this many significant digits at most.
pub fn rounded(value: f64, digits: usize) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    // Rounding comes first: 0.99996 with four digits is 1, and then has one before the point.
    let text = format!("{value:.*e}", digits.max(1) - 1);
    let Some((mantissa, Ok(exponent))) = text.split_once('e').map(|(m, e)| (m, e.parse::<i32>()))
    else {
        return text;
    };
    let trimmed = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text.to_string(),
    };
    if (-4..digits.max(6) as i32).contains(&exponent) {
        trimmed(&format!("{value:.*}", (digits as i32 - 1 - exponent).max(0) as usize))
    } else {
        format!("{}e{exponent}", trimmed(mantissa))
    }
}

/// A duration with three significant digits or so.
pub fn seconds(s: f64) -> String {
    match s {
        s if s < 1e-3 => format!("{:.0} µs", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_easy_to_read() {
        assert_eq!([0, 999, 1000, 112_869_376].map(count), ["0", "999", "1,000", "112,869,376"]);
        assert_eq!(
            [0, 1023, 1536, 5 << 30].map(size),
            ["0 bytes", "1023 bytes", "1.5 KiB", "5.0 GiB"]
        );
        let values = [0.0, 0.99996, 1234.5678, 0.00123456, 1.2345e-7, 6.02214e23, 250000.0];
        let texts = ["0", "1", "1235", "0.001235", "1.235e-7", "6.022e23", "250000"];
        assert_eq!(values.map(|v| rounded(v, 4)), texts);
        assert_eq!([12e-6, 0.0123, 4.567].map(seconds), ["12 µs", "12.3 ms", "4.57 s"]);
    }
}
