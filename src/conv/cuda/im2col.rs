//! Patches of all taps and one matrix product: `y = W·A`, `dx = fold(Wᵀ·dy)`, `dW = dy·Aᵀ`.

use super::lowering::{Block, Lowering};
use crate::conv::problem::Problem;

pub(super) fn lowering(p: &Problem) -> Lowering<'_> {
    Lowering::new(p, vec![Block { maps: p.axes.clone(), tap: [0; 3] }])
}
