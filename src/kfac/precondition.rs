//! Gradients, preconditioned.

use super::matrix::{as_matrix, matrix, product};
use super::refresh::{Prepared, not_refreshed};
use super::state::KfacState;
use crate::element::Accumulator;
use crate::error::{Error, Result};
use crate::tensor::view::{common_device, expect_shape};
use crate::tensor::{OptionalView, Tensor, TensorView};

impl<F: Accumulator, const D: usize> KfacState<F, D> {
    /// A gradient preconditioned by what the last refresh computed: see [`super::KfacMethod`]. The gradient
    /// is `[g, O/g, d]` or `[O, d]`, columns in the order of [`super::KfacLayer`], and so is the result. It is
    /// read to the host, and the result brought back.
    ///
    /// # Errors
    /// [`Error::Invalid`] before the first refresh and for a gradient that is not finite; [`Error::Shape`] or
    /// [`Error::DeviceMismatch`] for one that does not fit.
    pub fn precondition<'w>(&self, gradient: impl Into<TensorView<'w, F>>) -> Result<Tensor<F>> {
        let gradient = gradient.into();
        let [groups, outputs, rows] = self.sizes.gradient();
        let shape = gradient.shape().to_vec();
        if shape != [groups, outputs, rows] && shape != [groups * outputs, rows] {
            let expected = match groups {
                1 => format!("[{outputs}, {rows}] or [1, {outputs}, {rows}]"),
                _ => format!("[{groups}, {outputs}, {rows}] or [{}, {rows}]", groups * outputs),
            };
            return Err(Error::shape("gradient", expected, &shape));
        }
        common_device(&[("the factors", self.device.clone()), ("gradient", gradient.device())])?;
        let result = self.preconditioned(&gradient.to_vec()?)?;
        Tensor::from_vec(&self.device, &shape, result)
    }

    /// [`KfacState::precondition`] of a gradient as the layer has it: that of its weight, in the weight's
    /// layout, and, if the layer has a bias, that of its bias `[O]`.
    ///
    /// # Errors
    /// As [`KfacState::precondition`]; [`Error::Invalid`] where the bias's is missing or too much.
    pub fn precondition_weight<'w, 'b>(
        &self,
        weight: impl Into<TensorView<'w, F>>,
        bias: impl Into<OptionalView<'b, F>>,
    ) -> Result<(Tensor<F>, Option<Tensor<F>>)> {
        let (weight, bias) = (weight.into(), bias.into().0);
        let shape = self.layer.weight_shape(&self.sizes);
        expect_shape("weight gradient", &shape, weight.shape())?;
        let mut operands =
            vec![("the factors", self.device.clone()), ("weight gradient", weight.device())];
        if bias.is_some() != self.layer.has_bias() {
            let (value, reason) = match self.layer.has_bias() {
                true => ("missing", "the layer has a bias"),
                false => ("given", "the layer has no bias"),
            };
            return Err(Error::invalid("bias gradient", value, reason));
        }
        if let Some(bias) = &bias {
            expect_shape("bias gradient", &[self.layer.output_channels()], bias.shape())?;
            operands.push(("bias gradient", bias.device()));
        }
        common_device(&operands)?;
        let bias = bias.map(|bias| bias.to_vec()).transpose()?;
        let matrices = self.layer.matrices_of(&self.sizes, &weight.to_vec()?, bias.as_deref());
        let result = self.preconditioned(&matrices)?;
        let (weight, bias) = self.layer.split_matrices(&self.sizes, &result);
        let weight = Tensor::from_vec(&self.device, &shape, weight)?;
        let bias = bias.map(|bias| Tensor::from_vec(&self.device, &[bias.len()], bias));
        Ok((weight, bias.transpose()?))
    }

    /// Of matrices `[g, O/g, d]` on the host.
    fn preconditioned(&self, gradient: &[F]) -> Result<Vec<F>> {
        let prepared = self.prepared.as_ref().ok_or_else(not_refreshed)?;
        if let Some(at) = gradient.iter().position(|value| !value.to_f64().is_finite()) {
            let (row, column) = (at / self.sizes.rows, at % self.sizes.rows);
            let argument = format!("gradient at ({row}, {column})");
            return Err(Error::invalid(argument, gradient[at], "it must be finite"));
        }
        let [groups, outputs, rows] = self.sizes.gradient();
        let len = outputs * rows;
        let moments = match &self.moments {
            Some(moments) => moments.values.view().to_vec()?,
            None => Vec::new(),
        };
        let damping = F::from_f64(self.damping);
        let mut result = Vec::with_capacity(gradient.len());
        for group in 0..groups {
            let dw = &gradient[group * len..][..len];
            match prepared {
                Prepared::Inverses { input, output, .. } => {
                    let right = input.after(group, dw, outputs)?;
                    let mut both = output.before(group, &right, rows)?;
                    let scales = self.options.convention.scales(self.sizes.positions);
                    if scales.product != 1.0 {
                        let scale = F::from_f64(scales.product);
                        both.iter_mut().for_each(|value| *value = *value / scale);
                    }
                    result.extend(both);
                }
                Prepared::Basis { input, output } => {
                    let (q_a, q_g) =
                        (matrix(&input.vectors, group), matrix(&output.vectors, group));
                    let turned = product(as_matrix(dw, outputs, rows), q_a)?;
                    let mut turned = product(q_g.transpose(), as_matrix(&turned, outputs, rows))?;
                    let moments = &moments[group * len..][..len];
                    divide(&mut turned, moments, damping);
                    let back = product(as_matrix(&turned, outputs, rows), q_a.transpose())?;
                    result.extend(product(q_g, as_matrix(&back, outputs, rows))?);
                }
                Prepared::Roots { input, output } => {
                    let right = product(as_matrix(dw, outputs, rows), matrix(input, group))?;
                    let left = matrix(output, group);
                    result.extend(product(left, as_matrix(&right, outputs, rows))?);
                }
                Prepared::Diagonal(diagonal) => {
                    let mut own = dw.to_vec();
                    divide(&mut own, &diagonal.view().host()[group * len..][..len], damping);
                    result.extend(own);
                }
            }
        }
        Ok(result)
    }
}

/// values ⊘ (moments + damping).
fn divide<F: Accumulator>(values: &mut [F], moments: &[F], damping: F) {
    for (value, &moment) in values.iter_mut().zip(moments) {
        *value = *value / (moment + damping);
    }
}
