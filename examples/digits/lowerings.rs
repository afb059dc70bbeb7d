//! One layer lowered in every way, and its gradients.

use std::time::Instant;

use convmat::io::NpzReader;
use convmat::{Device, Tensor};

use crate::network::Layer;
use crate::style::{Style, milliseconds};

/// Anything worse than this against PyTorch's f64 answers is a failure.
const TOLERANCE: f64 = 1e-12;

/// Lowers one layer in every way and compares the results with each other and with PyTorch's.
pub fn compare(layer: &Layer, golden: &mut NpzReader, style: &Style) -> convmat::Result<bool> {
    let Layer { name, conv, size, .. } = layer;
    let mut recorded = |key: &str| golden.read(key)?.convert::<f64>();
    let weight: Tensor<f64> = layer.weight.cast()?;
    let bias: Option<Tensor<f64>> = layer.bias.as_ref().map(Tensor::cast).transpose()?;
    let bias_view = bias.as_ref().map(Tensor::view);

    let x = recorded(&format!("{name}.input"))?;
    let y = conv.forward(&x, &weight, bias_view.clone())?;
    let channels = x.shape()[1];

    // Patches: as PyTorch's, as what convolving with the gathering filter gives, and W·A = y − bias.
    let patches = conv.unfold(&x)?;
    let filter = conv.gathering_filter::<f64>(channels)?;
    let gathered = conv.forward(&x, &filter, None)?.reshape(patches.shape())?;
    let product = patch_product(&weight, &patches, conv.group_count())?;
    let linear = conv.forward(&x, &weight, None)?.reshape(product.shape())?;
    // PyTorch's patches were recorded in f32.
    let rounded = patches.cast::<f32>()?.cast()?;
    let rows = [
        ("patches, gathering filter", distance(&gathered, &patches)),
        ("patches, PyTorch", distance(&rounded, &recorded(&format!("{name}.patches"))?)),
        ("W·patches, forward", distance(&product, &linear)),
    ];
    let mut good =
        rows.map(|(what, error)| style.figure(what, error, TOLERANCE)).iter().all(|&ok| ok);

    // The matrix: M·[x; 1] = y for every image.
    let start = Instant::now();
    let matrix = conv.matrix(&weight, bias_view, *size)?;
    let elapsed = start.elapsed();
    let columns = columns_of_images(&x, bias.is_some())?;
    let produced = matrix.mul_matrix(&columns)?;
    let wanted = columns_of_images(&y, false)?;
    good &= style.figure("‖M·x − y‖ / ‖y‖", distance(&produced, &wanted), TOLERANCE);
    let linear_entries = matrix.nnz() - if bias.is_some() { matrix.rows() } else { 0 };
    let expected = recorded(&format!("{name}.nnz"))?.into_vec()?[0] as usize;
    good &= style.verdict(
        linear_entries == expected,
        &format!("M without bias has {linear_entries} entries; PyTorch: {expected}"),
    );
    println!(
        "    M is {} × {} with {} entries, assembled in {}",
        matrix.rows(),
        matrix.columns(),
        matrix.nnz(),
        milliseconds(elapsed)
    );

    // Forward and backward against PyTorch.
    let dy = recorded(&format!("{name}.grad_output"))?;
    let dx = conv.backward_input(&dy, &weight, *size)?;
    let dw = conv.backward_weight(&x, &dy)?;
    let mut rows = vec![
        ("output, PyTorch", distance(&y, &recorded(&format!("{name}.output"))?)),
        ("grad input, PyTorch", distance(&dx, &recorded(&format!("{name}.grad_input"))?)),
        ("grad weight, PyTorch", distance(&dw, &recorded(&format!("grad.{name}.weight"))?)),
    ];
    if bias.is_some() {
        let db = conv.backward_bias(&dy)?;
        let recorded = recorded(&format!("grad.{name}.bias"))?;
        rows.push(("grad bias, PyTorch", distance(&db, &recorded)));
    }
    for (what, error) in rows {
        good &= style.figure(what, error, TOLERANCE);
    }
    Ok(good)
}

/// The product of weight `[O, C/g, kh, kw]` and patches `[N, C·K, L]`, group by group: `[N, O, L]`.
/// Plain loops, so that the check shares nothing with the crate.
fn patch_product(
    weight: &Tensor<f64>,
    patches: &Tensor<f64>,
    groups: usize,
) -> convmat::Result<Tensor<f64>> {
    let (outputs, row) = (weight.shape()[0], weight.shape()[1..].iter().product::<usize>());
    let &[batch, _, positions] = patches.shape() else { unreachable!("patches have rank 3") };
    let (w, a) = (weight.clone().into_vec()?, patches.clone().into_vec()?);
    let mut y = vec![0.0; batch * outputs * positions];
    for (index, y) in y.chunks_mut(positions).enumerate() {
        let (n, co) = (index / outputs, index % outputs);
        let group = co / (outputs / groups);
        for k in 0..row {
            let a = &a[((n * groups + group) * row + k) * positions..][..positions];
            y.iter_mut().zip(a).for_each(|(y, a)| *y += w[co * row + k] * a);
        }
    }
    Tensor::from_vec(&Device::Cpu, &[batch, outputs, positions], y)
}

/// Images `[N, …]` as the columns of a matrix, with a row of ones below if `with_one`.
fn columns_of_images(images: &Tensor<f64>, with_one: bool) -> convmat::Result<Tensor<f64>> {
    let (count, len) = (images.shape()[0], images.shape()[1..].iter().product::<usize>());
    let data = images.clone().into_vec()?;
    let mut columns: Vec<f64> =
        (0..len * count).map(|e| data[e % count * len + e / count]).collect();
    let ones = if with_one { count } else { 0 };
    columns.extend(std::iter::repeat_n(1.0, ones));
    Tensor::from_vec(&images.device(), &[len + usize::from(with_one), count], columns)
}

/// ‖a − b‖ / ‖b‖.
fn distance(a: &Tensor<f64>, b: &Tensor<f64>) -> f64 {
    assert_eq!(a.len(), b.len());
    let (a, b) = (a.as_slice().unwrap_or_default(), b.as_slice().unwrap_or_default());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}
