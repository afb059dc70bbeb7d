//! What is computed of averages now and then: inverses, eigenvectors and roots.

use super::average::{Factors, Moments};
use super::damping;
use super::eigen::{self, FactorEigen};
use super::inverse::Inverse;
use super::matrix::{as_matrix, matrix, product, row, to_host, trace};
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
    /// What a refresh computes, and the second moments in the basis that it finds.
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
                let new = [&input, &output];
                let moments = match (self.basis(), moments) {
                    (Some((a, g)), Some(old)) if old.examples > 0 => {
                        self.carried(old, [a, g], new)?
                    }
                    _ => self.products(new)?,
                };
                Ok((Prepared::Basis { input, output }, Some(moments)))
            }
            _ => {
                let root = |name, factor| eigen::power(name, factor, self.damping, -0.25);
                let (input, output) = (root(INPUT_FACTOR, &input)?, root(OUTPUT_FACTOR, &output)?);
                Ok((Prepared::Roots { input, output }, None))
            }
        }
    }

    /// The second moments as K-FAC has them: the products of the eigenvalues.
    fn products(&self, [input, output]: [&FactorEigen<F>; 2]) -> Result<Moments<F>> {
        let mut products = Vec::with_capacity(self.sizes.gradient().iter().product());
        for group in 0..self.sizes.groups {
            let (rows, columns) = (row(&output.values, group), row(&input.values, group));
            rows.iter().for_each(|&g| products.extend(columns.iter().map(|&a| g * a)));
        }
        let values = Tensor::from_vec(&self.device, &self.sizes.gradient(), products)?;
        Ok(Moments { values, examples: 0 })
    }

    /// Second moments in another basis: the diagonal there of the matrix that they are the diagonal of here,
    /// all else of which is 0. With U what turns the old eigenvectors of a factor into the new ones, it is
    /// U_G∘²·Λ·(U_A∘²)ᵀ. Rows and columns of U∘² sum to 1, so what is not negative stays so, and the trace
    /// stays.
    fn carried(
        &self,
        moments: &Moments<F>,
        old: [&FactorEigen<F>; 2],
        new: [&FactorEigen<F>; 2],
    ) -> Result<Moments<F>> {
        let [groups, outputs, rows] = self.sizes.gradient();
        let values = to_host(moments.values.view())?;
        let mut carried = Vec::with_capacity(groups * outputs * rows);
        for group in 0..groups {
            let squares = |factor: usize| -> Result<Vec<F>> {
                let [new, old] = [new, old].map(|of| matrix(&of[factor].vectors, group));
                let mut turn = product(new.transpose(), old)?;
                turn.iter_mut().for_each(|value| *value = *value * *value);
                Ok(turn)
            };
            let (input, output) = (squares(0)?, squares(1)?);
            let columns = as_matrix(&input, rows, rows).transpose();
            let turned = product(matrix(&values, group), columns)?;
            let turned = as_matrix(&turned, outputs, rows);
            carried.extend(product(as_matrix(&output, outputs, outputs), turned)?);
        }
        let values = Tensor::from_vec(&self.device, &self.sizes.gradient(), carried)?;
        Ok(Moments { values, examples: moments.examples })
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
