//! Assembly of the layer's matrix, on an input that keeps it below 2³¹ entries.

use convmat::{Conv, Csr, CsrBuffers, IndexView, Tensor};

use super::job::{Answer, Buffers, Job, Operands, Result};

pub struct Matrix<const D: usize> {
    conv: Conv<D>,
    size: [usize; D],
    w: Tensor<f32>,
    b: Tensor<f32>,
    arrays: Arrays,
}

struct Arrays {
    indptr: Vec<i32>,
    indices: Vec<i32>,
    data: Vec<f32>,
}

impl<const D: usize> Matrix<D> {
    pub fn new(operands: &Operands) -> Result<Self> {
        let shape = operands.shape.for_matrix()?;
        let (conv, size) = (shape.conv(), shape.input_size());
        let known = conv.matrix_size(&shape.weight_shape(), true, size)?;
        let entries = usize::try_from(known.nnz())?;
        Ok(Matrix {
            conv,
            size,
            w: operands.read("w", &shape.weight_shape())?,
            b: operands.read("b", &[shape.outputs])?,
            arrays: Arrays {
                indptr: vec![-1; usize::try_from(known.rows())? + 1],
                indices: vec![-1; entries],
                data: vec![f32::NAN; entries],
            },
        })
    }
}

impl<const D: usize> Job for Matrix<D> {
    fn fresh(&self) -> Result<Box<dyn Answer>> {
        Ok(Box::new(self.conv.matrix(&self.w, Some(self.b.view()), self.size)?))
    }

    fn into(&mut self) -> Result<()> {
        let Arrays { indptr, indices, data } = &mut self.arrays;
        let buffers = CsrBuffers { indptr, indices, data };
        Ok(self.conv.matrix_into(&self.w, Some(self.b.view()), self.size, buffers)?)
    }

    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.arrays
    }
}

fn parts<'a>(
    indptr: &'a [i32],
    indices: &'a [i32],
    data: &'a [f32],
) -> Vec<(&'static str, &'a [u8])> {
    vec![
        ("crow", bytemuck::cast_slice(indptr)),
        ("columns", bytemuck::cast_slice(indices)),
        ("values", bytemuck::cast_slice(data)),
    ]
}

impl Answer for Arrays {
    fn parts(&self) -> Vec<(&'static str, &[u8])> {
        parts(&self.indptr, &self.indices, &self.data)
    }
}

impl Answer for Csr<f32> {
    fn parts(&self) -> Vec<(&'static str, &[u8])> {
        match (self.indptr(), self.indices(), self.data()) {
            (Some(IndexView::I32(indptr)), Some(IndexView::I32(indices)), Some(data)) => {
                parts(indptr, indices, data)
            }
            _ => Vec::new(),
        }
    }
}

impl Buffers for Arrays {
    fn poison(&mut self) {
        self.indptr.fill(-1);
        self.indices.fill(-1);
        self.data.fill(f32::NAN);
    }
}
