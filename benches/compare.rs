//! This crate's side of `compare_torch.py`, which builds and runs it: reads one command a line on
//! standard input and answers on standard output, ending each answer with a line `ok` or `error …`. Layers are
//! those of the catalogue, or of `--shape` where it is given.
//!
//! | command | effect |
//! |---|---|
//! | `catalogue SHAPE…` | one line a layer, `key=value` pairs: of these, or of all |
//! | `roofline` | copy and store GB/s, sgemm GFLOP/s |
//! | `prepare OP SHAPE DTYPE` | reads the operands `NAME.in` of the exchange folder; the shape by name or description |
//! | `explain` | what the plan says, if there is one: lines `workspace=BYTES`, `flop=NUMBER` (the definition's), `algorithm=NAME`, `reason=TEXT` |
//! | `write fresh\|into` | runs once and writes the results as `NAME.out` |
//! | `time fresh\|into COUNT` | runs COUNT times after one run that does not count, unless it is a long one; seconds of each |

mod partner;
mod shapes;

use std::fmt::Write as _;
use std::io::{BufRead, Write as _, stdin, stdout};
use std::path::PathBuf;
use std::time::Instant;

use convmat::{DType, Layout};
use partner::job::{Answer, Job, Result};
use partner::roofline;
use shapes::description::Given;
use shapes::{OTHERS, Shape};

/// Seconds of a run that needs no other to warm up.
const LONG: f64 = 0.5;

struct Partner {
    shapes: Vec<Shape>,
    threads: usize,
    folder: PathBuf,
    job: Option<Box<dyn Job>>,
}

fn main() -> Result<()> {
    let Given { mut shapes, others } = Given::from_command_line("compare");
    if shapes.is_empty() {
        shapes = Shape::named().collect();
    }
    // `cargo bench` and `cargo test` run this as they run any other bench.
    let [command, threads, folder] = &others[..] else {
        println!("compare: run `python3 benches/compare_torch.py`, which uses this program");
        return Ok(());
    };
    if command != "serve" {
        return Err(format!("unknown command {command:?}").into());
    }
    let threads = threads.parse()?;
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    let mut partner = Partner { shapes, threads, folder: folder.into(), job: None };
    for line in stdin().lock().lines() {
        match partner.answer(&line?) {
            Ok(text) => println!("{text}ok"),
            Err(error) => println!("error {}", error.to_string().replace('\n', " ")),
        }
        stdout().flush()?;
    }
    Ok(())
}

impl Partner {
    fn answer(&mut self, line: &str) -> Result<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["catalogue"] => catalogue(&self.shapes),
            ["catalogue", ref names @ ..] => {
                catalogue(&names.iter().map(|name| self.shape(name)).collect::<Result<Vec<_>>>()?)
            }
            ["roofline"] => Ok(format!(
                "copy={} store={} sgemm={}\n",
                roofline::copy(self.threads),
                roofline::store(self.threads),
                roofline::sgemm(self.threads)
            )),
            ["prepare", op, shape, dtype] => {
                let shape = self.shape(shape)?;
                self.job = None;
                self.job = Some(partner::prepare(op, &shape, dtype_of(dtype)?, &self.folder)?);
                Ok(String::new())
            }
            ["explain"] => {
                let Some(plan) = self.job()?.explanation() else { return Ok(String::new()) };
                let (algorithm, reason) = (&plan.algorithm, &plan.reason);
                Ok(format!(
                    "workspace={}\nflop={}\nalgorithm={algorithm}\nreason={reason}\n",
                    plan.workspace_bytes, plan.flop
                ))
            }
            ["write", variant] => self.write(variant),
            ["time", variant, count] => self.time(variant, count.parse()?),
            _ => Err(format!("unknown command {line:?}").into()),
        }
    }

    /// One of the layers, or another that is described.
    fn shape(&self, name: &str) -> Result<Shape> {
        match self.shapes.iter().find(|known| known.name == name) {
            Some(shape) => Ok(*shape),
            None => Ok(name.parse()?),
        }
    }

    fn job(&mut self) -> Result<&mut dyn Job> {
        Ok(&mut **self.job.as_mut().ok_or("nothing is prepared")?)
    }

    fn write(&mut self, variant: &str) -> Result<String> {
        let folder = self.folder.clone();
        let store = |answer: &dyn Answer| -> Result<()> {
            for (name, bytes) in answer.parts() {
                std::fs::write(folder.join(name).with_extension("out"), bytes)?;
            }
            Ok(())
        };
        let job = self.job()?;
        match variant {
            "fresh" => store(&*job.fresh()?)?,
            "into" => {
                job.buffers().poison();
                job.into()?;
                store(job.buffers())?;
            }
            _ => return Err(format!("no variant {variant:?}").into()),
        }
        Ok(String::new())
    }

    fn time(&mut self, variant: &str, count: usize) -> Result<String> {
        let job = self.job()?;
        let mut text = String::new();
        let (mut timed, mut warm) = (0, false);
        while timed < count {
            let start = Instant::now();
            match variant {
                "fresh" => drop(job.fresh()?),
                "into" => job.into()?,
                _ => return Err(format!("no variant {variant:?}").into()),
            }
            let seconds = start.elapsed().as_secs_f64();
            if warm || seconds > LONG {
                writeln!(text, "{seconds}")?;
                timed += 1;
            }
            warm = true;
        }
        Ok(text)
    }
}

fn dtype_of(name: &str) -> Result<DType> {
    let all = [DType::F16, DType::BF16, DType::F32, DType::F64];
    let found = all.into_iter().find(|dtype| dtype.to_string() == name);
    Ok(found.ok_or_else(|| format!("no element type {name:?}"))?)
}

fn catalogue(shapes: &[Shape]) -> Result<String> {
    let mut text = String::new();
    for shape in shapes {
        let list = |extents: [usize; 3]| {
            let words: Vec<String> = extents.iter().map(usize::to_string).collect();
            words[3 - shape.spatial..].join(",")
        };
        let last = shape.layout == Layout::ChannelsLast;
        writeln!(
            text,
            "name={} batch={} channels={} outputs={} groups={} input={} matrix_input={} kernel={} \
             stride={} padding={} dilation={} mode={} channels_last={} other={}",
            shape.name,
            shape.batch,
            shape.channels,
            shape.outputs,
            shape.groups,
            list(shape.input),
            list(shape.for_matrix()?.input),
            list(shape.kernel),
            list(shape.stride),
            list(shape.padding),
            list(shape.dilation),
            shape.mode,
            u8::from(last),
            u8::from(OTHERS.iter().any(|other| other.name == shape.name)),
        )?;
    }
    Ok(text)
}
