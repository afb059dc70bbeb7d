//! Second moments of the examples' gradients.

use super::layer::KfacLayer;
use crate::covariance::Update;
use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::per_example::PerExampleOptions;
use crate::tensor::{OptionalView, Tensor, TensorView};

/// `target = decay·target + scale·Σ_n (Q_Gᵀ·∇W_n·Q_A)∘²`, all `[g, O/g, d]`, with ∇W_n the gradient of one
/// example and columns of Q eigenvectors; without a basis (Q_A `[g, d, d]` and Q_G `[g, O/g, O/g]`, on the
/// host), Q is the identity.
pub(super) fn rotated_second_moment_into<T: Element, F: Accumulator, const D: usize>(
    layer: &KfacLayer<D>,
    [x, dy]: [&TensorView<'_, T>; 2],
    basis: Option<[&Tensor<F>; 2]>,
    update: Update,
    target: &mut Tensor<F>,
) -> Result<()> {
    let on = |q: &Tensor<F>| q.view().to_tensor()?.to_device(&x.device());
    let basis = basis.map(|[q_a, q_g]| Ok::<_, crate::Error>([on(q_a)?, on(q_g)?])).transpose()?;
    let q = |number: usize| OptionalView(basis.as_ref().map(|basis| basis[number].view()));
    let transposed = layer.output_padding().is_some();
    let options = PerExampleOptions::new().bias(layer.has_bias()).transposed(transposed);
    let (x, dy) = (x.clone(), dy.clone());
    layer.conv().rotated_second_moment_into::<T, F>(x, dy, q(0), q(1), options, update, target)
}
