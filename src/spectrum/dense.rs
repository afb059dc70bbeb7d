//! Spectra by decomposing dense matrices on the host: of a layer, group by group.

use faer::Mat;

use super::small::{decompose, singular_values};
use crate::element::Accumulator;
use crate::error::{Error, Result};
use crate::geometry::{ravel, unravel};
use crate::operator::layer::Layer;
use crate::operator::{Expression, Operator};

/// Elements of a matrix that is decomposed, at most: 128 MiB, and minutes for a square one.
pub(super) const LARGEST: usize = 1 << 24;

/// Up to so many it takes less time than an iteration.
pub(super) const SMALL: usize = 1 << 20;

/// All values, descending, and the leading triplets in rows of `f64`.
pub(super) struct Dense {
    pub all: Vec<f64>,
    pub u: Vec<f64>,
    pub v: Vec<f64>,
}

/// Elements of the largest matrix that has to be decomposed.
pub(super) fn elements<T: Accumulator>(operator: &Operator<T>) -> usize {
    let [m, n] = operator.shape();
    let blocks = blocks(operator);
    (m / blocks).saturating_mul(n / blocks)
}

/// Independent blocks on the diagonal, all of one shape.
fn blocks<T: Accumulator>(operator: &Operator<T>) -> usize {
    match operator.expression() {
        Expression::Layer(layer, _) => layer.groups,
        Expression::Adjoint(inner) => blocks(inner),
        _ => 1,
    }
}

/// Fails for a matrix that is too large to decompose.
pub(super) fn check<T: Accumulator>(operator: &Operator<T>) -> Result<()> {
    let elements = elements(operator);
    if elements <= LARGEST {
        return Ok(());
    }
    let ([m, n], blocks) = (operator.shape(), blocks(operator));
    let reason = format!(
        "the dense matrix has {m} x {n} elements ({} x {} in each of {blocks} blocks), of which at most \
         {LARGEST} are decomposed; lanczos and, for circulant layers, circular need no matrix",
        m / blocks,
        n / blocks,
    );
    Err(Error::invalid("method", "dense", reason))
}

/// All values, and `count` leading triplets if vectors are wanted.
pub(super) fn spectrum<T: Accumulator>(
    operator: &Operator<T>,
    count: usize,
    vectors: bool,
) -> Result<Dense> {
    check(operator)?;
    let [m, n] = operator.shape();
    let matrices = matrices(operator)?;
    let groups = matrices.len().max(1);
    let (rows, columns) = (m / groups, n / groups);
    if !vectors {
        let mut all = Vec::new();
        for matrix in &matrices {
            all.extend(singular_values(matrix.as_ref())?);
        }
        all.sort_by(|a, b| b.total_cmp(a));
        return Ok(Dense { all, u: Vec::new(), v: Vec::new() });
    }
    let mut found = Vec::new();
    for matrix in &matrices {
        found.push(decompose(matrix.as_ref())?);
    }
    let mut order: Vec<(usize, usize)> = found
        .iter()
        .enumerate()
        .flat_map(|(group, d)| (0..d.values.len()).map(move |i| (group, i)))
        .collect();
    order.sort_by(|a, b| found[b.0].values[b.1].total_cmp(&found[a.0].values[a.1]));
    let all = order.iter().map(|&(group, i)| found[group].values[i]).collect();
    let count = count.min(order.len());
    let (mut u, mut v) = (vec![0.0; count * m], vec![0.0; count * n]);
    for (at, &(group, i)) in order.iter().take(count).enumerate() {
        (0..rows).for_each(|r| u[at * m + group * rows + r] = found[group].u[(r, i)]);
        (0..columns).for_each(|c| v[at * n + group * columns + c] = found[group].v[(c, i)]);
    }
    Ok(Dense { all, u, v })
}

/// The operator's blocks.
fn matrices<T: Accumulator>(operator: &Operator<T>) -> Result<Vec<Mat<f64>>> {
    match operator.expression() {
        Expression::Layer(layer, _) => (0..layer.groups).map(|g| block(layer, g)).collect(),
        Expression::Adjoint(inner) => {
            Ok(matrices(inner)?.into_iter().map(|m| m.transpose().to_owned()).collect())
        }
        _ => {
            let [m, n] = operator.shape();
            let dense = operator.to_dense()?.into_vec()?;
            if let Some(at) = dense.iter().position(|value| !value.to_f64().is_finite()) {
                let name = format!("the operator's element ({}, {})", at / n, at % n);
                return Err(Error::invalid(name, dense[at], "every element must be finite"));
            }
            Ok(vec![Mat::from_fn(m, n, |i, j| dense[i * n + j].to_f64())])
        }
    }
}

/// The matrix of one group of a layer.
fn block(layer: &Layer, group: usize) -> Result<Mat<f64>> {
    let axes = &layer.axes;
    let (inputs, outputs, taps) = (axes.input_extents(), axes.output_extents(), axes.taps());
    let (to, from) = (layer.outputs_per_group(), layer.channels_per_group());
    let (positions, sources) = (axes.outputs(), axes.inputs());
    let mut matrix = Mat::<f64>::zeros(to * positions, from * sources);
    for o in 0..positions {
        let at = unravel(o, outputs);
        for (tap, k) in axes.each_tap().enumerate() {
            let source = |axis: usize| axes[axis].source(at[axis], k[axis]);
            let (Some(d), Some(h), Some(w)) = (source(0), source(1), source(2)) else { continue };
            let i = ravel([d, h, w], inputs);
            for co in 0..to {
                for ci in 0..from {
                    let weight = ((group * to + co) * from + ci) * taps + tap;
                    matrix[(co * positions + o, ci * sources + i)] += layer.weight[weight];
                }
            }
        }
    }
    Ok(if layer.transposed { matrix.transpose().to_owned() } else { matrix })
}
