//! Files: round trips, files NumPy, SciPy and safetensors wrote, damage of every kind, and atomicity.

use std::fs;
use std::path::{Path, PathBuf};

use convmat::io::{
    AnyTensor, AnyView, Array, ArrayType, Format, NpzReader, NpzWriter, SafetensorsReader, Source,
    read, write_npy, write_npy_with_progress, write_safetensors,
};
use convmat::{DType, Element, Error, Result, Tensor};
use half::{bf16, f16};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::catalogue::{randoms, tensor, values};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/io").join(name)
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(name)
}

fn read_path(path: &Path, key: Option<&str>) -> Result<Array> {
    read(&Source::new(path, key)?)
}

/// Reads everything in a file; the first error, if any.
fn read_all(path: &Path) -> Result<Vec<Array>> {
    match Format::of(path)? {
        Format::Npz => {
            let mut archive = NpzReader::open(path)?;
            archive.names().to_vec().iter().map(|name| archive.read(name)).collect()
        }
        Format::Safetensors => {
            let mut archive = SafetensorsReader::open(path)?;
            archive.names().to_vec().iter().map(|name| archive.read(name)).collect()
        }
        _ => Ok(vec![read_path(path, None)?]),
    }
}

fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

/// first, first + 1, …
fn ramp<T: Element>(shape: &[usize], first: i64) -> Tensor<T> {
    let len: usize = shape.iter().product();
    let values: Vec<f64> = (first..).take(len).map(|v| v as f64).collect();
    tensor(shape, &values)
}

// Names ---------------------------------------------------------------------------------------------

#[test]
fn sources_parse_and_print() {
    for (text, path, format, key) in [
        ("a.npy", "a.npy", Format::Npy, None),
        ("d/a.npz", "d/a.npz", Format::Npz, None),
        ("d/a.npz:x", "d/a.npz", Format::Npz, Some("x")),
        ("C:\\d\\a.npz:x:y.npz:z", "C:\\d\\a.npz", Format::Npz, Some("x:y.npz:z")),
        ("m.npz.safetensors:w.npy", "m.npz.safetensors", Format::Safetensors, Some("w.npy")),
        ("m.safetensors:a.npz:b", "m.safetensors", Format::Safetensors, Some("a.npz:b")),
        ("a.npz:weight.safetensors:b", "a.npz", Format::Npz, Some("weight.safetensors:b")),
    ] {
        let source: Source = text.parse().unwrap();
        assert_eq!((source.path(), source.format(), source.key()), (Path::new(path), format, key));
        assert_eq!(source.to_string(), text);
    }
    for (text, hint) in [
        ("a.txt", "expected file.npy, file.npz:key or file.safetensors:name"),
        ("", "expected file.npy"),
        ("npy", "expected file.npy"),
        ("a.npz:", "empty"),
        ("a.npy:x", "no keys"),
    ] {
        let error = message(text.parse::<Source>());
        assert!(error.contains(hint), "{error}");
    }
    assert!(message(Format::of(Path::new("out.csv"))).contains(".npy, .npz or .safetensors"));
}

#[test]
fn missing_keys_list_those_there_are() {
    let error = message(read_path(&data("digits.npz"), Some("image")));
    assert!(error.ends_with("no array `image`; there are: images, labels, train"), "{error}");
    let error = message(read_path(&data("digits.npz"), None));
    assert!(error.contains("which array?") && error.contains("images, labels, train"), "{error}");
    let error = message(read_path(&data("digits_cnn.safetensors"), Some("x")));
    assert!(error.contains("no array `x`; there are: conv1.bias, conv1.weight"), "{error}");
    assert_eq!(read_path(&fixture("one.npz"), None).unwrap().shape(), [3]);
    let error = read_path(Path::new("/nowhere/a.npy"), None).unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if path == Path::new("/nowhere/a.npy")));
}

// Round trips ---------------------------------------------------------------------------------------

fn round_trip<T: Element>(shape: &[usize], seed: u64) {
    let folder = TempDir::new().unwrap();
    let original: Tensor<T> = tensor(shape, &randoms(shape.iter().product(), seed));

    let npy = folder.path().join("a.npy");
    let mut told = 0;
    write_npy_with_progress(&npy, &original, |bytes| told += bytes).unwrap();
    assert_eq!(told as usize, original.len() * T::DTYPE.size());
    let array = read_path(&npy, None).unwrap();
    assert_eq!(array.dtype(), ArrayType::Float(T::DTYPE));
    assert_eq!(array.into_tensor::<T>().unwrap(), original);

    for compressed in [false, true] {
        let npz = folder.path().join("a.npz");
        let mut told = 0;
        let mut writer = NpzWriter::create(&npz).unwrap().compressed(compressed);
        writer.add_i32("i32", &[-1, i32::MAX]).unwrap();
        writer = writer.on_progress(|bytes| told += bytes);
        writer.add("x/y", &original).unwrap();
        writer.add_i64("i64", &[i64::MIN, 3]).unwrap();
        writer.add_bytes_string("format", b"csr").unwrap();
        writer.finish().unwrap();
        assert_eq!(told as usize, original.len() * T::DTYPE.size() + 16 + 3);
        let mut reader = NpzReader::open(&npz).unwrap();
        assert_eq!(reader.names(), ["i32", "x/y", "i64", "format"]);
        assert_eq!(reader.read("x/y").unwrap().into_tensor::<T>().unwrap(), original);
        assert_eq!(reader.read("i32").unwrap().to_integers().unwrap(), [-1, i32::MAX.into()]);
        assert_eq!(reader.read("i64").unwrap().to_integers().unwrap(), [i64::MIN, 3]);
        let format = reader.read("format").unwrap();
        assert_eq!((format.dtype(), format.shape()), (ArrayType::Bytes(3), &[][..]));
        assert_eq!(format.bytes(), b"csr");
    }

    let path = folder.path().join("a.safetensors");
    let narrow: Tensor<f16> = tensor(&[1], &[0.5]);
    let views =
        [("narrow", AnyView::new(&narrow).unwrap()), ("x", AnyView::new(&original).unwrap())];
    write_safetensors(&path, &views).unwrap();
    let mut reader = SafetensorsReader::open(&path).unwrap();
    assert_eq!(reader.names(), ["narrow", "x"]);
    assert_eq!(reader.read("x").unwrap().into_tensor::<T>().unwrap(), original);
    assert_eq!(reader.read("narrow").unwrap().into_any().unwrap(), AnyTensor::F16(narrow));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn what_is_written_is_read(shape in prop::collection::vec(0usize..5, 0..5), seed: u64) {
        round_trip::<f16>(&shape, seed);
        round_trip::<bf16>(&shape, seed);
        round_trip::<f32>(&shape, seed);
        round_trip::<f64>(&shape, seed);
    }
}

#[test]
fn several_chunks_are_written_whole() {
    let folder = TempDir::new().unwrap();
    let original: Tensor<f64> = ramp(&[3, 100_001], 0);
    let (npy, npz) = (folder.path().join("a.npy"), folder.path().join("a.npz"));
    let mut calls = 0;
    write_npy_with_progress(&npy, &original, |_| calls += 1).unwrap();
    assert_eq!(calls, 3);
    assert_eq!(read_path(&npy, None).unwrap().into_tensor::<f64>().unwrap(), original);
    let mut writer = NpzWriter::create(&npz).unwrap();
    writer.add("x", &original).unwrap();
    writer.finish().unwrap();
    assert_eq!(read_path(&npz, None).unwrap().into_tensor::<f64>().unwrap(), original);
}

#[test]
fn types_are_checked_or_converted() {
    let read = |key| read_path(&fixture("types.npz"), Some(key)).unwrap();
    let error = message(read("i4").into_tensor::<f32>());
    assert!(error.ends_with("types.npz:i4 has element type i32, expected f32"), "{error}");
    assert!(matches!(read("u1").into_any(), Err(Error::ElementType { .. })));
    assert!(matches!(read("f4").to_integers(), Err(Error::ElementType { .. })));
    assert_eq!(read("f2").into_any().unwrap().dtype(), DType::F16);
    assert_eq!(read("f8").into_any().unwrap().shape(), [2, 3]);
    assert_eq!(read("f8").convert::<bf16>().unwrap(), ramp(&[2, 3], -2));
}

// Files of others -----------------------------------------------------------------------------------

#[test]
fn numpy_npy_files_are_read() {
    let read = |name: &str| read_path(&fixture(name), None).unwrap();
    assert_eq!(read("fortran.npy").into_tensor::<f32>().unwrap(), ramp(&[2, 3, 4], -2));
    assert_eq!(read("big_endian.npy").into_tensor::<f64>().unwrap(), ramp(&[2, 3], -2));
    assert_eq!(read("bfloat16.npy").into_tensor::<bf16>().unwrap(), ramp(&[5], -2));
    let integers = read("big_endian_fortran.npy");
    assert_eq!(integers.dtype(), ArrayType::I16);
    assert_eq!(integers.convert::<f32>().unwrap(), ramp(&[3, 4], -2));
    for version in 1..=3 {
        let array = read(&format!("version{version}.npy"));
        assert_eq!(array.into_tensor::<f32>().unwrap(), ramp(&[2, 3], -2));
    }
}

#[test]
fn npy_files_are_numpys_to_the_byte() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.npy");
    write_npy(&path, &ramp::<f32>(&[2, 3], -2)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), fs::read(fixture("version1.npy")).unwrap());
    write_npy(&path, &ramp::<bf16>(&[5], -2)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), fs::read(fixture("bfloat16.npy")).unwrap());
}

#[test]
fn every_type_is_read() {
    let mut npz = NpzReader::open(fixture("types.npz")).unwrap();
    let mut safetensors = SafetensorsReader::open(fixture("types.safetensors")).unwrap();
    for key in ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"] {
        let expected: Tensor<f64> = ramp(&[2, 3], if key.starts_with('u') { 0 } else { -2 });
        for array in [npz.read(key).unwrap(), safetensors.read(key).unwrap()] {
            assert_eq!(array.dtype().size().to_string(), key[1..]);
            let (name, integers) = (array.name().to_owned(), array.to_integers());
            assert_eq!(array.convert::<f64>().unwrap(), expected, "{name}");
            if let Ok(integers) = integers {
                assert!(integers.iter().map(|&v| v as f64).eq(values(&expected)), "{name}");
            }
        }
    }
    for array in [npz.read("bool").unwrap(), safetensors.read("bool").unwrap()] {
        assert_eq!(array.to_integers().unwrap(), [0, 1, 1]);
        assert_eq!(values(&array.convert::<f32>().unwrap()), [0., 1., 1.]);
    }
    for array in [npz.read("empty").unwrap(), safetensors.read("empty").unwrap()] {
        assert_eq!(array.into_tensor::<f64>().unwrap().shape(), [0, 3]);
    }
    assert_eq!(npz.read("scalar").unwrap().into_tensor::<f32>().unwrap(), ramp(&[], 7));
    let halves = safetensors.read("bf16").unwrap();
    assert_eq!(halves.into_tensor::<bf16>().unwrap(), ramp(&[5], -2));
    for (error, found) in [
        (npz.read("complex").unwrap_err(), "<c8"),
        (npz.read("text").unwrap_err(), "<U1"),
        (safetensors.read("f8e4m3").unwrap_err(), "F8_E4M3"),
    ] {
        assert!(matches!(&error, Error::ElementType { found: f, .. } if f == found), "{error}");
    }
    let error = message(npz.read("record"));
    assert!(error.contains("types.npz: `record`: header: expected a string"), "{error}");
}

#[test]
fn scipy_sparse_archives_are_read() {
    let mut archive = NpzReader::open(fixture("scipy_csr.npz")).unwrap();
    let mut integers = |name| archive.read(name).unwrap().to_integers().unwrap();
    assert_eq!(integers("indptr"), [0, 1, 3]);
    assert_eq!(integers("indices"), [1, 0, 2]);
    assert_eq!(integers("shape"), [2, 3]);
    assert_eq!(archive.read("format").unwrap().bytes(), b"csr");
    let data = archive.read("data").unwrap().into_tensor::<f64>().unwrap();
    assert_eq!(values(&data), [1.5, 2., -3.]);
}

#[test]
fn the_digits_sample_is_read() {
    let mut digits = NpzReader::open(data("digits.npz")).unwrap();
    let images = digits.read("images").unwrap();
    assert_eq!((images.shape(), images.dtype()), (&[1797, 8, 8][..], ArrayType::U8));
    let images = images.to_integers().unwrap();
    assert_eq!((images.iter().max(), images.iter().sum()), (Some(&16), 561_718i64));
    assert_eq!(digits.read("labels").unwrap().shape(), [1797]);
    assert_eq!(digits.read("train").unwrap().to_integers().unwrap(), [1437]);

    let mut cnn = SafetensorsReader::open(data("digits_cnn.safetensors")).unwrap();
    for (name, shape) in [
        ("conv1.weight", &[16, 1, 3, 3][..]),
        ("conv2.weight", &[32, 4, 3, 3]),
        ("conv3.weight", &[64, 32, 3, 3]),
        ("fc.weight", &[10, 64]),
    ] {
        assert_eq!(cnn.read(name).unwrap().into_tensor::<f32>().unwrap().shape(), shape);
    }
    assert!(cnn.names().iter().all(|name| name != "conv3.bias"));

    let mut golden = NpzReader::open(data("digits_golden.npz")).unwrap();
    assert_eq!(golden.read("test_correct").unwrap().to_integers().unwrap(), [341]);
    assert_eq!(golden.read("conv3.nnz").unwrap().to_integers().unwrap(), [131_072]);
    let patches = golden.read("conv2.patches").unwrap().into_tensor::<f32>().unwrap();
    assert_eq!(patches.shape(), [8, 144, 16]);
    assert_eq!(golden.read("logits").unwrap().into_tensor::<f64>().unwrap().shape(), [8, 10]);
}

// Damage --------------------------------------------------------------------------------------------

/// Small files of every format, by name.
fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let names = [
        "fortran.npy",
        "big_endian.npy",
        "version2.npy",
        "one.npz",
        "types.npz",
        "scipy_csr.npz",
        "types.safetensors",
    ];
    names.map(|name| (name, fs::read(fixture(name)).unwrap())).into()
}

#[test]
fn truncated_or_lengthened_files_are_errors() {
    let folder = TempDir::new().unwrap();
    for (name, bytes) in samples() {
        let path = folder.path().join(name);
        fs::write(&path, &bytes).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        for len in (0..bytes.len()).rev() {
            file.set_len(len as u64).unwrap();
            let error = read_all(&path).expect_err("a truncated file was read");
            assert!(matches!(error, Error::Format { .. }), "{name} cut to {len}: {error}");
        }
        if !name.ends_with(".npz") {
            fs::write(&path, [&bytes[..], b"\0"].concat()).unwrap();
            assert!(matches!(read_all(&path), Err(Error::Format { .. })), "{name} lengthened");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn damaged_files_never_panic(
        sample in prop::sample::select(samples()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let (name, mut bytes) = sample;
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.remove(cut.index(bytes.len()));
        }
        let folder = TempDir::new().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let _ = read_all(&path);
    }

    #[test]
    fn random_bytes_never_panic(
        start in prop::sample::select(vec![&b""[..], b"\x93NUMPY\x01\0", b"PK\x03\x04", b"PK\x05\x06"]),
        noise in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let folder = TempDir::new().unwrap();
        for name in ["a.npy", "a.npz", "a.safetensors"] {
            let path = folder.path().join(name);
            fs::write(&path, [start, &noise].concat()).unwrap();
            let _ = read_all(&path);
        }
    }

    #[test]
    fn random_headers_never_panic(
        descr in "[<>|=]?(f4|i2|V2|S[0-9]{1,20}|[a-zA-Z][0-9]{1,3})",
        order in "True|False|None",
        extents in prop::collection::vec(prop_oneof![0u64..4, any::<u64>()], 0..6),
        body in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let shape: String = extents.iter().map(|n| format!("{n}, ")).collect();
        let header = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': ({shape})}}");
        let folder = TempDir::new().unwrap();
        let _ = read_npy(&folder, &header, &body);
    }
}

/// Reads an npy file with this header and body.
fn read_npy(folder: &TempDir, header: &str, body: &[u8]) -> Result<Array> {
    let len = (header.len() as u16).to_le_bytes();
    let path = folder.path().join("a.npy");
    fs::write(&path, [b"\x93NUMPY\x01\0", &len[..], header.as_bytes(), body].concat()).unwrap();
    read_path(&path, None)
}

#[test]
fn hostile_npy_headers_are_errors() {
    let folder = TempDir::new().unwrap();
    let good = "{\"shape\":(2L,) ,'descr' : 'f4','fortran_order':True}";
    assert_eq!(read_npy(&folder, good, &[0; 8]).unwrap().shape(), [2]);
    let long =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({})}}", "1, ".repeat(65));
    for header in [
        "",
        "{",
        "{}",
        "[]",
        "{'descr': '<f4', 'fortran_order': False}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)} + 1",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'more': 1}",
        "{'descr': '<f4', 'fortran_order': 0, 'shape': (2,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2.0,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': 2}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 4294967296, 4294967296, 2)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999,)}",
        "{'descr': '<<f4', 'fortran_order': False, 'shape': (2,)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '|S99999999999999999999999', 'fortran_order': False, 'shape': ()}",
        "{'descr': '|S2', 'fortran_order': True, 'shape': (2, 2)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'descr': '\\x3cf4'}",
        &long,
    ] {
        let body = [0; 8];
        assert!(read_npy(&folder, header, &body).is_err(), "{header}");
    }
}

#[test]
fn hostile_safetensors_headers_are_errors() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.safetensors");
    let read = |header: &str| {
        let len = (header.len() as u64).to_le_bytes();
        fs::write(&path, [&len[..], header.as_bytes(), &[0; 8]].concat()).unwrap();
        read_all(&path)
    };
    let entry = |shape: &str, offsets: &str| {
        format!("{{\"x\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":{offsets}}}}}")
    };
    assert_eq!(read(&entry("[2]", "[0,8]")).unwrap()[0].shape(), [2]);
    for header in [
        entry("[2]", "[0,4]"),
        entry("[1]", "[0,4]"),
        entry("[1]", "[4,8]"),
        entry("[2]", "[8,0]"),
        entry("[3]", "[0,12]"),
        entry("[-2]", "[0,8]"),
        entry("[4294967296,4294967296]", "[0,8]"),
        entry("[0,4294967296,4294967296]", "[0,0]"),
        entry("[4611686018427387903]", "[0,18446744073709551612]"),
        "{}".into(),
        "[".repeat(100_000),
    ] {
        let error = read(&header).expect_err(&header);
        assert!(matches!(error, Error::Format { .. }), "{header}: {error}");
    }
}

#[test]
fn sizes_that_lie_are_errors() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.npz");
    for compressed in [false, true] {
        let mut writer = NpzWriter::create(&path).unwrap().compressed(compressed);
        writer.add("x", &ramp::<f32>(&[300], 0)).unwrap();
        writer.finish().unwrap();
        let bytes = fs::read(&path).unwrap();
        let directory = bytes.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
        // The compressed and the uncompressed size in the archive's directory. The reader must not believe
        // them, and must not allocate so much.
        for field in [20, 24] {
            let mut bytes = bytes.clone();
            bytes[directory + field..][..4].copy_from_slice(&0xF000_0000u32.to_le_bytes());
            fs::write(&path, bytes).unwrap();
            assert!(matches!(read_all(&path), Err(Error::Format { .. })));
        }
    }
    // A changed element is caught by the archive's checksum.
    let mut bytes = fs::read(fixture("one.npz")).unwrap();
    let at = bytes.windows(4).position(|w| w == (-2f32).to_le_bytes()).unwrap();
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = message(read_all(&path));
    assert!(error.contains("`only`") && error.contains("checksum"), "{error}");
}

// Atomicity -----------------------------------------------------------------------------------------

fn file_names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn an_unfinished_archive_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.npz");
    fs::write(&path, "old").unwrap();
    let mut writer = NpzWriter::create(&path).unwrap();
    writer.add("x", &ramp::<f32>(&[9], 0)).unwrap();
    let error = message(writer.add("x", &ramp::<f32>(&[9], 0)));
    assert!(error.contains("`x`"), "{error}");
    drop(writer);
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(file_names(folder.path()), ["a.npz"]);
}

#[test]
fn bad_targets_are_errors() {
    let folder = TempDir::new().unwrap();
    let x: Tensor<f32> = ramp(&[2], 0);
    fs::create_dir(folder.path().join("d.npy")).unwrap();
    let error = message(write_npy(folder.path().join("d.npy"), &x));
    assert!(error.contains("not a regular file"), "{error}");
    let error = write_npy(folder.path().join("none/a.npy"), &x).unwrap_err();
    assert!(matches!(error, Error::Io { path, .. } if path == folder.path().join("none")));
    let view = AnyView::new(&x).unwrap();
    for tensors in [vec![("x", view.clone()), ("x", view.clone())], vec![("__metadata__", view)]] {
        let result = write_safetensors(folder.path().join("a.safetensors"), &tensors);
        assert!(matches!(result, Err(Error::Invalid { .. })));
    }
    let deep = x.reshape(&[&[2][..], &[1; 64]].concat()).unwrap();
    assert!(matches!(write_npy(folder.path().join("a.npy"), &deep), Err(Error::Shape { .. })));
    assert_eq!(file_names(folder.path()), ["d.npy"]);
}

#[cfg(unix)]
#[test]
fn new_files_have_the_usual_permissions_and_links_stay() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let folder = TempDir::new().unwrap();
    let mode =
        |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777;
    fs::write(folder.path().join("usual"), "").unwrap();
    let x: Tensor<f32> = ramp(&[2], 0);
    write_npy(folder.path().join("a.npy"), &x).unwrap();
    assert_eq!(mode("a.npy"), mode("usual"));

    let link = folder.path().join("link.npy");
    symlink(folder.path().join("a.npy"), &link).unwrap();
    let y: Tensor<f32> = ramp(&[3], 0);
    write_npy(&link, &y).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    let target = read_path(&folder.path().join("a.npy"), None).unwrap();
    assert_eq!(target.into_tensor::<f32>().unwrap(), y);
}

/// Runs itself in a child process under a limit on the size of files, which makes its writes fail.
#[cfg(target_os = "linux")]
#[test]
fn a_failed_write_keeps_the_old_file_and_leaves_no_other() {
    if let Some(folder) = std::env::var_os("CONVMAT_TEST_FOLDER") {
        return write_in_vain(Path::new(&folder));
    }
    let folder = TempDir::new().unwrap();
    let names = ["a.npy", "a.npz", "b.npz", "a.safetensors"];
    for name in names {
        fs::write(folder.path().join(name), "old").unwrap();
    }
    let output = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 100; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "io::a_failed_write_keeps_the_old_file_and_leaves_no_other"])
        .arg("--nocapture")
        .env("CONVMAT_TEST_FOLDER", folder.path())
        .output()
        .unwrap();
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}{stderr}");
    assert!(!stderr.contains("ZipWriter"), "{stderr}");
    for name in names {
        assert_eq!(fs::read(folder.path().join(name)).unwrap(), b"old");
    }
    assert_eq!(file_names(folder.path()).len(), names.len());
}

#[cfg(target_os = "linux")]
fn write_in_vain(folder: &Path) {
    let big: Tensor<f64> = tensor(&[40_000], &randoms(40_000, 1));
    let refused = |result: Result<()>, name: &str| {
        let path = folder.join(name);
        let refused = matches!(&result, Err(Error::Io { path: p, .. }) if *p == path);
        assert!(refused, "{name}: {result:?}");
    };
    refused(write_npy(folder.join("a.npy"), &big), "a.npy");
    for (name, compressed) in [("a.npz", false), ("b.npz", true)] {
        let mut writer = NpzWriter::create(folder.join(name)).unwrap().compressed(compressed);
        // A small member may still be in a buffer when the next one fails.
        writer.add("small", &ramp::<f32>(&[3], 0)).unwrap();
        let added = writer.add("big", &big).and_then(|()| writer.add("again", &big));
        refused(added.and(writer.finish()), name);
    }
    let views = [("x", AnyView::new(&big).unwrap())];
    refused(write_safetensors(folder.join("a.safetensors"), &views), "a.safetensors");
}
