//! The command line.

use std::path::PathBuf;

use convmat::{Algorithm, DType, Layout};

use crate::outcome::Result;
use crate::shapes::description::{self, Given};
use crate::shapes::{CATALOGUE, Shape};

const HELP: &str = "\
Times of this crate's operations on a CUDA GPU: cargo bench --bench cuda -- [flags] [words]
  --ops unfold,fold,forward,backward_input,backward_weight,backward_bias,matrix,spmv,spmm
  --algorithms auto,naive,shifted,im2col,implicit
  --shapes stem,conv2,…       names from benches/shapes, which have the batch that a GPU is given
SHAPE
  --dtype f32,f16,bf16        also f64
  --layouts channels-first,channels-last
                              default: both; of a described layer the one it says
  --device cuda|cuda:N|simulator
  --model h100|none           the GPU that times are predicted for, beside what is measured (feature
                              simulator); default: the one that the machine's is called like, if timed
  --json                      one object a line, the machine's first
  --save FOLDER               what results are checked against, as npy and npz files of two images
  --test                      not timed: a tiny layer, or those named; also without --bench
Words keep the rows whose name, as in forward/im2col/conv2/channels-first/f32, has them all.";

pub struct Options {
    pub json: bool,
    /// Check only.
    pub test: bool,
    pub help: bool,
    pub device: Option<String>,
    /// What is modelled: the name of a target, or `none`.
    pub model: Option<String>,
    pub save: Option<PathBuf>,
    /// With the layouts they are wanted in.
    pub shapes: Vec<Shape>,
    pub dtypes: Vec<DType>,
    ops: Vec<String>,
    algorithms: Vec<Algorithm>,
    words: Vec<String>,
}

const LAYOUTS: [Layout; 2] = [Layout::ChannelsFirst, Layout::ChannelsLast];

pub fn help() -> String {
    HELP.replace("SHAPE", description::HELP)
}

/// A layer so small that a simulated GPU takes no time over it.
fn tiny() -> Result<Shape> {
    let shape = Shape::find("notebook").ok_or("the catalogue has lost a layer")?;
    Ok(Shape { name: "tiny", batch: 2, input: [1, 8, 8], ..shape })
}

/// The layer with the batch that a GPU is given.
fn for_gpu(shape: Shape) -> Shape {
    let batch = match shape.spatial {
        1 => 32,
        2 => 64,
        _ => 16,
    };
    Shape { batch, ..shape }
}

/// Each layer in each of the layouts.
fn in_layouts<'a>(
    shapes: impl IntoIterator<Item = Shape> + 'a,
    layouts: &'a [Layout],
) -> impl Iterator<Item = Shape> + 'a {
    let each = |shape| layouts.iter().map(move |&layout| Shape { layout, ..shape });
    shapes.into_iter().flat_map(each)
}

impl Options {
    /// Of the command line. `operations` are the names that `--ops` knows.
    pub fn read(operations: Vec<String>) -> Result<Self> {
        let mut options = Options {
            json: false,
            test: false,
            help: false,
            device: None,
            model: None,
            save: None,
            shapes: Vec::new(),
            dtypes: vec![DType::F32, DType::F16, DType::BF16],
            ops: operations,
            algorithms: Algorithm::GENERAL.into(),
            words: Vec::new(),
        };
        let given = Given::parse(std::env::args().skip(1))?;
        let in_catalogue = |shape: &Shape| Shape::find(shape.name).is_some();
        let (named, described): (Vec<_>, Vec<_>) = given.shapes.into_iter().partition(in_catalogue);
        let mut named: Vec<Shape> = named.into_iter().map(for_gpu).collect();
        let mut layouts = None;
        let mut measuring = false;
        let mut arguments = given.others.into_iter();
        while let Some(argument) = arguments.next() {
            let mut list = || -> Result<Vec<String>> {
                let value = arguments.next().ok_or_else(|| format!("{argument} takes a value"))?;
                Ok(value.split(',').map(String::from).collect())
            };
            match argument.as_str() {
                "--bench" => measuring = true,
                "--test" => options.test = true,
                "--json" => options.json = true,
                "--help" | "-h" => options.help = true,
                "--device" => options.device = Some(list()?.join(",")),
                "--model" => options.model = Some(list()?.join(",")),
                "--save" => options.save = Some(list()?.join(",").into()),
                "--ops" => options.ops = known("operation", list()?, &options.ops)?,
                "--algorithms" => options.algorithms = parsed(list()?)?,
                "--layouts" => layouts = Some(parsed(list()?)?),
                "--dtype" => {
                    options.dtypes =
                        list()?.iter().map(|name| dtype(name)).collect::<Result<_>>()?
                }
                "--shapes" => {
                    let shape = |name: &String| {
                        Shape::find(name)
                            .map(for_gpu)
                            .ok_or_else(|| format!("--shapes: no shape {name:?}").into())
                    };
                    named.extend(list()?.iter().map(shape).collect::<Result<Vec<_>>>()?);
                }
                word if word.starts_with('-') => {
                    return Err(format!("unknown argument {word:?}; --help lists the flags").into());
                }
                _ => options.words.push(argument),
            }
        }
        options.test |= !measuring || options.device.as_deref() == Some("simulator");
        if named.is_empty() && described.is_empty() {
            named = if options.test { vec![tiny()?] } else { CATALOGUE.map(for_gpu).into() };
        }
        options.shapes = in_layouts(named, layouts.as_deref().unwrap_or(&LAYOUTS)).collect();
        for shape in described {
            let layouts = layouts.as_deref().unwrap_or(std::slice::from_ref(&shape.layout));
            options.shapes.extend(in_layouts([shape], layouts));
        }
        Ok(options)
    }

    pub fn has(&self, op: &str) -> bool {
        self.ops.iter().any(|name| name == op)
    }

    pub fn algorithms(&self) -> &[Algorithm] {
        &self.algorithms
    }

    /// Whether the row of this name is wanted.
    pub fn wants(&self, row: &str) -> bool {
        self.words.iter().all(|word| row.contains(word.as_str()))
    }
}

fn known(what: &str, given: Vec<String>, names: &[String]) -> Result<Vec<String>> {
    match given.iter().find(|name| !names.contains(name)) {
        Some(name) => {
            Err(format!("no {what} is called {name:?}; there are {}", names.join(", ")).into())
        }
        None => Ok(given),
    }
}

fn parsed<T: std::str::FromStr<Err = convmat::Error>>(given: Vec<String>) -> Result<Vec<T>> {
    given.iter().map(|name| Ok(name.parse()?)).collect()
}

fn dtype(name: &str) -> Result<DType> {
    let all = [DType::F32, DType::F16, DType::BF16, DType::F64];
    all.into_iter()
        .find(|dtype| dtype.to_string() == name)
        .ok_or_else(|| format!("no dtype {name:?}; there are f32, f16, bf16, f64").into())
}
