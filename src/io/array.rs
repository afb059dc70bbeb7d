//! An array as a file holds it: a type known at run time, and its elements.

use std::fmt;
use std::io::Read;

use bytemuck::allocation::cast_vec;
use bytemuck::{Pod, cast_slice, cast_slice_mut};
use half::{bf16, f16};
use ndarray::{ArrayViewD, ArrayViewMutD, IxDyn, ShapeBuilder};

use crate::device::Device;
use crate::element::{DType, Element};
use crate::error::{Error, Result, checked_product};
use crate::io::source::Origin;
use crate::memory::{try_with_capacity, try_zeroed};
use crate::tensor::Tensor;

/// The element types files hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ArrayType {
    /// One byte; anything but 0 is true.
    Bool,
    /// Unsigned integer, 1 byte.
    U8,
    /// Unsigned integer, 2 bytes.
    U16,
    /// Unsigned integer, 4 bytes.
    U32,
    /// Unsigned integer, 8 bytes.
    U64,
    /// Signed integer, 1 byte.
    I8,
    /// Signed integer, 2 bytes.
    I16,
    /// Signed integer, 4 bytes.
    I32,
    /// Signed integer, 8 bytes.
    I64,
    /// An element type the crate computes with.
    Float(DType),
    /// A byte string of that many bytes, padded with zeros.
    Bytes(usize),
}

impl ArrayType {
    /// Size of one element, in bytes.
    pub fn size(self) -> usize {
        match self {
            ArrayType::Bool | ArrayType::U8 | ArrayType::I8 => 1,
            ArrayType::U16 | ArrayType::I16 => 2,
            ArrayType::U32 | ArrayType::I32 => 4,
            ArrayType::U64 | ArrayType::I64 => 8,
            ArrayType::Float(dtype) => dtype.size(),
            ArrayType::Bytes(size) => size,
        }
    }
}

impl fmt::Display for ArrayType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ArrayType::Bool => "bool",
            ArrayType::U8 => "u8",
            ArrayType::U16 => "u16",
            ArrayType::U32 => "u32",
            ArrayType::U64 => "u64",
            ArrayType::I8 => "i8",
            ArrayType::I16 => "i16",
            ArrayType::I32 => "i32",
            ArrayType::I64 => "i64",
            ArrayType::Float(dtype) => return dtype.fmt(f),
            ArrayType::Bytes(size) => return write!(f, "byte string of {size}"),
        })
    }
}

/// The elements, in a vector of integers of the same width: so they are aligned, and a tensor can take
/// the vector over without copying.
#[derive(Clone, Debug, PartialEq)]
enum Words {
    W1(Vec<u8>),
    W2(Vec<u16>),
    W4(Vec<u32>),
    W8(Vec<u64>),
}

/// Runs an expression on the vector inside, whatever its width.
macro_rules! each {
    ($words:expr, $v:ident => $body:expr) => {
        match $words {
            Words::W1($v) => $body,
            Words::W2($v) => $body,
            Words::W4($v) => $body,
            Words::W8($v) => $body,
        }
    };
}

impl Words {
    fn zeroed(what: &str, dtype: ArrayType, count: usize) -> Result<Self> {
        Ok(match (dtype, dtype.size()) {
            (ArrayType::Bytes(size), _) => {
                Words::W1(try_zeroed(what, checked_product(what, &[count, size])?)?)
            }
            (_, 1) => Words::W1(try_zeroed(what, count)?),
            (_, 2) => Words::W2(try_zeroed(what, count)?),
            (_, 4) => Words::W4(try_zeroed(what, count)?),
            _ => Words::W8(try_zeroed(what, count)?),
        })
    }

    fn bytes(&self) -> &[u8] {
        each!(self, v => cast_slice(v))
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        each!(self, v => cast_slice_mut(v))
    }

    fn swap_bytes(&mut self) {
        each!(self, v => v.iter_mut().for_each(|word| *word = word.swap_bytes()))
    }

    /// The same array in row-major order, when these words are in column-major order.
    fn row_major(&self, what: &str, shape: &[usize]) -> Result<Words> {
        Ok(match self {
            Words::W1(v) => Words::W1(row_major(what, shape, v)?),
            Words::W2(v) => Words::W2(row_major(what, shape, v)?),
            Words::W4(v) => Words::W4(row_major(what, shape, v)?),
            Words::W8(v) => Words::W8(row_major(what, shape, v)?),
        })
    }

    /// The vector as a vector of `T`, which must have the same width.
    fn into_vec<T: Pod>(self) -> Vec<T> {
        each!(self, v => cast_vec(v))
    }
}

fn row_major<T: Pod>(what: &str, shape: &[usize], words: &[T]) -> Result<Vec<T>> {
    let mut result = try_zeroed(what, words.len())?;
    let refused = |e: ndarray::ShapeError| Error::shape(what, e.to_string(), shape);
    let source = ArrayViewD::from_shape(IxDyn(shape).f(), words).map_err(refused)?;
    let target = ArrayViewMutD::from_shape(IxDyn(shape), &mut result).map_err(refused)?;
    source.assign_to(target);
    Ok(result)
}

/// An array read from a file: row-major, on the host, of a type known at run time.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    name: String,
    shape: Vec<usize>,
    dtype: ArrayType,
    words: Words,
}

impl Array {
    /// Reads the elements, little-endian, from where `reader` stands. The caller has checked that
    /// the file has that many.
    pub(super) fn read_elements(
        origin: Origin<'_>,
        reader: &mut impl Read,
        dtype: ArrayType,
        shape: Vec<usize>,
    ) -> Result<Self> {
        let name = origin.to_string();
        let mut words = Words::zeroed(&name, dtype, checked_product(&name, &shape)?)?;
        reader.read_exact(words.bytes_mut()).map_err(|e| origin.io(e))?;
        Ok(Array { name, shape, dtype, words })
    }

    /// The array whose elements were read as if little-endian, but are big-endian.
    pub(super) fn swap_bytes(mut self) -> Self {
        self.words.swap_bytes();
        self
    }

    /// The array whose elements were read as if row-major, but are column-major.
    pub(super) fn transpose_storage(mut self) -> Result<Self> {
        self.words = self.words.row_major(&self.name, &self.shape)?;
        Ok(self)
    }

    /// Where it was read from, as [`Source`](crate::io::Source) writes it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Extents of the axes, slowest first, in elements; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Type of the elements.
    pub fn dtype(&self) -> ArrayType {
        self.dtype
    }

    /// The elements in row-major order, little-endian.
    pub fn bytes(&self) -> &[u8] {
        self.words.bytes()
    }

    fn wrong_type(&self, expected: impl fmt::Display) -> Error {
        Error::ElementType {
            argument: self.name.clone(),
            expected: expected.to_string(),
            found: self.dtype.to_string(),
        }
    }

    /// The array as a tensor on the host, without copying.
    ///
    /// # Errors
    /// [`Error::ElementType`] when it is not of `T`; see [`Array::convert`].
    pub fn into_tensor<T: Element>(self) -> Result<Tensor<T>> {
        if self.dtype != ArrayType::Float(T::DTYPE) {
            return Err(Error::element_type(&self.name, T::DTYPE, self.dtype));
        }
        Tensor::from_vec(&Device::Cpu, &self.shape, self.words.into_vec())
    }

    /// The array as a tensor of its own type.
    ///
    /// # Errors
    /// [`Error::ElementType`] when that is not one the crate computes with.
    pub fn into_any(self) -> Result<AnyTensor> {
        Ok(match self.dtype {
            ArrayType::Float(DType::F16) => AnyTensor::F16(self.into_tensor()?),
            ArrayType::Float(DType::BF16) => AnyTensor::BF16(self.into_tensor()?),
            ArrayType::Float(DType::F32) => AnyTensor::F32(self.into_tensor()?),
            ArrayType::Float(DType::F64) => AnyTensor::F64(self.into_tensor()?),
            _ => return Err(self.wrong_type("f16, bf16, f32 or f64")),
        })
    }

    /// The numbers or booleans as a tensor of `T`, rounded to nearest (64-bit integers by way of
    /// f64). Elements that already are `T` are not copied.
    ///
    /// # Errors
    /// [`Error::ElementType`] when the array holds byte strings.
    pub fn convert<T: Element>(self) -> Result<Tensor<T>> {
        let data = match self.dtype {
            ArrayType::Float(dtype) if dtype == T::DTYPE => return self.into_tensor(),
            ArrayType::Float(DType::F16) => self.map(|v: f16| T::from_f64(v.into()))?,
            ArrayType::Float(DType::BF16) => self.map(|v: bf16| T::from_f64(v.into()))?,
            ArrayType::Float(DType::F32) => self.map(|v: f32| T::from_f64(v.into()))?,
            ArrayType::Float(DType::F64) => self.map(T::from_f64)?,
            ArrayType::Bool => self.map(|v: u8| T::from_f64(f64::from(v != 0)))?,
            ArrayType::U8 => self.map(|v: u8| T::from_f64(v.into()))?,
            ArrayType::U16 => self.map(|v: u16| T::from_f64(v.into()))?,
            ArrayType::U32 => self.map(|v: u32| T::from_f64(v.into()))?,
            ArrayType::U64 => self.map(|v: u64| T::from_f64(v as f64))?,
            ArrayType::I8 => self.map(|v: i8| T::from_f64(v.into()))?,
            ArrayType::I16 => self.map(|v: i16| T::from_f64(v.into()))?,
            ArrayType::I32 => self.map(|v: i32| T::from_f64(v.into()))?,
            ArrayType::I64 => self.map(|v: i64| T::from_f64(v as f64))?,
            ArrayType::Bytes(_) => return Err(self.wrong_type("numbers")),
        };
        Tensor::from_vec(&Device::Cpu, &self.shape, data)
    }

    /// The integers or booleans in row-major order.
    ///
    /// # Errors
    /// [`Error::ElementType`] when the array holds anything else, or u64 (which may not fit).
    pub fn to_integers(&self) -> Result<Vec<i64>> {
        match self.dtype {
            ArrayType::Bool => self.map(|v: u8| i64::from(v != 0)),
            ArrayType::U8 => self.map(|v: u8| v.into()),
            ArrayType::U16 => self.map(|v: u16| v.into()),
            ArrayType::U32 => self.map(|v: u32| v.into()),
            ArrayType::I8 => self.map(|v: i8| v.into()),
            ArrayType::I16 => self.map(|v: i16| v.into()),
            ArrayType::I32 => self.map(|v: i32| v.into()),
            ArrayType::I64 => self.map(|v: i64| v),
            _ => Err(self.wrong_type("integers of at most 63 bits")),
        }
    }

    /// The elements, which are of `S`, one by one through `f`.
    fn map<S: Pod, U>(&self, f: impl Fn(S) -> U) -> Result<Vec<U>> {
        let elements: &[S] = cast_slice(self.bytes());
        let mut result = try_with_capacity(&self.name, elements.len())?;
        result.extend(elements.iter().map(|&v| f(v)));
        Ok(result)
    }
}

/// A tensor of any of the element types the crate computes with.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum AnyTensor {
    /// Half precision.
    F16(Tensor<f16>),
    /// bfloat16.
    BF16(Tensor<bf16>),
    /// Single precision.
    F32(Tensor<f32>),
    /// Double precision.
    F64(Tensor<f64>),
}

impl AnyTensor {
    /// Type of the elements.
    pub fn dtype(&self) -> DType {
        match self {
            AnyTensor::F16(_) => DType::F16,
            AnyTensor::BF16(_) => DType::BF16,
            AnyTensor::F32(_) => DType::F32,
            AnyTensor::F64(_) => DType::F64,
        }
    }

    /// Extents of the axes, slowest first, in elements.
    pub fn shape(&self) -> &[usize] {
        match self {
            AnyTensor::F16(t) => t.shape(),
            AnyTensor::BF16(t) => t.shape(),
            AnyTensor::F32(t) => t.shape(),
            AnyTensor::F64(t) => t.shape(),
        }
    }
}
