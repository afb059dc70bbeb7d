//! Rows: checked, timed, printed.

use convmat::{Algorithm, DType, Device, Layout};
use serde_json::{Value, json};

use crate::machine::{Gpu, Roofline, Times};
use crate::model::{Modelled, Ready};
use crate::options::Options;
use crate::outcome::Result;
use crate::shapes::Shape;

/// What a row is about.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    pub op: &'a str,
    /// Where there is a choice.
    pub algorithm: Option<Algorithm>,
    pub shape: &'a Shape,
    pub dtype: DType,
}

/// The least that any program for it has to do.
#[derive(Clone, Copy, Default)]
pub struct Work {
    /// Floating-point operations, two for each product.
    pub operations: f64,
    /// Bytes of operands and results, once each.
    pub bytes: f64,
    /// Whether hardly any of the bytes are read.
    pub writes_only: bool,
}

impl Row<'_> {
    pub fn name(&self) -> String {
        let Row { op, algorithm, shape, dtype } = self;
        let algorithm = algorithm.map_or(String::new(), |algorithm| format!("/{algorithm}"));
        format!("{op}{algorithm}/{}/{}/{dtype}", shape.name, shape.layout)
    }
}

/// Where operations run, and what has become of them.
pub struct Bench<'a> {
    pub options: &'a Options,
    pub device: Device,
    /// `None` when nothing is timed.
    timing: Option<(Gpu, Roofline)>,
    /// `None` when nothing is modelled.
    modelled: Option<Modelled>,
    pub checked: usize,
    pub failed: usize,
}

impl<'a> Bench<'a> {
    pub fn new(options: &'a Options, device: Device, gpu: Option<Gpu>) -> Result<Self> {
        let timing = match gpu {
            Some(mut gpu) => {
                let roofline = gpu.roofline(&options.dtypes)?;
                Some((gpu, roofline))
            }
            None => None,
        };
        let modelled = match options.model.as_deref() {
            Some("none") => None,
            Some(target) => Modelled::open(Some(target), "")?,
            None if timing.is_none() => None,
            // It was not asked for.
            None => Modelled::open(None, &device.description()).unwrap_or_else(|error| {
                eprintln!("nothing is modelled: {error}");
                None
            }),
        };
        let bench = Bench { options, device, timing, modelled, checked: 0, failed: 0 };
        bench.print_machine();
        Ok(bench)
    }

    /// Runs a call once, checks what it has left in `state`, and times it. Failure is a row, too. `on` makes the
    /// same call ready on another device, with operands of zeros.
    pub fn row<S>(
        &mut self,
        row: Row,
        work: Work,
        state: &mut S,
        call: impl Fn(&mut S) -> convmat::Result<()>,
        check: impl FnOnce(&S) -> Result<()>,
        on: impl FnOnce(&Device) -> convmat::Result<Ready>,
    ) {
        let outcome = call(state).map_err(Into::into).and_then(|()| {
            check(state)?;
            let Some((gpu, _)) = &mut self.timing else { return Ok(None) };
            gpu.time(&mut || Ok(call(state)?)).map(Some)
        });
        self.checked += 1;
        self.failed += usize::from(outcome.is_err());
        let modelled = self.modelled.as_ref().filter(|_| outcome.is_ok());
        let modelled = modelled.and_then(|model| {
            let failed = |error| eprintln!("{}: not modelled: {error}", row.name());
            model.seconds(on).map_err(failed).ok()
        });
        if self.options.json {
            println!("{}", self.object(&row, work, &outcome, modelled));
        } else {
            println!("{}", self.line(&row, work, &outcome, modelled));
        }
    }

    /// The part of the roofline that is reached: the least time for the work over that of the call.
    fn fraction(&self, dtype: DType, work: Work, times: &Times) -> Option<f64> {
        let (_, roofline) = self.timing.as_ref()?;
        let bandwidth = if work.writes_only { roofline.store } else { roofline.copy };
        let mut least = work.bytes / bandwidth;
        if work.operations > 0.0 {
            let (_, rate) = roofline.gemm.iter().find(|(of, _)| *of == dtype)?;
            least = least.max(work.operations / rate);
        }
        Some(least / times.median)
    }

    fn line(
        &self,
        row: &Row,
        work: Work,
        outcome: &Result<Option<Times>>,
        modelled: Option<f64>,
    ) -> String {
        let Row { op, algorithm, shape, dtype } = row;
        let algorithm = algorithm.map_or(String::new(), |algorithm| algorithm.to_string());
        let layout = if shape.layout == Layout::ChannelsLast { "last" } else { "first" };
        let dtype_name = dtype.to_string();
        let start = format!("{op:<16}{algorithm:<9}{:<9} {layout:<6}{dtype_name:<6}", shape.name);
        let end = match outcome {
            Ok(Some(times)) => {
                let Times { median, shortest, calls } = times;
                let (rate, unit) = rate(work, times);
                let fraction = match self.fraction(*dtype, work, times) {
                    Some(fraction) => format!("{:5.0}%", 100.0 * fraction),
                    None => "     –".into(),
                };
                let time = format!("{:9.4} ({:.4})", median * 1e3, shortest * 1e3);
                format!("{time:<21}{rate:9.1} {unit:<8}{fraction}  {calls:3} calls")
            }
            Ok(None) => "right, not timed".into(),
            Err(error) => format!("FAILED: {error}"),
        };
        let target = self.modelled.as_ref().map_or("", Modelled::target);
        let model = match (modelled, outcome) {
            (Some(seconds), Ok(Some(times))) => {
                format!(
                    "  {target} model {:.4} ms, took {:.2}x",
                    seconds * 1e3,
                    times.median / seconds
                )
            }
            (Some(seconds), _) => format!("  {target} model {:.4} ms", seconds * 1e3),
            (None, _) => String::new(),
        };
        format!("{start}{end}{model}")
    }

    fn object(
        &self,
        row: &Row,
        work: Work,
        outcome: &Result<Option<Times>>,
        modelled: Option<f64>,
    ) -> Value {
        let Row { op, algorithm, shape, dtype } = row;
        let axes = |extents: [usize; 3]| extents[3 - shape.spatial..].to_vec();
        let mut object = json!({
            "op": op, "algorithm": algorithm.map(|a| a.to_string()), "shape": shape.name, "dtype": dtype.to_string(),
            "layout": shape.layout.to_string(), "batch": shape.batch, "channels": shape.channels,
            "outputs": shape.outputs, "groups": shape.groups, "input": axes(shape.input),
            "kernel": axes(shape.kernel), "stride": axes(shape.stride),
            "padding": axes(shape.padding), "dilation": axes(shape.dilation),
            "mode": shape.mode.to_string(), "images": shape.repeated(),
        });
        match outcome {
            Ok(Some(times)) => {
                let (rate, unit) = rate(work, times);
                object["ms"] = json!(times.median * 1e3);
                object["min_ms"] = json!(times.shortest * 1e3);
                object["calls"] = json!(times.calls);
                object["rate"] = json!(rate);
                object["unit"] = json!(unit);
                object["roofline"] = json!(self.fraction(*dtype, work, times));
            }
            Ok(None) => {}
            Err(error) => object["error"] = json!(error.to_string()),
        }
        if let (Some(seconds), Some(model)) = (modelled, &self.modelled) {
            object["model_target"] = json!(model.target());
            object["model_ms"] = json!(seconds * 1e3);
            if let Ok(Some(times)) = outcome {
                object["of_model"] = json!(times.median / seconds);
            }
        }
        object
    }

    fn print_machine(&self) {
        let device = self.device.description();
        let Some((_, Roofline { copy, store, gemm })) = &self.timing else {
            if !self.options.json {
                println!("{device}; not timed");
            }
            return;
        };
        if self.options.json {
            let gemm: serde_json::Map<String, Value> =
                gemm.iter().map(|(dtype, rate)| (dtype.to_string(), json!(rate / 1e12))).collect();
            let (copy, store) = (copy / 1e9, store / 1e9);
            println!(
                "{}",
                json!({ "device": device, "copy_gb_s": copy, "store_gb_s": store, "gemm_tflop_s": gemm })
            );
            return;
        }
        let products: Vec<String> =
            gemm.iter().map(|(dtype, rate)| format!("{dtype} {:.1}", rate / 1e12)).collect();
        println!(
            "{device}\ncopy {:.0} GB/s (read + written), store {:.0} GB/s, cuBLAS TFLOP/s: {}\n\n\
             {:<16}{:<9}{:<10}{:<6}{:<6}{:>9} (min)       rate              of roofline",
            copy / 1e9,
            store / 1e9,
            if products.is_empty() { "not found".into() } else { products.join(", ") },
            "operation",
            "by",
            "shape",
            "C",
            "type",
            "ms",
        );
    }
}

fn rate(work: Work, times: &Times) -> (f64, &'static str) {
    match work.operations > 0.0 {
        true => (work.operations / times.median / 1e12, "TFLOP/s"),
        false => (work.bytes / times.median / 1e9, "GB/s"),
    }
}
