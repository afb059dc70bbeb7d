//! The whole spectrum of an operator that is too large to diagonalise, as a histogram with error bars:
//! stochastic Lanczos quadrature (Lin, Saad & Yang 2016; Ubaru, Chen & Saad 2017).
//!
//! A random unit vector v weighs the n singular values by the squares of its components along their singular
//! vectors, 1/n each on average. Golub–Kahan bidiagonalisation from v gives the Gauss quadrature of these
//! weights (`probe`), and quadratures give cumulative numbers and sums over the spectrum (`rule`). What
//! probes differ by is the standard error; what a quadrature with few nodes cannot resolve is apart from it.

mod probe;
mod rule;

use std::ops::ControlFlow;

use super::norm;
use super::options::Progress;
use crate::element::Accumulator;
use crate::error::{Error, Result};
use crate::memory::try_zeroed;
use crate::operator::Operator;
use probe::Probes;
use rule::{Rule, Shares};

/// Steps of a probe, at most: their bidiagonal matrix is decomposed as a dense one.
const MOST_STEPS: usize = 4096;

/// Bins, at most.
const MOST_BINS: usize = 1 << 16;

/// What a caller wishes of a spectral density.
#[derive(Clone, Copy, Debug)]
pub struct DensityOptions {
    probes: usize,
    steps: usize,
    bins: usize,
    seed: u64,
}

impl Default for DensityOptions {
    fn default() -> Self {
        DensityOptions { probes: 8, steps: 60, bins: 30, seed: 0 }
    }
}

impl DensityOptions {
    /// 8 probes of 60 steps, and 30 bins.
    pub fn new() -> Self {
        DensityOptions::default()
    }

    /// Random starts, at least 2: standard errors fall with the square root of their number.
    pub fn probes(self, probes: usize) -> Self {
        DensityOptions { probes, ..self }
    }

    /// Steps of each, at most 4096: nodes of the quadrature. Bins narrower than two of the nodes' distances
    /// show the quadrature's own pattern rather than the spectrum's. A probe takes an application of the
    /// operator and one of its adjoint a step, and memory for as many of the shorter vectors.
    pub fn steps(self, steps: usize) -> Self {
        DensityOptions { steps, ..self }
    }

    /// Bins of the histogram, at most 65536, all of one width.
    pub fn bins(self, bins: usize) -> Self {
        DensityOptions { bins, ..self }
    }

    /// Where random starts come from: the same seed gives the same bytes.
    pub fn seed(self, seed: u64) -> Self {
        DensityOptions { seed, ..self }
    }

    fn check(&self) -> Result<()> {
        if self.probes < 2 {
            let reason = "it must be at least 2, as one has no standard error";
            return Err(Error::invalid("number of probes", self.probes, reason));
        }
        let within = |name: &'static str, value: usize, most: usize| match value {
            1.. if value <= most => Ok(()),
            _ => Err(Error::invalid(name, value, format!("it must be between 1 and {most}"))),
        };
        within("number of steps", self.steps, MOST_STEPS)?;
        within("number of bins", self.bins, MOST_BINS)
    }
}

/// A sum over all singular values, estimated.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Estimate {
    /// The mean over the probes.
    pub value: f64,
    /// Its standard error: the probes' standard deviation over the square root of their number.
    pub standard_error: f64,
    /// How far the quadrature may be off, apart from `standard_error`; 0 where it is exact.
    pub quadrature_error: f64,
}

/// A histogram of all min(m, n) singular values, estimated, and sums over them.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SpectralDensity {
    /// Rows and columns of the operator.
    pub shape: [usize; 2],
    /// The bins' ends, ascending, one more than there are bins: from 0 to just above the largest value that
    /// was found, which is below the norm, if little. To 1 for an operator that is 0.
    pub edges: Vec<f64>,
    /// The expected number of singular values in each bin, which has its lower end and not its upper. They
    /// add up to min(m, n).
    pub counts: Vec<f64>,
    /// The standard error of each count over the probes. What the quadrature cannot resolve is not in it:
    /// see `below`.
    pub standard_errors: Vec<f64>,
    /// For each of `edges` a lower and an upper bound of the number of singular values below it, but for the
    /// probes' deviation: what the quadratures imply whatever the spectrum (Chebyshev, Markov & Stieltjes).
    /// The cumulative sums of `counts` lie between them.
    pub below: Vec<[f64; 2]>,
    /// The sum of the squares of all singular values, which is that of all elements of the matrix.
    pub sum_of_squares: Estimate,
    /// The sum of all singular values. Within the quadrature's error for certain but for the probes'
    /// deviation: it is the middle between a Gauss and a Gauss–Radau rule, which are bounds.
    pub nuclear_norm: Estimate,
    /// ln |det A| of a square operator. `None` for others, and where a probe has seen a value that rounding
    /// does not tell from 0. Too large where small values are not resolved: the quadrature's error is
    /// what the second half of the steps has changed, no bound. It means something where that is small.
    pub log_determinant: Option<Estimate>,
    /// Probes that were taken.
    pub probes: usize,
    /// Vectors that the operator or its adjoint was applied to.
    pub applications: u64,
    /// Whether the caller ended it: with fewer probes, or fewer steps of the last, than were asked for.
    pub interrupted: bool,
}

impl SpectralDensity {
    /// The share of all singular values in each bin: `counts` over min(m, n).
    pub fn shares(&self) -> Vec<f64> {
        let all = self.shape[0].min(self.shape[1]) as f64;
        self.counts.iter().map(|count| count / all).collect()
    }

    /// An estimate of ‖A‖²_F / ‖A‖², the stable rank, with the largest value found for ‖A‖; 0 for an
    /// operator that is 0.
    pub fn stable_rank(&self) -> f64 {
        let largest = self.edges.last().copied().unwrap_or(1.0);
        self.sum_of_squares.value / (largest * largest)
    }
}

impl<T: Accumulator> Operator<T> {
    /// A histogram of all singular values with standard errors, by stochastic Lanczos quadrature (Lin, Saad
    /// & Yang 2016; Ubaru, Chen & Saad 2017), for operators too large for [`crate::Top::All`]. `progress` is
    /// called after each step of some probes, `wanted` and `converged` being probes, and ends it with
    /// `ControlFlow::Break`: what is known by then is returned, marked as it is.
    ///
    /// The weight of a node is spread evenly over a cell, half of it on either side of the node, that ends
    /// midway to the next node. It stays in its place where the node is a singular value to within a tenth
    /// of a bin, or outweighs both neighbours together twice, as multiple values do. Of no smoothing,
    /// Gaussians of several widths, interpolation between nodes and this, this was the nearest to the exact
    /// histograms of most of ten random, structured and rank-deficient circular layers.
    ///
    /// ```
    /// use std::ops::ControlFlow;
    /// use convmat::{Conv, DensityOptions, Device, Tensor};
    /// let weight = Tensor::from_vec(&Device::Cpu, &[1, 1, 3], vec![1.0f64, -2.0, 1.0])?;
    /// let a = Conv::new([3]).padding([1]).operator(&weight, [5000])?;
    /// let options = DensityOptions::new().bins(4);
    /// let density = a.spectral_density(&options, &mut |_| ControlFlow::Continue(()))?;
    /// // Values 4·sin²: a third of all are below 1, and a third above 3.
    /// assert!((density.shares()[0] - 1.0 / 3.0).abs() < 0.02);
    /// let squares = density.sum_of_squares;
    /// assert!((squares.value - 29998.0).abs() < 5.0 * squares.standard_error);
    /// # Ok::<(), convmat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] for options out of range, an empty operator, and elements that are not finite;
    /// what applying fails with.
    pub fn spectral_density(
        &self,
        options: &DensityOptions,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<SpectralDensity> {
        options.check()?;
        let shape = self.shape();
        let all = shape[0].min(shape[1]);
        if all == 0 {
            return Err(norm::empty(shape));
        }
        let DensityOptions { probes, steps, bins, seed } = *options;
        let found = Probes::new(self, probes, steps.min(all), seed).run(progress)?;
        let rules: Vec<Rule> = found.probes.iter().map(Rule::gauss::<T>).collect::<Result<_>>()?;
        let scale = all as f64;

        let largest = rules.iter().map(Rule::largest).fold(0.0, f64::max);
        // Rounding of the edges themselves is to leave the largest below the last.
        let top = if largest > 0.0 { largest * (1.0 + 1e-6) } else { 1.0 };
        let mut edges: Vec<f64> = try_zeroed("the edges of bins", bins + 1)?;
        for (at, edge) in edges.iter_mut().enumerate() {
            *edge = top * (at as f64 / bins as f64);
        }
        let mut counts = Moments::new(bins)?;
        let mut below = vec![[0.0; 2]; bins + 1];
        for rule in &rules {
            let Shares { estimated, bounds } = rule.shares(&edges)?;
            counts.add(estimated.windows(2).map(|ends| scale * (ends[1] - ends[0])));
            for (below, bound) in below.iter_mut().zip(bounds) {
                below.iter_mut().zip(bound).for_each(|(sum, share)| *sum += share);
            }
        }
        let each = scale / rules.len() as f64;
        below.iter_mut().flatten().for_each(|sum| *sum *= each);

        let squares = rules.iter().map(|rule| scale * rule.sum(|value| value * value));
        let sum_of_squares = estimate(squares.map(|value| [value; 2]))?;
        let radau: Vec<Rule> = found.probes.iter().map(Rule::radau::<T>).collect::<Result<_>>()?;
        let sums = rules.iter().zip(&radau);
        let nuclear_norm = estimate(
            sums.map(|(gauss, radau)| [gauss, radau].map(|rule| scale * rule.sum(|value| value))),
        )?;
        let regular = shape[0] == shape[1] && rules.iter().all(|rule| rule.least() > 0.0);
        let log_determinant = match regular {
            true => {
                let half: Vec<Rule> =
                    found.probes.iter().map(Rule::of_half::<T>).collect::<Result<_>>()?;
                let sum = |rule: &Rule| scale * rule.sum(f64::ln);
                let of_all = rules.iter().map(|rule| [sum(rule); 2]);
                let change = rules.iter().zip(&half).map(|(all, half)| sum(half) - sum(all));
                let change = change.sum::<f64>().abs() / rules.len() as f64;
                Some(Estimate { quadrature_error: change, ..estimate(of_all)? })
            }
            false => None,
        };
        let (counts, standard_errors) = counts.finish();
        Ok(SpectralDensity {
            shape,
            edges,
            counts,
            standard_errors,
            below,
            sum_of_squares,
            nuclear_norm,
            log_determinant,
            probes: rules.len(),
            applications: found.applications,
            interrupted: found.interrupted,
        })
    }
}

/// The mean of what each probe gives as a range, by the ranges' middles.
fn estimate(ranges: impl Iterator<Item = [f64; 2]>) -> Result<Estimate> {
    let mut moments = Moments::new(1)?;
    let mut widths = 0.0;
    for [a, b] in ranges {
        moments.add([0.5 * (a + b)].into_iter());
        widths += (a - b).abs();
    }
    let quadrature_error = 0.5 * widths / moments.probes;
    let (means, errors) = moments.finish();
    Ok(Estimate { value: means[0], standard_error: errors[0], quadrature_error })
}

/// Means and standard errors over the probes, updated by each (Welford 1962).
struct Moments {
    probes: f64,
    means: Vec<f64>,
    /// Sums of squares of deviations from the mean.
    deviations: Vec<f64>,
}

impl Moments {
    fn new(len: usize) -> Result<Self> {
        let zeros = || try_zeroed("the bins", len);
        Ok(Moments { probes: 0.0, means: zeros()?, deviations: zeros()? })
    }

    fn add(&mut self, values: impl Iterator<Item = f64>) {
        self.probes += 1.0;
        let both = self.means.iter_mut().zip(&mut self.deviations);
        for ((mean, deviation), value) in both.zip(values) {
            let from = value - *mean;
            *mean += from / self.probes;
            *deviation += from * (value - *mean);
        }
    }

    fn finish(self) -> (Vec<f64>, Vec<f64>) {
        let Moments { probes, means, mut deviations } = self;
        let error = |deviation: f64| (deviation / (probes - 1.0) / probes).sqrt();
        deviations.iter_mut().for_each(|deviation| *deviation = error(*deviation));
        (means, deviations)
    }
}
