//! The command line: `convmat COMMAND …`, see `convmat --help`.
//!
//! A command reads its operands, calls the library once and writes one file. Exit status: 0 done,
//! 1 a failure (the disk, memory, the device), 2 bad input (flags, shapes, files, a device that is not
//! there), and 128 plus the signal's number when one ended it.

mod args;
mod commands;
mod failure;
mod geometry;
mod layers;
mod plot;
mod progress;
mod report;
mod session;
mod signals;
mod values;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use args::Cli;
use failure::Failure;
use session::Session;

fn main() -> ExitCode {
    let done = match Cli::try_parse() {
        Ok(cli) => run(&cli),
        Err(error) => usage(&error),
    };
    done.unwrap_or_else(|failure| {
        // If standard error is closed, there is no place left to report that.
        let _ = writeln!(io::stderr(), "{} {failure}", report::error_label());
        ExitCode::from(failure.exit_status())
    })
}

fn run(cli: &Cli) -> Result<ExitCode, Failure> {
    signals::handle().map_err(|e| Failure::run(format!("cannot wait for signals: {e}")))?;
    let mut session = Session::new(cli)?;
    commands::run(&cli.command, &mut session)?;
    let status = if session.interrupted { signals::INTERRUPTED.into() } else { ExitCode::SUCCESS };
    printed(session.into_report().print(cli.json))?;
    Ok(status)
}

/// Prints help and the version, which were asked for; any other message of clap is bad input.
fn usage(error: &clap::Error) -> Result<ExitCode, Failure> {
    match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            printed(error.print())?;
            Ok(ExitCode::from(error.exit_code() as u8))
        }
        _ => Err(Failure::input(one_sentence(&error.render().to_string()))),
    }
}

/// Whether printing failed. A pipe that its reader closed, as `head` does, is not a failure.
fn printed(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::run(format!("cannot write to standard output: {e}")))
        }
        _ => Ok(()),
    }
}

/// clap's message and tips on one line, without the usage that clap prints after them.
fn one_sentence(rendered: &str) -> String {
    let message = rendered.split("\n\nUsage:").next().unwrap_or(rendered);
    let message = message.split("\n\nFor more information").next().unwrap_or(message);
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let collapse = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    message.split("\n\n").map(collapse).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn usage_errors_are_one_sentence() {
        let error = Cli::try_parse_from(["convmat", "unfold", "x.npy", "--kernel", "3y"]);
        let text = one_sentence(&error.err().unwrap().render().to_string());
        assert!(text.starts_with("invalid value '3y' for '--kernel <K>': "), "{text}");
        assert!(!text.contains('\n'));
        assert!(!text.contains("Usage"));
    }
}
