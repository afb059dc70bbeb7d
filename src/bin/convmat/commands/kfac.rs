//! `convmat kfac`.

use convmat::{
    CovarianceOptions, Element, KfacLayer, KfacMethod, KfacOptions, KfacState, PlanOptions, Tensor,
    with_axes, with_dtype,
};

use super::{archive_path, report_geometry};
use crate::args::KfacArgs;
use crate::failure::Failure;
use crate::report;
use crate::session::{Operand, Session, check_writable, common_dtype};

pub fn run(args: &KfacArgs, session: &mut Session) -> Result<(), Failure> {
    check_writable(archive_path("what holds the factors", &args.output)?)?;
    session.names.set("damping", "--damping");
    let x = session.load("input", "X", &args.x)?;
    let dy = session.load("output gradient", "DY", &args.dy)?;
    session.names.set("output channels", format!("{} channels", dy.label()));
    let gradient = session.load_optional("gradient", "--gradient", args.gradient.as_ref())?;
    let dtype = common_dtype(&[Some(&x), Some(&dy)])?;
    let axes = x.spatial_axes()?;
    with_dtype!(dtype, T => with_axes!(axes, D => typed::<T, D>(args, session, x, dy, gradient)))
}

fn typed<T: Element, const D: usize>(
    args: &KfacArgs,
    session: &mut Session,
    x: Operand,
    dy: Operand,
    gradient: Option<Operand>,
) -> Result<(), Failure> {
    let conv = args.geometry.conv::<D>(args.kernel.resolve("--kernel")?)?;
    let layout = args.geometry.layout;
    let explain = |e| session.names.explain(e);
    let (_, channels, size) = layout.split_activation::<D>("input", x.shape()).map_err(explain)?;
    let (_, outputs, _) =
        layout.split_activation::<D>("output gradient", dy.shape()).map_err(explain)?;
    let geometry = conv.bind(size).map_err(explain)?;
    let layer = KfacLayer::new(conv, channels, outputs, size).bias(args.bias);
    let options = KfacOptions::new().method(args.method).sharing(args.mode);
    let options = options.damping(args.damping).pi_correction(!args.no_pi);
    let device = session.device.clone();
    let mut state = KfacState::<T::Acc, D>::new(&device, layer, options).map_err(explain)?;
    report_geometry(session, &args.geometry, &geometry, None)?;
    let x = x.into_tensor::<T>(session)?;
    let dy = dy.into_tensor::<T>(session)?;
    let gradient = gradient.map(|g| g.convert::<T::Acc>(session)).transpose()?;

    let wanted = CovarianceOptions::new().sharing(args.mode);
    let plans = session.compute("factors", || {
        let (shape, plan) = (x.shape(), PlanOptions::new());
        let input =
            conv.plan_covariance::<T, T::Acc>(&device, shape, wanted.bias(args.bias), plan)?;
        let output =
            conv.plan_gradient_covariance::<T, T::Acc>(&device, dy.shape(), wanted, plan)?;
        state.accumulate(&x, &dy)?;
        Ok([input.explanation().clone(), output.explanation().clone()])
    })?;
    plans.iter().for_each(|plan| session.planned(plan));
    let ekfac = args.method == KfacMethod::Ekfac;
    let (input, output, preconditioned) = session.compute("eigenvectors", || {
        state.refresh()?;
        if ekfac {
            state.accumulate_second_moments(&x, &dy)?;
        }
        let gradient = match gradient {
            Some(gradient) => gradient,
            None => state.mean_gradient(&x, &dy)?,
        };
        let preconditioned = state.precondition(&gradient)?;
        let (input, output) = match state.basis() {
            Some((input, output)) => (input.clone(), output.clone()),
            None => (state.decompose_input_factor()?, state.decompose_output_factor()?),
        };
        Ok((input, output, preconditioned))
    })?;
    session.report.row("method", format!("{}, {}", args.method, args.mode));
    session.report.row("damping", args.damping);
    for (key, value) in [("method", args.method.to_string()), ("mode", args.mode.to_string())] {
        session.report.set(key, value);
    }
    session.report.set("bias", args.bias);
    session.report.set("damping", args.damping);
    if let Some(pi) = state.pi() {
        let text: Vec<_> = pi.iter().map(|&pi| report::rounded(pi, 4)).collect();
        session.report.row("pi", text.join(", "));
        session.report.set("pi", pi.to_vec());
    }
    let groups = conv.group_count();
    let [rows, columns] = [outputs / groups, input.values().shape()[1]];
    let mut arrays = vec![
        ("A", state.input_factor().cloned()),
        ("G", state.output_factor().cloned()),
        ("eigenvalues_a", Some(input.values().clone())),
        ("q_a", Some(input.vectors().clone())),
        ("eigenvalues_g", Some(output.values().clone())),
        ("q_g", Some(output.vectors().clone())),
    ];
    if ekfac {
        arrays.push(("lambda", state.second_moments().cloned()));
    }
    arrays.push(("preconditioned", Some(preconditioned)));
    let mut tensors = Vec::new();
    for (name, tensor) in arrays {
        let Some(tensor) = tensor else { continue };
        let matrices = name == "preconditioned" || name == "lambda";
        let tensor = match matrices {
            true => {
                tensor.reshape(&[groups, rows, columns]).map_err(|e| session.names.explain(e))?
            }
            false => tensor,
        };
        tensors.push((name, without_groups(tensor).map_err(|e| session.names.explain(e))?));
    }
    session.save_npz(args.output.path(), tensors)
}

/// The tensor without its first axis, where there is one group.
fn without_groups<T: Element>(tensor: Tensor<T>) -> convmat::Result<Tensor<T>> {
    match tensor.shape().to_vec().as_slice() {
        [1, rest @ ..] => tensor.reshape(rest),
        _ => Ok(tensor),
    }
}
