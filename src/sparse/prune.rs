//! Which entries of a dense weight are kept.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use super::weight::{Pattern, SparseWeight, WHAT};
use crate::device::Device;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::geometry::Conv;
use crate::memory::try_with_capacity;
use crate::tensor::TensorView;

/// Which entries of a dense weight a [`SparseWeight`] keeps. Entries are compared by magnitude; NaN counts
/// as larger than every number, so that it is never lost silently.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pruning {
    /// Those larger in magnitude than this. `Threshold(0.0)` keeps all that are not zero.
    Threshold(f64),
    /// The so many largest in magnitude of the whole weight. Of equal ones, those first in the order of
    /// (output channel, column) are kept.
    TopK(usize),
    /// In every block of `m` consecutive input channels of a group, at one tap and for one output channel,
    /// the `n` largest in magnitude; of equal ones those of the first channels. A last block, where `m` does
    /// not divide the channels, is shorter and keeps `n` of what it has, or all. Zeros are kept where there
    /// are not enough other entries, so that every block has the same number.
    ///
    /// Blocks go along the channels as in Mishra et al., "Accelerating Sparse Deep Neural Networks" (2021),
    /// whatever the layout.
    Pattern {
        /// Entries that are kept of each block.
        n: usize,
        /// Entries of a block.
        m: usize,
    },
}

impl Pruning {
    /// The 2:4 pattern of sparse tensor cores.
    pub const TWO_OF_FOUR: Pruning = Pruning::Pattern { n: 2, m: 4 };
}

/// `threshold T`, `top K` or `N:M`.
impl fmt::Display for Pruning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pruning::Threshold(threshold) => write!(f, "threshold {threshold}"),
            Pruning::TopK(count) => write!(f, "top {count}"),
            Pruning::Pattern { n, m } => write!(f, "{n}:{m}"),
        }
    }
}

/// Reads a pattern, `N:M`.
impl FromStr for Pruning {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once(':').and_then(|(n, m)| n.parse().ok().zip(m.parse().ok()));
        let (n, m) = parts.ok_or_else(|| {
            Error::invalid("pattern", format!("{text:?}"), "expected two numbers, as in 2:4")
        })?;
        check_pattern(n, m)?;
        Ok(Pruning::Pattern { n, m })
    }
}

fn check_pattern(n: usize, m: usize) -> Result<()> {
    if n == 0 || n > m {
        let reason = "of each block at least 1 entry is kept, and at most all of them";
        return Err(Error::invalid("pattern", format!("{n}:{m}"), reason));
    }
    Ok(())
}

impl<T: Element> SparseWeight<T> {
    /// The entries of a dense weight of `conv`, of [`crate::Layout::weight_shape`], that `pruning` keeps.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Invalid`] when it is no weight of this convolution; [`Error::Invalid`] for
    /// a threshold that is negative or NaN, for more entries than there are, and for a pattern that keeps
    /// none or more than all; [`Error::TooLarge`] when 32-bit indices do not suffice;
    /// [`Error::DeviceMismatch`] unless the weight is on the host.
    ///
    /// ```
    /// use convmat::{Conv, Device, Pruning, SparseWeight, Tensor};
    /// let conv = Conv::new([1]);
    /// let dense = Tensor::from_vec(&Device::Cpu, &[1, 4, 1], vec![1f32, -3., 3., 2.])?;
    /// let kept = |pruning| SparseWeight::from_dense(&conv, &dense, pruning)?.to_dense();
    /// assert_eq!(kept(Pruning::TWO_OF_FOUR)?.as_slice().unwrap(), [0., -3., 3., 0.]);
    /// assert_eq!(kept(Pruning::TopK(1))?.as_slice().unwrap(), [0., -3., 0., 0.]);
    /// assert_eq!(kept(Pruning::Threshold(1.))?.as_slice().unwrap(), [0., -3., 3., 2.]);
    /// # Ok::<(), convmat::Error>(())
    /// ```
    pub fn from_dense<'a, const D: usize>(
        conv: &Conv<D>,
        weight: impl Into<TensorView<'a, T>>,
        pruning: Pruning,
    ) -> Result<Self> {
        let weight = weight.into();
        let layout = conv.axis_order();
        let (outputs, inputs, kernel) = layout.split_weight::<D>("weight", weight.shape())?;
        if kernel != conv.kernel_size() {
            let expected = layout.weight_shape(outputs, inputs, &conv.kernel_size());
            let expected = format!("{expected:?}, the convolution's kernel");
            return Err(Error::shape("weight", expected, weight.shape()));
        }
        let pattern = Pattern::empty(conv, outputs, inputs)?;
        let Some(dense) = weight.as_slice() else {
            return Err(Error::DeviceMismatch {
                left: "the dense weight".into(),
                left_device: weight.device().to_string(),
                right: WHAT.into(),
                right_device: Device::Cpu.to_string(),
            });
        };
        match pruning {
            Pruning::Threshold(threshold) => {
                if threshold.is_nan() || threshold < 0.0 {
                    let reason = "it must not be negative";
                    return Err(Error::invalid("threshold", threshold, reason));
                }
                keep(pattern, dense, |value, _| {
                    let magnitude = value.to_f64().abs();
                    magnitude > threshold || magnitude.is_nan()
                })
            }
            Pruning::TopK(count) => {
                let kept = largest(&pattern, dense, count)?;
                keep(pattern, dense, |_, place| kept[place])
            }
            Pruning::Pattern { n, m } => {
                check_pattern(n, m)?;
                let kept = largest_of_blocks(&pattern, dense, n, m)?;
                keep(pattern, dense, |_, place| kept[place])
            }
        }
    }
}

/// The entries for which `keeps(value, number)` holds; they are numbered row by row, stored or not.
fn keep<T: Element>(
    mut pattern: Pattern,
    dense: &[T],
    keeps: impl Fn(T, usize) -> bool,
) -> Result<SparseWeight<T>> {
    let mut values = Vec::new();
    let patch = pattern.patch();
    for row in 0..pattern.outputs {
        for column in 0..patch {
            let value = dense[pattern.dense_index(row, column)];
            if keeps(value, row * patch + column) {
                pattern.columns.push(column as i32);
                values.push(value);
            }
        }
        pattern.end_row()?;
    }
    SparseWeight::assemble(pattern, values)
}

/// Descending magnitudes, NaN first.
fn by_magnitude<T: Element>(a: T, b: T) -> Ordering {
    b.to_f64().abs().total_cmp(&a.to_f64().abs())
}

/// Marks the `count` largest entries.
fn largest<T: Element>(pattern: &Pattern, dense: &[T], count: usize) -> Result<Vec<bool>> {
    let all = dense.len();
    if count > all {
        let reason = format!("the weight has {all} entries");
        return Err(Error::invalid("entries to keep", count, reason));
    }
    let mut kept = marks(all)?;
    let patch = pattern.patch();
    let value = |place: usize| dense[pattern.dense_index(place / patch, place % patch)];
    let mut order: Vec<usize> = try_with_capacity(WHAT, all)?;
    order.extend(0..all);
    if count < all {
        // Places break ties, so that the order is total.
        order.select_nth_unstable_by(count, |&a, &b| {
            by_magnitude(value(a), value(b)).then(a.cmp(&b))
        });
    }
    order[..count].iter().for_each(|&place| kept[place] = true);
    Ok(kept)
}

/// Marks the `n` largest entries of every block of `m` channels.
fn largest_of_blocks<T: Element>(
    pattern: &Pattern,
    dense: &[T],
    n: usize,
    m: usize,
) -> Result<Vec<bool>> {
    let mut kept = marks(dense.len())?;
    let (patch, taps, inputs) = (pattern.patch(), pattern.taps(), pattern.inputs);
    let mut block: Vec<usize> = try_with_capacity(WHAT, m.min(inputs))?;
    for row in 0..pattern.outputs {
        for tap in 0..taps {
            for first in (0..inputs).step_by(m) {
                let channels = first..inputs.min(first.saturating_add(m));
                block.clear();
                block.extend(channels.map(|channel| pattern.column(channel, tap)));
                // Stable: of equal entries the first channel stays in front.
                block.sort_by(|&a, &b| {
                    let value = |column| dense[pattern.dense_index(row, column)];
                    by_magnitude(value(a), value(b))
                });
                block.iter().take(n).for_each(|&column| kept[row * patch + column] = true);
            }
        }
    }
    Ok(kept)
}

fn marks(len: usize) -> Result<Vec<bool>> {
    let mut marks = try_with_capacity(WHAT, len)?;
    marks.resize(len, false);
    Ok(marks)
}
