//! One run of the program: it reads operands, calls the library and writes one file. Each step is timed
//! and reported.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use serde_json::json;

use convmat::io::{self, AnyView, Array, ArrayType, Format, NpzWriter, Source};
use convmat::{DType, Device, Element, Explanation, Tensor, TensorView};

use crate::args::{Cli, ProfileArgs};
use crate::failure::{Failure, Names};
use crate::plot::Target;
use crate::progress::Progress;
use crate::report::{self, Report};
use crate::signals::Deferred;

/// Outputs from this size on, in bytes, are shown with a progress bar.
const LARGE: usize = 1 << 24;

/// The device, the names that messages use, and the report so far.
pub struct Session {
    pub device: Device,
    pub names: Names,
    pub report: Report,
    /// Whether Ctrl-C ended an iteration, whose results so far are reported.
    pub interrupted: bool,
    /// Whether plans are reported, and those so far.
    explain: bool,
    /// Whether launches are counted, and whether some blocks were not run, so that there is no result.
    profile: bool,
    sampled: bool,
    plans: Vec<Explanation>,
    read: f64,
    compute: f64,
    write: f64,
}

impl Session {
    pub fn new(cli: &Cli) -> Result<Self, Failure> {
        let names = Names::default();
        let ProfileArgs { profile, ref target, sample_blocks } = cli.profile;
        let device = match profile {
            true => profiling(&cli.device, target, sample_blocks)?,
            false if sample_blocks.is_some() => {
                return Err(Failure::input("--sample-blocks says what --profile counts"));
            }
            false => cli.device.parse().map_err(|e| names.explain(e))?,
        };
        let (explain, sampled) = (cli.explain, sample_blocks.is_some());
        let mut report = Report::new(cli.command.name());
        report.set("device", device.to_string());
        let (read, compute, write) = (0.0, 0.0, 0.0);
        let plans = Vec::new();
        let interrupted = false;
        if profile {
            report.set("target", target.clone());
        }
        Ok(Session {
            device,
            names,
            report,
            interrupted,
            explain,
            profile,
            sampled,
            plans,
            read,
            compute,
            write,
        })
    }

    /// Reads the tensor that the library calls `name` and the user `argument`.
    pub fn load(
        &mut self,
        name: &'static str,
        argument: &str,
        source: &Source,
    ) -> Result<Operand, Failure> {
        let label = format!("{argument} ({source})");
        self.names.set(name, &label);
        let array = self.reading(source, || io::read(source));
        let array = array.map_err(|e| Failure::reading(&label, e))?;
        self.report.operand(name, source, array.shape(), array.dtype());
        Ok(Operand::new(label, array))
    }

    /// Runs and times the reading of a file.
    pub fn reading<R>(&mut self, source: &Source, read: impl FnOnce() -> R) -> R {
        let _progress = Progress::spinner(&format!("reading {source}"));
        timed(&mut self.read, read)
    }

    /// [`Session::load`] for an operand that may be absent.
    pub fn load_optional(
        &mut self,
        name: &'static str,
        argument: &str,
        source: Option<&Source>,
    ) -> Result<Option<Operand>, Failure> {
        source.map(|source| self.load(name, argument, source)).transpose()
    }

    /// [`Session::load`] for the weight W. Its shape gives the kernel, so messages about the kernel name W.
    pub fn load_weight(&mut self, source: &Source) -> Result<Operand, Failure> {
        let weight = self.load("weight", "W", source)?;
        self.names.set("kernel", format!("{} kernel", weight.label()));
        Ok(weight)
    }

    /// Notes what a plan says, for `--explain`.
    pub fn planned(&mut self, plan: &Explanation) {
        if self.explain {
            self.plans.push(plan.clone());
        }
    }

    /// Runs and times a call of the library; `what` is shown on a terminal meanwhile.
    pub fn compute<R>(
        &mut self,
        what: &str,
        work: impl FnOnce() -> convmat::Result<R>,
    ) -> Result<R, Failure> {
        let progress = Progress::spinner(what);
        let device = &self.device;
        // When the call returns, a GPU may not have begun: the time counts until it is done.
        let done = || work().and_then(|result| device.synchronize().map(|()| result));
        let result = timed(&mut self.compute, done);
        drop(progress);
        result.map_err(|e| self.names.explain(e))
    }

    /// Runs and times an iteration of the library, which is given what to call as it goes on. On a terminal
    /// this shows how far it is; and from the first call on, Ctrl-C ends the iteration and nothing else.
    pub fn iterate<R>(
        &mut self,
        what: &str,
        work: impl FnOnce(&mut dyn FnMut(&convmat::Progress) -> ControlFlow<()>) -> convmat::Result<R>,
    ) -> Result<R, Failure> {
        let start = Instant::now();
        let (mut shown, mut deferred, mut interrupted) = (None, None, false);
        let spinner = Progress::spinner(what);
        let mut report = |p: &convmat::Progress| {
            let bar = shown.get_or_insert_with(|| Progress::until(what, p.wanted as u64));
            bar.tell(p.converged as u64, || {
                let rate = p.applications as f64 / start.elapsed().as_secs_f64().max(1e-9);
                let rate = report::rounded(rate, 3);
                // Infinite before there are as many values as are wanted.
                match p.residual.is_finite() {
                    true => {
                        let residual = report::rounded(p.residual, 2);
                        format!("{what}: residual {residual}, {rate} applications/s")
                    }
                    false => format!("{what}: {rate} applications/s"),
                }
            });
            interrupted |= deferred.get_or_insert_with(Deferred::new).is_asked();
            if interrupted { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let result = timed(&mut self.compute, || work(&mut report));
        drop((spinner, shown, deferred));
        self.interrupted |= interrupted;
        result.map_err(|e| self.names.explain(e))
    }

    /// Writes a tensor to `--output`. In an archive its key is `name`, unless `--output` gives another.
    pub fn save<T: Element>(
        &mut self,
        name: &str,
        output: &Source,
        tensor: Tensor<T>,
    ) -> Result<(), Failure> {
        if self.sampled {
            let text = format!("{:?} {}, not written", tensor.shape(), T::DTYPE);
            self.report.row(name, text);
            return Ok(());
        }
        let tensor = tensor.to_device(&Device::Cpu).map_err(|e| self.names.explain(e))?;
        let path = output.path();
        let key = output.key().unwrap_or(name);
        let bytes = tensor.len() * T::DTYPE.size();
        self.write("--output", path, bytes, |progress| match output.format() {
            Format::Npy => io::write_npy_with_progress(path, &tensor, |n| progress.advance(n)),
            Format::Safetensors => io::write_safetensors(path, &[(key, AnyView::new(&tensor)?)]),
            _ => write_npz(path, progress, &[(key, tensor.view())]),
        })?;
        let place = match output.format() {
            Format::Npy => output.clone(),
            _ => Source::new(path, Some(key)).map_err(|e| self.names.explain(e))?,
        };
        self.report.tensor(name, &place, tensor.shape(), T::DTYPE);
        Ok(())
    }

    /// Writes several tensors as one npz archive.
    pub fn save_npz<T: Element>(
        &mut self,
        path: &Path,
        tensors: Vec<(&str, Tensor<T>)>,
    ) -> Result<(), Failure> {
        let tensors: convmat::Result<Vec<_>> =
            tensors.into_iter().map(|(name, t)| Ok((name, t.to_device(&Device::Cpu)?))).collect();
        let tensors = tensors.map_err(|e| self.names.explain(e))?;
        let views: Vec<_> = tensors.iter().map(|(name, t)| (*name, t.view())).collect();
        let bytes = tensors.iter().map(|(_, t)| t.len() * T::DTYPE.size()).sum();
        self.write("--output", path, bytes, |progress| write_npz(path, progress, &views))?;
        let dtype = T::DTYPE.to_string();
        let mut arrays = serde_json::Map::new();
        for (name, tensor) in &tensors {
            self.report.row(*name, format!("{:?} {dtype}", tensor.shape()));
            arrays.insert(name.to_string(), json!({ "shape": tensor.shape(), "dtype": dtype }));
        }
        self.report.row("output", format!("{}, {}", path.display(), report::size(bytes)));
        let path = path.display().to_string();
        self.report.set("output", json!({ "path": path, "arrays": arrays, "bytes": bytes }));
        Ok(())
    }

    /// Writes a picture.
    pub fn save_plot(&mut self, target: &Target, bytes: &[u8]) -> Result<(), Failure> {
        let path = target.path();
        self.write("--plot", path, bytes.len(), |_| io::write_file(path, bytes))?;
        self.report.row("plot", format!("{}, {}", path.display(), report::size(bytes.len())));
        self.report.set("plot", path.display().to_string());
        Ok(())
    }

    /// Runs and times work that writes about this number of bytes to `path`, which this flag gives.
    pub fn write(
        &mut self,
        flag: &str,
        path: &Path,
        bytes: usize,
        work: impl FnOnce(&Progress) -> convmat::Result<()>,
    ) -> Result<(), Failure> {
        if self.sampled {
            return Ok(());
        }
        let what = format!("writing {}", path.file_name().unwrap_or_default().display());
        let progress = match bytes {
            LARGE.. => Progress::bytes(&what, bytes as u64),
            _ => Progress::spinner(&what),
        };
        let result = timed(&mut self.write, || work(&progress));
        drop(progress);
        result.map_err(|e| Failure::writing(flag, path, e))
    }

    /// The report, with the times added.
    pub fn into_report(mut self) -> Report {
        let phases = [("read", self.read), ("compute", self.compute), ("write", self.write)];
        let phases = phases.into_iter().filter(|(_, s)| *s > 0.0);
        let mut seconds = serde_json::Map::new();
        let mut text = Vec::new();
        for (phase, s) in phases.clone() {
            seconds.insert(phase.into(), s.into());
            text.push(format!("{phase} {}", report::seconds(s)));
        }
        if !text.is_empty() {
            seconds.insert("total".into(), phases.map(|(_, s)| s).sum::<f64>().into());
            self.report.row("time", text.join(", "));
            self.report.set("seconds", seconds);
        }
        self.report.plans(&self.plans);
        if self.sampled {
            self.report.remove("output");
            self.report.row("output", "none, as not all blocks were run (--sample-blocks)");
        }
        #[cfg(feature = "simulator")]
        if self.profile {
            self.report.launches(&self.device.take_profile());
        }
        self.report
    }
}

/// A simulator that counts what launches cost on this GPU.
#[cfg(feature = "simulator")]
fn profiling(device: &str, target: &str, blocks: Option<u32>) -> Result<Device, Failure> {
    let names = Names::default();
    if device != "simulator" {
        let message =
            format!("--profile counts what simulated kernels do, but --device is {device}");
        return Err(Failure::input(message));
    }
    let target = target.parse().map_err(|e| names.explain(e))?;
    let profiling = Some(convmat::Profiling { target, blocks });
    let simulation =
        convmat::Simulation { profiling, specialise: true, ..convmat::Simulation::default() };
    Device::simulator_with(simulation).map_err(|e| names.explain(e))
}

#[cfg(not(feature = "simulator"))]
fn profiling(_: &str, _: &str, _: Option<u32>) -> Result<Device, Failure> {
    Err(Failure::input("--profile needs the simulator, which this was built without"))
}

/// Runs something and adds the seconds it takes to `total`.
fn timed<R>(total: &mut f64, work: impl FnOnce() -> R) -> R {
    let start = Instant::now();
    let result = work();
    *total += start.elapsed().as_secs_f64();
    result
}

fn write_npz<T: Element>(
    path: &Path,
    progress: &Progress,
    tensors: &[(&str, TensorView<'_, T>)],
) -> convmat::Result<()> {
    let mut archive = NpzWriter::create(path)?.on_progress(|n| progress.advance(n));
    tensors.iter().try_for_each(|(name, tensor)| archive.add(name, tensor))?;
    archive.finish()
}

/// Fails if `--output` cannot be written, so that this is known before long work.
pub fn check_writable(output: &Path) -> Result<(), Failure> {
    io::check_writable(output).map_err(|e| Failure::writing("--output", output, e))
}

/// The same for `--plot`.
pub fn check_plot(target: Option<&Target>) -> Result<(), Failure> {
    let Some(path) = target.map(Target::path) else { return Ok(()) };
    io::check_writable(path).map_err(|e| Failure::writing("--plot", path, e))
}

/// A tensor as read from its file.
pub struct Operand {
    label: String,
    array: Array,
}

impl Operand {
    /// An array that messages call `label`.
    pub fn new(label: String, array: Array) -> Self {
        Operand { label, array }
    }

    /// What the user calls it: the argument and, in brackets, the file.
    pub fn label(&self) -> &str {
        &self.label
    }

    pub fn shape(&self) -> &[usize] {
        self.array.shape()
    }

    /// The type of its elements, which must be one the library computes with.
    pub fn dtype(&self) -> Result<DType, Failure> {
        let hint = match self.array.dtype() {
            ArrayType::Float(dtype) => return Ok(dtype),
            ArrayType::Bytes(_) => "",
            _ => " (in NumPy: array.astype('float32'))",
        };
        Err(Failure::element_type(&self.label, &self.array.dtype().to_string(), hint))
    }

    /// The number of spatial axes: all axes but two.
    pub fn spatial_axes(&self) -> Result<usize, Failure> {
        match self.shape().len() {
            rank @ 3..=5 => Ok(rank - 2),
            _ => Err(Failure::input(format!(
                "{} has shape {:?}, expected 3, 4 or 5 axes, of which all but two are spatial",
                self.label,
                self.shape()
            ))),
        }
    }

    /// The tensor, on `session`'s device.
    pub fn into_tensor<T: Element>(self, session: &Session) -> Result<Tensor<T>, Failure> {
        self.on_device(session, Array::into_tensor)
    }

    /// The tensor converted to `T`, on `session`'s device.
    pub fn convert<T: Element>(self, session: &Session) -> Result<Tensor<T>, Failure> {
        self.on_device(session, Array::convert)
    }

    /// The tensor converted to `T`, on the host.
    pub fn convert_on_host<T: Element>(self) -> Result<Tensor<T>, Failure> {
        self.array.convert().map_err(|e| Failure::reading(&self.label, e))
    }

    fn on_device<T: Element>(
        self,
        session: &Session,
        read: impl FnOnce(Array) -> convmat::Result<Tensor<T>>,
    ) -> Result<Tensor<T>, Failure> {
        let host = read(self.array).map_err(|e| Failure::reading(&self.label, e))?;
        host.to_device(&session.device).map_err(|e| session.names.explain(e))
    }
}

/// The element type that all operands share; the error names the first operand of another type.
pub fn common_dtype(operands: &[Option<&Operand>]) -> Result<DType, Failure> {
    let mut present = operands.iter().flatten();
    let Some(first) = present.next() else { return Ok(DType::F32) };
    let dtype = first.dtype()?;
    for other in present {
        let found = other.dtype()?;
        if found != dtype {
            let (a, b) = (first.label(), other.label());
            return Err(Failure::input(format!(
                "{b} is {found}, but {a} is {dtype}: operands must have the same element type"
            )));
        }
    }
    Ok(dtype)
}
