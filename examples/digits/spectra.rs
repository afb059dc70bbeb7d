//! What a layer is as a linear operator: its singular values beside PyTorch's, and how much it magnifies.

use std::ops::ControlFlow;

use convmat::io::NpzReader;
use convmat::{Method, Progress, SpectrumOptions, Tensor, Top};

use crate::network::Layer;
use crate::style::Style;

/// Parts of the largest singular value by which any may differ from PyTorch's.
const TOLERANCE: f64 = 1e-9;

fn quiet(_: &Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// What is known of the norm of one layer.
pub struct Magnification {
    pub good: bool,
    /// PyTorch's largest singular value.
    norm: f64,
    /// What the norm is certain not to exceed.
    upper: f64,
}

/// All singular values of a layer without its bias, in f64, against PyTorch's of the dense matrix; the largest
/// by iteration; and the bracket of the norm, for which no values are computed.
pub fn compare(
    layer: &Layer,
    golden: &mut NpzReader,
    style: &Style,
) -> convmat::Result<Magnification> {
    let expected = golden.read(&format!("{}.singular_values", layer.name))?;
    let expected = expected.convert::<f64>()?.into_vec()?;
    let weight: Tensor<f64> = layer.weight.cast()?;
    let operator = layer.conv.operator(&weight, layer.size)?;
    let options = SpectrumOptions::new().top(Top::All).vectors(false);
    let all = operator.spectrum(&options, &mut quiet)?;
    let options = SpectrumOptions::new().method(Method::Lanczos);
    let top = operator.spectrum(&options, &mut quiet)?;
    let norm = operator.spectral_norm()?;

    let deviation = |values: &[f64]| {
        let pairs = values.iter().zip(&expected);
        // In this order a value that is not a number is above all others.
        let most = pairs.map(|(value, known)| (value - known).abs()).max_by(f64::total_cmp);
        most.unwrap_or(f64::INFINITY) / expected[0]
    };
    let mut good = style.verdict(
        all.values.len() == expected.len() && top.is_converged(),
        &format!("{} singular values; PyTorch: {}", all.values.len(), expected.len()),
    );
    for (what, found) in [("all values, PyTorch", &all), ("the 6 largest by Lanczos", &top)] {
        good &= style.figure(what, deviation(&found.values), TOLERANCE);
    }
    // An unknown upper end would be no bound.
    let upper = norm.upper.unwrap_or(f64::INFINITY);
    let rounding = 1e-12 * expected[0];
    good &= style.verdict(
        norm.lower <= expected[0] + rounding && expected[0] <= upper + rounding,
        &format!("{:.6} ≤ norm ≤ {upper:.6}; PyTorch: {:.6}", norm.lower, expected[0]),
    );
    if let Some(bound) = &norm.bound {
        println!("    by the {}", bound.replace(", ", ",\n    "));
    }
    if let (Some(upper), Some(chance)) = (norm.probabilistic_upper, norm.failure_probability) {
        println!("    norm ≤ {upper:.6} but for a share of {chance:.0e} of random starts");
    }
    let known = |value: Option<f64>| value.map_or("unknown".into(), |value| format!("{value:.2}"));
    println!(
        "    values from {:.6} to {:.6}, condition number {}",
        all.values[0],
        all.values[all.values.len() - 1],
        known(all.condition_number())
    );
    println!(
        "    stable rank {}, effective rank {}, of {}",
        known(all.stable_rank()),
        known(all.effective_rank()),
        all.values.len()
    );
    Ok(Magnification { good, norm: expected[0], upper })
}

/// How much the layers together can magnify a difference: ReLU between them magnifies nothing.
pub fn magnification(layers: &[Magnification], style: &Style) -> bool {
    let upper: f64 = layers.iter().map(|layer| layer.upper).product();
    let norms: f64 = layers.iter().map(|layer| layer.norm).product();
    style.verdict(
        norms <= upper && upper.is_finite(),
        &format!(
            "all layers magnify by at most {upper:.3}; PyTorch's norms multiply to {norms:.3}"
        ),
    )
}
