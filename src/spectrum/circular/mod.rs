//! The exact spectrum of a layer that is a circulant: on the torus, every frequency is a block of its own
//! (Sedghi, Gupta & Long 2019, and with strides all aliases of an output frequency together).

mod kernel;
pub(super) mod solver;
#[cfg(test)]
mod tests;

use rayon::prelude::*;

use super::symbol::{Columns, Frequency, Symbol, half_of, phase};
use crate::error::{Error, Result, checked_product};
use crate::geometry::{AxisMap, PaddingMode, ravel, unravel};
use crate::memory::{try_with_capacity, try_zeroed};
use crate::operator::layer::Layer;
pub use kernel::TorusKernel;
use solver::{Accuracy, decompose, values};

/// All singular values of a layer whose padding is circular (or that reads no padding) and whose strides
/// divide its sizes, and what can be made of them.
#[derive(Clone, Debug)]
pub struct CircularSpectrum {
    layer: Layer,
    low: [i64; 3],
    /// All of them, descending.
    values: Vec<f64>,
    /// Those computed: of each group and each half frequency of `grid`, `rank` in descending order.
    computed: Vec<f64>,
    rank: usize,
    /// The frequencies: one on axes where all have the same values.
    grid: [usize; 3],
}

/// Singular values with their singular vectors: `A·right[j] = values[j]·left[j]`.
#[derive(Clone, Debug, PartialEq)]
pub struct CircularTriplets {
    /// Descending.
    pub values: Vec<f64>,
    /// Left vectors, `[values, rows]`: orthonormal, each in (channel, position) order of the layer's result.
    pub left: Vec<f64>,
    /// Right vectors, `[values, columns]`: orthonormal, each in (channel, position) order of its input.
    pub right: Vec<f64>,
}

impl CircularSpectrum {
    /// The spectrum of a circulant layer.
    ///
    /// # Errors
    /// [`Error::Invalid`] names what keeps the layer from being one: the padding mode, a stride that does
    /// not divide the input extent, or an output extent that is not their quotient.
    /// [`Error::Allocation`] and [`Error::TooLarge`] when there are too many values.
    pub(crate) fn new(layer: &Layer, accuracy: Accuracy) -> Result<Self> {
        let low = circulant(layer)?;
        let symbol = Symbol::torus(layer, low, Columns::Read)?;
        let extents = layer.axes.output_extents();
        // Where each class has one tap, another frequency only turns the phases of whole columns.
        let grid = std::array::from_fn(|a| if symbol.span[a] == 0 { 1 } else { extents[a] });
        let (half, shape, rank) = (half_of(grid)?, [symbol.rows, symbol.columns()], symbol.rank());
        let frequencies: Vec<Frequency> = half.iter().map(|&(frequency, _)| frequency).collect();
        let of_block = |block: &[Frequency]| -> Result<Vec<Vec<f64>>> {
            let phases = symbol.phases(block, grid)?;
            let of_group = |group| values(&symbol.at(group, &phases)?, shape, accuracy);
            (0..symbol.groups).map(of_group).collect()
        };
        let parts: Vec<Vec<Vec<f64>>> =
            frequencies.par_chunks(symbol.block()).map(of_block).collect::<Result<_>>()?;
        let mut computed =
            try_with_capacity("the singular values", symbol.groups * half.len() * rank)?;
        for group in 0..symbol.groups {
            let values = parts.iter().flat_map(|part| &part[group]);
            computed.extend(values.map(|value| value * symbol.scale));
        }
        let alike = extents.iter().product::<usize>() / grid.iter().product::<usize>();
        let mut counted = try_with_capacity("the singular values", computed.len())?;
        for (at, &value) in computed.iter().enumerate() {
            let (_, pair) = half[at / rank % half.len()];
            counted.push((value, if pair { 2 * alike } else { alike }));
        }
        counted.par_sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        let [rows, columns] = layer.shape();
        // Those of inputs that nothing reads are left at zero.
        let mut all: Vec<f64> = try_zeroed("the singular values", rows.min(columns))?;
        let each = counted.iter().flat_map(|&(value, count)| std::iter::repeat_n(value, count));
        all.iter_mut().zip(each).for_each(|(all, value)| *all = value);
        Ok(CircularSpectrum { layer: layer.clone(), low, values: all, computed, rank, grid })
    }

    /// All singular values, descending: as many as the smaller dimension of the layer's matrix has.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The natural logarithm of the absolute value of the determinant: the sum of those of the values, −∞
    /// for a singular layer.
    ///
    /// # Errors
    /// [`Error::Shape`] when the layer's matrix is not square.
    pub fn log_determinant(&self) -> Result<f64> {
        let [rows, columns] = self.layer.shape();
        if rows != columns {
            return Err(Error::shape("the layer's matrix", "a square one", &[rows, columns]));
        }
        Ok(self.values.iter().map(|value| value.ln()).sum())
    }

    /// The largest `count` values with real singular vectors.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there are not so many; [`Error::Allocation`] and [`Error::TooLarge`] when
    /// the vectors do not fit in memory.
    pub fn triplets(&self, count: usize) -> Result<CircularTriplets> {
        if count > self.values.len() {
            let reason = format!("the layer has {} singular values", self.values.len());
            return Err(Error::invalid("the number of triplets", count, reason));
        }
        let symbol = Symbol::torus(&self.layer, self.low, Columns::All)?;
        let extents = self.layer.axes.output_extents();
        let mut chosen = self.largest(count, symbol.rank())?;
        // Together by symbol, so that each is decomposed once.
        chosen.sort_unstable_by_key(|c| (c.group, ravel(c.frequency, extents), c.index));
        let symbols: Vec<&[Chosen]> =
            chosen.chunk_by(|a, b| (a.group, a.frequency) == (b.group, b.frequency)).collect();
        let of_symbol = |chosen: &&[Chosen]| self.symbol_triplets(&symbol, chosen);
        let parts: Vec<Vec<Triplet>> = symbols.par_iter().map(of_symbol).collect::<Result<_>>()?;
        let mut all: Vec<Triplet> = parts.into_iter().flatten().collect();
        all.sort_by(|a, b| b.value.total_cmp(&a.value));
        all.truncate(count);
        let join = |of_outputs: bool, len: usize| -> Result<Vec<f64>> {
            let len = checked_product("the singular vectors", &[count, len])?;
            let mut joined = try_with_capacity("the singular vectors", len)?;
            let parts = all.iter().map(|triplet| if of_outputs { &triplet.u } else { &triplet.v });
            parts.for_each(|part| joined.extend_from_slice(part));
            Ok(joined)
        };
        // The adjoint has them the other way round.
        let [rows, columns] = self.layer.shape();
        let (left, right) =
            (join(!self.layer.transposed, rows)?, join(self.layer.transposed, columns)?);
        Ok(CircularTriplets { values: all.iter().map(|t| t.value).collect(), left, right })
    }

    /// The nearest kernel on the whole torus whose layer has no singular value above `limit`: those above
    /// are lowered to it (Sedghi, Gupta & Long 2019). See [`TorusKernel::projected`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for a limit that is negative or not a number; [`Error::Allocation`] and
    /// [`Error::TooLarge`] for a kernel that does not fit in memory.
    pub fn clip(&self, limit: f64) -> Result<TorusKernel> {
        if limit.is_nan() || limit < 0.0 {
            return Err(Error::invalid("limit", limit, "it must be a number, 0 or larger"));
        }
        TorusKernel::new(&self.layer, self.low, |value| value.min(limit))
    }

    /// The nearest kernel on the whole torus whose layer has all singular values 1: the polar factor.
    ///
    /// # Errors
    /// [`Error::Allocation`] and [`Error::TooLarge`] for a kernel that does not fit in memory.
    pub fn nearest_isometry(&self) -> Result<TorusKernel> {
        TorusKernel::new(&self.layer, self.low, |_| 1.0)
    }

    /// Which values of which symbols are the largest: enough for so many real triplets, two from a
    /// frequency that is not its own opposite. `rank` counts also those that are always zero.
    fn largest(&self, count: usize, rank: usize) -> Result<Vec<Chosen>> {
        let extents = self.layer.axes.output_extents();
        let (half, computed) = (half_of(extents)?, half_of(self.grid)?);
        let mut place = try_zeroed("the frequencies", self.grid.iter().product())?;
        for (at, &(frequency, _)) in computed.iter().enumerate() {
            place[ravel(frequency, self.grid)] = at;
            place[ravel(super::symbol::opposite(frequency, self.grid), self.grid)] = at;
        }
        let groups = self.layer.groups;
        let mut all = try_with_capacity("the singular values", groups * half.len() * rank)?;
        for group in 0..groups {
            for &(frequency, pair) in &half {
                let at =
                    place[ravel(std::array::from_fn(|a| frequency[a] % self.grid[a]), self.grid)];
                let start = (group * computed.len() + at) * self.rank;
                let values = &self.computed[start..][..self.rank];
                all.extend((0..rank).map(|index| {
                    let value = values.get(index).copied().unwrap_or(0.0);
                    Chosen { value, group, frequency, pair, index }
                }));
            }
        }
        // A stable sort: of equal values always the same are chosen.
        all.par_sort_by(|a, b| b.value.total_cmp(&a.value));
        let mut found = 0;
        let enough = all.iter().take_while(|chosen| {
            let wanted = found < count;
            found += 1 + usize::from(chosen.pair);
            wanted
        });
        let enough = enough.count();
        all.truncate(enough);
        Ok(all)
    }

    /// The chosen triplets of one symbol, as vectors over the whole torus.
    fn symbol_triplets(&self, symbol: &Symbol, chosen: &[Chosen]) -> Result<Vec<Triplet>> {
        let Some(&Chosen { group, frequency, pair, .. }) = chosen.first() else {
            return Ok(Vec::new());
        };
        let extents = self.layer.axes.output_extents();
        let matrix = symbol.at(group, &symbol.phases(&[frequency], extents)?)?;
        let parts = decompose(&matrix, [symbol.rows, symbol.columns()], !pair)?;
        let wave = Wave::new(&self.layer, symbol, group, frequency)?;
        let mut triplets = Vec::new();
        for &Chosen { index, .. } in chosen {
            let value = parts.values[index] * symbol.scale;
            for imaginary in [false, true].into_iter().take(1 + usize::from(pair)) {
                let u =
                    wave.spread(parts.u.col(index).iter().copied(), imaginary, pair, Side::Output)?;
                let v =
                    wave.spread(parts.v.col(index).iter().copied(), imaginary, pair, Side::Input)?;
                triplets.push(Triplet { value, u, v });
            }
        }
        Ok(triplets)
    }
}

/// One value of one symbol.
#[derive(Clone, Copy, Debug)]
struct Chosen {
    value: f64,
    group: usize,
    frequency: Frequency,
    /// Whether the opposite frequency is another.
    pair: bool,
    index: usize,
}

/// A triplet of the convolution.
struct Triplet {
    value: f64,
    u: Vec<f64>,
    v: Vec<f64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Output,
    Input,
}

/// The plane wave of one frequency over the outputs, and where its values go.
struct Wave<'a> {
    layer: &'a Layer,
    group: usize,
    channels: [usize; 2],
    residues: Vec<[usize; 3]>,
    values: Vec<faer::c64>,
}

impl<'a> Wave<'a> {
    fn new(layer: &'a Layer, symbol: &Symbol, group: usize, frequency: Frequency) -> Result<Self> {
        let extents = layer.axes.output_extents();
        let mut values = try_with_capacity("a singular vector", layer.axes.outputs())?;
        let norm = (layer.axes.outputs() as f64).sqrt();
        let each = (0..layer.axes.outputs()).map(|at| unravel(at, extents).map(|o| o as i64));
        values.extend(each.map(|at| phase(frequency, at, extents) / norm));
        let (channels, residues) = ([symbol.rows, symbol.channels], symbol.residues().collect());
        Ok(Wave { layer, group, channels, residues, values })
    }

    /// The real or imaginary part of the wave times a vector of a symbol, over all channels. Real and
    /// imaginary part of a unit vector that is orthogonal to its conjugate have norm √½ each.
    fn spread(
        &self,
        vector: impl Iterator<Item = faer::c64>,
        imaginary: bool,
        pair: bool,
        side: Side,
    ) -> Result<Vec<f64>> {
        let factor = if pair { std::f64::consts::SQRT_2 } else { 1.0 };
        let (axes, [rows, channels]) = (&self.layer.axes, self.channels);
        let (all, first, extents) = match side {
            Side::Output => (self.layer.outputs, self.group * rows, axes.output_extents()),
            Side::Input => (self.layer.channels, self.group * channels, axes.input_extents()),
        };
        let positions: usize = extents.iter().product();
        let mut spread = try_zeroed("a singular vector", all * positions)?;
        for (at, element) in vector.enumerate() {
            let (channel, residue, stride) = match side {
                Side::Output => (at, [0; 3], [1; 3]),
                Side::Input => {
                    let stride = axes.each_ref().map(AxisMap::stride);
                    (at % channels, self.residues[at / channels], stride)
                }
            };
            let target = &mut spread[(first + channel) * positions..][..positions];
            for (o, &wave) in self.values.iter().enumerate() {
                let o = unravel(o, axes.output_extents());
                let position = std::array::from_fn(|a| o[a] * stride[a] + residue[a]);
                let product = wave * element * factor;
                target[ravel(position, extents)] = if imaginary { product.im } else { product.re };
            }
        }
        Ok(spread)
    }
}

/// The padding in front of each axis of a layer that is a circulant.
///
/// # Errors
/// [`Error::Invalid`] names what keeps it from being one.
pub(super) fn circulant(layer: &Layer) -> Result<[i64; 3]> {
    for (axis, map) in layer.axes.iter().enumerate() {
        let (inputs, outputs, stride) = (map.inputs(), map.outputs(), map.stride());
        // Those in front, which the caller's layer lacks, are circles: none of them is named.
        let name = format!("axis {}", (axis + layer.spatial).saturating_sub(3));
        if inputs % stride != 0 {
            let reason = format!(
                "an exact spectrum needs sizes that the stride divides, and the input extent is {inputs}"
            );
            return Err(Error::invalid(format!("stride on {name}"), stride, reason));
        }
        if outputs * stride != inputs {
            let reason = format!(
                "an exact spectrum needs {} outputs, the input extent {inputs} over the stride {stride}",
                inputs / stride
            );
            return Err(Error::invalid(format!("output extent on {name}"), outputs, reason));
        }
        if !wraps(map) {
            let reason = format!(
                "an exact spectrum needs circular padding, or none; {name} has size {inputs} and \
                 stride {stride}, which would do"
            );
            return Err(Error::invalid("padding mode", map.mode(), reason));
        }
    }
    Ok(layer.axes.each_ref().map(AxisMap::low))
}

/// Whether an axis lies on a circle: its positions wrap around, and outputs are evenly spread over all.
pub(super) fn is_circle(map: &AxisMap) -> bool {
    map.outputs() * map.stride() == map.inputs() && wraps(map)
}

/// Whether positions outside the input, where any is read, are those of the other side.
fn wraps(map: &AxisMap) -> bool {
    map.mode() == PaddingMode::Circular
        || map.mode() == PaddingMode::Zeros && map.inside() == (0..map.padded_extent())
}
