//! Fold (col2im): the adjoint of unfold, which adds overlapping patches up.

mod cpu;
#[cfg(gpu)]
pub(crate) mod cuda;

use crate::device::Device;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::geometry::{Conv, Geometry, Layout};
use crate::tensor::view::common_device;
use crate::tensor::{Tensor, TensorView, TensorViewMut};

impl<const D: usize> Conv<D> {
    /// The sum of overlapping patches: `x[n, c, i] = Σ A[n, c·K + k, o]` over all (o, k) that read i;
    /// the adjoint of [`Conv::unfold`], whose shapes it has with input and result exchanged.
    /// `input_size` are the spatial extents of the result. PyTorch's counterpart is
    /// `torch.nn.functional.fold`.
    ///
    /// Half types are summed in `f32` and rounded once; the order of summation depends on the geometry
    /// alone.
    ///
    /// # Errors
    /// When the shape does not fit the convolution on an input of that size (see [`Conv::bind`]), or
    /// the result does not fit in memory.
    pub fn fold<'a, T: Element>(
        &self,
        patches: impl Into<TensorView<'a, T>>,
        input_size: [usize; D],
    ) -> Result<Tensor<T>> {
        self.fold_fresh(patches.into(), input_size, false)
    }

    /// [`Conv::fold`] into a buffer of the caller's, all of which is overwritten; its shape tells the
    /// input size.
    ///
    /// # Errors
    /// As [`Conv::fold`]; also when the operands are on different devices.
    pub fn fold_into<'a, 'b, T: Element>(
        &self,
        patches: impl Into<TensorView<'a, T>>,
        output: impl Into<TensorViewMut<'b, T>>,
    ) -> Result<()> {
        self.fold_checked(patches.into(), output.into(), false)
    }

    /// As [`Conv::fold`], but averages overlapping entries: a left inverse of [`Conv::unfold`] wherever
    /// some patch covers the input, and 0 elsewhere.
    ///
    /// # Errors
    /// As [`Conv::fold`].
    pub fn fold_average<'a, T: Element>(
        &self,
        patches: impl Into<TensorView<'a, T>>,
        input_size: [usize; D],
    ) -> Result<Tensor<T>> {
        self.fold_fresh(patches.into(), input_size, true)
    }

    /// [`Conv::fold_average`] into a buffer of the caller's, all of which is overwritten.
    ///
    /// # Errors
    /// As [`Conv::fold_into`].
    pub fn fold_average_into<'a, 'b, T: Element>(
        &self,
        patches: impl Into<TensorView<'a, T>>,
        output: impl Into<TensorViewMut<'b, T>>,
    ) -> Result<()> {
        self.fold_checked(patches.into(), output.into(), true)
    }

    fn fold_fresh<T: Element>(
        &self,
        patches: TensorView<T>,
        input_size: [usize; D],
        average: bool,
    ) -> Result<Tensor<T>> {
        let layout = self.axis_order();
        let geometry = self.bind(input_size)?;
        let (batch, channels) = split_patches(&geometry, patches.shape())?;
        let shape = layout.activation_shape(batch, channels, &input_size);
        let mut output = Tensor::for_result(&patches.device(), &shape)?;
        self.fold_checked(patches, output.view_mut(), average)?;
        Ok(output)
    }

    fn fold_checked<T: Element>(
        &self,
        patches: TensorView<T>,
        output: TensorViewMut<T>,
        average: bool,
    ) -> Result<()> {
        let layout = self.axis_order();
        let (batch, channels, input) = layout.split_activation("output", output.shape())?;
        let geometry = self.bind(input)?;
        if split_patches(&geometry, patches.shape())? != (batch, channels) {
            let rows = channels * geometry.taps();
            let expected = layout.patch_shape(batch, rows, geometry.positions());
            return Err(Error::shape("patches", format!("{expected:?}"), patches.shape()));
        }
        let counts = [batch, channels, self.group_count()];
        let axes = geometry.axes()?;
        match common_device(&[("patches", patches.device()), ("output", output.device())])? {
            Device::Cpu => cpu::fold(layout, &axes, counts, patches.host(), output.host(), average),
            #[cfg(gpu)]
            Device::Cuda(_) => {
                cuda::fold(layout, &axes, counts, patches.cuda(), output.cuda(), average)
            }
        }
    }
}

/// (batch, channels) of patches that fit the geometry.
fn split_patches<const D: usize>(
    geometry: &Geometry<D>,
    shape: &[usize],
) -> Result<(usize, usize)> {
    let layout = geometry.conv().axis_order();
    let (taps, positions) = (geometry.taps(), geometry.positions());
    let (batch, rows, length) = match (layout, shape) {
        (Layout::ChannelsFirst, &[batch, rows, length]) => (batch, rows, length),
        (Layout::ChannelsLast, &[batch, length, rows]) => (batch, rows, length),
        _ => return Err(Error::shape("patches", "rank 3", shape)),
    };
    if length != positions || !rows.is_multiple_of(taps) {
        let expected = match layout {
            Layout::ChannelsFirst => format!("[N, a multiple of {taps}, {positions}]"),
            Layout::ChannelsLast => format!("[N, {positions}, a multiple of {taps}]"),
        };
        return Err(Error::shape("patches", expected, shape));
    }
    let channels = rows / taps;
    geometry.channels_per_group("patches", channels)?;
    Ok((batch, channels))
}
