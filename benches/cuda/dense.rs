//! Operations between tensors.
//!
//! A batch is two images again and again (one, where it is odd), and every value a multiple of 1/8 whose sums
//! are exact: what the CPU makes of the two is what each pair of a result has to be, bit for bit.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use convmat::{Algorithm, Conv, Device, Element, Error, Tensor, with_axes};

use crate::model::Ready;
use crate::outcome::{Result, compare};
use crate::report::{Bench, Row, Work};
use crate::shapes::{Shape, eighths};

/// The loops of the definition are timed on layers of at most this many products.
const NAIVE_LIMIT: usize = 20_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Unfold,
    Fold,
    Forward,
    BackwardInput,
    BackwardWeight,
    BackwardBias,
}

use Operation::{BackwardBias, BackwardInput, BackwardWeight, Fold, Forward, Unfold};

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unfold => "unfold",
            Fold => "fold",
            Forward => "forward",
            BackwardInput => "backward_input",
            BackwardWeight => "backward_weight",
            BackwardBias => "backward_bias",
        })
    }
}

/// A tensor that an operation reads: name, shape, and whether it has a batch.
type Operand = (&'static str, Vec<usize>, bool);

impl Operation {
    pub const ALL: [Operation; 6] =
        [Unfold, Fold, Forward, BackwardInput, BackwardWeight, BackwardBias];

    fn operands(self, shape: &Shape) -> Vec<Operand> {
        let x = ("x", shape.input_shape(), true);
        let dy = ("dy", shape.output_shape(), true);
        let w = ("w", shape.weight_shape(), false);
        match self {
            Unfold => vec![x],
            Fold => vec![("patches", shape.patch_shape(), true)],
            Forward => vec![x, w, ("b", vec![shape.outputs], false)],
            BackwardInput => vec![dy, w],
            BackwardWeight => vec![x, dy],
            BackwardBias => vec![dy],
        }
    }

    fn result(self, shape: &Shape) -> Vec<usize> {
        match self {
            Unfold => shape.patch_shape(),
            Fold | BackwardInput => shape.input_shape(),
            Forward => shape.output_shape(),
            BackwardWeight => shape.weight_shape(),
            BackwardBias => vec![shape.outputs],
        }
    }

    /// Whether the result is a sum over the batch.
    fn sums_batch(self) -> bool {
        matches!(self, BackwardWeight | BackwardBias)
    }

    fn has_algorithms(self) -> bool {
        matches!(self, Forward | BackwardInput | BackwardWeight)
    }

    fn algorithms(self, bench: &Bench, shape: &Shape) -> Vec<Algorithm> {
        if !self.has_algorithms() {
            return vec![Algorithm::Auto];
        }
        let mut algorithms = bench.options.algorithms().to_vec();
        algorithms.retain(|&a| a != Algorithm::Naive || shape.products() <= NAIVE_LIMIT);
        algorithms
    }

    fn work(self, shape: &Shape, element: usize) -> Work {
        let elements = |shape: Vec<usize>| shape.iter().product::<usize>();
        let read: usize =
            self.operands(shape).into_iter().map(|(_, shape, _)| elements(shape)).sum();
        let bytes = (element * (read + elements(self.result(shape)))) as f64;
        let operations = if self.has_algorithms() { 2.0 * shape.products() as f64 } else { 0.0 };
        Work { operations, bytes, writes_only: false }
    }

    fn call<T: Element, const D: usize>(
        self,
        conv: &Conv<D>,
        algorithm: Algorithm,
        operands: &[Tensor<T>],
        result: &mut Tensor<T>,
    ) -> convmat::Result<()> {
        match (self, operands) {
            (Unfold, [x]) => conv.unfold_into(x, result),
            (Fold, [patches]) => conv.fold_into(patches, result),
            (Forward, [x, w, b]) => conv.forward_into(x, w, Some(b.view()), result, algorithm),
            (BackwardInput, [dy, w]) => conv.backward_input_into(dy, w, result, algorithm),
            (BackwardWeight, [x, dy]) => conv.backward_weight_into(x, dy, result, algorithm),
            (BackwardBias, [dy]) => conv.backward_bias_into(dy, result),
            _ => unreachable!("`operands` says what each takes"),
        }
    }
}

/// One operation on the two images, as the CPU computes it in `f32`.
struct Example {
    operands: Vec<Vec<f32>>,
    result: Vec<f32>,
}

/// The examples of one layer, made when they are asked for.
pub struct Examples<'a> {
    shape: &'a Shape,
    made: BTreeMap<Operation, Example>,
}

impl<'a> Examples<'a> {
    pub fn new(shape: &'a Shape) -> Self {
        Examples { shape, made: BTreeMap::new() }
    }

    pub fn shape(&self) -> &'a Shape {
        self.shape
    }

    fn of(&mut self, operation: Operation, save: Option<&Path>) -> Result<&Example> {
        if !self.made.contains_key(&operation) {
            self.made.insert(operation, Self::make(operation, self.shape, save)?);
        }
        Ok(&self.made[&operation])
    }

    fn make(operation: Operation, shape: &Shape, save: Option<&Path>) -> Result<Example> {
        let unit = Shape { batch: shape.repeated(), ..*shape };
        let mut operands = Vec::new();
        for (seed, (_, extents, _)) in operation.operands(&unit).iter().enumerate() {
            let values = eighths(extents.iter().product(), seed as u64 + 1);
            operands.push(Tensor::from_vec(&Device::Cpu, extents, values)?);
        }
        let mut result = Tensor::zeros(&Device::Cpu, &operation.result(&unit))?;
        with_axes!(shape.spatial, D => {
            let conv = shape.conv::<D>();
            operation.call(&conv, Algorithm::Auto, &operands, &mut result)
        })?;
        if let Some(folder) = save {
            let write = |name: &str, tensor: &Tensor<f32>| {
                let file = format!("{}-{}-{operation}-{name}.npy", shape.name, shape.layout);
                convmat::io::write_npy(folder.join(file), tensor)
            };
            for ((name, ..), tensor) in operation.operands(&unit).iter().zip(&operands) {
                write(name, tensor)?;
            }
            write("result", &result)?;
        }
        let operands = operands.into_iter().map(Tensor::into_vec).collect::<Result<_, _>>()?;
        Ok(Example { operands, result: result.into_vec()? })
    }
}

fn converted<T: Element>(values: &[f32], factor: usize) -> Vec<T> {
    values.iter().map(|&value| T::from_f64(f64::from(value) * factor as f64)).collect()
}

/// All operations on a layer in one element type.
pub fn run<T: Element>(bench: &mut Bench, examples: &mut Examples) -> Result<()> {
    let shape = examples.shape;
    let device = bench.device.clone();
    let repeats = shape.batch / shape.repeated();
    for operation in Operation::ALL {
        let name = operation.to_string();
        let mut algorithms = operation.algorithms(bench, shape);
        let row = |algorithm| {
            let algorithm = operation.has_algorithms().then_some(algorithm);
            Row { op: &name, algorithm, shape, dtype: T::DTYPE }
        };
        algorithms.retain(|&algorithm| bench.options.wants(&row(algorithm).name()));
        if !bench.options.has(&name) || algorithms.is_empty() {
            continue;
        }
        prepare::<T>(&device, shape, operation, &algorithms)?;
        let example = examples.of(operation, bench.options.save.as_deref())?;
        let mut operands = Vec::new();
        for ((_, extents, batched), values) in
            operation.operands(shape).iter().zip(&example.operands)
        {
            let values = converted::<T>(values, 1).repeat(if *batched { repeats } else { 1 });
            operands.push(Tensor::from_vec(&device, extents, values)?);
        }
        let expected =
            converted::<T>(&example.result, if operation.sums_batch() { repeats } else { 1 });
        let extents = operation.result(shape);
        for algorithm in algorithms {
            // What a call does not write stays what nothing computes.
            let poison = vec![T::from_f64(f64::NAN); extents.iter().product()];
            let mut result = Tensor::from_vec(&device, &extents, poison)?;
            let work = operation.work(shape, size_of::<T>());
            with_axes!(shape.spatial, D => {
                let conv = shape.conv::<D>();
                bench.row(
                    row(algorithm),
                    work,
                    &mut result,
                    |result| operation.call(&conv, algorithm, &operands, result),
                    |result| compare(&expected, &result.view().to_vec()?),
                    |device| ready::<T>(device, shape, operation, algorithm),
                );
                Ok::<(), Error>(())
            })?;
        }
    }
    Ok(())
}

/// Compiles the kernels of these calls, in parallel. What a call has to say against it, its row tells.
fn prepare<T: Element>(
    device: &Device,
    shape: &Shape,
    operation: Operation,
    algorithms: &[Algorithm],
) -> Result<()> {
    device.prepare(|device| {
        for &algorithm in algorithms {
            let _ = ready::<T>(device, shape, operation, algorithm)?();
        }
        Ok(())
    })?;
    Ok(())
}

/// A call on operands of zeros.
fn ready<T: Element>(
    device: &Device,
    shape: &Shape,
    operation: Operation,
    algorithm: Algorithm,
) -> convmat::Result<Ready> {
    let shape = *shape;
    let mut operands = Vec::new();
    for (_, extents, _) in operation.operands(&shape) {
        operands.push(Tensor::<T>::zeros(device, &extents)?);
    }
    let mut result = Tensor::zeros(device, &operation.result(&shape))?;
    Ok(Box::new(move || {
        with_axes!(shape.spatial, D => {
            operation.call(&shape.conv::<D>(), algorithm, &operands, &mut result)
        })
    }))
}
