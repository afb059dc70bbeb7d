//! A state as a safetensors file: averages, what the last refresh computed, and counters.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::average::{Factors, Moments};
use super::eigen::FactorEigen;
use super::inverse::Inverse;
use super::lowrank::LowRank;
use super::options::KfacMethod;
use super::refresh::Prepared;
use super::state::KfacState;
use super::{damping, layer::Sizes};
use crate::device::Device;
use crate::element::{Accumulator, Element};
use crate::error::{Error, Result};
use crate::io::{AnyView, SafetensorsReader, write_with_note};
use crate::tensor::Tensor;

/// The key of the metadata that holds all but the tensors, as JSON.
const NOTE: &str = "convmat.kfac";
const VERSION: u64 = 1;

/// A tensor on the host under its name.
enum Named<F: Accumulator> {
    Own(&'static str, Tensor<F>),
    Wide(&'static str, Tensor<f64>),
}

impl<F: Accumulator, const D: usize> KfacState<F, D> {
    /// Writes the state as a safetensors file: factors, second moments, and the inverses or eigenvectors of
    /// the last refresh as tensors; the layer, the options, the damping and the counters as JSON in the
    /// metadata. Factors on another device are read to the host. The same state gives the same bytes.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be written; then a file that was there before stays as it was.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let tensors = self.tensors()?;
        let views: Vec<(&str, AnyView<'_>)> = tensors
            .iter()
            .map(|tensor| match tensor {
                Named::Own(name, tensor) => Ok((*name, AnyView::new(tensor)?)),
                Named::Wide(name, tensor) => Ok((*name, AnyView::new(tensor)?)),
            })
            .collect::<Result<_>>()?;
        let note = json!({
            "version": VERSION,
            "layer": self.layer.to_string(),
            "options": self.options.to_string(),
            "dtype": F::DTYPE.to_string(),
            // As text, which gives the same number back.
            "damping": self.damping.to_string(),
            "steps": self.steps,
            "factor_examples": self.factors.as_ref().map(|factors| factors.examples),
            "moment_examples": self.moments.as_ref().map(|moments| moments.examples),
            "refreshed": self.prepared.is_some(),
        });
        write_with_note(path.as_ref(), &views, Some((NOTE, &note.to_string())))
    }

    /// Takes over what [`KfacState::save`] wrote of a state of the same layer and options, on this state's
    /// device; every bit is as it was.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a state of another layer, or of other options but for the damping, which names
    /// both; [`Error::ElementType`] for one of other elements; [`Error::Format`] for any other file, and a
    /// damaged one; [`Error::Io`] when it cannot be read. The state is then as it was.
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let mut file = File::open(path.as_ref())?;
        file.same("layer", &self.layer.to_string())?;
        file.same("options", &self.options.to_string())?;
        let dtype = file.text("dtype")?;
        if dtype != F::DTYPE.to_string() {
            return Err(Error::ElementType {
                argument: file.path.display().to_string(),
                expected: F::DTYPE.to_string(),
                found: dtype,
            });
        }
        let damping = file.text("damping")?.parse().ok().filter(|&l| damping::check(l).is_ok());
        let damping = damping.ok_or_else(|| file.wrong("damping"))?;
        let steps = file.count("steps")?.ok_or_else(|| file.wrong("steps"))?;
        let (sizes, device) = (self.sizes, self.device.clone());
        let factors = match file.count("factor_examples")? {
            Some(examples) => Some(Factors {
                input: file.tensor("input_factor", &sizes.input_factor())?.to_device(&device)?,
                output: file.tensor("output_factor", &sizes.output_factor())?.to_device(&device)?,
                examples,
            }),
            None => None,
        };
        let moments = match file.count("moment_examples")? {
            Some(examples) => Some(Moments {
                values: file.tensor("second_moments", &sizes.gradient())?.to_device(&device)?,
                examples,
            }),
            None => None,
        };
        let prepared = match file.note["refreshed"].as_bool() {
            Some(true) => Some(self.read_prepared(&mut file, &sizes)?),
            Some(false) => None,
            None => return Err(file.wrong("refreshed")),
        };
        // What is in use divides by second moments that have to be there.
        if matches!(prepared, Some(Prepared::Basis { .. })) && moments.is_none() {
            return Err(file.wrong("moment_examples"));
        }
        *self = KfacState {
            device,
            layer: self.layer,
            sizes,
            options: self.options,
            damping,
            steps,
            factors,
            moments,
            prepared,
        };
        Ok(())
    }

    fn tensors(&self) -> Result<Vec<Named<F>>> {
        let host = |tensor: &Tensor<F>| super::matrix::to_host(tensor.view());
        let mut tensors = Vec::new();
        if let Some(Factors { input, output, .. }) = &self.factors {
            tensors.push(Named::Own("input_factor", host(input)?));
            tensors.push(Named::Own("output_factor", host(output)?));
        }
        if let Some(Moments { values, .. }) = &self.moments {
            tensors.push(Named::Own("second_moments", host(values)?));
        }
        match &self.prepared {
            None => {}
            Some(Prepared::Inverses { input, output, pi }) => {
                tensors.push(Named::Wide("pi", pi.clone()));
                for (names, inverse) in [(&INPUT, input), (&OUTPUT, output)] {
                    match inverse {
                        Inverse::Dense(inverse) => {
                            tensors.push(Named::Own(names.inverse, inverse.clone()))
                        }
                        Inverse::LowRank(inverse) => {
                            let LowRank { vectors, values, rest, bounds } = &**inverse;
                            tensors.push(Named::Own(names.vectors, vectors.clone()));
                            tensors.push(Named::Own(names.values, values.clone()));
                            tensors.push(Named::Own(names.rest, rest.clone()));
                            tensors.push(Named::Wide(names.bounds, bounds.clone()));
                        }
                    }
                }
            }
            Some(Prepared::Basis { input, output }) => {
                for (names, eigen) in [(&INPUT, input), (&OUTPUT, output)] {
                    tensors.push(Named::Own(names.vectors, eigen.vectors.clone()));
                    tensors.push(Named::Own(names.values, eigen.values.clone()));
                }
            }
            Some(Prepared::Roots { input, output }) => {
                tensors.push(Named::Own(INPUT.inverse, input.clone()));
                tensors.push(Named::Own(OUTPUT.inverse, output.clone()));
            }
            Some(Prepared::Diagonal(diagonal)) => {
                tensors.push(Named::Own("diagonal", diagonal.clone()))
            }
        }
        Ok(tensors)
    }

    fn read_prepared(&self, file: &mut File, sizes: &Sizes) -> Result<Prepared<F>> {
        let sides = [(&INPUT, sizes.input_factor()), (&OUTPUT, sizes.output_factor())];
        Ok(match self.options.method {
            KfacMethod::Kfac => {
                let mut read = |(names, shape): (&Names, [usize; 3])| {
                    let [groups, n, _] = shape;
                    Ok::<_, Error>(match self.options.rank.filter(|&rank| rank < n) {
                        None => Inverse::Dense(file.tensor(names.inverse, &shape)?),
                        Some(rank) => Inverse::LowRank(Box::new(LowRank {
                            vectors: file.tensor(names.vectors, &[groups, rank, n])?,
                            values: file.tensor(names.values, &[groups, rank])?,
                            rest: file.tensor(names.rest, &[groups, 1])?,
                            bounds: file.tensor(names.bounds, &[groups, 2])?,
                        })),
                    })
                };
                let [input, output] = sides;
                let (input, output) = (read(input)?, read(output)?);
                Prepared::Inverses { input, output, pi: file.tensor("pi", &[sizes.groups, 1])? }
            }
            KfacMethod::Ekfac => {
                let mut read = |(names, shape): (&Names, [usize; 3])| {
                    Ok::<_, Error>(FactorEigen {
                        values: file.tensor(names.values, &shape[..2])?,
                        vectors: file.tensor(names.vectors, &shape)?,
                    })
                };
                let [input, output] = sides;
                Prepared::Basis { input: read(input)?, output: read(output)? }
            }
            KfacMethod::Shampoo => Prepared::Roots {
                input: file.tensor(INPUT.inverse, &sizes.input_factor())?,
                output: file.tensor(OUTPUT.inverse, &sizes.output_factor())?,
            },
            KfacMethod::Diagonal => Prepared::Diagonal(file.tensor("diagonal", &sizes.gradient())?),
        })
    }
}

/// The names of what a refresh makes of a factor.
struct Names {
    inverse: &'static str,
    vectors: &'static str,
    values: &'static str,
    rest: &'static str,
    bounds: &'static str,
}

const INPUT: Names = Names {
    inverse: "input_inverse",
    vectors: "input_vectors",
    values: "input_values",
    rest: "input_rest",
    bounds: "input_bounds",
};

const OUTPUT: Names = Names {
    inverse: "output_inverse",
    vectors: "output_vectors",
    values: "output_values",
    rest: "output_rest",
    bounds: "output_bounds",
};

/// A file that is being read.
struct File {
    path: PathBuf,
    reader: SafetensorsReader,
    note: Value,
}

impl File {
    fn open(path: &Path) -> Result<Self> {
        let reader = SafetensorsReader::open(path)?;
        let format = |reason: &str| Error::Format { path: path.into(), reason: reason.into() };
        let note = reader.note(NOTE).ok_or_else(|| format("it holds no state of K-FAC"))?;
        let note: Value =
            serde_json::from_str(note).map_err(|_| format("its metadata are damaged"))?;
        if note["version"].as_u64() != Some(VERSION) {
            let reason = format!("its version is {}, expected {VERSION}", note["version"]);
            return Err(format(&reason));
        }
        Ok(File { path: path.into(), reader, note })
    }

    fn wrong(&self, key: &str) -> Error {
        let reason = format!("its metadata's {key} is {}", self.note[key]);
        Error::Format { path: self.path.clone(), reason }
    }

    fn text(&self, key: &str) -> Result<String> {
        self.note[key].as_str().map(str::to_string).ok_or_else(|| self.wrong(key))
    }

    /// A number, or none where the file says null.
    fn count(&self, key: &str) -> Result<Option<u64>> {
        match &self.note[key] {
            Value::Null => Ok(None),
            value => value.as_u64().map(Some).ok_or_else(|| self.wrong(key)),
        }
    }

    /// Fails where the file says something else than is expected.
    fn same(&self, key: &str, expected: &str) -> Result<()> {
        let found = self.text(key)?;
        if found == expected {
            return Ok(());
        }
        let argument = format!("the state's {key} in {}", self.path.display());
        Err(Error::invalid(argument, found, format!("this state's is {expected}")))
    }

    fn tensor<T: Element>(&mut self, name: &str, shape: &[usize]) -> Result<Tensor<T>> {
        let format = |path: &Path, reason: String| Error::Format { path: path.into(), reason };
        let tensor = self.reader.read(name)?.into_tensor::<T>()?;
        if tensor.shape() != shape {
            let reason = format!("`{name}` has shape {:?}, expected {shape:?}", tensor.shape());
            return Err(format(&self.path, reason));
        }
        let data = tensor.view().host();
        match data.iter().find(|value| !value.to_f64().is_finite()) {
            Some(value) => Err(format(&self.path, format!("`{name}` has an element {value}"))),
            None => tensor.to_device(&Device::Cpu),
        }
    }
}
