//! A pool of a device's memory.

use std::ffi::c_void;

use cudarc::driver::sys::{self, CUmemoryPool};
use cudarc::driver::{DriverError, result};

/// A memory pool of our own: the device's default pool is the program's, and so are its settings.
#[derive(Debug)]
pub(super) struct Pool(pub(super) CUmemoryPool);

// SAFETY: pools are used through calls to the driver, which any thread may make.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Pool {
    pub(super) fn new(ordinal: usize) -> Result<Self, DriverError> {
        /// `CUmemPoolProps`. The bindings' struct has other field names in each version of CUDA; the
        /// layout is the same in all.
        #[repr(C)]
        struct Properties {
            allocation: u32,
            handles: u32,
            location: u32,
            device: i32,
            security: *mut c_void,
            reserved: [u8; 64],
        }
        const _: () = assert!(size_of::<Properties>() == size_of::<sys::CUmemPoolProps>());
        const _: () = assert!(align_of::<Properties>() == align_of::<sys::CUmemPoolProps>());
        let properties = Properties {
            allocation: sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED as u32,
            // None: it is not shared with other processes.
            handles: 0,
            location: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE as u32,
            device: ordinal as i32,
            security: std::ptr::null_mut(),
            reserved: [0; 64],
        };
        // SAFETY: the driver reads a struct of this layout.
        let pool = Pool(unsafe { result::mem_pool::create((&raw const properties).cast())? });
        // Freed memory is kept for later results, as it is on the CPU; giving it back to the system and
        // asking for it again would cost more than most operations.
        let mut threshold = u64::MAX;
        // SAFETY: the pool is alive, and this attribute is a 64-bit integer.
        unsafe {
            result::mem_pool::set_attribute(
                pool.0,
                sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
                (&raw mut threshold).cast(),
            )?;
        }
        Ok(pool)
    }
}
