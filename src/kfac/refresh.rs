//! What is computed of averages now and then: inverses, eigenvectors and roots.

use super::average::{Factors, Moments};
use super::damping;
use super::eigen::{self, FactorEigen};
use super::inverse::Inverse;
use super::matrix::{matrix, row, to_host, trace};
use super::options::KfacMethod;
use super::state::{INPUT_FACTOR, KfacState, OUTPUT_FACTOR};
use crate::device::Device;
use crate::element::Accumulator;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// What a refresh computes, on the host.
#[derive(Debug)]
pub(super) enum Prepared<F: Accumulator> {
    Inverses {
        input: Inverse<F>,
        output: Inverse<F>,
        /// `[g, 1]`.
        pi: Tensor<f64>,
    },
    Basis {
        input: FactorEigen<F>,
        output: FactorEigen<F>,
    },
    /// Inverse fourth roots.
    Roots {
        input: Tensor<F>,
        output: Tensor<F>,
    },
    /// The diagonal of the Fisher matrix, `[g, O/g, d]`.
    Diagonal(Tensor<F>),
}

impl<F: Accumulator, const D: usize> KfacState<F, D> {
    /// What a refresh computes; of second moments, those of the new basis.
    pub(super) fn refreshed(
        &self,
        factors: Option<&Factors<F>>,
        moments: Option<&Moments<F>>,
    ) -> Result<(Prepared<F>, Option<Moments<F>>)> {
        let no_data = || Error::invalid("examples", 0, "a refresh needs data: accumulate first");
        if self.options.method == KfacMethod::Diagonal {
            let moments = moments.ok_or_else(no_data)?;
            return Ok((Prepared::Diagonal(to_host(moments.values.view())?), None));
        }
        let factors = factors.ok_or_else(no_data)?;
        let (input, output) = (to_host(factors.input.view())?, to_host(factors.output.view())?);
        match self.options.method {
            KfacMethod::Kfac => Ok((self.inverses(&input, &output)?, None)),
            KfacMethod::Ekfac => {
                let input = eigen::decompose(INPUT_FACTOR, &input)?;
                let output = eigen::decompose(OUTPUT_FACTOR, &output)?;
                let mut products = Vec::with_capacity(self.sizes.gradient().iter().product());
                for group in 0..self.sizes.groups {
                    let (rows, columns) = (row(&output.values, group), row(&input.values, group));
                    rows.iter().for_each(|&g| products.extend(columns.iter().map(|&a| g * a)));
                }
                let values = Tensor::from_vec(&self.device, &self.sizes.gradient(), products)?;
                let basis = Prepared::Basis { input, output };
                Ok((basis, Some(Moments { values, examples: 0 })))
            }
            _ => {
                let root = |name, factor| eigen::power(name, factor, self.damping, -0.25);
                let (input, output) = (root(INPUT_FACTOR, &input)?, root(OUTPUT_FACTOR, &output)?);
                Ok((Prepared::Roots { input, output }, None))
            }
        }
    }

    /// K-FAC's inverses, of factors on the host.
    fn inverses(&self, input: &Tensor<F>, output: &Tensor<F>) -> Result<Prepared<F>> {
        let sizes = &self.sizes;
        let scales = self.options.convention.scales(sizes.positions);
        let shared = (self.damping / scales.product).sqrt();
        let pi: Vec<f64> = (0..sizes.groups)
            .map(|group| {
                let mean = |factor: &Tensor<F>, scale: f64, rows: usize| {
                    scale * trace(matrix(factor, group)) / rows as f64
                };
                match self.options.pi_correction {
                    true => damping::pi(
                        mean(input, scales.input, sizes.rows),
                        mean(output, scales.output, sizes.outputs),
                    ),
                    false => 1.0,
                }
            })
            .collect();
        let shifts = |of: fn(f64, f64) -> f64| pi.iter().map(|&pi| of(shared, pi)).collect();
        let (to_input, to_output): (Vec<f64>, Vec<f64>) =
            (shifts(|shared, pi| shared * pi), shifts(|shared, pi| shared / pi));
        let rank = self.options.rank;
        Ok(Prepared::Inverses {
            input: Inverse::new(INPUT_FACTOR, input, scales.input, &to_input, rank)?,
            output: Inverse::new(OUTPUT_FACTOR, output, scales.output, &to_output, rank)?,
            pi: Tensor::from_vec(&Device::Cpu, &[sizes.groups, 1], pi)?,
        })
    }
}

pub(super) fn not_refreshed() -> Error {
    Error::invalid("refreshes", 0, "there must have been one: see KfacState::refresh")
}
