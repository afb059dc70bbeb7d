//! npy, NumPy's format of one array, versions 1.0 to 3.0.
//!
//! The crate has a parser of its own. The published ones (ndarray-npy, npyz) read into one Rust type that
//! is chosen at compile time, and have neither f16 nor bf16; here the file says which type it holds.
//! bfloat16 is written as Python's `ml_dtypes` writes it: as `<V2`, two bytes without a stated meaning.

use std::io::{Read, Write};
use std::path::Path;

use crate::element::{DType, Element};
use crate::error::{Error, Result, checked_product};
use crate::io::array::{Array, ArrayType};
use crate::io::atomic::{AtomicFile, write_chunks};
use crate::io::host_bytes;
use crate::io::source::Origin;
use crate::tensor::TensorView;

const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// NumPy's own limit since version 2.
const MAX_AXES: usize = 64;

/// A header of a plain array has some 120 bytes; only structured types need more than version 1.0
/// allows.
const MAX_HEADER: u64 = u16::MAX as u64;

/// Writes a tensor as an npy file of its element type, in C order.
///
/// # Errors
/// [`Error::Io`] when the file cannot be written; then a file that was there before stays as it was.
/// [`Error::Shape`] beyond 64 axes, which NumPy could not read.
pub fn write_npy<'a, T: Element>(
    path: impl AsRef<Path>,
    tensor: impl Into<TensorView<'a, T>>,
) -> Result<()> {
    write_npy_with_progress(path, tensor, |_| ())
}

/// As [`write_npy`], telling `progress` the number of bytes of elements written since it was last
/// told, about every MiB.
///
/// # Errors
/// As [`write_npy`].
pub fn write_npy_with_progress<'a, T: Element>(
    path: impl AsRef<Path>,
    tensor: impl Into<TensorView<'a, T>>,
    mut progress: impl FnMut(u64),
) -> Result<()> {
    let (path, tensor) = (path.as_ref(), tensor.into());
    let bytes = host_bytes("tensor", &tensor)?;
    let header = header(ArrayType::Float(T::DTYPE), tensor.shape())?;
    let mut file = AtomicFile::create(path)?;
    file.write_all(&header)
        .and_then(|()| write_chunks(&mut file, bytes, &mut progress))
        .map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
    file.commit()
}

/// Everything before the elements, padded to a multiple of 64 bytes as the format demands.
pub(super) fn header(dtype: ArrayType, shape: &[usize]) -> Result<Vec<u8>> {
    if shape.len() > MAX_AXES {
        return Err(Error::shape("tensor", format!("at most {MAX_AXES} axes"), shape));
    }
    let axes: String = shape.iter().map(|n| format!("{n}, ")).collect();
    // As Python prints a tuple: only a tuple of one element has a comma at its end.
    let axes = if shape.len() == 1 { axes.trim_end() } else { axes.trim_end_matches(", ") };
    let dict =
        format!("{{'descr': '{}', 'fortran_order': False, 'shape': ({axes}), }}", descr(dtype));
    let prefix = MAGIC.len() + 2 + 2;
    let len = (prefix + dict.len() + 1).next_multiple_of(64) - prefix;
    let mut header = Vec::with_capacity(prefix + len);
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&[1, 0]);
    header.extend_from_slice(&(len as u16).to_le_bytes());
    header.extend_from_slice(dict.as_bytes());
    header.resize(prefix + len - 1, b' ');
    header.push(b'\n');
    Ok(header)
}

/// NumPy's name of a type.
fn descr(dtype: ArrayType) -> String {
    match dtype {
        ArrayType::Bool => "|b1".into(),
        ArrayType::U8 => "|u1".into(),
        ArrayType::I8 => "|i1".into(),
        ArrayType::Bytes(size) => format!("|S{size}"),
        ArrayType::Float(DType::BF16) => "<V2".into(),
        ArrayType::Float(_) => format!("<f{}", dtype.size()),
        ArrayType::U16 | ArrayType::U32 | ArrayType::U64 => format!("<u{}", dtype.size()),
        ArrayType::I16 | ArrayType::I32 | ArrayType::I64 => format!("<i{}", dtype.size()),
    }
}

/// The type that has this name in NumPy, and whether it is big-endian.
fn parse_descr(descr: &str) -> Option<(ArrayType, bool)> {
    let name = descr.trim_start_matches(['<', '>', '|', '=']);
    if descr.len() > name.len() + 1 {
        return None;
    }
    let dtype = match name {
        "b1" | "?" => ArrayType::Bool,
        "u1" => ArrayType::U8,
        "u2" => ArrayType::U16,
        "u4" => ArrayType::U32,
        "u8" => ArrayType::U64,
        "i1" => ArrayType::I8,
        "i2" => ArrayType::I16,
        "i4" => ArrayType::I32,
        "i8" => ArrayType::I64,
        "f2" => ArrayType::Float(DType::F16),
        "f4" => ArrayType::Float(DType::F32),
        "f8" => ArrayType::Float(DType::F64),
        "V2" => ArrayType::Float(DType::BF16),
        _ => ArrayType::Bytes(name.strip_prefix('S')?.parse().ok()?),
    };
    Some((dtype, descr.starts_with('>')))
}

/// Reads an npy file whose total size is `len` bytes.
pub(super) fn read(origin: Origin<'_>, reader: &mut impl Read, len: u64) -> Result<Array> {
    let (text, header_len) = read_header(origin, reader, len)?;
    let header =
        parse_header(&text).map_err(|reason| origin.format(format!("header: {reason}")))?;
    let (dtype, big_endian) = parse_descr(&header.descr).ok_or_else(|| Error::ElementType {
        argument: origin.to_string(),
        expected: "a float, an integer, a boolean or a byte string".into(),
        found: header.descr.clone(),
    })?;
    let count = checked_product(&origin.to_string(), &header.shape)?;
    let declared = (count as u64).checked_mul(dtype.size() as u64);
    let found = len - header_len;
    if declared != Some(found) {
        let reason = format!(
            "shape {:?} of {dtype} does not take the {found} bytes the file has",
            header.shape
        );
        return Err(origin.format(reason));
    }
    let in_fortran_order = header.fortran_order && header.shape.len() > 1;
    if in_fortran_order && matches!(dtype, ArrayType::Bytes(_)) {
        return Err(origin.format("byte strings in Fortran order are not supported"));
    }
    let mut array = Array::read_elements(origin, reader, dtype, header.shape)?;
    if big_endian {
        array = array.swap_bytes();
    }
    if in_fortran_order { array.transpose_storage() } else { Ok(array) }
}

/// The header's text, and the number of bytes up to the elements.
fn read_header(origin: Origin<'_>, reader: &mut impl Read, len: u64) -> Result<(Vec<u8>, u64)> {
    let mut read = |bytes: &mut [u8]| reader.read_exact(bytes).map_err(|e| origin.io(e));
    let mut start = [0; 8];
    read(&mut start)?;
    if !start.starts_with(MAGIC) {
        return Err(origin.format("not an npy file: it does not start with \\x93NUMPY"));
    }
    let (prefix, text_len) = match start[6] {
        1 => {
            let mut bytes = [0; 2];
            read(&mut bytes)?;
            (10, u64::from(u16::from_le_bytes(bytes)))
        }
        2 | 3 => {
            let mut bytes = [0; 4];
            read(&mut bytes)?;
            (12, u64::from(u32::from_le_bytes(bytes)))
        }
        major => return Err(origin.format(format!("npy version {major}, expected 1, 2 or 3"))),
    };
    if prefix + text_len > len {
        return Err(origin.format("the file is truncated"));
    }
    if text_len > MAX_HEADER {
        return Err(origin.format(format!("a header of {text_len} bytes, over {MAX_HEADER}")));
    }
    let mut text = vec![0; text_len as usize];
    read(&mut text)?;
    Ok((text, prefix + text_len))
}

struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

/// Parses the Python dictionary that is the header.
fn parse_header(text: &[u8]) -> Result<Header, String> {
    let mut cursor = Cursor { rest: text };
    let (mut descr, mut fortran_order, mut shape) = (None, None, None);
    cursor.expect(b'{')?;
    while !cursor.accept(b'}') {
        let key = cursor.string()?;
        cursor.expect(b':')?;
        match key.as_str() {
            "descr" => {
                descr = Some(cursor.string().map_err(|e| format!("{e} (a structured type?)"))?);
            }
            "fortran_order" => fortran_order = Some(cursor.boolean()?),
            "shape" => shape = Some(cursor.tuple()?),
            other => return Err(format!("unknown entry `{other}`")),
        }
        if !cursor.accept(b',') {
            cursor.expect(b'}')?;
            break;
        }
    }
    if cursor.peek().is_some() {
        return Err("text after the closing brace".into());
    }
    Ok(Header {
        descr: descr.ok_or("no `descr`")?,
        fortran_order: fortran_order.ok_or("no `fortran_order`")?,
        shape: shape.ok_or("no `shape`")?,
    })
}

struct Cursor<'a> {
    rest: &'a [u8],
}

impl Cursor<'_> {
    /// The next byte that is not white space.
    fn peek(&mut self) -> Option<u8> {
        self.rest = self.rest.trim_ascii_start();
        self.rest.first().copied()
    }

    fn accept(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        if found {
            self.rest = &self.rest[1..];
        }
        found
    }

    fn expect(&mut self, byte: u8) -> Result<(), String> {
        if self.accept(byte) { Ok(()) } else { Err(format!("expected `{}`", byte as char)) }
    }

    /// Takes the bytes from here on for which `of` is true.
    fn take(&mut self, of: impl Fn(u8) -> bool) -> String {
        let len = self.rest.iter().position(|&b| !of(b)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(len);
        self.rest = rest;
        String::from_utf8_lossy(taken).into_owned()
    }

    fn string(&mut self) -> Result<String, String> {
        let quote = if self.peek() == Some(b'"') { b'"' } else { b'\'' };
        if !self.accept(quote) {
            return Err("expected a string".into());
        }
        let text = self.take(|b| b != quote && b != b'\\');
        self.expect(quote)?;
        Ok(text)
    }

    fn boolean(&mut self) -> Result<bool, String> {
        self.peek();
        match self.take(|b| b.is_ascii_alphabetic()).as_str() {
            "True" => Ok(true),
            "False" => Ok(false),
            other => Err(format!("expected True or False, not `{other}`")),
        }
    }

    fn tuple(&mut self) -> Result<Vec<usize>, String> {
        let mut items = Vec::new();
        self.expect(b'(')?;
        while !self.accept(b')') {
            self.peek();
            let digits = self.take(|b| b.is_ascii_digit());
            items.push(digits.parse().map_err(|_| format!("`{digits}` is not an extent"))?);
            if items.len() > MAX_AXES {
                return Err(format!("more than {MAX_AXES} axes"));
            }
            self.accept(b'L'); // Python 2 wrote long integers so.
            if !self.accept(b',') {
                self.expect(b')')?;
                break;
            }
        }
        Ok(items)
    }
}
