//! `convmat conv`.

use convmat::{Conv, Element, PlanOptions, Tensor, with_axes, with_dtype};

use super::report_geometry;
use crate::args::ConvArgs;
use crate::failure::Failure;
use crate::session::{Operand, Session, check_writable, common_dtype};

struct Operands {
    x: Operand,
    w: Operand,
    bias: Option<Operand>,
}

pub fn run(args: &ConvArgs, session: &mut Session) -> Result<(), Failure> {
    check_writable(args.output.path())?;
    let x = session.load("input", "X", &args.x)?;
    let w = session.load_weight(&args.w)?;
    let bias = session.load_optional("bias", "--bias", args.bias.as_ref())?;
    let dtype = common_dtype(&[Some(&x), Some(&w), bias.as_ref()])?;
    let axes = x.spatial_axes()?;
    let operands = Operands { x, w, bias };
    with_dtype!(dtype, T => with_axes!(axes, D => typed::<T, D>(args, session, operands)))
}

fn typed<T: Element, const D: usize>(
    args: &ConvArgs,
    session: &mut Session,
    operands: Operands,
) -> Result<(), Failure> {
    let Operands { x, w, bias } = operands;
    let kernel = args.geometry.kernel_of::<D>(&w, args.kernel.as_ref())?;
    let conv = args.geometry.conv(kernel)?;
    let extra = args.transposed.resolve::<D>()?;
    let shape = output_shape(args, session, &conv, extra, &x, &w)?;
    let x = x.into_tensor::<T>(session)?;
    let w = w.into_tensor::<T>(session)?;
    let bias = bias.map(|b| b.into_tensor::<T>(session)).transpose()?;
    let device = session.device.clone();
    let options = PlanOptions::new().algorithm(args.algorithm);
    let (xs, ws, has_bias) = (x.shape(), w.shape(), bias.is_some());
    let (explanation, y) = session.compute("convolving", || {
        let mut y = Tensor::zeros(&device, &shape)?;
        let explanation = match extra {
            Some(extra) => {
                let plan = conv.plan_transposed::<T>(&device, xs, ws, has_bias, extra, options)?;
                plan.run(&x, &w, &bias, &mut y, &mut plan.make_workspace()?)?;
                plan.explanation().clone()
            }
            None => {
                let plan = conv.plan_forward::<T>(&device, xs, ws, has_bias, options)?;
                plan.run(&x, &w, &bias, &mut y, &mut plan.make_workspace()?)?;
                plan.explanation().clone()
            }
        };
        Ok((explanation, y))
    })?;
    session.planned(&explanation);
    session.report.row("algorithm", args.algorithm);
    session.report.set("algorithm", args.algorithm.to_string());
    session.save("y", &args.output, y)
}

/// Shape of the result. The operands are not checked yet: the library refuses wrong ones later.
fn output_shape<const D: usize>(
    args: &ConvArgs,
    session: &mut Session,
    conv: &Conv<D>,
    extra: Option<[usize; D]>,
    x: &Operand,
    w: &Operand,
) -> Result<Vec<usize>, Failure> {
    let layout = args.geometry.layout;
    let explain = |e| session.names.explain(e);
    let (batch, _, size) = layout.split_activation::<D>("input", x.shape()).map_err(explain)?;
    let (outputs, inputs, _) = layout.split_weight::<D>("weight", w.shape()).map_err(explain)?;
    let (geometry, channels, extents) = match extra {
        None => {
            let geometry = conv.bind(size).map_err(explain)?;
            (geometry, outputs, geometry.output())
        }
        Some(extra) => {
            let geometry = conv.bind_transposed(size, extra).map_err(explain)?;
            (geometry, inputs.saturating_mul(args.geometry.groups), geometry.input())
        }
    };
    report_geometry(session, &args.geometry, &geometry, extra)?;
    Ok(layout.activation_shape(batch, channels, &extents))
}
