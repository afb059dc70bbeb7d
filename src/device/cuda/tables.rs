//! Tables that kernels read, copied to the device once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::driver::Driver;
use super::{CudaDevice, DeviceBuffer};
use crate::error::Result;

/// Tables are kept until they take so many bytes together; later ones are copied for each call.
const KEEP_AT_MOST: usize = 16 << 20;

/// The tables of one device, by their contents.
#[derive(Default)]
pub(super) struct Tables(Mutex<HashMap<Box<[i32]>, u64>>);

/// A table on a device.
#[derive(Debug)]
pub(crate) enum Table {
    /// Lives as long as the device.
    Kept(u64),
    Own(DeviceBuffer<i32>),
}

impl Table {
    pub(crate) fn address(&self) -> u64 {
        match self {
            Table::Kept(address) => *address,
            Table::Own(buffer) => buffer.view().address(),
        }
    }
}

impl CudaDevice {
    /// The same numbers on the device. They are copied there by the first call; later ones queue nothing
    /// and allocate nothing.
    ///
    /// # Errors
    /// [`crate::Error::Allocation`], [`crate::Error::Device`].
    pub(crate) fn table(&self, what: &str, table: &[i32]) -> Result<Table> {
        let mut kept = self.0.tables.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&address) = kept.get(table) {
            return Ok(Table::Kept(address));
        }
        let buffer = DeviceBuffer::from_slice(self, what, table)?;
        let bytes: usize = kept.keys().map(|table| size_of_val(&table[..])).sum();
        if table.is_empty() || bytes + size_of_val(table) > KEEP_AT_MOST {
            return Ok(Table::Own(buffer));
        }
        // Not as a buffer: that would hold the device, which holds this.
        let (address, _) = buffer.into_address();
        kept.insert(table.into(), address);
        Ok(Table::Kept(address))
    }

    /// So many zeros for one program, which its kernels count with.
    ///
    /// # Errors
    /// [`crate::Error::Allocation`], [`crate::Error::Device`].
    pub(super) fn counters(&self, what: &str, len: usize) -> Result<Table> {
        Ok(Table::Own(DeviceBuffer::zeros(self, what, len)?))
    }
}

impl Tables {
    /// Frees all of them, of which none is used any more.
    pub(super) fn release(&mut self, driver: &dyn Driver) {
        let kept = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (table, address) in kept.drain() {
            // SAFETY: the memory was allocated with this size, and the device is given up.
            unsafe { driver.free(address, size_of_val(&table[..])) }
        }
    }
}
