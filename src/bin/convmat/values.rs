//! The values of flags: how they are written, and what they mean for D spatial axes.

use std::fmt;
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, FromArgMatches};

use convmat::Padding;

use crate::failure::Failure;

/// One value for all axes, or one for each axis: `3`, `3x3`, `1x3x3`.
#[derive(Clone, Debug, PartialEq)]
pub struct Extents(pub Vec<usize>);

impl Extents {
    /// The value of each of D axes.
    pub fn resolve<const D: usize>(&self, flag: &str) -> Result<[usize; D], Failure> {
        per_axis(&self.0).ok_or_else(|| wrong_count::<D>(flag, self))
    }
}

fn per_axis<V: Copy, const D: usize>(values: &[V]) -> Option<[V; D]> {
    match values {
        &[one] => Some([one; D]),
        many => many.try_into().ok(),
    }
}

fn wrong_count<const D: usize>(flag: &str, value: impl fmt::Display) -> Failure {
    let expected = match D {
        1 => "one value, for the one spatial axis".into(),
        _ => format!("one value, or one for each of the {D} spatial axes"),
    };
    Failure::input(format!("{flag} is {value}, expected {expected}"))
}

impl FromStr for Extents {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        axes(text, number).map(Extents).map_err(|e| e + " (write 3, 3x3 or 1x3x3)")
    }
}

impl fmt::Display for Extents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.iter().map(usize::to_string).collect::<Vec<_>>().join("x"))
    }
}

/// The values between the `x`s.
fn axes<V>(text: &str, parse: impl Fn(&str) -> Result<V, String>) -> Result<Vec<V>, String> {
    let values: Vec<V> = text.split('x').map(parse).collect::<Result<_, _>>()?;
    match values.len() {
        1..=3 => Ok(values),
        n => Err(format!("{n} values, but there are at most 3 spatial axes")),
    }
}

/// A whole number without a sign.
pub fn number(text: &str) -> Result<usize, String> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("`{text}` is not a whole number"));
    }
    text.parse().map_err(|_| format!("`{text}` is too large"))
}

/// A parser that accepts these names and nothing else.
pub fn choice<T>(names: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err = convmat::Error> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names.iter().copied()).try_map(|name| name.parse())
}

/// The value of `--padding`.
#[derive(Clone, Debug, PartialEq)]
pub enum PaddingFlag {
    Same,
    Valid,
    /// (low, high), once for all axes or once for each.
    Sides(Vec<(usize, usize)>),
}

impl PaddingFlag {
    /// The padding of D axes.
    pub fn resolve<const D: usize>(&self) -> Result<Padding<D>, Failure> {
        Ok(match self {
            PaddingFlag::Same => Padding::Same,
            PaddingFlag::Valid => Padding::Valid,
            PaddingFlag::Sides(sides) => {
                per_axis(sides).ok_or_else(|| wrong_count::<D>("--padding", self))?.into()
            }
        })
    }
}

impl FromStr for PaddingFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "same" => Ok(PaddingFlag::Same),
            "valid" => Ok(PaddingFlag::Valid),
            _ => axes(text, sides)
                .map(PaddingFlag::Sides)
                .map_err(|e| e + " (write 1, 1x2, 0:1, 0:1x2:3, same or valid)"),
        }
    }
}

fn sides(text: &str) -> Result<(usize, usize), String> {
    match text.split_once(':') {
        Some((low, high)) => Ok((number(low)?, number(high)?)),
        None => number(text).map(|both| (both, both)),
    }
}

impl fmt::Display for PaddingFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PaddingFlag::Same => f.write_str("same"),
            PaddingFlag::Valid => f.write_str("valid"),
            PaddingFlag::Sides(sides) => {
                let text = sides.iter().map(|(l, h)| match l == h {
                    true => l.to_string(),
                    false => format!("{l}:{h}"),
                });
                f.write_str(&text.collect::<Vec<_>>().join("x"))
            }
        }
    }
}

/// The arguments that were given, which those that have their default values were not. As a field of a
/// command it has to be the first, as later ones take away what it looks at.
#[derive(Debug)]
pub struct Given(Vec<String>);

impl Given {
    /// The first of these flags that was given.
    pub fn first(&self, flags: &[&'static str]) -> Option<&'static str> {
        let id = |flag: &str| flag.trim_start_matches('-').replace('-', "_");
        flags.iter().copied().find(|flag| self.0.contains(&id(flag)))
    }
}

impl Args for Given {
    fn augment_args(command: clap::Command) -> clap::Command {
        command
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        command
    }
}

impl FromArgMatches for Given {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given =
            |id: &&clap::Id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine);
        Ok(Given(matches.ids().filter(given).map(|id| id.to_string()).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Given::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_serve_all_axes_or_one_each() {
        let extents = |text: &str| text.parse::<Extents>();
        assert_eq!(extents("3").unwrap().resolve::<3>("--kernel").unwrap(), [3, 3, 3]);
        assert_eq!(extents("1x2x3").unwrap().resolve("--kernel").unwrap(), [1, 2, 3]);
        let error = extents("1x2x3").unwrap().resolve::<2>("--kernel").unwrap_err();
        assert_eq!(
            error.to_string(),
            "--kernel is 1x2x3, expected one value, or one for each of the 2 spatial axes"
        );
        for bad in ["", "x", "3x", "3 x 3", "-1", "+1", "1.5", "1x1x1x1", "99999999999999999999"] {
            assert!(extents(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn padding_has_sides_and_names() {
        let padding = |text: &str| text.parse::<PaddingFlag>();
        assert_eq!(padding("same"), Ok(PaddingFlag::Same));
        assert_eq!(padding("1x2:3"), Ok(PaddingFlag::Sides(vec![(1, 1), (2, 3)])));
        assert_eq!(padding("0:1x2:3").unwrap().to_string(), "0:1x2:3");
        assert_eq!(
            padding("0:1").unwrap().resolve::<2>().unwrap(),
            Padding::Explicit { low: [0, 0], high: [1, 1] }
        );
        for bad in ["", "1:", ":1", "1:2:3", "full", "samex1", "-1"] {
            assert!(padding(bad).is_err(), "{bad}");
        }
    }
}
