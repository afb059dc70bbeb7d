//! `convmat filter`.

use convmat::{Conv, Csr, DType, Element, Explanation, PlanOptions, Tensor, with_axes, with_dtype};
use serde_json::json;

use super::{archive_path, save_matrix};
use crate::args::FilterArgs;
use crate::failure::Failure;
use crate::session::{Session, check_writable};

pub fn run(args: &FilterArgs, session: &mut Session) -> Result<(), Failure> {
    if args.sparse {
        archive_path("a sparse filter", &args.output)?;
    }
    check_writable(args.output.path())?;
    session.names.set("channels", "--channels");
    // SciPy has no bfloat16, so the matrix holds f32 instead. Its ones are exact in both.
    let dtype = if args.sparse && args.dtype == DType::BF16 { DType::F32 } else { args.dtype };
    with_dtype!(dtype, T => with_axes!(args.kernel.0.len(), D => typed::<T, D>(args, session)))
}

fn typed<T: Element, const D: usize>(
    args: &FilterArgs,
    session: &mut Session,
) -> Result<(), Failure> {
    let kernel = args.kernel.resolve::<D>("--kernel")?;
    let conv = Conv::new(kernel).groups(args.groups).layout(args.layout);
    session.report.set("channels", args.channels);
    let geometry = json!({
        "axes": D,
        "kernel": kernel.to_vec(),
        "groups": args.groups,
        "layout": args.layout.to_string(),
    });
    session.report.set("geometry", geometry);
    let text = format!("kernel {}, {} channels", args.kernel, args.channels);
    let groups = if args.groups == 1 { "".into() } else { format!(", groups {}", args.groups) };
    session.report.row("geometry", format!("{text}{groups}"));
    let device = session.device.clone();
    if args.sparse {
        let filter = session
            .compute("making the filter", || conv.gathering_filter_csr::<T>(args.channels))?;
        session.planned(&explanation(&filter));
        save_matrix(session, args.output.path(), &filter)
    } else {
        let (explanation, filter) = session.compute("making the filter", || {
            let plan = conv.plan_filter::<T>(&device, args.channels, PlanOptions::new())?;
            let mut filter = Tensor::zeros(&device, plan.result_shape())?;
            plan.run(&mut filter, &mut plan.make_workspace()?)?;
            Ok((plan.explanation().clone(), filter))
        })?;
        session.planned(&explanation);
        session.save("filter", &args.output, filter)
    }
}

/// How the sparse filter is made, which is not planned: there is nothing to choose.
fn explanation<T: Element>(filter: &Csr<T>) -> Explanation {
    let (entries, width) = (filter.nnz() as u64, filter.index_width().size() as u64);
    let mut explanation = Explanation::default();
    explanation.operation = "gathering_filter_csr";
    explanation.subject = format!("{:?} {}", filter.shape(), T::DTYPE);
    explanation.device = "cpu".into();
    explanation.algorithm = "count".into();
    explanation.reason =
        "every row has one entry, a 1, whose column is the row's within its group".into();
    explanation.bytes = entries * (width + T::DTYPE.size() as u64) + (entries + 1) * width;
    explanation
}
