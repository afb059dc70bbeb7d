//! `convmat conv-backward`.

use convmat::{Element, Tensor, with_axes, with_dtype};

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
    let dw = session.compute("gradient by the weight", || {
        let mut dw = Tensor::zeros(&device, w.shape())?;
        conv.backward_weight_into(&x, &dy, &mut dw, algorithm)?;
        Ok(dw)
    })?;
    let dx = session.compute("gradient by the input", || {
        let mut dx = Tensor::zeros(&device, x.shape())?;
        conv.backward_input_into(&dy, &w, &mut dx, algorithm)?;
        Ok(dx)
    })?;
    let db = session.compute("gradient by the bias", || conv.backward_bias(&dy))?;
    session.report.row("algorithm", algorithm);
    session.report.set("algorithm", algorithm.to_string());
    session.save_npz(args.output.path(), vec![("dx", dx), ("dw", dw), ("db", db)])
}
