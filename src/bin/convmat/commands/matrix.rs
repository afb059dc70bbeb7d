//! `convmat matrix`.

use convmat::{DType, Device, Element, TensorView, with_axes, with_dtype};

use super::{archive_path, report_geometry, save_matrix};
use crate::args::MatrixArgs;
use crate::failure::Failure;
use crate::report;
use crate::session::{Operand, Session, check_writable, common_dtype};

pub fn run(args: &MatrixArgs, session: &mut Session) -> Result<(), Failure> {
    check_writable(archive_path("a sparse matrix", &args.output)?)?;
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
    let bias = bias.as_ref().map(TensorView::from);
    let what = format!("assembling {} entries", report::count(expected.nnz()));
    let matrix = session.compute(&what, || {
        let matrix = match extra {
            Some(extra) => conv.transposed_matrix(&w, bias, size, extra)?,
            None => conv.matrix(&w, bias, size)?,
        };
        // The remaining steps, dropping zeros and writing the file, work on the host.
        let matrix = matrix.to_device(&Device::Cpu)?;
        if args.eliminate_zeros { matrix.eliminate_zeros() } else { Ok(matrix) }
    })?;
    session.report.set("bias", args.bias.is_some());
    session.report.set("eliminate_zeros", args.eliminate_zeros);
    save_matrix(session, args.output.path(), &matrix)
}
