//! `convmat conv-backward`.

use convmat::{Element, PlanOptions, Tensor, with_axes, with_dtype};

use super::{archive_path, report_geometry};
use crate::args::ConvBackwardArgs;
use crate::failure::Failure;
use crate::session::{Operand, Session, check_writable, common_dtype};

pub fn run(args: &ConvBackwardArgs, session: &mut Session) -> Result<(), Failure> {
    check_writable(archive_path("what holds dx, dw and db", &args.output)?)?;
    let x = session.load("input", "X", &args.x)?;
    let w = session.load_weight(&args.w)?;
    let dy = session.load("output gradient", "DY", &args.dy)?;
    // The gradients are made here, in the shapes of X and W. If the library finds that such a shape does
    // not fit, it is X or W that is wrong.
    session.names.set("input gradient", x.label());
    session.names.set("weight gradient", w.label());
    let dtype = common_dtype(&[Some(&x), Some(&w), Some(&dy)])?;
    let axes = x.spatial_axes()?;
    with_dtype!(dtype, T => with_axes!(axes, D => typed::<T, D>(args, session, [x, w, dy])))
}

fn typed<T: Element, const D: usize>(
    args: &ConvBackwardArgs,
    session: &mut Session,
    [x, w, dy]: [Operand; 3],
) -> Result<(), Failure> {
    let kernel = args.geometry.kernel_of::<D>(&w, args.kernel.as_ref())?;
    let conv = args.geometry.conv(kernel)?;
    let layout = args.geometry.layout;
    let split = layout.split_activation::<D>("input", x.shape());
    let geometry = split.and_then(|(.., size)| conv.bind(size));
    let geometry = geometry.map_err(|e| session.names.explain(e))?;
    report_geometry(session, &args.geometry, &geometry, None)?;
    let x = x.into_tensor::<T>(session)?;
    let w = w.into_tensor::<T>(session)?;
    let dy = dy.into_tensor::<T>(session)?;
    let (device, algorithm) = (session.device.clone(), args.algorithm);
    let options = PlanOptions::new().algorithm(algorithm);
    let (weight_plan, dw) = session.compute("gradient by the weight", || {
        let mut dw = Tensor::zeros(&device, w.shape())?;
        let plan = conv.plan_backward_weight::<T>(&device, x.shape(), dy.shape(), options)?;
        plan.run(&x, &dy, &mut dw, &mut plan.make_workspace()?)?;
        Ok((plan.explanation().clone(), dw))
    })?;
    let (input_plan, dx) = session.compute("gradient by the input", || {
        let mut dx = Tensor::zeros(&device, x.shape())?;
        let (dys, ws, size) = (dy.shape(), w.shape(), geometry.input());
        let plan = conv.plan_backward_input::<T>(&device, dys, ws, size, options)?;
        plan.run(&dy, &w, &mut dx, &mut plan.make_workspace()?)?;
        Ok((plan.explanation().clone(), dx))
    })?;
    let (bias_plan, db) = session.compute("gradient by the bias", || {
        let plan = conv.plan_backward_bias::<T>(&device, dy.shape(), PlanOptions::new())?;
        let mut db = Tensor::zeros(&device, plan.result_shape())?;
        plan.run(&dy, &mut db, &mut plan.make_workspace()?)?;
        Ok((plan.explanation().clone(), db))
    })?;
    [weight_plan, input_plan, bias_plan].iter().for_each(|plan| session.planned(plan));
    session.report.row("algorithm", algorithm);
    session.report.set("algorithm", algorithm.to_string());
    session.save_npz(args.output.path(), vec![("dx", dx), ("dw", dw), ("db", db)])
}
