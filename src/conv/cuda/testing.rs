//! What tests of several algorithms share.

use crate::device::cuda::{CudaDevice, DeviceBuffer, Draft, Region};
use crate::element::Element;
use crate::error::Result;

/// Drafts on these operands, and runs at once.
pub(super) fn run_once<T: Element, const N: usize>(
    device: &CudaDevice,
    operands: [&DeviceBuffer<T>; N],
    write: impl FnOnce(&mut Draft, [Region<T>; N]) -> Result<()>,
) {
    let addresses = operands.map(|buffer| buffer.view().address());
    let mut draft = Draft::for_addresses(device, &addresses);
    let regions = operands.map(|buffer| draft.operand(buffer.len()));
    write(&mut draft, regions).unwrap();
    // SAFETY: the operands are as large as the regions; results are borrowed by this call alone.
    unsafe { draft.run_once(&addresses).unwrap() };
}
