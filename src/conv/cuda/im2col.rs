//! Patches of all taps and one matrix product: `y = W·A`, `dx = fold(Wᵀ·dy)`, `dW = dy·Aᵀ`.

use super::lowering::{Block, Lowering};
use crate::conv::problem::Problem;
use crate::device::cuda::{DeviceSlice, DeviceSliceMut};
use crate::element::Element;
use crate::error::Result;
use crate::fold;

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
    let counts = [images, p.channels, p.groups];
    fold::cuda::fold(p.layout, &p.axes, counts, products, target, false)
}
