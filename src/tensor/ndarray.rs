//! ndarray in and out. Copies only where the array's memory is not in row-major order.

use ndarray::{Array, ArrayBase, ArrayD, ArrayViewD, Data, DataMut, Dimension, IxDyn};

use crate::device::Device;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::tensor::{Tensor, TensorView, TensorViewMut};

impl<T: Element> Tensor<T> {
    /// The array's elements on `device`. On the CPU an array in row-major order is taken over without
    /// copying; any other order is copied into row-major order.
    pub fn from_ndarray<D: Dimension>(device: &Device, array: Array<T, D>) -> Result<Self> {
        let shape = array.shape().to_vec();
        let data = if array.is_standard_layout() {
            let len = array.len();
            let (mut data, offset) = array.into_raw_vec_and_offset();
            // A sliced array keeps its whole allocation; drop what lies outside the slice.
            data.drain(..offset.unwrap_or(0));
            data.truncate(len);
            data
        } else {
            array.iter().copied().collect()
        };
        Tensor::from_vec(device, &shape, data)
    }

    /// The tensor as an array on the host; a host tensor is handed over without copying.
    pub fn into_ndarray(self) -> Result<ArrayD<T>> {
        let shape = IxDyn(self.shape());
        let data = self.into_vec()?;
        Ok(ArrayD::from_shape_vec(shape, data).expect("a tensor has as many elements as its shape"))
    }

    /// A host tensor as an array, without copying; `None` when it is on another device.
    pub fn as_ndarray(&self) -> Option<ArrayViewD<'_, T>> {
        let array = ArrayViewD::from_shape(IxDyn(self.shape()), self.as_slice()?);
        Some(array.expect("a tensor has as many elements as its shape"))
    }
}

fn not_contiguous(shape: &[usize]) -> Error {
    Error::shape("array", "row-major order without gaps (see `as_standard_layout`)", shape)
}

impl<'a, T: Element> TensorView<'a, T> {
    /// An array's elements where they are.
    ///
    /// # Errors
    /// [`Error::Shape`] when they are not in row-major order without gaps.
    pub fn from_ndarray<S: Data<Elem = T>, D: Dimension>(
        array: &'a ArrayBase<S, D>,
    ) -> Result<Self> {
        let data = array.as_slice().ok_or_else(|| not_contiguous(array.shape()))?;
        TensorView::from_slice(array.shape(), data)
    }
}

impl<'a, T: Element> TensorViewMut<'a, T> {
    /// An array's elements where they are.
    ///
    /// # Errors
    /// [`Error::Shape`] when they are not in row-major order without gaps.
    pub fn from_ndarray<S: DataMut<Elem = T>, D: Dimension>(
        array: &'a mut ArrayBase<S, D>,
    ) -> Result<Self> {
        let shape = array.shape().to_vec();
        let data = array.as_slice_mut().ok_or_else(|| not_contiguous(&shape))?;
        TensorViewMut::from_slice(&shape, data)
    }
}
