//! The matrix of a layer, and products with it. Checked against the CPU's, bit for bit.

use std::path::Path;

use convmat::{Csr, Device, Element, Tensor, with_axes};

use crate::model::Ready;
use crate::outcome::{Result, compare};
use crate::report::{Bench, Row, Work};
use crate::shapes::{Shape, eighths};

pub const NAMES: [&str; 3] = ["matrix", "spmv", "spmm"];

/// Vectors that a matrix is multiplied with at once.
const VECTORS: usize = 16;

/// Weight and bias of a layer.
struct Parameters<T: Element> {
    weight: Tensor<T>,
    bias: Tensor<T>,
}

impl<T: Element> Parameters<T> {
    fn new(shape: &Shape, device: &Device) -> Result<Self> {
        let tensor = |extents: &[usize], seed| {
            let values = eighths(extents.iter().product(), seed);
            let values = values.into_iter().map(|value| T::from_f64(value.into())).collect();
            Tensor::from_vec(device, extents, values)
        };
        let weight = tensor(&shape.weight_shape(), 2)?;
        Ok(Parameters { weight, bias: tensor(&[shape.outputs], 3)? })
    }

    fn zeros(shape: &Shape, device: &Device) -> convmat::Result<Self> {
        let weight = Tensor::zeros(device, &shape.weight_shape())?;
        Ok(Parameters { weight, bias: Tensor::zeros(device, &[shape.outputs])? })
    }

    fn matrix(&self, shape: &Shape) -> convmat::Result<Csr<T>> {
        with_axes!(shape.spatial, D => {
            shape.conv::<D>().matrix(&self.weight, Some(self.bias.view()), shape.input_size::<D>())
        })
    }

    fn matrix_into(&self, shape: &Shape, matrix: &mut Csr<T>) -> convmat::Result<()> {
        let bias = Some(self.bias.view());
        with_axes!(shape.spatial, D => {
            shape.conv::<D>().matrix_into(&self.weight, bias, shape.input_size::<D>(), matrix)
        })
    }
}

/// Assembly of a layer's matrix and products with it, in one element type.
pub fn run<T: Element>(bench: &mut Bench, shape: &Shape) -> Result<()> {
    let shape = Shape { batch: 1, ..shape.for_matrix()? };
    let row = |op| Row { op, algorithm: None, shape: &shape, dtype: T::DTYPE };
    let wanted = NAMES.map(|op| bench.options.has(op) && bench.options.wants(&row(op).name()));
    if wanted == [false; 3] {
        return Ok(());
    }
    let device = bench.device.clone();
    device.prepare(|device| prepare::<T>(device, &shape))?;
    let expected = Parameters::<T>::new(&shape, &Device::Cpu)?.matrix(&shape)?;
    let size = with_axes!(shape.spatial, D => {
        let size = shape.input_size::<D>();
        shape.conv::<D>().matrix_size(&shape.weight_shape(), true, size)
    })?;
    let bytes = size.bytes(T::DTYPE) as f64;
    if let Some(folder) = &bench.options.save {
        save(&shape, folder)?;
    }
    if wanted[0] {
        let parameters = Parameters::new(&shape, &device)?;
        let mut matrix = None;
        bench.row(
            row("matrix"),
            Work { bytes, operations: 0.0, writes_only: true },
            &mut matrix,
            |matrix| match matrix {
                Some(matrix) => parameters.matrix_into(&shape, matrix),
                None => {
                    *matrix = Some(parameters.matrix(&shape)?);
                    Ok(())
                }
            },
            |matrix| {
                let found = matrix.clone().map(|matrix| matrix.to_device(&Device::Cpu));
                match found.transpose()?.as_ref() == Some(&expected) {
                    true => Ok(()),
                    false => Err("another matrix than the CPU's".into()),
                }
            },
            |device| {
                let parameters = Parameters::<T>::zeros(&shape, device)?;
                Ok(Box::new(move || parameters.matrix(&shape).map(drop)))
            },
        );
    }
    for (op, vectors, wanted) in [("spmv", 1, wanted[1]), ("spmm", VECTORS, wanted[2])] {
        if wanted {
            multiply(bench, row(op), &expected, bytes, vectors, &shape)?;
        }
    }
    Ok(())
}

/// Writes the matrix and what it is made of, in `f32`: other types hold the same values.
fn save(shape: &Shape, folder: &Path) -> Result<()> {
    let name = |end: &str| folder.join(format!("{}-{}-matrix{end}", shape.name, shape.layout));
    if name(".npz").exists() {
        return Ok(());
    }
    let parameters = Parameters::<f32>::new(shape, &Device::Cpu)?;
    convmat::io::write_npy(name("-w.npy"), &parameters.weight)?;
    convmat::io::write_npy(name("-b.npy"), &parameters.bias)?;
    Ok(parameters.matrix(shape)?.save_npz(name(".npz"))?)
}

fn multiply<T: Element>(
    bench: &mut Bench,
    row: Row,
    matrix: &Csr<T>,
    bytes: f64,
    vectors: usize,
    layer: &Shape,
) -> Result<()> {
    let device = bench.device.clone();
    let shape = |length: usize| if vectors == 1 { vec![length] } else { vec![length, vectors] };
    let values = eighths(matrix.columns() * vectors, 4);
    let values = values.into_iter().map(|value| T::from_f64(value.into())).collect();
    let x = Tensor::from_vec(&Device::Cpu, &shape(matrix.columns()), values)?;
    let product = |matrix: &Csr<T>, x: &Tensor<T>, y: &mut Tensor<T>| match vectors {
        1 => matrix.mul_vector_into(x, y),
        _ => matrix.mul_matrix_into(x, y),
    };
    let mut y = Tensor::from_vec(
        &Device::Cpu,
        &shape(matrix.rows()),
        vec![T::from_f64(f64::NAN); matrix.rows() * vectors],
    )?;
    let mut result = y.clone().to_device(&device)?;
    product(matrix, &x, &mut y)?;
    let expected = y.into_vec()?;
    let vector_bytes = size_of::<T>() * vectors * (matrix.columns() + matrix.rows());
    let operations = 2.0 * (matrix.nnz() * vectors) as f64;
    let work = Work { bytes: bytes + vector_bytes as f64, operations, writes_only: false };
    let (matrix, x) = (matrix.clone().to_device(&device)?, x.to_device(&device)?);
    bench.row(
        row,
        work,
        &mut result,
        |y| product(&matrix, &x, y),
        |y| compare(&expected, &y.view().to_vec()?),
        |device| {
            let matrix = Parameters::<T>::zeros(layer, device)?.matrix(layer)?;
            product_ready(matrix, vectors)
        },
    );
    Ok(())
}

/// A product of the matrix with so many vectors of zeros.
fn product_ready<T: Element>(matrix: Csr<T>, vectors: usize) -> convmat::Result<Ready> {
    let device = matrix.device();
    Ok(match vectors {
        1 => {
            let x = Tensor::zeros(&device, &[matrix.columns()])?;
            Box::new(move || matrix.mul_vector(&x).map(drop))
        }
        _ => {
            let x = Tensor::zeros(&device, &[matrix.columns(), vectors])?;
            Box::new(move || matrix.mul_matrix(&x).map(drop))
        }
    })
}

fn prepare<T: Element>(device: &Device, shape: &Shape) -> convmat::Result<()> {
    for vectors in [1, VECTORS] {
        product_ready(Parameters::<T>::zeros(shape, device)?.matrix(shape)?, vectors)?()?;
    }
    Ok(())
}
