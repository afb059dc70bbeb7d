//! Signs of life on a terminal; nothing at all where standard error is not one.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A line on standard error that disappears when this is dropped.
pub struct Progress(ProgressBar);

impl Progress {
    /// Work of unknown length.
    pub fn spinner(what: impl Into<String>) -> Self {
        Progress::new(ProgressBar::new_spinner(), "{spinner} {msg} {elapsed:.dim}", what.into())
    }

    /// Work on that many bytes.
    pub fn bytes(what: impl Into<String>, total: u64) -> Self {
        const TEMPLATE: &str =
            "{spinner} {msg} [{bar:20}] {percent:>3}% {binary_bytes_per_sec:.dim}";
        Progress::new(ProgressBar::new(total), TEMPLATE, what.into())
    }

    fn new(bar: ProgressBar, template: &str, what: String) -> Self {
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what);
        bar.enable_steady_tick(Duration::from_millis(100));
        Progress(bar)
    }

    /// So many bytes more are done.
    pub fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
