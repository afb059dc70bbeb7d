//! `convmat covariance`.

use convmat::{
    CovarianceOptions, Element, PlanOptions, Tensor, Update, WeightSharing, with_axes, with_dtype,
};

use super::report_geometry;
use crate::args::{CovarianceArgs, Scale};
use crate::failure::Failure;
use crate::session::{Operand, Session, check_writable};

pub fn run(args: &CovarianceArgs, session: &mut Session) -> Result<(), Failure> {
    check_writable(args.output.path())?;
    let x = session.load("input", "X", &args.x)?;
    let (dtype, axes) = (x.dtype()?, x.spatial_axes()?);
    with_dtype!(dtype, T => with_axes!(axes, D => typed::<T, D>(args, session, x)))
}

fn typed<T: Element, const D: usize>(
    args: &CovarianceArgs,
    session: &mut Session,
    x: Operand,
) -> Result<(), Failure> {
    let conv = args.geometry.conv::<D>(args.kernel.resolve("--kernel")?)?;
    let explain = |e| session.names.explain(e);
    let split = args.geometry.layout.split_activation::<D>("input", x.shape());
    let (batch, _, size) = split.map_err(explain)?;
    let geometry = conv.bind(size).map_err(explain)?;
    report_geometry(session, &args.geometry, &geometry, None)?;
    let (examples, positions) = (batch as f64, geometry.positions() as f64);
    let scale = match (args.scale, args.mode) {
        (Scale::Sum, _) => 1.0,
        (Scale::Mean, _) if batch == 0 => {
            let message = format!("{} has no examples to take a mean of", x.label());
            return Err(Failure::input(message));
        }
        (Scale::Mean, WeightSharing::Expand) => 1.0 / (examples * positions),
        (Scale::Mean, WeightSharing::Reduce) => 1.0 / (examples * positions * positions),
    };
    let x = x.into_tensor::<T>(session)?;
    let device = session.device.clone();
    let (explanation, covariance) = session.compute("summing products of patches", || {
        let (wanted, plan) = (CovarianceOptions::new().bias(args.bias), PlanOptions::new());
        let wanted = wanted.sharing(args.mode);
        let plan = conv.plan_covariance::<T, T::Acc>(&device, x.shape(), wanted, plan)?;
        let mut covariance = Tensor::zeros(&device, plan.result_shape())?;
        plan.run(&x, Update::replace(scale), &mut covariance, &mut plan.make_workspace()?)?;
        let covariance = match *covariance.shape() {
            [1, rows, columns] => covariance.reshape(&[rows, columns])?,
            _ => covariance,
        };
        Ok((plan.explanation().clone(), covariance))
    })?;
    session.planned(&explanation);
    session.report.set("bias", args.bias);
    session.report.set("mode", args.mode.to_string());
    session.report.set("scale", if args.scale == Scale::Sum { "sum" } else { "mean" });
    drop(x);
    session.save("covariance", &args.output, covariance)
}
