//! npz archives: any bytes, and archives of well-formed ZIP structure whose members, sizes and checksums are
//! whatever comes. Every array of them is read, and they are taken for sparse matrices.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use arbitrary::{Arbitrary, Unstructured};
use convmat::io::NpzReader;
use convmat::{Conv, Csr, SparseWeight};
use convmat_fuzz::zip::{self, Member};
use convmat_fuzz::{Counting, FIXED, directory, within};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static FILE: LazyLock<PathBuf> = LazyLock::new(|| directory().join("x.npz"));

/// A member of an archive holds at most so many times its own bytes: 258 bytes in 2 bits.
const DEFLATE: usize = 1032;

/// A byte of a sparse matrix's arrays becomes at most so many: an index of one byte is held as 8, in a few
/// arrays and while it is sorted.
const SPARSE: usize = 64;

/// Bytes that rows without entries may take.
const EMPTY_ROWS: usize = 8 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((&tag, rest)) = data.split_first() else { return };
    let file = match tag % 2 {
        0 => rest.to_vec(),
        _ => match archive(&mut Unstructured::new(rest)) {
            Ok(file) => file,
            Err(_) => return,
        },
    };
    std::fs::write(&*FILE, &file).unwrap();
    // An entry of the directory, 46 bytes, becomes some hundred.
    let opened = within(32 * file.len() + FIXED, || NpzReader::open(&*FILE));
    let Ok(mut reader) = opened else { return };
    let mut unpacked = 0;
    for name in reader.names().to_vec() {
        let array = within(2 * DEFLATE * file.len() + FIXED, || reader.read(&name));
        if let Ok(array) = array {
            let elements: usize = array.shape().iter().product();
            assert_eq!(array.bytes().len(), elements * array.dtype().size());
            unpacked += array.bytes().len();
        }
    }
    let allowance = SPARSE * unpacked + 2 * DEFLATE * file.len() + EMPTY_ROWS + FIXED;
    let _ = within(allowance, || Csr::<f32>::load_npz(&*FILE));
    let conv = Conv::new([3]);
    let _ = within(allowance, || SparseWeight::<f32>::load_npz(&conv, &*FILE));
});

/// An archive of arrays with the names that sparse matrices have.
fn archive(u: &mut Unstructured<'_>) -> arbitrary::Result<Vec<u8>> {
    const NAMES: [&str; 14] = [
        "format",
        "shape",
        "indptr",
        "indices",
        "data",
        "row",
        "col",
        "crow_indices",
        "col_indices",
        "values",
        "size",
        "x",
        "",
        "a/b",
    ];
    const TYPES: [&str; 14] = [
        "|b1", "|u1", "|i1", "<i2", ">i4", "<i4", "<i8", "<u8", "<f2", "<f4", "<f8", "|S3", "|S0",
        "<V2",
    ];
    let mut members = Vec::new();
    for _ in 0..u.int_in_range(1..=6)? {
        let name = *u.choose(&NAMES)?;
        let mut content = Vec::new();
        if u.ratio(9, 10)? {
            let shape: Vec<usize> = (0..u.int_in_range(0..=3)?)
                .map(|_| convmat_fuzz::number(u))
                .collect::<Result<_, _>>()?;
            let shape = shape.iter().map(|extent| format!("{extent},")).collect::<String>();
            let (descr, fortran) = (u.choose(&TYPES)?, u.ratio(1, 8)?);
            let fortran = if fortran { "True" } else { "False" };
            let header = format!(
                "{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': ({shape}), }}\n"
            );
            content.extend(b"\x93NUMPY\x01\x00");
            content.extend((header.len() as u16).to_le_bytes());
            content.extend(header.as_bytes());
        }
        match name {
            "format" if u.ratio(7, 8)? => content.extend(*u.choose(&[b"csr", b"coo"])?),
            _ => {
                let count = u.int_in_range(0..=48)?;
                content.extend(u.bytes(count.min(u.len()))?);
            }
        }
        members.push(Member {
            name: format!("{name}.npy"),
            repeated: if u.ratio(1, 16)? { usize::from(u16::arbitrary(u)?) } else { 0 },
            size: u.ratio(1, 16)?.then(|| u32::arbitrary(u)).transpose()?,
            packed_size: u.ratio(1, 16)?.then(|| u32::arbitrary(u)).transpose()?,
            wrong_checksum: u.ratio(1, 32)?,
            content,
        });
    }
    let mut file = zip::archive(&members);
    // Few archives are damaged, as the reader of ZIP files then does not get far.
    if u.ratio(1, 8)? {
        let at = u.choose_index(file.len())?;
        file[at] = u8::arbitrary(u)?;
    }
    Ok(file)
}
