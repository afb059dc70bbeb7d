//! What Golub–Kahan bidiagonalisation from one start leaves of an operator.

/// An upper bidiagonal matrix B with A·V = U·B and Aᵀ·U = V·Bᵀ but for what couples the last.
#[derive(Debug, Default)]
pub(super) struct Bidiagonal {
    pub diagonal: Vec<f64>,
    /// Right of each of the diagonal. The last is outside of B and couples the vector that would come next.
    pub above: Vec<f64>,
}

impl Bidiagonal {
    /// What couples the vector that would come next.
    pub(super) fn coupling(&self) -> f64 {
        self.above.last().copied().unwrap_or(0.0)
    }

    /// The largest entry: about the norm, which is no smaller.
    pub(super) fn scale(&self) -> f64 {
        self.diagonal.iter().chain(&self.above).copied().fold(0.0, f64::max)
    }
}
