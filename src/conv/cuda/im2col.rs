//! Patches of all taps and one matrix product: `y = W·A`, `dx = fold(Wᵀ·dy)`, `dW = dy·Aᵀ`.

use super::lowering::{Block, Lowering};
use crate::conv::problem::Problem;
use crate::device::cuda::{DeviceSlice, DeviceSliceMut};
use crate::element::Element;
use crate::error::Result;
use crate::fold;
use crate::unfold::Call;

pub(super) fn lowering(p: &Problem) -> Lowering<'_> {
    Lowering::new(p, vec![Block { maps: p.axes.clone(), tap: [0; 3] }])
}

/// Folds the products of some images.
pub(super) fn land<T: Element>(
    p: &Problem,
    images: usize,
    products: DeviceSlice<'_, T>,
    target: DeviceSliceMut<'_, T>,
) -> Result<()> {
    let call = Call {
        layout: p.layout,
        axes: p.axes.clone(),
        batch: images,
        channels: p.channels,
        groups: p.groups,
    };
    fold::cuda::fold_now(&call, products, target, false)
}
