//! Which gradients of single examples, and what clipping gives.

use crate::element::Element;
use crate::tensor::Tensor;

/// Which layer the gradients of single examples are of: by default a convolution without a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PerExampleOptions {
    pub(crate) bias: bool,
    pub(crate) transposed: bool,
}

impl PerExampleOptions {
    /// Of a convolution without a bias.
    pub fn new() -> Self {
        PerExampleOptions::default()
    }

    /// Whether the layer has a bias: its gradients are the matrices' last columns.
    pub fn bias(self, bias: bool) -> Self {
        PerExampleOptions { bias, ..self }
    }

    /// Whether the layer is [`crate::Conv::transposed`]: `x` then is what that reads, and `dy` the gradient
    /// of what it writes, whose extents give the output padding.
    pub fn transposed(self, transposed: bool) -> Self {
        PerExampleOptions { transposed, ..self }
    }
}

/// What [`crate::Conv::clipped_gradient`] finds.
#[derive(Clone, Debug)]
pub struct ClippedGradient<F: Element> {
    /// The sum over the examples of their gradients, each scaled to a norm of at most the limit:
    /// `[g, O/g, d]`.
    pub gradient: Tensor<F>,
    /// The norms of the examples' gradients before that, `[N]`.
    pub norms: Tensor<F>,
}
