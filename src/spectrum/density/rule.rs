//! Quadratures of a probe's weights on the singular values: sums, and how much lies below a number.

use faer::Mat;

use super::super::bidiagonal::Bidiagonal;
use super::super::small::decompose;
use super::super::without_noise;
use crate::element::Accumulator;
use crate::error::Result;
use crate::memory::try_zeroed;

/// A node that is a singular value to within this share of a bin stays in its place.
const CONVERGED: f64 = 0.1;

/// A node that outweighs both neighbours together by this factor is a multiple value: it stays in its place.
const HEAVY: f64 = 2.0;

/// Nodes with weights that add up to 1.
pub(super) struct Rule {
    /// Ascending.
    nodes: Vec<f64>,
    weights: Vec<f64>,
    /// Some singular value is as near as that.
    residuals: Vec<f64>,
    /// Whether they are the probe's weights themselves, and not a quadrature of them.
    exact: bool,
}

/// Of a probe's weight, how much lies below each of some numbers.
pub(super) struct Shares {
    pub estimated: Vec<f64>,
    /// What it is at least and at most.
    pub bounds: Vec<[f64; 2]>,
}

impl Rule {
    /// The Gauss rule, exact for polynomials in σ² of a degree below twice the number of nodes. Of functions
    /// as σ and ln σ it gives no less than the weights do.
    pub(super) fn gauss<T: Accumulator>(probe: &Bidiagonal) -> Result<Rule> {
        Rule::of::<T>(probe, probe.diagonal.len(), 0)
    }

    /// The Gauss–Radau rule that has 0 among its nodes, or that leaves it out where its weight is nothing:
    /// of σ it gives no more than the weights do (Golub & Meurant 2010, section 6.2).
    pub(super) fn radau<T: Accumulator>(probe: &Bidiagonal) -> Result<Rule> {
        // B with one more column has the same Krylov space of Bᵀ·B, one more of it, and no full rank.
        Rule::of::<T>(probe, probe.diagonal.len(), 1)
    }

    /// The Gauss rule of the first half of the steps; of all where they are exact.
    pub(super) fn of_half<T: Accumulator>(probe: &Bidiagonal) -> Result<Rule> {
        let steps = probe.diagonal.len();
        let exact = probe.coupling() == 0.0;
        Rule::of::<T>(probe, if exact { steps } else { steps.div_ceil(2) }, 0)
    }

    /// That of the first `steps` rows of B, and as many columns and `more`.
    fn of<T: Accumulator>(probe: &Bidiagonal, steps: usize, more: usize) -> Result<Rule> {
        let Bidiagonal { diagonal, above } = probe;
        let entry = |i: usize, j: usize| match j.checked_sub(i) {
            Some(0) => diagonal[i],
            Some(1) => above[i],
            _ => 0.0,
        };
        let found = decompose(Mat::from_fn(steps, steps + more, entry).as_ref())?;
        let mut nodes = found.values;
        without_noise::<T>(&mut nodes);
        let mut weights: Vec<f64> = (0..steps).map(|k| found.v[(0, k)].powi(2)).collect();
        let last = above[steps - 1];
        let mut residuals: Vec<f64> =
            (0..steps).map(|k| last * found.u[(steps - 1, k)].abs()).collect();
        for descending in [&mut nodes, &mut weights, &mut residuals] {
            descending.reverse();
        }
        Ok(Rule { nodes, weights, residuals, exact: last == 0.0 })
    }

    pub(super) fn largest(&self) -> f64 {
        self.nodes.last().copied().unwrap_or(0.0)
    }

    pub(super) fn least(&self) -> f64 {
        self.nodes.first().copied().unwrap_or(0.0)
    }

    /// The mean of a function of the singular values, with the probe's weights.
    pub(super) fn sum(&self, of: impl Fn(f64) -> f64) -> f64 {
        self.nodes.iter().zip(&self.weights).map(|(&node, weight)| weight * of(node)).sum()
    }

    /// The shares below each of the edges, which ascend with one distance: 0 at the first and all at the
    /// last.
    ///
    /// Of the weight below node k there is at least what the nodes before it have, and at most up to it that
    /// and its own (Chebyshev, Markov & Stieltjes). The estimate lies between: it spreads a node's weight
    /// over a cell that ends midway to the next node.
    pub(super) fn shares(&self, edges: &[f64]) -> Result<Shares> {
        let cells = self.cells(edges[1] - edges[0]);
        let total: f64 = self.weights.iter().sum();
        let mut estimated: Vec<f64> = try_zeroed("the bins", edges.len())?;
        let mut bounds = vec![[0.0, 1.0]; edges.len()];
        let last = edges.len() - 1;
        for (at, &edge) in edges.iter().enumerate().take(last).skip(1) {
            let cells = cells.iter().zip(&self.weights);
            estimated[at] =
                cells.map(|(cell, weight)| weight * cell.below(edge)).sum::<f64>() / total;
            let before = self.nodes.partition_point(|&node| node < edge);
            let sum = |nodes: usize| self.weights[..nodes].iter().sum::<f64>() / total;
            bounds[at] = match self.exact {
                true => [sum(before); 2],
                false => [before.saturating_sub(1), (before + 1).min(self.nodes.len())].map(sum),
            };
        }
        (estimated[last], bounds[0], bounds[last]) = (1.0, [0.0; 2], [1.0; 2]);
        Ok(Shares { estimated, bounds })
    }

    /// Over what each node's weight is spread, for bins of this width.
    fn cells(&self, bin: f64) -> Vec<Cell> {
        let (nodes, weights) = (&self.nodes, &self.weights);
        let cell = |k: usize| {
            let node = nodes[k];
            let before = k.checked_sub(1).map(|before| (node - nodes[before]) / 2.0);
            let after = nodes.get(k + 1).map(|after| (after - node) / 2.0);
            let weight = |k: Option<usize>| k.and_then(|k| weights.get(k)).copied().unwrap_or(0.0);
            let beside = weight(k.checked_sub(1)) + weight(Some(k + 1));
            if self.residuals[k] <= CONVERGED * bin || weights[k] > HEAVY * beside {
                return Cell { node, before: 0.0, after: 0.0 };
            }
            // The outermost reach as far on one side as on the other, but none below 0.
            let (before, after) = match (before, after) {
                (Some(before), Some(after)) => (before, after),
                (Some(before), None) => (before, before),
                (None, Some(after)) => (after.min(node), after),
                (None, None) => (0.0, 0.0),
            };
            Cell { node, before, after }
        };
        (0..nodes.len()).map(cell).collect()
    }
}

/// Half of a node's weight is spread evenly before it, and half after it.
struct Cell {
    node: f64,
    before: f64,
    after: f64,
}

impl Cell {
    /// The share of it that lies below a number.
    fn below(&self, edge: f64) -> f64 {
        let Cell { node, before, after } = *self;
        match edge > node {
            true if edge >= node + after => 1.0,
            true => 0.5 + 0.5 * (edge - node) / after,
            false if edge <= node - before => 0.0,
            false => 0.5 - 0.5 * (node - edge) / before,
        }
    }
}
