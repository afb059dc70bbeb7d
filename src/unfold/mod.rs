//! Unfold (im2col): patches of the input as the columns of a matrix.

mod cpu;
#[cfg(gpu)]
pub(crate) mod cuda;

pub(crate) use cpu::{TABLE_ENTRIES, entry_sources};

use crate::device::Device;
use crate::element::Element;
use crate::error::{Result, checked_product};
use crate::geometry::{Conv, Geometry};
use crate::tensor::view::{common_device, expect_shape};
use crate::tensor::{Tensor, TensorView, TensorViewMut};

impl<const D: usize> Conv<D> {
    /// The patches of `input`: `A[n, c·K + k, o] = x[n, c, i(o, k)]`, 0 where a tap is dropped.
    /// Elements are copied bit by bit, NaNs included. PyTorch's counterpart is
    /// `torch.nn.functional.unfold`, which knows 2 spatial axes and zero padding only.
    ///
    /// | layout | `input` | result |
    /// |---|---|---|
    /// | channels-first | `[N, C, spatial…]` | `[N, C·K, L]`, rows ordered (channel, tap) |
    /// | channels-last | `[N, spatial…, C]` | `[N, L, C·K]`, columns ordered (group, tap, channel of the group) |
    ///
    /// K is the number of taps, L that of output positions, both row-major.
    ///
    /// # Errors
    /// When the shape does not fit the convolution (see [`Conv::bind`]), groups do not divide the
    /// channels, or the result does not fit in memory.
    pub fn unfold<'a, T: Element>(&self, input: impl Into<TensorView<'a, T>>) -> Result<Tensor<T>> {
        let input = input.into();
        let call = Call::new(self, input.shape())?;
        let mut patches = Tensor::for_result(&input.device(), &call.patch_shape)?;
        call.run(input, patches.view_mut())?;
        Ok(patches)
    }

    /// [`Conv::unfold`] into a buffer of the caller's, all of which is overwritten.
    ///
    /// # Errors
    /// As [`Conv::unfold`]; also when `patches` has another shape or is on another device.
    pub fn unfold_into<'a, 'b, T: Element>(
        &self,
        input: impl Into<TensorView<'a, T>>,
        patches: impl Into<TensorViewMut<'b, T>>,
    ) -> Result<()> {
        let (input, patches) = (input.into(), patches.into());
        let call = Call::new(self, input.shape())?;
        expect_shape("patches", &call.patch_shape, patches.shape())?;
        call.run(input, patches)
    }
}

/// A validated call.
struct Call<const D: usize> {
    geometry: Geometry<D>,
    batch: usize,
    channels: usize,
    patch_shape: Vec<usize>,
}

impl<const D: usize> Call<D> {
    fn new(conv: &Conv<D>, input_shape: &[usize]) -> Result<Self> {
        let layout = conv.axis_order();
        let (batch, channels, spatial) = layout.split_activation("input", input_shape)?;
        let geometry = conv.bind(spatial)?;
        geometry.channels_per_group("input", channels)?;
        let rows = checked_product("the number of patch rows", &[channels, geometry.taps()])?;
        let patch_shape = layout.patch_shape(batch, rows, geometry.positions());
        Ok(Call { geometry, batch, channels, patch_shape })
    }

    fn run<T: Element>(&self, input: TensorView<T>, patches: TensorViewMut<T>) -> Result<()> {
        let conv = self.geometry.conv();
        let (layout, axes) = (conv.axis_order(), self.geometry.axes()?);
        let counts = [self.batch, self.channels, conv.group_count()];
        match common_device(&[("input", input.device()), ("patches", patches.device())])? {
            Device::Cpu => cpu::unfold(layout, &axes, counts, input.host(), patches.host()),
            #[cfg(gpu)]
            Device::Cuda(_) => cuda::unfold(layout, &axes, counts, input.cuda(), patches.cuda())?,
        }
        Ok(())
    }
}
