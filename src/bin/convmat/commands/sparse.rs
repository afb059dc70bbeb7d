//! Sparse weights: `convmat prune`, and `convmat conv` with one.

use convmat::io::{Format, NpzReader, Source};
use convmat::{
    Algorithm, Conv, DType, Element, PlanOptions, SparseWeight, Tensor, with_axes, with_dtype,
};

use super::{archive_path, report_geometry, save_matrix};
use crate::args::{ConvArgs, PruneArgs};
use crate::failure::Failure;
use crate::report;
use crate::session::{Operand, Session, check_writable};

pub fn prune(args: &PruneArgs, session: &mut Session) -> Result<(), Failure> {
    check_writable(archive_path("a sparse weight", &args.output)?)?;
    session.names.set("threshold", "--threshold");
    session.names.set("entries to keep", "--top-k");
    let w = session.load_weight(&args.w)?;
    // SciPy has no bfloat16, so the matrix holds f32 instead.
    let dtype = match w.dtype()? {
        DType::BF16 => DType::F32,
        other => other,
    };
    let axes = w.spatial_axes()?;
    with_dtype!(dtype, T => with_axes!(axes, D => pruned::<T, D>(args, session, w)))
}

fn pruned<T: Element, const D: usize>(
    args: &PruneArgs,
    session: &mut Session,
    w: Operand,
) -> Result<(), Failure> {
    let explain = |e| session.names.explain(e);
    let (.., kernel) = args.layout.split_weight::<D>("weight", w.shape()).map_err(explain)?;
    let conv = Conv::new(kernel).layout(args.layout);
    let pruning = args.pruning();
    // On the host, where the matrix is written from.
    let dense = w.convert_on_host::<T>()?;
    let (weight, matrix) = session.compute("pruning", || {
        let weight = SparseWeight::from_dense(&conv, &dense, pruning)?;
        let matrix = weight.to_csr()?;
        Ok((weight, matrix))
    })?;
    session.report.row("kept", pruning);
    session.report.set("pruning", pruning.to_string());
    session.report.set("shape", weight.shape().to_vec());
    session.report.set("kernel", kernel.to_vec());
    session.report.set("layout", args.layout.to_string());
    session.report.set("entries", weight.entries());
    session.report.set("sparsity", weight.sparsity());
    let percent = report::rounded(100.0 * weight.sparsity(), 4);
    session.report.row("sparsity", format!("{percent}%"));
    save_matrix(session, args.output.path(), &matrix)
}

/// Whether this is an archive that holds a sparse weight. One that cannot be opened is not: reading it says why.
pub fn is_sparse(source: &Source) -> bool {
    let archive = || NpzReader::open(source.path()).ok();
    source.format() == Format::Npz
        && source.key().is_none()
        && archive().is_some_and(|archive| SparseWeight::<f32>::is_in_npz(archive.names()))
}

/// `convmat conv` where W is a sparse weight.
pub fn conv(args: &ConvArgs, session: &mut Session) -> Result<(), Failure> {
    check_writable(args.output.path())?;
    let label = format!("W ({})", args.w);
    if args.algorithm != Algorithm::Auto {
        return Err(Failure::input(format!(
            "--algorithm is {}, but {label} is sparse, which is convolved in one way only",
            args.algorithm
        )));
    }
    let x = session.load("input", "X", &args.x)?;
    let bias = session.load_optional("bias", "--bias", args.bias.as_ref())?;
    session.names.set("weight", &label);
    let dtype = crate::session::common_dtype(&[Some(&x), bias.as_ref()])?;
    let axes = x.spatial_axes()?;
    with_dtype!(dtype, T => with_axes!(axes, D => convolved::<T, D>(args, session, x, bias)))
}

fn convolved<T: Element, const D: usize>(
    args: &ConvArgs,
    session: &mut Session,
    x: Operand,
    bias: Option<Operand>,
) -> Result<(), Failure> {
    let label = format!("W ({})", args.w);
    let Some(kernel) = &args.kernel else {
        let hint = "it is a matrix, whose shape does not tell the kernel's extents";
        return Err(Failure::input(format!("{label} is sparse and needs --kernel: {hint}")));
    };
    let conv = args.geometry.conv(kernel.resolve::<D>("--kernel")?)?;
    let weight = session
        .reading(&args.w, || SparseWeight::<T>::load_npz(&conv, args.w.path()))
        .map_err(|error| match error {
            convmat::Error::ElementType { found, .. } if !found.starts_with('i') => {
                let expected = T::DTYPE;
                let operands = "operands must have the same element type";
                Failure::input(format!("{label} is {found}, but X is {expected}: {operands}"))
            }
            error @ (convmat::Error::Format { .. } | convmat::Error::Io { .. }) => {
                Failure::reading(&label, error)
            }
            error => session.names.explain(error),
        })?;
    let extra = args.transposed.resolve::<D>()?;
    let explain = |e| session.names.explain(e);
    let (.., size) =
        args.geometry.layout.split_activation::<D>("input", x.shape()).map_err(explain)?;
    let geometry = match extra {
        None => conv.bind(size),
        Some(extra) => conv.bind_transposed(size, extra),
    };
    let geometry = geometry.map_err(explain)?;
    report_geometry(session, &args.geometry, &geometry, extra)?;
    let entries = weight.entries();
    session.report.row("weight", format!("{} entries, sparse", report::count(entries)));
    session.report.set("entries", entries);
    session.report.set("sparsity", weight.sparsity());
    let x = x.into_tensor::<T>(session)?;
    let bias = bias.map(|b| b.into_tensor::<T>(session)).transpose()?;
    let (device, options) = (session.device.clone(), PlanOptions::new());
    let has_bias = bias.is_some();
    let (explanation, y) = session.compute("convolving", || {
        let weight = weight.to_device(&device)?;
        let shape = x.shape();
        Ok(match extra {
            Some(extra) => {
                let plan =
                    conv.plan_sparse_transposed(&device, shape, &weight, has_bias, extra, options)?;
                let mut y = Tensor::zeros(&device, plan.result_shape())?;
                plan.run(&x, &weight, &bias, &mut y, &mut plan.make_workspace()?)?;
                (plan.explanation().clone(), y)
            }
            None => {
                let plan = conv.plan_sparse_forward(&device, shape, &weight, has_bias, options)?;
                let mut y = Tensor::zeros(&device, plan.result_shape())?;
                plan.run(&x, &weight, &bias, &mut y, &mut plan.make_workspace()?)?;
                (plan.explanation().clone(), y)
            }
        })
    })?;
    session.planned(&explanation);
    session.report.row("algorithm", &explanation.algorithm);
    session.report.set("algorithm", explanation.algorithm.clone());
    session.save("y", &args.output, y)
}
