//! `convmat unfold` and `convmat fold`.

use convmat::{Element, PlanOptions, Tensor, with_axes, with_dtype};

use super::report_geometry;
use crate::args::{FoldArgs, UnfoldArgs};
use crate::failure::Failure;
use crate::session::{Operand, Session, check_writable};

pub fn unfold(args: &UnfoldArgs, session: &mut Session) -> Result<(), Failure> {
    check_writable(args.output.path())?;
    let x = session.load("input", "X", &args.x)?;
    let (dtype, axes) = (x.dtype()?, x.spatial_axes()?);
    with_dtype!(dtype, T => with_axes!(axes, D => unfold_typed::<T, D>(args, session, x)))
}

fn unfold_typed<T: Element, const D: usize>(
    args: &UnfoldArgs,
    session: &mut Session,
    x: Operand,
) -> Result<(), Failure> {
    let conv = args.geometry.conv::<D>(args.kernel.resolve("--kernel")?)?;
    let split = args.geometry.layout.split_activation::<D>("input", x.shape());
    let geometry = split.and_then(|(.., size)| conv.bind(size));
    let geometry = geometry.map_err(|e| session.names.explain(e))?;
    report_geometry(session, &args.geometry, &geometry, None)?;
    let x = x.into_tensor::<T>(session)?;
    let device = session.device.clone();
    let (explanation, patches) = session.compute("unfolding", || {
        let plan = conv.plan_unfold::<T>(&device, x.shape(), PlanOptions::new())?;
        let mut patches = Tensor::zeros(&device, plan.result_shape())?;
        plan.run(&x, &mut patches, &mut plan.make_workspace()?)?;
        Ok((plan.explanation().clone(), patches))
    })?;
    session.planned(&explanation);
    drop(x);
    session.save("patches", &args.output, patches)
}

pub fn fold(args: &FoldArgs, session: &mut Session) -> Result<(), Failure> {
    check_writable(args.output.path())?;
    session.names.set("input extent", "--input-size");
    let patches = session.load("patches", "A", &args.patches)?;
    let flags = [&args.input_size, &args.kernel];
    let axes = flags.map(|f| f.0.len()).into_iter().fold(args.geometry.axes(), usize::max);
    let dtype = patches.dtype()?;
    with_dtype!(dtype, T => with_axes!(axes, D => fold_typed::<T, D>(args, session, patches)))
}

fn fold_typed<T: Element, const D: usize>(
    args: &FoldArgs,
    session: &mut Session,
    patches: Operand,
) -> Result<(), Failure> {
    let conv = args.geometry.conv::<D>(args.kernel.resolve("--kernel")?)?;
    let size = args.input_size.resolve::<D>("--input-size")?;
    let geometry = conv.bind(size).map_err(|e| session.names.explain(e))?;
    report_geometry(session, &args.geometry, &geometry, None)?;
    let patches = patches.into_tensor::<T>(session)?;
    let device = session.device.clone();
    let (explanation, x) = session.compute("folding", || {
        let (shape, options) = (patches.shape(), PlanOptions::new());
        let plan = match args.average {
            true => conv.plan_fold_average::<T>(&device, shape, size, options)?,
            false => conv.plan_fold::<T>(&device, shape, size, options)?,
        };
        let mut x = Tensor::zeros(&device, plan.result_shape())?;
        plan.run(&patches, &mut x, &mut plan.make_workspace()?)?;
        Ok((plan.explanation().clone(), x))
    })?;
    session.planned(&explanation);
    drop(patches);
    session.save("x", &args.output, x)
}
