//! Second moments of the examples' gradients.

use super::layer::{KfacLayer, Sizes};
use super::matrix::{as_matrix, matrix, product};
use crate::covariance::Update;
use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::tensor::{Tensor, TensorView};

/// `target = decay·target + scale·Σ_n (Q_Gᵀ·∇W_n·Q_A)∘²`, all `[g, O/g, d]`, with ∇W_n the gradient of one
/// example and columns of Q eigenvectors; without a basis (Q_A `[g, d, d]` and Q_G `[g, O/g, O/g]`, on the
/// host), Q is the identity.
///
/// The convolutions run on the operands' device, an example at a time, and the rest on the host.
pub(super) fn rotated_second_moment_into<T: Element, F: Accumulator, const D: usize>(
    layer: &KfacLayer<D>,
    sizes: &Sizes,
    [x, dy]: [&TensorView<'_, T>; 2],
    basis: Option<[&Tensor<F>; 2]>,
    update: Update,
    target: &mut Tensor<F>,
) -> Result<()> {
    let (outputs, rows) = (sizes.outputs, sizes.rows);
    let mut sums = vec![F::ZERO; sizes.groups * outputs * rows];
    for n in 0..x.shape()[0] {
        let example = |view: &TensorView<'_, T>| view.slice_rows(n..n + 1).to_tensor()?.cast::<F>();
        let (x, dy) = (example(x)?, example(dy)?);
        let gradient = layer.gradient(sizes, x.view(), dy.view())?;
        for group in 0..sizes.groups {
            let part = group * outputs * rows..(group + 1) * outputs * rows;
            let squared = |sums: &mut [F], values: &[F]| {
                sums.iter_mut().zip(values).for_each(|(sum, &value)| *sum += value * value);
            };
            let own = &gradient[part.clone()];
            match basis {
                None => squared(&mut sums[part], own),
                Some([input, output]) => {
                    let turned = product(as_matrix(own, outputs, rows), matrix(input, group))?;
                    let left = matrix(output, group).transpose();
                    let turned = product(left, as_matrix(&turned, outputs, rows))?;
                    squared(&mut sums[part], &turned);
                }
            }
        }
    }
    let (decay, scale) = (F::from_f64(update.decay), F::from_f64(update.scale));
    let old = match update.decay == 0.0 {
        true => Vec::new(),
        false => target.view().to_vec()?,
    };
    for (at, sum) in sums.iter_mut().enumerate() {
        let kept = old.get(at).map_or(F::ZERO, |&old| decay * old);
        *sum = kept + scale * *sum;
    }
    target.view_mut().write(&sums)
}
