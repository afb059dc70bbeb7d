//! Files: npy, npz (NumPy's and `scipy.sparse`'s archives) and safetensors, read and written.
//!
//! A tensor in a file is named as on the command line, see [`Source`]:
//!
//! ```no_run
//! use convmat::{Tensor, io};
//!
//! let weight: Tensor<f32> = io::read(&"model.safetensors:conv1.weight".parse()?)?.into_tensor()?;
//! io::write_npy("weight.npy", &weight)?;
//! # Ok::<(), convmat::Error>(())
//! ```
//!
//! Readers trust nothing a file says: sizes are checked against the file's own before memory is
//! asked for, and whatever does not add up is [`Error::Format`]. Writers are atomic: the file appears
//! whole under its name, or not at all and the old one stays. A program that handles signals asks for
//! the same with [`abandon_writes`] before it ends.

mod array;
mod atomic;
mod npy;
mod npz;
mod safetensors;
mod source;

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

pub use array::{AnyTensor, Array, ArrayType};
pub use atomic::{AbandonedWrites, abandon_writes, check_writable, write_file};
pub use npy::{write_npy, write_npy_with_progress};
pub use npz::{NpzReader, NpzWriter};
pub(crate) use safetensors::write_with_note;
pub use safetensors::{AnyView, SafetensorsReader, write_safetensors};
pub use source::{Format, Source};

use crate::device::Device;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::tensor::TensorView;
use source::Origin;

#[cfg(target_endian = "big")]
compile_error!("the feature `io` copies little-endian files to memory as they are");

/// Reads one array. To read several from one archive, open it once with [`NpzReader`] or
/// [`SafetensorsReader`].
///
/// # Errors
/// [`Error::Io`] when the system refuses; [`Error::Format`] when the file is damaged or has no array
/// of that name; [`Error::ElementType`] when the array holds neither numbers, booleans nor byte
/// strings; [`Error::TooLarge`] or [`Error::Allocation`] when it does not fit in memory.
pub fn read(source: &Source) -> Result<Array> {
    let (path, key) = (source.path(), source.key());
    match source.format() {
        Format::Npy => {
            let (mut file, len) = open(path)?;
            npy::read(Origin { path, key: None }, &mut file, len)
        }
        Format::Npz => {
            let mut archive = NpzReader::open(path)?;
            let index = source::choose(path, key, archive.names())?;
            archive.read_index(index)
        }
        Format::Safetensors => {
            let mut archive = SafetensorsReader::open(path)?;
            let index = source::choose(path, key, archive.names())?;
            archive.read_index(index)
        }
    }
}

/// Opens a file for reading; also its size in bytes.
fn open(path: &Path) -> Result<(BufReader<File>, u64)> {
    let io = |e| Error::Io { path: path.to_path_buf(), source: e };
    let file = File::open(path).map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    Ok((BufReader::new(file), len))
}

/// The elements of a host tensor as bytes; a device's are for the caller to bring over, knowingly.
fn host_bytes<'a, T: Element>(name: &str, tensor: &TensorView<'a, T>) -> Result<&'a [u8]> {
    match tensor.as_slice() {
        Some(elements) => Ok(bytemuck::cast_slice(elements)),
        None => Err(Error::DeviceMismatch {
            left: name.into(),
            left_device: tensor.device().to_string(),
            right: "the file".into(),
            right_device: Device::Cpu.to_string(),
        }),
    }
}
