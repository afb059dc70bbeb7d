//! The same matrices as the `sprs` crate's types, without copying.

use sprs::{CsMatI, CsMatViewI, SpIndex};

use super::csr::Csr;
use super::index::{Index, Indices};
use crate::device::Device;
use crate::element::Element;
use crate::error::{Error, Result};

impl<T: Element> Csr<T> {
    /// The matrix as a view of the `sprs` crate, sharing its memory; `None` when its indices are not of
    /// type `I`, see [`Csr::index_width`], or not on the host.
    ///
    /// ```
    /// use convmat::{Conv, Device, Tensor};
    /// let weight = Tensor::from_vec(&Device::Cpu, &[1, 1, 2], vec![1.0f32, -1.0])?;
    /// let matrix = Conv::new([2]).matrix(&weight, None, [3])?;
    /// let view = matrix.as_sprs::<i32>().expect("few entries have 32-bit indices");
    /// assert_eq!(view.get(1, 2), Some(&-1.0));
    /// # Ok::<(), convmat::Error>(())
    /// ```
    pub fn as_sprs<I: Index + SpIndex>(&self) -> Option<CsMatViewI<'_, T, I>> {
        let (indptr, indices) = (self.indptr()?.as_slice()?, self.indices()?.as_slice()?);
        let shape = (self.rows(), self.columns());
        // What `sprs` checks here, `Csr` has already made sure of.
        CsMatViewI::try_new(shape, indptr, indices, self.data()?).ok()
    }

    /// The matrix as an owned one of the `sprs` crate, taking its memory along; the matrix itself when
    /// its indices are not of type `I` or not on the host.
    pub fn into_sprs<I>(self) -> Result<CsMatI<T, I>, Self>
    where
        I: Index + SpIndex,
        Vec<I>: Into<Indices>,
    {
        if self.index_width() != I::WIDTH || self.device() != Device::Cpu {
            return Err(self);
        }
        let [rows, columns] = self.shape();
        let (indptr, indices, data) = self.into_parts().expect("parts on the host are handed over");
        match (I::take(indptr), I::take(indices)) {
            (Ok(indptr), Ok(indices)) => Ok(CsMatI::new((rows, columns), indptr, indices, data)),
            _ => unreachable!("row pointers and indices have the width that was asked for"),
        }
    }

    /// The matrix that an owned one of the `sprs` crate in compressed sparse row form holds, taking
    /// its memory along.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is in compressed sparse column form.
    pub fn from_sprs<I>(matrix: CsMatI<T, I>) -> Result<Self>
    where
        I: Index + SpIndex,
        Vec<I>: Into<Indices>,
    {
        if matrix.is_csc() {
            let reason = "it must be in compressed sparse row form (see `sprs`'s `into_csr`)";
            return Err(Error::invalid("the storage of the sprs matrix", "CSC", reason));
        }
        let (rows, columns) = matrix.shape();
        let (indptr, indices, data) = matrix.into_raw_storage();
        Csr::new([rows, columns], indptr, indices, data)
    }
}
