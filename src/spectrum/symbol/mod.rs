//! The symbol of a layer: the small matrix that it is at one frequency.
//!
//! On an axis with stride s and dilation d, taps k and k' reach inputs of the same residue modulo s exactly
//! when they agree modulo τ = s/gcd(s, d): the taps of one such class form a convolution of their own, with
//! stride 1, over the inputs of that residue. At frequency f the layer is therefore the matrix
//! `S(f)[o, (class, c)] = Σ W[o, c, k]·e^(2πi·f·q(k))`, the sum over the taps k of the class, and the
//! singular values of the layer are those of these matrices. q counts outputs: on a torus it is
//! `(k·d − low − residue)/s`. Over the infinite grid it may be counted in steps of τ·d/s, as a supremum over
//! all frequencies is the same however fast they are run through.

#[cfg(test)]
pub(super) mod tests;

use std::f64::consts::TAU;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par, c64};

use crate::error::{Error, Result, checked_product};
use crate::geometry::{AxisMap, gcd, ravel, unravel};
use crate::memory::try_with_capacity;
use crate::operator::layer::Layer;

/// A frequency on each axis: f of n stands for the phase 2π·f/n, so that products with it stay exact.
pub(super) type Frequency = [usize; 3];

/// Bytes that a block of symbols takes, about: it is made by one product and should stay in a cache.
const BLOCK_BYTES: usize = 1 << 20;

/// The taps of one class on one axis.
#[derive(Clone, Debug)]
struct AxisClass {
    /// What the inputs that they reach are modulo the stride.
    residue: usize,
    taps: Vec<AxisTap>,
}

#[derive(Clone, Copy, Debug)]
struct AxisTap {
    tap: usize,
    /// How many outputs (or, over the infinite grid, steps) further on its input lies.
    shift: i64,
}

/// The taps of one class on all axes, and the columns of the symbol that they make.
#[derive(Clone, Debug)]
struct Class {
    residue: [usize; 3],
    shifts: Vec<[i64; 3]>,
    /// Where the weights of the class begin within a group's.
    start: usize,
}

/// All symbols of a layer, at any frequency. Those of its groups are matrices of their own.
#[derive(Clone, Debug)]
pub(super) struct Symbol {
    pub groups: usize,
    /// Rows: output channels of a group.
    pub rows: usize,
    /// Input channels of a group.
    pub channels: usize,
    classes: Vec<Class>,
    /// Of each group and class, `[taps][channels][rows]`, divided by `scale`: so that no square overflows.
    weight: Vec<c64>,
    /// Weights of one group.
    group_len: usize,
    /// A power of two by which the symbols are to be multiplied.
    pub scale: f64,
    /// For each axis, the largest difference of two shifts within a class.
    pub span: [usize; 3],
}

/// Which columns a symbol has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Columns {
    /// Those of inputs that some tap reads.
    Read,
    /// Also those of inputs of residues that none reads, which are zero.
    All,
}

impl Symbol {
    /// Over the infinite grid.
    pub(super) fn infinite(layer: &Layer) -> Result<Self> {
        let classes = layer.axes.each_ref().map(|map| {
            let class = |first: usize| AxisClass {
                residue: first * map.dilation() % map.stride(),
                taps: (first..map.taps())
                    .step_by(tap_step(map))
                    .zip(0..)
                    .map(|(tap, shift)| AxisTap { tap, shift })
                    .collect(),
            };
            (0..tap_step(map).min(map.taps())).map(class).collect::<Vec<_>>()
        });
        Self::new(layer, &classes)
    }

    /// On the torus of a layer whose axes are `low` padded and wrap around, the strides dividing them.
    pub(super) fn torus(layer: &Layer, low: [i64; 3], columns: Columns) -> Result<Self> {
        let classes = std::array::from_fn(|axis| {
            let map = &layer.axes[axis];
            let stride = map.stride() as i64;
            let position = |tap: usize| (tap * map.dilation()) as i64 - low[axis];
            let class = |residue: usize| {
                let reached =
                    (0..map.taps()).filter(|&k| position(k).rem_euclid(stride) == residue as i64);
                let taps =
                    reached.map(|tap| AxisTap { tap, shift: position(tap).div_euclid(stride) });
                AxisClass { residue, taps: taps.collect() }
            };
            let kept = |class: &AxisClass| columns == Columns::All || !class.taps.is_empty();
            (0..map.stride()).map(class).filter(kept).collect::<Vec<_>>()
        });
        Self::new(layer, &classes)
    }

    fn new(layer: &Layer, by_axis: &[Vec<AxisClass>; 3]) -> Result<Self> {
        let (rows, channels) = (layer.outputs_per_group(), layer.channels_per_group());
        let counts = by_axis.each_ref().map(Vec::len);
        let (extents, all_taps) = (layer.axes.tap_extents(), layer.axes.taps());
        checked_product("the columns of a symbol", &[rows, channels, counts.iter().product()])?;
        let mut classes = try_with_capacity("the classes of taps", counts.iter().product())?;
        let mut numbers: Vec<usize> = Vec::new();
        let mut start = 0;
        for at in 0..counts.iter().product() {
            let at = unravel(at, counts);
            let class: [&AxisClass; 3] = std::array::from_fn(|axis| &by_axis[axis][at[axis]]);
            let [d, h, w] = class.map(|class| &class.taps[..]);
            let each =
                d.iter().flat_map(|d| h.iter().flat_map(move |h| w.iter().map(move |w| [d, h, w])));
            let (shifts, taps): (Vec<_>, Vec<_>) = each
                .map(|taps| (taps.map(|tap| tap.shift), ravel(taps.map(|tap| tap.tap), extents)))
                .unzip();
            let residue = class.map(|class| class.residue);
            classes.push(Class { residue, shifts, start });
            start += taps.len() * rows * channels;
            numbers.extend(taps);
        }
        let span = by_axis.each_ref().map(|classes| {
            let span = |class: &AxisClass| {
                let ends = (class.taps.first(), class.taps.last());
                if let (Some(a), Some(b)) = ends { (b.shift - a.shift) as usize } else { 0 }
            };
            classes.iter().map(span).max().unwrap_or(0)
        });
        let scale = power_of_two(layer.weight.iter().fold(0f64, |max, w| max.max(w.abs())));
        let mut weight = try_with_capacity("the weights of a symbol", start * layer.groups)?;
        for group in layer.weight.chunks_exact(rows * channels * all_taps) {
            for tap in &numbers {
                let element = |c: usize, o: usize| group[(o * channels + c) * all_taps + tap];
                let each = (0..channels).flat_map(|c| (0..rows).map(move |o| (c, o)));
                weight.extend(each.map(|(c, o)| c64::new(element(c, o) / scale, 0.0)));
            }
        }
        let groups = layer.groups;
        Ok(Symbol { groups, rows, channels, classes, weight, group_len: start, scale, span })
    }

    /// Columns: (class, channel) in this order.
    pub(super) fn columns(&self) -> usize {
        self.classes.len() * self.channels
    }

    /// Singular values of one symbol.
    pub(super) fn rank(&self) -> usize {
        self.rows.min(self.columns())
    }

    /// For each class, the residues of its inputs modulo the strides.
    pub(super) fn residues(&self) -> impl ExactSizeIterator<Item = [usize; 3]> {
        self.classes.iter().map(|class| class.residue)
    }

    /// Elements of a symbol.
    pub(super) fn len(&self) -> usize {
        self.rows * self.columns()
    }

    /// How many symbols are best made at once.
    pub(super) fn block(&self) -> usize {
        (BLOCK_BYTES / (size_of::<c64>() * self.len().max(1))).clamp(1, 64)
    }

    /// Multiplications that making a symbol takes.
    pub(super) fn work(&self) -> f64 {
        self.group_len as f64
    }

    /// The phases of all taps at some frequencies of a grid, the same for all groups.
    pub(super) fn phases(&self, frequencies: &[Frequency], extents: [usize; 3]) -> Result<Phases> {
        let taps: usize = self.classes.iter().map(|class| class.shifts.len()).sum();
        let len = checked_product("the phases of taps", &[taps, frequencies.len()])?;
        let mut phases = try_with_capacity("the phases of taps", len)?;
        for class in &self.classes {
            for frequency in frequencies {
                phases.extend(class.shifts.iter().map(|shift| phase(*frequency, *shift, extents)));
            }
        }
        Ok(Phases { count: frequencies.len(), phases })
    }

    /// The symbols of a group at these phases, one after the other, each column by column and divided by
    /// `scale`.
    pub(super) fn at(&self, group: usize, phases: &Phases) -> Result<Vec<c64>> {
        let (len, run) = (self.len(), self.rows * self.channels);
        let mut symbols = filled("the symbols of a layer", len * phases.count, c64::ZERO)?;
        let weight = &self.weight[group * self.group_len..][..self.group_len];
        let mut phases_start = 0;
        for (class, row) in self.classes.iter().zip((0..).step_by(run)) {
            let taps = class.shifts.len();
            if taps == 0 {
                continue;
            }
            let of_class = &phases.phases[phases_start..][..taps * phases.count];
            phases_start += of_class.len();
            let all = MatMut::from_column_major_slice_mut(&mut symbols, len, phases.count);
            matmul(
                all.subrows_mut(row, run),
                Accum::Replace,
                MatRef::from_column_major_slice(&weight[class.start..][..run * taps], run, taps),
                MatRef::from_column_major_slice(of_class, taps, phases.count),
                c64::ONE,
                Par::Seq,
            );
        }
        Ok(symbols)
    }
}

/// The phases of all taps at some frequencies: of each class, `[frequencies, taps]`.
pub(super) struct Phases {
    count: usize,
    phases: Vec<c64>,
}

/// From one tap of a class to the next: τ.
fn tap_step(map: &AxisMap) -> usize {
    map.stride() / gcd(map.stride(), map.dilation())
}

/// Outputs from one tap of a class to the next.
pub(super) fn output_step(map: &AxisMap) -> usize {
    map.dilation() / gcd(map.stride(), map.dilation())
}

/// e^(2πi·Σ f·q/n). The products are reduced modulo n before they are rounded.
pub(super) fn phase(frequency: Frequency, shift: [i64; 3], extents: [usize; 3]) -> c64 {
    let turn = |axis: usize| {
        let n = extents[axis] as i128;
        (frequency[axis] as i128 * i128::from(shift[axis])).rem_euclid(n) as f64 / n as f64
    };
    let angle = TAU * (turn(0) + turn(1) + turn(2)).fract();
    c64::new(angle.cos(), angle.sin())
}

/// Of each frequency of a grid and its opposite, at which the symbol of a real layer is the conjugate, the
/// first one; and whether they are two.
pub(super) fn half_of(extents: [usize; 3]) -> Result<Vec<(Frequency, bool)>> {
    let all = checked_product("the frequencies", &extents)?;
    let mut half = try_with_capacity("the frequencies", all / 2 + 4)?;
    half.extend((0..all).filter_map(|at| {
        let frequency = unravel(at, extents);
        let opposite = ravel(opposite(frequency, extents), extents);
        (at <= opposite).then_some((frequency, at < opposite))
    }));
    Ok(half)
}

/// The frequency whose phases are the negative ones.
pub(super) fn opposite(frequency: Frequency, extents: [usize; 3]) -> Frequency {
    std::array::from_fn(|axis| (extents[axis] - frequency[axis]) % extents[axis])
}

/// The power of two just below a number, or what of it can be inverted.
fn power_of_two(number: f64) -> f64 {
    if number == 0.0 { 1.0 } else { number.log2().floor().clamp(-1000.0, 1000.0).exp2() }
}

/// A vector of one value, or [`Error::Allocation`].
pub(super) fn filled<T: Clone>(what: &str, len: usize, value: T) -> Result<Vec<T>> {
    let mut vector = try_with_capacity(what, len)?;
    vector.resize(len, value);
    Ok(vector)
}

/// The error of an iteration that did not converge, which no finite symbol is known to cause.
pub(super) fn not_converged(extents: [usize; 2]) -> Error {
    let [rows, columns] = extents;
    Error::invalid(
        "weight",
        format!("such that a symbol of {rows} x {columns} elements has no decomposition"),
        "the iteration for its singular values did not converge",
    )
}
