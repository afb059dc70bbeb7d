//! Shows on a terminal that work goes on. Where standard error is not a terminal, nothing is shown.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A line on standard error that disappears when this is dropped.
pub struct Progress(Option<ProgressBar>);

impl Progress {
    /// Work of unknown length.
    pub fn spinner(what: &str) -> Self {
        Progress::new(what, None, "{spinner} {msg} {elapsed:.dim}")
    }

    /// Work on a known number of bytes.
    pub fn bytes(what: &str, total: u64) -> Self {
        const TEMPLATE: &str =
            "{spinner} {msg} [{bar:20}] {percent:>3}% {binary_bytes_per_sec:.dim}";
        Progress::new(what, Some(total), TEMPLATE)
    }

    /// Work that goes on until so many things are done; what it says changes.
    pub fn until(what: &str, total: u64) -> Self {
        const TEMPLATE: &str = "{spinner} {msg} [{bar:20}] {pos} of {len} {elapsed:.dim}";
        Progress::new(what, Some(total), TEMPLATE)
    }

    /// Says how many are done, and something else.
    pub fn tell(&self, done: u64, what: impl FnOnce() -> String) {
        if let Some(bar) = &self.0 {
            bar.set_position(done);
            bar.set_message(what());
        }
    }

    fn new(what: &str, total: Option<u64>, template: &str) -> Self {
        if !stderr().is_terminal() {
            return Progress(None);
        }
        let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        Progress(Some(bar))
    }

    /// Adds to the number of bytes that are done.
    pub fn advance(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(bytes);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
