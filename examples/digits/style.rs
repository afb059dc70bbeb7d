//! What is printed, and how.

use std::io::IsTerminal;
use std::time::Duration;

pub fn milliseconds(elapsed: Duration) -> String {
    format!("{:.2} ms", elapsed.as_secs_f64() * 1e3)
}

/// Colours, where they are welcome.
pub struct Style {
    colours: bool,
}

impl Style {
    pub fn new() -> Self {
        let welcome = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Style { colours: welcome && std::io::stdout().is_terminal() }
    }

    pub fn paint(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
    }

    pub fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    /// Prints a line with a mark; returns whether it was good.
    pub fn verdict(&self, good: bool, text: &str) -> bool {
        let mark = if good { self.paint("32", "✓") } else { self.paint("31", "✗") };
        println!("  {mark} {text}");
        good
    }

    /// Prints a relative error and judges it.
    pub fn figure(&self, what: &str, error: f64, tolerance: f64) -> bool {
        let figure = if error == 0.0 { "exact".into() } else { format!("{error:.1e}") };
        self.verdict(error <= tolerance, &format!("{what:<28} {figure:>8}"))
    }
}
