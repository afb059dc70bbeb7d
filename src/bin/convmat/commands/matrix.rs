//! `convmat matrix`.

use convmat::{DType, Device, Element, PlanOptions, with_axes, with_dtype};

use super::{archive_path, report_geometry, save_matrix};
use crate::args::MatrixArgs;
use crate::failure::Failure;
use crate::plot::pattern;
use crate::report;
use crate::session::{Operand, Session, check_plot, check_writable, common_dtype};

pub fn run(args: &MatrixArgs, session: &mut Session) -> Result<(), Failure> {
    check_writable(archive_path("a sparse matrix", &args.output)?)?;
    check_plot(args.plot.as_ref())?;
    session.names.set("input extent", "--input-size");
    let w = session.load_weight(&args.w)?;
    session.names.set("output channels", format!("{} output channels", w.label()));
    let bias = session.load_optional("bias", "--bias", args.bias.as_ref())?;
    // SciPy has no bfloat16, so the matrix holds f32 instead.
    let dtype = match common_dtype(&[Some(&w), bias.as_ref()])? {
        DType::BF16 => DType::F32,
        other => other,
    };
    let axes = w.spatial_axes()?;
    with_dtype!(dtype, T => with_axes!(axes, D => typed::<T, D>(args, session, w, bias)))
}

fn typed<T: Element, const D: usize>(
    args: &MatrixArgs,
    session: &mut Session,
    w: Operand,
    bias: Option<Operand>,
) -> Result<(), Failure> {
    let kernel = args.geometry.kernel_of::<D>(&w, args.kernel.as_ref())?;
    let conv = args.geometry.conv(kernel)?;
    let size = args.input_size.resolve::<D>("--input-size")?;
    let extra = args.transposed.resolve::<D>()?;
    let explain = |e| session.names.explain(e);
    let (geometry, expected) = match extra {
        None => (conv.bind(size), conv.matrix_size(w.shape(), bias.is_some(), size)),
        Some(extra) => (
            conv.bind_transposed(size, extra),
            conv.transposed_matrix_size(w.shape(), bias.is_some(), size, extra),
        ),
    };
    let (geometry, expected) = (geometry.map_err(explain)?, expected.map_err(explain)?);
    report_geometry(session, &args.geometry, &geometry, extra)?;
    let w = w.convert::<T>(session)?;
    let bias = bias.map(|b| b.convert::<T>(session)).transpose()?;
    let what = format!("assembling {} entries", report::count(expected.nnz()));
    let device = session.device.clone();
    let (explanation, matrix) = session.compute(&what, || {
        let (shape, has_bias, options) = (w.shape(), bias.is_some(), PlanOptions::new());
        let plan = match extra {
            Some(extra) => {
                conv.plan_transposed_matrix::<T>(&device, shape, has_bias, size, extra, options)?
            }
            None => conv.plan_matrix::<T>(&device, shape, has_bias, size, options)?,
        };
        let matrix = plan.assemble(&w, &bias, &mut plan.make_workspace()?)?;
        // The remaining steps, dropping zeros and writing the file, work on the host.
        let matrix = matrix.to_device(&Device::Cpu)?;
        let matrix = if args.eliminate_zeros { matrix.eliminate_zeros()? } else { matrix };
        Ok((plan.explanation().clone(), matrix))
    })?;
    session.planned(&explanation);
    session.report.set("bias", args.bias.is_some());
    session.report.set("eliminate_zeros", args.eliminate_zeros);
    // Drawn before anything is written: if that fails, there is no file.
    let picture = match &args.plot {
        Some(target) => Some((target, pattern::plot(&matrix, target.format())?)),
        None => None,
    };
    save_matrix(session, args.output.path(), &matrix)?;
    picture.map_or(Ok(()), |(target, picture)| session.save_plot(target, &picture))
}
