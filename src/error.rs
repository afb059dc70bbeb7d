//! The crate's one error type.

use std::path::PathBuf;

use crate::element::{Accumulator, DType, Element};

/// What went wrong: every variant names the argument (or file, or device) and the offending value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument's value is outside what the operation allows.
    #[error("{argument} is {value}: {reason}")]
    Invalid {
        /// Name of the argument, for example `stride`.
        argument: String,
        /// The value that was given.
        value: String,
        /// What was expected of it.
        reason: String,
    },
    /// A tensor's shape does not fit the operation.
    #[error("{argument} has shape {found:?}, expected {expected}")]
    Shape {
        /// Name of the tensor, for example `weight`.
        argument: String,
        /// The shape, or the rule the shape has to satisfy.
        expected: String,
        /// The shape that was given.
        found: Vec<usize>,
    },
    /// A size does not fit the integers or the address space it has to be counted in.
    #[error("{what} is too large: {value} exceeds {limit}")]
    TooLarge {
        /// What was being counted.
        what: String,
        /// The size, or the product that overflowed.
        value: String,
        /// The largest size allowed.
        limit: u64,
    },
    /// An element type was found where another was needed.
    #[error("{argument} has element type {found}, expected {expected}")]
    ElementType {
        /// Name of the tensor.
        argument: String,
        /// The element type, or the list of types, allowed.
        expected: String,
        /// The element type that was found, as the file or caller names it.
        found: String,
    },
    /// Two operands live on different devices.
    #[error("{left} is on {left_device}, but {right} is on {right_device}")]
    DeviceMismatch {
        /// Name of the first operand.
        left: String,
        /// Where the first operand is.
        left_device: String,
        /// Name of the second operand.
        right: String,
        /// Where the second operand is.
        right_device: String,
    },
    /// A device was asked for that cannot be used.
    #[error("device {device} is unavailable: {reason}")]
    DeviceUnavailable {
        /// The device asked for, for example `cuda:0`.
        device: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// The compiler of a device refused one of the crate's kernels.
    #[error("{device}: {kernel} does not compile:\n{log}")]
    Compile {
        /// The kernel and what it was to be compiled for.
        kernel: String,
        /// The device.
        device: String,
        /// What the compiler said.
        log: String,
    },
    /// A device reported a failure. It may be of work queued earlier than the call that found it.
    #[error("{device}: {call} failed: {reason}")]
    Device {
        /// The device, for example `cuda:0`.
        device: String,
        /// The call that found the failure.
        call: String,
        /// What the device said.
        reason: String,
    },
    /// Memory could not be had.
    #[error("could not allocate {bytes} bytes for {what}")]
    Allocation {
        /// What the memory was for.
        what: String,
        /// How much was asked for, in bytes.
        bytes: u64,
    },
    /// A file is damaged or not of the format its name promises.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The operating system refused a file operation.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
}

/// `std::result::Result` with the crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn invalid(
        argument: impl Into<String>,
        value: impl std::fmt::Display,
        reason: impl Into<String>,
    ) -> Self {
        Error::Invalid {
            argument: argument.into(),
            value: value.to_string(),
            reason: reason.into(),
        }
    }

    pub(crate) fn shape(
        argument: impl Into<String>,
        expected: impl Into<String>,
        found: &[usize],
    ) -> Self {
        Error::Shape { argument: argument.into(), expected: expected.into(), found: found.to_vec() }
    }

    #[cfg(feature = "io")]
    pub(crate) fn element_type(
        argument: impl Into<String>,
        expected: DType,
        found: impl std::fmt::Display,
    ) -> Self {
        Error::ElementType {
            argument: argument.into(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }
}

/// The product of `factors`, or [`Error::TooLarge`] when it exceeds what a slice may hold
/// (`isize::MAX` bytes at 8 bytes an element).
pub(crate) fn checked_product(what: &str, factors: &[usize]) -> Result<usize> {
    const LIMIT: usize = isize::MAX as usize / 8;
    // A zero anywhere makes the product zero, but the others must still not overflow on the way.
    let product = factors.iter().filter(|&&f| f != 0).try_fold(1usize, |p, &f| p.checked_mul(f));
    match product {
        Some(p) if p <= LIMIT => Ok(if factors.contains(&0) { 0 } else { p }),
        _ => Err(Error::TooLarge {
            what: what.into(),
            value: factors.iter().map(usize::to_string).collect::<Vec<_>>().join(" x "),
            limit: LIMIT as u64,
        }),
    }
}

/// Fails unless sums over `T` may be accumulated in `F`.
pub(crate) fn check_accumulator<T: Element, F: Accumulator>(result: &str) -> Result<()> {
    if T::DTYPE == DType::F64 && F::DTYPE != DType::F64 {
        return Err(Error::ElementType {
            argument: result.into(),
            expected: format!("f64, what sums over {} are accumulated in", T::DTYPE),
            found: F::DTYPE.to_string(),
        });
    }
    Ok(())
}
