//! The sources in `kernels/`, embedded by build.rs.

use std::hash::{Hash, Hasher};

/// A file of `kernels/`. The simulator's are apart.
#[derive(Debug)]
pub(crate) struct Source {
    /// Without folders. No two files have the same.
    pub name: &'static str,
    pub text: &'static str,
    /// Of this file and all that it includes.
    pub hash: u64,
    /// What the host may define for this file and those that it includes.
    pub switches: &'static [&'static str],
}

include!(concat!(env!("OUT_DIR"), "/sources.rs"));

impl Source {
    /// The file of this name.
    ///
    /// # Panics
    /// If there is none: names are written in the crate's code.
    pub(crate) fn named(name: &str) -> &'static Source {
        match SOURCES.binary_search_by(|source| source.name.cmp(name)) {
            Ok(at) => &SOURCES[at],
            Err(_) => panic!("kernels/ has no file {name}"),
        }
    }
}

impl PartialEq for Source {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Source {}

impl Hash for Source {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_know_what_they_include() {
        let unfold = Source::named("unfold.cu");
        assert!(unfold.text.contains("KERNEL(unfold"));
        let has = |name| unfold.switches.contains(&name);
        assert!(has("WINDOW") && has("ELEMENT") && has("TAPS") && !has("TILE_ROWS"));
        let hashes: std::collections::HashSet<u64> = SOURCES.iter().map(|file| file.hash).collect();
        assert_eq!(hashes.len(), SOURCES.len());
        assert!(SOURCES.iter().all(|file| file.name != "simulator.h"));
    }

    #[test]
    #[should_panic(expected = "no file unfold.cuh")]
    fn unknown_files_are_noticed() {
        Source::named("unfold.cuh");
    }
}
