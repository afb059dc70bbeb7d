//! What plans do, counted, to choose between them.

/// What a plan does.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    /// Multiplications with an addition, of whole vectors.
    pub products: f64,
    /// Elements that are packed, or written to the matrix.
    pub moves: f64,
}

/// How many products take as long as an element that is moved.
const MOVE: f64 = 40.0;

impl Cost {
    /// In products.
    pub fn total(&self) -> f64 {
        self.products + MOVE * self.moves
    }
}
