//! Layers that are not in the catalogue, described on the command line.

use std::str::FromStr;

use convmat::{Layout, PaddingMode};

use super::Shape;

/// The flag that names or describes a layer.
const FLAG: &str = "--shape";

/// What the flag takes.
pub const HELP: &str =
    "  --shape LAYER               a name from benches/shapes, or a description such as
                              \"8x64x56x56 64x64x3x3 p1 s1\": input NxCx1 to 3 extents, weight
                              Ox(C/g)xkernel, then in any order p = padding, s = stride and
                              d = dilation (for all axes, or by axis as in p1x2), g = groups,
                              m:reflect, m:replicate or m:circular, last = channels last;
                              may be given more than once";

const EXAMPLE: &str = "\"8x64x56x56 64x64x3x3 p1 s1\"";

/// What a bench was given: the layers of every `--shape`, and all other arguments as they were.
#[derive(Debug)]
pub struct Given {
    pub shapes: Vec<Shape>,
    pub others: Vec<String>,
}

impl Given {
    /// # Errors
    /// A sentence that names the flag and its value.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Given, String> {
        let mut given = Given { shapes: Vec::new(), others: Vec::new() };
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let value = match argument.strip_prefix(FLAG) {
                Some("") => arguments.next().ok_or_else(|| format!("{FLAG} takes a value"))?,
                Some(rest) if rest.starts_with('=') => rest[1..].into(),
                _ => {
                    given.others.push(argument);
                    continue;
                }
            };
            let shape = value.parse().map_err(|reason| format!("{FLAG} {value:?}: {reason}"))?;
            given.shapes.push(shape);
        }
        Ok(given)
    }

    /// [`Given::parse`] of the command line. What is wrong with it ends the program with status 2.
    pub fn from_command_line(program: &str) -> Given {
        Given::parse(std::env::args().skip(1)).unwrap_or_else(|reason| {
            eprintln!("{program}: {reason}");
            std::process::exit(2)
        })
    }
}

/// Of a name in the catalogue, or of a description (see [`HELP`]). A described layer's name is its
/// description with `_` for spaces, which is a description, too.
impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Shape, String> {
        let between = |letter: char| letter.is_whitespace() || letter == '_';
        let words: Vec<&str> = text.split(between).filter(|word| !word.is_empty()).collect();
        match words[..] {
            [] => Err(format!("expected the name of a layer, or a description such as {EXAMPLE}")),
            [name] => Shape::find(name).ok_or_else(|| {
                let names: Vec<_> = Shape::named().map(|shape| shape.name).collect();
                let names = names.join(", ");
                format!(
                    "no layer has this name; there are {names}; a description is such as {EXAMPLE}"
                )
            }),
            [input, weight, ref parameters @ ..] => {
                let shape = described(&words.join("_"), input, weight, parameters)?;
                shape.check()?;
                Ok(shape)
            }
        }
    }
}

fn described(name: &str, input: &str, weight: &str, parameters: &[&str]) -> Result<Shape, String> {
    let (batch, channels, extents) = sizes("input", "NxCx1 to 3 extents", input)?;
    let (outputs, per_group, kernel) = sizes("weight", "Ox(C/g)xkernel", weight)?;
    let spatial = extents.len();
    if kernel.len() != spatial {
        return Err(format!(
            "the input has {spatial} spatial axes ({input}), and the weight {} ({weight})",
            kernel.len()
        ));
    }
    let mut shape = Shape {
        // Shapes are copied about; this one is made once, and lives as long as the program.
        name: name.to_string().leak(),
        batch,
        channels,
        outputs,
        groups: 1,
        spatial,
        input: by_axis(&extents, 1),
        kernel: by_axis(&kernel, 1),
        stride: [1; 3],
        padding: [0; 3],
        dilation: [1; 3],
        mode: PaddingMode::Zeros,
        layout: Layout::ChannelsFirst,
    };
    let mut seen = Vec::new();
    for &word in parameters {
        let (letter, value) = match word {
            "last" => ("last", ""),
            _ => word.split_at(word.chars().next().map_or(0, char::len_utf8)),
        };
        if seen.contains(&letter) {
            return Err(format!("{word:?} says again what was said before"));
        }
        seen.push(letter);
        match letter {
            "last" => shape.layout = Layout::ChannelsLast,
            "p" => shape.padding = each_axis(word, value, spatial, 0)?,
            "s" => shape.stride = each_axis(word, value, spatial, 1)?,
            "d" => shape.dilation = each_axis(word, value, spatial, 1)?,
            "g" => shape.groups = number(word, value)?,
            "m" => shape.mode = mode(word, value)?,
            _ => {
                return Err(format!(
                    "{word:?} is not understood; there are p1, s1, d1, g1, m:MODE and last"
                ));
            }
        }
    }
    if shape.groups == 0 || per_group.checked_mul(shape.groups) != Some(channels) {
        return Err(format!(
            "the input has {channels} channels, and the weight {per_group} for each of {} groups",
            shape.groups
        ));
    }
    Ok(shape)
}

impl Shape {
    /// Whether there is such a layer, and whether it can be counted.
    fn check(&self) -> Result<(), String> {
        if self.batch == 0 || self.channels == 0 || self.outputs == 0 {
            return Err("no extent may be 0".into());
        }
        if !self.outputs.is_multiple_of(self.groups) {
            return Err(format!("{} outputs are not {} groups", self.outputs, self.groups));
        }
        let bound = convmat::with_axes!(self.spatial, D => {
            self.conv::<D>().bind(self.input_size()).map(drop)
        });
        bound.map_err(|error| error.to_string())?;
        // Of operands, results and operations, in bytes of the widest type or as twice the products.
        let patches = [self.channels, self.taps(), self.positions()];
        let counts = [
            self.input_shape(),
            self.output_shape(),
            self.weight_shape(),
            [&[self.batch][..], &patches].concat(),
            [&[self.batch, self.outputs / self.groups][..], &patches].concat(),
        ];
        let countable = |sizes: &Vec<usize>| {
            sizes.iter().try_fold(8usize, |product, &size| product.checked_mul(size)).is_some()
        };
        match counts.iter().all(countable) {
            true => Ok(()),
            false => Err("it is too large to be counted".into()),
        }
    }
}

/// `AxBxC…`: the two sizes that are not spatial, and the one to three that are.
fn sizes(what: &str, form: &str, word: &str) -> Result<(usize, usize, Vec<usize>), String> {
    let numbers: Option<Vec<usize>> = word.split('x').map(size).collect();
    match numbers.as_deref() {
        Some(&[first, second, ref spatial @ ..]) if (1..=3).contains(&spatial.len()) => {
            Ok((first, second, spatial.to_vec()))
        }
        _ => Err(format!("{what} {word:?} is not of the form {form}")),
    }
}

/// One number for all axes, or one for each.
fn each_axis(word: &str, value: &str, axes: usize, rest: usize) -> Result<[usize; 3], String> {
    let numbers: Option<Vec<usize>> = value.split('x').map(size).collect();
    match numbers.as_deref() {
        Some(&[all]) => Ok(by_axis(&vec![all; axes], rest)),
        Some(each) if each.len() == axes => Ok(by_axis(each, rest)),
        _ => Err(format!("{word:?} takes one number, or one for each of {axes} axes")),
    }
}

fn number(word: &str, value: &str) -> Result<usize, String> {
    size(value).ok_or_else(|| format!("{word:?} takes one number"))
}

/// Digits only, and of a size that sums of two stay far from overflowing.
fn size(text: &str) -> Option<usize> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse::<u32>().ok().filter(|_| digits).map(|size| size as usize)
}

fn mode(word: &str, value: &str) -> Result<PaddingMode, String> {
    let name = value.strip_prefix(':');
    name.and_then(|name| name.parse().ok())
        .ok_or_else(|| format!("{word:?} is none of m:zeros, m:reflect, m:replicate, m:circular"))
}

/// As the last of three axes, the leading ones of extent `rest`.
fn by_axis(numbers: &[usize], rest: usize) -> [usize; 3] {
    let mut axes = [rest; 3];
    axes[3 - numbers.len()..].copy_from_slice(numbers);
    axes
}
