//! What the user is told when something goes wrong: a sentence that speaks of flags and files, and
//! the exit status.

use std::fmt;

use convmat::Error;

/// A sentence, and the exit status that says whether the input was bad.
#[derive(Debug)]
pub struct Failure {
    exit_status: u8,
    message: String,
}

impl Failure {
    /// The input is bad: flags, files, shapes, or a device that this machine does not have.
    pub fn input(message: impl Into<String>) -> Self {
        Failure { exit_status: 2, message: message.into() }
    }

    /// The input is good, but the work failed: the disk, memory, or the device while it worked.
    pub fn run(message: impl Into<String>) -> Self {
        Failure { exit_status: 1, message: message.into() }
    }

    pub fn exit_status(&self) -> u8 {
        self.exit_status
    }

    /// The same failure, with the place in a file where its reason is.
    pub fn within(self, place: impl fmt::Display) -> Self {
        Failure { message: format!("{place}: {}", self.message), ..self }
    }

    /// A failure to read the tensor that messages call `label`.
    pub fn reading(label: &str, error: Error) -> Self {
        match error {
            Error::Io { source, .. } => Failure::input(format!("{label} cannot be read: {source}")),
            Error::Format { reason, .. } => Failure::input(format!("{label}: {reason}")),
            Error::ElementType { found, .. } => Failure::element_type(label, &found, ""),
            error => error.into(),
        }
    }

    /// A tensor of elements that the library does not compute with.
    pub fn element_type(label: &str, found: &str, hint: &str) -> Self {
        let expected = "f16, bf16, f32 or f64";
        Failure::input(format!("{label} has elements of type {found}, expected {expected}{hint}"))
    }

    /// A failure to write the file that this flag names.
    pub fn writing(flag: &str, path: &std::path::Path, error: Error) -> Self {
        match error {
            Error::Io { source, .. } => {
                Failure::run(format!("cannot write {flag} {}: {source}", path.display()))
            }
            error => error.into(),
        }
    }
}

/// For errors about something that only flags have named so far, not files.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Names::default().explain(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Translates the library's names of arguments into those of flags and files.
#[derive(Debug)]
pub struct Names(Vec<(&'static str, String)>);

impl Default for Names {
    fn default() -> Self {
        let flags = [
            ("device", "--device"),
            ("kernel", "--kernel"),
            ("stride", "--stride"),
            ("dilation", "--dilation"),
            ("padding", "--padding"),
            ("output padding", "--output-padding"),
            ("groups", "--groups"),
        ];
        Names(flags.map(|(library, flag)| (library, flag.into())).into())
    }
}

impl Names {
    /// From now on, messages call `here` what the library calls `library`.
    pub fn set(&mut self, library: &'static str, here: impl Into<String>) {
        self.0.retain(|(name, _)| *name != library);
        self.0.push((library, here.into()));
    }

    /// Replaces the longest known name that `argument` starts with.
    fn rename(&self, argument: &str) -> String {
        let rest = |name: &str| {
            let rest = argument.strip_prefix(name)?;
            (rest.is_empty() || rest.starts_with(' ')).then_some(rest)
        };
        let matches =
            self.0.iter().filter_map(|(name, here)| Some((name.len(), here, rest(name)?)));
        match matches.max_by_key(|m| m.0) {
            Some((_, here, rest)) => format!("{here}{rest}"),
            None => argument.into(),
        }
    }

    /// The library's error as a sentence about flags and files.
    pub fn explain(&self, error: Error) -> Failure {
        let renamed = match error {
            Error::Invalid { argument, value, reason } => {
                // This is how the library's reasons mention the number of groups.
                let reason = reason.replace("groups = ", "--groups = ");
                Error::Invalid { argument: self.rename(&argument), value, reason }
            }
            Error::Shape { argument, expected, found } => {
                Error::Shape { argument: self.rename(&argument), expected, found }
            }
            Error::TooLarge { what, value, limit } => {
                Error::TooLarge { what: self.rename(&what), value, limit }
            }
            Error::ElementType { argument, expected, found } => {
                Error::ElementType { argument: self.rename(&argument), expected, found }
            }
            Error::DeviceUnavailable { device, reason } => {
                return Failure::input(format!("--device {device} is unavailable: {reason}"));
            }
            other => other,
        };
        match renamed {
            Error::Allocation { .. }
            | Error::Io { .. }
            | Error::Device { .. }
            | Error::Compile { .. } => Failure::run(renamed.to_string()),
            _ => Failure::input(renamed.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bad_input_has_status_2() {
        let text = || "text".to_string();
        let failed = [
            Error::Allocation { what: text(), bytes: 1 },
            Error::Io { path: "x.npy".into(), source: std::io::ErrorKind::StorageFull.into() },
            Error::Device { device: text(), call: text(), reason: text() },
            Error::Compile { kernel: text(), device: text(), log: text() },
        ];
        let bad = [
            Error::Invalid { argument: text(), value: text(), reason: text() },
            Error::Shape { argument: text(), expected: text(), found: vec![1] },
            Error::TooLarge { what: text(), value: text(), limit: 1 },
            Error::ElementType { argument: text(), expected: text(), found: text() },
            Error::DeviceUnavailable { device: text(), reason: text() },
            Error::Format { path: "x.npy".into(), reason: text() },
        ];
        for (status, errors) in [(1, Vec::from(failed)), (2, Vec::from(bad))] {
            for error in errors {
                let debug = format!("{error:?}");
                let failure = Names::default().explain(error);
                assert_eq!(failure.exit_status(), status, "{debug}");
            }
        }
    }

    #[test]
    fn the_longest_name_that_is_a_word_wins() {
        let mut names = Names::default();
        names.set("input", "X (x.npy)");
        names.set("input extent", "--input-size");
        for (library, here) in [
            ("input", "X (x.npy)"),
            ("input channels", "X (x.npy) channels"),
            ("input extent on axis 1", "--input-size on axis 1"),
            ("inputs", "inputs"),
            ("output padding on axis 0", "--output-padding on axis 0"),
            ("padding on axis 0", "--padding on axis 0"),
        ] {
            assert_eq!(names.rename(library), here);
        }
    }
}
