//! What a command prints: an aligned list for people, or one JSON object for programs.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use clap::builder::styling::{AnsiColor, Style};
use serde_json::{Map, Value, json};

use convmat::DType;
use convmat::io::Source;

/// What is known about a command's work; the command adds to it as it goes on.
pub struct Report {
    title: &'static str,
    rows: Vec<(String, String)>,
    object: Map<String, Value>,
}

impl Report {
    pub fn new(command: &'static str) -> Self {
        let mut report = Report { title: command, rows: Vec::new(), object: Map::new() };
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
        }
        out.flush()
    }
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
        assert_eq!([12e-6, 0.0123, 4.567].map(seconds), ["12 µs", "12.3 ms", "4.57 s"]);
    }
}
