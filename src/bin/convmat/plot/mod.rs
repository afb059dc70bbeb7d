//! Pictures of results, as SVG or PNG. They are made in memory, so that a file appears whole or not at all.

mod axes;
mod canvas;
pub mod pattern;
pub mod spectrum;

use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What a picture's file holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Format {
    Svg,
    Png,
}

/// The value of `--plot`: the file to write, whose name says the format.
#[derive(Clone, Debug)]
pub struct Target {
    path: PathBuf,
    format: Format,
}

impl Target {
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn format(&self) -> Format {
        self.format
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = PathBuf::from(text);
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        let format = match extension.to_str() {
            Some("svg") => Format::Svg,
            Some("png") => Format::Png,
            _ => return Err("expected a name ending in .svg or .png".into()),
        };
        Ok(Target { path, format })
    }
}
