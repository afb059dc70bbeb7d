//! `convmat filter`.

use convmat::{Conv, DType, Element, with_axes, with_dtype};
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
    if args.sparse {
        let filter = session
            .compute("making the filter", || conv.gathering_filter_csr::<T>(args.channels))?;
        save_matrix(session, args.output.path(), &filter)
    } else {
        let filter =
            session.compute("making the filter", || conv.gathering_filter::<T>(args.channels))?;
        session.save("filter", &args.output, filter)
    }
}
